//! What the history keeps when the daemon is killed, started again, or started twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fragwatch::internals::history::{
    ImageInfo, ImageRef, Reader, Record, SampleRow, SeverityRow, Store, Sweep,
};
use fragwatch::internals::model::{Bytes, ExtentCount, Format, Severity, UnixTime};
use rustix::process::Signal;

use crate::support::child::Child;
use crate::support::random::{Random, SEED};
use crate::support::{self, Bed, RunningDaemon, Stall, guest, tools};
use crate::watch::{Etc, OFTEN, PATIENCE, WHEN_ASKED, Watch, until};

/// The database of a daemon that was started with [`Etc::run`].
fn database(etc: &Etc) -> std::path::PathBuf {
    etc.join("history.db")
}

fn image_in(database: &Path, path: &Path) -> ImageInfo {
    let images = Reader::open(database).unwrap().images().unwrap();
    let at_path = images.into_iter().filter(|image| image.path == path);
    let newest = at_path.max_by_key(|image| image.last.map(|last| last.point.at));
    newest.expect("it was recorded")
}

/// Starts it on its configuration and its own state, and waits for its first sweep.
fn begin(etc: Etc) -> Watch {
    let daemon = RunningDaemon::spawn(&mut etc.run(), etc.address);
    let watch = Watch { daemon, etc };
    watch.until("the first sweep", |now| now.swept().is_some());
    watch
}

/// Ends it and starts another on the same state.
fn again(watch: Watch) -> Watch {
    let Watch { mut daemon, etc } = watch;
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(PATIENCE).success(), "{}", daemon.stderr());
    drop(daemon);
    begin(etc)
}

// ---- killed

const LIVES: usize = 100;

/// Every sample that can be read: the counts of each image with their times.
type Samples = BTreeMap<i64, Vec<(i64, u64)>>;

fn samples(database: &Path) -> Samples {
    let Ok(reader) = Reader::open(database) else {
        // Nothing was recorded yet.
        return Samples::new();
    };
    let mut samples = Samples::new();
    let ever = UnixTime(i64::MIN)..=UnixTime(i64::MAX);
    reader
        .each_count(ever, usize::MAX, |image, point| {
            let counts: &mut Vec<_> = samples.entry(image).or_default();
            counts.push((point.at.0, point.extents.0));
        })
        .unwrap();
    samples
}

/// How many they are.
fn recorded(samples: &Samples) -> usize {
    samples.values().map(Vec::len).sum()
}

/// Nothing of what was there is missing.
fn nothing_is_lost(before: &Samples, after: &Samples, life: usize) {
    for (image, counts) in before {
        let now = after.get(image).map(Vec::as_slice).unwrap_or_default();
        assert!(
            now.starts_with(counts),
            "life {life}, image {image}: {counts:?} became {now:?}"
        );
    }
}

#[test]
fn a_hundred_deaths_lose_no_committed_sample() {
    let bed = support::require!(Bed::xfs());
    let images: Vec<_> = (0..5)
        .map(|n| bed.path().join(format!("{n}.raw")))
        .collect();
    for image in &images {
        guest::alternate_blocks(image, 2 * LIVES as u64);
    }
    let etc = Etc::new();
    etc.configure(&[bed.path()], OFTEN);
    let database = database(&etc);
    let mut random = Random::new(SEED);
    let mut known = Samples::new();
    for life in 0..LIVES {
        let mut daemon = Child::spawn(etc.run().stdout(Stdio::null()).stderr(Stdio::null()));
        let daemon = daemon.as_mut().unwrap();
        // Another count in each life.
        guest::discard_block(&images[life % images.len()], 2 * life as u64);
        sleep(Duration::from_millis(100 + random.below(700)));
        let mut now = samples(&database);
        if life % 3 == 0 {
            let more = || Some(samples(&database)).filter(|now| recorded(now) > recorded(&known));
            now = until("a sweep in the history", more);
        }
        nothing_is_lost(&known, &now, life);
        known = now;
        // It may be in the midst of writing, or have waited for us to begin with it.
        sleep(Duration::from_micros(random.below(20_000)));
        daemon.signal(Signal::KILL);
        assert!(daemon.wait(PATIENCE).is_some(), "it dies");
        // Who comes first undoes what was not finished: sometimes we, sometimes the next one.
        if random.below(2) == 0 {
            let now = samples(&database);
            nothing_is_lost(&known, &now, life);
            known = now;
        }
    }
    let sweeps = known.values().map(Vec::len).max().unwrap_or(0);
    assert!(sweeps >= LIVES / 4, "only {sweeps} sweeps were recorded");
    let names = fs::read_dir(etc.join("")).unwrap().flatten();
    let damaged = names.filter(|entry| entry.file_name().to_string_lossy().contains("damaged"));
    assert_eq!(damaged.count(), 0);
    let connection = rusqlite::Connection::open(&database).unwrap();
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}

// ---- started twice

#[test]
fn the_second_daemon_names_the_first_and_does_nothing() {
    let bed = support::require!(Bed::xfs());
    guest::alternate_blocks(&bed.path().join("a.raw"), 10);
    let etc = Etc::new();
    etc.configure(&[bed.path()], OFTEN);
    let first = begin(etc);
    // It would be armed if it came so far, but do nothing.
    let other = Etc::new();
    let text = other.text(&[bed.path()], OFTEN);
    other.write(&text.replace("enabled = false", "dry_run = true"));
    let state = first.etc.join("");
    let second = other
        .run()
        .env("STATE_DIRECTORY", &state)
        .env("RUNTIME_DIRECTORY", &state)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(2), "{second:?}");
    let said = String::from_utf8(second.stderr).unwrap();
    let named = format!("another fragwatch (process {}) uses", first.daemon.pid());
    assert!(said.contains(&named), "{said}");
    assert!(
        !said.contains("armed") && !said.contains("metrics at"),
        "{said}"
    );

    first.sweeps(1);
    let status = first.etc.run_subcommand("status").output().unwrap();
    assert!(status.status.success(), "{status:?}");
    assert!(first.log("damaged").is_empty());
}

/// The lock and the history lie on it: neither the rescue nor the counts wait for them.
#[test]
fn a_state_directory_that_hangs_keeps_it_from_nothing() {
    let mut stall = support::require!(Stall::new());
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 10);
    let state = stall.path();
    let etc = Etc::new();
    etc.configure(&[bed.path()], OFTEN);
    let mut run = etc.run();
    run.env("STATE_DIRECTORY", &state);
    let mut daemon = RunningDaemon::spawn(&mut run, etc.address);
    until("a history", || {
        samples(&state.join("history.db"))
            .first_key_value()
            .map(drop)
    });
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(PATIENCE).success());
    drop(daemon);
    stall.cold();
    stall.stop();

    let stderr = fs::File::create(etc.join("stderr")).unwrap();
    let daemon = Child::spawn(run.stdout(Stdio::null()).stderr(stderr)).unwrap();
    until("its answer", || {
        let answer = support::http_get(etc.address, "/metrics").ok()?;
        let now = crate::scrape::Scrape::of(&answer.body);
        (now.extents(&image) == Some(10.0)).then_some(())
    });
    let said = fs::read_to_string(etc.join("stderr")).unwrap();
    let warning = format!(
        "{} does not answer; there may be a second daemon",
        state.display()
    );
    assert!(said.contains(&warning), "{said}");
    daemon.signal(Signal::KILL);
    stall.resume();
    drop(daemon);
}

// ---- started again

const GROWTH: &str = "fragwatch_image_extents_growth_per_second";

/// A hook that adds a line to a file, and thresholds that the image has reached.
fn thresholds(told: &Path) -> String {
    let script = format!("echo $FRAGWATCH_SEVERITY >>{}", told.display());
    format!(
        "[thresholds]\nhook = [\"/bin/sh\", \"-c\", {script:?}]\ngrowth_window = \"60s\"\n\
         warning = {{ extents = 50, growth_per_day = \"never\", time_to_critical = \"never\" }}\n\
         critical = {{ extents = 1_000_000 }}\n"
    )
}

#[test]
fn what_was_known_is_known_at_once_and_not_told_again() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 300);
    let etc = Etc::new();
    let told = etc.join("told");
    etc.configure(&[bed.path()], &format!("{OFTEN}{}", thresholds(&told)));
    let watch = begin(etc);
    // It loses extents, slowly, so that there is a rate.
    let mut block = 0;
    while watch.scrape().of_image(GROWTH, &image).is_none() {
        guest::discard_block(&image, 2 * block);
        block += 1;
        assert!(block < 250, "its growth does not become known");
        sleep(Duration::from_millis(200));
    }
    let lines = || fs::read_to_string(&told).unwrap_or_default();
    until("the hook", || (lines() == "warning\n").then_some(()));
    let severities = |watch: &Watch| {
        let database = database(&watch.etc);
        Reader::open(&database)
            .unwrap()
            .severities(None, 99)
            .unwrap()
    };
    assert_eq!(severities(&watch).len(), 1);

    let watch = again(watch);
    let first = watch.scrape();
    assert!(first.of_image(GROWTH, &image).is_some(), "{}", first.text);
    assert_eq!(
        first.of_image("fragwatch_image_severity", &image),
        Some(1.0)
    );
    watch.sweeps(2);
    assert_eq!(lines(), "warning\n");
    assert_eq!(severities(&watch).len(), 1);
    assert_eq!(watch.log("warning with"), Vec::<String>::new());
    assert_eq!(watch.log("new image"), Vec::<String>::new());
}

#[test]
fn what_was_recorded_while_the_clock_ran_ahead_is_no_news() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 100);
    let etc = Etc::new();
    let told = etc.join("told");
    etc.configure(&[bed.path()], &format!("{WHEN_ASKED}{}", thresholds(&told)));
    let mut watch = begin(etc);
    let lines = || fs::read_to_string(&told).unwrap_or_default();
    until("the hook", || (lines() == "warning\n").then_some(()));
    watch.daemon.signal(Signal::TERM);
    assert!(watch.daemon.wait(PATIENCE).success());

    let database = database(&watch.etc);
    let known = image_in(&database, &image);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    clock_runs_ahead(&database, &known, now);
    let rows = || {
        Reader::open(&database)
            .unwrap()
            .severities(None, 99)
            .unwrap()
            .len()
    };
    let before = rows();

    let Watch { daemon, etc } = watch;
    drop(daemon);
    let watch = begin(etc);
    let first = watch.scrape();
    assert_eq!(
        first.of_image("fragwatch_image_severity", &image),
        Some(1.0)
    );
    assert_eq!(
        first.of_image(GROWTH, &image),
        None,
        "it is not measured from the future"
    );
    watch.sweep();
    assert_eq!(lines(), "warning\n");
    assert_eq!(rows(), before);
}

/// A month ahead the image was critical; with the clock set right it is a warning again.
fn clock_runs_ahead(database: &Path, image: &ImageInfo, now: i64) {
    let reference = || ImageRef {
        key: image.key.clone(),
        path: image.path.clone(),
    };
    let (mut store, _) = Store::open(database, Duration::from_secs(90 * 86_400), &|| {}).unwrap();
    let severity = |at, from, to| {
        Record::Severity(SeverityRow {
            image: reference(),
            at: UnixTime(at),
            from,
            to,
            extents: ExtentCount(100),
            reason: "a test".to_owned(),
        })
    };
    let ahead = now + 30 * 86_400;
    for minute in 0..20 {
        let sweep = Sweep {
            at: UnixTime(ahead + 60 * minute),
            images: vec![SampleRow {
                image: reference(),
                format: Format::Raw,
                extents: ExtentCount(2_000_000),
                size: Bytes(1),
                allocated: Bytes(1),
            }],
        };
        store.write(&Record::Sweep(sweep)).unwrap();
    }
    store
        .write(&severity(ahead, Severity::Warning, Severity::Critical))
        .unwrap();
    store
        .write(&severity(now, Severity::Critical, Severity::Warning))
        .unwrap();
}

// ---- a clock that is set

/// The library that lets a program see another time, which can be set while it runs.
fn faketime() -> support::Here<PathBuf> {
    let lib = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
    ];
    let paths = lib.map(|lib| Path::new(lib).join("faketime/libfaketimeMT.so.1"));
    let found = paths.into_iter().find(|path| path.exists());
    found.ok_or_else(|| support::skip::NotHere::because("libfaketime is not installed"))
}

#[test]
fn sweeps_and_severities_have_one_clock() {
    let library = support::require!(faketime());
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 100);
    let etc = Etc::new();
    etc.configure(
        &[bed.path()],
        &format!("{WHEN_ASKED}{}", thresholds(&etc.join("told"))),
    );
    let clock = etc.join("clock");
    fs::write(&clock, "+0d\n").unwrap();
    let mut run = etc.run();
    run.env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let daemon = RunningDaemon::spawn(&mut run, etc.address);
    let mut watch = Watch { daemon, etc };
    watch.until("the first sweep", |now| now.swept().is_some());
    fs::write(&clock, "+10d\n").unwrap();
    (0..70).for_each(|n| guest::discard_block(&image, 2 * n));
    watch.sweep();
    watch.daemon.signal(Signal::TERM);
    assert!(watch.daemon.wait(PATIENCE).success());
    let database = database(&watch.etc);
    let last = image_in(&database, &image).last.unwrap().point;
    assert_eq!(last.extents.0, 30);
    let severities = Reader::open(&database)
        .unwrap()
        .severities(None, 9)
        .unwrap();
    assert_eq!(severities.len(), 2);
    let apart = severities[0].at.0.abs_diff(last.at.0);
    assert!(apart < 600, "{apart} s apart");
}

// ---- btrfs

#[test]
fn a_snapshot_has_a_past_of_its_own() {
    let bed = support::require!(Bed::btrfs());
    let btrfs = support::require!(tools::have("btrfs"));
    let subvolume = |arguments: &[&Path], what| {
        let mut command = Command::new(&btrfs);
        command
            .args(["subvolume", what])
            .args(arguments)
            .stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{command:?}");
    };
    let [original, snapshot] = ["vms", "before"].map(|name| bed.path().join(name));
    subvolume(&[&original], "create");
    let images = [&original, &snapshot].map(|directory| directory.join("a.raw"));
    guest::random_direct_writes(&images[0], 16 << 20, 20);
    subvolume(&[&original, &snapshot], "snapshot");
    guest::discard_holes(&images[1], 7);

    let etc = Etc::new();
    etc.configure(&[&original, &snapshot], WHEN_ASKED);
    let watch = begin(etc);
    let now = watch.scrape();
    let counts = [&images[0], &images[1]].map(|image| now.extents(image).unwrap());
    let database = database(&watch.etc);
    let recorded = || {
        let both = Reader::open(&database).ok()?.images().ok()?;
        (both.len() == 2).then_some(both)
    };
    let keys = until("both in the history", recorded);
    assert_eq!(keys[0].key.inode, keys[1].key.inode);
    assert_eq!(keys[0].key.generation, keys[1].key.generation);
    assert_ne!(keys[0].key.filesystem, keys[1].key.filesystem);
    for (image, count) in images.iter().zip(counts) {
        let last = image_in(&database, image).last.unwrap();
        assert_eq!(last.point.extents.0 as f64, count);
    }

    // With the next mount they are still who they were.
    let mut watch = watch;
    watch.daemon.signal(Signal::TERM);
    watch.daemon.wait(PATIENCE);
    let mut bed = bed;
    bed.cold();
    let Watch { daemon, etc } = watch;
    drop(daemon);
    let watch = begin(etc);
    assert_eq!(watch.sweep().named("fragwatch_image_extents").count(), 2);
    assert_eq!(
        recorded().map(|both| [both[0].id, both[1].id]),
        Some([keys[0].id, keys[1].id])
    );
}

// ---- what was under way

#[test]
fn a_run_is_noted_until_the_history_has_it() {
    let bed = support::require!(Bed::xfs());
    let etc = Etc::new();
    etc.configure(&[bed.path()], OFTEN);
    let mut watch = begin(etc);
    let database = database(&watch.etc);
    until("a history", || Reader::open(&database).ok());
    watch.daemon.signal(Signal::KILL);
    watch.daemon.wait(PATIENCE);
    let note = watch.etc.join("running-131-7.json");
    // Within the retention.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let text = serde_json::json!({
        "filesystem": "u", "inode": 131, "generation": 7, "path": "/srv/a.raw",
        "engine": "online", "extents": 9, "began": now.as_secs() - 60,
    });
    let text = text.to_string();
    let runs = || Reader::open(&database).unwrap().runs(None, 9).unwrap();
    let start = |etc: &Etc| RunningDaemon::spawn(&mut etc.run(), etc.address);

    // Somebody else writes to the database, and the daemon is killed meanwhile.
    let other = rusqlite::Connection::open(&database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    fs::write(&note, &text).unwrap();
    watch.daemon = start(&watch.etc);
    watch
        .daemon
        .wait_for_stderr("a run by online was cut off", PATIENCE);
    sleep(Duration::from_millis(500));
    assert!(note.exists());
    watch.daemon.signal(Signal::KILL);
    watch.daemon.wait(PATIENCE);
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    assert_eq!(runs(), []);

    let gone = || (!note.exists()).then_some(());
    watch.daemon = start(&watch.etc);
    until("the note goes", gone);
    assert_eq!(runs().len(), 1);
    assert_eq!(runs()[0].outcome.as_str(), "interrupted");

    // Killed between the two, it finds the note again, and the row too.
    watch.daemon.signal(Signal::KILL);
    watch.daemon.wait(PATIENCE);
    fs::write(&note, &text).unwrap();
    watch.daemon = start(&watch.etc);
    until("the note goes", gone);
    watch.daemon.signal(Signal::TERM);
    assert!(watch.daemon.wait(PATIENCE).success());
    assert_eq!(runs().len(), 1);
}
