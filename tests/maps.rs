//! `fragwatch scan --map`: the shape of extent maps, as filefrag and xfs_io see them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use support::expect::{Report, Said, Shape, config, scan, scan_with, undisturbed, whole};
use support::guest::{self, BLOCK};
use support::{Bed, GIB, MIB, tools};

fn report(bed: &Bed) -> Report {
    whole(scan(["--json", "--map", "--min-size", "0B"]).arg(bed.path()))
}

/// The maps of the files are what filefrag lists. Returns the report, and the maps in the order of
/// the files.
fn agreeing<const N: usize>(bed: &Bed, files: [&str; N]) -> (Report, [Shape; N]) {
    let paths = files.map(|name| bed.path().join(name));
    let look = || paths.each_ref().map(|path| Shape::of(path));
    let (listed, report) = undisturbed(look, || report(bed));
    for (path, listed) in std::iter::zip(&paths, &listed) {
        let reported = Shape::reported(report.image(path));
        assert_eq!(&reported, listed, "{}", path.display());
        assert_eq!(listed.histogram.values().sum::<u64>(), listed.extents);
    }
    (report, listed)
}

/// Files that every file system can have.
fn maps_agree(bed: &Bed) {
    let at = |name: &str| bed.path().join(name);
    guest::random_direct_writes(&at("random.img"), 64 * MIB, 4096);
    guest::preallocated_then_random_writes(&at("preallocated.img"), 64 * MIB, 2048);
    guest::sequential(&at("discarded.img"), 64 * MIB);
    guest::discard_holes(&at("discarded.img"), 1500);
    File::create(at("empty.img")).unwrap();
    File::create(at("sparse.img"))
        .unwrap()
        .set_len(MIB)
        .unwrap();
    // Begins and ends with a hole, and its parts are of many lengths.
    let lengths = File::create(at("lengths.img")).unwrap();
    lengths.set_len(64 * MIB).unwrap();
    for n in 1..10 {
        let length = BLOCK << n;
        let data = vec![1; usize::try_from(length).unwrap()];
        lengths.write_all_at(&data, 3 * length).unwrap();
    }
    bed.sync();

    let files = [
        "random.img",
        "preallocated.img",
        "discarded.img",
        "empty.img",
        "sparse.img",
        "lengths.img",
    ];
    let (report, shapes) = agreeing(bed, files);
    let [random, preallocated, discarded, empty, sparse, lengths] = shapes;
    assert!(random.extents > 2900 && random.holes > 2900);
    assert_eq!(preallocated.unwritten, 64 * MIB - 2048 * BLOCK);
    assert_eq!(preallocated.holes, 0);
    assert_eq!(discarded.holes, 1500);
    assert_eq!(empty, Shape::default());
    assert_eq!((sparse.extents, sparse.holes), (0, 1));
    assert_eq!(lengths.holes, 10);
    assert!(lengths.histogram.len() >= 9, "{:?}", lengths.histogram);
    for name in ["discarded.img", "lengths.img"] {
        let listed = tools::xfs_io_fiemap_count(&at(name));
        assert_eq!(report.image(&at(name))["map"]["extents"], listed);
    }
}

#[test]
fn maps_agree_on_xfs() {
    let bed = support::require!(Bed::xfs_with(&["-m", "rmapbt=1,reflink=1"]));
    maps_agree(&bed);
    // One run on disk, however many records: what a guest does to a preallocated image.
    let path = bed.path().join("preallocated.img");
    let report = report(&bed);
    let map = &report.image(&path)["map"];
    assert!(map["extents"].as_u64() > Some(2000));
    assert_eq!(map["fragments"], tools::filefrag_count(&path));
    assert_eq!(map["extents"], tools::xfs_io_stat_nextents(&path));
}

#[test]
fn maps_agree_on_xfs_of_the_old_format() {
    support::here_or_elsewhere!(Bed::xfs_v4(), |bed| maps_agree(&bed));
}

#[test]
fn maps_agree_on_ext4() {
    maps_agree(&support::require!(Bed::ext4()));
}

#[test]
fn maps_agree_on_btrfs() {
    maps_agree(&support::require!(Bed::btrfs()));
}

fn shared_blocks_are_told(bed: &Bed) {
    let [original, copy] = ["original.img", "copy.img"].map(|name| bed.path().join(name));
    guest::sequential(&original, 16 * MIB);
    guest::reflink_copy(&original, &copy);
    let direct = guest::open_direct(&copy).unwrap();
    for n in (0..100).map(|n| 20 * n) {
        direct
            .write_all_at(&guest::Aligned::block(), n * BLOCK)
            .unwrap();
    }
    bed.sync();
    let (_, [original, copy]) = agreeing(bed, ["original.img", "copy.img"]);
    assert_eq!(copy.shared, 16 * MIB - 100 * BLOCK);
    assert!(original.shared >= copy.shared, "{original:?}");
}

#[test]
fn shared_blocks_are_told_on_xfs() {
    let bed = support::require!(Bed::xfs_with(&["-m", "reflink=1"]));
    shared_blocks_are_told(&bed);
    // FIEMAP ends an extent where sharing begins, so the map has more of them than the inode.
    let original = bed.path().join("original.img");
    let report = report(&bed);
    let image = report.image(&original);
    assert_eq!(image["extents"], tools::xfs_io_stat_nextents(&original));
    assert!(image["map"]["extents"].as_u64() > image["extents"].as_u64());
    assert_eq!(image["map"]["fragments"], 1);
}

#[test]
fn shared_blocks_are_told_on_btrfs() {
    shared_blocks_are_told(&support::require!(Bed::btrfs()));
}

#[test]
fn delayed_blocks_are_told_and_not_written_out() {
    for bed in [Bed::xfs(), Bed::ext4()] {
        let bed = support::require!(bed);
        let path = bed.path().join("vm.img");
        guest::buffered_delalloc(&path, 100);
        let (_, [shape]) = agreeing(&bed, ["vm.img"]);
        // Still in memory only, so reading the map has not written them. The first one may be on
        // disk: a look at the header by direct I/O writes it out.
        assert!(shape.delayed >= 99 * BLOCK, "{shape:?}");
        assert_eq!((shape.fragments, shape.extents), (100, 100));
        bed.sync();
        let (_, [shape]) = agreeing(&bed, ["vm.img"]);
        assert_eq!((shape.delayed, shape.extents), (0, 100));
    }
}

#[test]
fn an_extent_longer_than_a_record_can_be() {
    // XFS has 2^21 - 1 blocks in one record at most.
    let bed = support::require!(Bed::xfs_sized(40 * GIB));
    let path = bed.path().join("vm.img");
    let file = File::create(&path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 20 * GIB).unwrap();
    let (_, [shape]) = agreeing(&bed, ["vm.img"]);
    assert!(shape.extents >= 3 && shape.longest > 4 * GIB, "{shape:?}");
    assert_eq!(shape.unwritten, 20 * GIB);
}

#[test]
fn a_map_that_is_too_large_is_read_only_by_force() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("vm.img");
    guest::alternate_blocks(&path, 3000);
    let config = config(bed.path(), "[sampling]\nmap_max_extents = 2999");
    let run = |arguments: &[&str]| {
        let mut command = support::daemon::fragwatch();
        command
            .arg("--config")
            .arg(&config)
            .arg("scan")
            .args(arguments);
        Said::by(command.arg(&path))
    };

    let said = run(&["--map", "--json"]);
    assert_eq!(said.code, Some(0));
    assert!(said.json().image(&path)["map"].is_null());
    let said = run(&["--map"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let left_out = "The map was not read: 3,000 extents are more than sampling.map_max_extents \
                    (2,999); --map --force reads it.";
    assert!(said.out.contains(left_out), "{}", said.out);
    let cost = |has: &str| {
        // 200 leaves, 13 nodes above them, the root.
        format!("Reading it {has} about 53.5 KiB into kernel memory that cannot be reclaimed")
    };
    assert!(said.out.contains(&cost("loads")), "{}", said.out);

    let said = run(&["--map", "--force"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out
            .contains("3,000 extents in 3,000 fragments, 2,999 holes"),
        "{}",
        said.out
    );
    assert!(said.out.contains(&cost("has loaded")), "{}", said.out);
    assert!(
        said.out
            .contains("4.0 KiB │████████████████████████████████████████ 3,000")
    );
    let forced = run(&["--map", "--force", "--json"]).json();
    assert_eq!(Shape::reported(forced.image(&path)), Shape::of(&path));

    // At the limit itself it is read, and nothing is said of a cost.
    let config = self::config(bed.path(), "[sampling]\nmap_max_extents = 3000");
    let report = whole(scan_with(&config).arg("--map").arg(&path));
    assert_eq!(Shape::reported(report.image(&path)), Shape::of(&path));
}

#[test]
fn a_plain_scan_shows_no_map() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("vm.img");
    guest::alternate_blocks(&path, 100);
    let said = Said::by(scan([] as [&str; 0]).arg(&path));
    assert_eq!(said.code, Some(0));
    for word in ["│", "FRAGMENTS", "holes"] {
        assert!(!said.out.contains(word), "{}", said.out);
    }
}
