//! The trigger for kernels that log nothing: since 6.9, the page allocator silently retries for
//! ever what XFS requests and must not fail. The sign is a task whose kernel stack shows XFS
//! calling the allocator at scan after scan.
//!
//! # Stacks read at each scan
//!
//! - Tasks in state D.
//! - Tasks in state R that spent time in the kernel since the last scan: an allocation that must
//!   not fail does not always sleep between attempts.
//! - User threads in state S while `pgscan_direct_throttle` of /proc/vmstat rises or is missing. If
//!   the memory reserves are used up, an allocation that may not enter the file system, as all in
//!   XFS transactions, sleeps interruptibly, up to a second at a time, and is counted there before
//!   (`throttle_direct_reclaim`, mm/vmscan.c). No other allocation is known to sleep interruptibly.
//!   Reading every sleeper would take 7 µs each, 18 ms per scan with 2500 threads.
//! - Tasks tracked as starved, in any state.
//!
//! A task is *starved* if its stack has a function of the page or slab allocator that was called,
//! directly or indirectly, by one of XFS. The order matters: XFS called by the allocator is
//! reclaim, behind which a drop of the slab cache would only queue. An allocation that waits for a
//! cgroup's limit does not count, since memory dropped by the host does not raise that limit.
//!
//! A task starved at every scan for `stall_after` triggers the rescue, at each scan while that
//! lasts. A task is cleared when its stack shows other work or it has ended. For [`tracker::GAP`]
//! it is not cleared by an inconclusive reading: a file that cannot be opened, a task at which a
//! reader hangs, or a running task, whose stack the kernel does not show (`task_on_another_cpu`,
//! arch/x86/kernel/unwind_orc.c). The last is read again from its own processor, where only the
//! reader or the task can run; only a few per scan, the longest starved first. Failed scans do not
//! count.
//!
//! # The gate
//!
//! With 500 processes of 2500 threads, a scan takes 40 ms of processor time. So scans are made only
//! within 5 s of a change in the first line of /proc/pressure/memory, every 3 s, and every second
//! while a task is starved. That line counts the time in which any task was in direct reclaim or
//! compaction (`psi_memstall_enter` in mm/page_alloc.c), while it lasts; every attempt of a waiting
//! allocation goes through one of them. Without PSI (compiled in but off on RHEL), `allocstall_*`
//! and `compact_stall` of /proc/vmstat are used, which count attempts instead of time. In any case
//! there is a scan every 60 s, or every 10 s without PSI. At rest this takes 50 ms per minute, a
//! fifth of it for the gate.
//!
//! # Law 1: the fast side never waits for a file system
//!
//! Scans run on a thread of their own. The files of the gate are open from the start, large buffers
//! are reused, and nothing outside /proc is accessed. Both threads are `IO_FLUSHER`s (prctl(2)): for
//! their allocations, the kernel does not enter file systems, so that they do not get stuck in the
//! shrinkers of XFS, and kills no process (`out_of_memory`, mm/oom_kill.c). Their stacks and heaps
//! are touched at the start: on a starved kernel (tests/starved.rs) the first use of another stack
//! page does not return. Three waits remain:
//!
//! - Opening a file of a task allocates a few small objects and a page in the kernel. XFS mostly
//!   fails to get large blocks; small ones are available far longer.
//! - Reading a stack takes a lock that execve(2) holds while it replaces the process (`lock_trace`,
//!   fs/proc/base.c; before 5.11 during all of execve, including reading the program).
//! - Reading `stat` holds the memory map of the process briefly (`get_task_mm`, fs/proc/array.c).
//!   If the process ends at that moment, the reader tears the map down and closes its files.
//!
//! A reader that misses its deadline is therefore left behind, and a new one skips the task at
//! which it hangs; at most [`detector::LEFT_BEHIND`] are left behind. A reader that returns ends.
//! The thread that waits for readers accesses no file. The detector is up
//! ([`StallHealth::trouble`]) while its thread runs, a reader answers at least every
//! [`detector::SILENT_AFTER`], and stacks can be read; each scan tests its own and kthreadd's.

mod access;
mod detector;
mod gate;
mod scanner;
mod stack;
mod tracker;
mod trigger;

pub use detector::{INTERVAL, StallDetector, StallHealth, StallSettings};
pub use stack::{StackVerdict, verdict};
pub use trigger::effective_trigger;

#[cfg(test)]
mod tests;
