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
//! An action that fell due before the end is ordered even if no event came until after it: a host
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
    pub fn incident(&self) -> Option<IncidentId> {
        self.open.as_ref().map(|incident| incident.tally.incident)
    }

    /// Whether an action was ordered that has not come to its end.
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
mod tests;
