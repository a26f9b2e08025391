//! The clock of the fast side, read without a system call (vdso(7)).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::model::Monotonic;

/// Returns the current time.
pub fn now() -> Monotonic {
    // CLOCK_MONOTONIC is never negative.
    let time = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    Monotonic(0).plus(time)
}
