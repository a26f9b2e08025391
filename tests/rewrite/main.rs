//! `fragwatch protect --rewrite` on real XFS.
//!
//! | file | idea |
//! |---|---|
//! | `picture`  | all that is to be seen of a file but its extents |
//! | `whole`    | an image becomes whole, cannot fragment again, and is the same to everybody |
//! | `refusals` | what is left alone, and what names can do |
//! | `writers`  | somebody writes to the image in the middle of it: no write is lost |
//! | `deaths`   | killed, or without power: one whole image under its name, and nothing left behind |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_precision_loss,
    reason = "numbers of these tests are small"
)]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod deaths;
mod picture;
mod refusals;
mod whole;
mod writers;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::daemon::fragwatch;
use support::skip::Here;
use support::{Bed, config, tools};

support::stall_server!();

/// A file system on which it can be tried.
fn bed(mkfs: &[&str]) -> Here<Bed> {
    tools::have("xfs_io")?;
    tools::have("xfs_repair")?;
    Bed::xfs_with(mkfs)
}

/// The state directory of all commands.
fn state(bed: &Bed) -> PathBuf {
    bed.path().parent().unwrap().join("state")
}

/// `fragwatch protect` of an image, to be started.
fn protect(bed: &Bed, what: &str, image: &Path, keys: &str) -> Command {
    let mut command = fragwatch();
    command.arg("protect").arg("--config");
    command.arg(config(bed, keys)).arg(what).arg(image);
    command.env("STATE_DIRECTORY", state(bed));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a command says; fails unless it succeeds or not, as expected.
fn said(command: &mut Command, succeeds: bool) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(i32::from(!succeeds)), "{text}");
    text.into_owned()
}

fn rewrite(bed: &Bed, image: &Path) -> String {
    said(&mut protect(bed, "--rewrite", image, ""), true)
}

/// How long a rewrite takes on this machine, now: of an image like that, which then is as it was.
fn duration(bed: &Bed, directory: &Path, make: impl Fn(&Path)) -> Duration {
    let image = directory.join("like it");
    make(&image);
    // Else it first waits for it to be old enough.
    thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    rewrite(bed, &image);
    let took = began.elapsed();
    finish(bed, &image);
    fs::remove_file(image).unwrap();
    took
}

fn finish(bed: &Bed, image: &Path) -> String {
    said(&mut protect(bed, "--rewrite-finish", image, ""), true)
}

fn kept(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".before-rewrite");
    name.into()
}

/// How many notes there are.
fn noted(bed: &Bed) -> usize {
    fs::read_dir(state(bed).join("defrag")).map_or(0, Iterator::count)
}

/// What the daemon does with notes when it starts.
fn recover(bed: &Bed) -> String {
    let mut command = fragwatch();
    said(
        command.arg("restore-hints").arg(state(bed).join("defrag")),
        true,
    )
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

fn names(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn is_immutable(path: &Path) -> bool {
    let open = fs::OpenOptions::new().write(true).open(path);
    open.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// xfs_io does this to a file.
fn xfs_io(command: &str, path: &Path) -> String {
    let output = Command::new("xfs_io")
        .args(["-c", command])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a file mutable.
fn thaw(path: &Path) {
    let mut command = Command::new("xfs_io");
    command.args(["-r", "-c", "chattr -ia"]).arg(path);
    assert!(command.status().unwrap().success());
}

/// Removes a file, also an immutable one.
fn remove(path: &Path) {
    if path.exists() {
        thaw(path);
        fs::remove_file(path).unwrap();
    }
}

/// Checks it unmounted, and mounts it again.
fn repair_finds_nothing(bed: &mut Bed) {
    bed.umount_everywhere();
    let output = Command::new("xfs_repair")
        .arg("-n")
        .arg(bed.device())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    bed.mount();
}
