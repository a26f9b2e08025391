//! Fragmented images become whole ones, with the same contents.

use std::fs;

use super::support::{self, MIB, guest, tools};
use super::{bed, config, defrag, leftovers, said, state};

/// A fragmented image becomes a whole one.
fn becomes_whole(mkfs: &[&str], size: u64, writes: u64, at_least: u64) {
    let bed = support::require!(bed(mkfs));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, size, writes);
    let before = tools::checksum(&path);
    let from = tools::xfs_io_stat_nextents(&path);
    assert!(from >= at_least, "{from}");
    let times = fs::metadata(&path).unwrap();

    let config = config(&bed, "");
    let would = said(defrag(&path, &config).arg("--dry-run"));
    assert_eq!(would["outcome"], "would_run");
    assert_eq!(would["from"], from);
    assert_eq!(tools::xfs_io_stat_nextents(&path), from);

    let run = said(&mut defrag(&path, &config));
    assert_eq!(run["outcome"], "improved", "{run}");
    assert_eq!(run["from"], from);
    let to = tools::xfs_io_stat_nextents(&path);
    assert_eq!(run["to"], to);
    assert_eq!(run["account"]["joined"], from - to, "{run}");
    // Nothing can make one of two pieces with a hole in between.
    let holes = size / guest::BLOCK - writes;
    assert!(to <= holes + 8, "{to}");
    assert!(run["written_bytes"].as_u64().unwrap() >= writes * guest::BLOCK);
    assert_eq!(tools::checksum(&path), before);
    assert_eq!(
        fs::metadata(&path).unwrap().modified().unwrap(),
        times.modified().unwrap()
    );
    assert!(leftovers(bed.path()).is_empty());

    let again = said(&mut defrag(&path, &config));
    assert_eq!(again["guard"], "near_ideal", "{again}");
}

#[test]
fn without_and_with_reverse_mapping() {
    becomes_whole(&["-m", "rmapbt=0,reflink=1"], 100 * MIB, 25_600, 20_000);
    becomes_whole(&["-m", "rmapbt=1,reflink=1"], 100 * MIB, 25_600, 20_000);
}

#[test]
fn without_reflinks() {
    becomes_whole(&["-m", "rmapbt=0,reflink=0"], 100 * MIB, 25_600, 20_000);
    becomes_whole(&["-m", "rmapbt=1,reflink=0"], 100 * MIB, 25_600, 20_000);
}

#[test]
fn with_holes() {
    becomes_whole(&[], 100 * MIB, 25_500, 20_000);
}

#[test]
fn as_a_guest_leaves_half_a_gigabyte() {
    becomes_whole(&[], 512 * MIB, 131_072, 130_000);
}

#[test]
fn the_bandwidth_is_kept() {
    let bed = support::require!(bed(&[]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 64 * MIB, 16_384);
    let config = config(&bed, "bandwidth = \"100MiB/s\"");
    let run = said(&mut defrag(&path, &config));
    assert_eq!(run["outcome"], "improved", "{run}");
    // 128 MiB are moved, 32 of them at once; and not a second of that is made up.
    let held = run["held_seconds"].as_f64().unwrap();
    assert!(held > 0.0 && held < run["seconds"].as_f64().unwrap());
    let moved = run["read_bytes"].as_f64().unwrap() + run["written_bytes"].as_f64().unwrap();
    let allowed = 32e6 * 1.05 + 100.0 * 1.05e6 * run["seconds"].as_f64().unwrap();
    assert!(moved <= allowed + 33e6, "{run}");
}

#[test]
fn several_images_and_words_for_each() {
    let bed = support::require!(bed(&[]));
    let [one, two] = ["one.img", "two\n.img"].map(|name| bed.path().join(name));
    guest::random_direct_writes(&one, 4 * MIB, 1024);
    guest::sequential(&two, 4 * MIB);
    let mut command = support::fragwatch();
    let config = config(&bed, "");
    command.env("STATE_DIRECTORY", state(&config));
    command
        .args(["defrag", "--force-window", "--config"])
        .arg(config);
    let output = command.arg(&one).arg(&two).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stderr, b"");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("one.img: "), "{text}");
    let whole = " → 1 extents by xfs_fsr, ";
    assert!(lines[0].contains(whole), "{text}");
    assert!(lines[1].ends_with("two\\x0a.img: left alone: already near its ideal: 1 extent"));
}
