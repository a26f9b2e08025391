//! The program under test, what it says, and what is to be seen of its work.
#![allow(dead_code, reason = "not every test crate uses all of it")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::support::child::Child;
use super::support::daemon::fragwatch;
use super::support::{Bed, config, tools};

/// Where its hints are written down.
pub fn state(bed: &Bed) -> PathBuf {
    bed.path().parent().unwrap().join("state")
}

/// How many hints are noted: of runs at work, and of those that were killed.
pub fn noted(bed: &Bed) -> usize {
    fs::read_dir(state(bed).join("defrag")).map_or(0, Iterator::count)
}

pub fn command(bed: &Bed, image: &Path, keys: &str) -> Command {
    let mut command = fragwatch();
    command.args([
        "defrag",
        "--force-window",
        "--engine",
        "online",
        "--json",
        "--config",
    ]);
    command.arg(config(bed, keys)).arg(image);
    command.env("STATE_DIRECTORY", state(bed));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn finish(mut child: Child) -> Value {
    let (mut out, mut err) = (String::new(), String::new());
    let pipes = child.pipes();
    let mut stdout = pipes.stdout.take().unwrap();
    let mut stderr = pipes.stderr.take().unwrap();
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    child.end();
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
    said["runs"][0].clone()
}

pub fn defrag(bed: &Bed, image: &Path) -> Value {
    finish(Child::spawn(&mut command(bed, image, "")).unwrap())
}

pub fn free(bed: &Bed) -> u64 {
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    size.f_bavail * size.f_frsize
}

/// Bytes that belong to another file too.
pub fn shared(path: &Path) -> u64 {
    let extents = tools::filefrag_extents(path);
    let is_shared = |flags: &[String]| flags.iter().any(|flag| flag == "shared");
    extents
        .iter()
        .filter(|extent| is_shared(&extent.flags))
        .map(|extent| extent.length)
        .sum()
}

/// `fsxattr.cowextsize` as xfs_io says it.
pub fn cow_hint(path: &Path) -> u64 {
    let output = Command::new("xfs_io")
        .args(["-r", "-c", "cowextsize"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = text.trim_start_matches('[').split(']').next().unwrap();
    number.parse().unwrap()
}

pub fn set_cow_hint(path: &Path, bytes: u64) {
    let set = format!("cowextsize {bytes}");
    let status = Command::new("xfs_io").args(["-c", &set]).arg(path).status();
    assert!(status.unwrap().success());
}

/// Checks it unmounted, and mounts it again.
pub fn repair_finds_nothing(bed: &mut Bed) {
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
