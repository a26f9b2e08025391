//! Whether the clock of the host is synchronised (adjtimex(2)).

use std::io;

/// Whether a daemon such as chronyd keeps the clock right. chronyd without `rtcsync` does not report it.
pub fn is_synchronised() -> io::Result<bool> {
    // SAFETY: all bytes 0 are a valid `struct timex`, which changes nothing (`modes` is 0).
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is that of a live `struct timex`, which the kernel fills in.
    super::checked(unsafe { libc::adjtimex(&raw mut clock) })?;
    Ok(clock.status & libc::STA_UNSYNC == 0)
}
