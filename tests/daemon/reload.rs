//! SIGHUP.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use jiff::{ToSpan as _, Zoned};
use rustix::process::Signal;
use serde_json::Value;

use crate::scrape::Scrape;
use crate::support::{self, Bed, RunningDaemon, Stall, free_address, guest, http_get};
use crate::watch::{Etc, OFTEN, PATIENCE, WHEN_ASKED, Watch, until};

fn success(now: &Scrape) -> Option<f64> {
    now.value("fragwatch_config_reload_success", &[])
}

fn read_at(now: &Scrape) -> Option<f64> {
    now.value("fragwatch_config_reload_timestamp_seconds", &[])
}

fn severity(now: &Scrape, image: &Path) -> Option<f64> {
    now.of_image("fragwatch_image_severity", image)
}

/// Two directories with an image each.
fn two(bed: &Bed) -> [(PathBuf, PathBuf); 2] {
    ["one", "two"].map(|name| {
        let dir = bed.path().join(name);
        let image = dir.join("a.raw");
        fs::create_dir(&dir).unwrap();
        guest::alternate_blocks(&image, 100);
        (dir, image)
    })
}

/// Has the daemon read its configuration, and returns what it says of it once it says `end`. Asks
/// for nothing meanwhile: its address may be on the move.
fn reload(watch: &Watch, end: &str) -> String {
    let before = watch.daemon.stderr().len();
    watch.daemon.signal(Signal::HUP);
    until(end, || {
        let log = watch.daemon.stderr().split_off(before);
        log.contains(end).then_some(log)
    })
}

/// Has it read a configuration that is right.
fn accepted(watch: &Watch) {
    reload(watch, "configuration reloaded");
    assert_eq!(success(&watch.scrape()), Some(1.0));
}

/// Has it read one that is wrong, and returns what it says of it.
fn refused(watch: &Watch) -> String {
    let log = reload(watch, "the former one stays in force");
    assert!(log.contains("ERROR") && log.contains("is refused"), "{log}");
    assert_eq!(success(&watch.scrape()), Some(0.0));
    log
}

#[test]
fn paths_and_thresholds_change() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), (two, b)] = two(&bed);
    let watch = Watch::start(&[&one], WHEN_ASKED);
    let before = watch.scrape();
    assert_eq!(
        (before.extents(&a), before.extents(&b)),
        (Some(100.0), None)
    );
    assert_eq!(severity(&before, &a), Some(0.0));

    let thresholds = "[thresholds]\nwarning = { extents = 50 }\ncritical = { extents = 100 }\n";
    watch
        .etc
        .configure(&[&two], &format!("{WHEN_ASKED}{thresholds}"));
    let now = watch.sweep();
    assert_eq!((now.extents(&a), now.extents(&b)), (None, Some(100.0)));
    assert!(!now.mentions(&a), "{}", now.text);
    assert_eq!(severity(&now, &b), Some(2.0));
    assert_eq!(success(&now), Some(1.0));
    assert!(read_at(&now) > read_at(&before));

    let thresholds = "[thresholds]\nwarning = { extents = 50 }\n";
    watch
        .etc
        .configure(&[&two], &format!("{WHEN_ASKED}{thresholds}"));
    assert_eq!(severity(&watch.sweep(), &b), Some(1.0));
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), (two, b)] = two(&bed);
    let watch = Watch::start(&[&one], OFTEN);
    let before = watch.scrape();
    // Right in its paths and its address, wrong in one value.
    let elsewhere = free_address();
    let text = watch.etc.text(&[&two], "[sampling]\ninterval = \"1x\"\n");
    let text = text.replace(&watch.etc.address.to_string(), &elsewhere.to_string());
    watch.etc.write(&text);
    let log = refused(&watch);
    let line = 1 + text.lines().position(|line| line.contains("1x")).unwrap();
    let place = format!("{}:{line}:12", watch.etc.file().display());
    for part in [place.as_str(), "interval = \"1x\"", "^^^^"] {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
    // The caret stands under the value.
    let lines: Vec<_> = log.lines().collect();
    let caret = lines.iter().position(|line| line.contains("^^^^")).unwrap();
    assert_eq!(
        lines[caret].find('^'),
        lines[caret - 1].find("\"1x\""),
        "{log}"
    );

    // The former one is in force, and more than in name.
    punch_all(&a);
    let now = watch.until("a new count", |now| now.extents(&a) == Some(0.0));
    assert_eq!(now.extents(&b), None);
    assert_eq!(success(&now), Some(0.0));
    assert_eq!(read_at(&now), read_at(&before));
    assert!(http_get(elsewhere, "/metrics").is_err());

    watch.etc.configure(&[&two], OFTEN);
    watch.daemon.signal(Signal::HUP);
    let now = watch.until("the right one", |now| now.extents(&b) == Some(100.0));
    assert_eq!(success(&now), Some(1.0));
    assert!(read_at(&now) > read_at(&before));
}

fn punch_all(image: &Path) {
    fs::File::create(image).unwrap();
}

#[test]
fn a_configuration_that_is_gone_or_no_text_changes_nothing() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), _] = two(&bed);
    let watch = Watch::start(&[&one], WHEN_ASKED);
    fs::write(watch.etc.file(), b"[images]\xff\n").unwrap();
    assert!(refused(&watch).contains("fragwatch.toml"));
    fs::remove_file(watch.etc.file()).unwrap();
    assert!(refused(&watch).contains("there is no such file"));
    assert_eq!(watch.scrape().extents(&a), Some(100.0));
    watch.etc.configure(&[&one], WHEN_ASKED);
    assert_eq!(success(&watch.sweep()), Some(1.0));
}

/// An editor or a full disk leaves such a file behind. To take it would mean to forget all settings.
#[test]
fn an_empty_file_in_the_place_of_a_configuration_changes_nothing() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), _] = two(&bed);
    let watch = Watch::start(&[&one], WHEN_ASKED);
    for empty in ["", "\n \n"] {
        fs::write(watch.etc.file(), empty).unwrap();
        let log = refused(&watch);
        assert!(log.contains("fragwatch.toml: is empty"), "{log}");
        assert!(log.contains("comment"), "{log}");
    }
    assert_eq!(watch.scrape().extents(&a), Some(100.0));
    watch.etc.configure(&[&one], WHEN_ASKED);
    assert_eq!(success(&watch.sweep()), Some(1.0));
}

#[test]
fn the_address_moves() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), _] = two(&bed);
    let mut watch = Watch::start(&[&one], WHEN_ASKED);
    let old = watch.etc.address;
    watch.etc.address = free_address();
    watch.etc.configure(&[&one], WHEN_ASKED);
    watch.daemon.moved_to(watch.etc.address);
    accepted(&watch);
    until("the end of the old one", || http_get(old, "/metrics").err());
    assert_eq!(watch.sweep().extents(&a), Some(100.0));
    // Somebody else can have it.
    TcpListener::bind(old).unwrap();
}

#[test]
fn the_address_widens_on_the_same_port_and_narrows_again() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), _] = two(&bed);
    let mut watch = Watch::start(&[&one], WHEN_ASKED);
    let narrow = watch.etc.address;
    let beside = SocketAddr::from(([127, 0, 0, 2], narrow.port()));
    assert!(http_get(beside, "/metrics").is_err());

    watch.etc.address = SocketAddr::from(([0, 0, 0, 0], narrow.port()));
    watch.etc.configure(&[&one], WHEN_ASKED);
    accepted(&watch);
    assert_eq!(http_get(beside, "/metrics").unwrap().status, 200);
    assert_eq!(watch.sweep().extents(&a), Some(100.0));

    watch.etc.address = narrow;
    watch.etc.configure(&[&one], WHEN_ASKED);
    accepted(&watch);
    assert!(http_get(beside, "/metrics").is_err());
}

#[test]
fn an_address_in_use_is_refused_with_all_else() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), (two, b)] = two(&bed);
    let mut watch = Watch::start(&[&one], WHEN_ASKED);
    let ours = watch.etc.address;
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    // Of our port, too, and then our own listener must survive the attempt.
    let beside = SocketAddr::from(([127, 0, 0, 2], ours.port()));
    let also_theirs = TcpListener::bind(beside).unwrap();
    for busy in [
        theirs.local_addr().unwrap(),
        beside,
        SocketAddr::from(([0, 0, 0, 0], ours.port())),
    ] {
        watch.etc.address = busy;
        watch.etc.configure(&[&two], WHEN_ASKED);
        let log = refused(&watch);
        assert!(log.contains(&busy.to_string()), "{log}");
        watch.etc.address = ours;
        watch.etc.configure(&[&one], WHEN_ASKED);
        let now = watch.sweep();
        assert_eq!((now.extents(&a), now.extents(&b)), (Some(100.0), None));
        assert_eq!(success(&now), Some(1.0));
    }
    drop(also_theirs);
    watch.etc.configure(&[&two], WHEN_ASKED);
    assert_eq!(watch.sweep().extents(&b), Some(100.0));
}

#[test]
fn fragments_of_the_configuration_count_too() {
    let bed = support::require!(Bed::xfs());
    let [(one, a), (two, b)] = two(&bed);
    let watch = Watch::start(&[&one], WHEN_ASKED);
    let fragments = watch.etc.join("conf.d");
    fs::create_dir(&fragments).unwrap();
    let fragment = fragments.join("10-site.toml");
    fs::write(&fragment, format!("[images]\npaths = [{two:?}]\n")).unwrap();
    let now = watch.sweep();
    assert_eq!((now.extents(&a), now.extents(&b)), (None, Some(100.0)));

    fs::write(&fragment, "[images]\npath = []\n").unwrap();
    let log = refused(&watch);
    let place = format!("{}:2:1", fragment.display());
    assert!(log.contains(&place) && log.contains("paths"), "{log}");

    fs::remove_file(&fragment).unwrap();
    let now = watch.sweep();
    assert_eq!((now.extents(&a), now.extents(&b)), (Some(100.0), None));
    assert_eq!(success(&now), Some(1.0));
}

#[test]
fn another_path_of_the_history_needs_a_restart_and_that_is_said() {
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    let watch = Watch::start_with_state(etc);
    let json = |subcommand: &str| -> Value {
        let mut command = watch.etc.run_subcommand(subcommand);
        let output = command.arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let state = || {
        let status = json("status");
        let parts = status["parts"].as_array().unwrap().clone();
        let part = parts
            .into_iter()
            .find(|part| part["part"] == "configuration");
        part.map(|part| part["state"].as_str().unwrap().to_owned())
    };
    let elsewhere = watch.etc.join("elsewhere.db");
    let text = format!("{WHEN_ASKED}[history]\npath = {elsewhere:?}\n");
    watch.etc.configure(&[], &text);
    accepted(&watch);
    let warned = watch.log("needs a restart");
    assert!(
        warned.len() == 1 && warned[0].contains("elsewhere.db"),
        "{warned:?}"
    );
    assert_eq!(state().as_deref(), Some("impaired"));
    assert_eq!(json("check")["code"], 1);
    let severity =
        |now: &Scrape| now.value("fragwatch_part_severity", &[("part", "configuration")]);
    assert_eq!(severity(&watch.scrape()), Some(1.0));
    assert!(!elsewhere.exists());
    // The former one is as it was.
    watch.etc.configure(&[], WHEN_ASKED);
    accepted(&watch);
    assert_eq!(state().as_deref(), Some("up"));
    assert_eq!(json("check")["code"], 0);
}

/// The rules of a time zone are read again, however short a time ago they were read last.
#[test]
fn new_rules_of_a_time_zone_are_in_force_at_once() {
    let zoneinfo = Path::new("/usr/share/zoneinfo");
    for zone in ["Europe/Berlin", "local"] {
        let etc = Etc::new();
        let database = etc.join("zoneinfo");
        fs::create_dir_all(database.join("Europe")).unwrap();
        let rules = database.join("Europe/Berlin");
        fs::copy(zoneinfo.join("Europe/Berlin"), &rules).unwrap();
        // Open now in Berlin, and in New York it is six hours earlier.
        let now = Zoned::now().in_tz("Europe/Berlin").unwrap();
        let start = (&now - 30.minutes()).strftime("%H:%M").to_string();
        let window = format!(
            "{OFTEN}[maintenance]\ntimezone = \"{zone}\"\njitter = \"0s\"\n[[maintenance.window]]\n\
             days = [\"Mon\", \"Tue\", \"Wed\", \"Thu\", \"Fri\", \"Sat\", \"Sun\"]\n\
             start = \"{start}\"\nduration = \"2h\"\n"
        );
        etc.configure(&[], &window);
        let mut command = etc.run();
        command.env("TZDIR", &database).env("TZ", "Europe/Berlin");
        let daemon = RunningDaemon::spawn(&mut command, etc.address);
        let watch = Watch { daemon, etc };
        let open = |now: &Scrape| now.value("fragwatch_maintenance_window_open", &[]);
        watch.until("the window", |now| open(now) == Some(1.0));
        let draft = database.join("draft");
        fs::copy(zoneinfo.join("America/New_York"), &draft).unwrap();
        fs::rename(&draft, &rules).unwrap();
        accepted(&watch);
        watch.until("the window by the new rules", |now| open(now) == Some(0.0));
    }
}

#[test]
fn a_configuration_that_cannot_be_read_keeps_the_daemon_from_nothing() {
    let mut stall = support::require!(Stall::new());
    let mut etc = Etc::new();
    let config = stall.path().join("fragwatch.toml");
    fs::write(&config, etc.text(&[], OFTEN)).unwrap();
    let daemon = RunningDaemon::start(&config, etc.address);
    etc.address = free_address();
    fs::write(&config, etc.text(&[], OFTEN)).unwrap();
    stall.cold();
    stall.stop();
    daemon.signal(Signal::HUP);
    // It goes on meanwhile, and is asked all the time.
    let began = std::time::Instant::now();
    until("it is given up", || {
        let asked = std::time::Instant::now();
        assert_eq!(daemon.get("/metrics").status, 200);
        assert!(asked.elapsed().as_secs() < 4);
        daemon
            .stderr()
            .contains("reading it takes longer than")
            .then_some(())
    });
    assert!(began.elapsed() < PATIENCE);
    let body = daemon.get("/metrics").body;
    assert!(body.contains("fragwatch_config_reload_success 0"), "{body}");
    // The next one does not wait again, nor does anything pile up.
    daemon.signal(Signal::HUP);
    daemon.wait_for_stderr("does not answer", PATIENCE);
    stall.resume();
    // What was given up is not taken on when it comes at last.
    until("it can be read again", || {
        daemon.signal(Signal::HUP);
        std::thread::sleep(std::time::Duration::from_millis(100));
        daemon
            .stderr()
            .contains("configuration reloaded")
            .then_some(())
    });
    assert_eq!(http_get(etc.address, "/metrics").unwrap().status, 200);
}
