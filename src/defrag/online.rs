//! Defragments an image under a running VM: segment by segment, each one cloned, unshared and let
//! go of, so that the kernel itself copies it to new blocks (see [`mover`](super::mover)).
//!
//! ```text
//! guards ─► survey of the map ─► regions by gain ─► segments ─► count ─► outcome
//!                                                    ▲  │
//!                    governor: how much, how long ───┘  └── run (pure): holds, stops
//! ```
//!
//! - The image may be in use or not. Where it is, there is as much rest as work; where nobody has
//!   it open, there is none.
//! - Between two segments everything is asked that can end or hold a run. So it stops within one
//!   segment, and going on later is beginning anew: what is done is skipped by the survey.
//! - Large new extents come from a hint for copy on write of the size of a region: the first segment
//!   that is unshared reserves room for its whole region, and those that follow go there. It is set
//!   only for regions of which nearly everything is moved, because what is reserved and not used is
//!   given back only later. Elsewhere a segment becomes one extent, no more.
//! - Each region is done once. What a guest fragments anew behind us is left to the next run.
//! - Disk and processor are asked for as usual, not as the last of all: whoever waits for a lock
//!   that we hold would wait with us.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fsr::{Pace, Presence, Request, count, machine_time, take_turn};
use super::governor::{CallTimes, Governor};
use super::guard::{self, Refusal, Target};
use super::hint::{self, Hint};
use super::mover::Mover;
use super::pressure::{Gauge, WithoutIo};
use super::run::{Hold, Input, Machine, State};
use super::segments::{self, Before, Place, Plan, Region, Segment, Survey};
use super::{Host, holders};
use crate::model::{Account, Bytes, Engine, Extent, ExtentCount, RunOutcome, RunReport, Stop};
use crate::probe::extents::{MapReader, ReadPace};
use crate::probe::reason;
use crate::sys::{geometry, locks};

/// How often orders are asked for in a rest.
const BEAT: Duration = Duration::from_millis(20);
/// Without a segment for so long it is stuck.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked for who uses the image.
const USERS_BEAT: Duration = Duration::from_secs(2);
/// How often free space is asked for.
const SPACE_BEAT: Duration = Duration::from_millis(50);
/// The hint where something of the image belongs to another file: guests' writes to that reserve
/// so much each.
const MODEST: Bytes = Bytes(1 << 20);

/// What goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The hint of an image whose run was killed was restored.
    HintRestored(PathBuf),
    /// The hint of such an image could not be restored.
    HintLost(PathBuf, String),
    /// The guards let it pass, and this can be gained.
    Cleared(Summary),
    /// There is I/O pressure that does not hold it up.
    WithoutIo(WithoutIo),
    /// So far it has come.
    Progress {
        /// Extents that went away, or were found to be gone.
        done: ExtentCount,
        /// Segments so far.
        segments: u64,
        /// The longest call so far that locked the image.
        worst: Duration,
        /// Half of the calls took no longer.
        median: Duration,
        /// Why it stands still, if it does.
        held: Option<Hold>,
    },
}

/// What can be gained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Extents of the image.
    pub extents: ExtentCount,
    /// Of these can go away.
    pub gain: ExtentCount,
    /// What belongs to another file too, and stays so.
    pub shared: Bytes,
}

/// How it was done.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Segments that were moved.
    pub segments: u64,
    /// The calls that locked the image: a clone and an unsharing for each segment.
    pub calls: CallTimes,
    /// Time in which a segment was at work.
    pub busy: Duration,
    /// What belongs to another file too, and stayed so.
    pub shared: Bytes,
    /// Extents that went away, as far as the survey knew them.
    pub joined: ExtentCount,
}

/// What came of a run, and how.
#[derive(Debug, Clone)]
pub struct Report {
    /// As of each engine.
    pub run: RunReport,
    /// As only this one does it.
    pub work: Work,
}

/// Asks the guards and surveys the map, as [`run`] does, and changes nothing.
///
/// # Errors
/// What is not right.
pub fn rehearse(request: &Request<'_>, host: &Host) -> Result<Summary, Refusal> {
    let target = guard::open(request.path, host)?;
    let extents = guard::check_online(&target, request.limits, host)?;
    guard::check_gain(&target, extents)?;
    gauged(&target, request, host)?;
    let plan = survey(&target, ReadPace::GENTLE, &mut || None)?;
    Ok(summary(&worthwhile(plan)?))
}

/// The last of the guards: whether others wait for the disks too much.
fn gauged(target: &Target, request: &Request<'_>, host: &Host) -> Result<Gauge, Refusal> {
    let mut gauge = Gauge::new(target.mount.device);
    guard::check_pressure(&mut gauge, request.limits.max_io_pressure, host)?;
    Ok(gauge)
}

/// Defragments one image. `orders` is asked before each segment, and in rests all the time, whether
/// to stop; `watch` is told what goes on.
pub fn run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Report {
    let began = Instant::now();
    let mut report = Report {
        run: RunReport::of(Engine::Online, RunOutcome::Unchanged { message: None }),
        work: Work::default(),
    };
    restore_hints(&host.hints, watch);
    report.run.outcome = match attempt(request, host, &mut report, orders, watch) {
        Ok(outcome) => outcome,
        Err(refusal) => RunOutcome::Refused {
            guard: refusal.name().to_owned(),
            reason: refusal.to_string(),
        },
    };
    report.run.took = began.elapsed();
    report
}

/// Restores what runs that were killed have left.
pub fn restore_hints(directory: &Path, watch: &mut dyn FnMut(Event)) {
    let (restored, failed) = hint::restore_all(directory);
    restored
        .into_iter()
        .for_each(|path| watch(Event::HintRestored(path)));
    failed
        .into_iter()
        .for_each(|(path, error)| watch(Event::HintLost(path, reason(&error))));
}

fn attempt(
    request: &Request<'_>,
    host: &Host,
    report: &mut Report,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Result<RunOutcome, Refusal> {
    let target = guard::open(request.path, host)?;
    let turn = take_turn(&target)?;
    let from = guard::check_online(&target, request.limits, host)?;
    guard::check_gain(&target, from)?;
    let gauge = gauged(&target, request, host)?;
    let in_use = locks::in_use(&target.file)?;
    let in_use = in_use.open != Some(false) || in_use.qemu.any();
    let mut stopped = None;
    let mut presence = Presence::new();
    let plan = survey(&target, ReadPace::GENTLE, &mut || {
        let gone = presence.look(&target, host).map(|_| Stop::Gone);
        stopped = stopped.or_else(&mut *orders).or(gone);
        stopped
    });
    if let Some(why) = stopped {
        return Ok(RunOutcome::Stopped { why });
    }
    let plan = worthwhile(plan?)?;
    report.run.from = Some(from);
    report.work.shared = plan.shared;
    watch(Event::Cleared(summary(&plan)));
    let mut session = match Session::begin(request, host, &target, gauge, orders, watch) {
        Ok(session) => session,
        Err(error) => return Ok(failed("it cannot be begun", &error)),
    };
    session.in_use = in_use;
    let end = session.work_through(&plan, &mut report.work);
    let in_use = session.in_use;
    let outcome = session.end(report, plan.shared.0 > 0, end);
    let joined = report.work.joined;
    let account = |to| account(&plan, joined, to, in_use);
    report.run.account = report.run.to.map(account);
    drop(turn);
    Ok(outcome)
}

/// What became of the extents of the plan, if `to` are left.
fn account(plan: &Plan, joined: ExtentCount, to: ExtentCount, in_use: bool) -> Account {
    let joined = match in_use {
        true => joined,
        // Nobody tore any, so those that are left were not joined.
        false => joined.min(plan.extents.saturating_sub(to)),
    };
    Account::new(&plan.borders, plan.gain, joined, to)
}

fn failed(what: &str, error: &io::Error) -> RunOutcome {
    let reason = format!("{what}: {}", reason(error));
    RunOutcome::Failed { reason }
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

/// Reads the map once, in chunks, with as much rest as work. `stop` ends it.
fn survey(
    target: &Target,
    pace: ReadPace,
    stop: &mut dyn FnMut() -> Option<Stop>,
) -> Result<Plan, Refusal> {
    let size = Bytes(target.file.metadata()?.len());
    let mut survey = Survey::new(size);
    let enough = std::cell::Cell::new(false);
    let visit = |extent| {
        survey.push(extent);
        match enough.get() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let mut beat = || enough.set(stop().is_some());
    MapReader::new().read(&target.file, Bytes(0), pace, visit, &mut beat)?;
    Ok(survey.finish())
}

/// Why the work ended.
enum End {
    /// There is nothing left of the plan.
    Done,
    /// It was told to end.
    Stopped,
    /// Free space came to its limit, or there was none.
    NoSpace,
    /// A call failed.
    Failed(&'static str, io::Error),
}

/// A run at work.
struct Session<'a> {
    request: &'a Request<'a>,
    host: &'a Host,
    target: &'a Target,
    orders: &'a mut dyn FnMut() -> Option<Stop>,
    watch: &'a mut dyn FnMut(Event),
    mover: Mover,
    hint: Hint,
    governor: Governor,
    machine: Machine,
    pace: Pace,
    moved: Bytes,
    held: Duration,
    pressed: bool,
    in_use: bool,
    users_at: Instant,
    space_at: Option<Instant>,
    largest_hint: Bytes,
}

impl<'a> Session<'a> {
    fn begin(
        request: &'a Request<'a>,
        host: &'a Host,
        target: &'a Target,
        gauge: Gauge,
        orders: &'a mut dyn FnMut() -> Option<Stop>,
        watch: &'a mut dyn FnMut(Event),
    ) -> io::Result<Session<'a>> {
        let geometry = geometry::geometry(target.file.as_fd())?;
        let block = Bytes(geometry.block_size.into());
        let mover = Mover::new(&target.file, &target.directory, block)?;
        let (path, mount) = (&target.path, &target.mount.point);
        let group = u64::from(geometry.group_blocks).saturating_mul(block.0);
        // The kernel allows half a group; a quarter of it is found more easily.
        let largest = Bytes(segments::REGION.min((group / 4).next_power_of_two() / 2));
        let hints = [MODEST.min(largest), largest];
        let hint = Hint::keep(&host.hints, path, mount, mover.image(), &hints)?;
        let mut machine = Machine::new(PATIENCE);
        machine.step(machine_time(), Input::Cleared);
        machine.step(machine_time(), Input::Started);
        Ok(Session {
            pace: Pace::new(request, gauge),
            governor: Governor::new(request.limits.stall_target),
            request,
            host,
            target,
            orders,
            watch,
            mover,
            hint,
            machine,
            moved: Bytes(0),
            held: Duration::ZERO,
            pressed: false,
            in_use: true,
            users_at: Instant::now(),
            space_at: None,
            largest_hint: largest,
        })
    }

    fn work_through(&mut self, plan: &Plan, work: &mut Work) -> End {
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

    /// Moves what there is of a region; nothing if it got to its end.
    fn work_on(&mut self, region: &Region, done: ExtentCount, work: &mut Work) -> Option<End> {
        let (mut at, mut before, mut rest) = (region.start, Before::default(), Duration::ZERO);
        let mut gone = ExtentCount(0);
        while at < region.end {
            work.joined = done.saturating_add(gone.min(region.gain));
            self.tell(work.joined, work);
            if let Some(end) = self.breathe(rest) {
                return Some(end);
            }
            let (map, known) = match self.map(at, region.end, &mut before) {
                Ok(map) => map,
                Err(error) => return Some(End::Failed("its map cannot be read", error)),
            };
            let Some(segment) = segments::cut(&map, self.governor.work(), before) else {
                // What lies alone at the end of what is known may have a neighbour behind it.
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

    /// The map from `at` on, as [`Mover::map`]. From the block before it is seen where to the last
    /// segment was moved.
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

    /// How long to rest after it; or the end of all, or of the region.
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
        self.machine.step(machine_time(), Input::Moved);
        Ok(self.governor.rest(took.busy, self.in_use))
    }

    /// Nothing if the image was cut off before the segment's end: its region is done then.
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

    fn tell(&mut self, done: ExtentCount, work: &Work) {
        (self.watch)(Event::Progress {
            done,
            segments: work.segments,
            worst: work.calls.worst(),
            median: work.calls.median(),
            held: self.machine.held_by(),
        });
    }

    /// Rests so long, and then as long as something holds it. Something else than nothing ends it.
    fn breathe(&mut self, rest: Duration) -> Option<End> {
        let until = Instant::now() + rest;
        loop {
            for input in self.look() {
                self.machine.step(machine_time(), input);
            }
            if let Some(pressure) = self.pace.news() {
                (self.watch)(Event::WithoutIo(pressure));
            }
            if matches!(self.machine.state(), State::Ending | State::Ended) {
                return Some(End::Stopped);
            }
            if !self.has_room() {
                return Some(End::NoSpace);
            }
            let held = self.machine.held_by().is_some();
            self.held += self.pace.stood_still(held);
            let left = until.saturating_duration_since(Instant::now());
            if !held && left.is_zero() {
                return None;
            }
            std::thread::sleep(if held { BEAT } else { left.min(BEAT) });
        }
    }

    fn look(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        inputs.extend((self.orders)().map(Input::Stop));
        inputs.extend(self.pace.presence.look(self.target, self.host));
        let until = self.request.until;
        if until.is_some_and(|until| Instant::now() >= until) {
            inputs.push(Input::Stop(Stop::WindowClosed));
        }
        // What is read is written too.
        inputs.push(self.pace.bandwidth(self.moved.saturating_add(self.moved)));
        if let Some(input) = self.pace.pressure(self.host, self.pressed) {
            self.pressed = input == Input::Held(Hold::Pressure);
            inputs.push(input);
        }
        if self.users_at.elapsed() >= USERS_BEAT {
            self.users_at = Instant::now();
            // Once in use, it is treated so to the end.
            self.in_use |= holders::holder_of(&self.host.proc, &self.target.path).is_some();
        }
        inputs.push(Input::Tick);
        inputs
    }

    fn has_room(&mut self) -> bool {
        if self.space_at.is_some_and(|at| at.elapsed() < SPACE_BEAT) {
            return true;
        }
        self.space_at = Some(Instant::now());
        guard::check_room(self.target, self.request.limits.keep_free).is_ok()
    }

    /// Leaves the image as it is found by others, and says what came of it.
    fn end(self, report: &mut Report, shares: bool, end: End) -> RunOutcome {
        let Session { mover, hint, .. } = self;
        drop(hint);
        (report.run.read, report.run.written) = (self.moved, self.moved);
        report.run.held = self.held;
        let extents = count(self.target).unwrap_or(ExtentCount(u64::MAX));
        mover.finish(extents, shares);
        let to = count(self.target);
        report.run.to = to.as_ref().ok().copied();
        match (end, to) {
            (End::Failed(what, error), _) => failed(what, &error),
            (_, Err(error)) => failed("its extents cannot be counted", &error),
            (End::NoSpace, _) => RunOutcome::NoSpace,
            (End::Stopped, _) => RunOutcome::Stopped {
                why: self.machine.stopped_by().unwrap_or(Stop::Shutdown),
            },
            (End::Done, Ok(to)) if report.run.from.is_some_and(|from| to < from) => {
                RunOutcome::Improved
            }
            (End::Done, Ok(_)) => RunOutcome::Unchanged { message: None },
        }
    }
}
