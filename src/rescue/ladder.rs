//! Which step is taken when: a state machine that gets the time as an argument.
//!
//! # The rules
//!
//! An **incident** begins with the first match. Its first action is ordered at once; the actions
//! after it take the steps in their order, the last one again and again.
//!
//! **While matches go on.** A match means that an allocation has just failed. One that comes while
//! an action is in flight is only counted: the memory that the action brings may not have been
//! there yet. One that comes after the action's end proves that it did not suffice, and asks for
//! the next action. That action is ordered when all of these allow it, by a timer if need be:
//!
//! - no action is in flight;
//! - the last one was ordered `min_interval` ago or more;
//! - fewer than `max_actions_per_hour` were ordered in the last hour, in all incidents.
//!
//! So a match within `min_interval` is remembered, not dropped: kernels before 5.17 can stay silent
//! for half a minute between two messages of a thread that is stuck all the time, and to wait for
//! another message would leave it stuck as long. One remembered match asks for one action, however
//! many came.
//!
//! **The end.** An incident ends when there was neither a match nor an action for `quiet_after`;
//! time in which an action is in flight does not count, for a drop that hangs is no recovery. Nor
//! is silence: the kernel may just not have printed. That is why a new match after the end begins
//! a new incident at the first step, and at once: `min_interval` is at most `quiet_after`, so it is
//! always over by then. Only the hourly limit can hold back the first action of an incident.
//!
//! An action that fell due before the end is ordered even if nobody asked until after it: a host
//! that could not run this thread for a minute is not well.
//!
//! **The hourly limit** is a state of its own, entered when an action is due that the limit does not
//! allow and left when the limit allows one again, whether an incident goes on or not. Entering and
//! leaving are reported once each, and again for each incident that begins in it. The matches that
//! came meanwhile are counted.
//!
//! **New settings** ([`Ladder::set`]) apply from the next event on. The incident that goes on, the
//! action in flight and the orders of the last hour stay as they are.
//!
//! A drill needs a ladder of its own, or it would use up the interval and the hour of a rescue.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};

/// The hourly limit counts in a window of this length that slides.
const WINDOW: Duration = Duration::from_secs(3600);
/// Largest `max_actions_per_hour`: one a second. The ladder keeps as many times.
pub const MAX_ACTIONS_PER_HOUR: u32 = 3600;

/// How a ladder behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LadderSettings {
    /// The steps of an incident; the last one is repeated.
    pub steps: Vec<RescueStep>,
    /// Least time from one order to the next.
    pub min_interval: Duration,
    /// Least time without match or action that ends an incident.
    pub quiet_after: Duration,
    /// Most orders in any hour.
    pub max_actions_per_hour: u32,
}

/// Settings that make no ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LadderError {
    /// There is no step.
    #[error("there must be at least one step")]
    NoSteps,
    /// The hourly limit is none or too large to be one.
    #[error("the number of actions per hour must be between 1 and {MAX_ACTIONS_PER_HOUR}")]
    HourlyLimit,
    /// Incidents would end before they begin.
    #[error("the time after which an incident ends must be longer than none")]
    NoQuiet,
    /// Incidents could follow each other faster than actions.
    #[error("the interval between actions must not be longer than the time that ends an incident")]
    IntervalLongerThanQuiet,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Which incident it belongs to.
    pub incident: IncidentId,
    /// The step to take.
    pub step: RescueStep,
    /// Which action of the incident it is, from 1.
    pub number: u32,
}

/// An incident began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Began {
    /// Its number.
    pub incident: IncidentId,
    /// What made it begin.
    pub trigger: Trigger,
}

/// An incident ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub incident: IncidentId,
    /// What made it begin.
    pub trigger: Trigger,
    /// When it began.
    pub began: Monotonic,
    /// The last match.
    pub last_match: Monotonic,
    /// All matches.
    pub matches: u64,
    /// Those among them that came while an action was in flight.
    pub matches_in_flight: u64,
    /// Actions ordered.
    pub actions: u32,
    /// Those among them that failed.
    pub failed: u32,
    /// Matches that came while the hourly limit was reached.
    pub held_back: u64,
}

/// What follows from an event, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "an order that is not carried out blocks the ladder"]
pub struct Reaction {
    /// The incident before this event is over.
    pub ended: Option<Ended>,
    /// This event is the first of an incident.
    pub began: Option<Began>,
    /// An action is due. The ladder orders no other before [`Ladder::action_done`].
    pub order: Option<Order>,
    /// The hourly limit begins or ends to hold actions back.
    pub limit: Option<Limit>,
}

/// A change of the hourly limit's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// An action is due, but the hourly limit is reached.
    Reached,
    /// Actions are allowed again.
    Over {
        /// Matches of the incident that goes on that came while the limit was reached.
        held_back: u64,
    },
}

/// The state machine.
#[derive(Debug)]
pub struct Ladder {
    settings: Arc<LadderSettings>,
    /// When the last orders were given, [`MAX_ACTIONS_PER_HOUR`] of them whatever the limit is, so
    /// that a new limit needs no memory: a circle.
    ordered: Box<[Option<Monotonic>]>,
    /// Where the next order goes: after it is the oldest.
    next: usize,
    last_ordered: Option<Monotonic>,
    in_flight: bool,
    /// The hourly limit is reached.
    limited: bool,
    open: Option<Incident>,
    last_incident: IncidentId,
    /// The latest time so far: no event is before it.
    now: Monotonic,
}

/// The incident that goes on.
#[derive(Debug)]
struct Incident {
    tally: Ended,
    /// The last match or end of an action.
    last_sign: Monotonic,
    /// A match asks for an action.
    asked: bool,
}

impl Ended {
    /// An incident that begins.
    pub(super) fn begin(incident: IncidentId, trigger: Trigger, began: Monotonic) -> Ended {
        Ended {
            incident,
            trigger,
            began,
            last_match: began,
            matches: 0,
            matches_in_flight: 0,
            actions: 0,
            failed: 0,
            held_back: 0,
        }
    }
}

/// Counts one more.
fn count(number: &mut u64) {
    *number = number.saturating_add(1);
}

impl LadderSettings {
    /// Whether a ladder can be made of them.
    ///
    /// # Errors
    /// When they contradict the rules.
    pub fn check(&self) -> Result<(), LadderError> {
        if self.steps.is_empty() {
            return Err(LadderError::NoSteps);
        }
        if !(1..=MAX_ACTIONS_PER_HOUR).contains(&self.max_actions_per_hour) {
            return Err(LadderError::HourlyLimit);
        }
        if self.quiet_after.is_zero() {
            return Err(LadderError::NoQuiet);
        }
        if self.min_interval > self.quiet_after {
            return Err(LadderError::IntervalLongerThanQuiet);
        }
        Ok(())
    }
}

impl Ladder {
    /// A ladder at rest. All memory it will ever use is taken here.
    ///
    /// # Errors
    /// When the settings contradict the rules.
    pub fn new(settings: impl Into<Arc<LadderSettings>>) -> Result<Ladder, LadderError> {
        let settings = settings.into();
        settings.check()?;
        let most = usize::try_from(MAX_ACTIONS_PER_HOUR).unwrap_or(usize::MAX);
        Ok(Ladder {
            settings,
            ordered: vec![None; most].into_boxed_slice(),
            next: 0,
            last_ordered: None,
            in_flight: false,
            limited: false,
            open: None,
            last_incident: IncidentId(0),
            now: Monotonic(0),
        })
    }

    /// Replaces the settings by new ones, which have passed [`LadderSettings::check`]. Frees the old ones only
    /// if there is no other holder.
    pub fn set(&mut self, settings: Arc<LadderSettings>) {
        self.settings = settings;
    }

    /// XFS waits for memory.
    pub fn matched(&mut self, now: Monotonic, trigger: Trigger) -> Reaction {
        let now = self.advance(now);
        let mut reaction = Reaction {
            ended: self.end_if_quiet(now),
            limit: self.end_limit(now),
            ..Reaction::default()
        };
        if self.open.is_none() {
            reaction.began = Some(self.begin(now, trigger));
        }
        if let Some(incident) = &mut self.open {
            incident.last_sign = now;
            let tally = &mut incident.tally;
            tally.last_match = now;
            count(&mut tally.matches);
            if self.limited {
                count(&mut tally.held_back);
            }
            if self.in_flight {
                count(&mut tally.matches_in_flight);
            } else {
                incident.asked = true;
            }
        }
        self.order_if_due(now, &mut reaction);
        reaction
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Monotonic) -> Reaction {
        let now = self.advance(now);
        let mut reaction = Reaction {
            ended: self.end_if_quiet(now),
            limit: self.end_limit(now),
            ..Reaction::default()
        };
        self.order_if_due(now, &mut reaction);
        reaction
    }

    /// The action in flight came to its end. Without one, nothing happens.
    pub fn action_done(&mut self, now: Monotonic, outcome: Outcome) {
        let now = self.advance(now);
        if !std::mem::take(&mut self.in_flight) {
            return;
        }
        if let Some(incident) = &mut self.open {
            incident.last_sign = now;
            if outcome == Outcome::Failed {
                incident.tally.failed = incident.tally.failed.saturating_add(1);
            }
        }
    }

    /// Forgets all but the number of the last incident, so that the next drill begins afresh.
    pub fn reset(&mut self) {
        self.ordered.fill(None);
        self.next = 0;
        self.last_ordered = None;
        self.in_flight = false;
        self.limited = false;
        self.open = None;
    }

    /// Ends the incident that goes on, whatever its state, because nothing is to be done about it
    /// any more.
    pub fn give_up(&mut self) -> Option<Ended> {
        Some(self.open.take()?.tally)
    }

    /// When [`tick`](Ladder::tick) has something to do, unless another event comes first. `None`:
    /// only an event can change anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        if self.in_flight {
            return None;
        }
        let limit = self.limited.then(|| self.hour_from());
        let incident = self.open.as_ref().map(|incident| {
            let quiet = incident.last_sign.plus(self.settings.quiet_after);
            match incident.asked {
                true => quiet.min(self.allowed_from()),
                false => quiet,
            }
        });
        [limit, incident].into_iter().flatten().min()
    }

    /// The incident that goes on.
    #[must_use]
    pub fn incident(&self) -> Option<IncidentId> {
        self.open.as_ref().map(|incident| incident.tally.incident)
    }

    /// Whether an action was ordered that has not come to its end.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// A clock that went back is taken to stand still.
    fn advance(&mut self, now: Monotonic) -> Monotonic {
        self.now = self.now.max(now);
        self.now
    }

    fn begin(&mut self, now: Monotonic, trigger: Trigger) -> Began {
        self.last_incident = IncidentId(self.last_incident.0.saturating_add(1));
        let incident = self.last_incident;
        self.open = Some(Incident {
            tally: Ended::begin(incident, trigger, now),
            last_sign: now,
            asked: false,
        });
        Began { incident, trigger }
    }

    fn end_if_quiet(&mut self, now: Monotonic) -> Option<Ended> {
        let allowed_from = self.allowed_from();
        let quiet_after = self.settings.quiet_after;
        let in_flight = self.in_flight;
        let incident = self.open.take_if(|incident| {
            let quiet = incident.last_sign.plus(quiet_after);
            let due_before = incident.asked && allowed_from <= quiet;
            !in_flight && !due_before && now >= quiet
        })?;
        Some(incident.tally)
    }

    fn end_limit(&mut self, now: Monotonic) -> Option<Limit> {
        if !self.limited || now < self.hour_from() {
            return None;
        }
        self.limited = false;
        let held_back = self.open.as_ref().map_or(0, |open| open.tally.held_back);
        Some(Limit::Over { held_back })
    }

    fn order_if_due(&mut self, now: Monotonic, reaction: &mut Reaction) {
        let hour_from = self.hour_from();
        let allowed = now >= self.allowed_from();
        let Some(incident) = &mut self.open else {
            return;
        };
        if self.in_flight || !incident.asked {
            return;
        }
        if !allowed {
            if now < hour_from {
                let enters = !std::mem::replace(&mut self.limited, true);
                if enters {
                    count(&mut incident.tally.held_back);
                }
                if enters || reaction.began.is_some() {
                    reaction.limit = Some(Limit::Reached);
                }
            }
            return;
        }
        let tally = &mut incident.tally;
        let at = usize::try_from(tally.actions).unwrap_or(usize::MAX);
        let steps = &self.settings.steps;
        let Some(step) = steps.get(at).or(steps.last()) else {
            return;
        };
        incident.asked = false;
        tally.actions = tally.actions.saturating_add(1);
        reaction.order = Some(Order {
            incident: tally.incident,
            step: *step,
            number: tally.actions,
        });
        self.in_flight = true;
        self.last_ordered = Some(now);
        if let Some(slot) = self.ordered.get_mut(self.next) {
            *slot = Some(now);
        }
        self.next = match self.next + 1 {
            next if next < self.ordered.len() => next,
            _ => 0,
        };
    }

    /// From when on the interval and the hourly limit allow an order.
    fn allowed_from(&self) -> Monotonic {
        let interval_from = match self.last_ordered {
            Some(last) => last.plus(self.settings.min_interval),
            None => Monotonic(0),
        };
        interval_from.max(self.hour_from())
    }

    /// The same of the hourly limit alone: when the oldest of the orders that it counts is an hour
    /// old.
    fn hour_from(&self) -> Monotonic {
        let limit = usize::try_from(self.settings.max_actions_per_hour).unwrap_or(usize::MAX);
        let back = self.ordered.len().saturating_sub(limit);
        let at = self.next.saturating_add(back);
        let at = at.checked_rem(self.ordered.len()).unwrap_or(0);
        match self.ordered.get(at) {
            Some(Some(oldest)) => oldest.plus(WINDOW),
            _ => Monotonic(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    const STEPS: [RescueStep; 4] = [
        RescueStep::DropSlab,
        RescueStep::DropSlab,
        RescueStep::CompactMemory,
        RescueStep::DropAll,
    ];

    fn settings() -> LadderSettings {
        LadderSettings {
            steps: STEPS.to_vec(),
            min_interval: Duration::from_secs(2),
            quiet_after: Duration::from_secs(60),
            max_actions_per_hour: 120,
        }
    }

    fn ladder() -> Ladder {
        Ladder::new(settings()).unwrap()
    }

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * 1_000_000)
    }

    /// A match of the kernel log; the step that it leads to.
    fn hit(ladder: &mut Ladder, milliseconds: u64) -> Option<RescueStep> {
        let reaction = ladder.matched(at(milliseconds), Trigger::KernelLog);
        reaction.order.map(|order| order.step)
    }

    #[test]
    fn steps_follow_each_other_and_the_last_is_repeated() {
        let mut ladder = ladder();
        let mut steps = Vec::new();
        for second in [0, 3, 6, 9, 12, 15] {
            steps.extend(hit(&mut ladder, second * 1000));
            ladder.action_done(at(second * 1000 + 800), Outcome::Done);
        }
        assert_eq!(steps[..4], STEPS);
        assert_eq!(steps[4..], [RescueStep::DropAll, RescueStep::DropAll]);
    }

    #[test]
    fn a_match_within_the_interval_leads_to_an_action_at_its_end() {
        let mut ladder = ladder();
        assert!(hit(&mut ladder, 0).is_some());
        ladder.action_done(at(800), Outcome::Done);
        assert_eq!(ladder.next_deadline(), Some(at(60_800)));
        assert!(hit(&mut ladder, 1000).is_none());
        assert!(hit(&mut ladder, 1500).is_none());
        assert_eq!(ladder.next_deadline(), Some(at(2000)));
        assert_eq!(ladder.tick(at(1999)), Reaction::default());
        assert_eq!(ladder.tick(at(2000)).order.unwrap().number, 2);
        ladder.action_done(at(2100), Outcome::Done);
        // One action for both.
        assert_eq!(ladder.next_deadline(), Some(at(62_100)));
    }

    #[test]
    fn a_match_during_an_action_is_only_counted() {
        let mut ladder = ladder();
        assert!(hit(&mut ladder, 0).is_some());
        assert!(hit(&mut ladder, 5000).is_none());
        assert_eq!(ladder.next_deadline(), None);
        ladder.action_done(at(6000), Outcome::Failed);
        assert_eq!(ladder.tick(at(6000)), Reaction::default());
        let ended = ladder.tick(at(66_000)).ended.unwrap();
        assert_eq!((ended.matches, ended.matches_in_flight), (2, 1));
        assert_eq!((ended.actions, ended.failed), (1, 1));
        assert_eq!(ended.last_match, at(5000));
    }

    #[test]
    fn the_gaps_of_old_kernels_are_one_incident() {
        let mut ladder = ladder();
        for (number, second) in [0, 14, 32, 64].into_iter().enumerate() {
            let reaction = ladder.matched(at(second * 1000), Trigger::KernelLog);
            assert_eq!(reaction.began.is_some(), number == 0);
            assert_eq!(reaction.order.unwrap().step, STEPS[number]);
            ladder.action_done(at(second * 1000 + 900), Outcome::Done);
        }
    }

    #[test]
    fn a_new_incident_begins_at_the_first_step() {
        let mut ladder = ladder();
        assert_eq!(ladder.next_deadline(), None);
        assert!(hit(&mut ladder, 0).is_some());
        ladder.action_done(at(100), Outcome::Done);
        assert!(hit(&mut ladder, 3000).is_some());
        ladder.action_done(at(3100), Outcome::Done);
        // Nobody ticked in between: the end is noticed all the same.
        let reaction = ladder.matched(at(63_100), Trigger::Stall);
        assert_eq!(reaction.ended.unwrap().incident, IncidentId(1));
        let began = reaction.began.unwrap();
        assert_eq!(
            (began.incident, began.trigger),
            (IncidentId(2), Trigger::Stall)
        );
        let order = reaction.order.unwrap();
        assert_eq!((order.step, order.number), (STEPS[0], 1));
    }

    #[test]
    fn an_action_that_hangs_keeps_the_incident_open() {
        let mut ladder = ladder();
        assert!(hit(&mut ladder, 0).is_some());
        assert_eq!(ladder.tick(at(600_000)), Reaction::default());
        assert_eq!(ladder.incident(), Some(IncidentId(1)));
        ladder.action_done(at(600_000), Outcome::Done);
        assert_eq!(ladder.next_deadline(), Some(at(660_000)));
    }

    #[test]
    fn an_action_due_before_the_end_is_not_forgotten_by_a_late_thread() {
        let mut ladder = ladder();
        assert!(hit(&mut ladder, 0).is_some());
        ladder.action_done(at(100), Outcome::Done);
        assert!(hit(&mut ladder, 1000).is_none());
        let reaction = ladder.tick(at(300_000));
        assert_eq!(reaction.ended, None);
        assert_eq!(reaction.order.unwrap().number, 2);
    }

    #[test]
    fn the_hourly_limit_holds_across_incidents() {
        let mut ladder = Ladder::new(LadderSettings {
            max_actions_per_hour: 2,
            ..settings()
        })
        .unwrap();
        assert!(hit(&mut ladder, 0).is_some());
        ladder.action_done(at(0), Outcome::Done);
        assert!(ladder.tick(at(60_000)).ended.is_some());
        assert!(hit(&mut ladder, 100_000).is_some());
        ladder.action_done(at(100_000), Outcome::Done);
        assert!(ladder.tick(at(160_000)).ended.is_some());

        // A third incident has to wait, and ends before it may act.
        let reaction = ladder.matched(at(200_000), Trigger::KernelLog);
        assert!(reaction.began.is_some() && reaction.order.is_none());
        assert_eq!(reaction.limit, Some(Limit::Reached));
        assert_eq!(ladder.next_deadline(), Some(at(260_000)));
        let ended = ladder.tick(at(260_000)).ended.unwrap();
        assert_eq!((ended.actions, ended.held_back), (0, 1));

        // A fourth goes on until an hour after the first action.
        let mut second = 3_550;
        while second < 3_600 {
            let reaction = ladder.matched(at(second * 1000), Trigger::KernelLog);
            assert_eq!(reaction.order, None);
            // It is the same state as in the third, reported for this one too.
            let reached = reaction.began.map(|_| Limit::Reached);
            assert_eq!(reaction.limit, reached);
            second += 20;
        }
        assert_eq!(ladder.next_deadline(), Some(at(3_600_000)));
        let reaction = ladder.tick(at(3_600_000));
        assert!(reaction.order.is_some());
        assert_eq!(reaction.limit, Some(Limit::Over { held_back: 3 }));
        ladder.action_done(at(3_600_000), Outcome::Done);
        let reaction = ladder.matched(at(3_610_000), Trigger::KernelLog);
        assert_eq!(reaction.limit, Some(Limit::Reached));
        assert_eq!(ladder.next_deadline(), Some(at(3_670_000)));
        // Without an incident its end is noticed as well.
        assert!(ladder.tick(at(3_670_000)).ended.is_some());
        assert_eq!(ladder.next_deadline(), Some(at(3_700_000)));
        let reaction = ladder.tick(at(3_700_000));
        assert_eq!(reaction.limit, Some(Limit::Over { held_back: 0 }));
        assert_eq!(ladder.next_deadline(), None);
    }

    #[test]
    fn a_hundred_matches_at_the_limit_are_one_state() {
        let mut ladder = Ladder::new(LadderSettings {
            max_actions_per_hour: 1,
            ..settings()
        })
        .unwrap();
        assert!(hit(&mut ladder, 0).is_some());
        ladder.action_done(at(1), Outcome::Done);
        let limits = (0..100).filter_map(|number| {
            let reaction = ladder.matched(at(1000 + number * 1000), Trigger::KernelLog);
            reaction.limit
        });
        assert_eq!(limits.collect::<Vec<_>>(), [Limit::Reached]);
        let ended = ladder.tick(at(170_000)).ended.unwrap();
        assert_eq!((ended.matches, ended.held_back), (101, 100));
    }

    #[test]
    fn new_settings_keep_the_incident_and_the_hour() {
        let mut ladder = Ladder::new(LadderSettings {
            max_actions_per_hour: 2,
            ..settings()
        })
        .unwrap();
        for second in [0, 10] {
            assert!(hit(&mut ladder, second * 1000).is_some());
            ladder.action_done(at(second * 1000 + 1), Outcome::Done);
        }
        let change = |limit| {
            Arc::new(LadderSettings {
                steps: vec![RescueStep::DropAll],
                min_interval: Duration::from_secs(1),
                quiet_after: Duration::from_secs(100),
                max_actions_per_hour: limit,
            })
        };
        ladder.set(change(2));
        let reaction = ladder.matched(at(20_000), Trigger::KernelLog);
        assert_eq!((reaction.began, reaction.order), (None, None));
        assert_eq!(reaction.limit, Some(Limit::Reached));
        ladder.set(change(3));
        let reaction = ladder.tick(at(21_000));
        assert_eq!(reaction.limit, Some(Limit::Over { held_back: 1 }));
        let order = reaction.order.unwrap();
        assert_eq!(
            (order.number, order.step, order.incident),
            (3, RescueStep::DropAll, IncidentId(1))
        );
        ladder.action_done(at(21_000), Outcome::Done);
        // A limit that is lowered counts what was done before.
        ladder.set(change(1));
        assert!(hit(&mut ladder, 30_000).is_none());
        assert_eq!(ladder.next_deadline(), Some(at(130_000)));
        assert_eq!(ladder.tick(at(130_000)).ended.unwrap().matches, 4);
        assert_eq!(ladder.next_deadline(), Some(at(3_621_000)));
        assert_eq!(ladder.give_up(), None);
    }

    #[test]
    fn a_clock_that_goes_back_stands_still() {
        let mut ladder = ladder();
        assert!(hit(&mut ladder, 10_000).is_some());
        ladder.action_done(at(5_000), Outcome::Done);
        assert!(hit(&mut ladder, 0).is_none());
        assert_eq!(ladder.next_deadline(), Some(at(12_000)));
    }

    #[test]
    fn a_drill_begins_afresh() {
        let mut ladder = Ladder::new(LadderSettings {
            max_actions_per_hour: 1,
            ..settings()
        })
        .unwrap();
        for number in 1..4 {
            let reaction = ladder.matched(at(number), Trigger::Drill);
            assert_eq!(reaction.began.unwrap().incident, IncidentId(number));
            assert_eq!(reaction.order.unwrap().number, 1);
            ladder.reset();
            assert_eq!(ladder.next_deadline(), None);
        }
    }

    #[test]
    fn what_makes_no_ladder() {
        let error = |change: fn(&mut LadderSettings)| {
            let mut settings = settings();
            change(&mut settings);
            Ladder::new(settings).unwrap_err()
        };
        assert_eq!(error(|s| s.steps.clear()), LadderError::NoSteps);
        assert_eq!(
            error(|s| s.max_actions_per_hour = 0),
            LadderError::HourlyLimit
        );
        assert_eq!(
            error(|s| s.max_actions_per_hour = 3601),
            LadderError::HourlyLimit
        );
        assert_eq!(
            error(|s| s.quiet_after = Duration::ZERO),
            LadderError::NoQuiet
        );
        assert_eq!(
            error(|s| s.min_interval = Duration::from_secs(61)),
            LadderError::IntervalLongerThanQuiet
        );
    }

    /// What may happen to a ladder, each after some milliseconds.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Match,
        Tick,
        /// Wait for the deadline, if there is one, and tick.
        Deadline,
        Done,
    }

    /// The rules, told a second time and slowly: nothing is kept but the whole history, and every
    /// question is answered by reading it.
    #[derive(Default)]
    struct History {
        began: Vec<u64>,
        ended: Vec<u64>,
        matches: Vec<u64>,
        ordered: Vec<u64>,
        done: Vec<u64>,
    }

    const INTERVAL: u64 = 2_000;
    const QUIET: u64 = 60_000;
    const LIMIT: usize = 40;

    impl History {
        fn is_open(&self) -> bool {
            self.began.len() > self.ended.len()
        }

        fn in_flight(&self) -> bool {
            self.ordered.len() > self.done.len()
        }

        /// Events of the incident that goes on.
        fn own<'a>(&'a self, times: &'a [u64], ended: &[usize]) -> &'a [u64] {
            &times[ended.last().copied().unwrap_or(0)..]
        }

        fn may_order(&self, now: u64) -> bool {
            let in_the_hour = self.ordered.iter().filter(|time| **time + 3_600_000 > now);
            in_the_hour.count() < LIMIT
                && self
                    .ordered
                    .last()
                    .is_none_or(|last| last + INTERVAL <= now)
        }

        fn allowed_from(&self) -> u64 {
            let mut candidates = vec![0];
            candidates.extend(self.ordered.last().map(|last| last + INTERVAL));
            candidates.extend(self.ordered.iter().map(|time| time + 3_600_000));
            candidates.sort_unstable();
            let from = candidates.into_iter().find(|time| {
                self.ordered.last().is_none_or(|last| last <= time) && self.may_order(*time)
            });
            from.unwrap()
        }
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let pause = prop_oneof![
            4 => 0_u64..3_000,
            1 => 0_u64..100_000,
            1 => Just(0_u64),
            1 => select(vec![INTERVAL, QUIET, QUIET - 1]),
        ];
        let event = prop_oneof![
            4 => Just(Event::Match),
            1 => Just(Event::Tick),
            3 => Just(Event::Deadline),
            4 => Just(Event::Done),
        ];
        vec((pause, event), 0..400)
    }

    proptest! {
        #[test]
        fn the_ladder_does_what_the_rules_say(events in events()) {
            let mut ladder = Ladder::new(LadderSettings {
                max_actions_per_hour: u32::try_from(LIMIT).unwrap(),
                ..settings()
            }).unwrap();
            let mut history = History::default();
            // Where the matches and orders of ended incidents end.
            let (mut old_matches, mut old_orders, mut old_done) = (vec![0], vec![0], vec![0]);
            let mut asked = false;
            let mut now = 0;

            for (pause, event) in events {
                now += pause;
                if let (Event::Deadline, Some(deadline)) = (event, ladder.next_deadline()) {
                    now = now.max(deadline.0 / 1_000_000);
                }

                // What the history says must happen.
                let mut expected_end = false;
                let mut expected_begin = false;
                let mut expected_order = false;
                match event {
                    Event::Done => {
                        if history.in_flight() {
                            history.done.push(now);
                        }
                    }
                    Event::Match | Event::Tick | Event::Deadline => {
                        if history.is_open() && !history.in_flight() {
                            let last_match = history.own(&history.matches, &old_matches).last();
                            let last_done = history.own(&history.done, &old_done).last();
                            let quiet = last_match.max(last_done).unwrap() + QUIET;
                            let due_first = asked && history.allowed_from() <= quiet;
                            expected_end = now >= quiet && !due_first;
                        }
                        if expected_end {
                            history.ended.push(now);
                            old_matches.push(history.matches.len());
                            old_orders.push(history.ordered.len());
                            old_done.push(history.done.len());
                            asked = false;
                        }
                        if matches!(event, Event::Match) {
                            if !history.is_open() {
                                expected_begin = true;
                                history.began.push(now);
                            }
                            history.matches.push(now);
                            asked |= !history.in_flight();
                        }
                        expected_order = asked && !history.in_flight() && history.may_order(now);
                        if expected_order {
                            history.ordered.push(now);
                            asked = false;
                        }
                    }
                }

                let reaction = match event {
                    Event::Match => ladder.matched(at(now), Trigger::KernelLog),
                    Event::Tick | Event::Deadline => ladder.tick(at(now)),
                    Event::Done => {
                        ladder.action_done(at(now), Outcome::Done);
                        Reaction::default()
                    }
                };
                prop_assert_eq!(reaction.ended.is_some(), expected_end);
                prop_assert_eq!(reaction.began.is_some(), expected_begin);
                prop_assert_eq!(reaction.order.is_some(), expected_order);
                prop_assert_eq!(ladder.in_flight(), history.in_flight());
                prop_assert_eq!(ladder.incident().is_some(), history.is_open());
                if let Some(order) = reaction.order {
                    let number = history.ordered.len() - old_orders.last().unwrap();
                    prop_assert_eq!(order.number as usize, number);
                    prop_assert_eq!(order.step, STEPS[number.min(STEPS.len()) - 1]);
                    prop_assert_eq!(order.incident, ladder.incident().unwrap());
                    prop_assert_eq!(order.incident, IncidentId(history.began.len() as u64));
                }
            }

            // Whatever happened, in other words.
            for pair in history.ordered.windows(2) {
                prop_assert!(pair[1] - pair[0] >= INTERVAL);
            }
            for hour in history.ordered.windows(LIMIT + 1) {
                prop_assert!(hour[LIMIT] - hour[0] >= 3_600_000);
            }
            for (order, done) in history.ordered.iter().skip(1).zip(&history.done) {
                prop_assert!(order >= done, "two in flight");
            }
        }

        /// A thread that only sleeps until the next deadline comes to rest.
        #[test]
        fn every_incident_ends(events in events()) {
            let mut ladder = ladder();
            let mut now = 0;
            for (pause, event) in events {
                now += pause;
                match event {
                    Event::Match => _ = ladder.matched(at(now), Trigger::KernelLog),
                    Event::Tick | Event::Deadline => _ = ladder.tick(at(now)),
                    Event::Done => ladder.action_done(at(now), Outcome::Done),
                }
            }
            ladder.action_done(at(now), Outcome::Done);
            let mut ticks = 0;
            let mut last = at(0);
            while let Some(deadline) = ladder.next_deadline() {
                let time = deadline.max(at(now));
                prop_assert!(time > last || ticks == 0, "a deadline that changes nothing");
                last = time;
                if ladder.tick(time).order.is_some() {
                    ladder.action_done(time, Outcome::Done);
                }
                ticks += 1;
                prop_assert!(ticks < 6);
            }
            prop_assert_eq!(ladder.incident(), None);
        }
    }
}
