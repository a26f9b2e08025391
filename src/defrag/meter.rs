//! Limits the bandwidth of a run: a token bucket of bytes. Pure.

use std::time::Duration;

use crate::model::Bytes;

/// The burst after a rest. A step of xfs_fsr (16 MiB) may exceed it; rest compensates for that.
const BURST: Duration = Duration::from_millis(250);

/// Determines when a process that has moved too much must pause.
#[derive(Debug, Clone)]
pub struct Meter {
    /// Bytes per second.
    rate: f64,
    burst: f64,
    /// Below zero: the excess.
    left: f64,
    at: Duration,
    seen: Bytes,
}

impl Meter {
    /// `rate` is in bytes per second.
    // Rates above 2^53 bytes per second do not occur, so nothing is lost.
    #[allow(clippy::cast_precision_loss)]
    pub fn new(rate: Bytes) -> Meter {
        let rate = (rate.0 as f64).max(1.0);
        let burst = rate * BURST.as_secs_f64();
        Meter {
            rate,
            burst,
            left: burst,
            at: Duration::ZERO,
            seen: Bytes(0),
        }
    }

    /// Records that `moved` bytes were moved in total until `now`. Returns whether to pause.
    #[allow(clippy::cast_precision_loss)]
    pub fn is_over(&mut self, now: Duration, moved: Bytes) -> bool {
        let time = now.saturating_sub(self.at).as_secs_f64();
        let more = moved.0.saturating_sub(self.seen.0) as f64;
        self.left = (self.left + time * self.rate).min(self.burst) - more;
        self.at = self.at.max(now);
        self.seen = Bytes(self.seen.0.max(moved.0));
        self.left < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A process as fast as it likes, looked at every 50 ms, gets its rate and no more.
        #[test]
        fn the_rate_is_kept(rate in 1_u64..4000, speed in 1_u64..8000, seconds in 20_u64..60) {
            let (rate, speed) = (rate << 20, speed << 20);
            let mut meter = Meter::new(Bytes(rate));
            let (mut moved, mut held) = (0, false);
            for tick in 1..=seconds * 20 {
                if !held {
                    moved += speed / 20;
                }
                held = meter.is_over(Duration::from_millis(50 * tick), Bytes(moved));
            }
            let most = rate * seconds + rate / 4 + speed / 20;
            prop_assert!(moved <= most, "{} of {}", moved, most);
            // Nor is anything withheld.
            let least = rate.min(speed) * seconds;
            prop_assert!(moved + speed / 20 + rate / 20 >= least / 100 * 98, "{} of {}", moved, least);
        }
    }
}
