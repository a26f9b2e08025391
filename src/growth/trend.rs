//! The rate at which an image gains extents.
//!
//! The rate is the median of the slopes between all pairs of counts (Theil–Sen), with the
//! confidence interval of Kendall's rank statistic (Sen 1968), which decides whether there is a
//! rate at all. Extents come in bursts, which a least-squares line or the difference of the last
//! and the first count would follow. The median is unchanged until nearly a third of the counts are
//! outliers, is not moved by a single step of any height, and assumes no error distribution.
//!
//! - **A fall by half** (a defragmentation) starts a new series at the lowest count after it.
//! - **A rise that tapers off** follows a defragmentation. If the later half of the time rises
//!   significantly more slowly than the earlier one, only the later half is used, then its later
//!   half again. The ratio of the two rates gives the level at which the rise ends.
//! - A rise that **accelerates** is reported, but all counts are used: it happens every morning.
//! - Counts may be unordered and duplicated. Those of the future (a clock set back) are ignored.

use std::time::Duration;

use crate::model::growth::REACH_OF_WINDOW;
use crate::model::{ExtentCount, ExtentsPerDay, Growth, Pace, Point, Trend, UnixTime, Unknown};

/// Minimum number of samples for a trend.
pub(super) const FEWEST_SAMPLES: usize = 10;
/// The samples must cover the window divided by this: an hour of a one-day window.
pub(super) const SHORTEST_PART: u32 = 24;
/// More samples are thinned to this number, evenly in time: the work is quadratic.
pub(super) const MOST_SAMPLES: usize = 96;
/// Reach of a forecast in observed times; [`REACH_OF_WINDOW`] after a whole window.
const REACH: u32 = 4;
/// The part of a window that counts as whole: samples do not fall on its edges.
const WHOLE_WINDOW: f64 = 0.9;
/// Standard deviations of Kendall's statistic on either side: 99 % of a normal distribution. More
/// than the usual 95 %, because successive counts are not independent.
const DEVIATIONS: f64 = 2.576;
/// A rate has changed if the smaller one is less than this part of the larger one.
const CHANGE: f64 = 0.9;
/// Maximum number of times that the later half is taken.
const MOST_HALVES: usize = 3;
/// Smaller falls are ignored: a small file alternates between one and two extents.
const SMALLEST_FALL: u64 = 16;

/// The growth of an image in the `window` before `now`.
pub fn growth(points: &[Point], window: Duration, now: UnixTime) -> Growth {
    let points = in_order(points, window, now);
    let begin = begin(&points);
    grown(points.get(begin..).unwrap_or_default(), window, now)
}

/// The counts within the window, oldest first, one per time.
fn in_order(points: &[Point], window: Duration, now: UnixTime) -> Vec<Point> {
    let is_inside = |point: &&Point| (now.before(window)..=now).contains(&point.at);
    let mut inside: Vec<Point> = points.iter().filter(is_inside).copied().collect();
    // The sort is stable: of several counts of one time the last is kept.
    inside.sort_by_key(|point| point.at);
    inside.reverse();
    inside.dedup_by_key(|point| point.at);
    inside.reverse();
    inside
}

/// Whether the decrease between two counts indicates a defragmentation.
pub(super) fn has_fallen(from: ExtentCount, to: ExtentCount) -> bool {
    from.0.saturating_sub(to.0) >= SMALLEST_FALL && to.0 <= from.0 / 2
}

/// The start of the present series in points ordered by time: 0, or the lowest after the last fall.
pub(super) fn begin(points: &[Point]) -> usize {
    let mut begin = 0;
    let mut highest = ExtentCount(0);
    let mut fell = false;
    for (at, point) in points.iter().enumerate() {
        let lowest = points[begin].extents;
        if has_fallen(highest, point.extents) || (fell && point.extents <= lowest) {
            (begin, highest, fell) = (at, point.extents, true);
        }
        highest = highest.max(point.extents);
    }
    begin
}

/// The growth of points ordered by time, without a fall.
fn grown(points: &[Point], window: Duration, now: UnixTime) -> Growth {
    let first = points.first().map_or(now, |first| first.at);
    let last = points.last().map_or(now, |last| last.at);
    let watched = Duration::from_secs(first.0.abs_diff(last.0));
    let is_whole = watched >= window.mul_f64(WHOLE_WINDOW);
    let reach = watched.saturating_mul(if is_whole { REACH_OF_WINDOW } else { REACH });
    let nothing = |unknown| Growth {
        trend: Err(unknown),
        at_most: None,
        samples: points.len(),
        since: first,
        watched,
        reach,
    };
    if points.len() < FEWEST_SAMPLES {
        return nothing(Unknown::TooFewSamples);
    }
    if watched < window / SHORTEST_PART || watched.is_zero() {
        return nothing(Unknown::TooShort);
    }
    let samples = thinned(points);
    if samples
        .windows(2)
        .all(|pair| pair[0].extents == pair[1].extents)
    {
        let none = ExtentsPerDay(0.0);
        let trend = Trend {
            rate: none,
            low: none,
            high: none,
            pace: Pace::Silent,
        };
        return Growth {
            trend: Ok(trend),
            at_most: Some(none),
            ..nothing(Unknown::Unsettled)
        };
    }
    let course = Course::of(&samples);
    let begin = samples.len() - course.part.len();
    Growth {
        trend: course.trend(),
        at_most: Some(ExtentsPerDay::from_per_second(course.steepest())),
        samples: course.part.len(),
        since: UnixTime(first.0.saturating_add(round(samples[begin].at))),
        ..nothing(Unknown::Unsettled)
    }
}

/// A count as floats: seconds since the first one, and extents.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: f64,
    extents: f64,
}

/// At most [`MOST_SAMPLES`] with the last one, as evenly spaced in time as possible.
fn thinned(points: &[Point]) -> Vec<Sample> {
    let Some(first) = points.first() else {
        return Vec::new();
    };
    let sample = |point: &Point| Sample {
        at: float(point.at.0.abs_diff(first.at.0)),
        extents: float(point.extents.0),
    };
    if points.len() <= MOST_SAMPLES {
        return points.iter().map(sample).collect();
    }
    let span = points.last().map_or(0.0, |last| sample(last).at);
    let step = span / float(MOST_SAMPLES as u64 - 1);
    let mut samples = Vec::with_capacity(MOST_SAMPLES);
    let mut due = 0.0;
    for (number, sample) in points.iter().map(sample).enumerate() {
        if number + 1 == points.len() || (sample.at >= due && samples.len() + 1 < MOST_SAMPLES) {
            due = (sample.at / step).floor().mul_add(step, step);
            samples.push(sample);
        }
    }
    samples
}

/// The line through some samples, in extents per second.
#[derive(Debug, Clone, Copy)]
struct Line {
    slope: f64,
    low: f64,
    high: f64,
}

impl Line {
    /// Requires at least three samples with increasing times.
    fn through(samples: &[Sample], slopes: &mut Vec<f64>) -> Line {
        slopes.clear();
        for (number, later) in samples.iter().enumerate() {
            let before = samples[..number].iter();
            slopes.extend(before.map(|s| (later.extents - s.extents) / (later.at - s.at)));
        }
        let count = slopes.len();
        let middle = count / 2;
        let half_width = DEVIATIONS * kendall_variance(samples).sqrt() / 2.0;
        // A negative float becomes 0.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let low = (float(count as u64) / 2.0 - half_width).floor() as usize;
        let high = count.saturating_sub(1).saturating_sub(low);
        let (below, slope, above) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
        let slope = *slope;
        let rank = |part: &mut [f64], nth: usize| match part.len() {
            0 => slope,
            all => {
                *part
                    .select_nth_unstable_by(nth.min(all - 1), f64::total_cmp)
                    .1
            }
        };
        Line {
            slope,
            low: rank(below, low),
            high: match high.checked_sub(middle + 1) {
                Some(nth) => rank(above, nth),
                None => slope,
            },
        }
    }
}

/// The variance of Kendall's statistic without a trend: by order alone, less a term for each tie.
fn kendall_variance(samples: &[Sample]) -> f64 {
    let term = |n: usize| {
        let n = float(n as u64);
        n * (n - 1.0) * 2.0_f64.mul_add(n, 5.0)
    };
    let mut values: Vec<f64> = samples.iter().map(|sample| sample.extents).collect();
    values.sort_unstable_by(f64::total_cmp);
    let equal = |a: &f64, b: &f64| a.total_cmp(b).is_eq();
    let ties: f64 = values.chunk_by(equal).map(|group| term(group.len())).sum();
    (term(samples.len()) - ties) / 18.0
}

/// A change of the rate from one half to the next.
#[derive(Debug, Clone, Copy)]
enum Bend {
    /// The rate decreases, with this time constant in seconds. Zero if it decreased to nothing.
    Slower(f64),
    Faster,
}

struct Course<'s> {
    part: &'s [Sample],
    line: Line,
    bend: Option<Bend>,
}

impl<'s> Course<'s> {
    fn of(samples: &'s [Sample]) -> Course<'s> {
        let mut slopes = Vec::with_capacity(samples.len() * samples.len() / 2);
        let mut course = Course {
            part: samples,
            line: Line::through(samples, &mut slopes),
            bend: None,
        };
        for _ in 0..MOST_HALVES {
            let Some((earlier, later)) = halves(course.part) else {
                break;
            };
            let before = Line::through(earlier, &mut slopes);
            let after = Line::through(later, &mut slopes);
            let is_slower = after.high < before.low && after.slope < CHANGE * before.slope;
            if !is_slower || before.slope <= 0.0 {
                if after.low > before.high && CHANGE * after.slope > before.slope {
                    course.bend = course.bend.or(Some(Bend::Faster));
                }
                break;
            }
            let constant = match after.slope {
                slope if slope > 0.0 => span(course.part) / 2.0 / (before.slope / slope).ln(),
                _ => 0.0,
            };
            course = Course {
                part: later,
                line: after,
                bend: Some(Bend::Slower(constant)),
            };
        }
        course
    }

    fn trend(&self) -> Result<Trend, Unknown> {
        let Line { slope, low, high } = self.line;
        let pace = match self.bend {
            _ if high < 0.0 => Pace::Shrinking,
            Some(Bend::Slower(constant)) if low > 0.0 || high <= 0.0 => Pace::Tapering {
                level: self.level(constant),
            },
            Some(Bend::Faster) if low > 0.0 => Pace::Accelerating,
            None if low > 0.0 => Pace::Steady,
            _ => return Err(Unknown::Unsettled),
        };
        Ok(Trend {
            rate: ExtentsPerDay::from_per_second(slope),
            low: ExtentsPerDay::from_per_second(low),
            high: ExtentsPerDay::from_per_second(high),
            pace,
        })
    }

    /// The level at which a rise ends whose rate decays with `constant`.
    fn level(&self, constant: f64) -> ExtentCount {
        let last = self.part.last().map_or(0.0, |last| last.extents);
        if constant <= 0.0 || self.line.slope <= 0.0 {
            return ExtentCount(unsigned(last));
        }
        // The slope of the line is that of the middle of its part.
        let now = self.line.slope * (-span(self.part) / 2.0 / constant).exp();
        ExtentCount(unsigned(now.mul_add(constant, last)))
    }

    /// The fastest rise consistent with the samples: that of the line, or the whole rise.
    fn steepest(&self) -> f64 {
        let extents = self.part.iter().map(|sample| sample.extents);
        let most = extents.clone().fold(f64::MIN, f64::max);
        let least = extents.fold(f64::MAX, f64::min);
        ((most - least) / span(self.part)).max(self.line.high)
    }
}

/// The earlier and the later half of the time, if both have enough samples.
fn halves(samples: &[Sample]) -> Option<(&[Sample], &[Sample])> {
    let (first, last) = (samples.first()?, samples.last()?);
    let middle = f64::midpoint(first.at, last.at);
    let (earlier, later) = samples.split_at(samples.partition_point(|s| s.at < middle));
    let fewest = earlier.len().min(later.len());
    (fewest >= FEWEST_SAMPLES).then_some((earlier, later))
}

fn span(samples: &[Sample]) -> f64 {
    match samples {
        [first, .., last] => last.at - first.at,
        _ => 0.0,
    }
}

/// Exact below 2^53, far above all counts and times; a forecast does not need the digits beyond.
#[allow(clippy::cast_precision_loss)]
pub fn float(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_possible_truncation)]
fn round(number: f64) -> i64 {
    number.round() as i64
}

/// The nearest `u64`; 0 for negative numbers.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn unsigned(number: f64) -> u64 {
    number.round() as u64
}
