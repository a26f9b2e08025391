//! The tasks that wait: those in state D at two readings, and sleepers in a few places that matter.
//!
//! Only files of /proc/PID are read that take no lock of the memory map; see
//! [`gatherer`](crate::incident::gatherer). A stack is read of tasks in state D only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{self, Host, Reading};
use super::outcome::NotChecked;
use super::pipes::{self, PipeWriter, Pipes};
use crate::model::path::printable;
use crate::stall::{StackVerdict, verdict};
use crate::sys::proc::{self, PF_KTHREAD, Stat, TaskStat, task_stat};

/// Tasks that are read a second time; a host where more wait has its findings from these.
const MOST_TASKS: usize = 2000;
/// Places of interruptible sleep that are looked for, as the kernel names them in `wchan`:
/// io_uring/io_uring.c, fs/pipe.c, fs/splice.c.
const SLEEPS: [&str; 6] = [
    "io_cqring",
    "__io_cqring",
    "pipe_write",
    "anon_pipe_write",
    "pipe_wait_writable",
    "wait_for_space",
];

/// A task that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Process ID.
    pub pid: u32,
    /// Thread ID.
    pub tid: u32,
    /// Its name; of a kworker with its work queue (`kworker/u8:3+flush-253:0`).
    pub comm: String,
    /// Whether it is a thread of the kernel.
    pub is_kernel: bool,
    /// Whether it did not run between the two readings.
    pub slept_through: bool,
    /// In state D: its stack, innermost function first. Else the place where it sleeps.
    pub frames: Vec<String>,
    /// Whether it is in state D.
    pub is_blocked: bool,
    /// Whether its stack shows XFS waiting for memory.
    pub is_starved: bool,
}

/// All tasks that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Those in state D at both readings, and those that sleep in places that matter.
    pub waiting: Vec<Task>,
    /// Programs that wait for a reader of their pipe.
    pub pipes: Pipes,
}

/// A task as of the first reading.
struct Before {
    path: PathBuf,
    pid: u32,
    state: u8,
    start: u64,
    switches: Option<u64>,
    /// Where it sleeps, if not in state D.
    place: Option<String>,
    /// Whether its stack shows XFS waiting for memory, if in state D.
    is_starved: bool,
}

/// Reads the tasks twice, `interval` apart.
pub fn read(host: &Host, interval: Duration) -> Reading<Tasks> {
    let proc = host.path("proc");
    let mut suspects = Vec::new();
    each(&proc, |pid, path, stat| {
        let place = match stat.state {
            b'D' => None,
            b'S' if stat.flags & PF_KTHREAD == 0 => match sleeps(path) {
                Some(place) => Some(place),
                None => return,
            },
            _ => return,
        };
        let is_starved = place.is_none()
            && files::read(&path.join("stack"))
                .is_ok_and(|stack| verdict(&stack) == StackVerdict::Starved);
        suspects.push(Before {
            pid,
            state: stat.state,
            start: stat.start,
            switches: switches(path),
            path: path.to_owned(),
            place,
            is_starved,
        });
    })?;
    std::thread::sleep(interval);
    let (mut waiting, mut writers) = (Vec::new(), Vec::new());
    for before in suspects.iter().take(MOST_TASKS) {
        let Some(mut task) = still_waits(before) else {
            continue;
        };
        if before
            .place
            .as_ref()
            .is_some_and(|place| place.contains("pipe"))
        {
            writers.extend(pipe_writer(&task, &before.path));
        }
        if task.is_blocked {
            let stack = match files::read(&before.path.join("stack")) {
                Ok(stack) => stack,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let why = "the stacks of tasks can be read by root only";
                    return Err(NotChecked::because(why.to_owned()));
                }
                // It has ended.
                Err(_) => continue,
            };
            task.frames = frames(&stack);
            task.is_starved = before.is_starved && verdict(&stack) == StackVerdict::Starved;
        }
        waiting.push(task);
    }
    let pipes = pipes::read(&proc, writers);
    Ok(Tasks { waiting, pipes })
}

/// A process of one thread that slept in a write to a pipe all the time.
fn pipe_writer(task: &Task, path: &Path) -> Option<PipeWriter> {
    let threads = fs::read_dir(path.join("task")).map_or(1, Iterator::count);
    if !task.slept_through || task.pid != task.tid || threads > 1 {
        return None;
    }
    Some(PipeWriter {
        pid: task.pid,
        comm: task.comm.clone(),
        pipe: pipes::written(path)?,
    })
}

fn frames(stack: &[u8]) -> Vec<String> {
    // `__xfs_ilock.part.0+0x8e/0x120 [xfs]` is `__xfs_ilock`; without symbols there is an address.
    let name = |frame: &[u8]| {
        let end = frame.iter().position(|byte| b"+. ".contains(byte));
        printable(frame.get(..end.unwrap_or(frame.len())).unwrap_or_default())
    };
    let frames = proc::stack_frames(stack).map(name);
    frames
        .filter(|frame| !frame.is_empty() && !frame.starts_with("0x"))
        .collect()
}

/// The task, without its stack, if it is still in the same state.
fn still_waits(before: &Before) -> Option<Task> {
    let text = files::read(&before.path.join("stat")).ok()?;
    let stat = task_stat(&text)?;
    let is_same = stat.state == before.state && stat.start == before.start;
    let slept_through = switches(&before.path) == before.switches;
    is_same.then(|| Task {
        pid: before.pid,
        tid: stat.tid,
        comm: printable(stat.comm),
        is_kernel: stat.flags & PF_KTHREAD != 0,
        slept_through,
        frames: before.place.iter().cloned().collect(),
        is_blocked: stat.state == b'D',
        is_starved: false,
    })
}

/// The place where a task sleeps, if it is one of the [`SLEEPS`].
fn sleeps(path: &Path) -> Option<String> {
    let place = files::read(&path.join("wchan")).ok()?;
    let place = String::from_utf8_lossy(&place);
    let is_known = SLEEPS.iter().any(|known| place.starts_with(known));
    is_known.then(|| printable(place.as_bytes()))
}

/// How often the task has run: both counters of /proc/PID/task/TID/status together.
fn switches(path: &Path) -> Option<u64> {
    let text = files::read(&path.join("status")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let counts = text.lines().filter(|line| line.contains("ctxt_switches:"));
    let counts =
        counts.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    counts.reduce(u64::saturating_add)
}

/// Calls `take` with each task: its process, its directory, its state.
fn each(proc: &Path, mut take: impl FnMut(u32, &Path, &TaskStat<'_>)) -> Reading<()> {
    let entries = fs::read_dir(proc);
    let entries = entries.map_err(|error| NotChecked::because(format!("/proc: {error}")))?;
    for (pid, process) in entries.flatten().filter_map(|entry| numbered(&entry)) {
        let Ok(text) = files::read(&process.join("stat")) else {
            continue;
        };
        // Field 20 is the number of threads: sufficient for a process of one, and cheaper.
        let is_single = Stat::parse(&text).is_some_and(|stat| stat.field::<20>() == Some(1));
        if is_single && let Some(stat) = task_stat(&text) {
            take(pid, &process, &stat);
            continue;
        }
        // Tasks may have ended meanwhile.
        let Ok(tasks) = fs::read_dir(process.join("task")) else {
            continue;
        };
        for (_, path) in tasks.flatten().filter_map(|entry| numbered(&entry)) {
            if let Ok(text) = files::read(&path.join("stat"))
                && let Some(stat) = task_stat(&text)
            {
                take(pid, &path, &stat);
            }
        }
    }
    Ok(())
}

fn numbered(entry: &fs::DirEntry) -> Option<(u32, PathBuf)> {
    let name = entry.file_name();
    let number = name.to_str()?.parse().ok()?;
    Some((number, entry.path()))
}
