//! The census of a whole XFS: every inode by XFS_IOC_BULKSTAT, none of them opened, no extent map
//! loaded, and neither the block device nor gigabytes needed (as `xfs_db -c "frag -f"` does).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::open;
use super::protocol::CensusRequest;
use crate::discover::mounts::Territory;
use crate::discover::rules::{Rules, Selection};
use crate::discover::walk::{Visitor, walk};
use crate::model::memory::extent_map_memory;
use crate::model::{Bytes, Census, CensusFile, ExtentCount, FilesystemKind};
use crate::sys::bulkstat::{Bulkstat, Inode};
use crate::sys::handle::open_inode;

/// Counts all files of the file system.
///
/// # Errors
/// PermissionDenied without CAP_SYS_ADMIN, Unsupported where it is no XFS or the kernel is older
/// than 5.3, and those of opening the mount point.
pub fn census(request: &CensusRequest, beat: &mut dyn FnMut()) -> io::Result<Census> {
    if request.mount.kind() != FilesystemKind::Xfs {
        let refusal = needs_xfs(&request.mount.type_name);
        return Err(io::Error::new(io::ErrorKind::Unsupported, refusal));
    }
    let root = open::mount_point(&request.mount.point)?;
    let mut tally = Tally::new(request.worst);
    let mut bulkstat = Bulkstat::new();
    loop {
        beat();
        let inodes = bulkstat.next(&root).map_err(explained)?;
        if inodes.is_empty() {
            break;
        }
        inodes
            .iter()
            .filter(|inode| inode.is_file())
            .for_each(|inode| tally.add(inode));
    }
    let (mut census, generations) = tally.finish();
    find_names(&mut census.worst, &generations, &root, request, beat);
    Ok(census)
}

/// Why there is no census of a file system of this type.
#[must_use]
pub fn needs_xfs(type_name: &str) -> String {
    format!(
        "lies on {type_name}; a census needs XFS. `fragwatch scan PATH` counts images on any file system"
    )
}

fn explained(error: io::Error) -> io::Error {
    let text = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "a census needs root (CAP_SYS_ADMIN)",
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => "a census needs a kernel from 5.3 on",
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

/// Sums over all inodes, and the worst of them.
struct Tally {
    census: Census,
    most: usize,
    /// The worst so far, the least bad of them on top: extents, inode, and the rest.
    worst: BinaryHeap<Reverse<(u64, u64, Rest)>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rest {
    size: Bytes,
    allocated: Bytes,
    generation: u32,
}

impl Tally {
    fn new(most: usize) -> Self {
        Tally {
            census: Census::default(),
            most,
            worst: BinaryHeap::new(),
        }
    }

    fn add(&mut self, inode: &Inode) {
        let extents = ExtentCount(inode.extents());
        let census = &mut self.census;
        census.files += 1;
        census.extents = census.extents.saturating_add(extents);
        census.extent_map_memory = census
            .extent_map_memory
            .saturating_add(extent_map_memory(extents));
        let class = Census::class_of(extents);
        if census.classes.len() <= class {
            census.classes.resize(class + 1, 0);
        }
        census.classes[class] += 1;

        let least = self
            .worst
            .peek()
            .map_or(0, |Reverse((extents, ..))| *extents);
        if self.most == 0 || (self.worst.len() >= self.most && extents.0 <= least) {
            return;
        }
        let rest = Rest {
            size: Bytes(inode.size),
            allocated: Bytes(inode.blocks.saturating_mul(inode.block_size.into())),
            generation: inode.generation,
        };
        self.worst.push(Reverse((extents.0, inode.inode, rest)));
        if self.worst.len() > self.most {
            self.worst.pop();
        }
    }

    /// The census, still without names, and the generation of each of the worst inodes.
    fn finish(self) -> (Census, HashMap<u64, u32>) {
        let mut generations = HashMap::new();
        let mut census = self.census;
        // Sorted ascending in `Reverse`, which is worst first.
        for Reverse((extents, inode, rest)) in self.worst.into_sorted_vec() {
            generations.insert(inode, rest.generation);
            census.worst.push(CensusFile {
                inode,
                extents: ExtentCount(extents),
                size: rest.size,
                allocated: rest.allocated,
                path: None,
            });
        }
        (census, generations)
    }
}

/// Names for inodes: from the kernel's memory where it has the name there, else by a search of all
/// directories for their inode numbers, which ends with the last one found.
fn find_names(
    files: &mut [CensusFile],
    generations: &HashMap<u64, u32>,
    root: &File,
    request: &CensusRequest,
    beat: &mut dyn FnMut(),
) {
    for file in files.iter_mut() {
        beat();
        let generation = generations.get(&file.inode).copied().unwrap_or(0);
        file.path = remembered_name(root, file.inode, generation, &request.territory);
    }
    let missing = files.iter().filter(|file| file.path.is_none());
    let mut search = NameSearch {
        missing: missing.map(|file| (file.inode, None)).collect(),
        left: files.iter().filter(|file| file.path.is_none()).count(),
        beat,
    };
    // An empty selection passes nothing over, and has no globs that could be wrong.
    let Ok(rules) = Rules::new(&Selection::default()) else {
        return;
    };
    if search.left > 0 {
        walk(
            &request.mount.point,
            &request.territory,
            &rules,
            &mut search,
        );
    }
    let mut names = search.missing;
    for file in files.iter_mut().filter(|file| file.path.is_none()) {
        file.path = names.remove(&file.inode).flatten();
    }
}

/// The name under which the kernel has the inode in its directory cache, if it does.
fn remembered_name(root: &File, inode: u64, generation: u32, here: &Territory) -> Option<PathBuf> {
    let handle = open_inode(root, inode, generation).ok()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?;
    // An inode without a name in the cache appears as `/`; and a name may be out of date.
    let is_it = here.is_here(&path) && fs::symlink_metadata(&path).ok()?.ino() == inode;
    is_it.then_some(path)
}

struct NameSearch<'a> {
    missing: HashMap<u64, Option<PathBuf>>,
    left: usize,
    beat: &'a mut dyn FnMut(),
}

impl Visitor for NameSearch<'_> {
    fn file(&mut self, _: BorrowedFd<'_>, _: &OsStr, path: &Path, inode: u64) -> ControlFlow<()> {
        if let Some(name @ None) = self.missing.get_mut(&inode) {
            *name = Some(path.to_owned());
            self.left -= 1;
        }
        if self.left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn mount_point(&mut self, _: &Path) {}

    /// A directory that cannot be read hides names; the file is then shown by its inode number.
    fn fault(&mut self, _: &Path, _: &io::Error) {}

    fn beat(&mut self) {
        (self.beat)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(extents: &[u64], worst: usize) -> Census {
        let mut tally = Tally::new(worst);
        for (number, extents) in (1..).zip(extents) {
            tally.add(&Inode::example(number, *extents));
        }
        tally.finish().0
    }

    #[test]
    fn the_worst_come_first() {
        let census = tally(&[5, 0, 1000, 7, 1000, 6], 3);
        assert_eq!(census.files, 6);
        assert_eq!(census.extents, ExtentCount(2018));
        assert_eq!(census.classes, [1, 3, 0, 0, 2]);
        let worst: Vec<_> = census.worst.iter().map(|file| file.extents.0).collect();
        assert_eq!(worst, [1000, 1000, 7]);
    }

    #[test]
    fn no_names_wanted_is_no_error() {
        assert!(tally(&[1, 2], 0).worst.is_empty());
    }
}
