//! Reads /proc: finds tasks that may be starved, and reads their stacks.

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{Errno, read};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::access::check_stacks;
use super::gate::{
    BLIND_INTERVAL, BLIND_INTERVAL_WITHOUT_PSI, ScanGate, allocation_stalls, direct_throttles,
    pressure_total,
};
use super::stack::{StackVerdict, verdict};
use super::tracker::TaskKey;
use crate::model::Monotonic;
use crate::model::path::printable;
use crate::rescue::clock::now;
use crate::sys::proc::{PF_KTHREAD, TaskStat, number, stack_frames, task_stat};

/// Maximum number of tasks per scan that are read from their own processor.
const PINNED: usize = 8;
/// A task with an invisible stack is read from its own processor if it used at least this many
/// clock ticks per second in the kernel since the last scan, of 100 (USER_HZ).
const BUSY_TICKS_PER_SECOND: u64 = 20;
const BUFFER: usize = 16 * 1024;

/// Result for one suspect task.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) key: TaskKey,
    pub(super) verdict: StackVerdict,
    pub(super) comm: String,
    /// Frames; only of a starved task.
    pub(super) stack: Vec<String>,
}

#[derive(Debug)]
struct Suspect {
    key: TaskKey,
    comm: String,
    processor: u64,
    /// Clock ticks in the kernel since the last scan.
    ticks: u64,
    tracked: bool,
}

/// Why a file of a task was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotRead {
    Gone,
    /// No memory, no permission, another reader hangs at the task, …
    Unknown,
}

/// The progress of a reader, for the thread that waits for it.
#[derive(Debug, Default)]
pub(super) struct ScanProgress {
    /// The thread whose file is being read, 0 for none.
    pub(super) at: AtomicU32,
    pub(super) returned: AtomicBool,
}

pub(super) struct Scanner {
    root: PathBuf,
    proc: OwnedFd,
    vmstat: File,
    /// /proc/pressure/memory, if the kernel has it.
    pressure: Option<File>,
    gate: ScanGate,
    buffer: Vec<u8>,
    entries: Vec<u8>,
    /// Kernel-mode clock ticks of all tasks at the last scan, sorted.
    ticks: Vec<(TaskKey, u64)>,
    scanned: Monotonic,
    /// Throttle count at the last scan.
    throttled: Option<u64>,
    progress: Arc<ScanProgress>,
    /// Threads at which other readers hang.
    skip: Vec<u32>,
}

impl Scanner {
    pub(super) fn open(
        proc: &Path,
        skip: Vec<u32>,
        progress: Arc<ScanProgress>,
    ) -> io::Result<Scanner> {
        let mut buffer = vec![0; BUFFER];
        // Where PSI is off, the file exists but cannot be opened or read (kernel/sched/psi.c).
        let pressure = File::open(proc.join("pressure/memory")).ok();
        let pressure = pressure.filter(|file| pressure_total(file, &mut buffer).is_some());
        let blind_interval = match pressure {
            Some(_) => BLIND_INTERVAL,
            None => BLIND_INTERVAL_WITHOUT_PSI,
        };
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let vmstat = File::open(proc.join("vmstat"))?;
        let throttled = direct_throttles(&vmstat, &mut buffer);
        Ok(Scanner {
            root: proc.to_owned(),
            proc: openat(CWD, proc, directory, Mode::empty())?,
            vmstat,
            pressure,
            gate: ScanGate::new(blind_interval),
            buffer,
            entries: Vec::with_capacity(BUFFER),
            ticks: Vec::new(),
            scanned: now(),
            throttled,
            progress,
            skip,
        })
    }

    /// Scans suspect and `tracked` tasks; `None` if the gate is closed. Fails on unreadable stacks.
    pub(super) fn scan(&mut self, tracked: &[TaskKey]) -> io::Result<Option<Vec<Seen>>> {
        let time = now();
        let sign = match &self.pressure {
            Some(file) => pressure_total(file, &mut self.buffer),
            None => allocation_stalls(&self.vmstat, &mut self.buffer),
        };
        if !self.gate.opens(time, sign, !tracked.is_empty()) {
            return Ok(None);
        }
        if let Err(error) = check_stacks(&self.root) {
            // Retried at the next check of the gate.
            self.gate.last_scan = None;
            return Err(error);
        }
        Ok(Some(self.scan_all(time, tracked)))
    }

    /// Tracked tasks missing from the result have ended.
    fn scan_all(&mut self, time: Monotonic, tracked: &[TaskKey]) -> Vec<Seen> {
        let since = time.since(std::mem::replace(&mut self.scanned, time));
        let mut seen = Vec::new();
        let mut suspects = Vec::new();
        for key in tracked {
            match self.find_tracked(*key) {
                Ok(suspect) => suspects.push(suspect),
                Err(NotRead::Gone) => {}
                Err(NotRead::Unknown) => seen.push(unseen(*key, String::new())),
            }
        }
        let mut others = self.find_others(tracked);
        // Those that use the most kernel time first.
        others.sort_by_key(|task| std::cmp::Reverse(task.ticks));
        suspects.append(&mut others);
        let busy = since.as_secs().max(1).saturating_mul(BUSY_TICKS_PER_SECOND);
        let mut pins = PINNED;
        for task in &suspects {
            let may_pin = pins > 0 && (task.tracked || task.ticks >= busy);
            match self.read_stack(task) {
                Ok(one) if one.verdict == StackVerdict::Unseen && may_pin => {
                    pins -= 1;
                    seen.push(self.read_stack_pinned(task).unwrap_or(one));
                }
                Ok(one) => seen.push(one),
                Err(NotRead::Gone) => {}
                Err(NotRead::Unknown) => seen.push(unseen(task.key, task.comm.clone())),
            }
        }
        seen
    }

    fn find_tracked(&mut self, key: TaskKey) -> Result<Suspect, NotRead> {
        let TaskKey { pid, tid, start } = key;
        let text = self.read(tid.into(), &format!("{pid}/task/{tid}/stat"))?;
        let stat = task_stat(text).ok_or(NotRead::Unknown)?;
        if stat.start != start {
            return Err(NotRead::Gone);
        }
        Ok(Suspect {
            key,
            comm: printable(stat.comm),
            processor: stat.processor,
            ticks: 0,
            tracked: true,
        })
    }

    fn find_others(&mut self, tracked: &[TaskKey]) -> Vec<Suspect> {
        let throttled = direct_throttles(&self.vmstat, &mut self.buffer);
        let mut search = Search {
            tracked,
            sleepers: throttled.is_none() || throttled != self.throttled,
            before: std::mem::take(&mut self.ticks),
            ticks: Vec::new(),
            suspects: Vec::new(),
        };
        self.throttled = throttled;
        for pid in self.list(".") {
            self.scan_process(pid, &mut search);
        }
        search.ticks.sort_unstable();
        self.ticks = search.ticks;
        search.suspects
    }

    fn scan_process(&mut self, pid: u64, search: &mut Search<'_>) {
        // Sufficient for a single-threaded process, and cheaper.
        let text = self.read(pid, &format!("{pid}/stat"));
        let Some(stat) = text.ok().and_then(task_stat) else {
            return;
        };
        if stat.threads <= 1 {
            return search.consider(stat.tid, &stat);
        }
        let process = stat.tid;
        for tid in self.list(&format!("{pid}/task")) {
            let text = self.read(tid, &format!("{pid}/task/{tid}/stat"));
            if let Some(stat) = text.ok().and_then(task_stat) {
                search.consider(process, &stat);
            }
        }
    }

    fn read_stack(&mut self, task: &Suspect) -> Result<Seen, NotRead> {
        let TaskKey { pid, tid, .. } = task.key;
        let stack = self.read(tid.into(), &format!("{pid}/task/{tid}/stack"))?;
        let verdict = verdict(stack);
        let starved = verdict == StackVerdict::Starved;
        let frames = stack_frames(stack).filter(|_| starved);
        Ok(Seen {
            key: task.key,
            verdict,
            comm: task.comm.clone(),
            stack: frames.map(printable).collect(),
        })
    }

    /// While this thread runs on its processor, the task does not, and its stack is visible.
    fn read_stack_pinned(&mut self, task: &Suspect) -> Option<Seen> {
        let _pinned = Pinned::to(task.processor)?;
        self.read_stack(task).ok()
    }

    /// Reads a task's file, which fits into the buffer and is read in one piece: a stack has at
    /// most 64 frames (`MAX_STACK_TRACE_DEPTH`, fs/proc/base.c).
    fn read(&mut self, tid: u64, path: &str) -> Result<&[u8], NotRead> {
        let tid = u32::try_from(tid).map_err(|_| NotRead::Gone)?;
        if self.skip.contains(&tid) {
            return Err(NotRead::Unknown);
        }
        self.progress.at.store(tid, Ordering::Relaxed);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let length = openat(&self.proc, path, flags, Mode::empty())
            .and_then(|file| read(&file, &mut self.buffer));
        self.progress.at.store(0, Ordering::Relaxed);
        match length {
            Ok(length) => Ok(self.buffer.get(..length).unwrap_or_default()),
            Err(Errno::NOENT | Errno::SRCH) => Err(NotRead::Gone),
            Err(_) => Err(NotRead::Unknown),
        }
    }

    /// Lists the numeric names in a directory; empty if it cannot be read.
    fn list(&mut self, path: &str) -> Vec<u64> {
        let mut numbers = Vec::new();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = openat(&self.proc, path, flags, Mode::empty()) else {
            return numbers;
        };
        let mut entries = RawDir::new(&directory, self.entries.spare_capacity_mut());
        while let Some(Ok(entry)) = entries.next() {
            numbers.extend(number(entry.file_name().to_bytes()));
        }
        numbers
    }
}

struct Search<'a> {
    tracked: &'a [TaskKey],
    /// Whether tasks in state S are suspect.
    sleepers: bool,
    before: Vec<(TaskKey, u64)>,
    ticks: Vec<(TaskKey, u64)>,
    suspects: Vec<Suspect>,
}

impl Search<'_> {
    fn consider(&mut self, pid: u32, stat: &TaskStat<'_>) {
        let key = TaskKey {
            pid,
            tid: stat.tid,
            start: stat.start,
        };
        let ticks = self.ticks_since_last(key, stat.system_ticks);
        self.ticks.push((key, stat.system_ticks));
        let suspect = match stat.state {
            b'D' => true,
            b'R' => ticks > 0,
            // The kernel does not throttle its own threads (throttle_direct_reclaim, mm/vmscan.c).
            b'S' => self.sleepers && stat.flags & PF_KTHREAD == 0,
            _ => false,
        };
        if suspect && !self.tracked.contains(&key) {
            self.suspects.push(Suspect {
                key,
                comm: printable(stat.comm),
                processor: stat.processor,
                ticks,
                tracked: false,
            });
        }
    }

    /// 0 for a new task, whose earlier ticks are unknown.
    fn ticks_since_last(&self, key: TaskKey, ticks: u64) -> u64 {
        let place = self.before.binary_search_by_key(&key, |(key, _)| *key);
        let before = place.ok().and_then(|place| self.before.get(place));
        before.map_or(0, |(_, before)| ticks.saturating_sub(*before))
    }
}

fn unseen(key: TaskKey, comm: String) -> Seen {
    Seen {
        key,
        verdict: StackVerdict::Unseen,
        comm,
        stack: Vec::new(),
    }
}

/// Pins the calling thread to one processor until dropped; contains the former processors.
struct Pinned(CpuSet);

impl Pinned {
    fn to(processor: u64) -> Option<Pinned> {
        let processor = usize::try_from(processor).ok()?;
        let before = sched_getaffinity(None).ok()?;
        let mut only = CpuSet::new();
        only.set((processor < CpuSet::MAX_CPU).then_some(processor)?);
        sched_setaffinity(None, &only).ok()?;
        Some(Pinned(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The old mask was valid before; this can fail only if a processor has been removed.
        let _ = sched_setaffinity(None, &self.0);
    }
}

#[cfg(test)]
mod tests;
