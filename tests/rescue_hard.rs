//! The rescue when all else fails: a state directory that hangs or is full, a slow side that does not
//! listen, images that do not answer. Records, file systems and drops are the kernel's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fragwatch::internals::klog::Kmsg;
use fragwatch::internals::klog::Rules;
use fragwatch::internals::model::{RescueStep, RuleAction, RuleDefinition};
use fragwatch::internals::rescue::FastSettings;
use fragwatch::internals::rescue::LadderSettings;
use fragwatch::internals::rescue::Notice;
use fragwatch::internals::rescue::{FastSide, Setup};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, fallocate, fcntl_setfl, mknodat};
use rustix::io::Errno;
use support::emergency::{Event, Host, PATIENCE, Plan, Refusals, alone, drop_line, vmstat};
use support::halt::Halted;
use support::stall::state;
use support::{Bed, GIB, MIB, NotHere, Stall, guest};

support::stall_server!();

/// One action an incident, so that a record is answered by one drop.
const ONCE: &str = "min_interval = \"60s\"";

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a thread of the process waits for a disk and cannot be interrupted.
fn hangs(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks
        .into_iter()
        .any(|task| state(&task.path()) == Some('D'))
}

/// Incident files in the state directory of a daemon.
fn incident_files(state: &Path) -> usize {
    let Ok(entries) = fs::read_dir(state.join("incidents")) else {
        return 0;
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().ends_with(".json"))
        .count()
}

/// The record and the drops that it led to, by number of line, as the kernel's log has them.
fn places(host: &mut Host, texts: &[&str]) -> Vec<Vec<usize>> {
    let lines: Vec<_> = host.log.lines().iter().enumerate().collect();
    let of = |text: &&str| {
        let found = lines.iter().filter(|(_, line)| line.contains(*text));
        found.map(|(number, _)| *number).collect()
    };
    texts.iter().map(of).collect()
}

/// Two file systems that hang and one that does not: to the daemons on all three the same record is
/// one to act upon.
#[test]
fn a_state_directory_that_hangs_keeps_nothing_from_the_rescue() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let mut stall = support::require!(Stall::new());
    let states = ["ran", "starts"].map(|name| stall.path().join(name));
    states
        .iter()
        .for_each(|state| fs::create_dir(state).unwrap());
    stall.cold();
    let plan = Plan::of(event.pattern()).rescue(ONCE);
    let mut sound = plan.start();
    let mut ran = plan.clone().state(&states[0]).start();
    // Nothing of it must be left to be written: dropping the slab cache would wait for it.
    stall.bed().sync();
    stall.stop();
    // The worst case: it hangs already when the daemon starts.
    let mut starts = plan.clone().state(&states[1]).start();
    let before = vmstat("drop_slab");

    event.happens();
    sound.wait_for_drop();
    ran.wait_for_drop();
    starts.wait_for_drop();
    assert!(vmstat("drop_slab") >= before + 3, "the kernel has counted");
    // It does hang, and everything but the files goes on.
    for host in [&ran, &starts] {
        until("it hangs", || hangs(host.daemon.pid()));
        host.wait_for_incident();
        host.wait_done("drop_slab", "done");
    }
    until("the sound one writes", || {
        incident_files(sound.directory.path()) == 1
    });
    // All three acted once, upon the same record.
    let actors = [&sound, &ran, &starts].map(|host| drop_line(host.thread("rescue-actor")));
    let [first, second, third] = &actors;
    let found = places(&mut sound, &["Unmounting Filesystem", first, second, third]);
    let record = *found[0].last().unwrap();
    for drops in &found[1..] {
        assert_eq!(drops.len(), 1, "{actors:?} {found:?}");
        assert!(drops[0] > record, "{actors:?} {found:?}");
    }
    stall.resume();
    for (host, state) in [&ran, &starts].into_iter().zip(&states) {
        until("the file is written when it can be", || {
            incident_files(state) == 1
        });
        assert_eq!(host.incidents(), 1.0);
    }
}

/// Takes all the room that there is.
fn fill(directory: &Path) {
    let file = File::create(directory.join("filler")).unwrap();
    let (mut end, mut step) = (0, GIB);
    while step >= 4096 {
        match fallocate(&file, FallocateFlags::empty(), end, step) {
            Ok(()) => end += step,
            Err(Errno::NOSPC) => step /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    file.sync_all().unwrap();
}

#[test]
fn a_full_disk_keeps_nothing_from_the_rescue() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let full = support::require!(Bed::xfs_sized(300 * MIB));
    let host = Plan::of(event.pattern()).rescue(ONCE).state(full.path());
    let mut host = host.start();
    fill(full.path());
    event.happens();
    host.wait_for_drop();
    host.wait_done("drop_slab", "done");
    host.wait(
        "fragwatch_rescue_incident_files_total{outcome=\"failed\"}",
        1.0,
    );
    assert_eq!(incident_files(full.path()), 0);
    // Nor does it give up: as soon as there is room, the incident is kept.
    fs::remove_file(full.path().join("filler")).unwrap();
    until("the file is written", || incident_files(full.path()) == 1);
}

/// More than the rings of the fast side hold.
const STORM: usize = 5000;

#[test]
fn a_slow_side_that_does_not_listen_keeps_nothing_from_the_rescue() {
    let _alone = alone();
    let refusals = support::require!(Refusals::new());
    let mut host = Plan::of(refusals.pattern())
        .rescue("min_interval = \"50ms\"")
        .start();
    // The one thread of the slow side that empties the rings.
    let halted = Halted::thread(host.daemon.pid()).map_err(NotHere::because);
    let halted = support::require!(halted);
    for number in 0..STORM {
        refusals.happens();
        if number % 100 == 0 {
            // Later the line of the drop may be overwritten.
            host.log.lines();
        }
    }
    host.wait_for_drop();
    // The ladder is climbed too: two drops, a compaction, and a drop of all.
    until("the whole ladder", || {
        refusals.happens();
        host.drops() >= 3
    });
    drop(halted);
    // What was not read in time is counted.
    host.wait("fragwatch_rescue_news_lost_total", 1.0);
    // The kernel too overwrites records that are not read in time. The counts are exported every few
    // seconds.
    until("each record is counted as read or as lost", || {
        let overwritten = host.metric("fragwatch_klog_lost_total");
        host.metric("fragwatch_klog_records_total") + overwritten >= STORM as f64
    });
    until("each match is counted as read or as lost", || {
        let read = host.metric("fragwatch_klog_matches_total{rule=\"test_event\"}");
        let lost = host.metric("fragwatch_rescue_news_lost_total");
        let overwritten = host.metric("fragwatch_klog_lost_total");
        read >= 1.0 && read + lost + overwritten >= STORM as f64
    });
    // And it listens again.
    let acted = host.done("drop_all", "done");
    until("it is heard of again", || {
        refusals.happens();
        host.done("drop_all", "done") > acted
    });
}

/// What systemd gets to hear.
struct Systemd(UnixDatagram);

impl Systemd {
    fn at(path: &Path) -> Systemd {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Systemd(socket)
    }

    /// Waits until the watchdog was fed so often from now on.
    fn is_fed(&self, times: usize) {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 4096]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
        let mut fed = 0;
        let mut message = [0; 4096];
        while fed < times {
            let length = self.0.recv(&mut message).expect("the watchdog is fed");
            let message = String::from_utf8_lossy(&message[..length]);
            fed += usize::from(message.lines().any(|line| line == "WATCHDOG=1"));
        }
    }
}

#[test]
fn images_that_do_not_answer_keep_nothing_from_rescue_and_watchdog() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let mut stall = support::require!(Stall::new());
    guest::alternate_blocks(&stall.path().join("vm.raw"), 100);
    let directory = tempfile::tempdir().unwrap();
    let socket: PathBuf = directory.path().join("notify");
    let systemd = Systemd::at(&socket);
    stall.cold();
    stall.stop();
    let mut host = Plan::of(event.pattern())
        .rescue(ONCE)
        .images(&stall.path())
        .environment("NOTIFY_SOCKET", &socket)
        .environment("WATCHDOG_USEC", "300000")
        .start();
    let stalled = format!(
        "fragwatch_probe_stalled{{filesystem=\"{}\"}}",
        stall.bed().path().display()
    );
    host.wait(&stalled, 1.0);
    systemd.is_fed(5);
    event.happens();
    host.wait_for_drop();
    host.wait_done("drop_slab", "done");
    // Still, and long after the probe began to hang.
    assert_eq!(host.metric(&stalled), 1.0);
    systemd.is_fed(20);
    // Nor does a systemd that hangs keep us: it has long taken as many messages as it holds.
    thread::sleep(Duration::from_secs(3));
    event.happens();
    host.wait("fragwatch_klog_matches_total{rule=\"test_event\"}", 2.0);
    systemd.is_fed(2);
    stall.resume();
    host.wait("fragwatch_sweep_timestamp_seconds", 1.0);
    systemd.is_fed(2);
}

/// Each record is looked at by the settings of its time, however slow the slow side is; and what is no longer needed
/// of them is given back by the slow side.
#[test]
fn new_settings_lose_nothing_and_the_former_ones_are_freed() {
    const ROUNDS: u64 = 200;
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("kmsg");
    let made = mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
    made.unwrap();
    let mut kernel = File::options().read(true).write(true).open(&log).unwrap();
    // One write, one record (pipe(7), "packet mode").
    fcntl_setfl(&kernel, OFlags::DIRECT).unwrap();
    let kmsg = Arc::new(Kmsg::open(&log, Duration::from_secs(10)).unwrap());
    let settings = |number: u64| {
        let rule = RuleDefinition {
            name: format!("round_{number}"),
            pattern: format!("^record {number}$"),
            action: RuleAction::Rescue,
        };
        FastSettings {
            enabled: true,
            dry_run: true,
            kmsg: Some(Arc::clone(&kmsg)),
            rules: Arc::new(Rules::compile(&[rule]).unwrap()),
            ladder: Arc::new(LadderSettings {
                steps: vec![RescueStep::DropSlab],
                min_interval: Duration::ZERO,
                quiet_after: PATIENCE + Duration::from_secs(number % 2),
                max_actions_per_hour: 3600,
            }),
        }
    };
    let first = settings(0);
    let mut former = vec![Arc::downgrade(&first.rules)];
    let setup = Setup {
        settings: first,
        proc: PathBuf::from("/proc"),
        watchdog: None,
    };
    let mut fast = support::require!(FastSide::start(setup).map_err(NotHere::because));
    let mut matched = Vec::new();
    let mut actions = 0;
    for number in 0..ROUNDS {
        // The stamp is that of a clock that is late; what comes through a pipe is new all the same.
        let record = format!("3,{number},1,-;record {number}\n");
        kernel.write_all(record.as_bytes()).unwrap();
        let next = settings(number + 1);
        until("the record is read", || {
            fast.exchange.records() == number + 1
        });
        former.push(Arc::downgrade(&next.rules));
        fast.change(next).unwrap();
        // Sometimes several editions wait, sometimes none is taken before the next one comes.
        if number % 3 == 0 {
            let in_use = fast.oldest_in_use();
            while let Some(notice) = fast.notices.pop() {
                if let Notice::Matched { edition, rule, .. } = notice {
                    matched.push(fast.rule_name(edition, rule).unwrap().to_owned());
                }
            }
            fast.forget(in_use);
        }
        while let Some(report) = fast.reports.pop() {
            actions += u32::from(!report.drill);
        }
    }
    until("all is taken", || {
        let in_use = fast.oldest_in_use();
        while let Some(notice) = fast.notices.pop() {
            if let Notice::Matched { edition, rule, .. } = notice {
                matched.push(fast.rule_name(edition, rule).unwrap().to_owned());
            }
        }
        fast.forget(in_use);
        former
            .iter()
            .filter(|rules| rules.strong_count() > 0)
            .count()
            == 1
    });
    let expected: Vec<_> = (0..ROUNDS)
        .map(|number| format!("round_{number}"))
        .collect();
    assert_eq!(matched, expected);
    assert!(actions > 0);
    let last = former.pop().unwrap();
    assert_eq!(last.strong_count(), 1);
    assert!(fast.is_alive());
    fast.stop();
    assert_eq!(last.strong_count(), 0);
}
