//! The trigger for kernels that log nothing: from 6.9 on the page allocator retries for ever, without a
//! message, what XFS asks for and must not fail. What can be seen is a task whose kernel stack shows
//! the allocator called by XFS, scan after scan.
//!
//! # Which stacks are read
//!
//! At each scan, those of
//!
//! - tasks in state D;
//! - tasks in state R that spent time in the kernel since the last scan: an allocation that may not
//!   fail does not always sleep between attempts;
//! - while `pgscan_direct_throttle` of /proc/vmstat moves, user threads in state S. When the memory
//!   reserves are used up, an allocation that may not enter the file system, as all in transactions
//!   of XFS, sleeps interruptibly, up to a second a time (`throttle_direct_reclaim`, mm/vmscan.c),
//!   and is counted there before it does. No other allocation is known to sleep interruptibly.
//!   Without the condition all sleepers would have to be read: 7 µs each, 18 ms a scan with 2500
//!   threads. A kernel that does not count is taken to throttle;
//! - whatever their states, tasks that were starved at the last scan.
//!
//! A task is *starved* when its stack has a function of the page or slab allocator that was called,
//! directly or not, by one of XFS. The order matters: XFS called by the allocator is reclaim, behind
//! which a drop of the slab cache would only queue up. An allocation that waits for the limit of a
//! cgroup does not count: what the host drops does not raise that limit.
//!
//! When a task is starved at every scan for `stall_after`, the rescue is asked for, at each scan as
//! long as it lasts. A task whose stack shows other work, or that has ended, is cleared. For
//! [`tracker::GAP`] a task is not cleared by what shows nothing: a file that cannot be opened, a task
//! at which a reader hangs, and a running task, whose stack the kernel does not show
//! (`task_on_another_cpu`, arch/x86/kernel/unwind_orc.c). The last is read from its own processor,
//! where only one of the two can run; the longest starved first, because this is done for a few only.
//! A scan that failed is not counted at all.
//!
//! # The gate
//!
//! With 500 processes of 2500 threads a scan takes 40 ms of processor time. So it is only made when
//! the first line of /proc/pressure/memory has moved since the last second, and at most every third
//! second while no task is starved. That line counts the time in which any task was in direct reclaim
//! or compaction (`psi_memstall_enter` in mm/page_alloc.c), while it lasts; every attempt of a waiting
//! allocation goes through one of them. Without PSI (on RHEL it is compiled in but off) it is
//! `allocstall_*` and `compact_stall` of /proc/vmstat, which count attempts, not time. In any case
//! there is a scan every minute, every ten seconds without PSI. At rest that is 50 ms a minute, a
//! fifth of it for the gate.
//!
//! # Law 1: the fast side never waits for a file system
//!
//! The scans are made on a thread of their own. The files of the gate are open from the start, buffers
//! are used again, nothing outside /proc is touched. Both threads are `IO_FLUSHER`s (prctl(2)): for
//! their memory the kernel does not call the file systems, so that they do not get stuck in the
//! shrinkers of XFS, and kills no process (`out_of_memory`, mm/oom_kill.c). Their stacks and heaps are
//! touched at the start: on a starved kernel (tests/starved.rs) the first use of a further page of the
//! stack does not return.
//!
//! Three waits remain:
//!
//! - Opening a file of a task takes memory in the kernel: a few small objects and a page. What XFS
//!   fails to get are large blocks, mostly; small ones are there far longer.
//! - Reading a stack takes a lock that execve(2) holds while it replaces the process (`lock_trace`,
//!   fs/proc/base.c; before 5.11 during all of it, the reading of the program included).
//! - Reading `stat` holds the memory map of the process for a moment (`get_task_mm`,
//!   fs/proc/array.c). If the process ends in just that moment, the reader tears the map down and
//!   closes its files.
//!
//! So a reader that does not answer in time is left behind, and another one leaves out the task at
//! which it hangs; at most [`detector::LEFT_BEHIND`] of them. One that returns ends. The thread that
//! waits for them touches no file.
//!
//! The detector is up ([`StallHealth::trouble`]) while its thread runs, a reader answers at least
//! every [`detector::SILENT_AFTER`], and stacks can be read: at each scan its own is, and that of
//! kthreadd.

mod access;
mod detector;
#[cfg(test)]
mod fake_proc;
mod gate;
mod scanner;
mod stack;
mod tracker;
mod trigger;

pub use detector::{INTERVAL, StallDetector, StallHealth, StallSettings};
pub use trigger::effective_trigger;
