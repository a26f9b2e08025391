//! How much others wait for the disks: pressure stall information (Documentation/accounting/psi.rst).
//!
//! The number of the whole host, /proc/pressure/io, counts a run itself: xfs_fsr does nothing but
//! wait for the disk, so it alone would make 90 % of it. While it works, the control groups beside
//! our own are asked instead, and the one that waits most counts. Where there are none, on hosts
//! without cgroup v2, only the host can be asked, and only while no run works.
//!
//! # Pressure without I/O
//!
//! The kernel counts a task as waiting for I/O when it sleeps in io_schedule(), whatever it waits for.
//! From Linux 6.5 on ("io_uring: Use io_schedule* in cqring wait", also in stable kernels) that is
//! so for each task that waits in io_uring_enter(2) with a request under way, also for a network packet
//! or an empty pipe: QEMU from 10.2 on keeps its group's pressure near 100 while all disks are idle.
//!
//! While a task really waits for a disk, that disk is at work. So of the share of time that a group
//! has waited, no more than the share that the disks of the image were at work can be due to them.
//! Twice that share is allowed for, in favour of those who wait: the counters of the disks are not
//! exact. What is beyond is pressure without I/O, and is taken off:
//!
//! ```text
//! counts = avg10 − (waited − 2 × at work)       avg10 100 %, waited 100 %, disks at work 5 %: 10 %
//! ```
//!
//! So with the default of `defrag.max_io_pressure`, 40, disks that are at work for less than 20 % of
//! the time hold up no run, and from there on all tasks that wait do. `waited` and `at work` are taken
//! between the same two readings, a second or more apart, and not from averages: a load that has just
//! ended is still in `avg10`, and the disks are idle already.
//!
//! A run keeps the disks at work itself, and then less is seen to be without I/O than is. So a run
//! stands still first, as it does for any pressure; what is without I/O in that second is taken to be
//! so for half a minute. On a host with such tasks that costs a run one or two seconds of each half
//! minute, and nothing if it leaves the disks idle for long enough by itself.
//!
//! Where the disks cannot be told, all pressure counts; where the kernel does not tell of pressure
//! (`psi=0`, CONFIG_PSI_DEFAULT_DISABLED), there is no limit. The `io.stat` of the groups is not asked:
//! it is there only where the io controller is on, it counts requests and no time, and a group of many
//! VMs always has some I/O.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Host;
use super::disks::Counters;
use crate::model::DeviceNumber;
use crate::sys::{mounts, proc};

/// Hundredths of the last ten seconds in which somebody waited for a disk.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Pressure(pub f32);

impl Pressure {
    /// Whether it is above a limit in hundredths.
    #[must_use]
    // A limit is a hundred at most.
    #[allow(clippy::cast_precision_loss)]
    pub fn is_above(self, most: u32) -> bool {
        self.0 > most as f32
    }
}

/// Groups that are read at one level at most.
const MOST_GROUPS: usize = 1000;
/// Two readings are compared if they are so far apart: the disks count in ticks of up to 10 ms.
const COMPARED_AFTER: Duration = Duration::from_secs(1);
/// Older readings are not compared with.
const STALE: Duration = Duration::from_secs(60);
/// For so long what is found out while no run works is taken to be so while one does.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How long a group, or the host, has waited.
#[derive(Debug, Clone, PartialEq)]
struct Waited {
    /// Its file.
    of: PathBuf,
    /// On the average of the last ten seconds.
    average: Pressure,
    /// Since it exists.
    total: Duration,
}

/// Who has waited, and what the disks have done, at one time.
#[derive(Debug, Clone)]
struct Reading {
    at: Instant,
    waited: Vec<Waited>,
    disks: Option<Counters>,
}

/// Who is asked how long he has waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The groups beside our own only: a run works, and the host waits for it.
    Others,
    /// The host, where there are no groups beside our own.
    OrHost,
}

impl Asked {
    /// For a run that is to begin.
    #[must_use]
    pub fn while_a_run(works: bool) -> Asked {
        if works { Asked::Others } else { Asked::OrHost }
    }
}

/// What a gauge says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// All pressure, as the kernel tells it.
    pub all: Pressure,
    /// What is left without that for which there is no I/O.
    pub counts: Pressure,
}

/// Pressure that would have held up a run, had there been I/O.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WithoutIo {
    /// The pressure.
    pub all: Pressure,
    /// In how much of the time the disks were at work, in percent.
    pub busy: f32,
}

impl fmt::Display for WithoutIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "I/O pressure of {:.1} % without I/O does not count: the disks were at work {:.1} % of \
             the time",
            self.all.0, self.busy
        )
    }
}

/// Gauges the pressure on one file system, and remembers what of it is without I/O.
#[derive(Debug)]
pub struct Gauge {
    device: DeviceNumber,
    before: Option<Reading>,
    /// In how much of the time between the last two readings the disks were at work, in percent.
    busy: f32,
    /// What each group has waited for without I/O, and when.
    without_io: HashMap<PathBuf, (f32, Instant)>,
    reported: bool,
}

impl Gauge {
    /// For the file system of this number.
    #[must_use]
    pub fn new(device: DeviceNumber) -> Gauge {
        Gauge {
            device,
            before: None,
            busy: 0.0,
            without_io: HashMap::new(),
            reported: false,
        }
    }

    /// What there is now; nothing where nobody can be asked. `idle`: whether the disks have not been
    /// at work for a run of ours since the last time.
    pub fn look(&mut self, host: &Host, asked: Asked, idle: bool) -> Option<Found> {
        let now = Reading {
            at: Instant::now(),
            waited: read_waited(&host.proc, asked),
            disks: Counters::read(self.device, host),
        };
        self.take(now, idle)
    }

    /// What a run that is to begin would meet. Where that is above the limit this takes a second, and
    /// is known better then.
    pub fn before_a_run(&mut self, host: &Host, asked: Asked, most: u32) -> Option<Found> {
        let mut gauges = [self];
        before_runs(&mut gauges, host, asked, most).pop()?
    }

    /// The pressure that does not hold up runs because it is without I/O, once.
    pub fn news(&mut self, found: Option<Found>, most: u32) -> Option<WithoutIo> {
        let Found { all, counts } = found?;
        let is_news = all.is_above(most) && !counts.is_above(most) && !self.reported;
        self.reported |= is_news;
        is_news.then_some(WithoutIo {
            all,
            busy: self.busy,
        })
    }

    fn take(&mut self, now: Reading, idle: bool) -> Option<Found> {
        self.without_io
            .retain(|_, (_, at)| now.at.duration_since(*at) < REMEMBERED);
        let age = |before: &Reading| now.at.duration_since(before.at);
        if self
            .before
            .as_ref()
            .is_none_or(|it| age(it) >= COMPARED_AFTER)
        {
            let before = self.before.replace(now.clone());
            if let Some(before) = before.filter(|before| age(before) < STALE) {
                self.compare(&before, &now, idle);
            }
        }
        let counts = |waited: &Waited| {
            let without_io = self.without_io.get(&waited.of);
            let counts = waited.average.0 - without_io.map_or(0.0, |(share, _)| *share);
            Pressure(counts.max(0.0))
        };
        Some(Found {
            all: worst(now.waited.iter().map(|it| it.average))?,
            counts: worst(now.waited.iter().map(counts))?,
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
            // Beside a run less of it is seen, but no less is there.
            if idle || known.is_none_or(|(known, _)| *known < share) {
                self.without_io.insert(waited.of.clone(), (share, now.at));
            }
        }
    }
}

impl Waited {
    /// In percent of the time between the two readings.
    fn share_since(&self, before: &Reading, elapsed: Duration) -> Option<f32> {
        let before = before.waited.iter().find(|before| before.of == self.of)?;
        let waited = self.total.checked_sub(before.total)?;
        let share = waited.as_secs_f32() / elapsed.as_secs_f32() * 100.0;
        Some(share.min(100.0))
    }
}

/// What of the waiting the work of the disks cannot explain; all in percent of the same time. See the
/// module.
fn without_io(waited: f32, busy: f32) -> f32 {
    (waited - 2.0 * busy).max(0.0)
}

fn worst(pressures: impl Iterator<Item = Pressure>) -> Option<Pressure> {
    pressures.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// What runs that are to begin would meet, each on the file system of its gauge. Where that is above
/// the limit for one of them this takes a second, and is known better then.
pub fn before_runs(
    gauges: &mut [&mut Gauge],
    host: &Host,
    asked: Asked,
    most: u32,
) -> Vec<Option<Found>> {
    let mut look = || -> Vec<_> {
        let each = gauges.iter_mut();
        each.map(|gauge| gauge.look(host, asked, true)).collect()
    };
    let found = look();
    let mut known = found.iter().flatten();
    if known.any(|found| found.counts.is_above(most)) {
        std::thread::sleep(COMPARED_AFTER);
        return look();
    }
    found
}

fn read_waited(proc: &Path, asked: Asked) -> Vec<Waited> {
    let others = of_others(proc).unwrap_or_default();
    if !others.is_empty() || asked == Asked::Others {
        return others;
    }
    Vec::from_iter(read(proc.join("pressure/io")))
}

/// The groups that are not ours.
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
    // A hundred at most.
    #[allow(clippy::cast_possible_truncation)]
    let average = Pressure(some.avg10 as f32);
    let total = Duration::from_micros(some.total);
    Some(Waited { of, average, total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defrag::KernelCheck;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn some(average: &str) -> String {
        format!("some avg10={average} avg60=99.00 avg300=1.00 total=3\nfull avg10=98.00 total=1\n")
    }

    #[test]
    fn others_are_all_groups_but_our_own() {
        let root = tempfile::tempdir().unwrap();
        let (proc, groups) = (root.path().join("proc"), root.path().join("cgroup"));
        let mount = format!("30 1 0:29 / {} rw - cgroup2 c rw\n", groups.display());
        write(&proc, "self/mountinfo", &mount);
        write(
            &proc,
            "self/cgroup",
            "1:name=x:/y\n0::/system.slice/fragwatch.service\n",
        );
        write(&proc, "pressure/io", &some("93.10"));
        let waited = |asked| worst(read_waited(&proc, asked).iter().map(|it| it.average));
        assert_eq!(waited(Asked::OrHost), Some(Pressure(93.10)));
        assert_eq!(waited(Asked::Others), None);
        write(&groups, "io.pressure", &some("93.10"));
        write(&groups, "system.slice/io.pressure", &some("92.00"));
        let own = "system.slice/fragwatch.service/io.pressure";
        write(&groups, own, &some("91.00"));
        write(
            &groups,
            "system.slice/db.service/io.pressure",
            &some("3.50"),
        );
        assert_eq!(waited(Asked::OrHost), Some(Pressure(3.5)));
        write(&groups, "machine.slice/io.pressure", &some("12.00"));
        write(&groups, "odd.slice/io.pressure", "some nonsense\n");
        assert_eq!(waited(Asked::Others), Some(Pressure(12.0)));
    }

    /// A file system on a disk, beside a group that waits; both as they are told to be.
    struct Made {
        root: tempfile::TempDir,
        gauge: Gauge,
        began: Instant,
    }

    impl Made {
        fn new() -> Made {
            let made = Made {
                root: tempfile::tempdir().unwrap(),
                gauge: Gauge::new("8:1".parse().unwrap()),
                began: Instant::now(),
            };
            made.work(0);
            made
        }

        /// The disk, itself the device, has been at work for so many milliseconds.
        fn work(&self, ms: u64) {
            let stat = format!("9 0 8 {ms} 0 0 0 0 0 {ms} {ms}\n");
            write(self.root.path(), "sys/dev/block/8:1/stat", &stat);
        }

        /// At so many seconds, the host having waited for so many milliseconds in all.
        fn at(&mut self, second: u64, average: f32, waited: u64, idle: bool) -> Option<f32> {
            let total = Duration::from_millis(waited);
            let host = Host {
                proc: self.root.path().join("proc"),
                sys: self.root.path().join("sys"),
                hints: self.root.path().to_owned(),
                kernel: KernelCheck::Judge,
            };
            let now = Reading {
                at: self.began + Duration::from_secs(second),
                waited: vec![Waited {
                    of: PathBuf::from("vms"),
                    average: Pressure(average),
                    total,
                }],
                disks: Counters::read(self.gauge.device, &host),
            };
            self.gauge.take(now, idle).map(|found| found.counts.0)
        }
    }

    #[test]
    fn waiting_counts_as_far_as_the_disks_explain_it() {
        // Waited, at work, and what is without I/O; in percent.
        for (waited, busy, without) in [
            (0.0, 0.0, 0.0),
            (100.0, 0.0, 100.0),
            (100.0, 5.0, 90.0),
            (100.0, 20.0, 60.0),
            (100.0, 50.0, 0.0),
            (30.0, 100.0, 0.0),
            (50.0, 24.0, 2.0),
        ] {
            assert!(
                (without_io(waited, busy) - without).abs() < 0.001,
                "{waited} {busy}"
            );
        }
    }

    #[test]
    fn pressure_counts_where_the_disks_are_at_work() {
        let mut made = Made::new();
        assert_eq!(
            made.at(0, 90.0, 0, true),
            Some(90.0),
            "nothing is known yet"
        );
        made.work(50);
        assert_eq!(made.at(1, 92.0, 1000, true), Some(2.0));
        made.work(1050);
        assert_eq!(made.at(2, 93.0, 2000, true), Some(93.0), "they are now");
    }

    #[test]
    fn what_has_just_ended_still_counts() {
        let mut made = Made::new();
        made.at(0, 80.0, 5000, true);
        assert_eq!(made.at(1, 73.0, 5000, true), Some(73.0));
    }

    #[test]
    fn what_was_found_out_while_a_run_stood_still_is_remembered() {
        let mut made = Made::new();
        made.at(0, 95.0, 0, true);
        assert_eq!(made.at(1, 95.0, 1000, true), Some(0.0));
        for second in 2..31 {
            made.work(second * 1000);
            let found = made.at(second, 95.0, second * 1000, false);
            assert_eq!(found, Some(0.0), "{second}");
        }
        made.work(31_000);
        assert_eq!(made.at(31, 95.0, 31_000, false), Some(95.0), "not for ever");
        // A run that leaves them idle has nothing to stand still for.
        made.work(31_100);
        assert_eq!(made.at(32, 95.0, 32_000, false), Some(15.0));
        // And what others do to the disks is seen as soon as it stands still.
        made.work(32_100);
        assert_eq!(made.at(33, 95.0, 33_000, true), Some(95.0));
    }

    #[test]
    fn readings_that_are_too_near_or_too_far_are_not_compared() {
        let mut made = Made::new();
        made.at(0, 95.0, 0, true);
        assert_eq!(made.at(0, 95.0, 1000, true), Some(95.0));
        assert_eq!(made.at(61, 95.0, 61_000, true), Some(95.0));
        assert_eq!(made.at(62, 95.0, 62_000, true), Some(0.0));
        // A counter that goes back is another one's.
        assert_eq!(made.at(100, 95.0, 0, true), Some(95.0));
    }

    #[test]
    fn where_the_disks_cannot_be_told_all_pressure_counts() {
        let mut made = Made::new();
        fs::remove_dir_all(made.root.path().join("sys")).unwrap();
        made.at(0, 95.0, 0, true);
        assert_eq!(made.at(1, 95.0, 1000, true), Some(95.0));
    }

    #[test]
    fn what_does_not_hold_up_a_run_is_news_once() {
        let mut gauge = Gauge::new("8:1".parse().unwrap());
        gauge.busy = 3.12;
        let found = |all, counts| {
            let (all, counts) = (Pressure(all), Pressure(counts));
            Some(Found { all, counts })
        };
        for nothing in [None, found(39.0, 0.0), found(90.0, 90.0)] {
            assert_eq!(gauge.news(nothing, 40), None);
        }
        let news = gauge.news(found(97.26, 6.0), 40).unwrap();
        assert_eq!(
            news.to_string(),
            "I/O pressure of 97.3 % without I/O does not count: the disks were at work 3.1 % of the \
             time"
        );
        assert_eq!(gauge.news(found(97.26, 6.0), 40), None);
    }

    #[test]
    fn a_kernel_that_does_not_say_is_no_pressure_of_zero() {
        let mut made = Made::new();
        let host = Host {
            proc: made.root.path().join("proc"),
            sys: made.root.path().join("sys"),
            hints: made.root.path().to_owned(),
            kernel: KernelCheck::Judge,
        };
        let asked = |asked| read_waited(&host.proc, asked);
        assert_eq!(asked(Asked::OrHost), []);
        assert_eq!(asked(Asked::Others), []);
        assert_eq!(made.gauge.before_a_run(&host, Asked::OrHost, 1), None);
        // As with psi=0: the file is there, and cannot be read.
        fs::create_dir_all(host.proc.join("pressure/io")).unwrap();
        assert_eq!(made.gauge.before_a_run(&host, Asked::OrHost, 1), None);
    }
}
