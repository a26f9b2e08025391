//! What is kept of an emergency, whatever happens to the one who keeps it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fragwatch::internals::incidents::archive;
use fragwatch::internals::incidents::{
    EventKind, Incident, IncidentState, Recorder, RecorderSettings,
};
use fragwatch::internals::incidents::{HookOutcome, Moment};
use fragwatch::internals::incidents::{ImageEvidence, Images};
use fragwatch::internals::klog::{KernelTime, RuleId};
use fragwatch::internals::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};
use fragwatch::internals::rescue::Counters;
use fragwatch::internals::rescue::now;
use fragwatch::internals::rescue::{Began, Ended, Order};
use fragwatch::internals::rescue::{Line, Notice, Report};
use fragwatch::internals::stall::{StallDetector, StallSettings};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use support::child::Child;
use support::rundir::{self, Place};
use support::{Here, NotHere, Stall};

support::stall_server!();

const SECOND: Duration = Duration::from_secs(1);

/// A recorder that finds nothing to collect, quickly.
fn settings(directory: &Path) -> RecorderSettings {
    RecorderSettings {
        directory: directory.to_owned(),
        proc: PathBuf::from("/nowhere"),
        ..RecorderSettings::default()
    }
}

fn begin(recorder: &Recorder, number: u64) {
    let began = Began {
        incident: IncidentId(number),
        trigger: Trigger::KernelLog,
    };
    recorder.notice(&Notice::Began(began, now()), "");
}

fn line(recorder: &Recorder, text: &str) {
    let matched = Notice::Matched {
        edition: 0,
        rule: RuleId(0),
        sequence: 1,
        time: KernelTime(5_000_000),
        at: now(),
        line: Line::new(text.as_bytes()),
    };
    recorder.notice(&matched, "xfs_deadlock");
}

fn act(recorder: &Recorder, number: u64) {
    let (at, milli) = (now(), Duration::from_millis(1));
    let slab = |slab_reclaimable_kib| Counters {
        slab_reclaimable_kib,
        ..Counters::default()
    };
    recorder.report(&Report {
        order: Order {
            incident: IncidentId(number),
            step: RescueStep::DropSlab,
            number: 1,
        },
        drill: false,
        outcome: Outcome::Done,
        error: 0,
        read: at,
        began: at.plus(milli),
        ended: at.plus(milli * 5),
        before_at: Monotonic(at.0 - 2_000_000_000),
        before: slab(5000),
        after: slab(1000),
    });
}

fn end(recorder: &Recorder, number: u64) {
    let time = now();
    let ended = Ended {
        incident: IncidentId(number),
        trigger: Trigger::KernelLog,
        began: time,
        last_match: time,
        matches: 7,
        matches_in_flight: 2,
        actions: 1,
        failed: 0,
        held_back: 0,
    };
    recorder.notice(&Notice::Ended(ended, time), "");
}

fn incidents(directory: &Path) -> Vec<Incident> {
    let files = archive::list(directory).unwrap_or_default();
    let parse = |path: &PathBuf| serde_json::from_slice(&archive::read(path).unwrap()).unwrap();
    files.iter().map(parse).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// An executable script; `$DIR` is its directory.
fn script(directory: &Path, text: &str) -> Vec<String> {
    let path = directory.join("hook.sh");
    let dir = directory.display();
    support::script::script(&path, &format!("DIR={dir}\n{text}"));
    vec![path.to_str().unwrap().to_owned()]
}

#[test]
fn a_whole_incident_with_evidence_and_hooks() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("state/incidents");
    let images: Images = Arc::new(|| {
        vec![ImageEvidence {
            path: "/srv/a".to_owned(),
            extents: 34_694_398,
            size_bytes: 1,
        }]
    });
    let recorder = Recorder::start(RecorderSettings {
        hook: script(
            dir.path(),
            r#"cat >"$DIR/$FRAGWATCH_EVENT.json"
            echo "$FRAGWATCH_TRIGGER $FRAGWATCH_STATE $FRAGWATCH_ACTIONS $FRAGWATCH_SLAB_FREED_BYTES" >"$DIR/$FRAGWATCH_EVENT""#,
        ),
        proc: PathBuf::from("/proc"),
        images,
        ..settings(&directory)
    })
    .unwrap();
    line(&recorder, "from before: hung task");
    begin(&recorder, 1);
    line(&recorder, "XFS: possible memory allocation deadlock\x1b[0m");
    act(&recorder, 1);
    wait_until("it is there while it goes on", || {
        incidents(&directory)
            .iter()
            .any(|i| i.state == IncidentState::Open && !i.evidence.is_empty())
    });
    wait_until("the hook ran", || dir.path().join("begin").exists());
    end(&recorder, 1);
    wait_until("both hooks ended", || {
        incidents(&directory)[0].hooks.len() == 2
    });
    let health = recorder.health();
    assert_eq!(
        (health.files.failed, health.files.dropped, health.lost),
        (0, 0, 0)
    );
    assert!(recorder.stop(5 * SECOND));

    let all = incidents(&directory);
    assert_eq!(all.len(), 1);
    let incident = &all[0];
    assert_eq!((incident.schema, incident.state), (1, IncidentState::Ended));
    assert_eq!(incident.trigger, Some(Trigger::KernelLog));
    assert_eq!(
        (
            incident.matches,
            incident.matches_in_flight,
            incident.actions
        ),
        (7, 2, 1)
    );
    assert_eq!(incident.slab_freed_kib, 4000);
    assert_eq!(incident.events.len(), 3);
    assert!(incident.events[0].after_ms <= 0);
    let EventKind::Line { text, rule, .. } = &incident.events[1].what else {
        panic!("{:?}", incident.events[1]);
    };
    assert_eq!(rule, "xfs_deadlock");
    assert_eq!(text, "XFS: possible memory allocation deadlock\\x1b[0m");
    let EventKind::Action(action) = &incident.events[2].what else {
        panic!("{:?}", incident.events[2]);
    };
    assert_eq!(
        (action.reaction_us, action.duration_us, action.before_age_ms),
        (1000, 4000, 2001)
    );
    let moments: Vec<_> = incident.evidence.iter().map(|taken| taken.moment).collect();
    assert_eq!(moments, [Moment::Begin, Moment::End]);
    let evidence = &incident.evidence[0].evidence;
    assert_eq!(evidence.images[0].extents, 34_694_398);
    assert!(!evidence.buddyinfo.is_empty() && evidence.vmstat.contains_key("nr_dirty_threshold"));
    assert!(
        incident
            .hooks
            .iter()
            .all(|hook| hook.outcome == HookOutcome::Exited(0))
    );

    let told = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(told("end"), "kernel_log ended 1 4096000\n");
    assert!(told("begin").starts_with("kernel_log open 1 "));
    let at_end: Incident = serde_json::from_str(&told("end.json")).unwrap();
    assert_eq!(
        (at_end.id.as_str(), at_end.evidence.len()),
        (incident.id.as_str(), 2)
    );
    let shown = |arguments: &[&str]| {
        let mut command = support::daemon::fragwatch();
        command.arg("incidents").args(arguments);
        command.arg("--directory").arg(&directory);
        command.output().unwrap().status.code()
    };
    assert_eq!(shown(&[]), Some(0));
    assert_eq!(shown(&["1"]), Some(0));
    assert_eq!(shown(&["2"]), Some(2));
}

#[test]
fn an_incident_whose_daemon_died_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(settings(dir.path())).unwrap();
    begin(&recorder, 1);
    line(&recorder, "XFS: possible memory allocation deadlock");
    assert!(recorder.stop(5 * SECOND));
    assert_eq!(incidents(dir.path())[0].state, IncidentState::Open);
    assert_eq!(incidents(dir.path())[0].events.len(), 1);
    let next = Recorder::start(settings(dir.path())).unwrap();
    assert!(next.stop(5 * SECOND));
    let all = incidents(dir.path());
    assert_eq!((all.len(), all[0].state), (1, IncidentState::Interrupted));
    assert_eq!(all[0].events.len(), 1);
}

#[test]
fn news_that_were_lost_leave_a_sensible_story() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(settings(dir.path())).unwrap();
    // An action without a begin; a begin without an end; an end without a begin.
    act(&recorder, 1);
    begin(&recorder, 2);
    end(&recorder, 3);
    wait_until("three files", || incidents(dir.path()).len() == 3);
    assert!(recorder.stop(5 * SECOND));
    let mut all = incidents(dir.path());
    all.sort_by_key(|incident| incident.number);
    assert!(
        all.iter()
            .all(|incident| incident.state == IncidentState::Ended)
    );
    assert_eq!((all[0].trigger, all[0].slab_freed_kib), (None, 4000));
}

#[test]
fn a_storm_of_lines_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(settings(dir.path())).unwrap();
    begin(&recorder, 1);
    let began = Instant::now();
    for number in 0..100_000 {
        line(
            &recorder,
            &format!("XFS: possible memory allocation deadlock {number}"),
        );
        if number % 1000 == 0 {
            // The slow side would have to read them from a ring.
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(began.elapsed() < 20 * SECOND);
    let lost = recorder.health().lost;
    // As long as the queue is full, the end is lost as well.
    wait_until("its end is heard of", || {
        let before = recorder.health().lost;
        end(&recorder, 1);
        recorder.health().lost == before
    });
    assert!(recorder.stop(10 * SECOND));
    let incident = &incidents(dir.path())[0];
    assert_eq!(incident.events.len(), 1500);
    assert_eq!(incident.events_left_out + 1500 + lost, 100_000);
    assert_eq!(incident.state, IncidentState::Ended);
}

const WRITER: &str = "FRAGWATCH_TEST_WRITER";
/// As long as a state of the file; its begin and its end both name the round.
const LENGTH: usize = 200_000;

/// Writes one file again and again, and a new one now and then, until it is killed.
#[test]
#[ignore = "not a test: the writer that is killed"]
fn writer() {
    let Some(directory) = std::env::var_os(WRITER).map(PathBuf::from) else {
        return;
    };
    let rounds = if std::env::var_os("FRAGWATCH_TEST_ONCE").is_some() {
        1
    } else {
        u64::MAX
    };
    archive::recover(&directory, "9").unwrap();
    for round in 0..rounds {
        let padding = "x".repeat(LENGTH);
        let text =
            format!(r#"{{"state":"open","round":{round},"padding":"{padding}","end":{round}}}"#);
        let name = format!("20261120T120305.123Z-{}.json", round % 3);
        archive::save(&directory, &name, text.as_bytes()).unwrap();
    }
}

fn helper(directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "writer", "--ignored", "--nocapture"])
        .env(WRITER, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Checks that every file is whole; gives how many there are and how many were left half-written.
fn all_whole(directory: &Path) -> (usize, usize) {
    let mut halves = 0;
    let mut whole = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with(".fragwatch-") {
            halves += 1;
            continue;
        }
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let (begin, end) = (&value["round"], &value["end"]);
        assert_eq!(begin, end, "{name}");
        assert_eq!(value["padding"].as_str().unwrap().len(), LENGTH);
        whole += 1;
    }
    (whole, halves)
}

#[test]
fn killed_at_any_moment_a_file_is_old_or_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut halves = 0;
    let mut random: u64 = 88_172_645_463_325_252;
    for _ in 0..100 {
        let mut child = Child::spawn(&mut helper(dir.path())).unwrap();
        wait_until("it writes", || all_whole(dir.path()).0 > 0);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(Duration::from_micros(random % 15_000));
        child.pipes().kill().unwrap();
        child.wait(60 * SECOND).unwrap();
        let (whole, half) = all_whole(dir.path());
        assert!((1..=3).contains(&whole));
        // The next start removes them.
        assert!(half <= 1, "{half} were left behind");
        halves += half;
    }
    eprintln!("killed in the middle of a file {halves} times of 100");
    archive::recover(dir.path(), "9").unwrap();
    assert_eq!(all_whole(dir.path()).1, 0);
}

/// What a kill cannot show: that the data are on the disk before the name is, and the name before
/// it is said to be.
#[test]
fn a_file_is_flushed_then_named_then_its_directory_is_flushed() {
    let strace = support::tools::run(Command::new("strace").arg("-V"));
    support::require!(strace);
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let state = dir.path().join("state");
    let own = helper(&state);
    let status = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=write,fsync,fdatasync,rename,renameat,renameat2",
            "-o",
        ])
        .arg(&trace)
        .arg(own.get_program())
        .args(own.get_args())
        .env(WRITER, &state)
        .env("FRAGWATCH_TEST_ONCE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let trace = fs::read_to_string(trace).unwrap();
    let mut calls: Vec<&str> = trace
        .lines()
        .filter(|line| line.contains(state.to_str().unwrap()))
        .map(|line| {
            let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            call.split('(').next().unwrap()
        })
        .collect();
    // It may be written in parts.
    calls.dedup();
    assert!(
        matches!(
            calls.as_slice(),
            [
                "write",
                "fsync",
                "rename" | "renameat" | "renameat2",
                "fsync"
            ]
        ),
        "{calls:?}"
    );
}

/// A tmpfs that is too small.
struct Small(PathBuf);

impl Small {
    fn new() -> Here<Small> {
        if !rustix::process::geteuid().is_root() {
            return Err(NotHere::because("mounting needs root"));
        }
        let path = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"size=64k")
            .map_err(NotHere::because)?;
        Ok(Small(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        rundir::remove(&self.0);
    }
}

#[test]
fn a_full_disk_delays_nobody_and_is_written_when_there_is_room() {
    let small = support::require!(Small::new());
    let ballast = small.0.join("ballast");
    let _ = fs::write(&ballast, vec![0; 64 << 10]);
    let recorder = Recorder::start(settings(&small.0)).unwrap();
    let began = Instant::now();
    begin(&recorder, 1);
    for _ in 0..100 {
        line(&recorder, "XFS: possible memory allocation deadlock");
    }
    end(&recorder, 1);
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    wait_until("it is told", || recorder.health().files.failed > 0);
    assert!(incidents(&small.0).is_empty());
    // Nothing half-written takes what little room there is.
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 1);
    fs::remove_file(&ballast).unwrap();
    assert!(recorder.stop(5 * SECOND));
    assert_eq!(incidents(&small.0)[0].state, IncidentState::Ended);
}

#[test]
fn a_directory_that_hangs_delays_nobody() {
    let stall = support::require!(Stall::new());
    let directory = stall.path().join("incidents");
    let recorder = Recorder::start(settings(&directory)).unwrap();
    wait_until("it is made", || directory.exists());
    wait_until("it is in order", || {
        recorder.health().files.hung_for.is_none()
    });
    stall.stop();
    let began = Instant::now();
    for number in 1..=30 {
        begin(&recorder, number);
        line(&recorder, "XFS: possible memory allocation deadlock");
        act(&recorder, number);
        end(&recorder, number);
        let _ = recorder.health();
        thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    wait_until("it hangs", || {
        recorder
            .health()
            .files
            .hung_for
            .is_some_and(|since| since > SECOND)
    });
    let health = recorder.health();
    assert!(
        health.files.dropped > 0 && health.files.waiting == 16,
        "{health:?}"
    );
    stall.resume();
    wait_until("all that is left is written", || {
        recorder.health().files.waiting == 0
    });
    // Some were given up, which is counted; no more are lost at the end.
    assert!(recorder.stop(10 * SECOND));
    assert!(recorder.health().files.dropped > 0);
    let all = incidents(&directory);
    assert!(all.len() >= 16);
    assert!(
        all.iter()
            .all(|incident| incident.state == IncidentState::Ended)
    );
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_it_forked() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(RecorderSettings {
        // It does not read, does not listen to SIGTERM, and leaves a child that does neither.
        hook: script(
            dir.path(),
            "trap '' TERM\n(trap '' TERM; echo $$ >>$DIR/pids; exec sleep 1000) &\n\
             echo $! >>$DIR/pids\necho $$ >>$DIR/pids\nwhile :; do sleep 1; done",
        ),
        hook_timeout: 2 * SECOND,
        ..settings(&dir.path().join("incidents"))
    })
    .unwrap();
    let began = Instant::now();
    begin(&recorder, 1);
    line(&recorder, "XFS: possible memory allocation deadlock");
    end(&recorder, 1);
    // Neither hook was waited for.
    assert!(began.elapsed() < 2 * SECOND);
    let directory = dir.path().join("incidents");
    wait_until("both hooks are given up", || {
        incidents(&directory)
            .first()
            .is_some_and(|incident| incident.hooks.len() == 2)
    });
    let incident = &incidents(&directory)[0];
    assert!(
        incident
            .hooks
            .iter()
            .all(|hook| hook.outcome == HookOutcome::TimedOut)
    );
    let pids = fs::read_to_string(dir.path().join("pids")).unwrap();
    assert!(pids.lines().count() >= 4, "{pids}");
    for pid in pids.lines() {
        let stat = PathBuf::from(format!("/proc/{pid}"));
        wait_until(
            "nobody is left",
            || !matches!(support::stall::state(&stat), Some(state) if state != 'Z'),
        );
    }
    assert!(recorder.stop(5 * SECOND));
}

#[test]
fn a_hook_whose_program_cannot_be_read_is_given_up() {
    let mut stall = support::require!(Stall::new());
    let dir = tempfile::tempdir().unwrap();
    let hook = script(&stall.path(), "exit 0");
    stall.cold();
    let recorder = Recorder::start(RecorderSettings {
        hook,
        hook_timeout: 2 * SECOND,
        ..settings(dir.path())
    })
    .unwrap();
    stall.stop();
    begin(&recorder, 1);
    let hooks = || {
        incidents(dir.path())
            .pop()
            .map_or(Vec::new(), |incident| incident.hooks)
    };
    wait_until("it is told", || !hooks().is_empty());
    assert_eq!(hooks()[0].outcome, HookOutcome::NotStartedInTime);
    stall.resume();
    end(&recorder, 1);
    wait_until("the next one runs", || hooks().len() == 2);
    assert_eq!(hooks()[1].outcome, HookOutcome::Exited(0));
    assert!(recorder.stop(5 * SECOND));
}

const SLEEPER: &str = "FRAGWATCH_TEST_SLEEPER";

#[test]
#[ignore = "not a test: a process of some threads"]
fn sleeper() {
    if std::env::var_os(SLEEPER).is_some() {
        for _ in 0..3 {
            thread::spawn(|| thread::sleep(600 * SECOND));
        }
        thread::sleep(600 * SECOND);
    }
}

/// Processor time of the stall detector's threads, in microseconds.
fn detector_cpu() -> u64 {
    let mut total = 0;
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").starts_with("stall") {
            let nanoseconds = read("schedstat");
            total += nanoseconds
                .split(' ')
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap_or(0)
                / 1000;
        }
    }
    total
}

#[test]
#[ignore = "a measurement: takes two minutes and 500 processes"]
fn what_the_stall_detector_costs() {
    let sleepers: Vec<Child> = (0..500)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "sleeper", "--ignored", "--nocapture"])
                .env(SLEEPER, "1")
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            Child::spawn(&mut command).unwrap()
        })
        .collect();
    thread::sleep(5 * SECOND);
    let measure = |name: &str, proc: &Path, time: Duration| {
        let detector = StallDetector::start(
            StallSettings {
                proc: proc.to_owned(),
                stall_after: 10 * SECOND,
                interval: SECOND,
            },
            |stuck| eprintln!("{stuck:?}"),
        );
        let detector = detector.unwrap();
        thread::sleep(2 * SECOND);
        let (cpu, looks) = (detector_cpu(), detector.health().scans);
        thread::sleep(time);
        let cpu = (detector_cpu() - cpu) as f64 / 1000.0 / time.as_secs_f64() * 60.0;
        let looks = detector.health().scans - looks;
        eprintln!("{name}: {cpu:.1} ms of processor time a minute, {looks} looks at all tasks");
        drop(detector);
        thread::sleep(2 * SECOND);
    };
    measure("gate closed (PSI)", Path::new("/proc"), 62 * SECOND);
    // The same tree with a gate that cannot be read: it stays open.
    let tree = tempfile::tempdir().unwrap();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().iter().all(u8::is_ascii_digit) || name == "self" {
            std::os::unix::fs::symlink(entry.path(), tree.path().join(&name)).unwrap();
        }
    }
    fs::write(tree.path().join("vmstat"), "").unwrap();
    measure("gate open", tree.path(), 20 * SECOND);
    drop(sleepers);
}
