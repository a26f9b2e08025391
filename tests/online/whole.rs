//! Images become whole, and stay what they were.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::hints::wait_until;
use super::support::child::Child;
use super::support::guest::{Aligned, BLOCK};
use super::support::random::Random;
use super::support::{self, MIB, Writer, guest, tools};
use super::{KINDS, bed, command, cow_hint, defrag, finish, free, repair_finds_nothing, shared};

#[test]
fn an_image_in_use_becomes_whole() {
    for mkfs in &KINDS[..2] {
        let mut bed = support::require!(bed(mkfs));
        let path = bed.path().join("vm.img");
        guest::random_direct_writes(&path, 256 * MIB, 65_536);
        let from = tools::xfs_io_stat_nextents(&path);
        assert!(from > 60_000);
        let writer = Writer::start(&path, Some(500));
        let said = defrag(&bed, &path);
        let written = writer.stop();
        assert_eq!(said["outcome"], "improved", "{said}");
        assert_eq!(said["from"], from);
        let to = tools::xfs_io_stat_nextents(&path);
        let (most, worst) = (
            written.latencies.percentile(99.9),
            written.latencies.worst(),
        );
        eprintln!("{said}\nthe writer: p99.9 {most:?}, worst {worst:?}");
        assert!(to * 200 < from, "{mkfs:?}: {from} to {to}");
        written.verify();
        assert_eq!(cow_hint(&path), 0);
        assert_eq!(shared(&path), 0);
        // Nobody makes new ones now.
        let again = defrag(&bed, &path);
        assert!(
            again["guard"] == "near_ideal" || again["outcome"] == "improved",
            "{again}"
        );
        repair_finds_nothing(&mut bed);
    }
}

#[test]
fn a_snapshot_stays_shared() {
    let mut bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    let copy = bed.path().join("snapshot.img");
    guest::random_direct_writes(&path, 32 * MIB, 8192);
    guest::reflink_copy(&path, &copy);
    // A part of it was written again since.
    let direct = guest::open_direct(&path).unwrap();
    let mut block = Aligned::block();
    let mut random = Random::new(7);
    for n in random.distinct(2048, 1500) {
        guest::stamp(&mut block, 4096 + n, 1);
        direct.write_all_at(&block, (4096 + n) * BLOCK).unwrap();
    }
    direct.sync_all().unwrap();
    drop(direct);
    bed.sync();
    let sums = [tools::checksum(&path), tools::checksum(&copy)];
    let (before, free_before) = (shared(&path), free(&bed));
    let from = tools::xfs_io_stat_nextents(&path);
    assert!(before > 20 * MIB);

    let said = defrag(&bed, &path);
    // All of it may be one extent of what copy on write had set aside; then there is nothing to do.
    assert!(
        said["outcome"] == "improved" || said["guard"] == "shares_blocks",
        "{said}"
    );
    assert_eq!(shared(&path), before, "{said}");
    assert_eq!([tools::checksum(&path), tools::checksum(&copy)], sums);
    assert!(tools::xfs_io_stat_nextents(&path) <= from);
    bed.cold();
    assert!(
        free(&bed) + 2 * MIB >= free_before,
        "{} {free_before}",
        free(&bed)
    );
    // All that is left is shared.
    let whole = bed.path().join("other.img");
    guest::random_direct_writes(&whole, 4 * MIB, 1024);
    guest::reflink_copy(&whole, &bed.path().join("its.img"));
    assert_eq!(defrag(&bed, &whole)["guard"], "shares_blocks");
    repair_finds_nothing(&mut bed);
}

/// What is left is accounted for, whatever keeps it.
#[test]
fn a_report_accounts_for_each_extent() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    let mut random = Random::new(11);
    // 4 MiB that a copy has too, in pieces.
    guest::random_direct_writes(&path, 4 * MIB, 1024);
    guest::reflink_copy(&path, &bed.path().join("copy.img"));
    let direct = guest::open_direct(&path).unwrap();
    let mut block = Aligned::block();
    let mut write = |n: u64| {
        guest::stamp(&mut block, n, 1);
        direct.write_all_at(&block, n * BLOCK).unwrap();
    };
    // Pieces that touch, pieces between holes, and every second block of what was allocated.
    random
        .distinct(2048, 2048)
        .into_iter()
        .for_each(|n| write(1024 + n));
    (0..500).for_each(|n| write(4096 + 2 * n));
    let none = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&direct, none, 8192 * BLOCK, 800 * BLOCK).unwrap();
    (0..400).for_each(|n| write(8192 + 2 * n));
    direct.sync_all().unwrap();
    drop(direct);
    let said = defrag(&bed, &path);
    assert_eq!(said["outcome"], "improved", "{said}");
    let of = |key: &str| said["account"][key].as_u64().unwrap();
    let (from, to) = (said["from"].as_u64().unwrap(), said["to"].as_u64().unwrap());
    assert_eq!(of("joined"), from - to, "{said}");
    assert!(of("joined") > 1500, "{said}");
    assert!((499..=502).contains(&of("holes")), "{said}");
    assert!(of("shared") > 700, "{said}");
    assert!((790..=802).contains(&of("unwritten")), "{said}");
    assert_eq!(of("torn"), 0, "nobody writes: {said}");
    let left = ["holes", "shared", "unwritten", "long", "not_reached"].map(of);
    assert_eq!(left.iter().sum::<u64>(), to, "{said}");
}

#[test]
fn what_a_guest_tears_anew_is_accounted_for() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 64 * MIB, 16_384);
    // What the guest discards leaves holes, also in what was joined a moment ago.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let extents = tools::xfs_io_stat_nextents(&path);
    let child = Child::spawn(&mut command(&bed, &path, "stall_target = \"2ms\"\n")).unwrap();
    wait_until(|| tools::xfs_io_stat_nextents(&path) < extents);
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let (run, ended) = mpsc::channel::<()>();
    let tear = thread::spawn(move || {
        let mut blocks = (0..1024).cycle();
        while ended.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
            let n = blocks.next().unwrap() * 16;
            rustix::fs::fallocate(&file, punch, n * BLOCK, BLOCK).unwrap();
        }
        file
    });
    let said = finish(child);
    drop(run);
    drop(tear.join().unwrap());
    assert_eq!(said["outcome"], "improved", "{said}");
    let of = |key: &str| said["account"][key].as_u64().unwrap();
    let to = said["to"].as_u64().unwrap();
    let keys = [
        "holes",
        "shared",
        "unwritten",
        "long",
        "not_reached",
        "torn",
    ];
    assert!(of("torn") > 0, "{said}");
    assert_eq!(keys.map(of).iter().sum::<u64>(), to, "{said}");
}

#[test]
fn a_signal_stops_it_and_the_next_run_goes_on() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 128 * MIB, 32_768);
    let extents = tools::xfs_io_stat_nextents(&path);
    let sum = tools::checksum(&path);
    let _held = File::open(&path).unwrap();
    let child = Child::spawn(&mut command(&bed, &path, "stall_target = \"1ms\"\n")).unwrap();
    wait_until(|| tools::xfs_io_stat_nextents(&path) < extents);
    child.signal(rustix::process::Signal::TERM);
    let said = finish(child);
    assert_eq!(said["outcome"], "stopped", "{said}");
    let (from, to) = (said["from"].as_u64().unwrap(), said["to"].as_u64().unwrap());
    assert!(to < from, "{said}");
    assert_eq!(cow_hint(&path), 0);
    let next = defrag(&bed, &path);
    assert_eq!(next["outcome"], "improved", "{next}");
    assert_eq!(next["from"], to);
    assert_eq!(tools::checksum(&path), sum);
}
