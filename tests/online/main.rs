//! `fragwatch defrag --engine online` on real XFS.
//!
//! | file | idea |
//! |---|---|
//! | `engine`   | the program, and what it says |
//! | `whole`    | images become whole, and stay what they were |
//! | `contents` | whoever writes, however he does it: every byte is what was last written |
//! | `deaths`   | killed, out of space, without power: nothing is lost, nothing is left behind |
//! | `hints`    | the hint of an image is put back, unless somebody else has set another |
//! | `slow`     | a disk that becomes slow |
//! | `refusals` | what it must not touch, and what it cannot make better |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "images of these tests are small"
)]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod contents;
mod deaths;
mod engine;
mod hints;
mod refusals;
mod slow;
mod whole;

use std::path::Path;
use std::process::Command;

use support::skip::Here;
use support::{Bed, tools};

use engine::{command, defrag, finish, state};

support::stall_server!();

/// Kinds of file systems.
const KINDS: [&[&str]; 4] = [
    &["-m", "reflink=1,rmapbt=0"],
    &["-m", "reflink=1,rmapbt=1"],
    &["-m", "reflink=1,rmapbt=0", "-b", "size=1024"],
    &["-m", "reflink=1,rmapbt=1", "-b", "size=1024"],
];

fn free(bed: &Bed) -> u64 {
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    size.f_bavail * size.f_frsize
}

/// Bytes that belong to another file too.
fn shared(path: &Path) -> u64 {
    let extents = tools::filefrag_extents(path);
    let is_shared = |flags: &[String]| flags.iter().any(|flag| flag == "shared");
    extents
        .iter()
        .filter(|extent| is_shared(&extent.flags))
        .map(|extent| extent.length)
        .sum()
}

/// `fsxattr.cowextsize` as xfs_io says it.
fn cow_hint(path: &Path) -> u64 {
    let output = Command::new("xfs_io")
        .args(["-r", "-c", "cowextsize"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = text.trim_start_matches('[').split(']').next().unwrap();
    number.parse().unwrap()
}

fn set_cow_hint(path: &Path, bytes: u64) {
    let set = format!("cowextsize {bytes}");
    let status = Command::new("xfs_io").args(["-c", &set]).arg(path).status();
    assert!(status.unwrap().success());
}

/// Checks it unmounted, and mounts it again.
fn repair_finds_nothing(bed: &mut Bed) {
    bed.umount();
    let output = Command::new("xfs_repair")
        .arg("-n")
        .arg(bed.device())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    bed.mount();
}

fn bed(mkfs: &[&str]) -> Here<Bed> {
    tools::have("xfs_io")?;
    tools::have("xfs_repair")?;
    Bed::xfs_with(mkfs)
}
