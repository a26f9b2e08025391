//! What the daemon defragments by itself, when, and when it stops.

use std::fs;
use std::path::Path;

use fragwatch::internals::history::Reader;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{self, Bed, MIB, Writer, guest};
use crate::watch::{PATIENCE, Watch, until};

/// Always open, and images of few extents are bad.
pub const ALWAYS: &str = r#"
[sampling]
interval = "1s"
probe_timeout = "1s"
map_interval = "never"
[thresholds]
warning = { extents = 1000, growth_per_day = "never", time_to_critical = "never" }
critical = { extents = 10000000 }
[defrag]
max_io_pressure = 100
[[maintenance.window]]
days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
start = "00:00"
duration = "24h"
"#;

pub fn checksum(path: &Path) -> u64 {
    // FNV-1a: what matters is that it is another one for other content.
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    fs::read(path)
        .unwrap()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, fold)
}

pub fn runs(watch: &Watch) -> Vec<fragwatch::internals::model::RunRecord> {
    let database = watch.daemon.directory().join("history.db");
    Reader::open(&database)
        .and_then(|reader| reader.runs(None, 100))
        .unwrap_or_default()
}

#[test]
fn an_image_that_is_bad_is_made_good_by_itself() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    // Every block of it: no engine fills holes.
    guest::random_direct_writes(&image, 16 * MIB, 4096);
    bed.sync();
    let before = checksum(&image);
    let watch = Watch::start(&[bed.path()], ALWAYS);
    let metric = |now: &crate::scrape::Scrape, name: &str| now.value(name, &[]);
    let now = watch.until("a defragmentation", |now| {
        now.value("fragwatch_defrag_extents_removed_total", &[]) > Some(0.0)
    });
    assert_eq!(metric(&now, "fragwatch_maintenance_window_open"), Some(1.0));
    let improved = now
        .named("fragwatch_defrag_runs_total")
        .filter(|one| one.label("outcome") == Some("improved"))
        .map(|one| (one.label("engine").unwrap().to_owned(), one.value))
        .filter(|(_, value)| *value > 0.0);
    assert_eq!(improved.collect::<Vec<_>>(), [("xfs_fsr".to_owned(), 1.0)]);
    assert_eq!(checksum(&image), before);
    let ok =
        |now: &crate::scrape::Scrape| now.of_image("fragwatch_image_severity", &image) == Some(0.0);
    watch.until("it is ok again", ok);

    let run = until("its row in the history", || runs(&watch).pop());
    assert_eq!(
        (run.engine.as_str(), run.outcome.as_str()),
        ("xfs_fsr", "improved")
    );
    assert!(run.from.0 > 1000 && run.to.0 < 100, "{run:?}");
    let left = fs::read_dir(watch.daemon.directory()).unwrap().flatten();
    let noted = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("running-"));
    assert_eq!(noted.count(), 0);

    assert_eq!(why_not(&watch, &image), "below_severity");

    // A guest writes it anew, and it cools down.
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(0).unwrap();
    file.set_len(64 * MIB).unwrap();
    let writer = Writer::start(&image, None);
    until("many writes", || (writer.count() > 8000).then_some(()));
    writer.stop().verify();
    let bad = |now: &crate::scrape::Scrape| now.extents(&image) > Some(1000.0);
    watch.until("it is bad again", bad);
    assert_eq!(why_not(&watch, &image), "cooling_down");
    assert_eq!(runs(&watch).len(), 1);
}

/// What the plan says of an image: why it does not run, or `runs`.
pub fn why_not(watch: &Watch, image: &Path) -> String {
    let planned = planned(watch, image);
    let code = planned["why_not"]["code"].as_str();
    code.unwrap_or("runs").to_owned()
}

/// What the plan says of an image.
pub fn planned(watch: &Watch, image: &Path) -> Value {
    let mut plan = watch.daemon.ask("plan");
    plan.arg("--json");
    let plan = plan.output().unwrap();
    let plan: Value =
        serde_json::from_slice(&plan.stdout).unwrap_or_else(|e| panic!("{e}: {plan:?}"));
    assert_eq!(plan["judged_by"], "daemon", "{plan}");
    let images = plan["images"].as_array().unwrap();
    let is_it = |planned: &&Value| planned["path"] == image.to_str().unwrap();
    let planned = images.iter().find(is_it);
    planned.unwrap_or_else(|| panic!("{plan}")).clone()
}

#[test]
fn while_it_is_paused_nothing_runs_and_a_restart_does_not_forget_it() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 64 * MIB, 6000);
    bed.sync();
    let etc = crate::watch::Etc::new();
    etc.configure(&[bed.path()], ALWAYS);
    fs::write(etc.join("paused"), "").unwrap();
    let mut command = etc.run();
    let daemon = support::RunningDaemon::spawn(&mut command, etc.address);
    let watch = Watch { daemon, etc };
    watch.sweeps(8);
    let now = watch.scrape();
    assert_eq!(
        now.value("fragwatch_maintenance_window_open", &[]),
        Some(1.0)
    );
    assert_eq!(
        now.value("fragwatch_defrag_extents_removed_total", &[]),
        Some(0.0)
    );
    let ask = |subcommand: &str| {
        let mut command = support::fragwatch();
        command
            .arg(subcommand)
            .env("RUNTIME_DIRECTORY", watch.etc.join(""));
        command.output().unwrap()
    };
    let status = String::from_utf8(ask("status").stdout).unwrap();
    assert!(status.contains("Defragmentation is paused"), "{status}");
    let resumed = ask("resume");
    assert!(resumed.status.success(), "{resumed:?}");
    assert!(!watch.etc.join("paused").exists());
    let told = "defragmentation is resumed by user 0";
    watch.daemon.wait_for_stderr(told, PATIENCE);
    watch.until("a defragmentation", |now| {
        now.value("fragwatch_defrag_extents_removed_total", &[]) > Some(0.0)
    });
    assert!(ask("pause").status.success());
    assert!(watch.etc.join("paused").exists());
}

#[test]
fn the_end_of_the_daemon_is_the_end_of_its_runs() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 256 * MIB, 8000);
    bed.sync();
    let before = checksum(&image);
    // So slow that it is still at work.
    let slow = ALWAYS.replace("[defrag]\n", "[defrag]\nbandwidth = \"1MiB/s\"\n");
    let mut watch = Watch::start(&[bed.path()], &slow);
    watch.until("a run", |now| {
        now.value("fragwatch_defrag_active", &[]) == Some(1.0)
    });
    let children = || crate::watch::children(watch.daemon.pid()).len();
    until("its process", || (children() >= 2).then_some(()));
    assert_eq!(why_not(&watch, &image), "running_now");
    let status = watch.daemon.ask("status").output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    let told = format!("Defragmenting {} by xfs_fsr for ", image.display());
    assert!(status.contains(&told), "{status}");
    watch.daemon.signal(Signal::TERM);
    let status = watch.daemon.wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(checksum(&image), before);
    let run = runs(&watch).pop().expect("a row");
    assert_eq!(run.outcome.as_str(), "stopped", "{run:?}");
    assert_eq!(run.reason, "fragwatch was ended");
}

#[test]
fn a_run_that_was_cut_off_is_known_as_such() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 256 * MIB, 8000);
    bed.sync();
    let before = checksum(&image);
    let slow = ALWAYS.replace("[defrag]\n", "[defrag]\nbandwidth = \"1MiB/s\"\n");
    let etc = crate::watch::Etc::new();
    etc.configure(&[bed.path()], &slow);
    let daemon = support::RunningDaemon::spawn(&mut etc.run(), etc.address);
    let mut watch = Watch { daemon, etc };
    watch.until("a run", |now| {
        now.value("fragwatch_defrag_active", &[]) == Some(1.0)
    });
    until("its process", || {
        (crate::watch::children(watch.daemon.pid()).len() >= 2).then_some(())
    });
    watch.daemon.signal(Signal::KILL);
    watch.daemon.wait(PATIENCE);
    fs::write(watch.etc.join("paused"), "").unwrap();
    watch.daemon = support::RunningDaemon::spawn(&mut watch.etc.run(), watch.etc.address);
    let database = watch.etc.join("history.db");
    let run = until("its row in the history", || {
        let reader = Reader::open(&database).ok()?;
        reader.runs(None, 10).ok()?.pop()
    });
    assert_eq!(run.outcome.as_str(), "interrupted", "{run:?}");
    assert_eq!(checksum(&image), before);
    let left = fs::read_dir(bed.path()).unwrap().flatten().count();
    assert!(left <= 2, "the image, and at most what xfs_fsr had begun");
}

/// [`ALWAYS`], and these commands before and after each run.
fn with_hooks(before: &str, after: &str) -> String {
    let hooks = format!(
        "[defrag]\nhook_before = [\"/bin/sh\", \"-c\", {before:?}]\n\
         hook_after = [\"/bin/sh\", \"-c\", {after:?}]\n"
    );
    ALWAYS.replace("[defrag]\n", &hooks)
}

#[test]
fn hooks_free_an_image_and_are_told_what_came_of_it() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 16 * MIB, 4096);
    bed.sync();
    let before = checksum(&image);
    let mut holder = std::process::Command::new("sleep");
    holder.arg("600").stdin(fs::File::open(&image).unwrap());
    let mut child = support::child::Child::spawn(&mut holder).unwrap();
    // It has the image open as well.
    drop(holder);
    let told = bed.path().parent().unwrap().join("told");
    let told = told.to_str().unwrap();
    let config = with_hooks(
        &format!(
            "echo $FRAGWATCH_EVENT $FRAGWATCH_IMAGE >> {told}; kill {}",
            child.id()
        ),
        &format!("echo $FRAGWATCH_EVENT $FRAGWATCH_OUTCOME >> {told}"),
    );
    let watch = Watch::start(&[bed.path()], &config);
    let run = until("its row in the history", || runs(&watch).pop());
    // xfs_fsr cannot do that while somebody has it open.
    assert_eq!(
        (run.engine.as_str(), run.outcome.as_str()),
        ("xfs_fsr", "improved"),
        "{run:?}"
    );
    let lines = until("the second hook", || {
        let text = fs::read_to_string(told).ok()?;
        (text.lines().count() == 2).then_some(text)
    });
    let expected = format!("defrag-before {}\ndefrag-after improved\n", image.display());
    assert_eq!(lines, expected);
    assert!(child.wait(PATIENCE).is_some());
    assert_eq!(checksum(&image), before);
}

#[test]
fn a_hook_that_fails_puts_the_run_off() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 16 * MIB, 4096);
    bed.sync();
    let extents = support::tools::xfs_io_stat_nextents(&image);
    let told = bed.path().parent().unwrap().join("told");
    // By a rename, so that it is never seen half written.
    let after = format!(
        "echo $FRAGWATCH_ENDING $FRAGWATCH_OUTCOME > {0}.new && mv {0}.new {0}",
        told.display()
    );
    let watch = Watch::start(&[bed.path()], &with_hooks("exit 3", &after));
    let run = until("its row in the history", || runs(&watch).pop());
    assert_eq!(run.outcome.as_str(), "refused", "{run:?}");
    assert!(run.reason.contains("defrag.hook_before"), "{run:?}");
    until("that the plan knows", || {
        (why_not(&watch, &image) == "put_off").then_some(())
    });
    assert_eq!(runs(&watch).len(), 1);
    assert_eq!(support::tools::xfs_io_stat_nextents(&image), extents);
    let told = until("the hook after it", || fs::read_to_string(&told).ok());
    assert_eq!(told, "hook_before_failed refused\n");
}
