//! What growth costs: one image, one sweep. `cargo bench --bench growth`.
//!
//! Of a daemon that counts a thousand images a minute, one microsecond an image is 0.002 % of a
//! core.
#![allow(clippy::print_stdout, reason = "the table is its output")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "measured values are far from the limits of their types"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use fragwatch::internals::growth::{Recent, forecast, growth};
use fragwatch::internals::model::{ExtentCount, Point, UnixTime};

const DAY: Duration = Duration::from_secs(86_400);
const ROUNDS: u32 = 300;

/// What a curve is called, and its count by the minute.
type Curve = (&'static str, fn(u64) -> u64);

const CURVES: [Curve; 4] = [
    ("silent", |_| 100_000),
    ("linear", |minute| 100_000 + 100 * minute),
    ("bursts", |minute| 100_000 + 7_919 * (minute / 37)),
    ("tapering", |minute| {
        (1_000_000.0 * (1.0 - (-(minute as f64) / 300.0).exp())) as u64
    }),
];

fn main() {
    println!("| curve | from memory, a sweep of one image | from 1,440 counts of the history |");
    println!("|---|---|---|");
    for (name, curve) in CURVES {
        let point = |minute: u64| Point {
            at: UnixTime(minute as i64 * 60),
            extents: ExtentCount(curve(minute)),
        };
        let points: Vec<Point> = (0..1440).map(point).collect();
        let mut recent = Recent::default();
        points.iter().for_each(|point| recent.push(*point, DAY));
        let mut minute = 1440;
        let sweep = median(|| {
            let point = point(minute);
            minute += 1;
            recent.push(point, DAY);
            let growth = recent.growth(DAY, point.at);
            black_box(forecast(&growth, point.extents, ExtentCount(5_000_000)));
        });
        let now = UnixTime(1440 * 60);
        let all = median(|| {
            black_box(growth(black_box(&points), DAY, now));
        });
        println!("| {name} | {:.1} µs | {:.1} µs |", micro(sweep), micro(all));
    }
}

fn median(mut act: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            act();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn micro(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
