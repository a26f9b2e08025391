//! The scanner on a made-up /proc and on the real one.

use super::super::tracker::StallTracker;
use super::*;
use crate::skip::{self, NotHere};
use crate::stall::tests::{HEALTHY, STARVED, task, tree};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

fn scanner(proc: &Path) -> Scanner {
    Scanner::open(proc, Vec::new(), Arc::default()).unwrap()
}

fn seen(scanner: &mut Scanner) -> Vec<(u32, StackVerdict)> {
    let seen = scanner.scan_all(now(), &[]);
    let mut seen: Vec<_> = seen
        .iter()
        .map(|seen| (seen.key.tid, seen.verdict))
        .collect();
    seen.sort_by_key(|(tid, _)| *tid);
    seen
}

#[test]
fn all_threads_are_looked_at() {
    let proc = tree();
    let mut scanner = scanner(proc.path());
    let expected = [
        (8, StackVerdict::Starved),
        (9, StackVerdict::Elsewhere),
        (12, StackVerdict::Elsewhere),
    ];
    assert_eq!(seen(&mut scanner), expected);
    // One that spends time in the kernel, and one that does not.
    task(proc.path(), 20, 20, 1, 'R', 100, &STARVED);
    task(proc.path(), 21, 21, 1, 'R', 100, &STARVED);
    assert_eq!(seen(&mut scanner), expected, "it is not known yet");
    task(proc.path(), 20, 20, 1, 'R', 190, &STARVED);
    task(proc.path(), 21, 21, 1, 'R', 100, &STARVED);
    assert_eq!(
        seen(&mut scanner).last(),
        Some(&(20, StackVerdict::Starved))
    );
    let seen = scanner.scan_all(now(), &[]);
    let starved = seen.iter().find(|seen| seen.key.tid == 8).unwrap();
    assert_eq!(starved.stack[2], "xfs_iread_extents+0x1f/0x120");
}

#[test]
fn a_running_task_is_seen_from_its_own_processor() {
    if let Err(error) = fs::read("/proc/self/stack") {
        return skip::missing(module_path!(), &NotHere::because(error));
    }
    let allowed = sched_getaffinity(None).unwrap();
    // In the kernel most of the time, and on whatever processor.
    let mut child = std::process::Command::new("dd")
        .args(["if=/dev/zero", "of=/dev/null", "bs=1M", "status=none"])
        .spawn()
        .unwrap();
    let mut scanner = scanner(Path::new("/proc"));
    let mut visible = 0;
    let mut looks = 0;
    // A process that is in user mode just then, or waits for the processor, has no kernel stack
    // but its entry. On a busy machine that is most of the time.
    while visible < 3 && looks < 300 {
        thread::sleep(Duration::from_millis(100));
        scanner.scanned = Monotonic(now().0.saturating_sub(1_000_000_000));
        for (_, ticks) in &mut scanner.ticks {
            *ticks = ticks.saturating_sub(100);
        }
        let seen = scanner.scan_all(now(), &[]);
        let of_child = seen.iter().filter(|seen| seen.key.tid == child.id());
        visible += of_child
            .filter(|seen| seen.verdict == StackVerdict::Elsewhere)
            .count();
        looks += 1;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(visible >= 3, "{visible} in {looks} looks");
    assert_eq!(sched_getaffinity(None).unwrap(), allowed);
}

#[test]
fn without_psi_the_stalls_are_counted() {
    let proc = tree();
    fs::write(proc.path().join("pressure/memory"), "").unwrap();
    let mut scanner = scanner(proc.path());
    assert!(scanner.pressure.is_none());
    assert!(scanner.scan(&[]).unwrap().is_some(), "the first look");
    assert!(scanner.scan(&[]).unwrap().is_none());
    fs::write(proc.path().join("vmstat"), "allocstall_normal 2\n").unwrap();
    scanner.gate.last_scan = Some(Monotonic(now().0 - 3_000_000_000));
    assert!(scanner.scan(&[]).unwrap().is_some());
}

/// Scans once a second, and before each has `change` make of the tree what it is then. The scan
/// at which each task was first found stuck.
fn first_stuck(
    scans: u64,
    stall_after: Duration,
    mut change: impl FnMut(&Path, u64),
) -> BTreeMap<u32, u64> {
    let proc = tree();
    let mut scanner = scanner(proc.path());
    let mut tracker = StallTracker::new(stall_after);
    let mut first = BTreeMap::new();
    for second in 0..scans {
        change(proc.path(), second);
        let time = Monotonic(second * 1_000_000_000);
        let seen = scanner.scan_all(time, &tracker.tracked());
        for (key, _) in tracker.update(time, seen.iter().map(|seen| (seen.key, seen.verdict))) {
            first.entry(key.tid).or_insert(second);
        }
    }
    first
}

/// How often tasks have been throttled, if the kernel counts it.
fn throttled(proc: &Path, times: Option<u64>) {
    let times = times.map(|times| format!("pgscan_direct_throttle {times}\n"));
    let vmstat = format!("allocstall_normal 1\n{}", times.unwrap_or_default());
    fs::write(proc.join("vmstat"), vmstat).unwrap();
}

const STALL: Duration = Duration::from_secs(10);

/// In a transaction a task is throttled interruptibly.
const THROTTLED: [&str; 4] = [
    "throttle_direct_reclaim",
    "try_to_free_pages",
    "__alloc_pages_slowpath.constprop.0",
    "xfs_trans_alloc",
];

#[test]
fn a_starved_task_that_sleeps_interruptibly_is_found() {
    let first = first_stuck(12, STALL, |proc, second| {
        throttled(proc, Some(second + 1));
        task(proc, 900, 900, 1, 'S', 10, &THROTTLED);
        let state = ['D', 'S'][usize::from(second % 2 == 1)];
        task(proc, 901, 901, 1, state, 10, &THROTTLED);
        task(proc, 902, 902, 1, 'S', 10, &HEALTHY);
    });
    assert_eq!(first, BTreeMap::from([(8, 10), (900, 10), (901, 10)]));
}

/// Makes a task of the files of a case from the field.
fn task_of_case(proc: &Path, stat: &str, stack: &str) {
    let process = proc.join(stat.split(' ').next().unwrap());
    let task = process.join("task").join(process.file_name().unwrap());
    fs::create_dir_all(&task).unwrap();
    fs::write(task.join("stat"), stat).unwrap();
    fs::write(task.join("stack"), stack).unwrap();
    fs::write(process.join("stat"), stat).unwrap();
}

/// Case B01: 900 sleeps, 901 is blocked, and 902 alternates.
#[test]
fn a_throttled_task_from_the_field_is_found() {
    let stats = include_str!("../../../tests/data/cases/B01/stats");
    let stack = include_str!("../../../tests/data/cases/B01/stack");
    let first = first_stuck(12, STALL, |proc, second| {
        throttled(proc, None);
        stats
            .lines()
            .for_each(|stat| task_of_case(proc, stat, stack));
        let alternating = stats.lines().nth(usize::from(second % 2 == 0)).unwrap();
        let (_, rest) = alternating.split_once(' ').unwrap();
        task_of_case(proc, &format!("902 {rest}"), stack);
    });
    for tid in [900, 901, 902] {
        assert_eq!(first.get(&tid), Some(&10), "{tid}");
    }
}

/// Case B02: it is starved at each of the scans, blocked or running by chance. Of the first one it is
/// not known what it does: it runs.
#[test]
fn a_task_from_the_field_that_runs_and_waits_is_found() {
    let stats = include_str!("../../../tests/data/cases/B02/stats");
    let stack = include_str!("../../../tests/data/cases/B02/stack");
    let mut stats = stats.lines();
    let first = first_stuck(16, STALL, |proc, _| {
        throttled(proc, None);
        task_of_case(proc, stats.next().unwrap(), stack);
    });
    assert_eq!(first.get(&399), Some(&11));
}

/// Where the kernel counts throttled tasks, the stacks of sleepers are read only if it has.
#[test]
fn sleepers_are_looked_at_while_tasks_are_throttled() {
    let first = first_stuck(16, STALL, |proc, second| {
        throttled(proc, Some(u64::from(second >= 4)));
        task(proc, 900, 900, 1, 'S', 10, &THROTTLED);
    });
    assert_eq!(first, BTreeMap::from([(8, 10), (900, 14)]));
}

#[test]
fn a_task_that_does_something_else_is_cleared() {
    let first = first_stuck(24, STALL, |proc, second| {
        throttled(proc, Some(second + 1));
        let frames: &[&str] = if second == 5 { &HEALTHY } else { &THROTTLED };
        task(proc, 900, 900, 1, 'S', 10, frames);
        // Ended, and its number used again.
        task(proc, 901, 901, 1, 'D', 10, &THROTTLED);
        if second == 5 {
            fs::remove_dir_all(proc.join("901")).unwrap();
        }
    });
    assert_eq!(first, BTreeMap::from([(8, 10), (900, 16), (901, 16)]));
}

/// Its files cannot be opened, or a reader hangs at it: that decides nothing.
#[test]
fn a_task_whose_files_cannot_be_read_is_not_cleared() {
    let proc = tree();
    let mut scanner = scanner(proc.path());
    let tracked = [TaskKey {
        pid: 7,
        tid: 8,
        start: 9,
    }];
    let verdict = |scanner: &mut Scanner| {
        let seen = scanner.scan_all(now(), &tracked);
        let mut of_task = seen.iter().filter(|seen| seen.key == tracked[0]);
        let verdict = of_task.next().map(|seen| seen.verdict);
        assert!(of_task.next().is_none(), "once");
        verdict
    };
    assert_eq!(verdict(&mut scanner), Some(StackVerdict::Starved));
    let stack = proc.path().join("7/task/8/stack");
    fs::rename(&stack, proc.path().join("kept")).unwrap();
    // Reading a directory is an error that says nothing of the task.
    fs::create_dir(&stack).unwrap();
    assert_eq!(verdict(&mut scanner), Some(StackVerdict::Unseen));
    fs::remove_dir(&stack).unwrap();
    assert_eq!(verdict(&mut scanner), None, "it has ended");
    fs::rename(proc.path().join("kept"), &stack).unwrap();
    scanner.skip.push(8);
    assert_eq!(verdict(&mut scanner), Some(StackVerdict::Unseen));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// Retries spend little time between their sleeps.
    #[test]
    fn a_starved_task_that_runs_and_sleeps_is_found(
        states in proptest::collection::vec(proptest::sample::select(vec!['D', 'R', 'S']), 24),
        ticks in 0_u32..60,
    ) {
        let first = first_stuck(24, STALL, |proc, second| {
            throttled(proc, None);
            let spent = ticks * u32::try_from(second).unwrap();
            task(proc, 399, 399, 1, states[usize::try_from(second).unwrap()], spent, &THROTTLED);
        });
        // One that runs is known by the time that it spends in the kernel: from the second scan
        // on, and if there is any.
        let sees = |(second, state): (usize, &char)| match state {
            'R' => second > 0 && ticks > 0,
            _ => true,
        };
        let found = states.iter().enumerate().position(sees);
        let expected = found.map(|found| found as u64 + 10).filter(|at| *at < 24);
        prop_assert_eq!(first.get(&399).copied(), expected);
    }
}
