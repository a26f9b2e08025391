//! Wall-clock time that never jumps: what the clock said when the daemon began, and what has gone
//! by since, suspend included (`CLOCK_BOOTTIME`). A clock that is set, forwards or back, leaves the
//! growth of images as it is.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::model::UnixTime;

/// See the module.
#[derive(Debug)]
pub(super) struct Steady {
    /// What the wall clock said at boot, or would have.
    boot: i64,
}

impl Steady {
    pub(super) fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = wall.map_or(0, |since| since.as_secs());
        let wall = i64::try_from(wall).unwrap_or(i64::MAX);
        Steady {
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
        let steady = Steady::start();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let off = steady
            .now()
            .0
            .abs_diff(i64::try_from(wall.as_secs()).unwrap());
        // They tick at different moments.
        assert!(off <= 2, "{off}");
    }
}
