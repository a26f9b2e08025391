//! How much others wait for the disks: pressure stall information
//! (Documentation/accounting/psi.rst).
//!
//! The host's value, /proc/pressure/io, includes a run itself: xfs_fsr only waits for the disk and
//! alone causes 90 %. While a run works, the control groups beside our own are read instead, and
//! the maximum counts. Without them (no cgroup v2), the host is read, and only while no run works.
//!
//! # Pressure without I/O
//!
//! The kernel counts a task as waiting for I/O when it sleeps in io_schedule(), whatever it waits
//! for. From Linux 6.5 on ("io_uring: Use io_schedule* in cqring wait", also in stable kernels)
//! this includes every task in io_uring_enter(2) with a request in flight, even for a network
//! packet or an empty pipe: QEMU from 10.2 on keeps its group's pressure near 100 on idle disks.
//!
//! While a task really waits for a disk, that disk is busy. So of the share of time that a group
//! has waited, at most the share that the image's disks were busy can be due to them; twice that
//! share is allowed, because the disk counters are not exact. The rest is without I/O and does not
//! count:
//!
//! ```text
//! counts = avg10 − (waited − 2 × busy)          avg10 100 %, waited 100 %, disks busy 5 %: 10 %
//! ```
//!
//! With the default `defrag.max_io_pressure` of 40, disks busy for less than 20 % of the time hold
//! no run. `waited` and `busy` are taken between the same two readings, a second or more apart, not
//! from averages: a load that has just ended is still in `avg10`, while the disks are already idle.
//!
//! A run keeps the disks busy itself, so that less is recognized as pressure without I/O. So the
//! run is first held, as by any pressure; the part without I/O in that second is assumed for half a
//! minute. On a host with such tasks this costs a run one or two seconds of each half minute.
//!
//! If the disks are unknown, all pressure counts; without pressure stall information (`psi=0`,
//! CONFIG_PSI_DEFAULT_DISABLED) there is no limit. The `io.stat` of the groups is not used: it
//! needs the io controller, counts requests but no time, and is never idle for a group of many VMs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::HostInterfaces;
use super::disks::Counters;
use crate::model::DeviceNumber;
use crate::sys::{mounts, proc};

const MOST_GROUPS: usize = 1000;
/// Minimum age of a reading to compare with: the disks count in ticks of up to 10 ms.
const COMPARED_AFTER: Duration = Duration::from_secs(1);
/// Maximum age of a reading to compare with.
const STALE: Duration = Duration::from_secs(60);
/// How long pressure without I/O that was found while no run works is assumed while one does.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How long a group, or the host, has waited for I/O.
#[derive(Debug, Clone, PartialEq)]
struct Waited {
    of: PathBuf,
    /// Percent of the last ten seconds in which a task waited for I/O.
    average: f64,
    /// Since the group was created, or the host booted.
    total: Duration,
}

#[derive(Debug, Clone)]
struct Reading {
    at: Instant,
    waited: Vec<Waited>,
    disks: Option<Counters>,
}

/// Whose pressure is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Only the groups beside our own: a run works, and is part of the host's value.
    Others,
    /// These, or the host where there are none.
    OrHost,
}

/// The pressure on a file system, in percent of the last ten seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IoPressure {
    /// All, as the kernel counts it.
    pub all: f64,
    /// The same without pressure without I/O.
    pub counts: f64,
}

/// Measures the pressure on one file system, and remembers its part without I/O.
#[derive(Debug)]
pub struct Gauge {
    device: DeviceNumber,
    before: Option<Reading>,
    /// The share of time between the last two readings that the disks were busy, in percent.
    busy: f64,
    /// The share that each group has waited without I/O, in percent, and when it was found.
    without_io: HashMap<PathBuf, (f64, Instant)>,
    reported: bool,
}

impl Gauge {
    /// A gauge for the file system on this device.
    pub fn new(device: DeviceNumber) -> Gauge {
        Gauge {
            device,
            before: None,
            busy: 0.0,
            without_io: HashMap::new(),
            reported: false,
        }
    }

    /// The pressure now; `None` if unreadable. `idle`: no run of ours used the disks since last
    /// time.
    pub fn look(&mut self, host: &HostInterfaces, asked: Asked, idle: bool) -> Option<IoPressure> {
        let now = Reading {
            at: Instant::now(),
            waited: read_waited(&host.proc, asked),
            disks: Counters::read(self.device, host),
        };
        self.take(now, idle)
    }

    /// Reports, once, pressure that does not hold runs because it is without I/O.
    pub fn news(&mut self, found: Option<IoPressure>, most: u32) -> Option<String> {
        let IoPressure { all, counts } = found?;
        if self.reported || all <= f64::from(most) || counts > f64::from(most) {
            return None;
        }
        self.reported = true;
        Some(format!(
            "I/O pressure of {:.1} % without I/O does not count: the disks were at work {:.1} % of \
             the time",
            all, self.busy
        ))
    }

    fn take(&mut self, now: Reading, idle: bool) -> Option<IoPressure> {
        self.without_io
            .retain(|_, (_, at)| now.at.duration_since(*at) < REMEMBERED);
        let age = |before: &Reading| now.at.duration_since(before.at);
        let is_due = |before: &Reading| age(before) >= COMPARED_AFTER;
        if self.before.as_ref().is_none_or(is_due) {
            let before = self.before.replace(now.clone());
            if let Some(before) = before.filter(|before| age(before) < STALE) {
                self.compare(&before, &now, idle);
            }
        }
        let counts = |waited: &Waited| {
            let without_io = self.without_io.get(&waited.of);
            let counts = waited.average - without_io.map_or(0.0, |(share, _)| *share);
            counts.max(0.0)
        };
        Some(IoPressure {
            all: now.waited.iter().map(|it| it.average).reduce(f64::max)?,
            counts: now.waited.iter().map(counts).reduce(f64::max)?,
        })
    }

    fn compare(&mut self, before: &Reading, now: &Reading, idle: bool) {
        let elapsed = now.at.duration_since(before.at);
        let disks = now.disks.as_ref().zip(before.disks.as_ref());
        let Some(busy) = disks.and_then(|(now, before)| now.busy_since(before, elapsed)) else {
            return;
        };
        self.busy = busy;
        for waited in &now.waited {
            let Some(share) = waited.share_since(before, elapsed) else {
                continue;
            };
            let share = without_io(share, busy);
            let known = self.without_io.get(&waited.of);
            // During a run less of it is recognized, but there is no less of it.
            if idle || known.is_none_or(|(known, _)| *known < share) {
                self.without_io.insert(waited.of.clone(), (share, now.at));
            }
        }
    }
}

impl Waited {
    /// In percent of the time between the two readings.
    fn share_since(&self, before: &Reading, elapsed: Duration) -> Option<f64> {
        let before = before.waited.iter().find(|before| before.of == self.of)?;
        let waited = self.total.checked_sub(before.total)?;
        let share = waited.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        Some(share.min(100.0))
    }
}

/// The share of waiting that busy disks do not explain; all in percent of the same time.
fn without_io(waited: f64, busy: f64) -> f64 {
    (waited - 2.0 * busy).max(0.0)
}

/// The pressure while no run works, one per gauge. If any is above the limit, all are read again a
/// second later, when pressure without I/O is known.
pub fn before_runs(
    gauges: &mut [&mut Gauge],
    host: &HostInterfaces,
    most: u32,
) -> Vec<Option<IoPressure>> {
    let mut look = || -> Vec<_> {
        let each = gauges.iter_mut();
        each.map(|gauge| gauge.look(host, Asked::OrHost, true))
            .collect()
    };
    let found = look();
    let is_above = |found: &IoPressure| found.counts > f64::from(most);
    if !found.iter().flatten().any(is_above) {
        return found;
    }
    std::thread::sleep(COMPARED_AFTER);
    look()
}

fn read_waited(proc: &Path, asked: Asked) -> Vec<Waited> {
    let others = of_others(proc).unwrap_or_default();
    if !others.is_empty() || asked == Asked::Others {
        return others;
    }
    Vec::from_iter(read(proc.join("pressure/io")))
}

/// The groups beside ours, at each level.
fn of_others(proc: &Path) -> Option<Vec<Waited>> {
    let (root, own) = own_group(proc)?;
    let mut at = root;
    let mut waited = Vec::new();
    for name in own.iter() {
        let entries = fs::read_dir(&at).ok()?.flatten().take(MOST_GROUPS);
        let others = entries.filter(|entry| entry.file_name() != name);
        waited.extend(others.filter_map(|entry| read(entry.path().join("io.pressure"))));
        at.push(name);
    }
    Some(waited)
}

/// Where cgroup v2 is mounted, and our group in it.
fn own_group(proc: &Path) -> Option<(PathBuf, PathBuf)> {
    let mounts = mounts::read(proc).ok()?;
    let mount = mounts.into_iter().find(|m| m.type_name == "cgroup2")?;
    let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some((mount.point, PathBuf::from(own)))
}

fn read(of: PathBuf) -> Option<Waited> {
    let some = proc::pressure(&fs::read(&of).ok()?, "some")?;
    Some(Waited {
        of,
        average: some.avg10,
        total: Duration::from_micros(some.total),
    })
}

#[cfg(test)]
mod tests;
