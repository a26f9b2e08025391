//! The room as a whole: what was recorded is read back, by the rule of retention.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "all numbers here are small"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::{
    Bytes, Engine, ExtentCount, ExtentMap, Format, ImageKey, ImageRef, Outcome, OutcomeKind, Point,
    RunRecord, Severity, Stalls, Trigger, UnixTime,
};

const EVER: UnixTime = UnixTime(i64::MIN);
const DAY: u64 = 86_400;
const LONG: Duration = Duration::from_secs(90 * DAY);
/// A Monday at midnight.
const MONDAY: i64 = 1_794_787_200;

fn key(inode: u64) -> ImageKey {
    ImageKey {
        filesystem: "3b8a4c62-92f2-4b3a-8a0e-3f1f5a3f8a11".to_owned(),
        inode,
        generation: 1,
    }
}

fn image(inode: u64) -> ImageRef {
    ImageRef {
        key: key(inode),
        path: PathBuf::from(format!("/srv/{inode}.qcow2")),
    }
}

fn sample(image: ImageRef, extents: u64) -> SampleRow {
    SampleRow {
        image,
        format: Format::Qcow2,
        extents: ExtentCount(extents),
        size: Bytes(10 << 30),
        allocated: Bytes(extents * 4096),
    }
}

fn sweep(at: i64, counts: &[(u64, u64)]) -> Record {
    let images = counts
        .iter()
        .map(|(inode, extents)| sample(image(*inode), *extents))
        .collect();
    Record::Sweep(Sweep {
        at: UnixTime(at),
        images,
    })
}

struct Place {
    _directory: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        // In memory if it can be: these tests flush thousands of times.
        let memory = Path::new("/dev/shm");
        let memory = memory.is_dir().then(|| tempfile::tempdir_in(memory));
        let directory = memory.unwrap_or_else(tempfile::tempdir).unwrap();
        let path = directory.path().join("history.db");
        Place {
            _directory: directory,
            path,
        }
    }

    fn store(&self, retention: Duration) -> Store {
        let (store, aside) = Store::open(&self.path, retention, &|| {}).unwrap();
        assert_eq!(aside, None);
        store
    }

    fn reader(&self) -> HistoryReader {
        HistoryReader::open(&self.path).unwrap()
    }

    fn image(&self, inode: u64) -> Option<ImageInfo> {
        let images = self.reader().images().unwrap();
        images.into_iter().find(|image| image.key == key(inode))
    }

    /// The newest image at a path.
    fn image_at(&self, path: &Path) -> Option<ImageInfo> {
        let images = self.reader().images().unwrap();
        images.into_iter().rfind(|image| image.path == path)
    }

    fn readings(&self, inode: u64) -> Vec<Reading> {
        let reader = self.reader();
        let Some(image) = self.image(inode) else {
            return Vec::new();
        };
        reader.readings(image.id, EVER, usize::MAX).unwrap()
    }
}

fn record(store: &mut Store, record: &Record) {
    store.write(record).unwrap();
    store.upkeep().unwrap();
}

/// `(at, extents, peak)`
fn plain(readings: &[Reading]) -> Vec<(i64, u64, u64)> {
    readings
        .iter()
        .map(|r| (r.at.0, r.extents.0, r.peak.0))
        .collect()
}

#[test]
fn hours_days_and_weeks_of_an_image() {
    let place = Place::new();
    let mut store = place.store(LONG);
    // A count every ten minutes that grows by one, and a peak shortly after noon of each day.
    let counted = |n: i64| if n % 144 == 73 { 1_000_000 } else { n as u64 };
    for n in 0..144 * 100 {
        record(&mut store, &sweep(MONDAY + n * 600, &[(1, counted(n))]));
    }
    let now = MONDAY + 144 * 100 * 600 - 600;
    let readings = plain(&place.readings(1));
    let age = |at: i64| now.div_euclid(86_400) - at.div_euclid(86_400);
    let of = |ages: std::ops::RangeInclusive<i64>| {
        readings
            .iter()
            .filter(move |(at, ..)| ages.contains(&age(*at)))
            .count()
    };
    // This hour and 48 in full; 30 days by the hour, one hour of which is in full; 60 by the day;
    // nothing older.
    let full = 49 * 6 - 24 * 6;
    assert_eq!(of(0..=0), 144);
    assert_eq!((of(1..=30), of(31..=90)), (full + 30 * 24 - 25, 60));
    assert_eq!(readings.len(), 144 + full + 30 * 24 - 25 + 60);
    // No peak is lost, and the last of each day is what it was.
    assert_eq!(
        readings
            .iter()
            .filter(|(.., peak)| *peak == 1_000_000)
            .count(),
        91
    );
    for (at, extents, _) in readings.iter().filter(|(at, ..)| age(*at) > 30) {
        assert_eq!(*at % 86_400, 85_800);
        assert_eq!(*extents, ((at - MONDAY) / 600) as u64);
    }
    let last = place.image(1).unwrap().last.unwrap();
    assert_eq!(
        last.point,
        Point {
            at: UnixTime(now),
            extents: ExtentCount(144 * 100 - 1)
        }
    );
}

#[test]
fn the_view_has_what_the_reader_returns() {
    let place = Place::new();
    let mut store = place.store(LONG);
    for n in 0..24 * 12 * 10 {
        // One that grows, one that never changes, one that is there at times only.
        let mut counts = vec![(1, (n * n) as u64 % 977), (2, 5)];
        if n % 7 > 2 {
            counts.push((3, n as u64));
        }
        record(&mut store, &sweep(MONDAY + n * 300, &counts));
    }
    let connection = rusqlite::Connection::open(&place.path).unwrap();
    for inode in 1..=3 {
        let mut select = connection
            .prepare("SELECT at, extents, peak FROM samples WHERE image = ?1 ORDER BY at")
            .unwrap();
        let rows = select
            .query_map([inode as i64], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        let rows: Vec<(i64, u64, u64)> = rows
            .map(Result::unwrap)
            .map(|(a, e, p): (i64, i64, i64)| (a, e as u64, p as u64))
            .collect();
        assert!(rows.len() > 500, "{}", rows.len());
        assert_eq!(rows, plain(&place.readings(inode)));
    }
    // Asked for one image, it looks at no other.
    let plan = "EXPLAIN QUERY PLAN SELECT max(extents) FROM samples WHERE image = 2";
    let mut select = connection.prepare(plan).unwrap();
    let steps = select.query_map([], |row| row.get::<_, String>(3)).unwrap();
    let steps = steps.map(Result::unwrap).collect::<Vec<_>>().join("\n");
    assert!(!steps.contains("SCAN counts"), "{steps}");
}

#[test]
fn who_an_image_is_does_not_depend_on_its_name() {
    let place = Place::new();
    let mut store = place.store(LONG);
    let mut at = |inode, path: &Path, n: i64| {
        let image = ImageRef {
            key: key(inode),
            path: path.to_owned(),
        };
        let sweep = Sweep {
            at: UnixTime(MONDAY + n * 60),
            images: vec![sample(image, n as u64)],
        };
        record(&mut store, &Record::Sweep(sweep));
    };
    let (old, new) = (Path::new("/srv/a"), Path::new("/srv/b"));
    at(1, old, 1);
    at(1, new, 2);
    // Another file comes in its old place.
    at(2, old, 3);
    // And then takes the new one, too.
    at(2, new, 4);
    let reader = place.reader();
    assert_eq!(plain(&place.readings(1)).len(), 2);
    let at_new = place.image_at(new).unwrap();
    assert_eq!((at_new.key, at_new.first_seen.0), (key(2), MONDAY + 180));
    assert_eq!(place.image_at(old), None);
    assert_eq!(reader.images().unwrap().len(), 2);
}

/// The image 1 as it was recorded while something of it could not be read.
fn substitute(filesystem: &str, generation: u32) -> ImageRef {
    let mut image = image(1);
    image.key.filesystem = filesystem.to_owned();
    image.key.generation = generation;
    image
}

/// One of each kind of row, and a sweep of a minute.
fn everything(store: &mut Store, image: &ImageRef, at: i64, extents: u64) {
    let (reference, at) = (|| image.clone(), UnixTime(at));
    let images = vec![sample(reference(), extents)];
    let map = MapRow {
        image: reference(),
        at,
        map: ExtentMap::default(),
    };
    let change = SeverityRow {
        image: reference(),
        at,
        from: Severity::Ok,
        to: Severity::Warning,
        extents: ExtentCount(extents),
        reason: String::new(),
    };
    let run = RunRecord {
        image: reference(),
        at,
        engine: Engine::Online,
        from: ExtentCount(9),
        to: ExtentCount(extents),
        bytes: Bytes(1),
        took: Duration::from_secs(1),
        stalls: None,
        outcome: OutcomeKind::Improved,
        reason: String::new(),
    };
    record(store, &Record::Sweep(Sweep { at, images }));
    record(store, &Record::Map(map));
    record(store, &Record::Severity(change));
    record(store, &Record::Run(run));
}

/// Of the image 1, which is the only one: its readings, and how many maps, changes of severity and
/// runs.
fn only_one(place: &Place) -> (Vec<(i64, u64, u64)>, [usize; 3]) {
    let reader = place.reader();
    let images = reader.images().unwrap();
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(images[0].key, key(1));
    assert_eq!(images[0].first_seen.0, MONDAY);
    let id = Some(images[0].id);
    let rows = [
        maps(place, images[0].id).len(),
        reader.severities(id, 99).unwrap().len(),
        reader.runs(id, 99).unwrap().len(),
    ];
    assert_eq!(integrity(&place.path), "ok");
    (plain(&place.readings(1)), rows)
}

#[test]
fn rows_that_were_split_by_a_substitute_are_joined() {
    // What the root file system was called in whose name a boot recorded it; no generation; both.
    for (filesystem, generation) in [("ext4:/", 1), (&*key(1).filesystem, 0), ("xfs:/srv", 0)] {
        let place = Place::new();
        let mut store = place.store(LONG);
        let mut expected = Vec::new();
        for n in 0..60 {
            let at = MONDAY + n * 2400;
            let image = match n % 5 {
                0 => image(1),
                _ => substitute(filesystem, generation),
            };
            everything(&mut store, &image, at, 100 + n as u64);
            expected.push((at, 100 + n as u64, 100 + n as u64));
        }
        assert_eq!(place.reader().images().unwrap().len(), 2);
        drop(store);
        let mut store = place.store(LONG);
        everything(&mut store, &image(1), MONDAY + 60 * 2400, 160);
        expected.push((MONDAY + 60 * 2400, 160, 160));
        assert_eq!(only_one(&place), (expected.clone(), [61, 61, 61]));
        // And so it stays.
        everything(&mut store, &image(1), MONDAY + 61 * 2400, 161);
        expected.push((MONDAY + 61 * 2400, 161, 161));
        assert_eq!(only_one(&place), (expected, [62, 62, 62]));
    }
}

#[test]
fn what_a_new_kernel_gives_a_uuid_keeps_its_past() {
    let place = Place::new();
    let mut store = place.store(LONG);
    everything(&mut store, &substitute("ext4:/srv", 1), MONDAY, 5);
    everything(&mut store, &image(1), MONDAY + 60, 6);
    let expected = vec![(MONDAY, 5, 5), (MONDAY + 60, 6, 6)];
    assert_eq!(only_one(&place), (expected, [2, 2, 2]));
}

#[test]
fn rows_of_another_image_are_not_joined() {
    let other_place = |mut image: ImageRef| {
        image.path = PathBuf::from("/srv/other");
        image
    };
    let other_file = ImageKey {
        generation: 2,
        ..key(1)
    };
    let others = [
        // Another file system, the same one's inode with another file, another path.
        substitute("7d8e0c5e-0000-4000-8000-000000000001", 1),
        substitute("ext4:/srv", 2),
        ImageRef {
            key: other_file,
            ..image(1)
        },
        other_place(substitute("ext4:/srv", 1)),
        // Who had the inode before the image did?
        substitute("xfs:/srv", 0),
    ];
    for other in others {
        let place = Place::new();
        let mut store = place.store(LONG);
        everything(&mut store, &other, MONDAY, 5);
        everything(&mut store, &image(1), MONDAY + 60, 6);
        let images = place.reader().images().unwrap();
        assert_eq!(images.len(), 2, "{other:?}");
        assert_eq!(plain(&place.readings(1)), [(MONDAY + 60, 6, 6)]);
    }
}

#[test]
fn names_come_back_as_they_are() {
    let place = Place::new();
    let mut store = place.store(LONG);
    let names: [&[u8]; 6] = [
        b"/srv/'; DROP TABLE images; --",
        b"/srv/two\nlines\t\x1b[31m\"quoted\"",
        b"/srv/\xff\xfe",
        // Reads as the one before does, but is none.
        b"/srv/\\xff\\xfe",
        "/srv/磁盘 é".as_bytes(),
        b"/srv/\xff\n",
    ];
    let path = |name: &[u8]| PathBuf::from(OsStr::from_bytes(name));
    let images = names.iter().zip(1..).map(|(name, inode)| {
        let image = ImageRef {
            key: key(inode),
            path: path(name),
        };
        sample(image, inode)
    });
    let at = UnixTime(MONDAY);
    record(
        &mut store,
        &Record::Sweep(Sweep {
            at,
            images: images.collect(),
        }),
    );
    for (name, inode) in names.iter().zip(1..) {
        let found = place.image_at(&path(name)).unwrap();
        assert_eq!((found.key, found.path), (key(inode), path(name)));
        assert_eq!(found.last.unwrap().point.extents.0, inode);
    }
}

fn stalls(calls: u64) -> Stalls {
    Stalls {
        calls,
        longest: Duration::from_micros(12_500),
        total: Duration::from_millis(12 * calls),
    }
}

#[test]
fn what_happened_comes_back_newest_first() {
    let place = Place::new();
    let mut store = place.store(LONG);
    let at = |n: i64| UnixTime(MONDAY + n);
    for n in 0..3 {
        let run = RunRecord {
            image: image(1),
            at: at(n),
            engine: Engine::Online,
            from: ExtentCount(5000),
            to: ExtentCount(n as u64),
            bytes: Bytes(1 << 30),
            took: Duration::from_millis(1500),
            stalls: (n > 0).then(|| stalls(n as u64)),
            outcome: OutcomeKind::Improved,
            reason: "it's \"done\"".to_owned(),
        };
        let change = SeverityRow {
            image: image(2),
            at: at(n),
            from: Severity::Ok,
            to: Severity::Warning,
            extents: ExtentCount(7),
            reason: "extents".to_owned(),
        };
        let map = ExtentMap {
            extents: ExtentCount(n as u64),
            fragments: 3,
            ..ExtentMap::default()
        };
        let incident = IncidentRow {
            name: format!("20261120T120305.123Z-{}", n / 2),
            at: at(n),
            ended: (n == 1).then(|| at(9)),
            trigger: Some(Trigger::Stall),
            actions: n as u32,
            outcome: Some(Outcome::Done),
            freed: Bytes(4096),
        };
        record(&mut store, &Record::Run(run));
        record(&mut store, &Record::Severity(change));
        record(
            &mut store,
            &Record::Map(MapRow {
                image: image(1),
                at: at(n),
                map,
            }),
        );
        record(&mut store, &Record::Incident(incident));
    }
    let reader = place.reader();
    let of = |inode| place.image(inode).unwrap().id;
    let runs = reader.runs(Some(of(1)), 2).unwrap();
    assert_eq!(
        runs.iter().map(|run| run.at).collect::<Vec<_>>(),
        [at(2), at(1)]
    );
    assert_eq!(runs[0].took, Duration::from_millis(1500));
    assert_eq!(runs[0].reason, "it's \"done\"");
    assert_eq!(runs[0].stalls, Some(stalls(2)));
    let runs = reader.runs(None, 9).unwrap();
    assert_eq!((runs.len(), runs[2].stalls), (3, None));
    assert_eq!(reader.runs(Some(of(2)), 9).unwrap(), []);
    let changes = reader.severities(None, 1).unwrap();
    assert_eq!(
        (changes[0].from.as_str(), changes[0].to.as_str()),
        ("ok", "warning")
    );
    assert_eq!(
        maps(&place, of(1)),
        [(at(0).0, 0), (at(1).0, 1), (at(2).0, 2)]
    );
    // The second record of an incident replaced the first. The last one has not ended.
    let incidents: (i64, i64) = query(
        &place.path,
        "SELECT count(*), max(ended) FROM incidents WHERE actions > 0",
    );
    assert_eq!(incidents, (2, at(9).0));
    assert_eq!(reader.last_incident().unwrap(), Some(at(2)));
    // An image that was never counted has no last sample.
    assert_eq!(place.image(2).unwrap().last, None);
}

#[test]
fn events_and_images_go_with_their_day() {
    let place = Place::new();
    let mut store = place.store(Duration::from_secs(10 * DAY));
    let change = |inode, at| {
        Record::Severity(SeverityRow {
            image: image(inode),
            at: UnixTime(at),
            from: Severity::Ok,
            to: Severity::Critical,
            extents: ExtentCount(7),
            reason: String::new(),
        })
    };
    for day in 0..10 {
        for map in 0..4 {
            let map = MapRow {
                image: image(1),
                at: UnixTime(MONDAY + day * 86_400 + map * 3600),
                map: ExtentMap {
                    extents: ExtentCount(map as u64),
                    ..ExtentMap::default()
                },
            };
            record(&mut store, &Record::Map(map));
        }
        record(&mut store, &change(1, MONDAY + day * 86_400));
    }
    record(&mut store, &change(2, MONDAY));
    for hour in 0..24 * 18 {
        record(&mut store, &sweep(MONDAY + hour * 3600, &[(1, 5)]));
    }
    let reader = place.reader();
    // Today is day 17: 7 is the oldest that is kept.
    let changes = reader.severities(None, 99).unwrap();
    assert_eq!(changes.len(), 3);
    assert_eq!(changes.last().unwrap().at.0, MONDAY + 7 * 86_400);
    let one = place.image(1).unwrap().id;
    let maps = maps(&place, one).into_iter();
    let hours: Vec<_> = maps.map(|(at, _)| (at - MONDAY) / 3600).collect();
    assert_eq!(hours, [7 * 24 + 3, 8 * 24 + 3, 9 * 24 + 3]);
    assert_eq!(place.image(2), None);
    // Should it come back, it is a new one, and there is a row for it.
    record(&mut store, &sweep(MONDAY + 24 * 18 * 3600, &[(2, 9)]));
    assert_eq!(place.readings(2).len(), 1);
}

#[test]
fn ten_thousand_images_in_one_sweep() {
    let place = Place::new();
    let mut store = place.store(LONG);
    let counts: Vec<(u64, u64)> = (1..=10_000).map(|inode| (inode, inode * 3)).collect();
    for n in 0..3 {
        record(&mut store, &sweep(MONDAY + n * 3600, &counts));
    }
    let reader = place.reader();
    assert_eq!(reader.images().unwrap().len(), 10_000);
    let mut seen = 0;
    reader
        .each_count(UnixTime(MONDAY + 1)..=UnixTime(i64::MAX), 1, |id, point| {
            let sweep = if seen < 10_000 { 1 } else { 2 };
            assert_eq!(point.at.0, MONDAY + sweep * 3600);
            assert_eq!(point.extents.0 % 3, 0);
            assert!((1..=10_000).contains(&id));
            seen += 1;
        })
        .unwrap();
    assert_eq!(seen, 20_000);
}

#[test]
fn a_clock_that_is_wrong_for_an_hour_costs_days_and_not_the_history() {
    let place = Place::new();
    let mut store = place.store(LONG);
    for n in 0..24 * 60 {
        record(&mut store, &sweep(MONDAY + n * 3600, &[(1, n as u64)]));
    }
    let before = place.readings(1).len();
    // Two hours of 1970, as with an empty battery, and two hours of 2100.
    for wrong in [60, 3660, 4_102_444_800, 4_102_448_400] {
        record(&mut store, &sweep(wrong, &[(1, 1)]));
    }
    for n in 24 * 60..24 * 60 + 4 {
        record(&mut store, &sweep(MONDAY + n * 3600, &[(1, n as u64)]));
    }
    let after = place.readings(1);
    assert!(after.len() + 24 * 6 > before, "{before} {}", after.len());
    // What was recorded by the wrong clock goes, too.
    assert!(
        plain(&after).iter().all(|(at, ..)| *at >= MONDAY),
        "{:?}",
        plain(&after)
    );
}

#[test]
fn free_pages_go_back_to_the_file_system() {
    let place = Place::new();
    let mut store = place.store(Duration::from_secs(DAY));
    let pages = || {
        let connection = rusqlite::Connection::open(&place.path).unwrap();
        let pragma = |name: &str| {
            connection
                .query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        (
            pragma("page_count"),
            pragma("freelist_count"),
            pragma("auto_vacuum"),
        )
    };
    let many: Vec<(u64, u64)> = (1..=4000).map(|inode| (inode, inode)).collect();
    // Larger than what is kept for the next day.
    for n in 0..80 {
        let counts: Vec<_> = many
            .iter()
            .map(|(inode, n0)| (*inode, n0 + n as u64))
            .collect();
        record(&mut store, &sweep(MONDAY + n * 1000, &counts));
    }
    let (before, _, mode) = pages();
    assert_eq!(mode, 2);
    for n in 0..24 * 5 {
        record(&mut store, &sweep(MONDAY + 86_400 + n * 3600, &[(1, 1)]));
    }
    let (after, free, _) = pages();
    assert!(
        after < before && free <= 512,
        "{before} pages before, now {after}, {free} free"
    );
}

/// What is recorded in a test: so much later, which images and their counts.
type Step = (i64, Vec<(u64, u64)>);

fn steps(pause: impl Strategy<Value = i64>) -> impl Strategy<Value = Vec<Step>> {
    let counts = prop::collection::btree_map(1..4_u64, 0..2000_u64, 0..4);
    let counts = counts.prop_map(|counts| counts.into_iter().collect());
    prop::collection::vec((pause, counts), 1..150)
}

/// The only row of a query of two numbers.
fn query(path: &Path, sql: &str) -> (i64, i64) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let row = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)));
    row.unwrap()
}

/// Time and extents of the extent maps of an image.
fn maps(place: &Place, image: i64) -> Vec<(i64, i64)> {
    let connection = rusqlite::Connection::open(&place.path).unwrap();
    let mut select = connection
        .prepare("SELECT at, extents FROM maps WHERE image = ?1 ORDER BY at")
        .unwrap();
    let rows = select.query_map([image], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

fn integrity(path: &Path) -> String {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap()
}

/// The rule of retention, computed from the sweeps alone.
fn expected(recorded: &[Step], inode: u64, retention_days: i64) -> Vec<(i64, u64, u64)> {
    let now = recorded.last().unwrap().0;
    // By the length of a part: the last sweep in it, and the last and largest count.
    let mut parts = BTreeMap::<(i64, i64), (i64, Option<(u64, u64)>)>::new();
    for (n, (at, counts)) in recorded.iter().enumerate() {
        let age = now.div_euclid(86_400) - at.div_euclid(86_400);
        let hours = now.div_euclid(3600) - at.div_euclid(3600);
        let part = match age {
            _ if age > retention_days => continue,
            31.. => (at.div_euclid(86_400), -1),
            _ if hours > 48 => (at.div_euclid(3600), -2),
            // Each for itself, even two of the same time.
            _ => (*at, n as i64),
        };
        let (last, known) = parts.entry(part).or_insert((*at, None));
        *last = *at;
        if let Some((_, count)) = counts.iter().find(|(image, _)| *image == inode) {
            *known = Some((*count, known.map_or(*count, |(_, peak)| peak.max(*count))));
        }
    }
    let mut readings: Vec<_> = parts
        .into_values()
        .filter_map(|(at, known)| known.map(|(count, peak)| (at, count, peak)))
        .collect();
    readings.sort_by_key(|(at, ..)| *at);
    readings
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_was_recorded_comes_back_by_the_rule(
        steps in steps(prop_oneof![
            4 => 0..90_i64, 2 => 60..4000_i64, 1 => 3600..500_000_i64,
        ]),
        retention in 1..100_u64,
        restart in prop::collection::btree_set(0..150_usize, 0..3),
    ) {
        let place = Place::new();
        let retention_time = Duration::from_secs(retention * DAY);
        let mut store = place.store(retention_time);
        let mut at = MONDAY;
        let mut recorded = Vec::new();
        for (n, (pause, counts)) in steps.into_iter().enumerate() {
            at += pause;
            if restart.contains(&n) {
                drop(store);
                store = place.store(retention_time);
            }
            record(&mut store, &sweep(at, &counts));
            recorded.push((at, counts));
        }
        // A part is done each hour; there may have been pauses.
        for _ in 0..200 {
            store.retain(UnixTime(at)).unwrap();
        }
        for inode in 1..4 {
            let expected = expected(&recorded, inode, retention as i64);
            prop_assert_eq!(plain(&place.readings(inode)), expected);
        }
        prop_assert_eq!(integrity(&place.path), "ok");
    }

    #[test]
    fn no_clock_breaks_it(
        steps in steps(prop_oneof![
            5 => 0..120_i64,
            2 => -5000..5000_i64,
            1 => -40_000_000..40_000_000_i64,
            1 => prop::sample::select(vec![i64::MIN / 2, i64::MAX / 2, -MONDAY]),
        ]),
    ) {
        let place = Place::new();
        let mut store = place.store(LONG);
        let mut at = MONDAY;
        let mut recorded = BTreeSet::new();
        let mut newest = Vec::new();
        for (pause, counts) in steps {
            at = at.saturating_add(pause);
            record(&mut store, &sweep(at, &counts));
            recorded.extend(counts.iter().map(|(inode, count)| (*inode, *count)));
            newest = counts;
        }
        let all = recorded.iter().map(|(inode, _)| *inode).collect::<BTreeSet<_>>();
        for inode in all {
            let readings = place.readings(inode);
            for (_, extents, peak) in plain(&readings) {
                prop_assert!(recorded.contains(&(inode, extents)));
                prop_assert!(recorded.contains(&(inode, peak)));
            }
            if let Some((_, count)) = newest.iter().find(|(image, _)| *image == inode) {
                prop_assert!(plain(&readings).contains(&(at, *count, *count)));
            }
        }
        prop_assert_eq!(integrity(&place.path), "ok");
    }
}
