//! Reads /proc: which tasks are worth a look at their stacks, and the stacks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::read;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::gate::{BLIND_LOOK, BLIND_LOOK_WITHOUT_PSI, Gate, sign};
use super::stack::{StackVerdict, verdict};
use super::tracker::TaskKey;
use crate::klog::record::number;
use crate::model::Monotonic;
use crate::rescue::clock::now;
use crate::rescue::evidence::text;
use crate::rescue::proc_text::{self, TaskStat};

/// Tasks that are looked at from their own processor, in one look.
const PINNED: usize = 8;
/// A running task is looked at if it spent this share of the time since the last look in the
/// kernel: in clock ticks, of which there are 100 a second (USER_HZ).
const BUSY_TICKS_PER_SECOND: u64 = 20;
/// Bytes of a file that are read, and of a directory at a time.
const BUFFER: usize = 16 * 1024;

/// A task that was worth a look.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) key: TaskKey,
    pub(super) verdict: StackVerdict,
    pub(super) comm: String,
    /// Of a starved one.
    pub(super) stack: Vec<String>,
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
pub(super) struct Progress {
    /// The thread whose file is being read, 0 if none.
    pub(super) at: AtomicU32,
    pub(super) returned: AtomicBool,
}

/// Reads /proc.
pub(super) struct Scanner {
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
    pub(super) fn open(
        proc: &Path,
        skip: Vec<u32>,
        progress: Arc<Progress>,
    ) -> io::Result<Scanner> {
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
    pub(super) fn scan(&mut self, alarmed: bool) -> Option<Vec<Seen>> {
        let time = now();
        let sign = sign(&self.sign, self.has_psi, &mut self.buffer);
        self.gate
            .opens(time, sign, alarmed)
            .then(|| self.scan_all(time))
    }

    fn scan_all(&mut self, time: Monotonic) -> Vec<Seen> {
        let mut suspects = Suspects::default();
        let mut processes = std::mem::take(&mut self.processes);
        self.list(".", &mut processes);
        for pid in &processes {
            self.scan_process(*pid, &mut suspects);
        }
        self.processes = processes;
        let since = time.since(std::mem::replace(&mut self.looked, time));
        self.busy = suspects.sift(&self.busy, since);
        let mut seen: Vec<Seen> = Vec::new();
        for task in &suspects.blocked {
            seen.extend(self.read_stack(task));
        }
        for (place, task) in suspects.running.iter().enumerate() {
            let pinned = place < PINNED;
            seen.extend(self.read_running(task, pinned));
        }
        seen
    }

    fn scan_process(&mut self, pid: u64, suspects: &mut Suspects) {
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

    fn read_stack(&mut self, task: &Suspect) -> Option<Seen> {
        let (pid, tid) = (task.pid, task.key.tid);
        let length = self.read(tid.into(), format_args!("{pid}/task/{tid}/stack"))?;
        let stack = self.buffer.get(..length)?;
        let verdict = verdict(stack);
        let starved = verdict == StackVerdict::Starved;
        let frames = proc_text::stack_frames(stack).filter(|_| starved);
        Some(Seen {
            key: task.key,
            verdict,
            comm: task.comm.clone(),
            stack: frames.map(text).collect(),
        })
    }

    /// While we run on its processor it does not, and can be looked at.
    fn read_running(&mut self, task: &Suspect, may_pin: bool) -> Option<Seen> {
        let seen = self.read_stack(task)?;
        if seen.verdict != StackVerdict::Unseen || !may_pin {
            return Some(seen);
        }
        match Pinned::to(task.processor) {
            Some(_pinned) => self.read_stack(task),
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

#[cfg(test)]
mod tests {
    use super::super::fake_proc::{STARVED, task, tree};
    use super::*;
    use std::fs;
    use std::thread;

    fn scanner(proc: &Path) -> Scanner {
        Scanner::open(proc, Vec::new(), Arc::default()).unwrap()
    }

    fn seen(scanner: &mut Scanner) -> Vec<(u32, StackVerdict)> {
        let seen = scanner.scan(true).unwrap();
        let mut seen: Vec<_> = seen
            .iter()
            .map(|seen| (seen.key.tid, seen.verdict))
            .collect();
        seen.sort_by_key(|(tid, _)| *tid);
        seen
    }

    #[test]
    fn all_threads_are_looked_at() {
        let proc = tree();
        let mut scanner = scanner(proc.path());
        let expected = [
            (8, StackVerdict::Starved),
            (9, StackVerdict::Elsewhere),
            (12, StackVerdict::Elsewhere),
        ];
        assert_eq!(seen(&mut scanner), expected);
        // One that spends its time in the kernel, and one that does not.
        task(proc.path(), 20, 20, 1, 'R', 100, &STARVED);
        task(proc.path(), 21, 21, 1, 'R', 100, &STARVED);
        assert_eq!(seen(&mut scanner), expected, "it is not known yet");
        task(proc.path(), 20, 20, 1, 'R', 190, &STARVED);
        task(proc.path(), 21, 21, 1, 'R', 101, &STARVED);
        assert_eq!(
            seen(&mut scanner).last(),
            Some(&(20, StackVerdict::Starved))
        );
        let stack = scanner.scan(true).unwrap().swap_remove(0).stack;
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
            let seen = scanner.scan(true).unwrap();
            let of_child = seen.iter().filter(|seen| seen.key.tid == child.id());
            visible += of_child
                .filter(|seen| seen.verdict == StackVerdict::Elsewhere)
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
        assert!(scanner.scan(false).is_some(), "the first look");
        assert!(scanner.scan(false).is_none());
        fs::write(proc.path().join("vmstat"), "allocstall_normal 2\n").unwrap();
        scanner.gate.last_look = Some(Monotonic(now().0 - 3_000_000_000));
        assert!(scanner.scan(false).is_some());
    }
}
