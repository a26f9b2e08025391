//! The test bed is tested before anything is tested with it.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;

use support::bed::Plan;
use support::guest::{self, BLOCK};
use support::{Bed, MIB, Reader, Stall, Writer, stall, tools};

fn keeps_a_file(mut bed: Bed, kind: &str) {
    let file = bed.path().join("file");
    fs::write(&file, "text").unwrap();
    bed.cold();
    assert_eq!(fs::read(&file).unwrap(), b"text");
    assert_eq!(mounted_as(bed.device()), Some(kind.to_owned()));
    bed.sync();
    bed.remount_ro();
    let refused = File::create(bed.path().join("other")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));

    let device = bed.device().to_owned();
    let dir = bed.path().parent().unwrap().to_owned();
    drop(bed);
    assert_eq!(mounted_as(&device), None);
    assert!(!dir.exists());
}

/// The type of the file system that /proc/mounts shows for a device.
fn mounted_as(device: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut lines = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    let line = lines.find(|fields| Path::new(fields[0]) == device)?;
    Some(line[2].to_owned())
}

#[test]
fn xfs() {
    keeps_a_file(support::require!(Bed::xfs()), "xfs");
}

#[test]
fn ext4() {
    keeps_a_file(support::require!(Bed::ext4()), "ext4");
}

#[test]
fn btrfs() {
    keeps_a_file(support::require!(Bed::btrfs()), "btrfs");
}

#[test]
fn xfs_of_the_old_format() {
    keeps_a_file(support::optional!(Bed::xfs_v4()), "xfs");
}

#[test]
fn xfs_as_its_maker_is_told() {
    for features in [
        &["-m", "rmapbt=1"],
        &["-m", "reflink=0"],
        &["-i", "nrext64=1"],
    ] {
        keeps_a_file(support::require!(Bed::xfs_with(features)), "xfs");
    }
}

#[test]
fn what_the_kernel_refuses_is_told_and_removed() {
    let bed = support::require!(Bed::xfs());
    let size = 777 * MIB;
    let plan = Plan::of("xfs").size(size).options("no_such_option");
    let why = plan.make().unwrap_err().to_string();
    assert!(
        why.starts_with("not possible here because the kernel does not mount xfs"),
        "{why}"
    );
    // Other tests may have their beds there; none has an image of that size.
    let run = bed.path().ancestors().nth(2).unwrap();
    let dirs = fs::read_dir(run).unwrap().map(|dir| dir.unwrap().path());
    let images = dirs.flat_map(fs::read_dir).flatten();
    let sizes = images.map(|image| image.unwrap().metadata().unwrap().len());
    assert!(sizes.into_iter().all(|s| s != size));
}

#[test]
fn a_million_extents() {
    let extents = 1_000_000;
    let bed = support::require!(Bed::xfs_sized(guest::room_for(extents)));
    let file = bed.path().join("vm.img");
    guest::alternate_blocks(&file, extents);
    assert_eq!(tools::xfs_io_stat_nextents(&file), extents);
    assert_eq!(tools::xfs_io_fiemap_count(&file), extents);
    bed.remount_ro();
    assert_eq!(tools::xfs_db_frag(bed.device()).0, extents);
}

#[test]
fn the_headline_image() {
    let bed = support::optional!(Bed::headline());
    let file = bed.path().join("ffc63a70.disk");
    assert_eq!(tools::xfs_io_stat_nextents(&file), 34_694_398);
}

#[test]
fn random_writes_fragment_and_are_the_same_every_time() {
    let bed = support::require!(Bed::xfs());
    let [one, two] = ["one", "two"].map(|name| bed.path().join(name));
    guest::random_direct_writes(&one, 64 * MIB, 4096);
    guest::random_direct_writes(&two, 64 * MIB, 4096);
    assert_eq!(tools::checksum(&one), tools::checksum(&two));
    for file in [&one, &two] {
        let extents = tools::filefrag_extents(file);
        // A quarter of the blocks: some of them are neighbours in the file.
        assert!((2900..=4096).contains(&extents.len()), "{}", extents.len());
        assert_eq!(extents.len() as u64, tools::xfs_io_stat_nextents(file));
        assert_eq!(extents.iter().map(|e| e.length).sum::<u64>(), 4096 * BLOCK,);
        assert!(extents.last().unwrap().flags.contains(&"last".to_owned()));
    }
}

#[test]
fn a_preallocated_file_has_many_extents_and_one_run() {
    let bed = support::require!(Bed::xfs());
    let file = bed.path().join("vm.img");
    guest::preallocated_then_random_writes(&file, 64 * MIB, 1024);
    let extents = tools::filefrag_extents(&file);
    assert!(extents.len() > 1500, "{}", extents.len());
    assert!(extents.iter().any(|e| e.flags == ["unwritten"]));
    assert!(extents.is_sorted_by(|a, b| a.physical + a.length == b.physical));
    assert_eq!(tools::filefrag_count(&file), 1);
}

#[test]
fn each_discard_splits_an_extent() {
    for bed in [Bed::xfs(), Bed::ext4()] {
        let bed = support::require!(bed);
        let file = bed.path().join("vm.img");
        guest::sequential(&file, 64 * MIB);
        let before = tools::filefrag_extents(&file).len();
        guest::discard_holes(&file, 500);
        assert_eq!(tools::filefrag_extents(&file).len(), before + 500);
    }
}

#[test]
fn a_reflink_copy_shares() {
    for bed in [Bed::xfs_with(&["-m", "reflink=1"]), Bed::btrfs()] {
        let bed = support::require!(bed);
        let [file, copy] = ["vm.img", "copy.img"].map(|name| bed.path().join(name));
        guest::sequential(&file, MIB);
        guest::reflink_copy(&file, &copy);
        for extent in tools::filefrag_extents(&file) {
            assert!(extent.flags.contains(&"shared".to_owned()), "{extent:?}");
        }
        assert_eq!(tools::checksum(&file), tools::checksum(&copy));
    }
}

#[test]
fn delayed_blocks_have_no_place_yet() {
    let bed = support::require!(Bed::xfs());
    let file = bed.path().join("vm.img");
    guest::buffered_delalloc(&file, 100);
    let delayed = tools::filefrag_extents(&file);
    assert_eq!(delayed.len(), 100);
    assert!(
        delayed
            .iter()
            .all(|e| e.flags.contains(&"delalloc".to_owned()))
    );
    bed.sync();
    let placed = tools::filefrag_extents(&file);
    assert_eq!(placed.len(), 100);
    assert!(
        !placed
            .iter()
            .any(|e| e.flags.contains(&"delalloc".to_owned()))
    );
}

#[test]
fn an_extent_size_hint_is_inherited() {
    let bed = support::require!(Bed::xfs());
    tools::set_extent_size_hint(bed.path(), MIB);
    let file = bed.path().join("vm.img");
    guest::random_direct_writes(&file, 64 * MIB, 4096);
    assert!(tools::filefrag_count(&file) <= 64);
}

#[test]
fn load_is_timed_and_nothing_is_lost() {
    let bed = support::require!(Bed::xfs());
    let file = bed.path().join("vm.img");
    guest::sequential(&file, 16 * MIB);
    let writer = Writer::start(&file, Some(500));
    let reader = Reader::start(&file, None);
    while reader.count() < 1000 || writer.count() < 200 {
        thread::sleep(Duration::from_millis(5));
    }
    let (written, read) = (writer.stop(), reader.stop());
    written.verify();
    for times in [&written.latencies, &read] {
        assert!(times.percentile(50.0) > Duration::ZERO);
        assert!(times.percentile(50.0) <= times.percentile(99.9));
        assert_eq!(times.worst(), *times.sorted().last().unwrap());
    }
}

support::stall_server!();

/// A thread that acts, and what /proc knows of it.
struct Probe {
    thread: JoinHandle<io::Result<u64>>,
    proc: PathBuf,
}

impl Probe {
    fn start(act: impl FnOnce() -> io::Result<u64> + Send + 'static) -> Probe {
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            act()
        });
        let tid = told.recv().unwrap().as_raw_nonzero();
        let proc = PathBuf::from(format!("/proc/self/task/{tid}"));
        Probe { thread, proc }
    }

    /// Waits until it is in state D and then a while, in which it must not come out of it.
    fn assert_hangs(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while stall::state(&self.proc) != Some('D') {
            assert!(!self.thread.is_finished(), "it did not hang");
            assert!(Instant::now() < deadline, "it did not begin to hang");
            thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..50 {
            assert_eq!(stall::state(&self.proc), Some('D'));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_stall_hangs_what_needs_the_disk_and_nothing_else() {
    let mut stall = support::require!(Stall::new());
    let other = support::require!(Bed::xfs());
    fs::create_dir(stall.path().join("apart")).unwrap();
    let [opened, unseen] = ["opened", "apart/unseen"].map(|name| stall.path().join(name));
    guest::random_direct_writes(&opened, 32 * MIB, 4096);
    guest::alternate_blocks(&unseen, 5000);
    let first_hole = |file: File| Ok(rustix::fs::seek(file, SeekFrom::Hole(0))?);
    let expected = first_hole(File::open(&opened).unwrap()).unwrap();
    let extents = tools::xfs_io_fiemap_count(&opened);
    stall.cold();
    let file = File::open(&opened).unwrap();
    stall.stop();

    // The inode of one has to be read; of the other the extent map.
    let path = unseen.clone();
    let inode = Probe::start(move || Ok(File::open(path)?.metadata()?.len()));
    let map = Probe::start(move || first_hole(file));
    inode.assert_hangs();
    map.assert_hangs();
    guest::random_direct_writes(&other.path().join("vm.img"), MIB, 100);
    stall.resume();
    assert_eq!(inode.thread.join().unwrap().unwrap(), 9999 * BLOCK);
    assert_eq!(map.thread.join().unwrap().unwrap(), expected);
    assert_eq!(tools::xfs_io_stat_nextents(&unseen), 5000);
    assert_eq!(tools::xfs_io_fiemap_count(&opened), extents);
}

#[test]
fn a_stall_that_is_forgotten_is_removed() {
    let mut stall = support::require!(Stall::new());
    let file = stall.path().join("vm.img");
    guest::random_direct_writes(&file, MIB, 100);
    stall.cold();
    stall.stop();
    let probe = Probe::start(move || Ok(file.metadata()?.len()));
    probe.assert_hangs();
    let device = stall.bed().device().to_owned();
    drop(stall);
    assert_eq!(mounted_as(&device), None);
    assert_eq!(probe.thread.join().unwrap().unwrap(), MIB);
}
