//! Which hints would be set on a file system, what that can cost, and what is against it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::facts::Facts;
use super::hints;
use super::thin::Provisioning;
use crate::model::{Bytes, Filesystem, FilesystemKind, ImageId};
use crate::sys::fsxattr::Hint;

/// The size that an image in a directory without any is expected to have.
const EXPECTED_IMAGE: Bytes = Bytes(100 << 30);

/// A hint to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Without links.
    pub path: PathBuf,
    /// Which of its hints.
    pub hint: Hint,
    /// Of an image, as it was examined.
    pub id: Option<ImageId>,
    /// The hint in force; 0 if none.
    pub has: Bytes,
    /// The hint to be set.
    pub wanted: Bytes,
    /// What it can cost in all; `None` if there is no limit, as for new files in a directory.
    pub cost: Option<Bytes>,
}

/// A directory for images, without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bare {
    /// Without links.
    pub path: PathBuf,
    /// The hint that it gives to new files; 0 if none.
    pub hint: Bytes,
}

/// What is known of a file system beside its images.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The file system.
    pub filesystem: &'a Filesystem,
    /// What is to stay free.
    pub keeps: Bytes,
    /// Whether the device has all its space.
    pub provisioning: Provisioning,
    /// What is against hints on an XFS with reflink on this kernel.
    pub kernel: Option<&'a str>,
}

/// What would be done on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The hints to be set.
    pub changes: Vec<Change>,
    /// Why nothing is done, as a clause.
    pub obstacle: Option<String>,
    /// Whether `--force` would overrule the obstacle.
    pub can_be_forced: bool,
}

impl Plan {
    /// For the images of a file system, and directories on it for images to come.
    pub fn new(place: &Place<'_>, images: &[Facts<'_>], bare: &[Bare], forced: bool) -> Plan {
        let filesystem = place.filesystem;
        let refused = |obstacle: String, can_be_forced| Plan {
            changes: Vec::new(),
            obstacle: Some(obstacle),
            can_be_forced,
        };
        if filesystem.kind != FilesystemKind::Xfs {
            let kind = &filesystem.type_name;
            return refused(
                format!("it is {kind}, which has no extent-size hints"),
                false,
            );
        }
        let has_reflink = filesystem.features.is_some_and(|it| it.reflink);
        if let Some(why) = place.kernel.filter(|_| has_reflink) {
            return refused(why.to_owned(), false);
        }
        let missing = changes(images, bare, Bytes(u64::MAX), has_reflink);
        if missing.is_none_or(|missing| missing.is_empty()) {
            return Plan {
                changes: Vec::new(),
                obstacle: None,
                can_be_forced: false,
            };
        }
        let free = Bytes(filesystem.free.0.saturating_sub(place.keeps.0));
        let room = if forced { Bytes(u64::MAX) } else { free };
        let Some(changes) = changes(images, bare, room, has_reflink) else {
            let (free, keeps) = (filesystem.free, place.keeps);
            let text = format!(
                "{free} are free, and {keeps} of them are kept (defrag.keep_free): too little for \
                 pieces of {} that are written in part",
                hints::SHORTEST
            );
            return refused(text, true);
        };
        let cost: Bytes = changes.iter().filter_map(|change| change.cost).sum();
        let obstacle = if forced {
            None
        } else if place.provisioning == Provisioning::Thin {
            Some("its storage is thin-provisioned, and pieces that are written in part fill the pool".to_owned())
        } else if cost > free {
            Some(format!(
                "these changes can cost {cost}, and {free} are free beside what is kept (defrag.keep_free)"
            ))
        } else {
            None
        };
        Plan {
            can_be_forced: obstacle.is_some(),
            changes,
            obstacle,
        }
    }
}

/// `None` if there is too little room for any hint.
fn changes(
    images: &[Facts<'_>],
    bare: &[Bare],
    room: Bytes,
    has_reflink: bool,
) -> Option<Vec<Change>> {
    let mut directories: BTreeMap<&Path, (Bytes, Bytes)> = BTreeMap::new();
    for Bare { path, hint } in bare {
        directories.insert(path, (*hint, EXPECTED_IMAGE));
    }
    let mut changes = Vec::new();
    for facts in images {
        let sample = facts.sample;
        let size = facts.full_size();
        let above = sample.path.parent().unwrap_or(Path::new("/"));
        // A qcow2 that grows has more fragments with a hint (see `hints`).
        if sample.qcow2.is_none() {
            let (has, largest) = directories.entry(above).or_default();
            (*has, *largest) = (sample.directory_hint, size.max(*largest));
        }
        changes.extend(of_image(facts, hints::wanted(size, room)?, has_reflink));
    }
    let mut all = Vec::new();
    for (path, (has, largest)) in directories {
        let wanted = hints::wanted(largest, room)?;
        if has < wanted {
            all.push(Change {
                path: path.to_owned(),
                hint: Hint::Inherited,
                id: None,
                has,
                wanted,
                cost: None,
            });
        }
    }
    all.extend(changes);
    Some(all)
}

/// An image without extents takes a hint of its own, any other only one for copy on write, which
/// matters where files can share blocks.
fn of_image(facts: &Facts<'_>, wanted: Bytes, has_reflink: bool) -> Option<Change> {
    let sample = facts.sample;
    let (hint, has, cost) = match sample.extents.0 {
        0 => (Hint::Own, sample.extent_size_hint, sample.size),
        _ if has_reflink => {
            let has = sample.cow_hint.max(sample.extent_size_hint);
            (Hint::CopyOnWrite, has, facts.shared())
        }
        _ => return None,
    };
    (has < wanted).then(|| Change {
        path: sample.path.clone(),
        hint,
        id: Some(sample.id),
        has,
        wanted,
        cost: Some(cost),
    })
}

#[cfg(test)]
mod tests;
