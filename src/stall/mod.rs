//! The trigger for kernels that say nothing. From 6.9 on XFS asks for memory that may not fail and
//! the page allocator tries for ever, without a word. What can be seen is a task whose kernel stack
//! has the allocator called by XFS, look after look.
//!
//! # What is looked at
//!
//! At each scan, the kernel stacks of
//!
//! - tasks in state D;
//! - tasks in state R that spent time in the kernel since the last scan: an allocation that may not
//!   fail sleeps between attempts only sometimes;
//! - while `pgscan_direct_throttle` of /proc/vmstat moves, user threads in state S. When the memory
//!   reserves are used up, an allocation that may not enter the file system, as all in transactions
//!   of XFS, sleeps interruptibly, up to a second a time (`throttle_direct_reclaim`, mm/vmscan.c),
//!   and it counts there before it does. No other place is known where an
//!   allocation sleeps interruptibly. Without the condition every sleeper of the host would have to be looked
//!   at: 7 µs each, 18 ms a scan with 2500 threads. A kernel that does not count is taken to throttle;
//! - whatever their states, tasks that were starved at the last scan.
//!
//! A task is *starved* when its stack has a function of the page or slab allocator that was called,
//! directly or not, by one of XFS. The order matters: XFS called by the allocator is memory being
//! reclaimed, and there a drop of the slab cache would only queue up behind it. Nor does it count when
//! the allocation waits for the limit of a cgroup: what the host drops for it does not make its limit
//! larger.
//!
//! When a task is starved at every scan for `stall_after`, the rescue is asked for, again and again as
//! long as it lasts. A task whose stack shows other work, or that has ended, is cleared. What cannot
//! be seen clears nothing, for [`GAP`]: a file that cannot be opened, a task at which a reader hangs,
//! and a task that is running, of which the kernel shows no stack (`task_on_another_cpu`,
//! arch/x86/kernel/unwind_orc.c). The last is looked at from its own processor, where only one of us
//! can run; the tasks that have been starved longest first, for this is done for a few only. A scan
//! that could not be made is not counted at all.
//!
//! # The gate
//!
//! On a host of 500 processes with 2500 threads a scan of all of them takes 40 ms of processor time.
//! So it is only made when the first line of /proc/pressure/memory has moved since the last
//! second, and as long as it finds nobody starved no more often than every third second. That line
//! counts the time in which any task was in direct reclaim or compaction (`psi_memstall_enter` in
//! mm/page_alloc.c), and every attempt of a waiting allocation goes through one of them; it counts
//! while it lasts, so a reclaim that never returns moves it too. Without PSI (it is compiled in but
//! off on RHEL) it is `allocstall_*` and `compact_stall` of /proc/vmstat, which count attempts, not
//! time. In case the argument has a hole there is a look every minute without any sign, every ten
//! seconds without PSI. At rest that is 50 ms a minute, a fifth of it for the gate.
//!
//! # Law 1: the fast side never waits for a file system
//!
//! Kept: the scans are made on a thread of their own. The files of the gate are open from the
//! start, buffers are used again, nothing outside /proc is touched. Both threads are `IO_FLUSHER`s
//! (prctl(2)): when the kernel needs memory for them, it does not call the file systems to give some
//! back, so that they do not get stuck in the shrinkers of XFS, and kills nobody for it
//! (`out_of_memory`, mm/oom_kill.c). Their stacks and heaps are touched at their start: on a starved
//! kernel (tests/starved.rs) the first use of a further page of the stack does not return.
//!
//! What /proc cannot keep:
//!
//! - Every task has files of its own, which have to be opened, and that takes memory in the
//!   kernel: a few small objects and a page. It may have to wait for them. What XFS fails to get
//!   are large blocks, mostly; small ones are there far longer.
//! - Reading a stack takes a lock that execve(2) holds while it replaces the process
//!   (`lock_trace`, fs/proc/base.c; before 5.11 during all of it, the reading of the program
//!   included). If that hangs in a file system, so does the reader.
//! - Reading `stat` holds the memory map of the process for a moment (`get_task_mm`,
//!   fs/proc/array.c). If the process ends in just that moment it is us who tear the map down and
//!   close its files.
//!
//! So the thread that reads is one that can be left behind: if it does not answer in time another
//! takes its place and leaves the task out at which it hangs. At most [`LEFT_BEHIND`] are left like
//! that; one that returns ends. The thread that waits for them touches no file at all.
//!
//! # Health
//!
//! The detector is up ([`StallHealth::trouble`]) while its thread runs, a reader answers at least
//! every [`SILENT_AFTER`], and stacks can be read: at each scan our own is, and that of kthreadd.

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
