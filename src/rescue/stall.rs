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

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{pread, read};
use rustix::process::configure_io_flusher_behavior;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::clock::now;
use super::evidence::text;
use super::proc_text::{self, TaskStat};
use crate::klog::record::number;
use crate::model::Monotonic;

/// How often it is looked.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Looks at which a task was seen starved may be so far apart and still count as one stall.
pub const GAP: Duration = Duration::from_secs(5);
/// Readers that may hang.
pub const LEFT_BEHIND: usize = 4;
/// A reader that takes longer is left behind. Shorter than [`GAP`], so that a stall is not forgotten
/// over it.
const READER_DEADLINE: Duration = Duration::from_secs(3);
/// After a sign the gate stays open for so long.
const HOLD: Duration = Duration::from_secs(5);
/// As long as nobody is starved the looks are so far apart. Ordinary pressure is a sign too, and on
/// some hosts there is always some.
const CALM_LOOK: Duration = Duration::from_secs(3);
/// A look without any sign is taken this often.
const BLIND_LOOK: Duration = Duration::from_secs(60);
/// The same where there is no PSI.
const BLIND_LOOK_WITHOUT_PSI: Duration = Duration::from_secs(10);
/// Tasks that are looked at from their own processor, in one look.
const PINNED: usize = 8;
/// A running task is looked at if it spent this share of the time since the last look in the
/// kernel: in clock ticks, of which there are 100 a second (USER_HZ).
const BUSY_TICKS_PER_SECOND: u64 = 20;
/// Bytes of a file that are read, and of a directory at a time.
const BUFFER: usize = 16 * 1024;

// ---------------------------------------------------------------------------------------------
// What a stack tells

/// What a look at a task tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// XFS waits for the allocator.
    Starved,
    /// The kernel shows no stack.
    Unseen,
    /// It does something else.
    Elsewhere,
}

/// Functions that belong to XFS, by how their names begin (fs/xfs). Where XFS is a module, `[xfs]`
/// behind the name tells as well.
const XFS: [&[u8]; 5] = [b"xfs_", b"_xfs_", b"__xfs_", b"xlog_", b"xfsaild"];

/// Functions of the allocators, by how their names begin: kernels differ in what follows
/// (`__alloc_pages_noprof`, `kmem_cache_alloc_lru`, `__kmalloc_cache_noprof`, …).
const ALLOCATOR_BEGINNINGS: [&[u8]; 21] = [
    // mm/page_alloc.c, mm/mempolicy.c
    b"__alloc_pages",
    b"__alloc_frozen_pages",
    b"alloc_pages",
    b"alloc_frozen_pages",
    b"__folio_alloc",
    b"folio_alloc",
    b"filemap_alloc_folio",
    b"__perform_reclaim",
    // mm/slub.c, mm/slab.c, mm/slab_common.c
    b"__kmalloc",
    b"___kmalloc",
    b"kmalloc_",
    b"krealloc",
    b"kmem_cache_alloc",
    b"__kmem_cache_alloc",
    b"__slab_alloc",
    b"___slab_alloc",
    // mm/util.c, mm/vmalloc.c
    b"kvmalloc",
    b"__kvmalloc",
    b"__vmalloc",
    b"vmalloc",
    // mm/compaction.c
    b"compact_zone",
];

/// The same by their whole names, where the beginning would say too much: `shrink_dcache_parent`
/// is called by rmdir.
const ALLOCATOR_NAMES: [&[u8]; 27] = [
    // mm/slub.c
    b"allocate_slab",
    b"new_slab",
    // mm/vmscan.c
    b"try_to_free_pages",
    b"do_try_to_free_pages",
    b"throttle_direct_reclaim",
    b"reclaim_throttle",
    b"shrink_zones",
    b"shrink_zone",
    b"shrink_node",
    b"shrink_node_memcgs",
    b"shrink_lruvec",
    b"shrink_one",
    b"shrink_many",
    b"shrink_list",
    b"shrink_slab",
    b"shrink_inactive_list",
    b"shrink_active_list",
    b"shrink_page_list",
    b"shrink_folio_list",
    // mm/compaction.c, mm/backing-dev.c, mm/oom_kill.c
    b"try_to_compact_pages",
    b"congestion_wait",
    b"out_of_memory",
    // fs/xfs/kmem.c before 6.9 and fs/xfs/xfs_buf.c, which try again by themselves
    b"kmem_alloc",
    b"kmem_alloc_large",
    b"kmem_zone_alloc",
    b"xfs_buf_alloc_pages",
    b"xfs_buf_allocate_memory",
];

/// Functions that wait for the limit of a cgroup (mm/memcontrol.c).
const CGROUP: [&[u8]; 3] = [
    b"try_to_free_mem_cgroup_pages",
    b"try_charge",
    b"try_charge_memcg",
];

/// What the text of /proc/PID/stack tells.
#[must_use]
pub fn sight(stack: &[u8]) -> Sight {
    let mut frames = 0;
    let mut allocates = false;
    let mut limited = false;
    for frame in proc_text::stack_frames(stack) {
        frames += 1;
        let name = function(frame);
        limited |= CGROUP.contains(&name);
        // From the inside to the outside: what comes later has called what came before.
        if allocates && !limited && is_xfs(frame, name) {
            return Sight::Starved;
        }
        allocates |= is_allocator(name);
    }
    if frames == 0 {
        Sight::Unseen
    } else {
        Sight::Elsewhere
    }
}

/// `xfs_ilock` of `xfs_ilock.part.0+0x8e/0x120 [xfs]`.
fn function(frame: &[u8]) -> &[u8] {
    let end = frame.iter().position(|byte| b"+. ".contains(byte));
    frame.get(..end.unwrap_or(frame.len())).unwrap_or_default()
}

fn is_xfs(frame: &[u8], name: &[u8]) -> bool {
    frame.ends_with(b"[xfs]") || XFS.iter().any(|begin| name.starts_with(begin))
}

fn is_allocator(name: &[u8]) -> bool {
    ALLOCATOR_NAMES.contains(&name)
        || ALLOCATOR_BEGINNINGS
            .iter()
            .any(|begin| name.starts_with(begin))
}

// ---------------------------------------------------------------------------------------------
// Look after look

/// Names a task for good: its number can be used again, but not with the same begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The thread.
    pub tid: u32,
    /// Clock ticks after boot at which it began.
    pub start: u64,
}

/// Who has been starved for how long: a state machine that gets the time and the sights.
#[derive(Debug)]
pub struct StallWatch {
    stall_after: Duration,
    streaks: BTreeMap<TaskKey, Streak>,
    looks: u64,
}

#[derive(Debug)]
struct Streak {
    since: Monotonic,
    last: Monotonic,
    /// The look at which the task was seen, starved or not to be judged.
    look: u64,
}

impl StallWatch {
    /// Tasks are stuck that are starved in each look for so long.
    #[must_use]
    pub fn new(stall_after: Duration) -> StallWatch {
        StallWatch {
            stall_after,
            streaks: BTreeMap::new(),
            looks: 0,
        }
    }

    /// A look at all tasks that are worth one. Those that are missing do something else. Gives
    /// those that are stuck and since when they are starved.
    pub fn look(
        &mut self,
        now: Monotonic,
        tasks: impl IntoIterator<Item = (TaskKey, Sight)>,
    ) -> Vec<(TaskKey, Monotonic)> {
        self.looks += 1;
        let look = self.looks;
        for (key, sight) in tasks {
            match sight {
                Sight::Starved => {
                    let fresh = Streak {
                        since: now,
                        last: now,
                        look,
                    };
                    let streak = self.streaks.entry(key).or_insert(fresh);
                    if now.since(streak.last) > GAP {
                        streak.since = now;
                    }
                    streak.last = now;
                    streak.look = look;
                }
                Sight::Unseen => {
                    if let Some(streak) = self.streaks.get_mut(&key) {
                        streak.look = look;
                    }
                }
                Sight::Elsewhere => {}
            }
        }
        self.streaks
            .retain(|_, streak| streak.look == look && now.since(streak.last) <= GAP);
        let stuck = |(key, streak): (&TaskKey, &Streak)| {
            let lasts = streak.last == now && now.since(streak.since) >= self.stall_after;
            lasts.then_some((*key, streak.since))
        };
        self.streaks.iter().filter_map(stuck).collect()
    }

    /// Whether any task is starved, if not for long enough yet.
    #[must_use]
    pub fn is_alarmed(&self) -> bool {
        !self.streaks.is_empty()
    }
}

// ---------------------------------------------------------------------------------------------
// The gate

/// Whether a look is worth its price.
#[derive(Debug)]
struct Gate {
    blind_look: Duration,
    sign: Option<u64>,
    open_until: Monotonic,
    last_look: Option<Monotonic>,
}

impl Gate {
    fn new(blind_look: Duration) -> Gate {
        Gate {
            blind_look,
            sign: None,
            open_until: Monotonic(0),
            last_look: None,
        }
    }

    /// `sign` is a count that moves when tasks wait for memory; nothing if it cannot be read.
    fn opens(&mut self, now: Monotonic, sign: Option<u64>, alarmed: bool) -> bool {
        if sign.is_none() || self.sign.is_some_and(|before| Some(before) != sign) {
            self.open_until = now.plus(HOLD);
        }
        self.sign = sign;
        let last = |ago| self.last_look.is_none_or(|last| now.since(last) >= ago);
        let worth_it = now < self.open_until && last(CALM_LOOK);
        let opens = alarmed || worth_it || last(self.blind_look);
        if opens {
            self.last_look = Some(now);
        }
        opens
    }
}

// ---------------------------------------------------------------------------------------------
// The reader

/// A task that was worth a look.
#[derive(Debug, Clone)]
struct Seen {
    key: TaskKey,
    sight: Sight,
    comm: String,
    /// Of a starved one.
    stack: Vec<String>,
}

/// A task that may be worth a look.
#[derive(Debug)]
struct Suspect {
    key: TaskKey,
    pid: u64,
    comm: String,
    processor: u64,
    /// Clock ticks in the kernel, of a running one since the last look.
    ticks: u64,
}

#[derive(Debug, Default)]
struct Suspects {
    blocked: Vec<Suspect>,
    running: Vec<Suspect>,
}

impl Suspects {
    fn consider(&mut self, pid: u64, stat: &TaskStat<'_>) {
        let suspects = match stat.state {
            b'D' => &mut self.blocked,
            b'R' => &mut self.running,
            _ => return,
        };
        suspects.push(Suspect {
            key: TaskKey {
                tid: stat.tid,
                start: stat.start,
            },
            pid,
            comm: text(stat.comm),
            processor: stat.processor,
            ticks: stat.system_ticks,
        });
    }

    /// Leaves of the running ones those that spend their time in the kernel, the busiest first.
    /// Gives what is to be known of them at the next look.
    fn sift(&mut self, before: &BTreeMap<TaskKey, u64>, since: Duration) -> BTreeMap<TaskKey, u64> {
        let busy = self.running.iter().map(|task| (task.key, task.ticks));
        let busy = busy.collect();
        let least = since.as_secs().max(1).saturating_mul(BUSY_TICKS_PER_SECOND);
        self.running.retain_mut(|task| {
            let Some(ticks) = before.get(&task.key) else {
                return false;
            };
            task.ticks = task.ticks.saturating_sub(*ticks);
            task.ticks >= least
        });
        self.running
            .sort_by_key(|task| std::cmp::Reverse(task.ticks));
        busy
    }
}

/// Where a reader is, for those who wait for it.
#[derive(Debug, Default)]
struct Progress {
    /// The thread whose file is being read, 0 if none.
    at: AtomicU32,
    returned: AtomicBool,
}

/// Reads /proc.
struct Scanner {
    proc: OwnedFd,
    /// /proc/pressure/memory or /proc/vmstat.
    sign: File,
    has_psi: bool,
    gate: Gate,
    buffer: Vec<u8>,
    /// Room for what a directory holds.
    entries: Vec<u8>,
    path: String,
    processes: Vec<u64>,
    threads: Vec<u64>,
    /// Clock ticks in the kernel, of tasks that were running at the last look.
    busy: BTreeMap<TaskKey, u64>,
    looked: Monotonic,
    progress: Arc<Progress>,
    /// Threads at which others hang.
    skip: Vec<u32>,
}

impl Scanner {
    fn open(proc: &Path, skip: Vec<u32>, progress: Arc<Progress>) -> io::Result<Scanner> {
        let mut buffer = vec![0; BUFFER];
        // Where PSI is off the file is there but cannot be opened or read (kernel/sched/psi.c).
        let pressure = File::open(proc.join("pressure/memory")).ok();
        let pressure = pressure.filter(|file| sign(file, true, &mut buffer).is_some());
        let has_psi = pressure.is_some();
        let blind_look = if has_psi {
            BLIND_LOOK
        } else {
            BLIND_LOOK_WITHOUT_PSI
        };
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Scanner {
            proc: openat(CWD, proc, directory, Mode::empty())?,
            sign: match pressure {
                Some(file) => file,
                None => File::open(proc.join("vmstat"))?,
            },
            has_psi,
            gate: Gate::new(blind_look),
            buffer,
            entries: Vec::with_capacity(BUFFER),
            path: String::new(),
            processes: Vec::new(),
            threads: Vec::new(),
            busy: BTreeMap::new(),
            looked: now(),
            progress,
            skip,
        })
    }

    /// Nothing if the gate is closed.
    fn look(&mut self, alarmed: bool) -> Option<Vec<Seen>> {
        let time = now();
        let sign = sign(&self.sign, self.has_psi, &mut self.buffer);
        self.gate
            .opens(time, sign, alarmed)
            .then(|| self.look_at_all(time))
    }

    fn look_at_all(&mut self, time: Monotonic) -> Vec<Seen> {
        let mut suspects = Suspects::default();
        let mut processes = std::mem::take(&mut self.processes);
        self.list(".", &mut processes);
        for pid in &processes {
            self.look_at_process(*pid, &mut suspects);
        }
        self.processes = processes;
        let since = time.since(std::mem::replace(&mut self.looked, time));
        self.busy = suspects.sift(&self.busy, since);
        let mut seen: Vec<Seen> = Vec::new();
        for task in &suspects.blocked {
            seen.extend(self.look_at_stack(task));
        }
        for (place, task) in suspects.running.iter().enumerate() {
            let pinned = place < PINNED;
            seen.extend(self.look_at_running(task, pinned));
        }
        seen
    }

    fn look_at_process(&mut self, pid: u64, suspects: &mut Suspects) {
        // Of a process with one thread this says all there is to know, with fewer calls.
        let Some(length) = self.read(pid, format_args!("{pid}/stat")) else {
            return;
        };
        let Some(stat) = proc_text::task_stat(self.buffer.get(..length).unwrap_or_default()) else {
            return;
        };
        if stat.threads <= 1 {
            return suspects.consider(pid, &stat);
        }
        let mut threads = std::mem::take(&mut self.threads);
        self.list(&format!("{pid}/task"), &mut threads);
        for tid in &threads {
            if let Some(length) = self.read(*tid, format_args!("{pid}/task/{tid}/stat"))
                && let Some(stat) =
                    proc_text::task_stat(self.buffer.get(..length).unwrap_or_default())
            {
                suspects.consider(pid, &stat);
            }
        }
        self.threads = threads;
    }

    fn look_at_stack(&mut self, task: &Suspect) -> Option<Seen> {
        let (pid, tid) = (task.pid, task.key.tid);
        let length = self.read(tid.into(), format_args!("{pid}/task/{tid}/stack"))?;
        let stack = self.buffer.get(..length)?;
        let sight = sight(stack);
        let starved = sight == Sight::Starved;
        let frames = proc_text::stack_frames(stack).filter(|_| starved);
        Some(Seen {
            key: task.key,
            sight,
            comm: task.comm.clone(),
            stack: frames.map(text).collect(),
        })
    }

    /// While we run on its processor it does not, and can be looked at.
    fn look_at_running(&mut self, task: &Suspect, may_pin: bool) -> Option<Seen> {
        let seen = self.look_at_stack(task)?;
        if seen.sight != Sight::Unseen || !may_pin {
            return Some(seen);
        }
        match Pinned::to(task.processor) {
            Some(_pinned) => self.look_at_stack(task),
            None => Some(seen),
        }
    }

    /// Reads the first part of a file of a thread into the buffer.
    fn read(&mut self, tid: u64, path: std::fmt::Arguments<'_>) -> Option<usize> {
        let tid = u32::try_from(tid).ok()?;
        if self.skip.contains(&tid) {
            return None;
        }
        self.path.clear();
        // Writing to a String cannot fail.
        let _ = self.path.write_fmt(path);
        self.progress.at.store(tid, Ordering::Relaxed);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let length = openat(&self.proc, &self.path, flags, Mode::empty())
            .and_then(|file| read(&file, &mut self.buffer));
        self.progress.at.store(0, Ordering::Relaxed);
        length.ok()
    }

    /// The numbers among the names in a directory; none if it cannot be read.
    fn list(&mut self, path: &str, numbers: &mut Vec<u64>) {
        numbers.clear();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = openat(&self.proc, path, flags, Mode::empty()) else {
            return;
        };
        let mut entries = RawDir::new(&directory, self.entries.spare_capacity_mut());
        while let Some(Ok(entry)) = entries.next() {
            numbers.extend(number(entry.file_name().to_bytes()));
        }
    }
}

/// A count that moves when tasks wait for memory.
fn sign(file: &File, is_psi: bool, buffer: &mut [u8]) -> Option<u64> {
    let mut total: u64 = 0;
    let mut offset = 0;
    loop {
        let length = pread(file, &mut *buffer, offset).ok()?;
        let part = buffer.get(..length)?;
        if is_psi {
            return proc_text::pressure_some_total(part);
        }
        if part.is_empty() {
            return (offset > 0).then_some(total);
        }
        total = total.saturating_add(proc_text::allocation_stalls(part));
        offset = offset.saturating_add(u64::try_from(length).ok()?);
    }
}

/// The calling thread runs on one processor only, until this goes out of scope.
struct Pinned {
    before: CpuSet,
}

impl Pinned {
    fn to(processor: u64) -> Option<Pinned> {
        let processor = usize::try_from(processor).ok()?;
        let before = sched_getaffinity(None).ok()?;
        let mut only = CpuSet::new();
        if processor >= CpuSet::MAX_CPU {
            return None;
        }
        only.set(processor);
        sched_setaffinity(None, &only).ok()?;
        Some(Pinned { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was possible before; only a processor that is gone meanwhile could forbid it.
        let _ = sched_setaffinity(None, &self.before);
    }
}

// ---------------------------------------------------------------------------------------------
// The detector

/// What a detector is made of.
#[derive(Debug, Clone)]
pub struct StallSettings {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// How long a task has to be starved.
    pub stall_after: Duration,
    /// How often it is looked; [`INTERVAL`] outside of tests.
    pub interval: Duration,
}

/// A task that is stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The thread.
    pub tid: u32,
    /// Its name.
    pub comm: String,
    /// For how long it has been seen starved.
    pub lasted: Duration,
    /// Its kernel stack, innermost function first.
    pub stack: Vec<String>,
}

/// How the detector does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StallHealth {
    /// Seconds that were looked at, if only at the gate.
    pub beats: u64,
    /// Looks at all tasks.
    pub looks: u64,
    /// Readers that hang.
    pub left_behind: usize,
    /// The thread at whose file the last of them hangs.
    pub hangs_at: Option<u32>,
    /// No reader can be had: the detector is blind.
    pub blind: bool,
}

/// The running stall detector. Ends when it goes out of scope.
#[derive(Debug)]
pub struct StallDetector {
    counts: Arc<Counts>,
    _stop: SyncSender<()>,
}

#[derive(Debug, Default)]
struct Counts {
    beats: AtomicU64,
    looks: AtomicU64,
    left_behind: AtomicUsize,
    hangs_at: AtomicU32,
    blind: AtomicBool,
}

impl StallDetector {
    /// Starts it. `on_stall` is called at each look at which tasks are stuck, with the one that is
    /// stuck the longest, on the detector's own thread: it must not wait.
    ///
    /// # Errors
    /// When stacks cannot be read, which takes CAP_SYS_ADMIN, CAP_SYS_PTRACE and CONFIG_STACKTRACE,
    /// or threads are short.
    pub fn start(
        settings: StallSettings,
        on_stall: impl FnMut(&Stuck) + Send + 'static,
    ) -> io::Result<StallDetector> {
        check_stacks(&settings.proc)?;
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = mpsc::sync_channel(0);
        let mut readers = Readers {
            proc: settings.proc,
            current: None,
            left_behind: Vec::new(),
            counts: Arc::clone(&counts),
        };
        readers.start()?;
        let watch = StallWatch::new(settings.stall_after);
        thread::Builder::new()
            .name("stall".to_owned())
            .spawn(move || run(readers, watch, settings.interval, &stopped, on_stall))?;
        Ok(StallDetector {
            counts,
            _stop: stop,
        })
    }

    /// How it does.
    #[must_use]
    pub fn health(&self) -> StallHealth {
        let counts = &self.counts;
        let hangs_at = counts.hangs_at.load(Ordering::Relaxed);
        StallHealth {
            beats: counts.beats.load(Ordering::Relaxed),
            looks: counts.looks.load(Ordering::Relaxed),
            left_behind: counts.left_behind.load(Ordering::Relaxed),
            hangs_at: (hangs_at != 0).then_some(hangs_at),
            blind: counts.blind.load(Ordering::Relaxed),
        }
    }
}

/// Whether our own stack can be read, which is always there, and that of kthreadd, which is not
/// ours and needs the right to look at others.
fn check_stacks(proc: &Path) -> io::Result<()> {
    for (name, must_be_there) in [("self/stack", true), ("2/stack", false)] {
        let path = proc.join(name);
        match std::fs::read(&path) {
            Err(error) if must_be_there || error.kind() != io::ErrorKind::NotFound => {
                let text = format!("{}: {error}", path.display());
                return Err(io::Error::new(error.kind(), text));
            }
            _ => {}
        }
    }
    Ok(())
}

fn run(
    mut readers: Readers,
    mut watch: StallWatch,
    interval: Duration,
    stopped: &Receiver<()>,
    mut on_stall: impl FnMut(&Stuck),
) {
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        readers.counts.beats.fetch_add(1, Ordering::Relaxed);
        let Some(seen) = readers.look(watch.is_alarmed()) else {
            continue;
        };
        readers.counts.looks.fetch_add(1, Ordering::Relaxed);
        let time = now();
        let stuck = watch.look(time, seen.iter().map(|seen| (seen.key, seen.sight)));
        let Some((key, since)) = stuck.into_iter().min_by_key(|(_, since)| *since) else {
            continue;
        };
        if let Some(seen) = seen.into_iter().find(|seen| seen.key == key) {
            on_stall(&Stuck {
                tid: key.tid,
                comm: seen.comm,
                lasted: time.since(since),
                stack: seen.stack,
            });
        }
    }
}

/// The reader at work, and those that hang.
struct Readers {
    proc: PathBuf,
    current: Option<Reader>,
    left_behind: Vec<(u32, Arc<Progress>)>,
    counts: Arc<Counts>,
}

struct Reader {
    asked: SyncSender<bool>,
    seen: Receiver<Option<Vec<Seen>>>,
    progress: Arc<Progress>,
}

impl Readers {
    /// Has the reader look. Nothing if the gate is closed or the reader hangs.
    fn look(&mut self, alarmed: bool) -> Option<Vec<Seen>> {
        self.left_behind
            .retain(|(_, progress)| !progress.returned.load(Ordering::Acquire));
        if self.current.is_none() && self.left_behind.len() < LEFT_BEHIND {
            // Without a thread there is nothing to be done but to try again.
            let _ = self.start();
        }
        let seen = match &self.current {
            Some(reader) if reader.asked.try_send(alarmed).is_ok() => {
                reader.seen.recv_timeout(READER_DEADLINE).ok()
            }
            _ => None,
        };
        if seen.is_none()
            && let Some(reader) = self.current.take()
        {
            let at = reader.progress.at.load(Ordering::Relaxed);
            self.left_behind.push((at, reader.progress));
        }
        let counts = &self.counts;
        let hangs_at = self.left_behind.last().map_or(0, |(tid, _)| *tid);
        counts.hangs_at.store(hangs_at, Ordering::Relaxed);
        counts
            .left_behind
            .store(self.left_behind.len(), Ordering::Relaxed);
        counts.blind.store(seen.is_none(), Ordering::Relaxed);
        seen.flatten()
    }

    fn start(&mut self) -> io::Result<()> {
        let progress = Arc::new(Progress::default());
        let skip = self.left_behind.iter().map(|(tid, _)| *tid).collect();
        let (asked, questions) = mpsc::sync_channel::<bool>(1);
        let (answers, seen) = mpsc::sync_channel(1);
        let reader_progress = Arc::clone(&progress);
        let proc = self.proc.clone();
        let body = move || {
            // Without it we may wait for a shrinker of XFS; see the module.
            let _ = configure_io_flusher_behavior(true);
            let scanner = Scanner::open(&proc, skip, Arc::clone(&reader_progress));
            if let Ok(mut scanner) = scanner {
                for alarmed in questions {
                    if answers.send(scanner.look(alarmed)).is_err() {
                        break;
                    }
                }
            }
            reader_progress.returned.store(true, Ordering::Release);
        };
        thread::Builder::new()
            .name("stall-reader".to_owned())
            .spawn(body)?;
        self.current = Some(Reader {
            asked,
            seen,
            progress,
        });
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------
// Which trigger is effective

/// Whether the running kernel says that XFS waits for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// It does, in its log.
    Printed,
    /// It never does: from 6.9 on.
    Never,
    /// Its vendor mixes versions: the number does not tell.
    Uncertain,
}

impl Message {
    /// Of a kernel, by its release (`uname -r`).
    #[must_use]
    pub fn of(release: &str) -> Message {
        // RHEL and what is made of it, Oracle's UEK, SUSE, Amazon, Tencent, openEuler, Anolis take
        // XFS from later kernels.
        const MIXED: [&str; 9] = [
            ".el", "uek", "-default", ".amzn", "tlinux", ".tl", ".oe", ".an", "-cip",
        ];
        let mut numbers = release
            .split(|character: char| !character.is_ascii_digit())
            .map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Message::Uncertain;
        };
        if (major, minor) >= (6, 9) {
            Message::Never
        } else if MIXED.iter().any(|vendor| release.contains(vendor)) {
            Message::Uncertain
        } else {
            Message::Printed
        }
    }
}

/// Which trigger is effective on a kernel, for the operator.
#[must_use]
pub fn effective_trigger(release: &str, detects_stalls: bool) -> String {
    let kernel = text(release.as_bytes());
    match (Message::of(release), detects_stalls) {
        (Message::Printed, true) => format!(
            "kernel {kernel} says in its log when XFS waits for memory; the stall detector watches beside it"
        ),
        (Message::Printed, false) => {
            format!(
                "kernel {kernel} says in its log when XFS waits for memory; the stall detector is off"
            )
        }
        (Message::Never, true) => format!(
            "kernel {kernel} never says when XFS waits for memory (none does from 6.9 on); the stall detector is the trigger"
        ),
        (Message::Never, false) => format!(
            "kernel {kernel} never says when XFS waits for memory (none does from 6.9 on), and the stall detector is off: nothing but an own rule or a log file can start a rescue"
        ),
        (Message::Uncertain, true) => format!(
            "kernel {kernel} may or may not say when XFS waits for memory (its vendor mixes versions); the stall detector watches in any case"
        ),
        (Message::Uncertain, false) => format!(
            "kernel {kernel} may or may not say when XFS waits for memory (its vendor mixes versions), and the stall detector is off"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{FileType, mknodat};
    use std::fs;
    use std::time::Instant;

    fn stack(frames: &[&str]) -> Vec<u8> {
        let line = |frame: &&str| format!("[<0>] {frame}+0x1f/0x120\n");
        frames.iter().map(line).collect::<String>().into_bytes()
    }

    fn sight_of(frames: &[&str]) -> Sight {
        sight(&stack(frames))
    }

    #[test]
    fn xfs_that_calls_the_allocator_is_starved() {
        for frames in [
            // 6.12: a node of the extent tree.
            &[
                "shrink_lruvec",
                "shrink_node",
                "do_try_to_free_pages",
                "try_to_free_pages",
                "__alloc_pages_slowpath.constprop.0",
                "__alloc_pages_noprof",
                "allocate_slab",
                "___slab_alloc",
                "__kmalloc_cache_noprof",
                "xfs_iext_insert_raw",
                "xfs_iext_insert",
                "xfs_iread_bmbt_block",
                "xfs_iread_extents",
                "xfs_bmapi_read",
                "xfs_read_iomap_begin",
            ][..],
            // 6.1: waits between two attempts of XFS itself.
            &["io_schedule_timeout", "kmem_alloc", "xfs_iext_realloc_root"],
            &[
                "io_schedule_timeout",
                "xfs_buf_alloc_pages",
                "xfs_buf_get_map",
            ],
            // The log, in a worker.
            &[
                "compact_zone_order",
                "try_to_compact_pages",
                "__alloc_frozen_pages_noprof",
                "__kvmalloc_node_noprof",
                "xlog_cil_push_work",
                "process_one_work",
            ],
            // Before 4.15.
            &[
                "congestion_wait",
                "kmem_alloc",
                "kmem_realloc",
                "xfs_iext_realloc_indirect",
            ],
        ] {
            assert_eq!(sight_of(frames), Sight::Starved, "{frames:?}");
        }
        let module = b"[<0>] try_to_free_pages+0x1/0x2\n[<0>] kmalloc_order+0x1/0x2\n[<0>] helper+0x1/0x2 [xfs]\n";
        assert_eq!(sight(module), Sight::Starved);
    }

    #[test]
    fn others_are_not() {
        assert_eq!(sight(b""), Sight::Unseen);
        assert_eq!(sight(b"\n"), Sight::Unseen);
        for frames in [
            // Waits for a lock, or for the disk.
            &[
                "rwsem_down_write_slowpath",
                "xfs_ilock",
                "xfs_file_write_iter",
            ][..],
            &["io_schedule", "folio_wait_bit_common", "xfs_vm_writepages"],
            // Memory is reclaimed from XFS: kswapd, our own actor, an allocation of somebody else.
            &[
                "xfs_reclaim_inodes_nr",
                "super_cache_scan",
                "shrink_slab",
                "shrink_node",
                "kswapd",
            ],
            &[
                "xfs_log_force",
                "xfs_reclaim_inodes_nr",
                "shrink_slab",
                "drop_slab",
            ],
            &[
                "xfs_buf_lock",
                "shrink_slab",
                "try_to_free_pages",
                "__alloc_pages",
                "do_anonymous_page",
            ],
            // Another file system.
            &["try_to_free_pages", "__alloc_pages", "ext4_mpage_readpages"],
            // What only sounds like reclaim.
            &[
                "shrink_dentry_list",
                "shrink_dcache_parent",
                "xfs_vn_unlink",
            ],
            // The limit of a cgroup.
            &[
                "shrink_node",
                "do_try_to_free_pages",
                "try_to_free_mem_cgroup_pages",
                "try_charge_memcg",
                "__mem_cgroup_charge",
                "filemap_add_folio",
                "iomap_write_begin",
                "xfs_file_buffered_write",
            ],
            &["do_syscall_64"],
        ] {
            assert_eq!(sight_of(frames), Sight::Elsewhere, "{frames:?}");
        }
    }

    fn key(tid: u32) -> TaskKey {
        TaskKey { tid, start: 9 }
    }

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * 1_000_000)
    }

    #[test]
    fn starved_in_each_look_for_long_enough() {
        let mut watch = StallWatch::new(Duration::from_secs(10));
        for second in 0..10 {
            assert_eq!(
                watch.look(at(second * 1000), [(key(1), Sight::Starved)]),
                []
            );
        }
        // From then on at each look.
        for second in 10..13 {
            let stuck = watch.look(at(second * 1000), [(key(1), Sight::Starved)]);
            assert_eq!(stuck, [(key(1), at(0))]);
        }
        // Unseen says nothing; somewhere else ends it.
        assert_eq!(watch.look(at(13_000), [(key(1), Sight::Unseen)]), []);
        assert_eq!(watch.look(at(14_000), [(key(1), Sight::Starved)]).len(), 1);
        assert_eq!(watch.look(at(15_000), [(key(1), Sight::Elsewhere)]), []);
        assert!(!watch.is_alarmed());
        assert_eq!(watch.look(at(16_000), [(key(1), Sight::Starved)]), []);
    }

    proptest! {
        #[test]
        fn stacks_of_any_bytes_are_judged(text: Vec<u8>) {
            let _ = sight(&text);
        }

        /// Whatever stands around them: an allocator's function inside of one of XFS is starved,
        /// and without either of them nothing is.
        #[test]
        fn the_order_decides(
            inner in proptest::collection::vec("[a-w][a-z_]{0,12}x", 0..4),
            between in proptest::collection::vec("[a-w][a-z_]{0,12}x", 0..4),
            outer in proptest::collection::vec("[a-w][a-z_]{0,12}x", 0..4),
        ) {
            let join = |parts: &[&[String]]| -> Vec<String> { parts.concat() };
            let allocator = ["__alloc_pages_slowpath".to_owned()];
            let xfs = ["xfs_iread_extents".to_owned()];
            let judge = |frames: Vec<String>| {
                sight_of(&frames.iter().map(String::as_str).collect::<Vec<_>>())
            };
            prop_assert_eq!(judge(join(&[&inner, &allocator, &between, &xfs, &outer])), Sight::Starved);
            prop_assert_eq!(judge(join(&[&inner, &xfs, &between, &allocator, &outer])), Sight::Elsewhere);
            prop_assert_ne!(judge(join(&[&inner, &xfs, &between, &outer])), Sight::Starved);
            prop_assert_ne!(judge(join(&[&inner, &allocator, &outer])), Sight::Starved);
        }

        /// The rule itself, spelled out over the whole history.
        #[test]
        fn the_watch_keeps_its_rule(
            looks in proptest::collection::vec((1_u64..7000, proptest::collection::vec(0_u8..4, 3)), 1..60),
        ) {
            let stall_after = Duration::from_secs(10);
            let mut watch = StallWatch::new(stall_after);
            let mut history: Vec<(Monotonic, Vec<u8>)> = Vec::new();
            let mut time = 0;
            for (step, tasks) in looks {
                time += step;
                let sights = [Sight::Starved, Sight::Unseen, Sight::Elsewhere];
                let seen = tasks.iter().enumerate().filter_map(|(tid, sight)| {
                    Some((key(u32::try_from(tid).ok()?), *sights.get(usize::from(*sight))?))
                });
                let stuck = watch.look(at(time), seen.collect::<Vec<_>>());
                history.push((at(time), tasks));
                for tid in 0..3_u32 {
                    let mut since = None;
                    let mut later = at(time);
                    for (place, (when, tasks)) in history.iter().rev().enumerate() {
                        let sight = tasks[tid as usize];
                        if sight >= 2 || later.since(*when) > GAP || (place == 0 && sight != 0) {
                            break;
                        }
                        if sight == 0 {
                            since = Some(*when);
                            later = *when;
                        }
                    }
                    let expected = since.filter(|since| at(time).since(*since) >= stall_after);
                    let told = stuck.iter().find(|(stuck, _)| *stuck == key(tid));
                    prop_assert_eq!(told.map(|(_, since)| *since), expected);
                }
            }
        }
    }

    #[test]
    fn the_gate_opens_on_a_sign_and_now_and_then() {
        let mut gate = Gate::new(BLIND_LOOK);
        assert!(gate.opens(at(0), Some(5), false), "the first look");
        assert!(!gate.opens(at(1000), Some(5), false));
        assert!(!gate.opens(at(2000), Some(6), false), "too early");
        assert!(gate.opens(at(3000), Some(7), false), "a sign");
        assert!(!gate.opens(at(5000), Some(7), false), "too early");
        assert!(gate.opens(at(6000), Some(7), false), "it is held open");
        assert!(!gate.opens(at(9000), Some(7), false));
        assert!(gate.opens(at(10_000), Some(7), true), "somebody is starved");
        assert!(gate.opens(at(11_000), Some(7), true), "and still is");
        assert!(!gate.opens(at(70_999), Some(7), false));
        assert!(
            gate.opens(at(71_000), Some(7), false),
            "no sign for a minute"
        );
        assert!(
            gate.opens(at(74_000), None, false),
            "no word is no all-clear"
        );
    }

    fn task(
        proc: &Path,
        pid: u32,
        tid: u32,
        threads: u32,
        state: char,
        ticks: u32,
        frames: &[&str],
    ) {
        let path = proc.join(format!("{pid}/task/{tid}"));
        fs::create_dir_all(&path).unwrap();
        let rest = "0 ".repeat(16);
        let stat = format!(
            "{tid} (CPU {tid}/KVM) {state} 1 1 1 0 -1 0 0 0 0 0 0 {ticks} 0 0 20 0 {threads} 0 9 {rest}0 0\n"
        );
        fs::write(path.join("stat"), &stat).unwrap();
        fs::write(path.join("stack"), stack(frames)).unwrap();
        if pid == tid {
            fs::write(proc.join(format!("{pid}/stat")), stat).unwrap();
        }
    }

    const STARVED: [&str; 3] = ["try_to_free_pages", "__alloc_pages", "xfs_iread_extents"];
    const HEALTHY: [&str; 2] = ["xfs_ilock", "xfs_file_write_iter"];

    fn tree() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let path = proc.path();
        fs::create_dir_all(path.join("pressure")).unwrap();
        fs::create_dir_all(path.join("self")).unwrap();
        fs::write(path.join("self/stack"), "").unwrap();
        fs::write(path.join("pressure/memory"), "some avg10=0.00 total=1\n").unwrap();
        fs::write(path.join("vmstat"), "allocstall_normal 1\n").unwrap();
        task(path, 1, 1, 1, 'S', 0, &[]);
        task(path, 7, 7, 3, 'S', 0, &[]);
        task(path, 7, 8, 3, 'D', 0, &STARVED);
        task(path, 7, 9, 3, 'D', 0, &HEALTHY);
        task(path, 12, 12, 1, 'D', 0, &HEALTHY);
        proc
    }

    fn scanner(proc: &Path) -> Scanner {
        Scanner::open(proc, Vec::new(), Arc::default()).unwrap()
    }

    fn seen(scanner: &mut Scanner) -> Vec<(u32, Sight)> {
        let seen = scanner.look(true).unwrap();
        let mut seen: Vec<_> = seen.iter().map(|seen| (seen.key.tid, seen.sight)).collect();
        seen.sort_by_key(|(tid, _)| *tid);
        seen
    }

    #[test]
    fn all_threads_are_looked_at() {
        let proc = tree();
        let mut scanner = scanner(proc.path());
        let expected = [
            (8, Sight::Starved),
            (9, Sight::Elsewhere),
            (12, Sight::Elsewhere),
        ];
        assert_eq!(seen(&mut scanner), expected);
        // One that spends its time in the kernel, and one that does not.
        task(proc.path(), 20, 20, 1, 'R', 100, &STARVED);
        task(proc.path(), 21, 21, 1, 'R', 100, &STARVED);
        assert_eq!(seen(&mut scanner), expected, "it is not known yet");
        task(proc.path(), 20, 20, 1, 'R', 190, &STARVED);
        task(proc.path(), 21, 21, 1, 'R', 101, &STARVED);
        assert_eq!(seen(&mut scanner).last(), Some(&(20, Sight::Starved)));
        let stack = scanner.look(true).unwrap().swap_remove(0).stack;
        assert_eq!(stack[2], "xfs_iread_extents+0x1f/0x120");
    }

    #[test]
    fn a_running_task_is_seen_from_its_own_processor() {
        if fs::read("/proc/self/stack").is_err() {
            return eprintln!("SKIPPED: the kernel shows stacks to root alone");
        }
        let allowed = sched_getaffinity(None).unwrap();
        // In the kernel most of the time, and on whatever processor.
        let mut child = std::process::Command::new("dd")
            .args(["if=/dev/zero", "of=/dev/null", "bs=1M", "status=none"])
            .spawn()
            .unwrap();
        let mut scanner = scanner(Path::new("/proc"));
        let mut visible = 0;
        let mut looks = 0;
        // A process that is in user mode just then, or waits for the processor, has no kernel stack
        // but its entry. On a busy machine that is most of the time.
        while visible < 3 && looks < 300 {
            thread::sleep(Duration::from_millis(100));
            scanner.looked = Monotonic(now().0.saturating_sub(1_000_000_000));
            scanner
                .busy
                .values_mut()
                .for_each(|ticks| *ticks = ticks.saturating_sub(100));
            let seen = scanner.look(true).unwrap();
            let of_child = seen.iter().filter(|seen| seen.key.tid == child.id());
            visible += of_child
                .filter(|seen| seen.sight == Sight::Elsewhere)
                .count();
            looks += 1;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(visible >= 3, "{visible} in {looks} looks");
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
    }

    #[test]
    fn without_psi_the_stalls_are_counted() {
        let proc = tree();
        fs::write(proc.path().join("pressure/memory"), "").unwrap();
        let mut scanner = scanner(proc.path());
        assert!(!scanner.has_psi);
        assert!(scanner.look(false).is_some(), "the first look");
        assert!(scanner.look(false).is_none());
        fs::write(proc.path().join("vmstat"), "allocstall_normal 2\n").unwrap();
        scanner.gate.last_look = Some(Monotonic(now().0 - 3_000_000_000));
        assert!(scanner.look(false).is_some());
    }

    fn settings(proc: &Path) -> StallSettings {
        StallSettings {
            proc: proc.to_owned(),
            stall_after: Duration::from_millis(300),
            interval: Duration::from_millis(50),
        }
    }

    #[test]
    fn a_stall_is_told_again_and_again_until_it_is_over() {
        let proc = tree();
        let (sender, told) = mpsc::channel();
        let began = Instant::now();
        let detector = StallDetector::start(settings(proc.path()), move |stuck| {
            let _ = sender.send(stuck.clone());
        });
        let detector = detector.unwrap();
        let wait = Duration::from_secs(5);
        let stuck = told.recv_timeout(wait).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!((stuck.tid, stuck.comm.as_str()), (8, "CPU 8/KVM"));
        assert_eq!(stuck.stack.len(), 3);
        assert!(told.recv_timeout(wait).unwrap().lasted > stuck.lasted);
        task(proc.path(), 7, 8, 3, 'S', 0, &[]);
        thread::sleep(Duration::from_millis(200));
        while told.try_recv().is_ok() {}
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err());
        assert!(detector.health().looks > 5);
        assert!(!detector.health().blind);
    }

    #[test]
    fn a_task_at_which_the_reader_hangs_blinds_nobody() {
        let proc = tree();
        let hole = proc.path().join("12/task/12/stack");
        fs::remove_file(&hole).unwrap();
        mknodat(CWD, &hole, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (sender, told) = mpsc::channel();
        let detector = StallDetector::start(settings(proc.path()), move |stuck| {
            let _ = sender.send(stuck.tid);
        });
        let detector = detector.unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(8));
        let health = detector.health();
        assert_eq!((health.left_behind, health.hangs_at), (1, Some(12)));
        // Let go, it ends.
        drop(fs::OpenOptions::new().write(true).open(&hole).unwrap());
        thread::sleep(Duration::from_millis(500));
        assert_eq!(detector.health().left_behind, 0);
    }

    #[test]
    fn without_stacks_there_is_no_detector() {
        let proc = tempfile::tempdir().unwrap();
        assert!(StallDetector::start(settings(proc.path()), |_| {}).is_err());
    }

    #[test]
    fn the_effective_trigger_of_a_kernel() {
        for (release, message) in [
            ("6.18.44", Message::Never),
            ("6.9.0-rc1", Message::Never),
            ("7.3.4-1-amd64", Message::Never),
            ("6.12.0-55.el10.x86_64", Message::Never),
            ("6.8.0-45-generic", Message::Printed),
            ("6.1.0-37-amd64", Message::Printed),
            ("4.4.0-210-generic", Message::Printed),
            ("5.14.0-503.el9.x86_64", Message::Uncertain),
            ("6.4.0-150600.23-default", Message::Uncertain),
            ("5.15.0-200.131.27.el8uek.x86_64", Message::Uncertain),
            ("what", Message::Uncertain),
        ] {
            assert_eq!(Message::of(release), message, "{release}");
            assert!(effective_trigger(release, true).starts_with(&format!("kernel {release} ")));
        }
        assert!(effective_trigger("6.18.44", false).contains("nothing but"));
    }
}
