//! Which image is defragmented next, by what, and why another is not: a decision on every image.
//!
//! # The order
//!
//! Worse severity first; then what brings most for what it costs. It brings the extents that can go,
//! or where the map was not looked at those above the ideal, and those of the next week, as it grows
//! now: of two images that are as bad, the one that gets worse is more urgent. It costs the bytes to copy. After an incident, which was about kernel
//! memory, the images with most extents come first within their severity.
//!
//! # The engine
//!
//! The first of the configured ones that can: `xfs_fsr` cannot while somebody has the image open,
//! while it shares blocks, without free space for a copy, if the swap at its end would hold up
//! readers for too long, or if it would not be done when the window closes; `online` cannot without
//! reflink, and neither can where the host's kernel rules it out. What `online` has not done when the window closes, it does in the next one.
//!
//! # The time
//!
//! One run at a time on a file system, and so many file systems at once as the policy allows. An
//! image that does not fit into what is left of a window lets the next one go first. What is
//! planned here is planned anew whenever something has changed, so only what begins now is binding.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::calendar::{Opening, between};
use super::estimate::{Estimate, estimate};
use super::facts::{Allowed, FilesystemFacts, ImageFacts, PlanFacts};
use super::policy::Policy;
use super::reason::{Moment, Reason};
use crate::model::gain::LITTLE;
use crate::model::{
    Effect, Engine, ExtentCount, FilesystemKind, Obstacle, Outlook, Severity, Share,
};

/// From here on a file system is too full for any run: what it copies would itself be fragmented.
const ALMOST_FULL: Share = Share::percent(95);
/// An image whose extents above the ideal are fewer than one in so many is near it.
const NEAR_IDEAL: u64 = LITTLE;
/// The growth of so many days counts as if it were there.
const GROWTH_DAYS: f64 = 7.0;
/// An estimate may be wrong by one part in so many without a run being cut off.
const MARGIN: u32 = 10;
/// What `online` begins for: less is not worth beginning.
const SHORTEST_TURN: Duration = Duration::from_secs(60);
/// Copying less than this costs as much.
const LEAST_COST: f64 = 1_048_576.0;

/// A decision on every image.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// First those that run, in the order in which they come first; then the others, worst first.
    pub images: Vec<Planned>,
}

/// What is to become of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Where it is.
    pub path: PathBuf,
    /// Where its file system is mounted, if that is known.
    pub mount: Option<PathBuf>,
    /// How bad it is.
    pub severity: Severity,
    /// What it has.
    pub extents: ExtentCount,
    /// What would be left.
    pub ideal: ExtentCount,
    /// What could be gained, if its map was looked at.
    pub outlook: Option<Outlook>,
    /// What is done.
    pub decision: Decision,
}

/// What is done with an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It is defragmented in this window, or in the one that opens next.
    Runs(PlannedRun),
    /// It is left alone.
    Not(Reason),
}

/// A run to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedRun {
    /// By what.
    pub engine: Engine,
    /// Which one of all runs it is by rank: 1 is the first.
    pub order: usize,
    /// When it begins.
    pub begins: Timestamp,
    /// When it has ended: because it is done, or because the window closes.
    pub ends: Timestamp,
    /// What it takes.
    pub estimate: Estimate,
}

impl Plan {
    /// The runs that begin now.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = (&Planned, PlannedRun)> {
        self.images
            .iter()
            .filter_map(move |planned| match planned.decision {
                Decision::Runs(run) if run.begins <= now => Some((planned, run)),
                _ => None,
            })
    }
}

/// Judges every image. The same facts give the same plan, in whatever order they come.
pub fn plan(facts: &PlanFacts, policy: &Policy) -> Plan {
    let filesystems = facts.filesystems.iter();
    let planner = Planner {
        facts,
        policy,
        filesystems: filesystems.map(|it| (it.id.as_str(), it)).collect(),
        frame: Frame::new(facts),
    };
    let mut images: Vec<Planned> = Vec::with_capacity(facts.images.len());
    let mut candidates = Vec::new();
    for image in &facts.images {
        match planner.judge(image) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => images.push(planner.planned(image, Decision::Not(reason))),
        }
    }
    candidates.sort_by(|a, b| a.cmp(b, facts.recent_incident));
    let mut lanes = Lanes::new(&planner);
    for candidate in &candidates {
        let decision = lanes.place(candidate);
        images.push(planner.planned(candidate.image, decision));
    }
    images.sort_by(|a, b| a.place().cmp(&b.place()));
    Plan { images }
}

/// The engines that are not to be used for an image that is defragmented by hand, although their turn
/// comes before that of the first one that is: each with the reason. The last one is never passed
/// over, so that there is an answer.
pub fn passed_over(facts: &PlanFacts, policy: &Policy) -> Vec<(Engine, Reason)> {
    let against = |engine: &Engine| {
        let only = Policy {
            engines: vec![*engine],
            ..policy.clone()
        };
        match plan(facts, &only).images.pop()?.decision {
            Decision::Not(reason) if reason.code().lies_with_engine() => Some((*engine, reason)),
            _ => None,
        }
    };
    let before_last = policy
        .engines
        .split_last()
        .map_or(&[][..], |(_, rest)| rest);
    before_last.iter().map_while(against).collect()
}

impl Planned {
    /// Where it stands in the plan.
    fn place(&self) -> impl Ord + '_ {
        let rank = match &self.decision {
            Decision::Runs(run) => run.order,
            Decision::Not(_) => usize::MAX,
        };
        (rank, Reverse((self.severity, self.extents)), &self.path)
    }
}

/// The time in which runs may lie.
#[derive(Debug, Clone, Copy)]
struct Frame {
    begins: Timestamp,
    /// `None` if it does not end.
    closes: Option<Timestamp>,
}

impl Frame {
    /// Of the window that is open or opens next. Where there is none, nothing will be placed.
    fn new(facts: &PlanFacts) -> Frame {
        match facts.allowed {
            Allowed::During(Opening { opens, closes }) => Frame {
                begins: opens.max(facts.now),
                closes: Some(closes),
            },
            _ => Frame {
                begins: facts.now,
                closes: None,
            },
        }
    }

    /// How much of it is left from then on.
    fn left(&self, from: Timestamp) -> Duration {
        self.closes
            .map_or(Duration::MAX, |closes| between(from, closes))
    }
}

struct Planner<'f> {
    facts: &'f PlanFacts,
    policy: &'f Policy,
    filesystems: BTreeMap<&'f str, &'f FilesystemFacts>,
    frame: Frame,
}

/// An image that nothing but time can keep from being defragmented.
struct Candidate<'f> {
    image: &'f ImageFacts,
    filesystem: &'f FilesystemFacts,
    /// What could do it, best first; one at least.
    options: Vec<(Engine, Estimate)>,
    /// What it brings for what it costs.
    worth: f64,
}

impl Candidate<'_> {
    fn cmp(&self, other: &Self, by_extents: bool) -> Ordering {
        let severity = other.image.severity.cmp(&self.image.severity);
        let extents = other.image.extents.cmp(&self.image.extents);
        severity
            .then(if by_extents { extents } else { Ordering::Equal })
            .then(other.worth.total_cmp(&self.worth))
            .then(extents)
            .then_with(|| self.image.path.cmp(&other.image.path))
    }
}

impl<'f> Planner<'f> {
    fn planned(&self, image: &ImageFacts, decision: Decision) -> Planned {
        let filesystem = self.filesystems.get(image.filesystem.as_str());
        Planned {
            path: image.path.clone(),
            mount: filesystem.map(|filesystem| filesystem.mount.clone()),
            severity: image.severity,
            extents: image.extents,
            ideal: image.ideal,
            outlook: image.outlook,
            decision,
        }
    }

    fn moment(&self, at: Timestamp) -> Moment {
        Moment::new(at, self.facts.now, &self.facts.zone)
    }

    /// Everything but the time: first what lies with the image, then with the host, then with its
    /// file system, then with the engines.
    fn judge(&self, image: &'f ImageFacts) -> Result<Candidate<'f>, Reason> {
        let filesystem = self.filesystems.get(image.filesystem.as_str()).copied();
        let active = filesystem.and_then(|filesystem| filesystem.active.as_ref());
        if active.is_some_and(|active| active.path == image.path) {
            return Err(Reason::RunningNow);
        }
        self.worthwhile(image)?;
        let filesystem = filesystem.ok_or(Reason::NothingKnown)?;
        if filesystem.kind != FilesystemKind::Xfs {
            let type_name = filesystem.type_name.clone();
            return Err(Reason::NotXfs { type_name });
        }
        self.host_allows()?;
        filesystem_allows(filesystem)?;
        self.has_cooled_down(image)?;
        let options = self.options(image, filesystem)?;
        self.disks_are_idle(filesystem)?;
        Ok(Candidate {
            image,
            filesystem,
            worth: worth(image),
            options,
        })
    }

    fn worthwhile(&self, image: &ImageFacts) -> Result<(), Reason> {
        let (severity, from) = (image.severity, self.policy.from);
        if severity < from {
            return Err(Reason::BelowSeverity { severity, from });
        }
        let (extents, ideal) = (image.extents, image.ideal);
        let gain = extents.0.saturating_sub(ideal.0);
        if gain == 0 || gain < extents.0 / NEAR_IDEAL {
            let kept = image.outlook.map(|outlook| outlook.what_keeps());
            return Err(Reason::NearIdeal {
                extents,
                ideal,
                kept,
            });
        }
        let engines = &self.policy.engines;
        if !engines.is_empty() {
            gains(image, engines)?;
        }
        // What matters to one engine only is not said of the image.
        let forbidding = |obstacle: &&Obstacle| **obstacle != Obstacle::Dax;
        match image.obstacles.iter().filter(forbidding).min() {
            Some(obstacle) => Err(Reason::Forbidden(*obstacle)),
            None => Ok(()),
        }
    }

    fn host_allows(&self) -> Result<(), Reason> {
        if self.facts.incident {
            return Err(Reason::Incident);
        }
        if self.facts.paused {
            return Err(Reason::Paused);
        }
        if let Some(why) = &self.facts.not_ready {
            return Err(Reason::NotReady { why: why.clone() });
        }
        match self.facts.allowed {
            Allowed::Never => Err(Reason::NoWindow),
            Allowed::NotInSight => Err(Reason::NoWindowInSight),
            Allowed::During(_) | Allowed::Always => Ok(()),
        }
    }

    /// Whether it may run by the time that it could.
    fn has_cooled_down(&self, image: &ImageFacts) -> Result<(), Reason> {
        let Some(last) = &image.last_run else {
            return Ok(());
        };
        let until = last.cools_until(self.policy.cooldown);
        if until <= self.frame.begins {
            return Ok(());
        }
        let until = self.moment(until);
        Err(match last.effect {
            Effect::PutOff => Reason::PutOff {
                until,
                why: last.reason.clone(),
            },
            effect => Reason::CoolingDown {
                until,
                in_vain: if effect == Effect::InVain {
                    last.times
                } else {
                    0
                },
            },
        })
    }

    /// How busy the disks are now says nothing of a window that is not open yet.
    fn disks_are_idle(&self, filesystem: &FilesystemFacts) -> Result<(), Reason> {
        let limit = self.policy.max_io_pressure;
        match filesystem.io_pressure {
            Some(avg10) if avg10 > limit && self.frame.begins <= self.facts.now => {
                Err(Reason::Pressure { avg10, limit })
            }
            _ => Ok(()),
        }
    }

    /// The engines that could do it, in their order; if there is none, why not.
    fn options(
        &self,
        image: &ImageFacts,
        filesystem: &FilesystemFacts,
    ) -> Result<Vec<(Engine, Estimate)>, Reason> {
        let mut options = Vec::new();
        let mut refused = BTreeMap::new();
        for engine in &self.policy.engines {
            match self.option(*engine, image, filesystem) {
                Ok(estimate) => options.push((*engine, estimate)),
                Err(reason) => _ = refused.insert(*engine, reason),
            }
        }
        if !options.is_empty() {
            return Ok(options);
        }
        let online = refused.remove(&Engine::Online);
        match (&image.user, refused.remove(&Engine::XfsFsr), online) {
            (Some(user), _, online) if !self.policy.engines.is_empty() => Err(Reason::InUse {
                user: user.clone(),
                online: online.map(Box::new),
            }),
            // An idle image is the business of xfs_fsr, if that may be used.
            (_, Some(reason), _) | (_, None, Some(reason)) => Err(reason),
            (_, None, None) => Err(Reason::NoEngine),
        }
    }

    /// What an engine would take; if it cannot, why not.
    fn option(
        &self,
        engine: Engine,
        image: &ImageFacts,
        filesystem: &FilesystemFacts,
    ) -> Result<Estimate, Reason> {
        if let Some(unusable) = self.facts.unusable(engine) {
            return Err(Reason::Unusable(unusable.clone()));
        }
        let estimate = estimate(engine, image, filesystem, self.policy);
        match engine {
            Engine::XfsFsr => self.idle_image(image, &estimate)?,
            Engine::Online => {
                if !filesystem.features.is_some_and(|features| features.reflink) {
                    return Err(Reason::NoReflink);
                }
                if image.obstacles.contains(&Obstacle::Dax) {
                    return Err(Reason::Forbidden(Obstacle::Dax));
                }
            }
        }
        gains(image, &[engine])?;
        let keeps = self.policy.keep_free.of_bytes(filesystem.size);
        let (needs, has) = (estimate.needs, filesystem.free);
        if needs.saturating_add(keeps) > has {
            return Err(Reason::NoSpace { needs, has, keeps });
        }
        Ok(estimate)
    }

    /// What `xfs_fsr` asks of an image.
    fn idle_image(&self, image: &ImageFacts, estimate: &Estimate) -> Result<(), Reason> {
        if let Some(user) = &image.user {
            let (user, online) = (user.clone(), None);
            return Err(Reason::InUse { user, online });
        }
        if image.shares_blocks {
            return Err(Reason::SharesBlocks);
        }
        let (stall, limit) = (estimate.stall, self.policy.max_swap_stall);
        if stall > limit {
            return Err(Reason::SwapStall { stall, limit });
        }
        Ok(())
    }
}

/// Whether one of the engines may gain more than a little.
fn gains(image: &ImageFacts, engines: &[Engine]) -> Result<(), Reason> {
    match image.outlook {
        Some(outlook) if engines.iter().all(|engine| outlook.is_little(*engine)) => {
            let why = outlook.why_little(engines);
            Err(Reason::LittleGain { why })
        }
        _ => Ok(()),
    }
}

fn filesystem_allows(filesystem: &FilesystemFacts) -> Result<(), Reason> {
    if filesystem.stalled {
        return Err(Reason::Stalled);
    }
    let used = filesystem.size.0.saturating_sub(filesystem.free.0);
    let millionths = u128::from(used) * u128::from(Share::WHOLE.0);
    let used = millionths.checked_div(u128::from(filesystem.size.0));
    // Told in whole percent, so one that is just above is not told to be at the limit.
    let percent = used.map_or(0, |used| used.div_ceil(10_000));
    if used.is_some_and(|used| used > u128::from(ALMOST_FULL.0)) {
        let used = Share::percent(u32::try_from(percent).unwrap_or(100));
        return Err(Reason::AlmostFull { used });
    }
    Ok(())
}

/// What defragmenting an image brings for what it costs.
fn worth(image: &ImageFacts) -> f64 {
    let best = |outlook: &Outlook| {
        let gains = Engine::ALL.map(|engine| outlook.gain(engine).likely.0);
        gains.into_iter().max()
    };
    let above_ideal = image.extents.0.saturating_sub(image.ideal.0);
    let gain = image.outlook.as_ref().and_then(best).unwrap_or(above_ideal);
    let growth = image.growth.map_or(0.0, |growth| growth.0);
    // One that shrinks, or whose growth is no number, is as bad as it is.
    let growth = if growth > 0.0 { growth } else { 0.0 };
    // Beyond 2^53 the last digits do not matter.
    #[allow(clippy::cast_precision_loss)]
    let (gain, cost) = (gain as f64, image.allocated.0 as f64);
    (gain + growth * GROWTH_DAYS) / cost.max(LEAST_COST)
}

/// Who runs when.
struct Lanes<'p, 'f> {
    planner: &'p Planner<'f>,
    /// From when on nothing runs on a file system any more.
    idle_from: BTreeMap<&'f str, Timestamp>,
    /// From when on there is room for another run.
    slots: Vec<Timestamp>,
    /// What was placed on each file system.
    placed: BTreeMap<&'f str, usize>,
    order: usize,
}

impl<'p, 'f> Lanes<'p, 'f> {
    fn new(planner: &'p Planner<'f>) -> Lanes<'p, 'f> {
        let begins = planner.frame.begins;
        let mut idle_from = BTreeMap::new();
        let mut slots = Vec::new();
        for filesystem in planner.filesystems.values() {
            if let Some(active) = &filesystem.active {
                // One that takes longer than expected may end at any moment.
                let ends = active.ends.max(soon(planner.facts.now));
                idle_from.insert(filesystem.id.as_str(), ends);
                slots.push(ends);
            }
        }
        let parallel = planner.policy.parallel.max(1);
        slots.resize(parallel.max(slots.len()), begins);
        // More than allowed are under way: room is only when enough of them have ended.
        slots.sort();
        slots.drain(..slots.len() - parallel);
        Lanes {
            planner,
            idle_from,
            slots,
            placed: BTreeMap::new(),
            order: 0,
        }
    }

    /// The decision on an image that comes after all that were placed.
    fn place(&mut self, candidate: &Candidate<'f>) -> Decision {
        let id = candidate.filesystem.id.as_str();
        let frame = self.planner.frame;
        let idle_from = self.idle_from.get(id).copied().unwrap_or(frame.begins);
        let (slot, begins) = self.earliest(idle_from.max(frame.begins));
        let fits =
            |(engine, estimate): &&(Engine, Estimate)| fits(*engine, estimate, frame.left(begins));
        let Some((engine, estimate)) = candidate.options.iter().find(fits).copied() else {
            return Decision::Not(self.too_late(candidate));
        };
        let ends = begins.checked_add(estimate.about).unwrap_or(Timestamp::MAX);
        let ends = frame.closes.map_or(ends, |closes| ends.min(closes));
        self.idle_from.insert(id, ends);
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = ends;
        }
        *self.placed.entry(id).or_default() += 1;
        self.order += 1;
        Decision::Runs(PlannedRun {
            engine,
            order: self.order,
            begins,
            ends,
            estimate,
        })
    }

    /// The slot that is free by then and has been for the shortest time, so that the others are
    /// left to those who can begin earlier; or the one that is free first.
    fn earliest(&self, from: Timestamp) -> (usize, Timestamp) {
        let slots = || self.slots.iter().copied().enumerate();
        let by_then = slots().filter(|(_, free)| *free <= from);
        let slot = by_then
            .max_by_key(|(_, free)| *free)
            .or_else(|| slots().min_by_key(|(_, free)| *free));
        slot.map_or((0, from), |(slot, free)| (slot, free.max(from)))
    }

    /// Why there is no time: too little altogether, or too little because of others.
    fn too_late(&self, candidate: &Candidate<'f>) -> Reason {
        let frame = self.planner.frame;
        let closes = frame.closes.unwrap_or(Timestamp::MAX);
        let closes = self.planner.moment(closes);
        let alone = frame.left(frame.begins);
        let options = &candidate.options;
        if options
            .iter()
            .any(|(engine, estimate)| fits(*engine, estimate, alone))
        {
            let filesystem = candidate.filesystem;
            let there = self.placed.get(filesystem.id.as_str()).copied();
            let ahead = there.unwrap_or(0) + usize::from(filesystem.active.is_some());
            // If none is on the same file system, those on others have taken the room.
            let ahead = if ahead == 0 { self.order.max(1) } else { ahead };
            return Reason::NoTurn { closes, ahead };
        }
        // What takes least is nearest to fitting.
        let shortest = options
            .iter()
            .map(|(_, estimate)| estimate)
            .min_by_key(|it| it.about);
        match shortest {
            Some(estimate) => Reason::WouldNotFinish {
                closes,
                about: estimate.about,
                speed: estimate.speed,
                basis: estimate.basis,
            },
            None => Reason::NoEngine,
        }
    }
}

/// A moment from now: what should have ended already is not planned with before.
fn soon(now: Timestamp) -> Timestamp {
    now.checked_add(SHORTEST_TURN).unwrap_or(now)
}

/// Whether a run fits into so much time.
fn fits(engine: Engine, estimate: &Estimate, left: Duration) -> bool {
    match engine {
        Engine::XfsFsr => {
            let margin = estimate.about / MARGIN;
            estimate.about.saturating_add(margin) <= left
        }
        Engine::Online => left >= SHORTEST_TURN.min(estimate.about),
    }
}

#[cfg(test)]
mod tests;
