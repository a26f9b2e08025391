//! The engine `blockcopy`, with a real libvirtd and a real QEMU.
//!
//! | file | idea |
//! |---|---|
//! | `libvirt` | a libvirtd of its own |
//! | `written` | a guest writes and verifies all the time, and finds all of it after a reboot and after a start |
//! | `qcow2`   | images of this format, of all properties, and what of them is refused |
//! | `deaths`  | fragwatch, libvirtd or QEMU killed at any moment: the VM starts from the complete image |
//! | `power`   | the power, or QEMU under load, fails at any moment: what is on the disks recovers, with all that was flushed |
//! | `ends`    | what ends a copy early: no space, an order, libvirtd restarted, the disk detached |
//! | `service` | the daemon copies in its windows, and stops when it is to |
//! | `second`  | further copies under a VM that is never shut down |
//! | `stop`    | the daemon stopped meanwhile, and when it releases the lock of a fleet |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers of these tests are small"
)]
#![allow(clippy::print_stdout, reason = "it is the guest's serial line")]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod deaths;
mod ends;
mod libvirt;
mod newer;
mod power;
mod qcow2;
mod raw;
mod second;
mod service;
mod stop;
mod written;

support::stall_server!();

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use libvirt::Libvirt;
use support::Bed;

/// A configuration with this in its section `[defrag]`, in a directory of the test.
fn config(bed: &Bed, keys: &str) -> PathBuf {
    let beside = bed.path().parent().unwrap();
    let mut text = String::from("[defrag]\nkeep_free = \"1%\"\nengines = [\"blockcopy\"]\n");
    for (key, value) in [("bandwidth", "\"64GiB/s\""), ("max_io_pressure", "100")] {
        if !keys.contains(key) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text.push_str(&format!("{keys}\n[defrag.blockcopy]\nenabled = true\n"));
    let path = beside.join(format!("fragwatch-{}.toml", keys.len()));
    fs::write(&path, text).unwrap();
    path
}

fn state(bed: &Bed) -> PathBuf {
    bed.path().parent().unwrap().join("state")
}

/// `fragwatch defrag` of an image, to be started in the namespace of libvirtd.
fn defrag(libvirt: &Libvirt, bed: &Bed, image: &Path, keys: &str) -> Command {
    let mut command = libvirt.command(env!("CARGO_BIN_EXE_fragwatch"));
    command.args([
        "defrag",
        "--force-window",
        "--engine",
        "blockcopy",
        "--json",
        "--config",
    ]);
    command.arg(config(bed, keys)).arg(image);
    command.env("STATE_DIRECTORY", state(bed));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a run reports.
fn report(output: &Output) -> Value {
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    all["runs"][0].clone()
}

/// What the daemon does with notes when it starts.
fn recover(libvirt: &Libvirt, bed: &Bed) -> String {
    restore_hints(libvirt, &state(bed), &[])
}

/// What the service does with notes when it has ended: without the watchdog, its guest may stand still.
fn resume(libvirt: &Libvirt, bed: &Bed) -> String {
    restore_hints(libvirt, &state(bed), &["--suspended"])
}

fn restore_hints(libvirt: &Libvirt, state: &Path, options: &[&str]) -> String {
    let mut command = libvirt.command(env!("CARGO_BIN_EXE_fragwatch"));
    command.arg("restore-hints").args(options);
    let output = command.arg(state.join("defrag")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// How many copies are noted.
fn noted(bed: &Bed) -> usize {
    noted_in(&state(bed))
}

fn noted_in(state: &Path) -> usize {
    let notes = fs::read_dir(state.join("defrag")).into_iter().flatten();
    let is_whole = |path: PathBuf| path.extension().is_some_and(|its| its != "tmp");
    notes
        .filter(|it| is_whole(it.as_ref().unwrap().path()))
        .count()
}

/// Whether a run has noted that it lets the guest stand still.
fn is_switching(state: &Path) -> bool {
    let notes = fs::read_dir(state.join("defrag"));
    let texts = notes
        .into_iter()
        .flatten()
        .flatten()
        .map(|note| fs::read_to_string(note.path()));
    texts.flatten().any(|text| text.contains("switching"))
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// The names in the directory of an image.
fn names(image: &Path) -> Vec<String> {
    let entries = fs::read_dir(image.parent().unwrap()).unwrap();
    let mut names: Vec<_> = entries
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name != "lost+found");
    names.sort();
    names
}
