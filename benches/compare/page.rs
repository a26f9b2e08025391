//! The pages of a host with a thousand images, each warned of, and 90 days of history.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::daemon::watch;
use super::samples::{Samples, Unit, show};
use super::scale::{MEMORY, WITH_PAST, with_past};
use super::support::{self, Here, rundir};
use super::table::Row;

/// What a browser loads for the first screen.
const FIRST: [&str; 3] = ["/", "/assets/page.css", "/assets/icon.svg"];
const MOST_BYTES: usize = 150_000;
const MOST_SECONDS: f64 = 0.3;
/// First screens for each repetition that is asked for.
const SCREENS: usize = 10;
const WARM_UP: Duration = Duration::from_secs(65);
const MEASURED: Duration = Duration::from_secs(120);
const WARNED: &str = "[thresholds]\nwarning = { extents = 10 }\n";

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let (mut daemon, state, _, _bed) = with_past(WARNED)?;
    let address = daemon.target.address;
    watch(&mut [&mut daemon], WARM_UP);
    let (first, first_bytes) = load(address, &FIRST, SCREENS * repetitions);
    let (images, images_bytes) = load(address, &["/images"], repetitions);
    daemon.begin();
    thread::scope(|scope| {
        let until = Instant::now() + MEASURED;
        scope.spawn(move || {
            while Instant::now() < until {
                load(address, &["/", "/images", "/plan"], 1);
                thread::sleep(Duration::from_secs(1));
            }
        });
        watch(&mut [&mut daemon], MEASURED);
    });
    let seen = daemon.end();
    rundir::remove(&state);
    let bytes = |bytes: usize| show(Unit::Bytes, bytes as f64);
    let work = format!("first screen of {WITH_PAST} images that are warned of");
    Ok(vec![
        Row::plain(
            format!("{work}: bytes of page, style and icon"),
            bytes(first_bytes),
            "–",
            format!("at most {}", bytes(MOST_BYTES)),
            first_bytes <= MOST_BYTES,
        ),
        Row::plain(
            format!("{work}: from the request to the last byte of all three, by loopback"),
            &first,
            "–",
            format!("each below {}", show(Unit::Seconds, MOST_SECONDS)),
            first.most() < MOST_SECONDS,
        ),
        Row::told(
            format!(
                "table of {WITH_PAST} images with their last week, {}",
                bytes(images_bytes)
            ),
            &images,
            "–",
        ),
        Row::plain(
            format!(
                "resident memory with {WITH_PAST} images and 90 days of history while host, images and \
                 plan are loaded once a second, daemon and helper (PSS)"
            ),
            &seen.together,
            "–",
            format!("below {}", show(Unit::Bytes, MEMORY as f64)),
            seen.together.most() < MEMORY as f64,
        ),
    ])
}

/// Loads all of `paths` so many times: how long that took each time, and their bytes together.
fn load(address: SocketAddr, paths: &[&str], times: usize) -> (Samples, usize) {
    let mut bytes = 0;
    let mut seconds = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let answers = paths.iter().map(|path| {
            let answer = support::http_get(address, path).expect("it serves");
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            assert!(!answer.body.contains("Not shown"), "{path}");
            answer.body.len()
        });
        bytes = answers.sum();
        seconds.push(began.elapsed().as_secs_f64());
    }
    (Samples::new(Unit::Seconds, seconds), bytes)
}
