//! Census of a whole XFS: reads every inode by XFS_IOC_BULKSTAT, opens none, loads no extent map,
//! and needs neither the block device nor gigabytes of memory (unlike `xfs_db -c "frag -f"`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, SyncSender};

use super::open;
use super::protocol::CensusRequest;
use crate::discover::mounts::FilesystemScope;
use crate::discover::rules::{Rules, Selection};
use crate::discover::walk::{Visitor, walk};
use crate::model::memory::extent_map_memory;
use crate::model::path::PlainPath;
use crate::model::{Bytes, Census, CensusFile, ExtentCount, FilesystemKind};
use crate::sys::bulkstat::{Bulkstat, Inode};
use crate::sys::geometry::geometry;
use crate::sys::handle::open_inode;

/// Maximum number of counting threads: guests need the same processors, and a census is not urgent.
const MOST_THREADS: usize = 4;

/// Counts all files of the file system.
///
/// # Errors
/// PermissionDenied without CAP_SYS_ADMIN, Unsupported if it is not XFS or the kernel is older than
/// 5.3, and errors of opening the mount point.
pub fn census(request: &CensusRequest, beat: &mut dyn FnMut()) -> io::Result<Census> {
    if request.mount.kind() != FilesystemKind::Xfs {
        let refusal = needs_xfs(&request.mount.type_name);
        return Err(io::Error::new(io::ErrorKind::Unsupported, refusal));
    }
    let root = open::mount_point(&request.mount.point)?;
    let tally = count(&root, request.worst, beat)?;
    let (mut census, generations) = tally.finish();
    find_names(&mut census.worst, &generations, &root, request, beat);
    Ok(census)
}

/// Reads the allocation groups in parallel; each has its own locks and inode B+trees. Each batch of
/// any thread is a beat. If one thread hangs, the others soon finish, and the beats cease.
fn count(root: &File, worst: usize, beat: &mut dyn FnMut()) -> io::Result<Tally> {
    let groups = geometry(root).map_err(explained)?.groups;
    let next = &AtomicU32::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (batches, counted) = mpsc::sync_channel(MOST_THREADS);
    std::thread::scope(|scope| {
        for number in 0..threads.min(MOST_THREADS) {
            let batches = batches.clone();
            let work = move || read_groups(root, next, groups, &batches);
            match std::thread::Builder::new().spawn_scoped(scope, work) {
                Err(error) if number == 0 => return Err(error),
                // The other threads do its share.
                Err(_) => break,
                Ok(_) => {}
            }
        }
        drop(batches);
        let mut tally = Tally::new(worst);
        for batch in counted {
            beat();
            batch?.iter().for_each(|inode| tally.add(inode));
        }
        Ok(tally)
    })
}

fn read_groups(
    root: &File,
    next: &AtomicU32,
    groups: u32,
    batches: &SyncSender<io::Result<Vec<Inode>>>,
) {
    loop {
        let group = next.fetch_add(1, Ordering::Relaxed);
        if group >= groups {
            return;
        }
        let mut bulkstat = Bulkstat::of_group(group);
        loop {
            let batch = bulkstat.next(root).map(<[Inode]>::to_vec);
            let is_last = batch.as_ref().is_ok_and(Vec::is_empty);
            // The receiver is gone after an error, here or in another thread.
            if batches.send(batch.map_err(explained)).is_err() {
                return;
            }
            if is_last {
                break;
            }
        }
    }
}

/// Why a census of a file system of this type is not possible.
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

/// Extents, inode, size, allocated size, generation.
type CountedFile = (ExtentCount, u64, Bytes, Bytes, u32);

struct Tally {
    census: Census,
    most: usize,
    /// The most fragmented files so far, the least fragmented on top.
    worst: BinaryHeap<Reverse<CountedFile>>,
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
        if !inode.is_file() {
            return;
        }
        let extents = ExtentCount(inode.extents());
        let census = &mut self.census;
        census.files += 1;
        census.extents = census.extents.saturating_add(extents);
        let memory = extent_map_memory(extents);
        census.extent_map_memory = census.extent_map_memory.saturating_add(memory);
        let class = Census::class_of(extents);
        if census.classes.len() <= class {
            census.classes.resize(class + 1, 0);
        }
        census.classes[class] += 1;

        let (size, blocks) = (Bytes(inode.size), inode.blocks);
        let allocated = Bytes(blocks.saturating_mul(inode.block_size.into()));
        let file = (extents, inode.inode, size, allocated, inode.generation);
        let least = self.worst.peek();
        if self.worst.len() < self.most || least.is_some_and(|Reverse(least)| extents > least.0) {
            self.worst.push(Reverse(file));
        }
        if self.worst.len() > self.most {
            self.worst.pop();
        }
    }

    /// The census, without names, and the generation of each inode in its list.
    fn finish(self) -> (Census, HashMap<u64, u32>) {
        let mut generations = HashMap::new();
        let mut census = self.census;
        // Ascending order of `Reverse` is descending order of extents.
        for Reverse((extents, inode, size, allocated, generation)) in self.worst.into_sorted_vec() {
            generations.insert(inode, generation);
            census.worst.push(CensusFile {
                inode,
                extents,
                size,
                allocated,
                path: None,
            });
        }
        (census, generations)
    }
}

/// Finds names for inodes in the kernel's dentry cache, else by searching all directories.
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
        file.path = remembered_name(root, file.inode, generation, &request.scope).map(PlainPath);
    }
    let missing = files.iter().filter(|file| file.path.is_none());
    let missing: HashMap<_, _> = missing.map(|file| (file.inode, None)).collect();
    // Cannot fail: an empty selection skips nothing and has no globs.
    let Ok(rules) = Rules::new(&Selection::default()) else {
        return;
    };
    let left = missing.len();
    let mut search = NameSearch {
        missing,
        left,
        beat,
    };
    if left > 0 {
        walk(&request.mount.point, &request.scope, &rules, &mut search);
    }
    for file in files.iter_mut().filter(|file| file.path.is_none()) {
        file.path = search.missing.remove(&file.inode).flatten().map(PlainPath);
    }
}

fn remembered_name(
    root: &File,
    inode: u64,
    generation: u32,
    here: &FilesystemScope,
) -> Option<PathBuf> {
    let handle = open_inode(root, inode, generation).ok()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?;
    // An inode without a cached name appears as `/`, and a name may be stale.
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
        match self.left {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn mount_point(&mut self, _: &Path) {}

    /// Files in an unreadable directory are shown by inode number.
    fn fault(&mut self, _: &Path, _: &io::Error) {}

    fn beat(&mut self) {
        (self.beat)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn the_order_of_the_threads_does_not_matter(
            extents in proptest::collection::vec(0..100_000u64, 0..60),
            cut in 0..60usize,
            worst in 0..8usize,
        ) {
            let cut = cut.min(extents.len());
            let whole = tally(&extents, worst);
            let other = tally(&[&extents[cut..], &extents[..cut]].concat(), worst);
            let extents = |census: &Census| {
                census.worst.iter().map(|file| file.extents).collect::<Vec<_>>()
            };
            prop_assert_eq!(extents(&whole), extents(&other));
            prop_assert_eq!(
                (whole.files, whole.extents, whole.extent_map_memory, whole.classes),
                (other.files, other.extents, other.extent_map_memory, other.classes)
            );
        }
    }

    #[test]
    fn no_names_wanted_is_no_error() {
        assert!(tally(&[1, 2], 0).worst.is_empty());
    }
}
