//! What a host looks like while XFS waits for memory, for whoever has to explain it afterwards.
//!
//! Every reading is a collector on a thread of its own, with a deadline that is the same for all.
//! One that does not come back is noted and left out; what it found until then is kept. Its thread
//! stays behind, because nobody can end it, and until it returns it is not started again.
//!
//! Nothing here reads a process's command line or maps: that waits for the process's memory lock,
//! and a process that is stuck in a page fault holds it.

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

use serde::{Deserialize, Serialize};

use crate::model::path::{printable, shown};
use crate::model::utc;
use crate::sys;
use crate::sys::proc::{self, PF_WQ_WORKER, Pressure, Slab, TaskStat};

/// How long the collectors may take.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Slabs that are named.
const SLABS: usize = 15;
/// Tasks that are named; the others are counted.
const TASKS: usize = 500;
/// Mounts that are named.
const MOUNTS: usize = 1000;
/// Stack of a collector's thread.
const STACK: usize = 256 * 1024;

/// Free blocks of a zone, by order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The NUMA node.
    pub node: u64,
    /// Its name: `DMA32`, `Normal`, …
    pub zone: String,
    /// Free blocks of 2^n pages.
    pub free_blocks: Vec<u64>,
}

impl From<proc::BuddyZone<'_>> for Zone {
    fn from(zone: proc::BuddyZone<'_>) -> Zone {
        Zone {
            node: zone.node,
            zone: String::from_utf8_lossy(zone.name).into_owned(),
            free_blocks: zone.free_blocks().collect(),
        }
    }
}

/// What was found, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// When: RFC 3339.
    pub at: String,
    /// How long it took.
    pub took_ms: u64,
    /// Free blocks by order, of each zone.
    pub buddyinfo: Vec<Zone>,
    /// Counters of /proc/vmstat: of write-back (with the thresholds that nr_dirty is held
    /// against), compaction, allocation stalls and drops. Those named `nr_` are pages.
    pub vmstat: BTreeMap<String, u64>,
    /// /proc/meminfo, in KiB.
    pub meminfo_kib: BTreeMap<String, u64>,
    /// Pressure of `memory`, `io` and `cpu`, each by `some` and `full`.
    pub pressure: BTreeMap<String, BTreeMap<String, Pressure>>,
    /// The largest slabs.
    pub slabs: Vec<Slab>,
    /// Tasks in state D, those that are not named among `tasks` as well.
    pub tasks_blocked: u64,
    /// Tasks in state D.
    pub tasks: Vec<BlockedTask>,
    /// What is mounted.
    pub mounts: Vec<MountPoint>,
    /// The most fragmented images.
    pub images: Vec<ImageEvidence>,
    /// What could not be collected.
    pub left_out: Vec<LeftOut>,
}

/// A task that cannot be interrupted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockedTask {
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// What it is to the file systems.
    pub kind: TaskKind,
    /// The function it waits in.
    pub wchan: Option<String>,
    /// Its kernel stack, innermost function first. Empty without CAP_SYS_ADMIN.
    pub stack: Vec<String>,
}

/// What a task is to the file systems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// A thread of some program.
    #[default]
    Task,
    /// A thread of the kernel's work queues, for example one that writes back.
    Kworker,
    /// A thread of a file system's journal.
    Journal,
}

/// Where something is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The path.
    pub point: String,
    /// The file system's type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Its device: `253:0`.
    pub device: String,
}

/// An image, as its last sample had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEvidence {
    /// Its path.
    pub path: String,
    /// Its extents.
    pub extents: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// A collector that gave nothing, or not all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which.
    pub collector: String,
    /// Why.
    pub reason: String,
}

/// Who knows the most fragmented images. It is asked on a thread that may hang.
pub type Images = Arc<dyn Fn() -> Vec<ImageEvidence> + Send + Sync>;

/// Collects, again and again.
pub struct Gatherer {
    sources: Arc<Sources>,
    deadline: Duration,
    collectors: Vec<(Collector, Arc<AtomicBool>)>,
}

struct Sources {
    proc: PathBuf,
    images: Images,
}

#[derive(Clone, Copy)]
struct Collector {
    name: &'static str,
    run: fn(&Sources, &dyn Fn(Part)) -> io::Result<()>,
}

enum Part {
    Buddyinfo(Vec<Zone>),
    Vmstat(BTreeMap<String, u64>),
    Meminfo(BTreeMap<String, u64>),
    Pressure(&'static str, BTreeMap<String, Pressure>),
    Slabs(Vec<Slab>),
    Task(BlockedTask),
    /// One more that is not named.
    FurtherTask,
    Stack(u32, Vec<String>),
    Mounts(Vec<MountPoint>),
    Images(Vec<ImageEvidence>),
}

enum Message {
    Part(Part),
    Done(&'static str, io::Result<()>),
}

const COLLECTORS: [Collector; 9] = [
    Collector {
        name: "buddyinfo",
        run: |sources, give| {
            let text = fs::read(sources.proc.join("buddyinfo"))?;
            give(Part::Buddyinfo(
                proc::buddyinfo(&text).map(Zone::from).collect(),
            ));
            Ok(())
        },
    },
    Collector {
        name: "vmstat",
        run: |sources, give| {
            let text = fs::read(sources.proc.join("vmstat"))?;
            give(Part::Vmstat(named_counters(&text, is_telling)));
            Ok(())
        },
    },
    Collector {
        name: "meminfo",
        run: |sources, give| {
            let text = fs::read(sources.proc.join("meminfo"))?;
            give(Part::Meminfo(named_counters(&text, |_| true)));
            Ok(())
        },
    },
    Collector {
        name: "memory pressure",
        run: |sources, give| pressure(sources, "memory", give),
    },
    Collector {
        name: "io and cpu pressure",
        run: |sources, give| {
            pressure(sources, "io", give)?;
            pressure(sources, "cpu", give)
        },
    },
    Collector {
        name: "slabs",
        run: |sources, give| {
            let text = fs::read(sources.proc.join("slabinfo"))?;
            let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
            give(Part::Slabs(proc::slabinfo(&text, page, SLABS)));
            Ok(())
        },
    },
    Collector {
        name: "tasks in state D",
        run: blocked_tasks,
    },
    Collector {
        name: "mounts",
        run: |sources, give| {
            let mounts = sys::mounts::read(&sources.proc)?;
            give(Part::Mounts(
                mounts.into_iter().take(MOUNTS).map(mount_point).collect(),
            ));
            Ok(())
        },
    },
    Collector {
        name: "images",
        run: |sources, give| {
            give(Part::Images((sources.images)()));
            Ok(())
        },
    },
];

impl Gatherer {
    /// Collects below `proc`; all together may take `deadline`.
    #[must_use]
    pub fn new(proc: PathBuf, images: Images, deadline: Duration) -> Gatherer {
        let idle = |collector| (collector, Arc::new(AtomicBool::new(false)));
        Gatherer {
            sources: Arc::new(Sources { proc, images }),
            deadline,
            collectors: COLLECTORS.into_iter().map(idle).collect(),
        }
    }

    /// Collects everything. Returns after the deadline at the latest.
    #[must_use]
    pub fn gather(&self) -> Evidence {
        let began = Instant::now();
        let mut evidence = Evidence {
            at: utc::rfc3339(SystemTime::now()),
            ..Evidence::default()
        };
        let (sender, receiver) = mpsc::channel();
        let mut waiting = Vec::new();
        for (collector, busy) in &self.collectors {
            if busy.swap(true, Ordering::AcqRel) {
                evidence.leave_out(collector.name, "an earlier attempt still hangs".to_owned());
                continue;
            }
            match self.start(*collector, Arc::clone(busy), sender.clone()) {
                Ok(()) => waiting.push(collector.name),
                Err(error) => {
                    busy.store(false, Ordering::Release);
                    evidence.leave_out(collector.name, format!("no thread for it: {error}"));
                }
            }
        }
        drop(sender);
        while !waiting.is_empty() {
            let left = self.deadline.saturating_sub(began.elapsed());
            match receiver.recv_timeout(left) {
                Ok(Message::Part(part)) => evidence.take(part),
                Ok(Message::Done(name, result)) => {
                    waiting.retain(|waiting| *waiting != name);
                    if let Err(error) = result {
                        evidence.leave_out(name, error.to_string());
                    }
                }
                Err(_) => break,
            }
        }
        for name in waiting {
            let reason = format!("no answer within {} s", self.deadline.as_secs_f64());
            evidence.leave_out(name, reason);
        }
        evidence.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        evidence
    }

    fn start(
        &self,
        collector: Collector,
        busy: Arc<AtomicBool>,
        sender: Sender<Message>,
    ) -> io::Result<()> {
        let sources = Arc::clone(&self.sources);
        let body = move || {
            // If nobody listens any more the deadline is over.
            let give = |part| drop(sender.send(Message::Part(part)));
            let result = (collector.run)(&sources, &give);
            busy.store(false, Ordering::Release);
            let _ = sender.send(Message::Done(collector.name, result));
        };
        let thread = thread::Builder::new()
            .name("collector".to_owned())
            .stack_size(STACK);
        thread.spawn(body).map(drop)
    }
}

impl Evidence {
    fn leave_out(&mut self, collector: &str, reason: String) {
        self.left_out.push(LeftOut {
            collector: collector.to_owned(),
            reason,
        });
    }

    fn take(&mut self, part: Part) {
        match part {
            Part::Buddyinfo(zones) => self.buddyinfo = zones,
            Part::Vmstat(counters) => self.vmstat = counters,
            Part::Meminfo(sizes) => self.meminfo_kib = sizes,
            Part::Pressure(of, pressure) => {
                self.pressure.insert(of.to_owned(), pressure);
            }
            Part::Slabs(slabs) => self.slabs = slabs,
            Part::Task(task) => {
                self.tasks_blocked += 1;
                self.tasks.push(task);
            }
            Part::FurtherTask => self.tasks_blocked += 1,
            Part::Stack(tid, stack) => {
                let task = self.tasks.iter_mut().find(|task| task.tid == tid);
                if let Some(task) = task {
                    task.stack = stack;
                }
            }
            Part::Mounts(mounts) => self.mounts = mounts,
            Part::Images(images) => self.images = images,
        }
    }
}

/// What of /proc/vmstat tells something about memory that does not come.
fn is_telling(name: &str) -> bool {
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

fn pressure(sources: &Sources, of: &'static str, give: &dyn Fn(Part)) -> io::Result<()> {
    let text = fs::read(sources.proc.join("pressure").join(of))?;
    let line = |name| Some((String::from(name), proc::pressure(&text, name)?));
    let lines = ["some", "full"].into_iter().filter_map(line);
    give(Part::Pressure(of, lines.collect()));
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

/// First who is blocked and where, of all tasks; then the stacks, because reading one can hang by
/// itself (while its task is at execve: lock_trace, fs/proc/base.c).
fn blocked_tasks(sources: &Sources, give: &dyn Fn(Part)) -> io::Result<()> {
    let mut named = Vec::new();
    for process in numbered(&sources.proc)? {
        // A process may be gone by now, and a task too.
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
                give(Part::FurtherTask);
                continue;
            }
            give(Part::Task(blocked_task(&process, &path, &stat)));
            named.push((stat.tid, path));
        }
    }
    let mut refused = None;
    for (tid, path) in named {
        match fs::read(path.join("stack")) {
            Ok(text) => {
                let frames = proc::stack_frames(&text);
                let frames = frames.map(|frame| String::from_utf8_lossy(frame).into_owned());
                give(Part::Stack(tid, frames.collect()));
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
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs::create_dir_all;

    const SOON: Duration = Duration::from_millis(300);

    fn no_images() -> Images {
        Arc::new(Vec::new)
    }

    fn task(proc: &Path, pid: u32, tid: u32, comm: &str, state: char, stack: &str) {
        let path = proc.join(format!("{pid}/task/{tid}"));
        create_dir_all(&path).unwrap();
        let rest = "0 ".repeat(16);
        let stat =
            format!("{tid} ({comm}) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 9 {rest}3 0\n");
        fs::write(path.join("stat"), stat).unwrap();
        fs::write(path.join("wchan"), "xfs_buf_lock").unwrap();
        fs::write(path.join("stack"), stack).unwrap();
    }

    fn tree() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(proc.path().join(name), text).unwrap();
        create_dir_all(proc.path().join("pressure")).unwrap();
        create_dir_all(proc.path().join("self")).unwrap();
        write("buddyinfo", "Node 1, zone Normal 1 2 3\n");
        write("vmstat", "nr_dirty 5\nnr_dirty_threshold 9\nnr_mlock 3\n");
        write("meminfo", "MemFree: 12 kB\n");
        let pressure = "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n";
        for of in ["memory", "io", "cpu"] {
            write(&format!("pressure/{of}"), pressure);
        }
        write(
            "slabinfo",
            "a 1 2 64 64 1 : tunables 0 0 0 : slabdata 1 1 0\n",
        );
        write("self/mountinfo", "1 0 253:0 / / rw - xfs /dev/vda rw\n");
        task(proc.path(), 7, 7, "qemu", 'S', "");
        task(
            proc.path(),
            7,
            8,
            "CPU 0/KVM",
            'D',
            "[<0>] xfs_buf_lock+0x1/0x2 [xfs]\n[<0>] b\n",
        );
        task(proc.path(), 9, 9, "kworker/1:0-xfs", 'D', "");
        task(proc.path(), 10, 10, "xfsaild/dm-0", 'D', "");
        proc
    }

    fn fifo(path: &Path) {
        let _ = fs::remove_file(path);
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    #[test]
    fn everything_is_collected() {
        let proc = tree();
        let image = ImageEvidence {
            path: "/srv/a".to_owned(),
            extents: 5,
            size_bytes: 6,
        };
        let images: Images = {
            let image = image.clone();
            Arc::new(move || vec![image.clone()])
        };
        let gatherer = Gatherer::new(proc.path().to_owned(), images, DEADLINE);
        let mut found = gatherer.gather();
        assert_eq!(found.left_out, []);
        assert_eq!(found.buddyinfo[0].free_blocks, [1, 2, 3]);
        assert_eq!(found.vmstat.len(), 2);
        assert_eq!(found.meminfo_kib["MemFree"], 12);
        assert_eq!(found.pressure["cpu"]["some"].total, 5);
        assert_eq!(found.slabs[0].name, "a");
        assert_eq!(found.mounts[0].type_name, "xfs");
        assert_eq!(found.images, [image]);
        assert_eq!(found.tasks_blocked, 3);
        found.tasks.sort_by_key(|task| task.tid);
        let kinds: Vec<_> = found.tasks.iter().map(|task| task.kind).collect();
        assert_eq!(
            kinds,
            [TaskKind::Task, TaskKind::Kworker, TaskKind::Journal]
        );
        let expected = BlockedTask {
            tid: 8,
            pid: 7,
            comm: "CPU 0/KVM".to_owned(),
            kind: TaskKind::Task,
            wchan: Some("xfs_buf_lock".to_owned()),
            stack: vec!["xfs_buf_lock+0x1/0x2 [xfs]".to_owned(), "b".to_owned()],
        };
        assert_eq!(found.tasks[0], expected);
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Evidence>(&json).unwrap(), found);
    }

    #[test]
    fn a_collector_that_hangs_is_left_out_and_not_started_twice() {
        let proc = tree();
        let slabinfo = proc.path().join("slabinfo");
        fifo(&slabinfo);
        // The stack of one task hangs: who is blocked is known all the same.
        fifo(&proc.path().join("7/task/8/stack"));
        let gatherer = Gatherer::new(proc.path().to_owned(), no_images(), SOON);
        let found = gatherer.gather();
        let silent = |found: &Evidence| {
            let mut names: Vec<_> = found
                .left_out
                .iter()
                .map(|out| out.collector.clone())
                .collect();
            names.sort();
            names
        };
        assert_eq!(silent(&found), ["slabs", "tasks in state D"]);
        assert_eq!(found.left_out[0].reason, "no answer within 0.3 s");
        assert!(found.took_ms < 2000, "{}", found.took_ms);
        assert_eq!(found.tasks.len(), 3);
        assert_eq!(found.buddyinfo.len(), 1);
        let again = gatherer.gather();
        assert_eq!(silent(&again), ["slabs", "tasks in state D"]);
        assert_eq!(again.left_out[0].reason, "an earlier attempt still hangs");
        // Once it answers it is asked again.
        drop(fs::OpenOptions::new().write(true).open(&slabinfo).unwrap());
        drop(
            fs::OpenOptions::new()
                .write(true)
                .open(proc.path().join("7/task/8/stack"))
                .unwrap(),
        );
        fs::remove_file(&slabinfo).unwrap();
        fs::remove_file(proc.path().join("7/task/8/stack")).unwrap();
        fs::write(&slabinfo, "").unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(silent(&gatherer.gather()), [""; 0]);
    }

    #[test]
    fn what_is_not_there_is_told() {
        let proc = tempfile::tempdir().unwrap();
        let gatherer = Gatherer::new(proc.path().to_owned(), no_images(), DEADLINE);
        let found = gatherer.gather();
        // No task at all is an answer, and so is no image.
        assert_eq!(
            found.left_out.len(),
            COLLECTORS.len() - 2,
            "{:?}",
            found.left_out
        );
    }

    #[test]
    fn our_own_host_is_understood() {
        let found = Gatherer::new(PathBuf::from("/proc"), no_images(), DEADLINE).gather();
        assert!(!found.buddyinfo.is_empty() && !found.mounts.is_empty());
        assert!(
            found.vmstat.contains_key("nr_dirty_threshold"),
            "{:?}",
            found.vmstat
        );
    }
}
