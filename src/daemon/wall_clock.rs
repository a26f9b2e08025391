//! Wall-clock time that never jumps: the time when the daemon started plus the time elapsed since,
//! suspend included (`CLOCK_BOOTTIME`). Growth is computed with it, and not changed when the clock is
//! set.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::model::UnixTime;

/// See the module.
#[derive(Debug)]
pub(super) struct MonotonicWallClock {
    /// The wall-clock time of the boot, in seconds since 1970.
    boot: i64,
}

impl MonotonicWallClock {
    pub(super) fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = wall.map_or(0, |since| since.as_secs());
        let wall = i64::try_from(wall).unwrap_or(i64::MAX);
        MonotonicWallClock {
            boot: wall.saturating_sub(since_boot()),
        }
    }

    pub(super) fn now(&self) -> UnixTime {
        UnixTime(self.boot.saturating_add(since_boot()))
    }
}

fn since_boot() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_the_wall_clock() {
        let clock = MonotonicWallClock::start();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let off = clock
            .now()
            .0
            .abs_diff(i64::try_from(wall.as_secs()).unwrap());
        // They tick at different moments.
        assert!(off <= 2, "{off}");
    }
}
