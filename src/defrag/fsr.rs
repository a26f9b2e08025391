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
    self, Controls, Event, Presence, Progress, Request, count, failed, lock_filesystem, monotonic,
};
use super::gate::Gate;
use super::guard::{self, Checked, Target};
use super::messages::{self, Messages};
use super::pressure::Gauge;
use super::refusal::{Halt, Refusal};
use super::run::{Input, Machine, State};
use super::{Host, leftovers};
use crate::model::{
    Account, Borders, Engine, ExtentCount, RunForecast, RunOutcome, RunReport, Stop,
};
use crate::probe::reason;
pub(super) use process::program;
use process::{End, XfsFsr};

/// Maximum time without progress. The final swap moves nothing that /proc/PID/io shows, and takes
/// minutes with millions of extents and reverse mapping.
const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_millis(20);
const ENDING_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum length of a quoted line, in characters.
const LONGEST_QUOTE: usize = 300;

/// Checks the guards as [`run`] does. Returns the extents and a forecast, or the first refusal.
pub fn dry_run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
) -> Result<(ExtentCount, RunForecast), Halt> {
    program().ok_or(Refusal::NoEngine)?;
    let checked = clear(request, host, orders, &mut |_| {})?.checked;
    let forecast = RunForecast::Copy {
        copies: checked.allocated,
        stall: checked.stall,
    };
    Ok((checked.extents, forecast))
}

/// Defragments one image. `orders` is called about fifty times a second and returns the reason to
/// stop; `watch` receives the events. If the calling thread ends, the kernel kills xfs_fsr.
pub fn run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> RunReport {
    engine::report(Engine::XfsFsr, |report| {
        let program = program().ok_or(Refusal::NoEngine)?;
        let cleared = clear(request, host, orders, watch)?;
        report.from = Some(cleared.checked.extents);
        let Checked {
            extents, allocated, ..
        } = cleared.checked;
        let progress = Progress::new(Engine::XfsFsr, allocated.0, extents);
        watch(Event::Cleared(progress));
        let (target, turn) = (cleared.target, cleared.turn);
        let mut machine = Machine::new(STUCK_TIMEOUT);
        machine.step(monotonic(), Input::Cleared);
        let process = match XfsFsr::start(&program, &target, cleared.gate) {
            Ok(process) => process,
            Err(error) => {
                let what = format!("{} cannot be started", program.display());
                return Ok(failed(&what, &error));
            }
        };
        let mut controls = Controls::new(request, host, &target, cleared.gauge, orders);
        let end = work(
            process,
            &mut machine,
            &mut controls,
            (host, progress),
            watch,
        );
        (report.read, report.written) = end.moved;
        drop(cleared.awake);
        report.held = controls.held();
        if end.status.is_none() {
            // Calls on the file system would hang like xfs_fsr.
            return Ok(judge(&cleared.checked, None, &machine, end, &target.path));
        }
        // Files left by a killed xfs_fsr; the next run would find them as well.
        let _ = leftovers::sweep(target.directory.as_fd(), &host.proc);
        drop(turn);
        let counted = count(&target);
        report.to = counted.as_ref().ok().copied();
        if let Some(to) = report.to.filter(|to| *to < cleared.checked.extents) {
            report.account = Some(Account::of_whole_copy(&cleared.borders, to));
        }
        let outcome = judge(&cleared.checked, report.to, &machine, end, &target.path);
        Ok(as_counted(outcome, counted.err()))
    })
}

fn work(
    mut process: XfsFsr,
    machine: &mut Machine,
    controls: &mut Controls<'_>,
    (host, mut progress): (&Host, Progress),
    watch: &mut dyn FnMut(Event),
) -> End {
    machine.step(monotonic(), Input::Started);
    while machine.state() != State::Ended {
        process.wait(match machine.state() {
            State::Ending => ENDING_INTERVAL,
            _ => INTERVAL,
        });
        for input in process.inputs(controls, host) {
            if input == Input::Stop(Stop::Opened)
                && let Some(blocked) = &process.blocked
            {
                let notice = format!("{blocked} wants to open it: ending the run");
                watch(Event::Notice(notice));
            }
            process.step(machine, monotonic(), input);
        }
        controls.notice().into_iter().for_each(&mut *watch);
        (progress.done, progress.held) = (process.moved.1.0, machine.held_by());
        watch(Event::Progress(progress));
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
    checked: &Checked,
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
        _ if to.is_some_and(|to| to < checked.extents) => return RunOutcome::Improved,
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
        Messages::Busy => RunOutcome::Busy { by: None },
        Messages::NoSpace => RunOutcome::NoSpace,
        Messages::Failed(message) => RunOutcome::Failed {
            reason: format!("xfs_fsr: {}", quoted(&message)),
        },
        _ if code != 0 => failed(format!("xfs_fsr ended with status {code}")),
        Messages::Fine => RunOutcome::Unchanged { message: None },
        Messages::Unknown(message) => RunOutcome::Unchanged {
            message: Some(quoted(&message)),
        },
    }
}

fn quoted(line: &str) -> String {
    line.chars().take(LONGEST_QUOTE).collect()
}

struct Cleared {
    target: Target,
    gate: Gate,
    checked: Checked,
    gauge: Gauge,
    /// Its extents by the border before them.
    borders: Borders,
    turn: File,
    /// While processes wait at the gate, this process must not be stopped.
    awake: Awake,
}

fn clear(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Result<Cleared, Halt> {
    let target = guard::open(request.path, host)?;
    let turn = lock_filesystem(&target)?;
    let swept = leftovers::sweep(target.directory.as_fd(), &host.proc)?;
    if swept > 0 {
        watch(Event::Notice(format!(
            "removed {swept} temporary files (.fsrPID) of an xfs_fsr that was killed"
        )));
    }
    guard::check_quick(&target, request.limits, host)?;
    let mut gauge = engine::gauge(&target, request, host)?;
    let no_gate = |error: io::Error| Refusal::NoGate(reason(&error));
    let awake = Awake::start();
    let mut gate = Gate::raise(&target.file, &host.proc).map_err(no_gate)?;
    guard::check_unused(&target, &mut gate, host)?;
    guard::check_settled(&target, &mut gate)?;
    let mut presence = Presence::new(&target, host);
    let mut stop = || orders().or_else(|| presence.is_gone().then_some(Stop::Gone));
    let borders = guard::check_map(&target, count(&target)?, &mut gate, &mut stop)?;
    // Checked again behind the gate: before it was raised, everything could change.
    let checked = guard::check_quick(&target, request.limits, host)?;
    guard::recheck_pressure(&mut gauge, request.limits.max_io_pressure, host)?;
    Ok(Cleared {
        target,
        gate,
        checked,
        gauge,
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
        let mut machine = Machine::new(STUCK_TIMEOUT);
        machine.step(Duration::ZERO, Input::Cleared);
        machine.step(Duration::ZERO, Input::Started);
        if let Some(stop) = stop {
            machine.step(Duration::ZERO, Input::Stop(stop));
        }
        let end = End {
            status: Some(ExitStatus::from_raw(status)),
            printed: said.to_owned(),
            blocked: None,
            moved: (Bytes(0), Bytes(0)),
        };
        let checked = Checked {
            extents: ExtentCount(from),
            allocated: Bytes(0),
            stall: Duration::ZERO,
        };
        judge(
            &checked,
            Some(ExtentCount(to)),
            &machine,
            end,
            Path::new(path),
        )
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
