//! What it costs to be on guard: processor time of the threads of the rescue while nothing happens.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::samples::{Samples, Unit, show};
use super::support::Here;
use super::support::emergency::{Event, Host, Plan};
use super::table::Row;

/// A minute is one sample.
const MINUTE: Duration = Duration::from_secs(60);
/// Starting, and the first drill.
const WARM_UP: Duration = Duration::from_secs(5);
const AT_MOST: f64 = 10e-3;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let event = Event::new()?;
    let host = Plan::of(event.pattern()).start();
    sleep(WARM_UP);
    let [mut both, mut detector] = [Vec::new(), Vec::new()];
    for _ in 0..repetitions.div_ceil(3) {
        let before = [fast(&host), slow(&host)];
        let began = Instant::now();
        sleep(MINUTE);
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        both.push((fast(&host) - before[0]) / minutes);
        detector.push((slow(&host) - before[1]) / minutes);
    }
    let [both, detector] = [both, detector].map(|values| Samples::new(Unit::Seconds, values));
    Ok(vec![Row::plain(
        "rescue at rest: processor time a minute of reader and actor",
        &both,
        format!("for comparison, its stall detector: {detector}"),
        format!("below {}", show(Unit::Seconds, AT_MOST)),
        both.most() < AT_MOST,
    )])
}

fn fast(host: &Host) -> f64 {
    processor_time(host, "rescue-reader") + processor_time(host, "rescue-actor")
}

fn slow(host: &Host) -> f64 {
    processor_time(host, "stall") + processor_time(host, "stall-reader")
}

/// Seconds that a thread has run so far (Documentation/scheduler/sched-stats.rst).
fn processor_time(host: &Host, thread: &str) -> f64 {
    let path = format!(
        "/proc/{}/task/{}/schedstat",
        host.daemon.pid(),
        host.thread(thread)
    );
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let nanoseconds: u64 = text.split(' ').next().unwrap().parse().unwrap();
    nanoseconds as f64 / 1e9
}
