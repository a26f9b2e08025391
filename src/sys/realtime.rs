//! Locked memory and scheduling priority: mlockall(2), sched_setscheduler(2), setpriority(2).

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::setpriority_process;

/// Locks the memory of the process: resident pages, and others from their first use on
/// (MCL_ONFAULT, since 4.4). Code that must not wait for a disk has to run once afterwards.
///
/// # Errors
/// EPERM or ENOMEM without CAP_IPC_LOCK and beyond RLIMIT_MEMLOCK.
pub fn lock_memory() -> io::Result<()> {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
    match mlockall(all | MlockAllFlags::ONFAULT) {
        Err(rustix::io::Errno::INVAL) => Ok(mlockall(all)?),
        other => Ok(other?),
    }
}

/// Keeps present memory locked, but no longer locks new memory. To be called after [`lock_memory`],
/// when all that must not wait for a disk has its memory. Locked pages cannot be returned to the
/// kernel (madvise(2), MADV_DONTNEED: EINVAL), so that the heap would stay at its largest.
///
/// # Errors
/// As for [`lock_memory`]; EINVAL before kernel 4.4, where new memory is still locked.
pub fn lock_no_more() -> io::Result<()> {
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT)?)
}

/// How the scheduler treats a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedPolicy {
    /// Ahead of all ordinary threads (SCHED_FIFO at its lowest priority).
    RealTime,
    /// The largest share among ordinary threads (nice -20).
    Raised,
    /// The default, if nothing else is permitted.
    Ordinary,
}

/// Gives the calling thread the best policy that is permitted.
pub fn raise_policy() -> SchedPolicy {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and the parameters are read only.
    let real_time = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if real_time == 0 {
        return SchedPolicy::RealTime;
    }
    // On Linux this is the calling thread.
    match setpriority_process(None, -20) {
        Ok(()) => SchedPolicy::Raised,
        Err(_) => SchedPolicy::Ordinary,
    }
}

/// Touches `KIB` kibibytes of the calling thread's stack to make them resident.
#[inline(never)]
pub fn touch_stack<const KIB: usize>() {
    let stack = [[0_u8; 1024]; KIB];
    std::hint::black_box(&stack);
}
