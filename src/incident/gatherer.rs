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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::evidence::{BlockedTask, Evidence, ImageEvidence, LeftOut, MountPoint, TaskKind, Zone};
use super::format::millis;
use crate::model::path::{printable, shown};
use crate::model::{Finding, utc};
use crate::sys;
use crate::sys::mutex::lock;
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
/// Returns the findings of the doctor; likewise.
pub type Findings = Arc<dyn Fn() -> Vec<Finding> + Send + Sync>;

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
    findings: Findings,
}

impl Sources {
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.proc.join(name))
    }
}

/// What was found so far. Never locked while a collector reads.
type Found = Mutex<Evidence>;

/// A collector; delivers its data in one or more parts.
type Collect = fn(&Sources, &Found) -> io::Result<()>;

const COLLECTORS: [(&str, Collect); 10] = [
    ("buddyinfo", |sources, found| {
        let text = sources.read("buddyinfo")?;
        lock(found).buddyinfo = proc::buddyinfo(&text).map(Zone::from).collect();
        Ok(())
    }),
    ("vmstat", |sources, found| {
        let counters = named_counters(&sources.read("vmstat")?, is_relevant);
        lock(found).vmstat = counters;
        Ok(())
    }),
    ("meminfo", |sources, found| {
        let mut sizes = named_counters(&sources.read("meminfo")?, |_| true);
        let huge_page = sizes.get("Hugepagesize").copied().unwrap_or(0);
        for (name, size) in &mut sizes {
            // The only ones that are not in KiB.
            if name.starts_with("HugePages_") {
                *size = size.saturating_mul(huge_page);
            }
        }
        lock(found).meminfo_kib = sizes;
        Ok(())
    }),
    ("memory pressure", |sources, found| {
        pressure(sources, "memory", found)
    }),
    ("io and cpu pressure", |sources, found| {
        pressure(sources, "io", found)?;
        pressure(sources, "cpu", found)
    }),
    ("slabs", |sources, found| {
        let slabs = proc::slabinfo(&sources.read("slabinfo")?, proc::page_bytes(), SLABS);
        lock(found).slabs = slabs;
        Ok(())
    }),
    ("tasks in state D", blocked_tasks),
    ("mounts", |sources, found| {
        let mounts = sys::mounts::read(&sources.proc)?;
        let mounts = mounts.into_iter().take(MOUNTS).map(|mount| MountPoint {
            point: shown(&mount.point),
            type_name: mount.type_name,
            device: format!("{}:{}", mount.device.0, mount.device.1),
        });
        lock(found).mounts = mounts.collect();
        Ok(())
    }),
    ("images", |sources, found| {
        let images = (sources.images)();
        lock(found).images = images;
        Ok(())
    }),
    ("doctor", |sources, found| {
        let findings = (sources.findings)();
        lock(found).findings = findings;
        Ok(())
    }),
];

impl Gatherer {
    /// Reads procfs at `proc`; one collection takes at most `deadline`.
    pub fn new(proc: PathBuf, images: Images, findings: Findings, deadline: Duration) -> Gatherer {
        let sources = Sources {
            proc,
            images,
            findings,
        };
        Gatherer {
            sources: Arc::new(sources),
            deadline,
            busy: Default::default(),
        }
    }

    /// Runs all collectors. Returns after the deadline at the latest.
    pub fn gather(&self) -> Evidence {
        let began = Instant::now();
        let at = utc::rfc3339(SystemTime::now());
        let found = Arc::new(Found::default());
        let (sender, ended) = mpsc::channel();
        let mut left_out = Vec::new();
        let mut waiting = Vec::new();
        for ((name, collect), busy) in COLLECTORS.iter().zip(&self.busy) {
            if busy.swap(true, Ordering::AcqRel) {
                left_out.push((*name, "an earlier attempt still hangs".to_owned()));
                continue;
            }
            match self.start(name, *collect, busy, &found, &sender) {
                Ok(()) => waiting.push(*name),
                Err(error) => {
                    busy.store(false, Ordering::Release);
                    left_out.push((name, format!("no thread for it: {error}")));
                }
            }
        }
        while !waiting.is_empty() {
            let left = self.deadline.saturating_sub(began.elapsed());
            let Ok((name, result)) = ended.recv_timeout(left) else {
                break;
            };
            waiting.retain(|waiting| *waiting != name);
            if let Err(error) = result {
                left_out.push((name, error.to_string()));
            }
        }
        let late = format!("no answer within {} s", self.deadline.as_secs_f64());
        left_out.extend(waiting.into_iter().map(|name| (name, late.clone())));
        let left_out = left_out.into_iter().map(|(name, reason)| LeftOut {
            collector: name.to_owned(),
            reason,
        });
        Evidence {
            at,
            took_ms: millis(began.elapsed()),
            left_out: left_out.collect(),
            ..std::mem::take(&mut *lock(&found))
        }
    }

    fn start(
        &self,
        name: &'static str,
        collect: Collect,
        busy: &Arc<AtomicBool>,
        found: &Arc<Found>,
        ended: &Sender<(&'static str, io::Result<()>)>,
    ) -> io::Result<()> {
        let (sources, busy) = (Arc::clone(&self.sources), Arc::clone(busy));
        let (found, ended) = (Arc::clone(found), ended.clone());
        let thread = thread::Builder::new()
            .name("collector".to_owned())
            .stack_size(STACK);
        let spawned = thread.spawn(move || {
            let result = collect(&sources, &found);
            busy.store(false, Ordering::Release);
            // Fails after the deadline.
            let _ = ended.send((name, result));
        });
        spawned.map(drop)
    }
}

/// Counters of /proc/vmstat that show why memory is short.
fn is_relevant(name: &str) -> bool {
    const BEGINNINGS: &str = "nr_dirty nr_writeback compact_ allocstall drop_ pgscan_ pgsteal_";
    const NAMES: &str = "nr_free_pages nr_slab_reclaimable nr_slab_unreclaimable \
        nr_throttled_written oom_kill";
    let mut beginnings = BEGINNINGS.split_whitespace();
    beginnings.any(|begin| name.starts_with(begin)) || NAMES.split_whitespace().any(|it| it == name)
}

fn pressure(sources: &Sources, of: &str, found: &Found) -> io::Result<()> {
    let text = sources.read(&format!("pressure/{of}"))?;
    let line = |name| Some((String::from(name), proc::pressure(&text, name)?));
    let lines = ["some", "full"].into_iter().filter_map(line).collect();
    lock(found).pressure.insert(of.to_owned(), lines);
    Ok(())
}

fn named_counters(text: &[u8], wanted: impl Fn(&str) -> bool) -> BTreeMap<String, u64> {
    let counters = proc::counters(text);
    let named = counters.map(|(name, count)| (String::from_utf8_lossy(name).into_owned(), count));
    named.filter(|(name, _)| wanted(name)).collect()
}

/// Delivers the tasks first, then their stacks: reading a stack can hang while the task is in
/// execve (`lock_trace`, fs/proc/base.c).
fn blocked_tasks(sources: &Sources, found: &Found) -> io::Result<()> {
    let mut named = Vec::new();
    for process in numbered(&sources.proc)? {
        // Processes and tasks may have ended meanwhile.
        for path in numbered(&process.join("task")).unwrap_or_default() {
            let Ok(text) = fs::read(path.join("stat")) else {
                continue;
            };
            let stat = proc::task_stat(&text);
            let Some(stat) = stat.filter(|stat| stat.state == b'D') else {
                continue;
            };
            let task = (named.len() < TASKS).then(|| blocked_task(&process, &path, &stat));
            let mut found = lock(found);
            found.tasks_blocked += 1;
            if let Some(task) = task {
                named.push((stat.tid, path));
                found.tasks.push(task);
            }
        }
    }
    let mut refused = None;
    for (tid, path) in named {
        match fs::read(path.join("stack")) {
            Ok(text) => {
                let frames = proc::stack_frames(&text);
                let frames = frames.map(|frame| String::from_utf8_lossy(frame).into_owned());
                let mut found = lock(found);
                if let Some(task) = found.tasks.iter_mut().find(|task| task.tid == tid) {
                    task.stack = frames.collect();
                }
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
