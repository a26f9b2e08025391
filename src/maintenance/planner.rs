//! Decides which image is defragmented next and by which engine, and why another is not.
//!
//! # Order
//!
//! Higher severity first, then the best ratio of gain to cost. The gain is the number of extents
//! that can be removed (those above the ideal if the map was not examined) plus a week's growth at
//! the present rate, because an image that gets worse is more urgent. The cost is the number of
//! bytes to copy. After an incident (about kernel memory), more extents come first within a
//! severity.
//!
//! # Engine
//!
//! The first suitable engine as configured. `xfs_fsr` is unsuitable if the image is open or shares
//! blocks, if its final swap would block readers for too long, or if it would not finish before the
//! window closes; `online` is unsuitable without reflink or with DAX; `blockcopy`, which also works on
//! ext4, if no VM of libvirt has the image open or it would not finish. All are if the host's kernel
//! rules them out, or if free space or the possible gain is too small. `online` continues unfinished
//! work in the next window.
//!
//! # Time
//!
//! One run at a time per file system, on as many file systems at once as the policy allows. The
//! next image takes the place of one that does not fit into the rest of a window. The plan is made
//! anew after every change, so only runs that begin now are binding.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::by_hand::{ByHand, by_hand};
use super::calendar::{Opening, between};
use super::estimate::{Estimate, estimate};
use super::facts::{Allowed, FilesystemFacts, ImageFacts, PlanFacts, User};
use super::reason::{self, Moment};
use crate::config::settings::Defrag;
use crate::model::gain::LITTLE;
use crate::model::{
    Effect, Engine, ExtentCount, Filesystem, FilesystemKind, Outlook, ReasonCode, Refusal,
    Severity, Share,
};

/// Above this, a file system is too full for any run: the copy would itself be fragmented.
const ALMOST_FULL: Share = Share::percent(95);
/// An image with fewer than 1/N of its extents above the ideal is near the ideal.
const NEAR_IDEAL: u64 = LITTLE;
/// Number of days for which growth is added to the present extents.
const GROWTH_DAYS: f64 = 7.0;
/// 1/N of an estimate is added as a safety margin, so that a run is not cut off.
const MARGIN: u32 = 10;
/// Minimum time for starting `online`.
const SHORTEST_TURN: Duration = Duration::from_secs(60);
/// Minimum cost in bytes.
const LEAST_COST: f64 = 1_048_576.0;

/// A decision on every image.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// First the images to be defragmented, in order of rank; then the others, worst first.
    pub images: Vec<Planned>,
}

/// An image and the decision on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its path.
    pub path: PathBuf,
    /// Mount point of its file system, if known.
    pub mount: Option<PathBuf>,
    /// Its severity.
    pub severity: Severity,
    /// Its number of extents.
    pub extents: ExtentCount,
    /// The number of extents after defragmentation.
    pub ideal: ExtentCount,
    /// The possible gain, if its map was examined.
    pub outlook: Option<Outlook>,
    /// The decision.
    pub decision: Decision,
    /// What operators can do about an image in use, if no engine works on it.
    pub by_hand: Option<ByHand>,
}

/// Whether an image is defragmented.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It is defragmented in the current or next window.
    Runs(PlannedRun),
    /// It is not defragmented.
    Not(Refusal),
}

/// A future run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedRun {
    /// The engine.
    pub engine: Engine,
    /// Its rank among all runs, starting with 1.
    pub order: usize,
    /// When it begins.
    pub begins: Timestamp,
    /// When it ends: when it is done, or when the window closes.
    pub ends: Timestamp,
    /// Its estimated cost.
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

/// Decides on every image. The result does not depend on the order of the facts.
pub fn plan(facts: &PlanFacts, policy: &Defrag) -> Plan {
    let filesystems = facts.filesystems.iter();
    let planner = Planner {
        facts,
        policy,
        filesystems: filesystems.map(|it| (it.id.as_str(), it)).collect(),
        // The window that is open or opens next; without one, no run is placed.
        frame: match facts.allowed {
            Allowed::During(Opening { opens, closes }) => Opening {
                opens: opens.max(facts.now),
                closes,
            },
            _ => Opening {
                opens: facts.now,
                closes: Timestamp::MAX,
            },
        },
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

/// The engines, with reasons, before the first one usable for an image that is defragmented by
/// hand. The last configured engine is never passed over, so there is an answer.
pub fn passed_over(facts: &PlanFacts, policy: &Defrag) -> Vec<(Engine, Refusal)> {
    let against = |engine: &Engine| {
        let only = Defrag {
            engines: vec![*engine],
            ..policy.clone()
        };
        match plan(facts, &only).images.pop()?.decision {
            Decision::Not(reason) if reason.code.lies_with_engine() => Some((*engine, reason)),
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
    fn place(&self) -> impl Ord + '_ {
        let rank = match &self.decision {
            Decision::Runs(run) => run.order,
            Decision::Not(_) => usize::MAX,
        };
        (rank, Reverse((self.severity, self.extents)), &self.path)
    }
}

struct Planner<'f> {
    facts: &'f PlanFacts,
    policy: &'f Defrag,
    filesystems: BTreeMap<&'f str, &'f FilesystemFacts>,
    /// The time available for runs.
    frame: Opening,
}

/// An image for which only time can be lacking.
struct Candidate<'f> {
    image: &'f ImageFacts,
    filesystem: &'f FilesystemFacts,
    /// The suitable engines in configured order; at least one.
    options: Vec<(Engine, Estimate)>,
    worth: f64,
}

impl Candidate<'_> {
    /// The first option for which there is enough time.
    fn option_within(&self, from: Timestamp, to: Timestamp) -> Option<(Engine, Estimate)> {
        let left = between(from, to);
        let fits = |(engine, estimate): &&(Engine, Estimate)| match engine {
            Engine::XfsFsr | Engine::BlockCopy => {
                estimate.about.saturating_add(estimate.about / MARGIN) <= left
            }
            Engine::Online => left >= SHORTEST_TURN.min(estimate.about),
        };
        self.options.iter().find(fits).copied()
    }

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
            mount: filesystem.map(|filesystem| filesystem.info.mount.clone()),
            severity: image.severity,
            extents: image.extents,
            ideal: image.ideal,
            outlook: image.outlook,
            by_hand: match &decision {
                Decision::Not(reason) if reason.code == ReasonCode::InUse => by_hand(image),
                _ => None,
            },
            decision,
        }
    }

    fn moment(&self, at: Timestamp) -> Moment {
        Moment::new(at, self.facts.now, &self.facts.zone)
    }

    /// Checks everything except time: image, host, file system and engines, in this order.
    fn judge(&self, image: &'f ImageFacts) -> Result<Candidate<'f>, Refusal> {
        let filesystem = self.filesystems.get(image.filesystem.as_str()).copied();
        let active = filesystem.and_then(|filesystem| filesystem.active.as_ref());
        if active.is_some_and(|active| active.path == image.path) {
            return Err(ReasonCode::RunningNow.into());
        }
        self.worthwhile(image)?;
        let filesystem = filesystem.ok_or(ReasonCode::NothingKnown)?;
        let mut engines = self.policy.engines.iter().chain([&Engine::XfsFsr]);
        if !engines.any(|engine| works_on(*engine, &filesystem.info)) {
            return Err(not_xfs(&filesystem.info));
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

    fn worthwhile(&self, image: &ImageFacts) -> Result<(), Refusal> {
        let (severity, from) = (image.severity, self.policy.from);
        if severity < from {
            let text = format!("severity {severity}, below {from}");
            return Err(Refusal::new(ReasonCode::BelowSeverity, text));
        }
        let (extents, ideal) = (image.extents, image.ideal);
        let gain = extents.0.saturating_sub(ideal.0);
        if gain == 0 || gain < extents.0 / NEAR_IDEAL {
            let kept = image.outlook.map(|outlook| outlook.what_keeps());
            let kept = kept.map_or_else(String::new, |kept| format!(": {kept}"));
            let text = format!("already near its ideal ({extents} extents, {ideal} at best){kept}");
            return Err(Refusal::new(ReasonCode::NearIdeal, text));
        }
        let engines = &self.policy.engines;
        if !engines.is_empty() {
            gains(image, engines)?;
        }
        let forbidding = image.obstacles.iter().filter(|it| it.is_obstacle());
        match forbidding.min() {
            Some(obstacle) => Err((*obstacle).into()),
            None => Ok(()),
        }
    }

    fn host_allows(&self) -> Result<(), Refusal> {
        if self.facts.incident {
            return Err(ReasonCode::Incident.into());
        }
        if self.facts.paused {
            return Err(ReasonCode::Paused.into());
        }
        if let Some(why) = &self.facts.not_ready {
            return Err(why.clone());
        }
        match self.facts.allowed {
            Allowed::Never => Err(ReasonCode::NoWindow.into()),
            Allowed::NotInSight => Err(ReasonCode::NoWindowInSight.into()),
            Allowed::During(_) | Allowed::Always => Ok(()),
        }
    }

    /// Checks whether the cooldown ends before the image could be defragmented.
    fn has_cooled_down(&self, image: &ImageFacts) -> Result<(), Refusal> {
        let Some(last) = &image.last_run else {
            return Ok(());
        };
        let until = last.cools_until(self.policy.cooldown);
        if until <= self.frame.opens {
            return Ok(());
        }
        let until = self.moment(until);
        Err(match last.effect {
            Effect::PutOff => Refusal::new(
                ReasonCode::PutOff,
                format!("put off until {until}: {}", last.reason),
            ),
            Effect::InVain => reason::cooling_down(&until, last.times),
            _ => reason::cooling_down(&until, 0),
        })
    }

    /// Checks the I/O pressure, which matters only if runs can begin now.
    fn disks_are_idle(&self, filesystem: &FilesystemFacts) -> Result<(), Refusal> {
        let limit = f64::from(self.policy.max_io_pressure);
        match filesystem.io_pressure {
            Some(avg10) if avg10 > limit && self.frame.opens <= self.facts.now => {
                let text = format!(
                    "I/O pressure too high ({avg10:.0}% of the time some task waits, limit \
                     {limit:.0}%)"
                );
                Err(Refusal::new(ReasonCode::IoPressure, text))
            }
            _ => Ok(()),
        }
    }

    /// The suitable engines in configured order; if there are none, the reason.
    fn options(
        &self,
        image: &ImageFacts,
        filesystem: &FilesystemFacts,
    ) -> Result<Vec<(Engine, Estimate)>, Refusal> {
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
        if let Some(user) = image.user.as_ref().filter(|_| !refused.is_empty()) {
            let [online, blockcopy] =
                [Engine::Online, Engine::BlockCopy].map(|engine| refused.remove(&engine));
            return Err(reason::in_use(user, online, blockcopy));
        }
        // For an idle image, the reason against xfs_fsr, the first, takes precedence.
        Err(refused
            .into_values()
            .next()
            .unwrap_or(ReasonCode::NoEngine.into()))
    }

    /// The estimate for an engine; if it is unsuitable, the reason.
    fn option(
        &self,
        engine: Engine,
        image: &ImageFacts,
        filesystem: &FilesystemFacts,
    ) -> Result<Estimate, Refusal> {
        if let Some(unusable) = self.facts.unusable(engine) {
            return Err(reason::unusable(unusable));
        }
        if !works_on(engine, &filesystem.info) {
            return Err(not_xfs(&filesystem.info));
        }
        let estimate = estimate(engine, image, filesystem, self.policy);
        match engine {
            Engine::XfsFsr => self.idle_image(image, &estimate)?,
            Engine::BlockCopy => {
                let of_libvirt = image.user.as_ref().is_some_and(User::is_of_libvirt);
                if !of_libvirt {
                    return Err(ReasonCode::NotLibvirt.into());
                }
            }
            Engine::Online => {
                let features = filesystem.info.features;
                if !features.is_some_and(|features| features.reflink) {
                    return Err(ReasonCode::NoReflink.into());
                }
                if image.obstacles.contains(&ReasonCode::Dax) {
                    return Err(ReasonCode::Dax.into());
                }
            }
        }
        gains(image, &[engine])?;
        let keeps = self.policy.keep_free.of_bytes(filesystem.info.size);
        let (needs, has) = (estimate.needs, filesystem.info.free);
        if needs.saturating_add(keeps) > has {
            let text = format!("not enough free space (needs {needs}, has {has}, keeps {keeps})");
            return Err(Refusal::new(ReasonCode::NoSpace, text));
        }
        if engine != Engine::Online {
            // The online engine is not limited in this way: what it has moved leaves room for the rest.
            let space = filesystem.space.as_ref();
            space.map_or(Ok(()), |it| it.check_copy(image.allocated, image.extents))?;
        }
        Ok(estimate)
    }

    /// Checks what `xfs_fsr` requires of an image.
    fn idle_image(&self, image: &ImageFacts, estimate: &Estimate) -> Result<(), Refusal> {
        if let Some(user) = &image.user {
            return Err(reason::in_use(user, None, None));
        }
        if image.shares_blocks {
            return Err(ReasonCode::SharesBlocks.into());
        }
        let (stall, limit) = (estimate.stall, self.policy.max_swap_stall);
        if stall > limit {
            return Err(Refusal::swap_stall(stall, limit));
        }
        Ok(())
    }
}

/// Whether an engine works on file systems of this kind.
fn works_on(engine: Engine, filesystem: &Filesystem) -> bool {
    let is_xfs = filesystem.kind == FilesystemKind::Xfs;
    is_xfs || (engine == Engine::BlockCopy && filesystem.type_name == "ext4")
}

fn not_xfs(filesystem: &Filesystem) -> Refusal {
    let text = format!("on {}; only XFS is defragmented", filesystem.type_name);
    Refusal::new(ReasonCode::NotXfs, text)
}

/// Checks whether one of the engines can gain more than a little.
fn gains(image: &ImageFacts, engines: &[Engine]) -> Result<(), Refusal> {
    match image.outlook {
        Some(outlook) if engines.iter().all(|engine| outlook.is_little(*engine)) => {
            let why = outlook.why_little(engines);
            Err(Refusal::new(ReasonCode::LittleGain, why))
        }
        _ => Ok(()),
    }
}

fn filesystem_allows(filesystem: &FilesystemFacts) -> Result<(), Refusal> {
    if filesystem.stalled {
        return Err(ReasonCode::Stalled.into());
    }
    let Filesystem { size, free, .. } = filesystem.info;
    let used = size.0.saturating_sub(free.0);
    let millionths = u128::from(used) * u128::from(Share::WHOLE.0);
    let used = millionths.checked_div(u128::from(size.0));
    // Rounded up, so that a value just above the limit is not displayed as the limit.
    let percent = used.map_or(0, |used| used.div_ceil(10_000));
    if used.is_some_and(|used| used > u128::from(ALMOST_FULL.0)) {
        let used = Share::percent(u32::try_from(percent).unwrap_or(100));
        let text =
            format!("the file system is {used} full; above 95% a run would fragment what is left");
        return Err(Refusal::new(ReasonCode::AlmostFull, text));
    }
    Ok(())
}

/// Gain divided by cost.
fn worth(image: &ImageFacts) -> f64 {
    let best = |outlook: &Outlook| {
        let gains = Engine::ALL.map(|engine| outlook.gain(engine).likely.0);
        gains.into_iter().max()
    };
    let above_ideal = image.extents.0.saturating_sub(image.ideal.0);
    let gain = image.outlook.as_ref().and_then(best).unwrap_or(above_ideal);
    let growth = image.growth.map_or(0.0, |growth| growth.0);
    // Negative growth and NaN count as none.
    let growth = if growth > 0.0 { growth } else { 0.0 };
    // Precision loss beyond 2^53 does not matter.
    #[allow(clippy::cast_precision_loss)]
    let (gain, cost) = (gain as f64, image.allocated.0 as f64);
    (gain + growth * GROWTH_DAYS) / cost.max(LEAST_COST)
}

struct Lanes<'p, 'f> {
    planner: &'p Planner<'f>,
    /// For each file system with runs: when the last one ends, and how many there are.
    busy: BTreeMap<&'f str, (Timestamp, usize)>,
    /// When each slot for parallel runs becomes free.
    slots: Vec<Timestamp>,
    /// Number of runs placed.
    placed: usize,
}

impl<'p, 'f> Lanes<'p, 'f> {
    fn new(planner: &'p Planner<'f>) -> Lanes<'p, 'f> {
        let mut busy = BTreeMap::new();
        let mut slots = Vec::new();
        for filesystem in planner.filesystems.values() {
            if let Some(active) = &filesystem.active {
                // A run that takes longer than expected may end at any moment.
                let soon = planner.facts.now.checked_add(SHORTEST_TURN);
                let ends = soon.map_or(active.ends, |soon| active.ends.max(soon));
                busy.insert(filesystem.id.as_str(), (ends, 1));
                slots.push(ends);
            }
        }
        let parallel = usize::try_from(planner.policy.parallel).map_or(1, |it| it.max(1));
        slots.resize(parallel.max(slots.len()), planner.frame.opens);
        // If more runs than allowed are active, a slot becomes free only when enough have ended.
        slots.sort();
        slots.drain(..slots.len() - parallel);
        Lanes {
            planner,
            busy,
            slots,
            placed: 0,
        }
    }

    /// Places the next candidate in order of rank.
    fn place(&mut self, candidate: &Candidate<'f>) -> Decision {
        let id = candidate.filesystem.id.as_str();
        let Opening { opens, closes } = self.planner.frame;
        let (idle_from, there) = self.busy.get(id).copied().unwrap_or((opens, 0));
        let (slot, begins) = self.earliest(idle_from.max(opens));
        let Some((engine, estimate)) = candidate.option_within(begins, closes) else {
            return Decision::Not(self.too_late(candidate, there));
        };
        let ends = begins.checked_add(estimate.about).unwrap_or(closes);
        let ends = ends.min(closes);
        self.busy.insert(id, (ends, there + 1));
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = ends;
        }
        self.placed += 1;
        Decision::Runs(PlannedRun {
            engine,
            order: self.placed,
            begins,
            ends,
            estimate,
        })
    }

    /// Of the slots that are free at `from`, the one that became free last, so that the others
    /// remain for runs that can begin earlier; if there is none, the slot that becomes free first.
    fn earliest(&self, from: Timestamp) -> (usize, Timestamp) {
        let slots = || self.slots.iter().copied().enumerate();
        let by_then = slots().filter(|(_, free)| *free <= from);
        let slot = by_then
            .max_by_key(|(_, free)| *free)
            .or_else(|| slots().min_by_key(|(_, free)| *free));
        slot.map_or((0, from), |(slot, free)| (slot, free.max(from)))
    }

    /// The reason for lack of time: the window is too short, or other images come first, `there` of
    /// them on the same file system.
    fn too_late(&self, candidate: &Candidate<'f>, there: usize) -> Refusal {
        let Opening { opens, closes } = self.planner.frame;
        let alone = candidate.option_within(opens, closes);
        let closes = self.planner.moment(closes);
        if alone.is_some() {
            // Without a run on the same file system, runs on others have taken the slots.
            let ahead = if there == 0 {
                self.placed.max(1)
            } else {
                there
            };
            return reason::no_turn(&closes, ahead);
        }
        // The shortest run is the closest to fitting.
        let estimates = candidate.options.iter().map(|(_, estimate)| estimate);
        match estimates.min_by_key(|it| it.about) {
            Some(estimate) => reason::would_not_finish(&closes, estimate),
            None => ReasonCode::NoEngine.into(),
        }
    }
}

#[cfg(test)]
mod tests;
