//! What is told beforehand of a kernel that rules the online engine out, and what is done on it.
//!
//! The programs see another kernel's words: in a mount namespace of their own, other files lie over
//! those of /proc that a kernel is known by.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{self, Bed, MIB, RunningDaemon, fragwatch, guest, tools};
use crate::watch::{Etc, OFTEN, Watch, until};

/// Debian's, before the repair.
const BAD: &str = "6.1.0-4747-cloud-amd64";

/// The command, as it would be on a host with that kernel.
fn on_kernel(command: &Command, release: &str, build: &str, etc: &Etc) -> Command {
    let (its_release, its_version) = (etc.join("osrelease"), etc.join("version"));
    fs::write(&its_release, format!("{release}\n")).unwrap();
    let version =
        format!("Linux version {release} (a@b) (gcc-12 (Debian 12.2.0-14) 12.2.0) {build}");
    fs::write(&its_version, version).unwrap();
    let mut there = Command::new("unshare");
    there
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(
            "mount --bind \"$1\" /proc/sys/kernel/osrelease; mount --bind \"$2\" /proc/version; \
             shift 2; exec \"$@\"",
        )
        .args([Path::new("sh"), &its_release, &its_version])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => there.env(name, value),
            None => there.env_remove(name),
        };
    }
    there
}

fn on_a_bad_one(command: &Command, etc: &Etc) -> Command {
    let build = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-12)";
    on_kernel(command, BAD, build, etc)
}

fn json(mut command: Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// What `status --json` has of an engine, once something is known.
fn engine(daemon: &RunningDaemon, name: &str) -> Value {
    until("the engines", || {
        let status = json(daemon.ask("status"));
        let engines = status["engines"].as_array().unwrap().clone();
        engines.into_iter().find(|it| it["engine"] == name)
    })
}

const CONFIG: &str = "[thresholds]\nwarning = { extents = 100 }\n\
                      [defrag]\nengines = [\"xfs_fsr\", \"online\"]\nmax_io_pressure = 100\ntrusted_kernels = []\n\
                      [[maintenance.window]]\ndays = [\"Mon\"]\nstart = \"03:00\"\nduration = \"1h\"\n";

#[test]
fn a_kernel_that_is_known_to_be_bad_is_told_before_the_night() {
    support::require!(tools::have("xfs_fsr"));
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, MIB, 256);
    let etc = Etc::new();
    etc.configure(&[bed.path()], &format!("{OFTEN}{CONFIG}"));
    let daemon = RunningDaemon::spawn(&mut on_a_bad_one(&etc.run(), &etc), etc.address);
    let watch = Watch { daemon, etc };

    let online = engine(&watch.daemon, "online");
    assert_eq!(online["usable"], false, "{online}");
    assert_eq!(online["reason"], "kernel_known_bad");
    let text = online["text"].as_str().unwrap();
    for part in [BAD, "CVE-2026-64600", "level 6.1.170", "6.1.178", "xfs_fsr"] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    let fsr = engine(&watch.daemon, "xfs_fsr");
    assert_eq!(
        (&fsr["usable"], &fsr["reason"]),
        (&true.into(), &Value::Null)
    );
    let people = watch.daemon.ask("status").output().unwrap();
    let people = String::from_utf8(people.stdout).unwrap();
    let line = format!("Engines that can be used: xfs_fsr.\n! online is not used: {text}.\n");
    assert!(people.contains(&line), "{people}");
    assert_eq!(watch.log("online is not used: kernel").len(), 1);
    let usable = |engine, reason| {
        let labels = [("engine", engine), ("reason", reason)];
        watch.scrape().value("fragwatch_engine_usable", &labels)
    };
    assert_eq!(usable("online", "kernel_known_bad"), Some(0.0));
    assert_eq!(usable("xfs_fsr", ""), Some(1.0));

    // In use, it can only be moved by online, and the plan says what is against that.
    let open = File::open(&image).unwrap();
    let plan = || watch.etc.run_subcommand("plan");
    let said = json(on_a_bad_one(&plan(), &watch.etc));
    let why_not = &said["images"][0]["why_not"];
    assert_eq!(why_not["code"], "in_use", "{said}");
    assert_eq!(why_not["online"]["code"], "kernel", "{said}");
    assert_eq!(said["engines"][1]["reason"], "kernel_known_bad", "{said}");
    let said = on_a_bad_one(&plan(), &watch.etc).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.contains(&format!("\n! online is not used: {text}.\n")),
        "{said}"
    );
    drop(open);

    // The engine itself refuses, and the image is as it was.
    let (before, extents) = (tools::checksum(&image), tools::xfs_io_stat_nextents(&image));
    let defrag = || {
        let mut command = fragwatch();
        command.arg("defrag").arg("--config").arg(watch.etc.file());
        command
            .args(["--engine", "online", "--force-window"])
            .arg(&image);
        command.env("STATE_DIRECTORY", watch.daemon.directory());
        command.env("RUNTIME_DIRECTORY", watch.daemon.directory());
        command
    };
    let said = json(on_a_bad_one(&defrag(), &watch.etc));
    assert_eq!(said["runs"][0]["guard"], "kernel", "{said}");
    assert_eq!(said["runs"][0]["reason"].as_str(), Some(text));
    assert_eq!(tools::xfs_io_stat_nextents(&image), extents);

    // An operator may know better.
    let trusted = CONFIG.replace(
        "trusted_kernels = []",
        &format!("trusted_kernels = [{BAD:?}]"),
    );
    watch
        .etc
        .configure(&[bed.path()], &format!("{OFTEN}{trusted}"));
    watch.daemon.signal(Signal::HUP);
    until("online is usable", || {
        (usable("online", "") == Some(1.0)).then_some(())
    });
    assert_eq!(usable("online", "kernel_known_bad"), None);
    assert_eq!(engine(&watch.daemon, "online")["usable"], true);
    let said = json(on_a_bad_one(&defrag(), &watch.etc));
    assert_eq!(said["runs"][0]["outcome"], "improved", "{said}");
    assert_eq!(tools::checksum(&image), before);
}

#[test]
fn a_kernel_of_which_nothing_is_known_and_one_that_is_good() {
    let bed = support::require!(Bed::xfs());
    let etc = Etc::new();
    let config = CONFIG.replace("\"xfs_fsr\", ", "");
    etc.configure(&[bed.path()], &format!("{OFTEN}{config}"));
    for (release, reason) in [
        ("5.14.0-570.el9.x86_64", Some("kernel_unknown")),
        ("6.18.39", None),
    ] {
        let mut command = on_kernel(&etc.run(), release, "#1 SMP", &etc);
        let daemon = RunningDaemon::spawn(&mut command, etc.address);
        let online = engine(&daemon, "online");
        assert_eq!(online["reason"].as_str(), reason, "{online}");
        assert_eq!(online["usable"], reason.is_none());
        assert_eq!(engine(&daemon, "xfs_fsr")["reason"], "not_configured");
    }
}
