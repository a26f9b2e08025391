//! Defragments an image under a running VM, segment by segment: each is cloned, unshared and
//! released, so that the kernel itself copies it to new blocks (see [`mover`](super::mover)).
//!
//! ```text
//! guards ─► survey of the map ─► regions by gain ─► segments ─► count ─► outcome
//!                                                    ▲  │
//!                    governor: how much, how long ───┘  └── run (pure): holds, stops
//! ```
//!
//! - While the image is in use, rests are as long as the work; while it is not open, there are
//!   none. After a slow call they are longer in both cases.
//! - Everything that can end or hold a run is checked between two segments. So it stops within one
//!   segment; a later run begins anew, and its survey skips what is done.
//! - Large new extents come from a copy-on-write hint of the size of a region: the first unshared
//!   segment reserves space for its whole region, and the following ones go there. It is set only
//!   for regions that are moved nearly completely, because unused reservations are returned only
//!   later. Elsewhere a segment becomes one extent.
//! - Each region is done once. What a guest fragments again meanwhile is left to the next run.
//! - Disk and CPU priority are normal: lower ones would also delay processes waiting for our locks.

mod session;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;

use super::Host;
use super::engine::{self, Controls, Event, Progress, Request, failed, lock_filesystem};
use super::guard::{self, Target};
use super::hint;
use super::pressure::Gauge;
use super::refusal::{Halt, Refusal};
use super::segments::{Plan, Survey};
use crate::model::path::shown;
use crate::model::{
    Account, Bytes, Engine, ExtentCount, RunForecast, RunOutcome, RunReport, SegmentWork, Stop,
};
use crate::probe::extents::{MapReader, ReadPace};
use crate::probe::reason;
use crate::sys::locks;
use session::{Session, Work};

/// Checks the guards and surveys the map as [`run`] does. Returns the extents and a forecast.
pub fn dry_run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
) -> Result<(ExtentCount, RunForecast), Halt> {
    let target = guard::open(request.path, host)?;
    let gauge = check(request, host, &target)?;
    let mut controls = Controls::new(request, host, &target, gauge, orders);
    let Plan {
        extents,
        gain,
        shared,
        ..
    } = survey(&target, &mut controls)?;
    Ok((extents, RunForecast::Segments { gain, shared }))
}

/// Checks everything that does not need the map.
fn check(request: &Request<'_>, host: &Host, target: &Target) -> Result<Gauge, Refusal> {
    let extents = guard::check_online(target, request.limits, host)?;
    guard::check_gain(target, extents)?;
    engine::gauge(target, request, host)
}

/// Defragments one image. `orders` is called before each segment and repeatedly during rests, and
/// returns the reason to stop; `watch` receives the events.
pub fn run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> RunReport {
    restore_hints(&host.hints, watch);
    engine::report(Engine::Online, |report| {
        attempt(request, host, report, orders, watch)
    })
}

/// Restores the hints left by killed runs. Records of hints that cannot be restored are kept.
pub fn restore_hints(directory: &Path, watch: &mut dyn FnMut(Event)) {
    let (restored, failed) = hint::restore_all(directory);
    for path in restored {
        let path = shown(&path);
        watch(Event::Notice(format!(
            "restored the extent-size hint of {path}, whose run was killed"
        )));
    }
    for (path, error) in failed {
        let (path, why) = (shown(&path), reason(&error));
        watch(Event::Notice(format!(
            "the extent-size hint noted in {path} cannot be restored: {why}"
        )));
    }
}

fn attempt(
    request: &Request<'_>,
    host: &Host,
    report: &mut RunReport,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Result<RunOutcome, Halt> {
    let mut work = Work::default();
    report.segments = Some(SegmentWork::default());
    let target = guard::open(request.path, host)?;
    let _turn = lock_filesystem(&target)?;
    let gauge = check(request, host, &target)?;
    let in_use = locks::in_use(&target.file)?;
    let in_use = in_use.open != Some(false) || in_use.qemu.any();
    let mut controls = Controls::new(request, host, &target, gauge, orders);
    let plan = survey(&target, &mut controls)?;
    report.from = Some(plan.extents);
    let progress = Progress::new(Engine::Online, plan.gain.0, plan.extents);
    watch(Event::Cleared(progress));
    let session = Session::begin(request, host, &target, controls, (progress, watch));
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return Ok(failed("it cannot be begun", &error)),
    };
    session.in_use = in_use;
    let end = session.work_through(&plan, &mut work);
    let in_use = session.in_use;
    let outcome = session.end(report, plan.shared.0 > 0, end);
    report.segments = Some(SegmentWork {
        segments: work.segments,
        busy: work.busy,
        worst_call: work.calls.worst(),
        median_call: work.calls.median(),
        shared: plan.shared,
    });
    report.account = report.to.map(|to| account(&plan, work.joined, to, in_use));
    Ok(outcome)
}

/// What became of the extents of the plan, if `to` are left.
fn account(plan: &Plan, joined: ExtentCount, to: ExtentCount, in_use: bool) -> Account {
    let joined = match in_use {
        true => joined,
        // No process split any, so those that are left were not joined.
        false => joined.min(plan.extents.saturating_sub(to)),
    };
    Account::new(&plan.borders, plan.gain, joined, to)
}

/// Reads the map once, in chunks, resting as long as working, until the run is stopped.
fn survey(target: &Target, controls: &mut Controls<'_>) -> Result<Plan, Halt> {
    let mut survey = Survey::new(Bytes(target.file.metadata()?.len()));
    let stopped = Cell::new(None);
    let visit = |extent| {
        survey.push(extent);
        match stopped.get() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    };
    let mut beat = || {
        let stop = || controls.stops().first().copied();
        stopped.set(stopped.get().or_else(stop));
    };
    MapReader::new().read(&target.file, Bytes(0), ReadPace::GENTLE, visit, &mut beat)?;
    if let Some(why) = stopped.get() {
        return Err(Halt::Stopped(why));
    }
    let plan = survey.finish();
    match plan.regions.is_empty() {
        true if plan.shared.0 > 0 => Err(Refusal::Shared.into()),
        true => Err(Refusal::NearIdeal(plan.extents).into()),
        false => Ok(plan),
    }
}
