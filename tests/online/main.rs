//! `fragwatch defrag --engine online` on real XFS.
//!
//! | file | idea |
//! |---|---|
//! | `engine`   | the program, and what is to be seen of its work |
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

use support::skip::Here;
use support::{Bed, tools};

use engine::{
    command, cow_hint, defrag, finish, free, repair_finds_nothing, set_cow_hint, shared, state,
};

support::stall_server!();

/// Kinds of file systems.
const KINDS: [&[&str]; 4] = [
    &["-m", "reflink=1,rmapbt=0"],
    &["-m", "reflink=1,rmapbt=1"],
    &["-m", "reflink=1,rmapbt=0", "-b", "size=1024"],
    &["-m", "reflink=1,rmapbt=1", "-b", "size=1024"],
];

/// A file system on which it can be tried.
fn bed(mkfs: &[&str]) -> Here<Bed> {
    tools::have("xfs_io")?;
    tools::have("xfs_repair")?;
    Bed::xfs_with(mkfs)
}
