//! Defragments an image under a running VM, segment by segment: each one is cloned, unshared and
//! released, so that the kernel itself copies it to new blocks (see [`mover`](super::mover)).
//!
//! ```text
//! guards ─► survey of the map ─► regions by gain ─► segments ─► count ─► outcome
//!                                                    ▲  │
//!                    governor: how much, how long ───┘  └── run (pure): holds, stops
//! ```
//!
//! - While the image is in use there is as much rest as work; while nobody has it open, none.
//! - Between two segments everything is checked that can end or hold a run. So it stops within one
//!   segment, and a later run begins anew: the survey skips what is done.
//! - Large new extents come from a hint for copy on write of the size of a region: the first segment
//!   that is unshared reserves room for its whole region, and the following ones go there. It is set
//!   only for regions of which nearly everything is moved, because what is reserved and not used is
//!   given back only later. Elsewhere a segment becomes one extent.
//! - Each region is done once. What a guest fragments again meanwhile is left to the next run.
//! - Disk and processor priority are the usual ones: whoever waits for a lock that we hold would wait
//!   with us.

mod report;
mod session;

use std::ops::ControlFlow;
use std::path::Path;

use super::Host;
use super::engine::{self, Controls, Request, failed, lock_filesystem};
use super::guard::{self, Refusal, Target};
use super::hint;
use super::segments::{Plan, Survey};
use crate::model::{Account, Bytes, Engine, ExtentCount, RunOutcome, RunReport, Stop};
use crate::probe::extents::{MapReader, ReadPace};
use crate::probe::reason;
use crate::sys::locks;
pub use report::{Event, Report, Summary, Work};
use session::Session;

/// Checks the guards and surveys the map, as [`run`] does, and changes nothing.
///
/// # Errors
/// The first guard that refuses.
pub fn dry_run(request: &Request<'_>, host: &Host) -> Result<Summary, Refusal> {
    let target = guard::open(request.path, host)?;
    let extents = guard::check_online(&target, request.limits, host)?;
    guard::check_gain(&target, extents)?;
    engine::gauge(&target, request, host)?;
    let plan = survey(&target, &mut || false)?;
    Ok(summary(&worthwhile(plan)?))
}

/// Defragments one image. `orders` is called before each segment, and in rests all the time, and
/// returns why to stop; `watch` receives the events.
pub fn run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Report {
    restore_hints(&host.hints, watch);
    let mut work = Work::default();
    let run = engine::report(Engine::Online, |report| {
        attempt(request, host, report, &mut work, orders, watch)
    });
    Report { run, work }
}

/// Restores the hints that killed runs have left.
pub fn restore_hints(directory: &Path, watch: &mut dyn FnMut(Event)) {
    let (restored, failed) = hint::restore_all(directory);
    for path in restored {
        watch(Event::HintRestored(path));
    }
    for (path, error) in failed {
        watch(Event::HintLost(path, reason(&error)));
    }
}

fn attempt(
    request: &Request<'_>,
    host: &Host,
    report: &mut RunReport,
    work: &mut Work,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Result<RunOutcome, Refusal> {
    let target = guard::open(request.path, host)?;
    let _turn = lock_filesystem(&target)?;
    let from = guard::check_online(&target, request.limits, host)?;
    guard::check_gain(&target, from)?;
    let gauge = engine::gauge(&target, request, host)?;
    let in_use = locks::in_use(&target.file)?;
    let in_use = in_use.open != Some(false) || in_use.qemu.any();
    let mut controls = Controls::new(request, host, &target, gauge, orders);
    let mut stopped = None;
    let plan = survey(&target, &mut || {
        stopped = stopped.or_else(|| controls.stops().first().copied());
        stopped.is_some()
    });
    if let Some(why) = stopped {
        return Ok(RunOutcome::Stopped { why });
    }
    let plan = worthwhile(plan?)?;
    report.from = Some(from);
    work.shared = plan.shared;
    watch(Event::Cleared(summary(&plan)));
    let session = Session::begin(request, host, &target, controls, watch);
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return Ok(failed("it cannot be begun", &error)),
    };
    session.in_use = in_use;
    let end = session.work_through(&plan, work);
    let in_use = session.in_use;
    let outcome = session.end(report, plan.shared.0 > 0, end);
    report.account = report.to.map(|to| account(&plan, work.joined, to, in_use));
    Ok(outcome)
}

/// What became of the extents of the plan, if `to` are left.
fn account(plan: &Plan, joined: ExtentCount, to: ExtentCount, in_use: bool) -> Account {
    let joined = match in_use {
        true => joined,
        // Nobody split any, so those that are left were not joined.
        false => joined.min(plan.extents.saturating_sub(to)),
    };
    Account::new(&plan.borders, plan.gain, joined, to)
}

fn summary(plan: &Plan) -> Summary {
    Summary {
        extents: plan.extents,
        gain: plan.gain,
        shared: plan.shared,
    }
}

fn worthwhile(plan: Plan) -> Result<Plan, Refusal> {
    match plan.regions.is_empty() {
        true if plan.shared.0 > 0 => Err(Refusal::Shared),
        true => Err(Refusal::NearIdeal(plan.extents)),
        false => Ok(plan),
    }
}

/// Reads the map once, in chunks, with as much rest as work, until `stop` returns true.
fn survey(target: &Target, stop: &mut dyn FnMut() -> bool) -> Result<Plan, Refusal> {
    let mut survey = Survey::new(Bytes(target.file.metadata()?.len()));
    let enough = std::cell::Cell::new(false);
    let visit = |extent| {
        survey.push(extent);
        match enough.get() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let mut beat = || enough.set(stop());
    MapReader::new().read(&target.file, Bytes(0), ReadPace::GENTLE, visit, &mut beat)?;
    Ok(survey.finish())
}
