//! The clock of the fast side, read without a system call (vdso(7)).

use rustix::time::{ClockId, clock_gettime};

use crate::model::Monotonic;

/// Returns the current time.
pub fn now() -> Monotonic {
    let time = clock_gettime(ClockId::Monotonic);
    // CLOCK_MONOTONIC is never negative.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    Monotonic(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    )
}
