//! `fragwatch space`: the free extents as the kernel has them, and what an image would get.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use support::expect::Said;
use support::{Bed, daemon, guest};

/// `fragwatch space` with images of any size.
fn run(path: &Path, arguments: &[&str]) -> Said {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(b"[images]\nmin_size = \"0B\"\n").unwrap();
    let mut command = daemon::fragwatch();
    command.arg("--config").arg(config.path()).arg("space");
    Said::by(command.args(arguments).arg(path))
}

fn space(path: &Path) -> Value {
    let said = run(path, &["--json"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let mut document: Value = serde_json::from_str(&said.out).unwrap();
    document["filesystems"][0].take()
}

/// Free extents and blocks by the program of xfsprogs, from the most blocks on down.
fn by_spaceman(bed: &Bed) -> (u64, u64) {
    let mut command = Command::new("xfs_spaceman");
    let said = Said::by(command.args(["-c", "freesp -s"]).arg(bed.path())).out;
    let number = |what: &str| {
        let line = said.lines().find(|line| line.starts_with(what));
        let number = line.and_then(|line| line.rsplit(' ').next()).unwrap();
        number.parse().unwrap()
    };
    (number("total free extents"), number("total free blocks"))
}

/// Gives back so many blocks of a file, no two of them side by side.
fn fragment_free_space(bed: &Bed, extents: u64) {
    let file = bed.path().join("comb");
    guest::sequential(&file, 4 * extents * guest::BLOCK);
    guest::discard_holes(&file, extents);
    bed.sync();
}

fn agrees_with_spaceman(mkfs: &[&str]) {
    let bed = support::require!(Bed::xfs_with(mkfs));
    for extents in [0, 3000] {
        if extents > 0 {
            fragment_free_space(&bed, extents);
        }
        let found = space(bed.path());
        let block = found["block_size_bytes"].as_u64().unwrap();
        let blocks = found["free_bytes"].as_u64().unwrap() / block;
        let count = found["free_extents"].as_u64().unwrap();
        assert_eq!((count, blocks), by_spaceman(&bed), "{mkfs:?}");
        assert!(count >= extents, "{count}");
        for part in ["groups", "histogram"] {
            let key = if part == "groups" {
                "free_bytes"
            } else {
                "bytes"
            };
            let parts = found[part].as_array().unwrap();
            let sum: u64 = parts.iter().map(|it| it[key].as_u64().unwrap()).sum();
            assert_eq!(sum, blocks * block, "{part}");
        }
        assert_eq!(found["groups"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn agrees_with_spaceman_without_reverse_mapping() {
    agrees_with_spaceman(&["-m", "rmapbt=0", "-d", "agcount=4"]);
}

/// Although the kernel would read another tree for root.
#[test]
fn agrees_with_spaceman_with_reverse_mapping() {
    agrees_with_spaceman(&["-m", "rmapbt=1", "-d", "agcount=4"]);
}

#[test]
fn agrees_with_spaceman_with_small_blocks() {
    agrees_with_spaceman(&["-b", "size=1024", "-d", "agcount=4"]);
}

#[test]
fn an_image_has_a_lower_limit_of_extents() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.img");
    guest::alternate_blocks(&image, 500);
    bed.sync();
    let found = space(bed.path());
    let image = &found["images"][0];
    assert_eq!(image["extents"], 500);
    // The free space is whole.
    assert_eq!(image["at_least_extents"], 1);
    assert_eq!(image["missing_bytes"], Value::Null);
    let said = run(bed.path(), &[]);
    assert_eq!(said.code, Some(0));
    for part in ["a.img", "at least 1", "Worst: group ", "defrag.keep_free"] {
        assert!(said.out.contains(part), "{}", said.out);
    }
}

#[test]
fn ext4_reports_its_free_space_too() {
    let bed = support::require!(Bed::ext4());
    guest::sequential(&bed.path().join("a.img"), 1 << 20);
    bed.sync();
    let found = space(bed.path());
    let free = rustix::fs::statvfs(bed.path()).unwrap();
    let free = free.f_bfree * free.f_frsize;
    // Blocks that are reserved for groups of inodes not yet in use are no free extents.
    let reported = found["free_bytes"].as_u64().unwrap();
    assert!(reported.abs_diff(free) < free / 50, "{reported} of {free}");
}

#[test]
fn btrfs_is_refused_in_words() {
    let bed = support::require!(Bed::btrfs());
    guest::sequential(&bed.path().join("a.img"), 1 << 20);
    bed.sync();
    let said = run(bed.path(), &[]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("does not report its free extents"),
        "{said:?}"
    );
}
