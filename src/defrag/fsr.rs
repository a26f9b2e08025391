//! Runs xfs_fsr on one image, behind the guards and the gate, and ends it.
//!
//! - Its argument is the absolute, canonical path of a regular file. Given a directory or a mount
//!   point, it would defragment the whole file system.
//! - Its standard input is a pseudo-terminal: with anything else, such as /dev/null if there is
//!   none, it writes to syslog instead of standard output (`gflag = !isatty(0)`, fsr/xfs_fsr.c).
//! - It runs in disk class idle, at nice 19, in its own process group. Bandwidth and pressure are
//!   limited by SIGSTOP and SIGCONT, which take effect between two of its system calls, so never
//!   while it holds a lock. io.max is smoother, but needs a delegated cgroup and the disk number.
//! - Progress is read from /proc/PID/io. The image itself is not accessed while xfs_fsr works:
//!   during its final swap it holds the file's locks, and the call would hang.
//! - Time limits are ours; its own (`-t`) has no effect on single files.

mod process;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use super::awake::Awake;
use super::engine::{
    Controls, Event, Progress, count, failed, lock_filesystem, monotonic, raise_gate,
};
use super::gate::Gate;
use super::guard::{self, Checked};
use super::program::installed;
use super::run::{Input, Machine, RunState};
use super::{leftovers, messages};
use crate::model::{
    Account, Borders, Engine, ExtentCount, ReasonCode, Refusal, RunForecast, RunOutcome, RunReport,
    Stop,
};
use process::{End, XfsFsr};

/// Maximum time without progress. The final swap moves nothing that /proc/PID/io shows, and takes
/// minutes with millions of extents and reverse mapping.
const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_millis(20);
const ENDING_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum length of a quoted line, in characters.
const LONGEST_QUOTE: usize = 300;

/// Defragments one image. If the calling thread ends, the kernel kills xfs_fsr.
pub(super) fn run(
    controls: &mut Controls<'_, '_>,
    report: &mut RunReport,
) -> Result<RunOutcome, RunOutcome> {
    let program = installed("xfs_fsr").ok_or(Refusal::from(ReasonCode::NoXfsFsr))?;
    let target = controls.target;
    let cleared = clear(controls)?;
    let checked = cleared.checked;
    let extents = checked.extents;
    report.from = Some(extents);
    if controls.request.limits.dry_run {
        let (copies, stall) = (checked.allocated, checked.stall);
        let forecast = RunForecast::Copy { copies, stall };
        return Ok(RunOutcome::WouldRun { forecast });
    }
    let progress = Progress::new(Engine::XfsFsr, checked.allocated.0, extents);
    controls.send(Event::Cleared(progress));
    let process = match XfsFsr::start(&program, target, cleared.gate) {
        Ok(process) => process,
        Err(error) => {
            let what = format!("{} cannot be started", program.display());
            return Ok(failed(&what, &error));
        }
    };
    let mut machine = Machine::new(monotonic(), STUCK_TIMEOUT);
    let end = work(process, &mut machine, controls, progress);
    (report.read, report.written) = end.moved;
    drop(cleared.awake);
    report.held = controls.held();
    if end.status.is_none() {
        // Calls on the file system would hang like xfs_fsr.
        return Ok(judge(extents, None, &machine, end, &target.path));
    }
    // Files left by a killed xfs_fsr; the next run would find them as well.
    let _ = leftovers::sweep(target.directory.as_fd(), &controls.request.host.proc);
    drop(cleared.turn);
    let counted = count(target);
    report.to = counted.as_ref().ok().copied();
    if let Some(to) = report.to.filter(|to| *to < extents) {
        report.account = Some(Account::of_whole_copy(&cleared.borders, to));
    }
    let outcome = judge(extents, report.to, &machine, end, &target.path);
    Ok(as_counted(outcome, counted.err()))
}

fn work(
    mut process: XfsFsr,
    machine: &mut Machine,
    controls: &mut Controls<'_, '_>,
    mut progress: Progress,
) -> End {
    while machine.state() != RunState::Ended {
        process.wait(match machine.state() {
            RunState::Ending => ENDING_INTERVAL,
            _ => INTERVAL,
        });
        for input in process.inputs(controls) {
            if input == Input::Stop(Stop::Opened)
                && let Some(blocked) = &process.blocked
            {
                let notice = format!("{blocked} wants to open it: ending the run");
                controls.send(Event::Notice(notice));
            }
            process.step(machine, monotonic(), input);
        }
        (progress.done, progress.held) = (process.moved.1.0, machine.held_by());
        controls.send(Event::Progress(progress));
        controls.note_held(progress.held.is_some());
    }
    process.end()
}

/// If the extents cannot be counted afterwards, the result of an apparently unchanged image is
/// unknown. It is a failure, not a refusal: xfs_fsr has run.
fn as_counted(outcome: RunOutcome, error: Option<io::Error>) -> RunOutcome {
    match (outcome, error) {
        (RunOutcome::Unchanged { .. }, Some(error)) => {
            let what = "xfs_fsr has run, but the extents cannot be counted after it";
            failed(what, &error)
        }
        (outcome, _) => outcome,
    }
}

/// The outcome: first by the extent counts, then by our own actions, then by the [`messages`], and
/// last by the exit status, which is 0 after most refusals.
fn judge(
    from: ExtentCount,
    to: Option<ExtentCount>,
    machine: &Machine,
    end: End,
    path: &Path,
) -> RunOutcome {
    let failed = |reason: String| {
        let last = end.printed.trim().lines().last().unwrap_or_default();
        let colon = if last.is_empty() { "" } else { ": " };
        let reason = format!("{reason}{colon}{}", quoted(last));
        RunOutcome::Failed { reason }
    };
    let status = match end.status {
        // It may have finished just before our signal.
        _ if to.is_some_and(|to| to < from) => return RunOutcome::Improved,
        None => return failed("xfs_fsr hangs in the kernel and was left behind".to_owned()),
        Some(status) => status,
    };
    match machine.stopped_by() {
        Some(Stop::Opened) => return RunOutcome::Busy { by: end.blocked },
        Some(stop @ (Stop::Stuck | Stop::Astray)) => {
            return failed(format!("xfs_fsr was ended, because {stop}"));
        }
        Some(why) => return RunOutcome::Stopped { why },
        None => {}
    }
    if let Some(signal) = status.signal() {
        return failed(format!("xfs_fsr was ended by signal {signal}"));
    }
    let code = status.code().unwrap_or(-1);
    match messages::interpret(&end.printed, &messages::of_path(path)) {
        RunOutcome::Unchanged { .. } if code != 0 => {
            failed(format!("xfs_fsr ended with status {code}"))
        }
        RunOutcome::Unchanged { message } => RunOutcome::Unchanged {
            message: message.map(|message| quoted(&message)),
        },
        RunOutcome::Failed { reason } => RunOutcome::Failed {
            reason: format!("xfs_fsr: {}", quoted(&reason)),
        },
        outcome => outcome,
    }
}

fn quoted(line: &str) -> String {
    line.chars().take(LONGEST_QUOTE).collect()
}

struct Cleared {
    gate: Gate,
    checked: Checked,
    /// Its extents by the border before them.
    borders: Borders,
    turn: File,
    /// While processes wait at the gate, this process must not be stopped.
    awake: Awake,
}

fn clear(controls: &mut Controls<'_, '_>) -> Result<Cleared, RunOutcome> {
    let target = controls.target;
    let (host, limits) = (controls.request.host, controls.request.limits);
    let turn = lock_filesystem(target)?;
    let swept = leftovers::sweep(target.directory.as_fd(), &host.proc)?;
    if swept > 0 {
        controls.send(Event::Notice(format!(
            "removed {swept} temporary files (.fsrPID) of an xfs_fsr that was killed"
        )));
    }
    let checked = guard::check_quick(target, limits, host)?;
    // Before the gate is raised: nobody waits for it.
    guard::check_free_extents(target, &checked, &mut || controls.stop())?;
    controls.check_pressure(false)?;
    let awake = Awake::start();
    let mut gate = raise_gate(&target.file, host)?;
    guard::check_unused(target, &mut gate, host)?;
    guard::check_settled(target, &mut gate)?;
    let borders = guard::check_map(target, count(target)?, &mut gate, &mut || controls.stop())?;
    // Checked again behind the gate: before it was raised, everything could change.
    let checked = guard::check_quick(target, limits, host)?;
    controls.check_pressure(true)?;
    Ok(Cleared {
        gate,
        checked,
        borders,
        turn,
        awake,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Bytes;
    use std::process::ExitStatus;

    fn judged(from: u64, to: u64, status: i32, said: &str, stop: Option<Stop>) -> RunOutcome {
        judged_of("/srv/a", from, to, status, said, stop)
    }

    fn judged_of(
        path: &str,
        from: u64,
        to: u64,
        status: i32,
        said: &str,
        stop: Option<Stop>,
    ) -> RunOutcome {
        let mut machine = Machine::new(Duration::ZERO, STUCK_TIMEOUT);
        if let Some(stop) = stop {
            machine.step(Duration::ZERO, Input::Stop(stop));
        }
        let end = End {
            status: Some(ExitStatus::from_raw(status)),
            printed: said.to_owned(),
            blocked: None,
            moved: (Bytes(0), Bytes(0)),
        };
        let (from, to) = (ExtentCount(from), Some(ExtentCount(to)));
        judge(from, to, &machine, end, Path::new(path))
    }

    #[test]
    fn counts_are_believed_and_not_words() {
        let done = "extents before:7 after:1 DONE /srv/a";
        let unchanged = |message: Option<&str>| RunOutcome::Unchanged {
            message: message.map(str::to_owned),
        };
        assert_eq!(judged(7, 7, 0, done, None), unchanged(None));
        assert_eq!(judged(7, 7, 0, "", None), unchanged(Some("")));
        let news = "/srv/a: deferred";
        assert_eq!(judged(7, 7, 0, news, None), unchanged(Some(news)));
        assert_eq!(
            judged(7, 1, 9, "", Some(Stop::Opened)),
            RunOutcome::Improved
        );
        let busy = judged(7, 7, 15, "", Some(Stop::Opened));
        assert_eq!(busy, RunOutcome::Busy { by: None });
        let why = Stop::WindowClosed;
        assert_eq!(judged(7, 8, 15, "", Some(why)), RunOutcome::Stopped { why });
        let space = "insufficient freespace for: /srv/a: size=1: ignoring";
        assert_eq!(judged(7, 7, 0, space, None), RunOutcome::NoSpace);
        let busy = "/srv/a: file busy\n";
        assert_eq!(judged(7, 7, 0, busy, None), RunOutcome::Busy { by: None });
    }

    #[test]
    fn a_run_that_cannot_be_counted_has_failed_and_is_not_refused() {
        let error = || Some(io::Error::from_raw_os_error(libc::EIO));
        let unchanged = RunOutcome::Unchanged { message: None };
        let reason =
            "xfs_fsr has run, but the extents cannot be counted after it: Input/output error";
        let failed = RunOutcome::Failed {
            reason: reason.to_owned(),
        };
        assert_eq!(as_counted(unchanged.clone(), error()), failed);
        assert_eq!(as_counted(unchanged.clone(), None), unchanged);
        let why = Stop::WindowClosed;
        let stopped = RunOutcome::Stopped { why };
        assert_eq!(as_counted(stopped.clone(), error()), stopped);
    }

    /// What xfs_fsr printed at hosts of others; each time it ended with 0 and changed nothing.
    #[test]
    fn refusals_of_the_field() {
        let judged = |printed| judged_of("/data/a.raw", 2047, 2047, 0, printed, None);
        let busy = judged(include_str!("../../tests/data/xfs_fsr/D01-said1.txt"));
        assert_eq!(busy, RunOutcome::Busy { by: None });
        let space = judged(include_str!("../../tests/data/xfs_fsr/D01-said2.txt"));
        assert_eq!(space, RunOutcome::NoSpace);
        let failed = judged(include_str!("../../tests/data/xfs_fsr/D02-said1.txt"));
        let reason = "xfs_fsr: XFS_IOC_SWAPEXT failed: /data/a.raw: Invalid argument".to_owned();
        assert_eq!(failed, RunOutcome::Failed { reason });
        let space = judged(include_str!("../../tests/data/xfs_fsr/D02-said2.txt"));
        assert_eq!(space, RunOutcome::NoSpace);
    }

    #[test]
    fn what_went_wrong_is_said() {
        let reason = |status, said, stop| match judged(7, 7, status, said, stop) {
            RunOutcome::Failed { reason } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            reason(0x100, "usage:\nno\n", None),
            "xfs_fsr ended with status 1: no"
        );
        assert_eq!(reason(9, "", None), "xfs_fsr was ended by signal 9");
        assert_eq!(
            reason(15, "", Some(Stop::Stuck)),
            "xfs_fsr was ended, because it did nothing for too long"
        );
    }
}
