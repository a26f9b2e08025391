//! `fragwatch defrag` with the real xfs_fsr on real XFS.
//!
//! | file | idea |
//! |---|---|
//! | `whole`    | fragmented images become whole ones, with the same contents |
//! | `choice`   | which engine it is, and why not the other one |
//! | `guards`   | each reason to leave an image alone, brought about |
//! | `writers`  | somebody opens the image in the middle of it: no write is lost |
//! | `deaths`   | somebody is killed in the middle of it: nothing is left behind |
//! | `pressure` | others wait for the disk, or for nothing that a disk could bring |
//! | `standins` | programs that are called xfs_fsr and are not |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "images of these tests are small"
)]

#[path = "../support/mod.rs"]
mod support;

mod choice;
mod deaths;
mod guards;
mod pressure;
mod standins;
mod whole;
mod writers;

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use support::child::Child;
use support::daemon::fragwatch;
use support::skip::Here;
use support::{Bed, config, tools};

/// A file system, if xfs_fsr is there.
fn bed(mkfs: &[&str]) -> Here<Bed> {
    tools::have("xfs_fsr")?;
    Bed::xfs_with(mkfs)
}

/// `fragwatch defrag --engine xfs_fsr --json` of one image.
fn defrag(image: &Path, config: &Path) -> Command {
    let mut command = fragwatch();
    command.args(["defrag", "--engine", "xfs_fsr", "--force-window", "--json"]);
    command.arg("--config").arg(config);
    command.env("STATE_DIRECTORY", state(config));
    command.arg(image).stdout(Stdio::piped());
    command
}

/// The state directory of the commands with this configuration, beside it.
fn state(config: &Path) -> PathBuf {
    config.with_extension("state")
}

/// Has a command find this shell script in the place of xfs_fsr.
fn stand_in(bed: &Bed, command: &mut Command, script: &str) {
    let bin = bed.path().parent().unwrap().join("bin");
    fs::create_dir_all(&bin).unwrap();
    support::script::script(&bin.join("xfs_fsr"), script);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display()));
}

/// What a command says of its one image.
fn said(command: &mut Command) -> Value {
    let mut child = Child::spawn(command.stderr(Stdio::piped())).unwrap();
    finish(&mut child)
}

/// What a command that was started says of its one image.
fn finish(child: &mut Child) -> Value {
    let mut out = String::new();
    let mut stdout = child.pipes().stdout.take().unwrap();
    stdout.read_to_string(&mut out).unwrap();
    let mut err = String::new();
    if let Some(mut stderr) = child.pipes().stderr.take() {
        stderr.read_to_string(&mut err).unwrap();
    }
    let status = child.end();
    let said: Value =
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {status} {out} {err}"));
    let run = said["runs"][0].clone();
    let fine = run["outcome"] == "improved"
        || run["outcome"] == "would_run"
        || run["guard"] == "near_ideal";
    assert_eq!(status.code(), Some(i32::from(!fine)), "{run}");
    run
}

/// Processes that have `path` as an argument.
fn processes_with(path: &Path) -> Vec<(i32, String)> {
    let is_argument = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|argument| argument == path.as_os_str().as_encoded_bytes())
    };
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_argument(*pid))
        .map(|pid| (pid, name(pid).trim().to_owned()))
        .collect()
}

/// Temporary files of xfs_fsr in a directory.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let is_one = |name: &OsStr| name.as_encoded_bytes().starts_with(b".fsr");
    fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|entry| is_one(&entry.file_name()))
        .map(|entry| entry.path())
        .collect()
}
