//! `fragwatch doctor` on this host: what is brought about is found, and gone when it is gone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use support::bed::Plan;
use support::child::Child;
use support::expect::Said;
use support::{Bed, MIB, daemon, tools};

/// Until a child has done what it was started for.
const PATIENCE: Duration = Duration::from_secs(60);

fn doctor(arguments: &[&str]) -> Said {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let text = "[control]\nsocket = '/nowhere/fragwatch.sock'\n";
    config.write_all(text.as_bytes()).unwrap();
    let mut command = daemon::fragwatch();
    command.arg("--config").arg(config.path()).arg("doctor");
    Said::by(command.args(arguments))
}

/// The findings of a check.
fn found(id: &str) -> Vec<Value> {
    let said = doctor(&["--json"]);
    let document: Value = serde_json::from_str(&said.out).expect(&said.err);
    assert_eq!(document["schema"], 1);
    let findings = document["findings"].as_array().unwrap().iter();
    findings.filter(|it| it["id"] == id).cloned().collect()
}

/// Whether a finding of a check has this in its sentence.
fn is_found(id: &str, part: &str) -> bool {
    let sentences = found(id).into_iter();
    let mut sentences = sentences.map(|it| it["what"].as_str().unwrap().to_owned());
    sentences.any(|sentence| sentence.contains(part))
}

/// Waits for it.
fn eventually(id: &str, part: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !is_found(id, part) {
        assert!(Instant::now() < deadline, "{id}: {part}: {:?}", found(id));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn ext4_with_data_writeback_by_option_and_by_superblock() {
    let tune2fs = support::require!(tools::have("tune2fs"));
    let plan = Plan::of("ext4").size(64 * MIB);
    let by_option = support::require!(plan.clone().options("data=writeback").make());
    let mut by_default = support::require!(plan.make());
    let place = |bed: &Bed| format!("({}) has data=writeback.", bed.path().display());
    eventually("FW201", &place(&by_option));
    assert!(!is_found("FW201", &place(&by_default)));
    by_default.umount();
    let mut command = Command::new(tune2fs);
    let command = command.args(["-o", "journal_data_writeback"]);
    // Not its image: the device has the superblock in its cache.
    support::require!(tools::run(command.arg(by_default.device())));
    by_default.mount();
    eventually("FW201", &place(&by_default));
}

#[test]
fn ext4_without_a_journal() {
    let plan = Plan::of("ext4").size(64 * MIB);
    let without = support::require!(plan.clone().mkfs(&["-O", "^has_journal"]).make());
    let with = support::require!(plan.make());
    let place = |bed: &Bed| format!("({}) has no journal.", bed.path().display());
    eventually("FW202", &place(&without));
    assert!(!is_found("FW202", &place(&with)));
}

#[test]
fn a_reader_through_the_cache_of_an_image_that_is_open_with_o_direct() {
    let qemu_io = support::require!(tools::have("qemu-io"));
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("db-1.raw");
    File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let mut command = Command::new(qemu_io);
    command.args(["-f", "raw", "-t", "none"]).arg(&image);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let _writer = Child::spawn(&mut command).unwrap();
    let reader = File::open(&image).unwrap();
    let who = format!("{} is open with O_DIRECT by qemu-io", image.display());
    eventually("FW301", &who);
    drop(reader);
    assert!(!is_found("FW301", &who));
}

#[test]
fn a_program_that_alone_could_read_what_it_writes() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new("cat");
    command.arg("/dev/zero").stdin(reader).stdout(writer);
    let child = Child::spawn(command.stderr(Stdio::null())).unwrap();
    // The command still has the ends that it gave away.
    drop(command);
    let pid = child.id();
    eventually("FW018", &format!("cat (PID {pid}) for PID {pid}"));
    drop(child);
    assert!(!is_found("FW018", &format!("cat (PID {pid})")));
}

#[test]
fn the_exit_status_is_that_of_the_worst_finding() {
    let said = doctor(&["--json"]);
    let document: Value = serde_json::from_str(&said.out).unwrap();
    // No daemon answers.
    assert!(is_found(
        "FW402",
        "No daemon answers at /nowhere/fragwatch.sock."
    ));
    let expected = match document["severity"].as_str() {
        Some("critical") => 2,
        _ => 1,
    };
    assert_eq!(said.code, Some(expected), "{said:?}");
    let text = doctor(&[]);
    assert_eq!(text.code, Some(expected), "{text:?}");
    let line =
        "WARNING FW402: The daemon does not run\n    No daemon answers at /nowhere/fragwatch.sock.";
    assert!(text.out.contains(line), "{}", text.out);
}

#[test]
fn checks_are_explained_and_listed_in_the_manual() {
    let said = doctor(&["--explain", "fw202"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out
            .starts_with("FW202: ext4 without a journal (warning)\n"),
        "{}",
        said.out
    );
    let said = doctor(&["--explain", "FW999"]);
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    let all = said
        .err
        .split_once("there are ")
        .expect(&said.err)
        .1
        .trim()
        .to_owned();
    let dir = tempfile::tempdir().unwrap();
    let done = daemon::fragwatch()
        .arg("man")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let page = fs::read_to_string(dir.path().join("fragwatch-doctor.1")).unwrap();
    let ids: Vec<_> = all.split(", ").collect();
    assert!(ids.len() > 30, "{all}");
    for id in ids {
        assert!(page.contains(&format!(".SS {id} ")), "{id}");
        assert_eq!(doctor(&["--explain", id]).code, Some(0), "{id}");
    }
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn a_silenced_check_of_the_configuration() {
    let run = |silence: &str| {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        config.write_all(silence.as_bytes()).unwrap();
        let mut command = daemon::fragwatch();
        Said::by(command.arg("check-config").arg(config.path()))
    };
    let inline = "[doctor]\nsilence = [{ id = 'FW202', reason = 'scratch' }]\n";
    let sections = "[[doctor.silence]]\nid = 'FW202'\nreason = 'scratch'\n";
    for right in [inline, sections] {
        assert_eq!(run(right).code, Some(0), "{:?}", run(right));
    }
    let said = run("[[doctor.silence]]\nid = 'FW999'\nreason = ' '\n");
    assert_eq!(said.code, Some(2), "{said:?}");
    for wrong in [
        ":2:6: doctor.silence.id: there is no check FW999",
        ":3:10: doctor.silence.reason: is empty",
    ] {
        assert!(
            format!("{}{}", said.out, said.err).contains(wrong),
            "{said:?}"
        );
    }
}
