//! What it starts with: a configuration that is wrong, or an address in use, keeps it from neither
//! the rescue nor the counts.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::maintenance::ALWAYS;
use crate::support::child::Child;
use crate::support::{self, Bed, RunningDaemon, Stall, free_address, guest, http_get};
use crate::watch::{Etc, OFTEN, PATIENCE, WHEN_ASKED, Watch, until};

/// A daemon of which it is not known whether it answers.
struct Begun {
    etc: Etc,
    daemon: Child,
}

impl Begun {
    fn new(etc: Etc) -> Begun {
        let stderr = fs::File::create(etc.join("stderr")).unwrap();
        let daemon = Child::spawn(etc.run().stderr(stderr)).unwrap();
        Begun { etc, daemon }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.etc.join("stderr")).unwrap()
    }

    /// What it says on its control socket, once that is so.
    fn status(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, || {
            let output = self.etc.run_subcommand("status").arg("--json").output();
            let status = serde_json::from_slice(&output.unwrap().stdout).ok()?;
            holds(&status).then_some(status)
        })
    }

    fn check(&self) -> (Option<i32>, String) {
        let output = self.etc.run_subcommand("check").output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    }
}

fn armed(status: &Value) -> bool {
    status["rescue"]["armed"] == true
}

/// Armed, and does nothing.
fn with_rescue(text: &str) -> String {
    text.replace("enabled = false", "dry_run = true")
}

fn success(daemon: &Watch) -> Option<f64> {
    let now = daemon.scrape();
    now.value("fragwatch_config_reload_success", &[])
}

fn window(watch: &Watch) -> Option<f64> {
    watch
        .scrape()
        .value("fragwatch_maintenance_window_open", &[])
}

#[test]
fn an_address_in_use_is_tried_until_it_is_free() {
    let etc = Etc::new();
    let theirs = TcpListener::bind(etc.address).unwrap();
    let file = etc.join("fragwatch.prom");
    let text = with_rescue(&etc.text(&[], WHEN_ASKED));
    etc.write(&text.replace("[metrics]\n", &format!("[metrics]\ntextfile = {file:?}\n")));
    let begun = Begun::new(etc);
    let status = begun.status("an armed rescue", armed);
    let why = status["daemon"]["listen_error"].as_str().unwrap();
    let address = begun.etc.address.to_string();
    assert!(why.contains(&address) && why.contains("in use"), "{why}");
    let (code, line) = begun.check();
    assert_eq!(code, Some(1), "{line}");
    assert!(
        line.contains("no metrics are served: cannot listen"),
        "{line}"
    );
    let said = begun.said();
    let error = said
        .lines()
        .filter(|line| line.contains("no metrics are served"));
    assert!(
        error
            .clone()
            .all(|line| line.contains("ERROR") && line.contains("in use"))
    );
    assert_eq!(error.count(), 1, "{said}");
    until("the textfile", || {
        let text = fs::read_to_string(&file).ok()?;
        let part = text.contains("\nfragwatch_part_severity{part=\"http\"} 1\n");
        (part && text.contains("\nfragwatch_metrics_listening 0\n")).then_some(())
    });

    drop(theirs);
    let answer = until("the page", || http_get(begun.etc.address, "/metrics").ok());
    assert!(answer.body.contains("\nfragwatch_metrics_listening 1\n"));
    for part in ["http", "sampler", "maintenance"] {
        let up = format!("\nfragwatch_part_severity{{part=\"{part}\"}} 0\n");
        assert!(answer.body.contains(&up), "{part}");
    }
    assert_eq!(begun.check().0, Some(0));
    assert!(begun.said().contains("metrics at http"));
}

#[test]
fn a_reload_while_the_address_is_in_use_takes_all_else() {
    let etc = Etc::new();
    let theirs = TcpListener::bind(etc.address).unwrap();
    etc.configure(&[], WHEN_ASKED);
    let begun = Begun::new(etc);
    begun.status("its start", |_| true);
    begun
        .etc
        .write(&with_rescue(&begun.etc.text(&[], WHEN_ASKED)));
    begun.daemon.signal(Signal::HUP);
    let status = begun.status("an armed rescue", armed);
    assert_eq!(status["daemon"]["config_refused"], Value::Null);
    assert_ne!(status["daemon"]["listen_error"], Value::Null);
    drop(theirs);
    until("the page", || http_get(begun.etc.address, "/metrics").ok());
}

const CASE_E01: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases/E01");

/// A zoneinfo directory as Debian 13 and Ubuntu 24.04 have it without tzdata-legacy.
fn zoneinfo(etc: &Etc) -> PathBuf {
    let dir = etc.join("zoneinfo");
    let mut make = Command::new("sh");
    make.arg(format!("{CASE_E01}/make-tzdir.sh")).arg(&dir);
    assert!(make.status().unwrap().success(), "package tzdata");
    dir
}

fn in_zone(etc: &Etc, bed: &Bed, zone: &str) -> String {
    let (before, windows) = ALWAYS.split_at(ALWAYS.find("[[maintenance").unwrap());
    let zone = format!("{before}[maintenance]\ntimezone = {zone:?}\n{windows}");
    with_rescue(&etc.text(&[bed.path()], &zone))
}

#[test]
fn a_zone_that_an_upgrade_took_away_is_still_known() {
    let bed = support::require!(Bed::xfs());
    let etc = Etc::new();
    let zoneinfo = zoneinfo(&etc);
    let mut check = support::fragwatch();
    check
        .args(["check-config", "--config"])
        .arg(format!("{CASE_E01}/fragwatch.toml"));
    let check = check.env("TZDIR", &zoneinfo).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    etc.write(&in_zone(&etc, &bed, "US/Central"));
    let check = etc
        .run_subcommand("check-config")
        .env("TZDIR", &zoneinfo)
        .output();
    let check = check.unwrap();
    assert!(check.status.success(), "{check:?}");
    let daemon = RunningDaemon::spawn(etc.run().env("TZDIR", &zoneinfo), etc.address);
    let watch = Watch { daemon, etc };
    watch.until("an open window", |now| {
        now.value("fragwatch_maintenance_window_open", &[]) == Some(1.0)
    });
    assert_eq!(success(&watch), Some(1.0));
}

#[test]
fn a_zone_that_nobody_knows_keeps_it_from_defragmenting_alone() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::alternate_blocks(&image, 2000);
    let etc = Etc::new();
    etc.write(&in_zone(&etc, &bed, "Mars/Base"));
    let check = etc.run_subcommand("check-config").output().unwrap();
    assert_eq!(check.status.code(), Some(2), "{check:?}");
    let watch = Watch::start_with_state(etc);
    assert_eq!(watch.scrape().extents(&image), Some(2000.0));
    let status = watch.daemon.ask("status").arg("--json").output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(armed(&status), "{status}");
    assert_eq!(status["daemon"]["config_in_force"], "without_maintenance");
    let refused = status["daemon"]["config_refused"].as_str().unwrap();
    assert!(
        refused.contains("\"Mars/Base\" is not a time zone"),
        "{refused}"
    );
    assert_eq!((success(&watch), window(&watch)), (Some(0.0), Some(0.0)));
    assert_eq!(watch.log("[maintenance] is wrong").len(), 1);

    // To a reload it is a mistake like any other.
    watch.daemon.signal(Signal::HUP);
    watch
        .daemon
        .wait_for_stderr("the former one stays in force", PATIENCE);
    watch
        .etc
        .write(&in_zone(&watch.etc, &bed, "America/Chicago"));
    watch.daemon.signal(Signal::HUP);
    watch.until("an open window", |now| {
        now.value("fragwatch_maintenance_window_open", &[]) == Some(1.0)
    });
    assert_eq!(success(&watch), Some(1.0));
}

#[test]
fn with_a_wrong_configuration_the_last_good_one_is_in_force() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::alternate_blocks(&image, 2000);
    let etc = Etc::new();
    // The window opens when there is nothing left to be done before the end of the test.
    let dry = ALWAYS.replace("[defrag]\n", "[defrag]\ndry_run = true\n");
    let text = with_rescue(&etc.text(&[bed.path()], &dry));
    etc.write(&text);
    let mut watch = Watch::start_with_state(etc);
    let copy = watch.etc.join("last-good.toml");
    until("a copy", || copy.exists().then_some(()));
    watch.daemon.signal(Signal::TERM);
    assert!(watch.daemon.wait(PATIENCE).success());

    for wrong in [
        format!("{text}[sampling"),
        format!("{text}[images2]\n"),
        String::from("[images]\n\u{0}"),
        // Nobody empties a configuration to have the defaults.
        String::new(),
    ] {
        let etc = std::mem::replace(&mut watch.etc, Etc::new());
        etc.write(&wrong);
        watch = Watch::start_with_state(etc);
        assert_eq!(watch.scrape().extents(&image), Some(2000.0), "{wrong}");
        let mut status = watch.etc.run_subcommand("status");
        let status = status.arg("--json").output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert!(armed(&status), "{status}");
        assert_eq!(status["daemon"]["config_in_force"], "last_good");
        assert_eq!((success(&watch), window(&watch)), (Some(0.0), Some(0.0)));
        let mut check = watch.daemon.ask("check");
        let check = check
            .arg("--config")
            .arg(watch.etc.file())
            .output()
            .unwrap();
        let line = String::from_utf8(check.stdout).unwrap();
        // The image is at its warning threshold, too.
        assert_eq!(check.status.code(), Some(1), "{line}");
        assert!(line.contains("the last good one is in force"), "{line}");
        assert_eq!(watch.log("the last good one is in force").len(), 1);
        assert!(watch.daemon.stderr().contains("fragwatch.toml:"));
        watch.daemon.signal(Signal::TERM);
        assert!(watch.daemon.wait(PATIENCE).success());
    }

    // It is mended while the daemon runs.
    fs::remove_file(watch.etc.file()).unwrap();
    let etc = std::mem::replace(&mut watch.etc, Etc::new());
    watch = Watch::start_with_state(etc);
    assert_eq!(window(&watch), Some(0.0));
    watch.etc.write(&text);
    watch.daemon.signal(Signal::HUP);
    watch.until("an open window", |now| {
        now.value("fragwatch_maintenance_window_open", &[]) == Some(1.0)
    });
    assert_eq!(success(&watch), Some(1.0));
    let check = watch.etc.run_subcommand("check").output().unwrap();
    let line = String::from_utf8(check.stdout).unwrap();
    assert!(!line.contains("in force"), "{line}");
}

#[test]
fn without_an_earlier_configuration_the_defaults_are_in_force() {
    let etc = Etc::new();
    // There is none at all. Systemd is told that it runs all the same.
    let notify = etc.join("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let stderr = fs::File::create(etc.join("stderr")).unwrap();
    let daemon = Child::spawn(etc.run().env("NOTIFY_SOCKET", &notify).stderr(stderr)).unwrap();
    let begun = Begun { etc, daemon };
    let mut message = [0; 64];
    let length = systemd.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1\n");
    let status = begun.status("an armed rescue", armed);
    assert_eq!(status["daemon"]["config_in_force"], "defaults");
    assert_eq!(status["rescue"]["dry_run"], false);
    let refused = status["daemon"]["config_refused"].as_str().unwrap();
    assert!(refused.contains("there is no such file"), "{refused}");
    let (code, line) = begun.check();
    assert!(
        code >= Some(1) && line.contains("the defaults are in force"),
        "{line}"
    );
    assert!(begun.said().contains("ERROR"), "{}", begun.said());
    // Nothing wrong is kept as good.
    assert!(!begun.etc.join("last-good.toml").exists());

    begun.etc.configure(&[], OFTEN);
    begun.daemon.signal(Signal::HUP);
    until("its own address", || {
        http_get(begun.etc.address, "/metrics").ok()
    });
    let copy = begun.etc.join("last-good.toml");
    let copy = until("a copy", || fs::read_to_string(&copy).ok());
    assert!(copy.contains(&begun.etc.address.to_string()), "{copy}");
}

/// All settings are in a fragment: the empty file is the configuration, also of the next start and
/// after a reload.
#[test]
fn an_empty_file_that_always_was_is_a_configuration() {
    let mut etc = Etc::new();
    let fragment = etc.join("conf.d/10.toml");
    fs::create_dir(etc.join("conf.d")).unwrap();
    fs::write(&fragment, etc.text(&[], OFTEN)).unwrap();
    etc.write("");
    for _ in 0..2 {
        let mut watch = Watch::start_with_state(etc);
        assert_eq!(success(&watch), Some(1.0));
        watch.daemon.signal(Signal::HUP);
        watch.until("a reload", |_| {
            !watch.log("configuration reloaded").is_empty()
        });
        let copy = watch.etc.join("last-good.toml");
        until("a copy", || copy.exists().then_some(()));
        watch.daemon.signal(Signal::TERM);
        assert!(watch.daemon.wait(PATIENCE).success());
        etc = std::mem::replace(&mut watch.etc, Etc::new());
    }
}

/// The copy lies on it, and so does the lock.
#[test]
fn a_copy_on_a_disk_that_hangs_is_not_waited_for() {
    let mut stall = support::require!(Stall::new());
    let state = stall.path();
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    let mut run = etc.run();
    let mut daemon = RunningDaemon::spawn(run.env("STATE_DIRECTORY", &state), etc.address);
    until("a copy", || {
        state.join("last-good.toml").exists().then_some(())
    });
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(PATIENCE).success());
    drop(daemon);
    stall.cold();
    stall.stop();

    etc.write("[images");
    let stderr = fs::File::create(etc.join("stderr")).unwrap();
    let daemon = Child::spawn(run.stderr(stderr)).unwrap();
    let begun = Begun { etc, daemon };
    // Not asked for by `fragwatch status`, which would wait for the copy too.
    until("the rescue", || {
        begun.said().contains("rescue armed").then_some(())
    });
    assert!(begun.said().contains("the defaults are in force"));
    begun.daemon.signal(Signal::KILL);
    stall.resume();
}

/// As when a disk is slow at boot.
#[test]
fn a_configuration_that_is_late_is_in_force_once_it_is_read() {
    let mut stall = support::require!(Stall::new());
    let mut etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    let mut daemon = RunningDaemon::spawn(&mut etc.run(), etc.address);
    let copy = etc.join("last-good.toml");
    until("a copy", || copy.exists().then_some(()));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(PATIENCE).success());
    drop(daemon);

    let late = stall.path().join("fragwatch.toml");
    let former = std::mem::replace(&mut etc.address, free_address());
    fs::write(&late, etc.text(&[], WHEN_ASKED)).unwrap();
    fs::remove_file(etc.file()).unwrap();
    std::os::unix::fs::symlink(&late, etc.file()).unwrap();
    stall.cold();
    stall.stop();
    let daemon = RunningDaemon::spawn(&mut etc.run(), former);
    let said = daemon.stderr();
    assert!(said.contains("the last good one is in force"), "{said}");
    assert!(said.contains("could not be read within 2 s"), "{said}");
    stall.resume();
    daemon.wait_for_stderr("configuration reloaded", PATIENCE);
    let body = http_get(etc.address, "/metrics").unwrap().body;
    assert!(body.contains("fragwatch_config_reload_success 1"), "{body}");
}
