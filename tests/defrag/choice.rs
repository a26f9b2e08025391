//! Which engine it is where none is named, and why not the other one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::support::daemon::fragwatch;
use super::support::qemu::Vm;
use super::support::{self, Bed, MIB, Writer, guest, tools};
use super::{bed, config, said};

/// A bed with a fragmented image.
fn fragmented(mkfs: &[&str]) -> support::Here<(Bed, PathBuf)> {
    let bed = bed(mkfs)?;
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 8 * MIB, 2048);
    bed.sync();
    Ok((bed, path))
}

/// `fragwatch defrag` of one image, without an engine.
fn choose(bed: &Bed, config: &Path, image: &Path) -> Command {
    let mut command = fragwatch();
    command.arg("defrag").arg("--config").arg(config).arg(image);
    command.env("STATE_DIRECTORY", beside(bed, "state"));
    command.stdout(Stdio::piped());
    command
}

fn beside(bed: &Bed, name: &str) -> PathBuf {
    bed.path().parent().unwrap().join(name)
}

fn json(bed: &Bed, config: &Path, image: &Path) -> Value {
    said(choose(bed, config, image).args(["--json", "--force-window"]))
}

/// It becomes whole by online, and this is why not by xfs_fsr; a dry run reports it too.
fn goes_online(bed: &Bed, config: &Path, image: &Path, why: &str) {
    let would = said(choose(bed, config, image).args(["--json", "--dry-run"]));
    let run = json(bed, config, image);
    for (said, outcome) in [(would, "would_run"), (run, "improved")] {
        assert_eq!(said["outcome"], outcome, "{said}");
        assert_eq!(said["engine"], "online", "{said}");
        let passed = &said["passed_over"];
        assert_eq!(passed.as_array().unwrap().len(), 1, "{said}");
        assert_eq!(passed[0]["engine"], "xfs_fsr");
        let reason = passed[0]["reason"].as_str().unwrap();
        assert!(reason.contains(why), "{reason}");
    }
}

#[test]
fn an_idle_image_is_for_xfs_fsr() {
    let (bed, path) = support::require!(fragmented(&[]));
    let run = json(&bed, &config(&bed, ""), &path);
    assert_eq!(run["outcome"], "improved", "{run}");
    assert_eq!(run["engine"], "xfs_fsr");
    assert_eq!(run["passed_over"], Value::Array(Vec::new()));
}

#[test]
fn an_image_that_is_written_to_is_for_online() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let writer = Writer::start(&path, Some(200));
    let us = format!("(pid {})", std::process::id());
    goes_online(&bed, &config, &path, &us);
    writer.stop().verify();
}

#[test]
fn a_vm_is_named_and_the_choice_is_told() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let vm = support::require!(Vm::named("db-1").start(&path));
    let why = format!("in use by VM db-1 (pid {})", vm.id());
    let output = choose(&bed, &config, &path).arg("--force-window").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (out, err) = (&output.stdout, &output.stderr);
    let told = format!("{}: online, not xfs_fsr: {why}\n", path.display());
    assert!(String::from_utf8_lossy(err).ends_with(&told), "{output:?}");
    let out = String::from_utf8_lossy(out);
    assert!(out.contains(" extents by online, "), "{out}");
}

#[test]
fn what_only_the_guards_see() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let losetup = || Command::new("losetup");
    let output = losetup().args(["--find", "--show"]).arg(&path).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let device = String::from_utf8(output.stdout).unwrap();
    // From here on it goes with its last user, should this test be killed.
    let held = File::open(device.trim());
    let detached = losetup().args(["--detach", device.trim()]).status();
    assert!(detached.unwrap().success());
    goes_online(&bed, &config, &path, "somebody that /proc does not show");
    drop(held.unwrap());
}

#[test]
fn a_swap_that_would_stall_readers() {
    let (bed, path) = support::require!(fragmented(&["-m", "rmapbt=1"]));
    let strict = config(&bed, "max_swap_stall = \"1ms\"");
    goes_online(&bed, &strict, &path, "would stall readers");
}

#[test]
fn too_little_space_for_a_whole_copy() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "keep_free = \"20%\"");
    let large = bed.path().join("large.img");
    // Half of all, in few extents, and one part of it in many.
    guest::sequential(&large, 8 * MIB);
    let file = File::options().write(true).open(&large).unwrap();
    let half = rustix::fs::statvfs(bed.path()).unwrap();
    let half = half.f_blocks * half.f_frsize / 2;
    let none = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, none, 8 * MIB, half).unwrap();
    drop(file);
    let run = json(&bed, &config, &large);
    assert_eq!(run["engine"], "online", "{run}");
    let reason = run["passed_over"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("not enough free space"), "{run}");
    drop(path);
}

#[test]
fn a_window_that_closes_before() {
    let (bed, path) = support::require!(fragmented(&[]));
    // At half a MiB a second, for the other half of the bandwidth is reading.
    let soon = one_minute_later();
    let config = beside(&bed, "soon.toml");
    let keys =
        "[defrag]\nbandwidth = \"1MiB/s\"\nmax_io_pressure = 100\nmax_swap_stall = \"10m\"\n";
    fs::write(&config, format!("{soon}{keys}")).unwrap();
    let would = said(choose(&bed, &config, &path).args(["--json", "--dry-run"]));
    assert_eq!(would["engine"], "xfs_fsr", "18 s of a minute: {would}");
    let large = bed.path().join("large.img");
    guest::random_direct_writes(&large, 100 * MIB, 25_600);
    let would = said(choose(&bed, &config, &large).args(["--json", "--dry-run"]));
    assert_eq!(would["engine"], "online", "{would}");
    let reason = would["passed_over"][0]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("would not finish before the window closes at "),
        "{reason}"
    );
    // Whoever does not mind windows does not mind that either.
    let would = said(choose(&bed, &config, &large).args(["--json", "--dry-run", "--force-window"]));
    assert_eq!(would["engine"], "xfs_fsr", "{would}");
}

/// A window of a minute, in an hour and each day.
fn one_minute_later() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let minute = (now.as_secs() / 60 + 60) % (24 * 60);
    format!(
        "[maintenance]\ntimezone = \"UTC\"\n\
         [[maintenance.window]]\nduration = \"1m\"\nstart = \"{:02}:{:02}\"\n\
         days = [\"Mon\", \"Tue\", \"Wed\", \"Thu\", \"Fri\", \"Sat\", \"Sun\"]\n",
        minute / 60,
        minute % 60
    )
}

#[test]
fn whoever_names_engines_gets_these_in_that_order() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let named = |engines: &[&str]| {
        let mut command = choose(&bed, &config, &path);
        for engine in engines {
            command.args(["--engine", engine]);
        }
        said(command.args(["--json", "--dry-run"]))
    };
    let open = File::open(&path).unwrap();
    assert_eq!(named(&["xfs_fsr"])["guard"], "in_use");
    assert_eq!(named(&["xfs_fsr", "online"])["engine"], "online");
    drop(open);
    assert_eq!(named(&["xfs_fsr", "online"])["engine"], "xfs_fsr");
    assert_eq!(named(&["online", "xfs_fsr"])["engine"], "online");
}

#[test]
fn where_neither_can_both_reasons_are_told() {
    let (bed, path) = support::require!(fragmented(&["-m", "reflink=0"]));
    let before = tools::xfs_io_stat_nextents(&path);
    let open = File::open(&path).unwrap();
    let run = json(&bed, &config(&bed, ""), &path);
    assert_eq!(run["guard"], "no_reflink", "{run}");
    let passed = run["passed_over"][0]["reason"].as_str().unwrap();
    assert!(passed.starts_with("in use by "), "{run}");
    drop(open);
    assert_eq!(tools::xfs_io_stat_nextents(&path), before);
}
