//! An online run in progress: region by region, segment by segment.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::defrag::engine::{Controls, Event, Progress, Request, count, failed, monotonic};
use crate::defrag::governor::{CallTimes, Governor};
use crate::defrag::guard::{self, Target};
use crate::defrag::hint::Hint;
use crate::defrag::mover::Mover;
use crate::defrag::run::{Input, Machine, State};
use crate::defrag::segments::{self, Before, Place, Plan, Region, Segment};
use crate::defrag::{Host, holders};
use crate::model::{Bytes, Extent, ExtentCount, RunOutcome, RunReport, Stop};
use crate::sys::geometry;

const INTERVAL: Duration = Duration::from_millis(20);
const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
const USERS_INTERVAL: Duration = Duration::from_secs(2);
const SPACE_INTERVAL: Duration = Duration::from_millis(50);
/// The hint if the image shares blocks with another file: each guest write there reserves so much.
const MODEST: Bytes = Bytes(1 << 20);

/// The work done so far.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Segments that were moved.
    pub(super) segments: u64,
    /// The calls that locked the image: a clone and an unshare per segment.
    pub(super) calls: CallTimes,
    /// Time spent on segments.
    pub(super) busy: Duration,
    /// Extents removed, by the survey's count.
    pub(super) joined: ExtentCount,
}

/// Why the work ended.
pub(super) enum End {
    Done,
    Stopped,
    /// Free space reached its limit, or there was none.
    NoSpace,
    Failed(&'static str, io::Error),
}

/// A run in progress.
pub(super) struct Session<'a> {
    request: &'a Request<'a>,
    host: &'a Host,
    target: &'a Target,
    controls: Controls<'a>,
    watch: &'a mut dyn FnMut(Event),
    progress: Progress,
    mover: Mover,
    hint: Hint,
    governor: Governor,
    machine: Machine,
    moved: Bytes,
    /// Whether any process has, or had during the run, the image open.
    pub(super) in_use: bool,
    users_at: Instant,
    space_at: Option<Instant>,
    largest_hint: Bytes,
}

impl<'a> Session<'a> {
    pub(super) fn begin(
        request: &'a Request<'a>,
        host: &'a Host,
        target: &'a Target,
        controls: Controls<'a>,
        (progress, watch): (Progress, &'a mut dyn FnMut(Event)),
    ) -> io::Result<Session<'a>> {
        let geometry = geometry::geometry(target.file.as_fd())?;
        let block = Bytes(geometry.block_size.into());
        let mover = Mover::new(&target.file, &target.directory, block)?;
        let (path, mount) = (&target.path, &target.mount.point);
        let group = u64::from(geometry.group_blocks).saturating_mul(block.0);
        // The kernel allows half a group; less than a quarter of it is found more easily.
        let largest = Bytes(segments::REGION.min((group / 4).next_power_of_two() / 2));
        let hints = [MODEST.min(largest), largest];
        let hint = Hint::keep(&host.hints, path, mount, mover.image(), &hints)?;
        let mut machine = Machine::new(STUCK_TIMEOUT);
        machine.step(monotonic(), Input::Cleared);
        machine.step(monotonic(), Input::Started);
        Ok(Session {
            governor: Governor::new(request.limits.stall_target),
            request,
            host,
            target,
            controls,
            watch,
            progress,
            mover,
            hint,
            machine,
            moved: Bytes(0),
            in_use: true,
            users_at: Instant::now(),
            space_at: None,
            largest_hint: largest,
        })
    }

    pub(super) fn work_through(&mut self, plan: &Plan, work: &mut Work) -> End {
        let mut done = ExtentCount(0);
        for region in &plan.regions {
            let size = match (region.dense, plan.shared.0 > 0) {
                (true, true) => MODEST.min(self.largest_hint),
                (true, false) => self.largest_hint,
                (false, _) => Bytes(0),
            };
            if let Err(error) = self.hint.set(size) {
                return End::Failed("the hint for new extents cannot be set", error);
            }
            if let Some(end) = self.work_on(region, done, work) {
                return end;
            }
            done = done.saturating_add(region.gain);
            work.joined = done;
        }
        End::Done
    }

    /// Moves the segments of a region; `None` if its end was reached.
    fn work_on(&mut self, region: &Region, done: ExtentCount, work: &mut Work) -> Option<End> {
        let (mut at, mut before, mut rest) = (region.start, Before::default(), Duration::ZERO);
        let mut gone = ExtentCount(0);
        while at < region.end {
            work.joined = done.saturating_add(gone.min(region.gain));
            self.report_progress(work);
            if let Some(end) = self.rest(rest) {
                return Some(end);
            }
            let (map, known) = match self.map(at, region.end, &mut before) {
                Ok(map) => map,
                Err(error) => return Some(End::Failed("its map cannot be read", error)),
            };
            let Some(segment) = segments::cut(&map, self.governor.work(), before) else {
                // A single extent at the end of the known map may have a neighbour after it.
                let last = map
                    .last()
                    .filter(|last| last.logical > at && known < region.end);
                at = last.map_or(known, |last| last.logical);
                rest = Duration::ZERO;
                continue;
            };
            match self.move_one(&segment, work) {
                Ok(after) => rest = after,
                Err(end) => return end,
            }
            gone = gone.saturating_add(segment.extents);
            at = segment.end();
            before.end = Some(at);
        }
        None
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

    /// Returns how long to rest. The error is the end of the run, or `None` for that of the region.
    fn move_one(&mut self, segment: &Segment, work: &mut Work) -> Result<Duration, Option<End>> {
        let took = match self.mover.move_segment(segment) {
            Ok(took) => took,
            Err(error) => return Err(self.judge(segment, error)),
        };
        self.governor.took(segment.work, took.longest());
        self.moved.0 = self.moved.0.saturating_add(segment.length.0);
        work.segments += 1;
        work.calls.add(took.clone);
        work.calls.add(took.unshare);
        work.busy += took.busy;
        self.machine.step(monotonic(), Input::Moved);
        Ok(self.governor.rest(took.busy, self.in_use))
    }

    /// `None` if the image was truncated before the segment's end, which ends the region.
    fn judge(&self, segment: &Segment, error: io::Error) -> Option<End> {
        let is_shorter = || {
            let metadata = self.target.file.metadata();
            metadata.is_ok_and(|metadata| metadata.len() < segment.end().0)
        };
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Some(End::NoSpace),
            Some(libc::EINVAL) if is_shorter() => None,
            _ => Some(End::Failed("a segment could not be moved", error)),
        }
    }

    fn report_progress(&mut self, work: &Work) {
        self.progress.done = work.joined.0;
        self.progress.calls = (work.segments, work.calls.worst(), work.calls.median());
        self.progress.held = self.machine.held_by();
        (self.watch)(Event::Progress(self.progress));
    }

    /// Rests, then waits while the run is held. Returns why the run ends, if it does.
    fn rest(&mut self, rest: Duration) -> Option<End> {
        let until = Instant::now() + rest;
        loop {
            self.check_users();
            // Every byte read is also written.
            for input in self.controls.inputs(self.moved.saturating_add(self.moved)) {
                self.machine.step(monotonic(), input);
            }
            self.machine.step(monotonic(), Input::Tick);
            self.controls
                .notice()
                .into_iter()
                .for_each(&mut *self.watch);
            if matches!(self.machine.state(), State::Ending | State::Ended) {
                return Some(End::Stopped);
            }
            if !self.has_room() {
                return Some(End::NoSpace);
            }
            let held = self.machine.held_by().is_some();
            self.controls.note_held(held);
            let left = until.saturating_duration_since(Instant::now());
            if !held && left.is_zero() {
                return None;
            }
            std::thread::sleep(if held { INTERVAL } else { left.min(INTERVAL) });
        }
    }

    fn check_users(&mut self) {
        if self.users_at.elapsed() >= USERS_INTERVAL {
            self.users_at = Instant::now();
            self.in_use |= holders::holder_of(&self.host.proc, &self.target.path).is_some();
        }
    }

    fn has_room(&mut self) -> bool {
        if self
            .space_at
            .is_some_and(|at| at.elapsed() < SPACE_INTERVAL)
        {
            return true;
        }
        self.space_at = Some(Instant::now());
        guard::check_room(self.target, self.request.limits.keep_free).is_ok()
    }

    /// Restores the hint, releases the anchor and counts the extents.
    pub(super) fn end(self, report: &mut RunReport, shares: bool, end: End) -> RunOutcome {
        let Session { mover, hint, .. } = self;
        drop(hint);
        (report.read, report.written) = (self.moved, self.moved);
        report.held = self.controls.held();
        let extents = count(self.target).unwrap_or(ExtentCount(u64::MAX));
        mover.finish(extents, shares);
        let to = count(self.target);
        report.to = to.as_ref().ok().copied();
        match (end, to) {
            (End::Failed(what, error), _) => failed(what, &error),
            (_, Err(error)) => failed("its extents cannot be counted", &error),
            (End::NoSpace, _) => RunOutcome::NoSpace,
            (End::Stopped, _) => RunOutcome::Stopped {
                why: self.machine.stopped_by().unwrap_or(Stop::Shutdown),
            },
            (End::Done, Ok(to)) if report.from.is_some_and(|from| to < from) => {
                RunOutcome::Improved
            }
            (End::Done, Ok(_)) => RunOutcome::Unchanged { message: None },
        }
    }
}
