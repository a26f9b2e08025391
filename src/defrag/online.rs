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

use super::engine::{Controls, Event, Progress, failed, lock_filesystem};
use super::guard;
use super::segments::{MovePlan, Survey};
use crate::model::{
    Bytes, Engine, ReasonCode, Refusal, RunForecast, RunOutcome, RunReport, SegmentWork, Stalls,
};
use crate::probe::extents::{MapReader, ReadPace};
use crate::sys::locks;
use session::Session;

/// Defragments one image.
pub(super) fn run(
    controls: &mut Controls<'_, '_>,
    report: &mut RunReport,
) -> Result<RunOutcome, RunOutcome> {
    let target = controls.target;
    let (host, limits) = (controls.request.host, controls.request.limits);
    let mut _turn = None;
    if !limits.dry_run {
        report.segments = Some(SegmentWork::default());
        report.stalls = Some(Stalls::default());
        _turn = Some(lock_filesystem(target)?);
    }
    let extents = guard::check_online(target, limits, host)?;
    guard::check_gain(target, extents)?;
    controls.check_pressure(false)?;
    let in_use = locks::in_use(&target.file)?;
    let in_use = in_use.open != Some(false) || in_use.qemu.any();
    let plan = survey(controls)?;
    report.from = Some(plan.extents);
    if limits.dry_run {
        let (gain, shared) = (plan.gain, plan.shared);
        let forecast = RunForecast::Segments { gain, shared };
        return Ok(RunOutcome::WouldRun { forecast });
    }
    let progress = Progress::new(Engine::Online, plan.gain.0, plan.extents);
    controls.send(Event::Cleared(progress));
    let mut session = match Session::begin(controls, &plan, progress, in_use) {
        Ok(session) => session,
        Err(error) => return Ok(failed("it cannot be begun", &error)),
    };
    let end = session.work_through();
    Ok(session.end(report, end))
}

/// Reads the map once, in chunks, resting as long as working, until the run is stopped.
fn survey(controls: &mut Controls<'_, '_>) -> Result<MovePlan, RunOutcome> {
    let file = &controls.target.file;
    let mut survey = Survey::new(Bytes(file.metadata()?.len()));
    let stopped = Cell::new(None);
    let visit = |extent| {
        survey.push(extent);
        match stopped.get() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    };
    let mut beat = || stopped.set(stopped.get().or_else(|| controls.stop()));
    MapReader::default().read(file, Bytes(0), ReadPace::GENTLE, visit, &mut beat)?;
    if let Some(why) = stopped.get() {
        return Err(RunOutcome::Stopped { why });
    }
    let plan = survey.finish();
    match plan.regions.is_empty() {
        true if plan.shared.0 > 0 => Err(Refusal::from(ReasonCode::SharesBlocks).into()),
        true => Err(guard::near_ideal(plan.extents).into()),
        false => Ok(plan),
    }
}
