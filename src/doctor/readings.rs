//! Everything that the checks use, read once.
//!
//! Only /proc, /sys and /etc are read: no image is opened, and calls on the file system of one are made by
//! another process ([`xfs`]).
//! Each group of files is read by a thread of its own, and all share one deadline. A thread that
//! misses it cannot be ended; it is left behind, and what it has read until then counts. While
//! [`MOST_LEFT_BEHIND`] hang, no more are started.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::files::{Files, Host, Reading};
use super::outcome::NotChecked;
use super::tasks::{self, Tasks};
use super::writers::{self, Writer};
use super::xfs::{self, Filesystems};
use crate::config::Settings;
use crate::defrag::kernels::package;
use crate::defrag::kernels::release::Running;
use crate::discover::owner::{Holders, OwnerSearch};
use crate::serve::status::Status;
use crate::sys::clock;
use crate::sys::mounts::{self, Mount};

/// How far the two readings are apart if nothing else is asked for.
const INTERVAL: Duration = Duration::from_millis(500);
/// From this on they show rates.
pub const WATCHED: Duration = Duration::from_secs(5);
/// A host of 2,500 threads is read in a small part of it.
const DEADLINE: Duration = Duration::from_secs(3);
/// Readers of earlier examinations that may hang.
const MOST_LEFT_BEHIND: usize = 16;
const STACK: usize = 256 * 1024;

static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);

/// How long an examination takes.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The time between the two readings.
    pub interval: Duration,
    /// All must be read this long after the second reading began.
    pub deadline: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            interval: INTERVAL,
            deadline: DEADLINE,
        }
    }
}

/// Counters: read twice.
const COUNTERS: &[&str] = &[
    "proc/diskstats",
    "proc/fs/jbd2/*/info",
    "proc/pressure/io",
    "proc/stat",
    "proc/vmstat",
];

/// Files of the kernel that are read once. A new check adds its own.
const KERNEL: &[&str] = &[
    "proc/buddyinfo",
    "proc/fs/ext4/*/options",
    "proc/meminfo",
    "proc/self/mounts",
    "proc/sys/kernel/hung_task_timeout_secs",
    "proc/sys/kernel/hung_task_warnings",
    "proc/sys/vm/compaction_proactiveness",
    "proc/sys/vm/dirty_bytes",
    "proc/sys/vm/dirty_ratio",
    "proc/sys/vm/min_free_kbytes",
    "proc/sys/vm/swappiness",
    "proc/sys/vm/watermark_scale_factor",
    "proc/sys/vm/zone_reclaim_mode",
    "sys/class/bdi/*/max_ratio",
    "sys/class/bdi/*/strict_limit",
    "sys/class/block/*/dev",
    "sys/fs/ext4/*/journal_task",
    "sys/kernel/mm/transparent_hugepage/defrag",
    "sys/kernel/mm/transparent_hugepage/enabled",
];

/// Takes slab_mutex, which is held while a cache is created or destroyed (mm/slab_common.c).
const SLABS: &[&str] = &["proc/slabinfo"];

/// Where debugfs is mounted.
const DEBUG: &[&str] = &["sys/kernel/debug/bdi/*/stats"];

/// Jobs of cron and units of systemd, on a disk.
pub const DISK: &[&str] = &[
    "etc/anacrontab",
    "etc/cron.d/*",
    "etc/cron.daily/*",
    "etc/cron.hourly/*",
    "etc/cron.monthly/*",
    "etc/cron.weekly/*",
    "etc/crontab",
    "etc/localtime",
    "etc/systemd/system/*",
    "etc/systemd/system/timers.target.wants/*",
    "var/spool/cron/crontabs/root",
    "var/spool/cron/root",
    "var/spool/cron/tabs/root",
];

/// What is known of fragwatch itself.
#[derive(Debug, Clone)]
pub struct Own {
    /// The configuration.
    pub settings: Settings,
    /// The answer of the daemon; `None` if none runs.
    pub daemon: Reading<Option<Box<Status>>>,
    /// Whether the clock is synchronised (adjtimex(2)); `None` if that is not known.
    pub clock_is_set: Option<bool>,
    /// The program and its arguments that report the XFS ([`xfs::serve`]).
    pub helper: Vec<OsString>,
    /// Held while it runs.
    pub helper_runs: &'static Mutex<()>,
}

impl Own {
    /// Of this host.
    pub fn new(settings: Settings, daemon: Reading<Option<Box<Status>>>) -> Own {
        Own {
            settings,
            daemon,
            clock_is_set: clock::is_synchronised().ok(),
            helper: ["/proc/self/exe", xfs::COMMAND]
                .map(OsString::from)
                .to_vec(),
            helper_runs: &xfs::RUNS,
        }
    }
}

/// All readings.
#[derive(Debug)]
pub struct Readings {
    /// The time between [`before`](Readings::before) and [`now`](Readings::now).
    pub interval: Duration,
    /// The counters at the first reading.
    pub before: Files,
    /// All files at the second.
    pub now: Files,
    /// Tasks that wait, and where.
    pub tasks: Reading<Tasks>,
    /// Which process has which files open.
    pub holders: Reading<Holders>,
    /// The mounts of this namespace.
    pub mounts: Reading<Vec<Mount>>,
    pub xfs: Filesystems,
    /// Who wrote between the two readings, the most first.
    pub writers: Reading<Vec<Writer>>,
    /// The running kernel.
    pub kernel: Reading<Running>,
    /// The configuration, and the answer of the daemon.
    pub own: Own,
}

impl Readings {
    /// Reads the host. Takes the interval and at most the deadline more.
    pub fn take(host: &Host, timing: Timing, own: Own) -> Readings {
        let Timing { interval, deadline } = timing;
        let until = Instant::now() + interval + deadline;
        let at = || host.clone();
        let host_ = at();
        let mut groups: Vec<_> = [
            (KERNEL, "the kernel's files"),
            (SLABS, "slabs"),
            (DEBUG, "debugfs"),
            (DISK, "/etc"),
        ]
        .into_iter()
        .map(|(names, what)| Group::start(what, at(), names))
        .collect();
        let first = Group::start("counters", at(), COUNTERS);
        let tasks = Pending::start("tasks", move || tasks::read(&host_, interval));
        let host_ = at();
        let holders = Pending::start("open files", move || {
            let mut search = OwnerSearch::new(&host_.path("proc"), &host_.path("run"));
            let found = search.look();
            found.map_err(|error| NotChecked::because(format!("/proc: {error}")))
        });
        let host_ = at();
        let mounts = Pending::start("mounts", move || {
            let found = mounts::read(&host_.path("proc"));
            found.map_err(|error| NotChecked::because(format!("/proc/self/mountinfo: {error}")))
        });
        let host_ = at();
        let kernel = Pending::start("kernel", move || Ok(running(&host_.path("proc"))));
        let host_ = at();
        let writers = Pending::start("writers", move || writers::read(&host_, interval));
        let reported = Arc::new(Mutex::new(xfs::Found::new()));
        let (command, runs, its) = (own.helper.clone(), own.helper_runs, Arc::clone(&reported));
        let xfs = Pending::start("XFS", move || Ok(xfs::read(&command, runs, &its)));
        thread::sleep(interval);
        groups.push(Group::start("counters", at(), COUNTERS));
        let mut now = Files::default();
        let before = first.map_or_else(Files::default, |group| group.wait(until));
        for group in groups.into_iter().flatten() {
            now.extend(group.wait(until));
        }
        let mounts = mounts.and_then(|it| it.wait(until));
        // What was reported in time counts.
        let failed = xfs.and_then(|it| it.wait(until));
        let failed = failed.ok().and_then(Result::err);
        let reported =
            std::mem::take(&mut *reported.lock().unwrap_or_else(PoisonError::into_inner));
        let mounted = mounts.as_deref().unwrap_or_default();
        Readings {
            interval,
            before,
            now,
            xfs: xfs::complete(reported, mounted, failed),
            writers: writers.and_then(|it| it.wait(until)),
            tasks: tasks.and_then(|it| it.wait(until)),
            holders: holders.and_then(|it| it.wait(until)),
            mounts,
            kernel: kernel.and_then(|it| it.wait(until)),
            own,
        }
    }

    /// How much a counter of a file of names and numbers has risen; `None` if it is missing.
    pub fn rise(&self, name: &str, line: &str) -> Reading<Option<u64>> {
        let (now, before) = (
            self.now.counter(name, line)?,
            self.before.counter(name, line)?,
        );
        let both = now.zip(before);
        Ok(both.map(|(now, before)| now.saturating_sub(before)))
    }

    /// What has risen by so much between the two readings rises by so much a second.
    pub fn per_second(&self, rise: u64) -> u64 {
        let rate = u128::from(rise) * 1000 / self.interval.as_millis().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// Fails if the two readings are too close for rates.
    pub fn watched(&self) -> Reading<()> {
        match self.interval >= WATCHED {
            true => Ok(()),
            false => Err(NotChecked::NeedsWatch),
        }
    }
}

fn running(proc: &Path) -> Running {
    package::running(proc).0
}

/// A value that a thread reads.
struct Pending<T> {
    what: &'static str,
    value: Receiver<Reading<T>>,
    state: Arc<AtomicU8>,
}

/// The thread reads; it has ended; it was left behind.
const READS: u8 = 0;
const ENDED: u8 = 1;
const IS_LEFT_BEHIND: u8 = 2;

impl<T: Send + 'static> Pending<T> {
    fn start(
        what: &'static str,
        read: impl FnOnce() -> Reading<T> + Send + 'static,
    ) -> Reading<Pending<T>> {
        if LEFT_BEHIND.load(Ordering::Acquire) >= MOST_LEFT_BEHIND {
            let why = "readers of earlier examinations still hang";
            return Err(NotChecked::because(why.to_owned()));
        }
        let (sender, value) = mpsc::channel();
        let state = Arc::new(AtomicU8::new(READS));
        let its = Arc::clone(&state);
        let thread = thread::Builder::new().name("doctor".to_owned());
        let spawned = thread.stack_size(STACK).spawn(move || {
            // Sending fails after the deadline.
            let _ = sender.send(read());
            if its.swap(ENDED, Ordering::AcqRel) == IS_LEFT_BEHIND {
                LEFT_BEHIND.fetch_sub(1, Ordering::AcqRel);
            }
        });
        match spawned {
            Ok(_) => Ok(Pending { what, value, state }),
            Err(error) => Err(NotChecked::because(format!("no thread for it: {error}"))),
        }
    }

    fn wait(self, until: Instant) -> Reading<T> {
        let left = until.saturating_duration_since(Instant::now());
        if let Ok(value) = self.value.recv_timeout(left) {
            return value;
        }
        // Counted first: the thread may end at any moment, and takes off what it was counted.
        LEFT_BEHIND.fetch_add(1, Ordering::AcqRel);
        if self.state.swap(IS_LEFT_BEHIND, Ordering::AcqRel) == ENDED {
            LEFT_BEHIND.fetch_sub(1, Ordering::AcqRel);
        }
        let late = format!("{} could not be read in time", self.what);
        Err(NotChecked::because(late))
    }
}

/// Files that one thread reads in turn.
struct Group {
    pending: Pending<()>,
    files: Arc<Mutex<Files>>,
}

impl Group {
    /// `None` without a thread: then none of them was read in time.
    fn start(what: &'static str, host: Host, names: &'static [&'static str]) -> Option<Group> {
        let files = Arc::new(Mutex::new(Files::default()));
        let found = Arc::clone(&files);
        let pending = Pending::start(what, move || {
            for name in names {
                let mut one = Files::default();
                one.read(&host, name);
                // Not locked while a file is read.
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.extend(one);
            }
            Ok(())
        });
        Some(Group {
            pending: pending.ok()?,
            files,
        })
    }

    /// Those that were read in time.
    fn wait(self, until: Instant) -> Files {
        let _ = self.pending.wait(until);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_hangs_is_left_behind_until_it_ends() {
        let (release, hang) = mpsc::channel::<()>();
        let read = move || {
            // Fails when it is released.
            let _ = hang.recv();
            Ok(())
        };
        let pending = Pending::start("slabs", read).unwrap();
        let state = Arc::clone(&pending.state);
        let late = NotChecked::because("slabs could not be read in time".to_owned());
        assert_eq!(pending.wait(Instant::now()), Err(late));
        assert_eq!(state.load(Ordering::Acquire), IS_LEFT_BEHIND);
        drop(release);
        while state.load(Ordering::Acquire) != ENDED {
            thread::yield_now();
        }
        let read = || Ok(7);
        let pending = Pending::start("a number", read).unwrap();
        let until = Instant::now() + Duration::from_secs(300);
        assert_eq!(pending.wait(until), Ok(7));
    }

    /// The files that were read before the one that hangs are used.
    #[test]
    fn what_was_read_in_time_counts() {
        let mut files = Files::default();
        let host = Host("/".into());
        files.read(&host, "proc/vmstat");
        assert!(files.counter("proc/vmstat", "nr_dirty").unwrap().is_some());
        let late = NotChecked::because("/proc/meminfo was not read in time".to_owned());
        assert_eq!(files.bytes("proc/meminfo"), Err(late));
    }
}
