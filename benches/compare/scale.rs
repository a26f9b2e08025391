//! The daemon with far more images than at rest, and with a past.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fragwatch::internals::history::{ImageRef, Reader};

use super::daemon::{Service, configuration, watch};
use super::history::simulate;
use super::run::FRAGWATCH;
use super::samples::{Samples, Unit, show};
use super::support::rundir::{self, Place};
use super::support::{Bed, Here, MIB, NotHere, free_address, guest};
use super::table::Row;

/// Images on one host: more than anybody has.
const MANY: usize = 10_000;
/// What a scrape of them may take.
const SCRAPE: f64 = 0.050;
/// Scrapes for each repetition that is asked for.
const SCRAPES: usize = 10;

/// Images with a long history.
pub const WITH_PAST: usize = 1000;
/// What the daemon may have resident with them.
pub const MEMORY: u64 = 24 * MIB;
const WARM_UP: Duration = Duration::from_secs(65);
const MEASURED: Duration = Duration::from_secs(120);

/// A scrape of many images over HTTP.
pub fn scrape(repetitions: usize) -> Here<Vec<Row>> {
    let bed = Bed::xfs()?;
    for n in 0..MANY {
        let image = bed.path().join(format!("vm-{n:05}.raw"));
        fs::write(image, [1; 4096]).map_err(NotHere::because)?;
    }
    let state = rundir::new_dir(Place::quick()).map_err(NotHere::because)?;
    let mut daemon = start(bed.path(), &state, "")?;
    counted(&mut daemon, MANY);
    let mut bytes = 0;
    let mut times = Vec::new();
    for _ in 0..SCRAPES * repetitions {
        let began = Instant::now();
        bytes = daemon.target.scrape().map_err(NotHere::because)?.len();
        times.push(began.elapsed().as_secs_f64());
    }
    drop(daemon);
    rundir::remove(&state);
    let times = Samples::new(Unit::Seconds, times);
    let reached = times.median() < SCRAPE;
    Ok(vec![Row::plain(
        format!(
            "scrape of {MANY} images, {}",
            show(Unit::Bytes, bytes as f64)
        ),
        times,
        "–",
        format!("below {}", show(Unit::Seconds, SCRAPE)),
        reached,
    )])
}

/// Waits until it tells of so many images.
fn counted(daemon: &mut Service, number: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let body = daemon.target.scrape().expect("it serves");
        let text = String::from_utf8(body).expect("it is not compressed");
        if text.matches("fragwatch_image_extents{").count() == number {
            return;
        }
        assert!(Instant::now() < deadline, "its first sweep does not end");
        sleep(Duration::from_millis(100));
    }
}

/// A daemon that has counted its images and knows their past; its state, the size of its history, and
/// where the images are. `more` are further sections of its configuration.
pub fn with_past(more: &str) -> Here<(Service, PathBuf, u64, Bed)> {
    let bed = Bed::xfs()?;
    for n in 0..WITH_PAST {
        guest::alternate_blocks(&bed.path().join(format!("vm-{n:04}.raw")), 50);
    }
    let state = rundir::new_dir(Place::quick()).map_err(NotHere::because)?;
    let database = state.join("history.db");
    let images = known(bed.path(), &state, &database)?;
    fs::remove_file(&database).map_err(NotHere::because)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(NotHere::because)?.as_secs();
    // Near the count that the daemon will find, so that nothing looks like a defragmentation.
    simulate(&database, &images, now.cast_signed(), 50, |_, random| {
        40 + random.below(20)
    });
    let size = fs::metadata(&database).map_err(NotHere::because)?.len();
    let mut daemon = start(bed.path(), &state, more)?;
    counted(&mut daemon, WITH_PAST);
    let log = fs::read_to_string(state.join("log")).map_err(NotHere::because)?;
    assert!(log.contains("images read"), "it has no past: {log}");
    Ok((daemon, state, size, bed))
}

/// What a daemon has resident that knows the past of its images.
pub fn memory(_: usize) -> Here<Vec<Row>> {
    let (mut daemon, state, size, _bed) = with_past("")?;
    watch(&mut [&mut daemon], WARM_UP);
    daemon.begin();
    watch(&mut [&mut daemon], MEASURED);
    let seen = daemon.end();
    rundir::remove(&state);
    let reached = seen.together.most() < MEMORY as f64;
    Ok(vec![Row::plain(
        format!(
            "resident memory with {WITH_PAST} images and 90 days of history ({}), daemon and \
             helper (PSS)",
            show(Unit::Bytes, size as f64)
        ),
        format!(
            "{} (RSS: daemon {}, helper {}; sum of their peaks {})",
            seen.together,
            seen.own,
            seen.children,
            show(Unit::Bytes, seen.peak)
        ),
        "–",
        format!("below {}", show(Unit::Bytes, MEMORY as f64)),
        reached,
    )])
}

/// Who the images are for good, as a daemon has recorded them.
fn known(images: &Path, state: &Path, database: &Path) -> Here<Vec<ImageRef>> {
    let _daemon = start(images, state, "")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let recorded = Reader::open(database).and_then(|reader| reader.images());
        match recorded {
            Ok(all) if all.len() == WITH_PAST => {
                let reference = |image: fragwatch::internals::history::ImageInfo| ImageRef {
                    key: image.key,
                    path: image.path,
                };
                return Ok(all.into_iter().map(reference).collect());
            }
            _ => assert!(Instant::now() < deadline, "they are not recorded"),
        }
        sleep(Duration::from_millis(100));
    }
}

/// A daemon that watches `images`, with its state, configuration and log in `state`.
fn start(images: &Path, state: &Path, more: &str) -> Here<Service> {
    let address: SocketAddr = free_address();
    let config = state.join("fragwatch.toml");
    // The rescue as it is in use, but it leaves the machine alone.
    let text = format!(
        "{}[rescue]\ndry_run = true\n{more}",
        configuration(images, address)
    );
    fs::write(&config, text).map_err(NotHere::because)?;
    let log = fs::File::create(state.join("log")).map_err(NotHere::because)?;
    let mut command = Command::new(FRAGWATCH);
    command.args(["run", "--config"]).arg(&config).stderr(log);
    command
        .env("STATE_DIRECTORY", state)
        .env("RUNTIME_DIRECTORY", state);
    Service::start(&mut command, address)
}
