//! Limits the work of one kernel call, so that other users of the image do not wait too long. Pure.
//! The cost of a call depends on the number of extents (each is at least one transaction) and of
//! bytes (each page is copied and written). The last calls show how much fits into the target time.

use std::time::Duration;

use crate::model::{Bytes, Extent, Stalls};

/// The unit of copying, in bytes.
pub const PAGE: u64 = 4096;
/// The cost of an extent, in pages: 15 µs to 30 µs against 3 µs to 6 µs, measured.
const EXTENT_COST: u64 = 5;
/// The cost of the first call: eight extents of a page.
const FIRST: f64 = 48.0;
/// The lowest cost: two extents, as one would move nothing.
const LEAST: f64 = 12.0;
/// The highest cost: 16 MiB in one piece.
const MOST: f64 = 4096.0;
/// The cost grows while calls stay below this share of the target.
const ROOM: f64 = 0.5;
const GROWTH: f64 = 1.25;
/// The smallest factor by which it shrinks.
const FALL: f64 = 0.125;
const LONGEST_REST: Duration = Duration::from_secs(2);

/// The cost of a call, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(pub u64);

impl Cost {
    /// The cost of an extent, or of a part of one.
    pub fn of(extent: &Extent) -> Cost {
        Cost(EXTENT_COST.saturating_add(extent.length.0.div_ceil(PAGE)))
    }

    /// How many bytes of one more extent it allows.
    pub fn bytes_left(self) -> Bytes {
        Bytes(self.0.saturating_sub(EXTENT_COST).saturating_mul(PAGE))
    }
}

/// Chooses how much each call does.
#[derive(Debug, Clone)]
pub struct Governor {
    target: Duration,
    cost: f64,
    slow: bool,
}

impl Governor {
    /// `target` is the longest allowed duration of a call.
    pub fn new(target: Duration) -> Governor {
        Governor {
            target: target.max(Duration::from_millis(1)),
            cost: FIRST,
            slow: false,
        }
    }

    // Between LEAST and MOST.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn cost(&self) -> Cost {
        Cost(self.cost as u64)
    }

    /// Records that the longest call of a segment of this cost took `longest`.
    // Far from 2^53.
    #[allow(clippy::cast_precision_loss)]
    pub fn took(&mut self, cost: Cost, longest: Duration) {
        let share = longest.as_secs_f64() / self.target.as_secs_f64();
        self.slow = share > 1.0;
        if share > 1.0 {
            // Shrink at once, with room to spare; after a slow call of a lower cost, from that.
            let done = (cost.0 as f64).min(self.cost);
            self.cost = done * (ROOM / share).max(FALL);
        } else if share < ROOM && cost.0 as f64 * 2.0 >= self.cost {
            self.cost *= GROWTH;
        }
        self.cost = self.cost.clamp(LEAST, MOST);
    }

    /// The rest after a segment whose calls took `busy`: as long while the image is in use, none
    /// while no process has it open, and longer after a slow call.
    pub fn rest(&self, busy: Duration, in_use: bool) -> Duration {
        let factor = match (in_use, self.slow) {
            (_, true) => 4,
            (true, false) => 1,
            (false, false) => 0,
        };
        busy.saturating_mul(factor).min(LONGEST_REST)
    }
}

/// Buckets per doubling.
const FINENESS: f64 = 8.0;

/// The durations of calls.
#[derive(Debug, Clone, Default)]
pub struct CallTimes {
    stalls: Stalls,
    buckets: Vec<u64>,
}

impl CallTimes {
    // The logarithm of a number of microseconds is below 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn add(&mut self, took: Duration) {
        self.stalls.add(took);
        let microseconds = (took.as_secs_f64() * 1e6).max(1.0);
        let bucket = (microseconds.log2() * FINENESS) as usize;
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
    }

    /// Their number, the longest, and all together.
    pub fn stalls(&self) -> Stalls {
        self.stalls
    }

    /// The median, to a tenth.
    // There are few buckets.
    #[allow(clippy::cast_precision_loss)]
    pub fn median(&self) -> Duration {
        let mut left = self.buckets.iter().sum::<u64>().div_ceil(2);
        let middle = self.buckets.iter().position(|count| {
            left = left.saturating_sub(*count);
            left == 0
        });
        let seconds = |bucket| ((bucket as f64 + 0.5) / FINENESS).exp2() / 1e6;
        let middle = middle.and_then(|bucket| Duration::try_from_secs_f64(seconds(bucket)).ok());
        let longest = self.stalls.longest;
        middle.unwrap_or(longest).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AIM: Duration = Duration::from_millis(20);

    /// A disk on which a page's worth of work takes so many microseconds.
    fn call(governor: &mut Governor, speed: u64) -> Duration {
        let cost = governor.cost();
        let took = Duration::from_micros(cost.0 * speed);
        governor.took(cost, took);
        took
    }

    proptest! {
        /// On a disk of steady speed calls come near the aim and stay below it.
        #[test]
        fn the_aim_is_kept(speed in 1_u64..1500) {
            let mut governor = Governor::new(AIM);
            for _ in 0..60 {
                call(&mut governor, speed);
            }
            for _ in 0..50 {
                let took = call(&mut governor, speed);
                prop_assert!(took <= AIM, "{took:?}");
                prop_assert!(took >= AIM.mul_f64(0.3) || governor.cost().0 == 4096, "{took:?}");
            }
        }

        /// When the disk becomes slower all of a sudden, three calls are too long at most.
        #[test]
        fn it_backs_off_at_once(speed in 1_u64..20, slower in 2_u64..60) {
            let mut governor = Governor::new(AIM);
            for _ in 0..60 {
                call(&mut governor, speed);
            }
            let long = (0..50).filter(|_| call(&mut governor, speed * slower) > AIM).count();
            prop_assert!(long <= 3, "{long}");
        }

        /// Whatever it is told, it allows something, and never too much.
        #[test]
        fn it_stays_within_its_bounds(
            calls in prop::collection::vec((0_u64..u64::MAX, 0_u64..u64::MAX / 4), 0..100)
        ) {
            let mut governor = Governor::new(Duration::ZERO);
            for (cost, nanoseconds) in calls {
                governor.took(Cost(cost), Duration::from_nanos(nanoseconds));
                prop_assert!((12..=4096).contains(&governor.cost().0));
            }
            prop_assert!(governor.rest(Duration::MAX, true) <= LONGEST_REST);
        }

        /// The median is one to a tenth.
        #[test]
        fn the_median_is_near(mut calls in prop::collection::vec(1_u64..10_000_000, 1..100)) {
            let mut times = CallTimes::default();
            for call in &calls {
                times.add(Duration::from_micros(*call));
            }
            calls.sort_unstable();
            let exact = calls[calls.len().div_ceil(2) - 1] as f64;
            let median = times.median().as_secs_f64() * 1e6;
            prop_assert!((median / exact - 1.0).abs() < 0.1 || (median - exact).abs() <= 1.0);
            let sum = Duration::from_micros(calls.iter().sum());
            let stalls = times.stalls();
            prop_assert_eq!((stalls.calls, stalls.total), (calls.len() as u64, sum));
            prop_assert_eq!(stalls.longest, Duration::from_micros(*calls.last().unwrap()));
        }
    }

    #[test]
    fn an_image_that_nobody_uses_needs_no_rest() {
        let mut governor = Governor::new(AIM);
        assert_eq!(governor.rest(AIM, false), Duration::ZERO);
        assert_eq!(governor.rest(AIM, true), AIM);
        governor.took(Cost(48), AIM * 3);
        assert_eq!(governor.rest(AIM, true), AIM * 4);
        assert_eq!(governor.rest(AIM, false), AIM * 4);
        assert_eq!(CallTimes::default().median(), Duration::ZERO);
    }
}
