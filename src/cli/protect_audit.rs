//! The audit of `fragwatch protect`: counts the images, reads their maps, plans hints.

use std::path::{Path, PathBuf};

use super::command::block_on;
use super::images::{Found, Image, Probes, scope};
use crate::config::Settings;
use crate::model::{DeviceNumber, Filesystem, FilesystemKind};
use crate::probe::sweep::Scope;
use crate::protect::apply::Applied;
use crate::protect::facts::Facts;
use crate::protect::kernel;
use crate::protect::plan::{Bare, Change, Place, Plan};
use crate::protect::thin::{Provisioning, provisioning};
use crate::protect::verdict::Verdict;

/// What was found, and what would be done about it.
pub(super) struct Audit {
    pub(super) found: Found,
    pub(super) places: Vec<AuditedPlace>,
}

impl Audit {
    /// Examines the images below these paths, or the configured ones if there are none. With
    /// `forced`, obstacles that can be overruled are.
    pub(super) fn new(
        settings: &Settings,
        paths: &[PathBuf],
        forced: bool,
    ) -> anyhow::Result<Audit> {
        let scope = scope(settings, paths)?;
        let (found, bare) = block_on(read(settings, &scope))?;
        Ok(Audit {
            places: places(&found, &bare, settings, forced),
            found,
        })
    }

    /// The images with their verdicts, those that can gain the most extents first.
    pub(super) fn judged(&self) -> Vec<(Facts<'_>, Verdict)> {
        let judged = self.found.images.iter().map(|image| {
            let facts = facts(&self.found, image);
            (facts, Verdict::of(&facts))
        });
        let mut judged: Vec<_> = judged.collect();
        judged.sort_by(|(a, left), (b, right)| {
            let order = |it: &Verdict| (it.risk, it.at_worst);
            let paths = a.sample.path.cmp(&b.sample.path);
            order(right).cmp(&order(left)).then(paths)
        });
        judged
    }
}

/// A file system.
pub(super) struct AuditedPlace {
    pub(super) filesystem: Filesystem,
    pub(super) provisioning: Provisioning,
    pub(super) plan: Plan,
    /// What became of the changes, with `--apply`.
    pub(super) applied: Vec<(Change, Applied)>,
}

/// Counts the images and reads the maps of those on XFS, as far as they are not too long; and the
/// hints of the named directories that no image lies in.
async fn read(
    settings: &Settings,
    scope: &Scope,
) -> anyhow::Result<(Found, Vec<(DeviceNumber, Bare)>)> {
    let mut probes = Probes::new(settings)?;
    let mut found = probes.count(scope, settings).await?;
    let is_xfs = |it: &Filesystem| it.kind == FilesystemKind::Xfs;
    for image in &mut found.images {
        let filesystem = found.filesystems.get(&image.device);
        if filesystem.is_some_and(is_xfs) {
            let cap = settings.sampling.map_max_extents;
            found.errors.extend(probes.read_map(image, cap).await.err());
        }
    }
    let mut bare = Vec::new();
    for root in scope.roots.iter().filter(|root| !root.glob) {
        // A file, or what the search has reported.
        let Ok((device, path, hint)) = probes.directory(&root.path).await else {
            continue;
        };
        let mut images = found.images.iter();
        if !images.any(|image| image.sample.path.starts_with(&path)) {
            bare.push((device, Bare { path, hint }));
        }
    }
    Ok((found, bare))
}

fn facts<'a>(found: &'a Found, image: &'a Image) -> Facts<'a> {
    Facts {
        sample: &image.sample,
        filesystem: found.filesystem(image),
        map: image.map.as_ref(),
        owner: image.owner.as_ref(),
    }
}

fn places(
    found: &Found,
    bare: &[(DeviceNumber, Bare)],
    settings: &Settings,
    forced: bool,
) -> Vec<AuditedPlace> {
    let kernel = kernel::obstacle(Path::new("/proc"), &settings.defrag.trusted_kernels);
    let place = |(device, filesystem): (&DeviceNumber, &Filesystem)| {
        let images = found.images.iter().filter(|image| image.device == *device);
        let images: Vec<_> = images.map(|image| facts(found, image)).collect();
        let bare = bare.iter().filter(|(its, _)| its == device);
        let bare: Vec<_> = bare.map(|(_, directory)| directory.clone()).collect();
        let provisioning = provisioning(Path::new("/sys"), *device);
        let place = Place {
            filesystem,
            keeps: settings.defrag.keep_free.of_bytes(filesystem.size),
            provisioning,
            kernel: kernel.as_deref(),
        };
        AuditedPlace {
            filesystem: filesystem.clone(),
            provisioning,
            plan: Plan::new(&place, &images, &bare, forced),
            applied: Vec::new(),
        }
    };
    found.filesystems.iter().map(place).collect()
}
