//! An online run in progress: region by region, segment by segment.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::defrag::engine::{Controls, Event, Progress, count, failed, monotonic};
use crate::defrag::governor::{CallTimes, Governor};
use crate::defrag::guard;
use crate::defrag::hint::Hint;
use crate::defrag::holders;
use crate::defrag::mover::Mover;
use crate::defrag::run::{Input, Machine, RunState};
use crate::defrag::segments::{self, Before, MovePlan, Place, Region, Segment};
use crate::model::{Account, Bytes, Extent, ExtentCount, RunOutcome, RunReport, SegmentWork, Stop};
use crate::sys::geometry;

const INTERVAL: Duration = Duration::from_millis(20);
const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
const USERS_INTERVAL: Duration = Duration::from_secs(2);
const SPACE_INTERVAL: Duration = Duration::from_millis(50);
/// The hint if the image shares blocks with another file: each guest write there reserves so much.
const MODEST: Bytes = Bytes(1 << 20);

/// Why the work ended early.
pub(super) enum End {
    Stopped,
    /// Free space reached its limit, or there was none.
    NoSpace,
    Failed(&'static str, io::Error),
}

/// A run in progress.
pub(super) struct Session<'c, 't, 'r> {
    controls: &'c mut Controls<'t, 'r>,
    plan: &'c MovePlan,
    progress: Progress,
    mover: Mover,
    hint: Hint,
    governor: Governor,
    machine: Machine,
    moved: Bytes,
    /// Segments that were moved, and the time spent on them.
    work: SegmentWork,
    /// The calls that locked the image: a clone and an unshare per segment.
    calls: CallTimes,
    /// Extents removed, by the survey's count.
    joined: ExtentCount,
    /// Whether any process has, or had during the run, the image open.
    in_use: bool,
    users_at: Instant,
    space_at: Option<Instant>,
    largest_hint: Bytes,
}

impl<'c, 't, 'r> Session<'c, 't, 'r> {
    pub(super) fn begin(
        controls: &'c mut Controls<'t, 'r>,
        plan: &'c MovePlan,
        progress: Progress,
        in_use: bool,
    ) -> io::Result<Session<'c, 't, 'r>> {
        let (request, target) = (&controls.request, controls.target);
        let geometry = geometry::geometry(target.file.as_fd())?;
        let block = Bytes(geometry.block_size.into());
        let mover = Mover::new(&target.file, &target.directory, block)?;
        let (path, mount) = (&target.path, &target.mount.point);
        let group = u64::from(geometry.group_blocks).saturating_mul(block.0);
        // The kernel allows half a group; less than a quarter of it is found more easily.
        let largest = Bytes(segments::REGION.min((group / 4).next_power_of_two() / 2));
        let hints = [MODEST.min(largest), largest];
        let hint = Hint::keep(&request.host.hints, path, mount, mover.image(), &hints)?;
        Ok(Session {
            governor: Governor::new(request.limits.stall_target),
            controls,
            plan,
            progress,
            mover,
            hint,
            machine: Machine::new(monotonic(), STUCK_TIMEOUT),
            moved: Bytes(0),
            work: SegmentWork {
                shared: plan.shared,
                ..SegmentWork::default()
            },
            calls: CallTimes::default(),
            joined: ExtentCount(0),
            in_use,
            users_at: Instant::now(),
            space_at: None,
            largest_hint: largest,
        })
    }

    pub(super) fn work_through(&mut self) -> Result<(), End> {
        let mut done = ExtentCount(0);
        for region in &self.plan.regions {
            let size = match (region.dense, self.plan.shared.0 > 0) {
                (true, true) => MODEST.min(self.largest_hint),
                (true, false) => self.largest_hint,
                (false, _) => Bytes(0),
            };
            let cannot_set = |error| End::Failed("the hint for new extents cannot be set", error);
            self.hint.set(size).map_err(cannot_set)?;
            self.work_on(region, done)?;
            done = done.saturating_add(region.gain);
            self.joined = done;
        }
        Ok(())
    }

    /// Moves the segments of a region.
    fn work_on(&mut self, region: &Region, done: ExtentCount) -> Result<(), End> {
        let (mut at, mut before, mut rest) = (region.start, Before::default(), Duration::ZERO);
        let mut gone = ExtentCount(0);
        while at < region.end {
            self.joined = done.saturating_add(gone.min(region.gain));
            self.report_progress();
            self.rest(rest)?;
            let map = self.map(at, region.end, &mut before);
            let (map, known) = map.map_err(|e| End::Failed("its map cannot be read", e))?;
            let Some(segment) = segments::cut(&map, self.governor.cost(), before) else {
                // A single extent at the end of the known map may have a neighbour after it.
                let last = map
                    .last()
                    .filter(|last| last.logical > at && known < region.end);
                at = last.map_or(known, |last| last.logical);
                rest = Duration::ZERO;
                continue;
            };
            match self.move_one(&segment)? {
                Some(after) => rest = after,
                None => break,
            }
            gone = gone.saturating_add(segment.extents);
            at = segment.end();
            before.end = Some(at);
        }
        Ok(())
    }

    /// As [`Mover::map`]. The block before `at` shows where the last segment was moved.
    fn map(
        &mut self,
        at: Bytes,
        end: Bytes,
        before: &mut Before,
    ) -> io::Result<(Vec<Extent>, Bytes)> {
        if before.end != Some(at) {
            return self.mover.map(at, end);
        }
        let last_block = Bytes(at.0.saturating_sub(self.mover.block().0));
        let (mut map, known) = self.mover.map(last_block, end)?;
        if known <= at {
            // The image ends here.
            return self.mover.map(at, end);
        }
        if let Some(first) = map.first_mut().filter(|first| first.logical < at) {
            before.place = Some(Place::of(first));
            let moved = at.0 - first.logical.0;
            first.logical.0 += moved;
            first.physical.0 += moved;
            first.length.0 = first.length.0.saturating_sub(moved);
        }
        map.retain(|extent| extent.length.0 > 0);
        Ok((map, known))
    }

    /// Returns how long to rest; `None` if the image was truncated before the segment's end.
    fn move_one(&mut self, segment: &Segment) -> Result<Option<Duration>, End> {
        let took = match self.mover.move_segment(segment) {
            Ok(took) => took,
            Err(error) => {
                let metadata = self.controls.target.file.metadata();
                let is_shorter = metadata.is_ok_and(|file| file.len() < segment.end().0);
                return match error.raw_os_error() {
                    Some(libc::ENOSPC | libc::EDQUOT) => Err(End::NoSpace),
                    Some(libc::EINVAL) if is_shorter => Ok(None),
                    _ => Err(End::Failed("a segment could not be moved", error)),
                };
            }
        };
        self.governor.took(segment.cost, took.longest());
        self.moved.0 = self.moved.0.saturating_add(segment.length.0);
        self.work.segments += 1;
        self.work.busy += took.busy;
        self.calls.add(took.clone);
        self.calls.add(took.unshare);
        self.machine.step(monotonic(), Input::Moved);
        Ok(Some(self.governor.rest(took.busy, self.in_use)))
    }

    fn report_progress(&mut self) {
        self.progress.done = self.joined.0;
        self.progress.calls = (
            self.work.segments,
            self.calls.stalls().longest,
            self.calls.median(),
        );
        self.progress.held = self.machine.held_by();
        self.controls.send(Event::Progress(self.progress));
    }

    /// Rests, then waits while the run is held.
    fn rest(&mut self, rest: Duration) -> Result<(), End> {
        let until = Instant::now() + rest;
        loop {
            self.check_users();
            // Every byte read is also written.
            let moved = self.moved.saturating_add(self.moved);
            for input in self.controls.inputs(moved).into_iter().chain([Input::Tick]) {
                self.machine.step(monotonic(), input);
            }
            if matches!(self.machine.state(), RunState::Ending | RunState::Ended) {
                return Err(End::Stopped);
            }
            if !self.has_room() {
                return Err(End::NoSpace);
            }
            let held = self.machine.held_by().is_some();
            self.controls.note_held(held);
            let left = until.saturating_duration_since(Instant::now());
            if !held && left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(if held { INTERVAL } else { left.min(INTERVAL) });
        }
    }

    fn check_users(&mut self) {
        if self.users_at.elapsed() >= USERS_INTERVAL {
            self.users_at = Instant::now();
            let (proc, path) = (&self.controls.request.host.proc, &self.controls.target.path);
            self.in_use |= holders::holder_of(proc, path).is_some();
        }
    }

    fn has_room(&mut self) -> bool {
        let is_recent = |at: Instant| at.elapsed() < SPACE_INTERVAL;
        if self.space_at.is_some_and(is_recent) {
            return true;
        }
        self.space_at = Some(Instant::now());
        let keep_free = self.controls.request.limits.keep_free;
        guard::check_room(self.controls.target, keep_free).is_ok()
    }

    /// Restores the hint, releases the anchor and counts the extents.
    pub(super) fn end(self, report: &mut RunReport, end: Result<(), End>) -> RunOutcome {
        let target = self.controls.target;
        drop(self.hint);
        (report.read, report.written) = (self.moved, self.moved);
        report.held = self.controls.held();
        report.stalls = Some(self.calls.stalls());
        report.segments = Some(SegmentWork {
            median_call: self.calls.median(),
            ..self.work
        });
        let extents = count(target).unwrap_or(ExtentCount(u64::MAX));
        self.mover.finish(extents, self.plan.shared.0 > 0);
        let to = count(target);
        report.to = to.as_ref().ok().copied();
        let account = |to| account(self.plan, self.joined, to, self.in_use);
        report.account = report.to.map(account);
        match (end, to) {
            (Err(End::Failed(what, error)), _) => failed(what, &error),
            (_, Err(error)) => failed("its extents cannot be counted", &error),
            (Err(End::NoSpace), _) => RunOutcome::NoSpace,
            (Err(End::Stopped), _) => RunOutcome::Stopped {
                why: self.machine.stopped_by().unwrap_or(Stop::Shutdown),
            },
            (Ok(()), Ok(to)) if to < self.plan.extents => RunOutcome::Improved,
            (Ok(()), Ok(_)) => RunOutcome::Unchanged { message: None },
        }
    }
}

/// What became of the extents of the plan, if `to` are left.
fn account(plan: &MovePlan, joined: ExtentCount, to: ExtentCount, in_use: bool) -> Account {
    let joined = match in_use {
        true => joined,
        // No process split any, so those that are left were not joined.
        false => joined.min(plan.extents.saturating_sub(to)),
    };
    Account::new(&plan.borders, plan.gain, joined, to)
}
