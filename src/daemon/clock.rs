//! The daemon's clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::model::UnixTime;

/// Seconds since 1970, for Prometheus.
pub(super) fn now() -> f64 {
    seconds(SystemTime::now())
}

/// The wall clock: that of all rows in the history.
pub(super) fn wall() -> UnixTime {
    unix(SystemTime::now())
}

pub(super) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::from_seconds(seconds(time))
}

fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// A wall clock that never jumps: the daemon's start time plus the time elapsed since, suspend
/// included (`CLOCK_BOOTTIME`). Growth is computed with it, so it ignores clock changes.
#[derive(Debug)]
pub(super) struct MonotonicWallClock {
    boot: i64,
}

impl MonotonicWallClock {
    pub(super) fn start() -> Self {
        let boot = wall().0.saturating_sub(since_boot());
        MonotonicWallClock { boot }
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
        let steady = MonotonicWallClock::start();
        // They tick at different moments.
        let off = steady.now().0.abs_diff(wall().0);
        assert!(off <= 2, "{off}");
    }
}
