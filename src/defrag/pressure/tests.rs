//! Pressure of made-up groups and disks.

use super::*;

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
    let waited = |asked| {
        read_waited(&proc, asked)
            .iter()
            .map(|it| it.average)
            .reduce(f64::max)
    };
    assert_eq!(waited(Asked::OrHost), Some(93.10));
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
    assert_eq!(waited(Asked::OrHost), Some(3.5));
    write(&groups, "machine.slice/io.pressure", &some("12.00"));
    write(&groups, "odd.slice/io.pressure", "some nonsense\n");
    assert_eq!(waited(Asked::Others), Some(12.0));
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
    fn at(&mut self, second: u64, average: f64, waited: u64, idle: bool) -> Option<f64> {
        let total = Duration::from_millis(waited);
        let host = HostInterfaces {
            proc: self.root.path().join("proc"),
            sys: self.root.path().join("sys"),
            hints: self.root.path().to_owned(),
            ..HostInterfaces::to_look_at()
        };
        let now = Reading {
            at: self.began + Duration::from_secs(second),
            waited: vec![Waited {
                of: PathBuf::from("vms"),
                average,
                total,
            }],
            disks: Counters::read(self.gauge.device, &host),
        };
        self.gauge.take(now, idle).map(|found| found.counts)
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
    let found = |all, counts| Some(IoPressure { all, counts });
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
    let host = HostInterfaces {
        proc: made.root.path().join("proc"),
        sys: made.root.path().join("sys"),
        hints: made.root.path().to_owned(),
        ..HostInterfaces::to_look_at()
    };
    let asked = |asked| read_waited(&host.proc, asked);
    assert_eq!(asked(Asked::OrHost), []);
    assert_eq!(asked(Asked::Others), []);
    assert_eq!(before_runs(&mut [&mut made.gauge], &host, 1), [None]);
    // As with psi=0: the file is there, and cannot be read.
    fs::create_dir_all(host.proc.join("pressure/io")).unwrap();
    assert_eq!(before_runs(&mut [&mut made.gauge], &host, 1), [None]);
}
