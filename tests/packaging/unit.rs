//! systemd's opinion of the unit, and the daemon with exactly the capabilities that it gets.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::rundir::{self, Place};
use crate::support::{self, Bed, guest, tools};
use crate::tree;

const UNITS: [&str; 3] = [
    "fragwatch.service",
    "fragwatch.slice",
    "fragwatch-defrag.slice",
];

/// What systemd before 253 says, and does as the unit's comment tells.
const OLD_SYSTEMD: &str = "Failed to parse service type, ignoring: notify-reload";

/// Exposure in tenths that `systemd-analyze security` may find, as fragwatch-run(1) has it.
const EXPOSURE: &str = "42";

pub fn service() -> String {
    fs::read_to_string(tree("systemd/fragwatch.service")).unwrap()
}

/// What is set, comments left out: names and values.
pub fn settings(unit: &str) -> Vec<(&str, &str)> {
    let lines = unit.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).collect()
}

/// The units with the built program in the place of the installed one.
fn units_of_the_built_program() -> PathBuf {
    let dir = rundir::new_dir(Place::Disk).unwrap();
    for unit in UNITS {
        let text = fs::read_to_string(tree("systemd").join(unit)).unwrap();
        let text = text.replace("/usr/bin/fragwatch", env!("CARGO_BIN_EXE_fragwatch"));
        fs::write(dir.join(unit), text).unwrap();
    }
    dir
}

/// What `systemd-analyze verify` complains about in the units of `dir`.
fn verify(systemd: &Path, dir: &Path) -> Vec<String> {
    let checked = Command::new(systemd)
        .args(["verify", "--man=no"])
        .args(UNITS.map(|unit| dir.join(unit)))
        .output()
        .unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    let ours = |line: &&str| line.contains("fragwatch") && !line.ends_with(OLD_SYSTEMD);
    said.lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn systemd_finds_the_units_right() {
    let systemd = support::require!(tools::have("systemd-analyze"));
    let dir = units_of_the_built_program();
    let said = verify(&systemd, &dir);
    assert!(said.is_empty(), "{said:#?}");

    // And it would have said so.
    let service = dir.join("fragwatch.service");
    let wrong = fs::read_to_string(&service).unwrap() + "[Service]\nProtectEverything=yes\n";
    fs::write(&service, wrong).unwrap();
    let said = verify(&systemd, &dir);
    assert!(
        said.iter().any(|line| line.contains("ProtectEverything")),
        "{said:#?}"
    );
    rundir::remove(&dir);
}

#[test]
fn it_is_as_closed_as_the_readme_says() {
    let systemd = support::require!(tools::have("systemd-analyze"));
    let checked = Command::new(systemd)
        .args([
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold",
            EXPOSURE,
        ])
        .arg(tree("systemd/fragwatch.service"))
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    let (whole, tenth) = EXPOSURE.split_at(1);
    let manual = fs::read_to_string(tree("packaging/man/fragwatch-run.md")).unwrap();
    assert!(manual.contains(&format!("{whole}.{tenth}")));
}

/// Switches that would blind or bind the rescue, and what each does.
#[test]
fn what_would_break_the_rescue_is_left_out_with_its_reason() {
    let unit = service();
    let set = settings(&unit);
    for left_out in [
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "PrivateDevices",
        "ProcSubset",
        "RestrictRealtime",
        "ProtectHome",
        "PrivateTmp",
        "PrivateNetwork",
        "PrivateUsers",
        "MemoryMax",
    ] {
        assert!(set.iter().all(|(name, _)| *name != left_out), "{left_out}");
        let reason = unit.lines().any(|line| {
            let words = line.strip_prefix("# ").unwrap_or_default();
            words.starts_with(left_out) && words.split_whitespace().count() >= 3
        });
        assert!(reason, "{left_out} has no reason");
    }
    let value = |name| {
        set.iter()
            .rfind(|(n, _)| *n == name)
            .map(|(_, value)| *value)
    };
    assert_eq!(value("SystemCallErrorNumber"), Some("ENOSYS"));
    assert_eq!(value("LimitMEMLOCK"), Some("infinity"));
    assert_eq!(value("DeviceAllow"), Some("/dev/kmsg rw"));
    let filter = value("SystemCallFilter").unwrap();
    assert!(
        filter.starts_with('~') && !filter.contains("@resources"),
        "{filter}"
    );
}

/// As setpriv(1) writes them: `sys_admin`.
fn capabilities() -> Vec<String> {
    let unit = service();
    let set = settings(&unit);
    let lines = set
        .iter()
        .filter(|(name, _)| *name == "CapabilityBoundingSet");
    let names = lines.flat_map(|(_, value)| value.split(' '));
    names
        .map(|name| name.strip_prefix("CAP_").unwrap().to_ascii_lowercase())
        .collect()
}

/// Runs the program with these capabilities and no way to others.
fn with(capabilities: &[String], arguments: &[&str]) -> Output {
    let bounds: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
    Command::new("setpriv")
        .arg("--no-new-privs")
        .arg(format!("--bounding-set=-all,{}", bounds.join(",")))
        .arg(env!("CARGO_BIN_EXE_fragwatch"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Without one of them.
fn but(left_out: &str) -> Vec<String> {
    let all = capabilities();
    let rest: Vec<_> = all
        .iter()
        .filter(|name| *name != left_out)
        .cloned()
        .collect();
    assert_eq!(rest.len() + 1, all.len(), "{left_out} is not in the unit");
    rest
}

#[test]
fn its_capabilities_are_enough_for_the_rescue() {
    support::require!(tools::have("setpriv"));
    // That there is root, and a kernel's log.
    support::require!(Bed::xfs());
    let dir = rundir::new_dir(Place::Disk).unwrap();
    let config = dir.join("fragwatch.toml");
    fs::write(&config, "[images]\npaths = []\n").unwrap();
    let drill = ["drill", "--act", "--config", config.to_str().unwrap()];
    let done = with(&capabilities(), &drill);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{done:?}");
    for stage in [
        "memory is locked",
        "real-time priority",
        "confirms the drop",
    ] {
        let line = said.lines().find(|line| line.contains(stage));
        assert!(
            line.is_some_and(|line| line.starts_with("ok")),
            "{stage}: {said}"
        );
    }
    // That it says so where one is missing.
    let said = with(&but("sys_nice"), &drill);
    let said = String::from_utf8_lossy(&said.stdout);
    let line = said
        .lines()
        .find(|line| line.contains("real-time priority"))
        .unwrap_or_default();
    assert!(!line.starts_with("ok"), "{said}");
    rundir::remove(&dir);
}

#[test]
fn its_capabilities_are_enough_to_count() {
    support::require!(tools::have("setpriv"));
    let bed = support::require!(Bed::xfs());
    // As libvirt keeps them: nobody's but QEMU's.
    let vault = bed.path().join("vault");
    let image = vault.join("db-1.raw");
    fs::create_dir(&vault).unwrap();
    guest::alternate_blocks(&image, 100);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&vault, fs::Permissions::from_mode(0o700)).unwrap();
    for path in [&image, &vault] {
        chown(path, Some(64055), Some(64055)).unwrap();
    }
    let scan = ["scan", "--json", image.to_str().unwrap()];
    let census = ["scan", "--json", "--census", bed.path().to_str().unwrap()];
    for arguments in [&scan[..], &census] {
        let done = with(&capabilities(), arguments);
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }
    let done = with(&but("sys_admin"), &census);
    assert!(
        !done.status.success(),
        "a census without CAP_SYS_ADMIN: {done:?}"
    );
}
