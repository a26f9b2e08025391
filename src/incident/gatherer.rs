//! Collects the evidence of an incident.
//!
//! Each source has a collector thread; all share one deadline. A collector that misses it is listed
//! as left out, and the data it delivered before is kept. Its thread cannot be ended, and the
//! collector is not started again until it returns. No collector reads a process's command line or
//! maps: both take the mmap lock, which a task stuck in a page fault holds.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::evidence::{BlockedTask, Evidence, ImageEvidence, LeftOut, MountPoint, TaskKind, Zone};
use crate::model::path::{printable, shown};
use crate::model::utc;
use crate::sys;
use crate::sys::proc::{self, PF_WQ_WORKER, TaskStat};

/// Default deadline of the collectors.
pub const DEADLINE: Duration = Duration::from_secs(2);
const SLABS: usize = 15;
/// Maximum number of tasks listed; further ones are only counted.
const TASKS: usize = 500;
const MOUNTS: usize = 1000;
const STACK: usize = 256 * 1024;

/// Returns the most fragmented images; called on a thread that may hang.
pub type Images = Arc<dyn Fn() -> Vec<ImageEvidence> + Send + Sync>;

/// Collects evidence, any number of times.
pub struct Gatherer {
    sources: Arc<Sources>,
    deadline: Duration,
    /// Whether each of the [`COLLECTORS`] is running.
    busy: [Arc<AtomicBool>; COLLECTORS.len()],
}

struct Sources {
    proc: PathBuf,
    images: Images,
}

impl Sources {
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.proc.join(name))
    }
}

type Change = Box<dyn FnOnce(&mut Evidence) + Send>;

/// A collector; delivers its data in one or more parts.
type Collect = fn(&Sources, &dyn Fn(Change)) -> io::Result<()>;

enum Message {
    Found(Change),
    Done(&'static str, io::Result<()>),
}

const COLLECTORS: [(&str, Collect); 9] = [
    ("buddyinfo", |sources, give| {
        let text = sources.read("buddyinfo")?;
        let zones = proc::buddyinfo(&text).map(Zone::from).collect();
        give(Box::new(|found| found.buddyinfo = zones));
        Ok(())
    }),
    ("vmstat", |sources, give| {
        let counters = named_counters(&sources.read("vmstat")?, is_relevant);
        give(Box::new(|found| found.vmstat = counters));
        Ok(())
    }),
    ("meminfo", |sources, give| {
        let mut sizes = named_counters(&sources.read("meminfo")?, |_| true);
        let huge_page = sizes.get("Hugepagesize").copied().unwrap_or(0);
        for (name, size) in &mut sizes {
            // The only ones that are not in KiB.
            if name.starts_with("HugePages_") {
                *size = size.saturating_mul(huge_page);
            }
        }
        give(Box::new(|found| found.meminfo_kib = sizes));
        Ok(())
    }),
    ("memory pressure", |sources, give| {
        pressure(sources, "memory", give)
    }),
    ("io and cpu pressure", |sources, give| {
        pressure(sources, "io", give)?;
        pressure(sources, "cpu", give)
    }),
    ("slabs", |sources, give| {
        let slabs = proc::slabinfo(&sources.read("slabinfo")?, proc::page_bytes(), SLABS);
        give(Box::new(|found| found.slabs = slabs));
        Ok(())
    }),
    ("tasks in state D", blocked_tasks),
    ("mounts", |sources, give| {
        let mounts = sys::mounts::read(&sources.proc)?;
        let mounts = mounts.into_iter().take(MOUNTS).map(mount_point).collect();
        give(Box::new(|found| found.mounts = mounts));
        Ok(())
    }),
    ("images", |sources, give| {
        let images = (sources.images)();
        give(Box::new(|found| found.images = images));
        Ok(())
    }),
];

impl Gatherer {
    /// Reads procfs at `proc`; one collection takes at most `deadline`.
    pub fn new(proc: PathBuf, images: Images, deadline: Duration) -> Gatherer {
        Gatherer {
            sources: Arc::new(Sources { proc, images }),
            deadline,
            busy: Default::default(),
        }
    }

    /// Runs all collectors. Returns after the deadline at the latest.
    pub fn gather(&self) -> Evidence {
        let began = Instant::now();
        let mut evidence = Evidence {
            at: utc::rfc3339(SystemTime::now()),
            ..Evidence::default()
        };
        let mut missing = Vec::new();
        let mut left_out = |name: &str, reason| {
            let collector = name.to_owned();
            missing.push(LeftOut { collector, reason });
        };
        let (sender, receiver) = mpsc::channel();
        let mut waiting = Vec::new();
        for ((name, collect), busy) in COLLECTORS.iter().zip(&self.busy) {
            if busy.swap(true, Ordering::AcqRel) {
                left_out(name, "an earlier attempt still hangs".to_owned());
                continue;
            }
            match self.start(name, *collect, Arc::clone(busy), sender.clone()) {
                Ok(()) => waiting.push(*name),
                Err(error) => {
                    busy.store(false, Ordering::Release);
                    left_out(name, format!("no thread for it: {error}"));
                }
            }
        }
        drop(sender);
        while !waiting.is_empty() {
            let left = self.deadline.saturating_sub(began.elapsed());
            match receiver.recv_timeout(left) {
                Ok(Message::Found(change)) => change(&mut evidence),
                Ok(Message::Done(name, result)) => {
                    waiting.retain(|waiting| *waiting != name);
                    if let Err(error) = result {
                        left_out(name, error.to_string());
                    }
                }
                Err(_) => break,
            }
        }
        for name in waiting {
            let reason = format!("no answer within {} s", self.deadline.as_secs_f64());
            left_out(name, reason);
        }
        evidence.left_out = missing;
        evidence.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        evidence
    }

    fn start(
        &self,
        name: &'static str,
        collect: Collect,
        busy: Arc<AtomicBool>,
        sender: Sender<Message>,
    ) -> io::Result<()> {
        let sources = Arc::clone(&self.sources);
        let body = move || {
            // Fails after the deadline.
            let give = |change| drop(sender.send(Message::Found(change)));
            let result = collect(&sources, &give);
            busy.store(false, Ordering::Release);
            let _ = sender.send(Message::Done(name, result));
        };
        let thread = thread::Builder::new()
            .name("collector".to_owned())
            .stack_size(STACK);
        thread.spawn(body).map(drop)
    }
}

/// Counters of /proc/vmstat that show why memory is short.
fn is_relevant(name: &str) -> bool {
    const BEGINNINGS: [&str; 7] = [
        "nr_dirty",
        "nr_writeback",
        "compact_",
        "allocstall",
        "drop_",
        "pgscan_",
        "pgsteal_",
    ];
    const NAMES: [&str; 5] = [
        "nr_free_pages",
        "nr_slab_reclaimable",
        "nr_slab_unreclaimable",
        "nr_throttled_written",
        "oom_kill",
    ];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|begin| name.starts_with(begin))
}

fn pressure(sources: &Sources, of: &'static str, give: &dyn Fn(Change)) -> io::Result<()> {
    let text = fs::read(sources.proc.join("pressure").join(of))?;
    let line = |name| Some((String::from(name), proc::pressure(&text, name)?));
    let lines = ["some", "full"].into_iter().filter_map(line).collect();
    give(Box::new(move |found| {
        found.pressure.insert(of.to_owned(), lines);
    }));
    Ok(())
}

fn named_counters(text: &[u8], wanted: impl Fn(&str) -> bool) -> BTreeMap<String, u64> {
    let counters = proc::counters(text);
    let named = counters.map(|(name, count)| (String::from_utf8_lossy(name).into_owned(), count));
    named.filter(|(name, _)| wanted(name)).collect()
}

fn mount_point(mount: sys::mounts::Mount) -> MountPoint {
    MountPoint {
        point: shown(&mount.point),
        type_name: mount.type_name,
        device: format!("{}:{}", mount.device.0, mount.device.1),
    }
}

/// Delivers the tasks first, then their stacks: reading a stack can hang while the task is in
/// execve (`lock_trace`, fs/proc/base.c).
fn blocked_tasks(sources: &Sources, give: &dyn Fn(Change)) -> io::Result<()> {
    let mut named = Vec::new();
    for process in numbered(&sources.proc)? {
        // Processes and tasks may have ended meanwhile.
        let Ok(tasks) = numbered(&process.join("task")) else {
            continue;
        };
        for path in tasks {
            let Ok(text) = fs::read(path.join("stat")) else {
                continue;
            };
            let stat = proc::task_stat(&text);
            let Some(stat) = stat.filter(|stat| stat.state == b'D') else {
                continue;
            };
            if named.len() == TASKS {
                give(Box::new(|found| found.tasks_blocked += 1));
                continue;
            }
            let task = blocked_task(&process, &path, &stat);
            named.push((stat.tid, path));
            give(Box::new(|found| {
                found.tasks_blocked += 1;
                found.tasks.push(task);
            }));
        }
    }
    let mut refused = None;
    for (tid, path) in named {
        match fs::read(path.join("stack")) {
            Ok(text) => {
                let frames = proc::stack_frames(&text);
                let frames = frames.map(|frame| String::from_utf8_lossy(frame).into_owned());
                let stack = frames.collect();
                give(Box::new(move |found| {
                    if let Some(task) = found.tasks.iter_mut().find(|task| task.tid == tid) {
                        task.stack = stack;
                    }
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(error),
            Err(_) => {}
        }
    }
    refused.map_or(Ok(()), Err)
}

fn numbered(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.flatten();
    let numbered = entries.filter(|entry| {
        let name = entry.file_name();
        name.as_bytes().iter().all(u8::is_ascii_digit)
    });
    Ok(numbered.map(|entry| entry.path()).collect())
}

fn blocked_task(process: &Path, task: &Path, stat: &TaskStat<'_>) -> BlockedTask {
    let pid = process.file_name().and_then(OsStr::to_str);
    let wchan = fs::read_to_string(task.join("wchan")).ok();
    BlockedTask {
        tid: stat.tid,
        pid: pid.and_then(|pid| pid.parse().ok()).unwrap_or(0),
        comm: printable(stat.comm),
        kind: kind(stat),
        wchan: wchan.filter(|function| !matches!(function.as_str(), "" | "0")),
        stack: Vec::new(),
    }
}

fn kind(stat: &TaskStat<'_>) -> TaskKind {
    const JOURNALS: [&[u8]; 6] = [b"jbd2/", b"xfsaild/", b"xfs-", b"xfs_", b"btrfs-", b"bch-"];
    if stat.flags & PF_WQ_WORKER != 0 || stat.comm.starts_with(b"kworker/") {
        TaskKind::Kworker
    } else if JOURNALS.iter().any(|name| stat.comm.starts_with(name)) {
        TaskKind::Journal
    } else {
        TaskKind::Task
    }
}

#[cfg(test)]
mod tests;
