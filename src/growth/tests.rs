//! Generated curves of which the truth is known. The bounds of error that stand here are what the
//! forecast promises.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "generated values are far from the limits of their types"
)]

use proptest::prelude::*;

use std::time::Duration;

use super::trend::{FEWEST_SAMPLES, has_fallen, unsigned};
use super::*;
use crate::model::{ExtentCount, ExtentsPerDay, Forecast, Growth, Pace, Point, UnixTime, Unknown};

const WINDOW: Duration = Duration::from_secs(86_400);
const DAY: f64 = 86_400.0;

/// Counts of `curve` (by the time in seconds) at the times, the last of which is now.
fn counts(times: &[i64], curve: impl Fn(f64) -> f64) -> Vec<Point> {
    let point = |at: &i64| Point {
        at: UnixTime(1_700_000_000 + at),
        extents: ExtentCount(unsigned(curve(*at as f64))),
    };
    times.iter().map(point).collect()
}

/// From 0 to `span`, `count` of them, evenly.
fn evenly(span: i64, count: i64) -> Vec<i64> {
    (0..count).map(|n| span * n / (count - 1)).collect()
}

fn of(points: &[Point]) -> Growth {
    let now = points.iter().map(|point| point.at).max().unwrap();
    growth(points, WINDOW, now)
}

fn last(points: &[Point]) -> ExtentCount {
    points.last().unwrap().extents
}

fn rate(points: &[Point]) -> f64 {
    of(points).rate().unwrap().0
}

fn when(points: &[Point], critical: u64) -> Forecast {
    forecast(&of(points), last(points), ExtentCount(critical))
}

#[track_caller]
fn near(value: f64, expected: f64, error: f64) {
    let bound = error * expected.abs();
    assert!((value - expected).abs() <= bound, "{value}, not {expected}");
}

#[test]
fn silence_never_ends() {
    let points = counts(&evenly(86_400, 1440), |_| 1000.0);
    let trend = of(&points).trend.unwrap();
    assert_eq!((trend.rate, trend.pace), (ExtentsPerDay(0.0), Pace::Silent));
    assert_eq!(when(&points, 1001), Forecast::Never);
    assert_eq!(when(&points, 1000), Forecast::Reached);
}

#[test]
fn too_little_is_unknown() {
    let unknown = |points: &[Point]| of(points).trend.unwrap_err();
    let line = |at: f64| 1000.0 + at;
    let few = counts(&evenly(86_400, FEWEST_SAMPLES as i64 - 1), line);
    assert_eq!(unknown(&few), Unknown::TooFewSamples);
    assert_eq!(
        when(&few, 1_000_000),
        Forecast::Unknown(Unknown::TooFewSamples)
    );
    let short = counts(&evenly(3599, 60), line);
    assert_eq!(unknown(&short), Unknown::TooShort);
    assert!(of(&counts(&evenly(3600, 60), line)).trend.is_ok());
    assert_eq!(
        growth(&[], WINDOW, UnixTime(0)).trend,
        Err(Unknown::TooFewSamples)
    );
    let zero = growth(&few, Duration::ZERO, few[8].at);
    assert_eq!(zero.trend, Err(Unknown::TooFewSamples));
}

#[test]
fn a_forecast_reaches_as_far_as_the_past_allows() {
    // A day and a half of the way, at 1 a second.
    let line = |at: f64| 1000.0 + at;
    let hour = counts(&evenly(3600, 60), line);
    assert_eq!(
        when(&hour, 1000 + 3600 + 14_000),
        Forecast::In(Duration::from_secs(14_000))
    );
    let reach = Duration::from_secs(4 * 3600);
    assert_eq!(
        when(&hour, 1000 + 3600 + 15_000),
        Forecast::NotWithin(reach)
    );
    let day = counts(&evenly(86_400, 1440), line);
    assert!(matches!(when(&day, 59 * 86_400), Forecast::In(_)));
    assert_eq!(when(&day, 70 * 86_400), Forecast::NotWithin(60 * WINDOW));
}

/// One step, however high, is no growth; but that it is far to a limit can be said all the same.
#[test]
fn a_step_is_no_rate() {
    for share in [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98] {
        let step = |at: f64| {
            if at < share * DAY {
                100_000.0
            } else {
                150_000.0
            }
        };
        let points = counts(&evenly(86_400, 1440), step);
        let growth = of(&points);
        // Long after the step it is over.
        let is_flat = growth.rate().is_some_and(|rate| rate.0 == 0.0);
        assert!(
            is_flat || growth.trend == Err(Unknown::Unsettled),
            "{share}: {growth:?}"
        );
        let soon = when(&points, 500_000);
        assert!(
            matches!(soon, Forecast::Unknown(_) | Forecast::Never),
            "{share}: {soon:?}"
        );
        let far = when(&points, 5_000_000);
        assert!(
            matches!(
                far,
                Forecast::NotWithin(_) | Forecast::Unknown(Unknown::TapersOff)
            ),
            "{share}: {far:?}"
        );
    }
}

#[test]
fn bursts_are_a_rate_if_there_are_many() {
    // Every two hours 10,000 at once.
    let points = counts(&evenly(86_400, 1440), |at| 10_000.0 * (at / 7200.0).floor());
    near(rate(&points), 120_000.0, 0.15);
}

#[test]
fn one_that_begins_to_grow_is_told() {
    let points = counts(&evenly(86_400, 1440), |at| (at - 43_200.0).max(0.0));
    let trend = of(&points).trend.unwrap();
    assert_eq!(trend.pace, Pace::Accelerating);
    assert!(trend.rate.0 > 0.0 && trend.rate.0 <= 86_400.0, "{trend:?}");
}

#[test]
fn one_that_shrinks_never_reaches_it() {
    let points = counts(&evenly(86_400, 1440), |at| 1_000_000.0 - at);
    assert_eq!(of(&points).trend.unwrap().pace, Pace::Shrinking);
    near(rate(&points), -86_400.0, 0.01);
    assert_eq!(when(&points, 1_000_000), Forecast::Never);
}

/// A slow defragmentation falls for hours. What was before its lowest count is forgotten.
#[test]
fn a_fall_is_over_at_its_lowest_count() {
    let curve = |at: f64| match at / 3600.0 {
        hour if hour < 6.0 => 1_000_000.0,
        hour if hour < 12.0 => 1_000_000.0 - 150_000.0 * (hour - 6.0),
        hour => 100_000.0 + 1000.0 * (hour - 12.0),
    };
    let points = counts(&evenly(86_400, 1440), curve);
    let growth = of(&points);
    near(growth.rate().unwrap().0, 24_000.0, 0.02);
    near(growth.watched.as_secs_f64(), 43_200.0, 0.01);
    // While it falls nothing is known.
    let falling = of(&points[..700]);
    assert_eq!(falling.trend, Err(Unknown::TooFewSamples));
}

#[test]
fn small_files_do_not_fall() {
    let points = counts(&evenly(86_400, 1440), |at| 1.0 + (at / 600.0).floor() % 2.0);
    assert_eq!(of(&points).watched, WINDOW);
    assert!(has_fallen(ExtentCount(32), ExtentCount(16)));
    assert!(!has_fallen(ExtentCount(32), ExtentCount(17)));
    assert!(!has_fallen(ExtentCount(15), ExtentCount(0)));
}

/// Counts from before a clock was set back lie in the future, and out of order.
#[test]
fn clocks_that_jump_do_no_harm() {
    let line = |at: f64| 1000.0 + 10.0 * at;
    let mut points = counts(&evenly(86_400, 1440), line);
    let expected = of(&points);
    // The clock was a day ahead, for an hour, long ago.
    for point in &mut points[300..360] {
        point.at.0 += 90_000;
    }
    let now = points.last().unwrap().at;
    near(
        growth(&points, WINDOW, now).rate().unwrap().0,
        864_000.0,
        0.01,
    );
    // It was an hour ahead all the time before, and was set right six hours ago.
    let mut points = counts(&evenly(86_400, 1440), line);
    for point in &mut points[..1080] {
        point.at.0 += 3600;
    }
    near(
        growth(&points, WINDOW, now).rate().unwrap().0,
        864_000.0,
        0.15,
    );
    // It was an hour behind.
    let mut points = counts(&evenly(86_400, 1440), line);
    for point in &mut points[..1080] {
        point.at.0 -= 3600;
    }
    near(
        growth(&points, WINDOW, now).rate().unwrap().0,
        864_000.0,
        0.15,
    );
    assert!(expected.trend.is_ok());
}

/// How the time left compares to the truth, if there is any.
fn ratio(forecast: Forecast, truth: f64) -> f64 {
    let Forecast::In(time) = forecast else {
        panic!("{forecast:?}, not {truth} s")
    };
    time.as_secs_f64() / truth
}

proptest! {
    /// Linear: 1 % of the rate and 1 % of the time, however the samples lie.
    #[test]
    fn linear(
        span in 3_700_i64..86_000,
        inner in prop::collection::vec(0.0_f64..1.0, 28..400),
        start in 0_u32..1_000_000,
        rise in 10_000_u32..10_000_000,
    ) {
        let mut times: Vec<i64> = inner.iter().map(|share| (share * span as f64) as i64).collect();
        times.extend([0, span]);
        times.sort_unstable();
        times.dedup();
        let (start, slope) = (f64::from(start), f64::from(rise) / span as f64);
        // A start that is far below would be seen as a fall if time ran backwards; it does not.
        let points = counts(&times, |at| start + slope * at);
        near(rate(&points), slope * DAY, 0.01);
        let left = 2.0 * span as f64;
        let critical = start + slope * (span as f64 + left);
        near(ratio(when(&points, unsigned(critical)), left), 1.0, 0.011);
    }

    /// Any order, and any of them twice: the same.
    #[test]
    fn order_and_copies_do_not_matter(
        seed in prop::collection::vec((0_i64..86_400, 0_u64..1_000_000), 1..300),
        rotate in 0_usize..300,
    ) {
        let mut points: Vec<Point> = seed.iter().map(|(at, extents)| Point {
            at: UnixTime(*at), extents: ExtentCount(*extents),
        }).collect();
        points.sort_by_key(|point| point.at);
        points.dedup_by_key(|point| point.at);
        let now = UnixTime(86_400);
        let expected = growth(&points, WINDOW, now);
        let middle = rotate % points.len();
        let mut mixed = points.clone();
        mixed.rotate_left(middle);
        mixed.reverse();
        mixed.extend_from_slice(&points[..middle]);
        prop_assert_eq!(growth(&mixed, WINDOW, now), expected);
    }

    /// Noise of a tenth of the whole rise in every count, and every tenth count anywhere: 25 %.
    #[test]
    fn noisy(
        noise in prop::collection::vec((-0.1_f64..0.1, 0_u32..10, 0.0_f64..1.0), 200..1440),
        rise in 10_000_u32..1_000_000,
    ) {
        let (start, rise) = (2.0 * f64::from(rise), f64::from(rise));
        let times = evenly(86_400, noise.len() as i64);
        let noise = |at: f64| noise[((at / DAY) * (noise.len() - 1) as f64).round() as usize];
        let points = counts(&times, |at| match noise(at) {
            (_, 0, wild) => start + wild * rise,
            (error, ..) => start + rise * (at / DAY + error),
        });
        near(rate(&points), rise, 0.25);
    }

    /// Noise alone is never an alarm: of 5 % up and down, with the limit at twice the count.
    #[test]
    fn noise_alone(noise in prop::collection::vec(-0.05_f64..0.05, 24..300)) {
        let times = evenly(86_400, noise.len() as i64);
        let points = counts(&times, |at| {
            let number = ((at / DAY) * (noise.len() - 1) as f64).round() as usize;
            1_000_000.0 * (1.0 + noise[number])
        });
        let told = when(&points, 2_000_000);
        // One in a hundred is surely rising by mistake: then at least not soon.
        let is_calm = told.time_left().is_none_or(|left| left > 7 * WINDOW);
        prop_assert!(is_calm, "{:?}", told);
    }

    /// The steep rise after a defragmentation that tapers off, with a limit that it never comes to
    /// (a quarter above where it ends): never an alarm, at no time, however long it takes (up to
    /// four windows).
    #[test]
    fn saturating_does_not_cry_wolf(
        constant in 1_800_f64..4.0 * DAY,
        level in 50_000_u32..5_000_000,
        seen in 0.01_f64..5.0,
    ) {
        let level = f64::from(level);
        let span = (seen * constant).clamp(1_000.0, 3.0 * DAY) as i64;
        let curve = |at: f64| level * (1.0 - (-at / constant).exp());
        let points = counts(&evenly(span, span / 60), curve);
        let told = when(&points, unsigned(1.25 * level));
        prop_assert!(told.time_left().is_none(), "{:?} {:?}", told, of(&points));
    }

    /// The same rise with a limit that it does come to: the forecast is between half of the truth
    /// and one and a half of it, or says that it cannot tell.
    #[test]
    fn saturating_beyond_the_limit(
        constant in 3_600_f64..2.0 * DAY,
        seen in 0.25_f64..1.5,
        share in 0.1_f64..0.5,
    ) {
        let level = 10_000_000.0;
        let span = (seen * constant).clamp(4_000.0, 86_400.0) as i64;
        let curve = |at: f64| level * (1.0 - (-at / constant).exp());
        let points = counts(&evenly(span, span / 60 + 1), curve);
        let now = curve(span as f64);
        let critical = now + share * (level - now);
        let truth = -constant * (1.0 - share).ln();
        match when(&points, unsigned(critical)) {
            Forecast::In(time) => near(time.as_secs_f64() / truth, 1.0, 0.5),
            told => prop_assert!(matches!(told, Forecast::Unknown(Unknown::TapersOff)), "{:?}", told),
        }
    }

    /// Saw-tooth: each fall begins anew. 5 % of the rate once it has gone on for long enough.
    #[test]
    fn saw_tooth(
        period in 7_200_i64..40_000,
        rise in 1_000_u32..1_000_000,
        end in 40_000_i64..86_400,
    ) {
        let slope = f64::from(rise) / period as f64;
        let curve = |at: f64| 100.0 + slope * (at % period as f64);
        let points = counts(&evenly(end, end / 60), curve);
        let growth = of(&points);
        match growth.trend {
            Ok(trend) => near(trend.rate.0, slope * DAY, 0.05),
            Err(_) => prop_assert!(end % period < 3_800, "{:?}", growth),
        }
        prop_assert!(growth.watched.as_secs() <= (end % period) as u64 + 60);
    }

    /// Whatever comes, there is an answer, and none that is not a number.
    #[test]
    fn anything(
        seed in prop::collection::vec((any::<i64>(), any::<u64>()), 0..60),
        near_seed in prop::collection::vec((0_i64..100_000, 0_u64..1000), 0..200),
        window in prop_oneof![Just(0), 1_u64..1_000_000, any::<u64>()],
        now: i64,
        critical: u64,
    ) {
        for (seed, now) in [(seed, now), (near_seed, 100_000)] {
            let points: Vec<Point> = seed.into_iter().map(|(at, extents)| Point {
                at: UnixTime(at), extents: ExtentCount(extents),
            }).collect();
            let grown = growth(&points, Duration::from_secs(window), UnixTime(now));
            if let Ok(trend) = grown.trend {
                prop_assert!(trend.rate.0.is_finite());
                prop_assert!(trend.low <= trend.rate && trend.rate <= trend.high, "{:?}", trend);
            }
            let extents = points.last().map_or(ExtentCount(0), |point| point.extents);
            let told = forecast(&grown, extents, ExtentCount(critical));
            prop_assert_eq!(told == Forecast::Reached, extents.0 >= critical);
            if let Forecast::In(time) = told {
                prop_assert!(time <= grown.reach);
            }
        }
    }
}
