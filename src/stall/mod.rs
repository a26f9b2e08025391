//! The trigger for kernels that say nothing. From 6.9 on XFS asks for memory that may not fail and
//! the page allocator tries for ever, without a word. What can be seen is a task whose kernel stack
//! has the allocator called by XFS, look after look.
//!
//! # What is looked at
//!
//! Once a second, tasks in state D and tasks that spend their time in the kernel: an allocation
//! that may not fail sleeps between attempts only sometimes. A task is *starved* when its stack has
//! a function of the page or slab allocator that was called, directly or not, by one of XFS. The
//! order matters: XFS called by the allocator is memory being reclaimed, and there a drop of the
//! slab cache would only queue up behind it. Nor does it count when the allocation waits for the
//! limit of a cgroup: what the host drops for it does not make its limit larger.
//!
//! Starved in each look for `stall_after`, and the rescue is asked for, again and again as long as
//! it lasts. The kernel shows no stack of a task that is running (`task_on_another_cpu`,
//! arch/x86/kernel/unwind_orc.c). Such a task is looked at from its own processor, where only one
//! of us can run; if there is still no stack the look counts neither way, [`GAP`] long.
//!
//! # The gate
//!
//! On a host of 500 processes with 2500 threads a look at all of them takes 40 ms of processor time.
//! So it is only taken when the first line of /proc/pressure/memory has moved since the last
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
//! Kept: the looks are taken on a thread of their own. The files of the gate are open from the
//! start, buffers are used again, nothing outside /proc is touched. The thread is an `IO_FLUSHER`
//! (prctl(2)): when the kernel needs memory for it, it does not call the file systems to give some
//! back, so that it does not get stuck in the shrinkers of XFS.
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

mod detector;
#[cfg(test)]
mod fake_proc;
mod gate;
mod scanner;
mod stack;
mod tracker;
mod trigger;

pub use detector::{INTERVAL, LEFT_BEHIND, StallDetector, StallHealth, StallSettings};
pub use stack::{StackVerdict, verdict};
pub use tracker::{GAP, StallTracker, TaskKey};
pub use trigger::{Message, effective_trigger};
