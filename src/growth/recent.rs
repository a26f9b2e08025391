//! The last counts of each image, few enough to be kept in memory. Pure.

use std::time::Duration;

use super::trend::{begin, growth, has_fallen};
use crate::model::{Growth, Point, UnixTime};

/// Maximum number of counts: 1.5 KiB per image.
pub const CAPACITY: usize = 96;

/// The number of intervals after thinning.
const FEWEST_INTERVALS: i64 = 48;

/// The last counts of an image, oldest first, thinned evenly in time; the newest one is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recent {
    points: Vec<Point>,
    /// Minimum number of seconds between two counts, except before the newest one.
    spacing: i64,
}

impl Recent {
    /// Adds a count, and removes those not needed for the growth in `window`.
    pub fn push(&mut self, point: Point, window: Duration) {
        // Counts from before the clock was set back.
        let past = self.points.partition_point(|before| before.at < point.at);
        self.points.truncate(past);
        self.remove_before(point.at, window);
        if self.is_too_near(&point) {
            self.points.pop();
        }
        self.points.push(point);
        // The count before a new series is kept, because it shows the fall.
        let before = begin(&self.points).saturating_sub(1);
        if before > 0 {
            self.points.drain(..before);
            self.spacing = 0;
        }
        if self.points.len() >= CAPACITY {
            self.thin();
        }
    }

    /// Removes all counts, after a defragmentation.
    pub fn clear(&mut self) {
        *self = Recent::default();
    }

    /// The growth in the `window` before `now`.
    pub fn growth(&self, window: Duration, now: UnixTime) -> Growth {
        growth(&self.points, window, now)
    }

    /// The counts, oldest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    fn remove_before(&mut self, now: UnixTime, window: Duration) {
        let oldest = now.before(window);
        let old = self.points.partition_point(|point| point.at < oldest);
        self.points.drain(..old);
    }

    /// Whether `point` replaces the newest count, which it does not if it is a fall from it.
    fn is_too_near(&self, point: &Point) -> bool {
        let [.., before, newest] = self.points.as_slice() else {
            return false;
        };
        newest.at.0.saturating_sub(before.at.0) < self.spacing
            && !has_fallen(newest.extents, point.extents)
    }

    fn thin(&mut self) {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last().copied()) else {
            return;
        };
        let span = last.at.0.saturating_sub(first.at.0);
        self.spacing = span / FEWEST_INTERVALS + 1;
        let mut kept: Option<UnixTime> = None;
        let spacing = self.spacing;
        self.points.retain(|point| {
            let far = |kept: UnixTime| point.at.0.saturating_sub(kept.0) >= spacing;
            let stays = kept.is_none_or(far) || point.at == last.at;
            if stays {
                kept = Some(point.at);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ExtentCount, ExtentsPerDay};
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn point(at: i64, extents: u64) -> Point {
        Point {
            at: UnixTime(at),
            extents: ExtentCount(extents),
        }
    }

    #[test]
    fn a_day_of_minutes_fits_and_grows_as_it_did() {
        let mut recent = Recent::default();
        for minute in 0..3 * 1440 {
            recent.push(point(minute * 60, 1000 + minute.unsigned_abs()), DAY);
            assert!(recent.points().len() < CAPACITY);
            assert_eq!(
                recent.points().last(),
                Some(&point(minute * 60, 1000 + minute.unsigned_abs()))
            );
        }
        assert!(recent.points().len() >= CAPACITY / 2 - 1);
        assert!(recent.points.capacity() <= 128);
        let ExtentsPerDay(rate) = recent.growth(DAY, UnixTime(3 * 86_400)).rate().unwrap();
        assert!((1430.0..1450.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_fall_between_two_kept_counts_is_seen() {
        let mut recent = Recent::default();
        for minute in 0..1440 {
            recent.push(point(minute * 60, 100_000), DAY);
        }
        // Up, and at once down below half of that, but not of what was before.
        recent.push(point(1440 * 60, 200_000), DAY);
        recent.push(point(1441 * 60, 90_000), DAY);
        assert_eq!(
            recent.points(),
            [point(1440 * 60, 200_000), point(1441 * 60, 90_000)]
        );
    }

    #[test]
    fn what_lies_in_the_future_is_forgotten() {
        let mut recent = Recent::default();
        recent.push(point(10, 1), DAY);
        recent.push(point(500, 2), DAY);
        recent.push(point(20, 3), DAY);
        assert_eq!(recent.points(), [point(10, 1), point(20, 3)]);
    }

    proptest! {
        #[test]
        fn any_counts_stay_few_and_in_order(
            steps in prop::collection::vec((-3_000_i64..20_000, 0..1000_u64), 0..600),
            window in 1..1_000_000_u64,
        ) {
            let mut recent = Recent::default();
            let mut at = 0_i64;
            for (step, extents) in steps {
                at += step;
                recent.push(point(at, extents), Duration::from_secs(window));
                prop_assert!(recent.points().len() < CAPACITY);
                prop_assert!(recent.points().is_sorted_by(|a, b| a.at < b.at));
                prop_assert_eq!(recent.points().last(), Some(&point(at, extents)));
            }
        }
    }
}
