//! What the history takes: of a core while samples come in, and of the disk after 90 days.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fragwatch::internals::history::{ImageRef, Reader, Record, SampleRow, Store, Sweep};
use fragwatch::internals::model::{Bytes, ExtentCount, Format, ImageKey, UnixTime};
use rustix::time::{ClockId, clock_gettime};

use super::samples::{Samples, Unit, in_turns};
use super::support::random::{Random, SEED};
use super::support::rundir::{self, Place};
use super::support::{Here, NotHere};
use super::table::Row;

const IMAGES: u64 = 1000;
const DAYS: i64 = 90;
/// Days with a count each minute: those that are kept in full, and some that are merged meanwhile. One
/// an hour leaves the same of those before.
const DAYS_IN_FULL: i64 = 5;
const MINUTES: i64 = 24 * 60;
const DAY: i64 = 86_400;
/// A Monday at midnight.
const MONDAY: i64 = 1_794_787_200;

pub fn rows(_: usize) -> Here<Vec<Row>> {
    let directory = rundir::new_dir(Place::quick()).map_err(NotHere::because)?;
    let path = directory.join("history.db");
    let images = (1..=IMAGES).map(image).collect::<Vec<_>>();
    let took = simulate(
        &path,
        &images,
        MONDAY + DAYS * DAY,
        10_000,
        |extents, random| extents + 1 + random.below(400),
    );
    let minutes = DAYS_IN_FULL * MINUTES;
    let share = took.as_secs_f64() / minutes as f64 / 60.0;
    let bytes: u64 = ["", "-journal"]
        .into_iter()
        .filter_map(|suffix| {
            let file = PathBuf::from(format!("{}{suffix}", path.display()));
            file.metadata().ok().map(|metadata| metadata.len())
        })
        .sum();
    let [start] = in_turns(Unit::Seconds, 3, [&mut || read(&path)]);
    rundir::remove(&directory);
    let images = ExtentCount(IMAGES);
    let work = format!("history of {images} images, each changed each minute");
    Ok(vec![
        Row::plain(
            format!("{work}: share of a core"),
            format!("{:.3} %", share * 100.0),
            "–",
            "below 2 %",
            share < 0.02,
        ),
        Row::plain(
            format!("{work}: on disk after {DAYS} days"),
            format!("{} MB", bytes / 1_000_000),
            "–",
            "below 200 MB",
            bytes < 200_000_000,
        ),
        told(
            format!("{work}: the last day of all, read at the start"),
            &start,
        ),
    ])
}

fn told(work: String, time: &Samples) -> Row {
    Row::plain(work, time, "–", "below 5 s", time.median() < 5.0)
}

/// Records the 90 days before `end` and returns the processor time that the minutes of the last ones
/// took. Each image begins with so many extents; `next` makes each further count from the one before.
pub fn simulate(
    path: &Path,
    images: &[ImageRef],
    end: i64,
    first: u64,
    next: impl Fn(u64, &mut Random) -> u64,
) -> Duration {
    let (mut store, _) = Store::open(
        path,
        Duration::from_secs(DAYS.unsigned_abs() * 86_400),
        &|| {},
    )
    .unwrap();
    let mut random = Random::new(SEED);
    let mut extents = vec![first; images.len()];
    let mut took = Duration::ZERO;
    for day in 0..DAYS {
        let in_full = day >= DAYS - DAYS_IN_FULL;
        let sweeps = if in_full { MINUTES } else { 24 };
        for n in 0..sweeps {
            let at = UnixTime(end - (DAYS - day) * DAY + n * DAY / sweeps);
            let images = extents.iter_mut().zip(images).map(|(extents, image)| {
                *extents = next(*extents, &mut random);
                sample(image.clone(), *extents)
            });
            let sweep = Record::Sweep(Sweep {
                at,
                images: images.collect(),
            });
            let before = processor_time();
            store.write(&sweep).unwrap();
            store.upkeep().unwrap();
            if in_full {
                took += processor_time() - before;
            }
        }
    }
    took
}

fn image(inode: u64) -> ImageRef {
    let key = ImageKey {
        filesystem: "3b8a4c62-92f2-4b3a-8a0e-3f1f5a3f8a11".to_owned(),
        inode,
        generation: 0,
    };
    let path = PathBuf::from(format!("/var/lib/libvirt/images/vm-{inode}.qcow2"));
    ImageRef { key, path }
}

fn sample(image: ImageRef, extents: u64) -> SampleRow {
    SampleRow {
        image,
        format: Format::Qcow2,
        extents: ExtentCount(extents),
        size: Bytes(100 << 30),
        allocated: Bytes(extents * 65_536),
    }
}

/// What a daemon reads when it starts.
fn read(path: &Path) -> f64 {
    let before = processor_time();
    let reader = Reader::open(path).unwrap();
    let mut counts = 0;
    let since = UnixTime(MONDAY + (DAYS - 1) * DAY);
    // As many as the daemon keeps of an image.
    reader
        .each_count(since..=UnixTime(i64::MAX), 96, |_, _| counts += 1)
        .unwrap();
    assert_eq!(counts, 2 * 96 * IMAGES as usize);
    (processor_time() - before).as_secs_f64()
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
