//! The test bed is tested before anything is tested with it.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use support::bed::Plan;
use support::guest::{self, BLOCK};
use support::{Bed, MIB, Reader, Writer, tools};

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
        std::thread::sleep(Duration::from_millis(5));
    }
    let (written, read) = (writer.stop(), reader.stop());
    written.verify();
    for times in [&written.latencies, &read] {
        assert!(times.percentile(50.0) > Duration::ZERO);
        assert!(times.percentile(50.0) <= times.percentile(99.9));
        assert_eq!(times.worst(), *times.sorted().last().unwrap());
    }
}
