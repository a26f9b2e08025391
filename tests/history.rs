//! The history on real file systems: killed, cut off from its power, damaged, full, stalled.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "clippy knows the tests, but not what they call, and all numbers here are small"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fragwatch::internals::config::settings;
use fragwatch::internals::history::{
    Health, ImageRef, IncidentRow, Reader, Record, Recorder, SampleRow, Store, Sweep, open,
};
use fragwatch::internals::history::{LockError, lock};
use fragwatch::internals::model::{Bytes, ExtentCount, Format, ImageKey, Stalls, UnixTime};
use rusqlite::Connection;
use rustix::process::Signal;
use support::bed::Plan;
use support::child::Child;
use support::random::Random;
use support::rundir::{self, Place};
use support::{MIB, Stall, tools};

support::stall_server!();

const EVER: UnixTime = UnixTime(i64::MIN);
const RETENTION: Duration = Duration::from_secs(90 * 86_400);
/// A Monday at midnight.
const MONDAY: i64 = 1_794_787_200;
/// What tests wait for comes, or they fail.
const PATIENCE: Duration = Duration::from_secs(60);

fn key(inode: u64) -> ImageKey {
    ImageKey {
        filesystem: "3b8a4c62-92f2-4b3a-8a0e-3f1f5a3f8a11".to_owned(),
        inode,
        generation: 0,
    }
}

fn sample(inode: u64, extents: u64) -> SampleRow {
    let path = PathBuf::from(format!("/var/lib/libvirt/images/{inode}.qcow2"));
    SampleRow {
        image: ImageRef {
            key: key(inode),
            path,
        },
        format: Format::Qcow2,
        extents: ExtentCount(extents),
        size: Bytes(10 << 30),
        allocated: Bytes(extents * 65_536),
    }
}

/// The `n`th sweep, in which each of `images` images has `n` extents. One a minute.
fn sweep(n: u64, images: u64) -> Record {
    sweep_at(MONDAY + n as i64 * 60, n, images)
}

fn sweep_at(at: i64, n: u64, images: u64) -> Record {
    let at = UnixTime(at);
    Record::Sweep(Sweep {
        at,
        images: (1..=images).map(|inode| sample(inode, n)).collect(),
    })
}

fn settings(path: &Path) -> settings::History {
    settings::History {
        path: path.to_owned(),
        retention: RETENTION,
    }
}

fn start(path: &Path) -> Recorder {
    open(&settings(path)).unwrap()
}

fn wait_for(recorder: &Recorder, what: &str, is: impl Fn(&Health) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is(&recorder.health()) {
        assert!(Instant::now() < deadline, "{what}: {:?}", recorder.health());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn record(store: &mut Store, record: &Record) {
    store.write(record).unwrap();
    store.upkeep().unwrap();
}

/// The counts of an image, in the order of time.
fn counts(path: &Path, inode: u64) -> Vec<u64> {
    let reader = Reader::open(path).unwrap();
    let images = reader.images().unwrap();
    let Some(image) = images.iter().find(|image| image.key == key(inode)) else {
        return Vec::new();
    };
    let readings = reader.readings(image.id, EVER, usize::MAX).unwrap();
    readings.iter().map(|reading| reading.extents.0).collect()
}

fn integrity(path: &Path) -> String {
    let connection = Connection::open(path).unwrap();
    connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// The files in the directory of a database, without it and what SQLite has beside it.
fn moved_aside(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("history.db.damaged-"))
        .filter(|name| {
            !["-journal", "-wal", "-shm"]
                .iter()
                .any(|end| name.ends_with(end))
        })
        .collect();
    names.sort();
    names
}

const WRITER_PATH: &str = "FRAGWATCH_HISTORY_WRITER";

/// Writes sweeps one after another, three an hour, from where the database ends, and prints the
/// number of each once it is written.
#[test]
#[ignore = "not a test: the process that a_hundred_deaths kills"]
fn history_writer() {
    let Some(path) = std::env::var_os(WRITER_PATH).map(PathBuf::from) else {
        return;
    };
    let recorder = start(&path);
    wait_for(&recorder, "it opens", |health| health.healthy);
    let first = counts(&path, 1).last().map_or(0, |n| n + 1);
    let mut out = std::io::stdout();
    for n in first.. {
        assert!(recorder.record(sweep_at(MONDAY + n as i64 * 1200, n, 20)));
        wait_for(&recorder, "it writes", |health| health.written > n - first);
        // Whole, or the reader leaves it out.
        writeln!(out, "written {n}").unwrap();
    }
}

#[test]
fn a_hundred_deaths_lose_no_committed_sample() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let path = directory.join("history.db");
    let mut random = Random::new(support::random::SEED);
    let mut committed = None;
    for death in 0..100 {
        let mut writer = Child::spawn(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "history_writer", "--ignored", "--nocapture"])
                .env(WRITER_PATH, &path)
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        )
        .unwrap();
        let out = writer.pipes().stdout.take().unwrap();
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        let mut written = lines.filter_map(|line| line.strip_prefix("written ")?.parse().ok());
        // Now and then it is killed while it opens; mostly it has written something.
        let least = if death % 10 == 0 {
            0
        } else {
            random.below(50) + 1
        };
        committed = written.by_ref().take(least as usize).last().max(committed);
        std::thread::sleep(Duration::from_micros(random.below(8000)));
        writer.signal(Signal::KILL);
        committed = written.last().max(committed);
        assert!(!writer.end().success());
        if committed.is_none() {
            continue;
        }
        assert_eq!(moved_aside(&path), [""; 0]);
        let newest = counts(&path, 1).last().copied();
        assert!(
            newest >= committed,
            "death {death}: {newest:?} of {committed:?}"
        );
    }
    // Days enough that many were thinned, too.
    assert!(committed > Some(20 * 72), "{committed:?}");
    for inode in [1, 20] {
        let counts = counts(&path, inode);
        let newest = *counts.last().unwrap();
        // Every sample of 48 hours is there, once.
        let full: Vec<u64> = (newest - 2 * 72..=newest).collect();
        assert_eq!(counts[counts.len() - full.len()..], full);
    }
    assert_eq!(integrity(&path), "ok");
    rundir::remove(&directory);
}

/// What the last program with schema 1 wrote.
const SCHEMA_1: &str = include_str!("data/history-1-written.sql");

/// The schema of a database, its number of samples, and of those of the last two days the number and
/// the sum of their counts. Undoes what a dead process has begun.
fn upgraded(path: &Path) -> (i64, i64, (i64, i64)) {
    let connection = Connection::open(path).unwrap();
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get(0)).unwrap();
    let recent = "SELECT count(*), sum(extents) FROM samples
        WHERE at >= (SELECT max(at) FROM samples) - 48 * 3600";
    let recent = connection.query_row(recent, [], |row| Ok((row.get(0)?, row.get(1)?)));
    (
        number("PRAGMA user_version"),
        number("SELECT count(*) FROM samples"),
        recent.unwrap(),
    )
}

fn make_schema_1(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(SCHEMA_1).unwrap();
}

#[test]
#[ignore = "not a test: the process that an_upgrade_survives_death kills"]
fn history_upgrader() {
    if let Some(path) = std::env::var_os(WRITER_PATH).map(PathBuf::from) {
        println!("opening");
        let (_store, aside) = Store::open(&path, RETENTION, &|| {}).unwrap();
        assert_eq!(aside, None);
    }
}

#[test]
fn an_upgrade_survives_death() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let path = directory.join("history.db");
    make_schema_1(&path);
    let original = fs::read(&path).unwrap();
    let before = upgraded(&path);
    assert_eq!(before.0, 1);
    // How long it takes here and now, if nothing comes between.
    let took = (0..3).map(|_| {
        fs::write(&path, &original).unwrap();
        let began = Instant::now();
        drop(Store::open(&path, RETENTION, &|| {}).unwrap());
        began.elapsed()
    });
    let took = took.min().unwrap();
    let after = upgraded(&path);
    assert_eq!((after.0, after.2), (3, before.2));
    assert!(after.1 < before.1);
    let mut random = Random::new(support::random::SEED);
    let mut undone = 0;
    for death in 0..40 {
        fs::write(&path, &original).unwrap();
        let mut upgrader = Child::spawn(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "history_upgrader", "--ignored", "--nocapture"])
                .env(WRITER_PATH, &path)
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        )
        .unwrap();
        let out = upgrader.pipes().stdout.take().unwrap();
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "opening"));
        std::thread::sleep(took.mul_f64(random.below(100) as f64 / 100.0));
        upgrader.signal(Signal::KILL);
        upgrader.end();
        let found = upgraded(&path);
        assert!(found == before || found == after, "{death}: {found:?}");
        undone += u32::from(found == before);
        let (store, aside) = Store::open(&path, RETENTION, &|| {}).unwrap();
        assert_eq!(aside, None);
        drop(store);
        assert_eq!(upgraded(&path), after);
        assert_eq!(integrity(&path), "ok");
    }
    assert!(undone > 0);
    rundir::remove(&directory);
}

#[test]
fn an_upgrade_without_room_changes_nothing() {
    let bed = support::require!(Plan::of("ext4").mkfs(&["-F"]).size(16 * MIB).make());
    let path = bed.path().join("history.db");
    make_schema_1(&path);
    let before = upgraded(&path);
    let filler = bed.path().join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[7; 1024]).is_ok() {}
    drop(file);
    let error = Store::open(&path, RETENTION, &|| {}).unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
    assert_eq!(upgraded(&path), before);
    assert_eq!(moved_aside(&path), [""; 0]);
    fs::remove_file(filler).unwrap();
    // ext4 gives freed blocks out again once their removal is in its journal.
    bed.sync();
    drop(Store::open(&path, RETENTION, &|| {}).unwrap());
    assert_eq!((upgraded(&path).0, upgraded(&path).2), (3, before.2));
}

/// The columns of schema 2, in which 0.1.0 wrote.
const COLUMNS_2: [(&str, &str); 8] = [
    ("images", "*"),
    ("samples", "*"),
    ("maps", "*"),
    ("severities", "*"),
    ("incidents", "*"),
    ("meta", "*"),
    ("sweeps", "*"),
    (
        "runs",
        "id, image, at, seconds, engine, extents_before, extents_after, bytes, outcome, reason",
    ),
];

/// All rows of those columns, as text.
fn rows_of_schema_2(path: &Path) -> Vec<Vec<String>> {
    let connection = Connection::open(path).unwrap();
    let rows = COLUMNS_2.map(|(table, columns)| {
        let select = format!("SELECT {columns} FROM {table}");
        let mut select = connection.prepare(&select).unwrap();
        let columns = select.column_count();
        let rows = select.query_map([], |row| {
            let values = (0..columns).map(|n| row.get_ref(n).map(|value| format!("{value:?} ")));
            values.collect::<rusqlite::Result<String>>()
        });
        rows.unwrap().map(Result::unwrap).collect()
    });
    rows.to_vec()
}

#[test]
fn what_0_1_0_recorded_is_all_there_after_the_upgrade() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let state = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/0.1.0/state.tar.xz");
    support::require!(tools::have("xz"));
    let mut tar = Command::new(support::require!(tools::have("tar")));
    let tar = tar.args(["--no-same-owner", "-xJf", state, "-C"]);
    support::require!(tools::run(tar.arg(&directory)));
    let path = directory.join("fragwatch/history.db");
    let before = rows_of_schema_2(&path);
    assert!(before.iter().all(|rows| !rows.is_empty()));
    assert_eq!(upgraded(&path).0, 2);

    let (mut store, aside) = Store::open(&path, RETENTION, &|| {}).unwrap();
    assert_eq!(aside, None);
    assert_eq!(rows_of_schema_2(&path), before);
    assert_eq!(upgraded(&path).0, 3);
    let runs = Reader::open(&path).unwrap().runs(None, 9).unwrap();
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run.stalls.is_none()), "{runs:?}");

    // And the next run is recorded beside them.
    let stalls = Stalls {
        calls: 4,
        longest: Duration::from_millis(9),
        total: Duration::from_millis(30),
    };
    let mut next = runs[0].clone();
    (next.at.0, next.stalls) = (next.at.0 + 60, Some(stalls));
    record(&mut store, &Record::Run(next.clone()));
    let found = Reader::open(&path).unwrap().runs(None, 9).unwrap();
    assert_eq!(found, [vec![next], runs].concat());
    assert_eq!(integrity(&path), "ok");
    rundir::remove(&directory);
}

/// What a power cut can leave of a file that was being changed from `before` to `after`: of each
/// sector the one or the other, and an end anywhere between the two.
fn torn(before: &[u8], after: &[u8], random: &mut Random) -> Vec<u8> {
    const SECTOR: usize = 512;
    let (short, long) = (before.len().min(after.len()), before.len().max(after.len()));
    let end = short + random.below((long - short) as u64 + 1) as usize;
    let share = random.below(5);
    let mut torn = Vec::with_capacity(end);
    while torn.len() < end {
        let range = torn.len()..end.min(torn.len() + SECTOR);
        let source = if random.below(4) < share {
            after
        } else {
            before
        };
        // What the file system has room for but was never written, reads as zeros.
        let of = |at: usize| source.get(at).copied().unwrap_or(0);
        torn.extend(range.map(of));
    }
    torn
}

/// The rollback journal with which SQLite changes a database from `before` to `after`
/// (sqlite.org/fileformat2.html, "The Rollback Journal"): the pages as they were.
fn journal(before: &[u8], after: &[u8], random: &mut Random) -> Vec<u8> {
    let pages = || before.chunks(PAGE).zip(1_u32..);
    let changed = |(page, number): &(&[u8], u32)| {
        let at = (*number as usize - 1) * PAGE;
        after.get(at..at + PAGE) != Some(*page)
    };
    let records = pages().filter(changed).count() as u32;
    let nonce = random.next() as u32;
    let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    for number in [
        records,
        nonce,
        (before.len() / PAGE) as u32,
        512,
        PAGE as u32,
    ] {
        journal.extend(number.to_be_bytes());
    }
    journal.resize(512, 0);
    for (page, number) in pages().filter(changed) {
        let sampled = (1..PAGE).rev().filter(|at| (PAGE - at).is_multiple_of(200));
        let sum = sampled.fold(nonce, |sum, at| sum.wrapping_add(u32::from(page[at])));
        journal.extend(number.to_be_bytes());
        journal.extend(page);
        journal.extend(sum.to_be_bytes());
    }
    journal
}

const PAGE: usize = 4096;
const CUT_IMAGES: u64 = 100;

/// A database as a power cut left it, with the journal beside it, holds all sweeps up to `newest`,
/// and goes on.
fn check_cut(directory: &Path, db: &[u8], journal: &[u8], newest: u64) {
    let cut = directory.join("cut");
    fs::create_dir(&cut).unwrap();
    let copy = cut.join("history.db");
    fs::write(&copy, db).unwrap();
    fs::write(with_suffix(&copy, "-journal"), journal).unwrap();
    let (mut store, aside) = Store::open(&copy, RETENTION, &|| {}).unwrap();
    assert_eq!(aside, None, "sweep {newest}");
    assert_eq!(integrity(&copy), "ok", "sweep {newest}");
    assert_eq!(counts(&copy, CUT_IMAGES), (0..=newest).collect::<Vec<_>>());
    record(&mut store, &sweep(newest + 1, CUT_IMAGES));
    drop(store);
    fs::remove_dir_all(&cut).unwrap();
}

#[test]
fn a_power_cut_leaves_it_whole() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let path = directory.join("history.db");
    let (mut store, _) = Store::open(&path, RETENTION, &|| {}).unwrap();
    let mut random = Random::new(support::random::SEED);
    let mut cuts = 0;
    for n in 0..400 {
        let before = fs::read(&path).unwrap();
        store.write(&sweep(n, CUT_IMAGES)).unwrap();
        let after = fs::read(&path).unwrap();
        if n > 0 && random.below(6) == 0 {
            let journal = journal(&before, &after, &mut random);
            // First the journal is written, then the database, then the journal emptied; each is
            // on the disk before the next begins.
            check_cut(
                &directory,
                &before,
                &torn(&[], &journal, &mut random),
                n - 1,
            );
            check_cut(
                &directory,
                &torn(&before, &after, &mut random),
                &journal,
                n - 1,
            );
            check_cut(&directory, &after, &[], n);
            cuts += 1;
        }
        // Upkeep is cut as well.
        let before = after;
        store.upkeep().unwrap();
        let after = fs::read(&path).unwrap();
        if n % 60 == 0 && before != after {
            let journal = journal(&before, &after, &mut random);
            for _ in 0..5 {
                check_cut(&directory, &torn(&before, &after, &mut random), &journal, n);
            }
            cuts += 1;
        }
    }
    assert!(cuts > 50, "{cuts}");
    rundir::remove(&directory);
}

/// Makes a database with some history and closes it.
fn fill(path: &Path) {
    let (mut store, _) = Store::open(path, RETENTION, &|| {}).unwrap();
    (0..300).for_each(|n| record(&mut store, &sweep(n, 50)));
}

/// Damages a database, and says whether it is to be moved aside.
type Damage = (&'static str, fn(&Path), bool);

const DAMAGES: [Damage; 8] = [
    (
        "text",
        |path| fs::write(path, "this is no database\n".repeat(500)).unwrap(),
        true,
    ),
    ("short text", |path| fs::write(path, "none").unwrap(), true),
    ("empty", |path| fs::write(path, "").unwrap(), false),
    (
        "zeros in the middle",
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            let middle = file.metadata().unwrap().len() / 8192 * 4096;
            file.write_all_at(&[0; 3 * 4096], middle).unwrap();
        },
        true,
    ),
    (
        "zeros all over",
        |path| {
            let length = fs::metadata(path).unwrap().len();
            fs::write(path, vec![0; length as usize]).unwrap();
        },
        true,
    ),
    (
        "noise in the schema",
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[0xa5; 2000], 100).unwrap();
        },
        true,
    ),
    (
        "truncated",
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2 + 77)
                .unwrap();
        },
        true,
    ),
    (
        "cut to its first page",
        |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(4096)
                .unwrap();
        },
        true,
    ),
];

#[test]
fn a_damaged_file_is_moved_aside_and_a_new_one_begun() {
    for (name, damage, moved) in DAMAGES {
        let directory = rundir::new_dir(Place::quick()).unwrap();
        let path = directory.join("history.db");
        fill(&path);
        damage(&path);
        let damaged = fs::read(&path).unwrap();
        let recorder = start(&path);
        assert!(recorder.record(sweep(7, 3)));
        wait_for(&recorder, name, |health| {
            health.written == 1 && health.healthy
        });
        let health = recorder.health();
        assert_eq!(
            (health.moved_aside, health.lost),
            (u64::from(moved), 0),
            "{name}"
        );
        assert!(recorder.stop(PATIENCE));
        assert_eq!(counts(&path, 3), [7], "{name}");
        let aside = moved_aside(&path);
        assert_eq!(aside.len(), usize::from(moved), "{name}: {aside:?}");
        for aside in aside {
            assert_eq!(fs::read(directory.join(aside)).unwrap(), damaged, "{name}");
        }
        rundir::remove(&directory);
    }
}

#[test]
fn damage_that_comes_while_it_runs_is_met_and_moved_aside() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let path = directory.join("history.db");
    fill(&path);
    let recorder = start(&path);
    wait_for(&recorder, "it opens", |health| health.healthy);
    // Behind the back of SQLite, all but the first page.
    let file = File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len() - 4096;
    file.write_all_at(&vec![0xa5; length as usize], 4096)
        .unwrap();
    // Not closed before the end: that would give up the locks of the whole process.
    for n in 300..420 {
        assert!(recorder.record(sweep(n, 50)));
        wait_for(&recorder, "it goes on", |health| health.waiting == 0);
    }
    let health = recorder.health();
    assert!(health.moved_aside == 1 && health.healthy, "{health:?}");
    assert_eq!(
        (health.written + health.lost, moved_aside(&path).len()),
        (120, 1)
    );
    assert!(health.lost <= 1, "{health:?}");
    assert!(recorder.stop(PATIENCE));
    assert_eq!(counts(&path, 50).last(), Some(&419));
    assert_eq!(integrity(&path), "ok");
    drop(file);
    rundir::remove(&directory);
}

#[test]
fn what_is_no_file_of_ours_is_left_alone() {
    type Make = fn(&Path);
    let makes: [(&str, Make); 5] = [
        ("directory", |path| fs::create_dir(path).unwrap()),
        ("symbolic link", |path| {
            fs::write(path.with_extension("target"), "kept").unwrap();
            symlink(path.with_extension("target"), path).unwrap();
        }),
        ("FIFO", |path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }),
        ("another program's", |path| {
            Connection::open(path)
                .unwrap()
                .execute_batch("CREATE TABLE theirs (a)")
                .unwrap();
        }),
        ("a newer version's", |path| {
            fill(path);
            Connection::open(path)
                .unwrap()
                .pragma_update(None, "user_version", 99)
                .unwrap();
        }),
    ];
    for (name, make) in makes {
        let directory = rundir::new_dir(Place::quick()).unwrap();
        let path = directory.join("history.db");
        make(&path);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        let content = || kind.is_file().then(|| fs::read(&path).unwrap());
        let before = content();
        let recorder = start(&path);
        recorder.record(sweep(1, 1));
        wait_for(&recorder, name, |health| health.lost == 1);
        let health = recorder.health();
        assert!(
            !health.healthy && health.moved_aside == 0,
            "{name}: {health:?}"
        );
        assert!(recorder.stop(PATIENCE));
        assert_eq!(
            fs::symlink_metadata(&path).unwrap().file_type(),
            kind,
            "{name}"
        );
        assert_eq!(content(), before, "{name}");
        assert!(Reader::open(&path).is_err(), "{name}");
        if let Ok(target) = fs::read_to_string(path.with_extension("target")) {
            assert_eq!(target, "kept");
        }
        rundir::remove(&directory);
    }
}

#[test]
fn a_full_disk_costs_samples_and_nothing_else() {
    let bed = support::require!(Plan::of("ext4").mkfs(&["-F"]).size(16 * MIB).make());
    let path = bed.path().join("state/history.db");
    let recorder = start(&path);
    assert!(recorder.record(sweep(0, 500)));
    wait_for(&recorder, "there is room", |health| health.written == 1);
    let filler = bed.path().join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[7; 1024]).is_ok() {}
    drop(file);
    for n in 1..200 {
        assert!(recorder.record(sweep(n, 500)));
        wait_for(&recorder, "it goes on", |health| health.waiting == 0);
    }
    let full = recorder.health();
    assert!(
        full.lost > 0 && !full.healthy && full.moved_aside == 0,
        "{full:?}"
    );
    fs::remove_file(filler).unwrap();
    for n in 200..300 {
        assert!(recorder.record(sweep(n, 500)));
        wait_for(&recorder, "it goes on", |health| health.waiting == 0);
    }
    let health = recorder.health();
    assert!(
        health.healthy && health.lost == full.lost,
        "{full:?} {health:?}"
    );
    assert_eq!(health.written + health.lost, 300);
    assert!(recorder.stop(PATIENCE));
    let kept = counts(&path, 500);
    assert_eq!(kept.len() as u64, health.written);
    assert_eq!(kept[kept.len() - 100..], (200..300).collect::<Vec<_>>());
    assert_eq!(integrity(&path), "ok");
}

#[test]
fn a_disk_that_hangs_delays_nobody() {
    let stall = support::require!(Stall::new());
    let path = stall.path().join("history.db");
    let recorder = start(&path);
    assert!(recorder.record(sweep(0, 1000)));
    wait_for(&recorder, "it works", |health| health.written == 1);
    stall.stop();
    // If this waited for the disk, it would do so for ever: the disk only goes on behind it.
    let kept = (1..=600)
        .filter(|n| recorder.record(sweep(*n, 1000)))
        .count() as u64;
    let hung = recorder.health();
    assert!(hung.busy_for.is_some() && hung.waiting > 0, "{hung:?}");
    assert_eq!(hung.lost, 600 - kept);
    assert!(hung.lost > 500, "{hung:?}");
    // What happens seldom still finds room.
    let incident = IncidentRow {
        name: "20261120T120305.123Z-1".to_owned(),
        at: UnixTime(MONDAY),
        ended: None,
        trigger: None,
        actions: 0,
        outcome: None,
        freed: Bytes(0),
    };
    assert!(recorder.record(Record::Incident(incident)));
    // Nor does the end of the daemon wait.
    let other = recorder.clone();
    assert!(!recorder.stop(Duration::from_millis(50)));
    assert!(!other.record(sweep(601, 1)));
    stall.resume();
    // What was taken over is written after all.
    wait_for(&recorder, "it goes on", |health| {
        health.written == 2 + kept && health.waiting == 0
    });
    assert_eq!(counts(&path, 1000).len() as u64, 1 + kept);
}

const LOCK_PATH: &str = "FRAGWATCH_HISTORY_LOCK";

#[test]
#[ignore = "not a test: the first daemon of the_second_daemon_is_refused"]
fn lock_holder() {
    let Some(directory) = std::env::var_os(LOCK_PATH).map(PathBuf::from) else {
        return;
    };
    let _lock = lock::acquire(&directory).unwrap();
    println!("locked");
    std::thread::sleep(PATIENCE);
}

#[test]
fn the_second_daemon_is_refused_and_a_dead_one_holds_nothing() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let mut first = Child::spawn(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lock_holder", "--ignored", "--nocapture"])
            .env(LOCK_PATH, &directory)
            .stdout(Stdio::piped()),
    )
    .unwrap();
    let out = first.pipes().stdout.take().unwrap();
    assert!(
        BufReader::new(out)
            .lines()
            .any(|line| line.unwrap() == "locked")
    );
    let LockError::LockedBy { pid, .. } = lock::acquire(&directory).unwrap_err() else {
        panic!("it cannot be locked at all");
    };
    assert_eq!(pid, Some(first.id()));
    first.signal(Signal::KILL);
    first.end();
    drop(lock::acquire(&directory).unwrap());
    rundir::remove(&directory);
}

#[test]
fn a_reader_does_not_stop_the_writer_nor_see_half_a_sweep() {
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let path = directory.join("history.db");
    let recorder = start(&path);
    assert!(recorder.record(sweep(0, 30)));
    wait_for(&recorder, "it opens", |health| health.written == 1);
    let reader = Reader::open(&path).unwrap();
    let mut newest = 0;
    for n in 1..400 {
        wait_for(&recorder, "there is room", |health| health.waiting < 200);
        assert!(recorder.record(sweep(n, 30)));
        let mut seen = BTreeMap::<i64, Vec<u64>>::new();
        reader
            .each_count(EVER..=UnixTime(i64::MAX), usize::MAX, |image, point| {
                seen.entry(image).or_default().push(point.extents.0);
            })
            .unwrap();
        assert_eq!(seen.len(), 30);
        let first = &seen[&1];
        assert!(seen.values().all(|counts| counts == first), "sweep {n}");
        assert_eq!(*first, (0..first.len() as u64).collect::<Vec<_>>());
        assert!(first.len() > newest);
        newest = first.len() - 1;
    }
    wait_for(&recorder, "it writes", |health| health.written == 400);
    assert_eq!(recorder.health().lost, 0);
    assert!(recorder.stop(PATIENCE));
    rundir::remove(&directory);
}

/// 1,000 images that are counted each minute and have more extents each time take less than 200 MB
/// in 90 days. Measured on fewer images, part by part: rows of one sweep lie together, so a row takes
/// as much however many there are.
#[test]
fn ninety_days_of_a_thousand_images_are_below_the_budget() {
    const IMAGES: u64 = 50;
    let directory = rundir::new_dir(Place::quick()).unwrap();
    let path = directory.join("history.db");
    let (mut store, _) = Store::open(&path, RETENTION, &|| {}).unwrap();
    let mut random = Random::new(support::random::SEED);
    let mut extents = vec![10_000; IMAGES as usize];
    let mut day = |store: &mut Store, day: i64, sweeps: i64| {
        for n in 0..sweeps {
            let images = extents.iter_mut().zip(1..).map(|(extents, inode)| {
                *extents += 1 + random.below(400);
                sample(inode, *extents)
            });
            let at = UnixTime(MONDAY + day * 86_400 + n * 86_400 / sweeps);
            record(
                store,
                &Record::Sweep(Sweep {
                    at,
                    images: images.collect(),
                }),
            );
        }
    };
    let used = || {
        let connection = Connection::open(&path).unwrap();
        let pragma = |name: &str| {
            connection
                .query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")
    };
    // 88 days by the hour, then two in full.
    for n in 0..88 {
        day(&mut store, n, 24);
    }
    let merged = used();
    for n in 88..90 {
        day(&mut store, n, 1440);
    }
    let full_day = (used() - merged) / 2;
    let images = 1000 / IMAGES as i64;
    let total = images * (merged + 2 * full_day + full_day / 24);
    eprintln!(
        "{} bytes a sample; 1,000 images in 90 days: {} MB",
        full_day as f64 / 1440.0 / IMAGES as f64,
        total / 1_000_000
    );
    assert!(
        total < 150_000_000,
        "{total}: {merged} merged, {full_day} a day"
    );
    drop(store);
    rundir::remove(&directory);
}
