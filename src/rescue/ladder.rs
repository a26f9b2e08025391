//! Decides which step is taken when: a state machine that gets the time as an argument.
//!
//! An **incident** begins with the first match. Its first action is ordered at once; later actions
//! take the steps in order and repeat the last one.
//!
//! **Further matches.** A match means that an allocation has just failed. While an action is in
//! flight it is only counted: the memory freed by the action may not have been available yet. A
//! match after the end of the action proves that it did not suffice, and requests the next one,
//! which is ordered, by a timer if need be, as soon as
//!
//! - no action is in flight,
//! - the last one was ordered at least `min_interval` ago, and
//! - fewer than `max_actions_per_hour` were ordered in the last hour, in all incidents.
//!
//! A match within `min_interval` is remembered: kernels before 5.17 can be silent for half a minute
//! between two messages of a stuck thread, and waiting for another message would leave it stuck as
//! long. Any number of remembered matches requests one action.
//!
//! **The end.** An incident ends after `quiet_after` without a match or an action. Time with an
//! action in flight does not count, since a drop that hangs is no recovery. Silence is no proof of
//! recovery either: the kernel may just not have printed. So a match after the end begins a new
//! incident at the first step, and at once: `min_interval` is at most `quiet_after` and has elapsed
//! by then. Only the hourly limit can delay the first action of an incident. An action that became
//! due before the end is ordered even if no event came until after it: a host that could not run
//! this thread for a minute is not healthy.
//!
//! **The hourly limit** is a state of its own, with or without an incident: entered when an action
//! is due that the limit forbids, and left when the limit allows one again. Both changes are
//! reported once, entering also for each incident that begins in this state. Its matches are
//! counted.
//!
//! **New settings** ([`Ladder::set`]) apply from the next event on. The open incident, the action
//! in flight and the orders of the last hour are kept. A drill needs its own ladder; otherwise it
//! would use up the interval and the hourly limit of a rescue.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};

/// Length of the sliding window of the hourly limit.
const WINDOW: Duration = Duration::from_secs(3600);
/// Maximum of `max_actions_per_hour`: one per second. The ladder stores as many times.
pub const MAX_ACTIONS_PER_HOUR: u32 = 3600;

/// Settings of a ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LadderSettings {
    /// Steps of an incident; the last one is repeated.
    pub steps: Vec<RescueStep>,
    /// Minimum time between two orders.
    pub min_interval: Duration,
    /// Time without a match or an action after which an incident ends.
    pub quiet_after: Duration,
    /// Maximum number of orders in any hour.
    pub max_actions_per_hour: u32,
}

/// Invalid settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LadderError {
    #[error("there must be at least one step")]
    NoSteps,
    #[error("the number of actions per hour must be between 1 and {MAX_ACTIONS_PER_HOUR}")]
    HourlyLimit,
    #[error("the time after which an incident ends must be longer than none")]
    NoQuiet,
    #[error("the interval between actions must not be longer than the time that ends an incident")]
    IntervalLongerThanQuiet,
}

/// An action to be carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order {
    /// The incident it belongs to.
    pub incident: IncidentId,
    /// The step to take.
    pub step: RescueStep,
    /// Number of the action within the incident, from 1.
    pub number: u32,
}

/// An incident began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Began {
    /// Number of the incident.
    pub incident: IncidentId,
    /// Trigger of the incident.
    pub trigger: Trigger,
}

/// An incident ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Number of the incident.
    pub incident: IncidentId,
    /// Trigger of the incident.
    pub trigger: Trigger,
    /// When it began.
    pub began: Monotonic,
    /// Time of the last match.
    pub last_match: Monotonic,
    /// Number of matches.
    pub matches: u64,
    /// Matches that came while an action was in flight.
    pub matches_in_flight: u64,
    /// Number of actions ordered.
    pub actions: u32,
    /// Number of failed actions.
    pub failed: u32,
    /// Matches held back by the hourly limit.
    pub held_back: u64,
}

/// Results of an event, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "an order that is not carried out blocks the ladder"]
pub struct Reaction {
    /// The previous incident has ended.
    pub ended: Option<Ended>,
    /// A new incident has begun.
    pub began: Option<Began>,
    /// An action is due. No other is ordered before [`Ladder::action_done`].
    pub order: Option<Order>,
    /// The hourly limit begins or ends.
    pub limit: Option<Limit>,
}

/// A change of the hourly limit's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// An action is due, but the hourly limit is reached.
    Reached,
    /// Actions are allowed again.
    Over {
        /// Matches held back in the open incident.
        held_back: u64,
    },
}

/// The state machine.
#[derive(Debug)]
pub struct Ladder {
    settings: Arc<LadderSettings>,
    /// Ring buffer of the latest orders, of maximum size so that a new limit needs no memory.
    ordered: Box<[Option<Monotonic>]>,
    /// Index of the next order; the oldest order is overwritten.
    next: usize,
    last_ordered: Option<Monotonic>,
    in_flight: bool,
    limited: bool,
    open: Option<OpenIncident>,
    last_incident: IncidentId,
    /// Latest time so far; no event is earlier.
    now: Monotonic,
}

#[derive(Debug)]
struct OpenIncident {
    tally: Ended,
    /// Time of the last match or end of an action.
    last_sign: Monotonic,
    /// Whether a match requests an action.
    asked: bool,
}

impl LadderSettings {
    /// Checks the settings against the rules.
    pub fn check(&self) -> Result<(), LadderError> {
        let hourly = 1..=MAX_ACTIONS_PER_HOUR;
        match self {
            _ if self.steps.is_empty() => Err(LadderError::NoSteps),
            _ if !hourly.contains(&self.max_actions_per_hour) => Err(LadderError::HourlyLimit),
            _ if self.quiet_after.is_zero() => Err(LadderError::NoQuiet),
            _ if self.min_interval > self.quiet_after => Err(LadderError::IntervalLongerThanQuiet),
            _ => Ok(()),
        }
    }
}

impl Ladder {
    /// Creates a ladder at rest with all the memory it will use. Fails if the settings are invalid.
    pub fn new(settings: impl Into<Arc<LadderSettings>>) -> Result<Ladder, LadderError> {
        let settings = settings.into();
        settings.check()?;
        Ok(Ladder {
            settings,
            ordered: vec![None; MAX_ACTIONS_PER_HOUR as usize].into_boxed_slice(),
            next: 0,
            last_ordered: None,
            in_flight: false,
            limited: false,
            open: None,
            last_incident: IncidentId(0),
            now: Monotonic(0),
        })
    }

    /// Replaces the settings by checked ones. Frees the old ones only if there is no other holder.
    pub fn set(&mut self, settings: Arc<LadderSettings>) {
        self.settings = settings;
    }

    /// Handles a match: XFS waits for memory.
    pub fn matched(&mut self, now: Monotonic, trigger: Trigger) -> Reaction {
        let mut reaction = self.advance(now);
        if self.open.is_none() {
            reaction.began = Some(self.begin(trigger));
        }
        if let Some(incident) = &mut self.open {
            incident.last_sign = self.now;
            let tally = &mut incident.tally;
            tally.last_match = self.now;
            tally.matches += 1;
            tally.held_back += u64::from(self.limited);
            tally.matches_in_flight += u64::from(self.in_flight);
            incident.asked |= !self.in_flight;
        }
        self.order_if_due(&mut reaction);
        reaction
    }

    /// Handles the passage of time.
    pub fn tick(&mut self, now: Monotonic) -> Reaction {
        let mut reaction = self.advance(now);
        self.order_if_due(&mut reaction);
        reaction
    }

    /// Handles the end of the action in flight. Does nothing if there is none.
    pub fn action_done(&mut self, now: Monotonic, outcome: Outcome) {
        self.now = self.now.max(now);
        if std::mem::take(&mut self.in_flight)
            && let Some(incident) = &mut self.open
        {
            incident.last_sign = self.now;
            incident.tally.failed += u32::from(outcome == Outcome::Failed);
        }
    }

    /// Forgets everything but the last incident number, so that the next drill starts afresh.
    pub fn reset(&mut self) {
        self.ordered.fill(None);
        self.next = 0;
        self.last_ordered = None;
        self.in_flight = false;
        self.limited = false;
        self.open = None;
    }

    /// Ends the open incident unconditionally; no further action will be taken.
    pub fn give_up(&mut self) -> Option<Ended> {
        Some(self.open.take()?.tally)
    }

    /// When [`tick`](Ladder::tick) is needed next; `None` if only another event has an effect.
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

    /// The open incident.
    pub fn incident(&self) -> Option<IncidentId> {
        self.open.as_ref().map(|incident| incident.tally.incident)
    }

    /// What ends by this time. A clock that goes back is treated as standing still.
    fn advance(&mut self, now: Monotonic) -> Reaction {
        self.now = self.now.max(now);
        Reaction {
            ended: self.end_if_quiet(),
            limit: self.end_limit(),
            ..Reaction::default()
        }
    }

    fn begin(&mut self, trigger: Trigger) -> Began {
        self.last_incident.0 += 1;
        let incident = self.last_incident;
        self.open = Some(OpenIncident {
            tally: Ended {
                incident,
                trigger,
                began: self.now,
                ..Ended::default()
            },
            last_sign: self.now,
            asked: false,
        });
        Began { incident, trigger }
    }

    fn end_if_quiet(&mut self) -> Option<Ended> {
        let now = self.now;
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

    fn end_limit(&mut self) -> Option<Limit> {
        if !self.limited || self.now < self.hour_from() {
            return None;
        }
        self.limited = false;
        let held_back = self.open.as_ref().map_or(0, |open| open.tally.held_back);
        Some(Limit::Over { held_back })
    }

    fn order_if_due(&mut self, reaction: &mut Reaction) {
        let (hour_from, allowed_from) = (self.hour_from(), self.allowed_from());
        let asked = self.open.as_mut().filter(|incident| incident.asked);
        let Some(incident) = asked.filter(|_| !self.in_flight) else {
            return;
        };
        if self.now < allowed_from {
            if self.now < hour_from {
                let enters = !std::mem::replace(&mut self.limited, true);
                incident.tally.held_back += u64::from(enters);
                if enters || reaction.began.is_some() {
                    reaction.limit = Some(Limit::Reached);
                }
            }
            return;
        }
        let tally = &mut incident.tally;
        let steps = &self.settings.steps;
        let Some(step) = steps.get(tally.actions as usize).or(steps.last()) else {
            return;
        };
        incident.asked = false;
        tally.actions += 1;
        reaction.order = Some(Order {
            incident: tally.incident,
            step: *step,
            number: tally.actions,
        });
        self.in_flight = true;
        self.last_ordered = Some(self.now);
        if let Some(slot) = self.ordered.get_mut(self.next) {
            *slot = Some(self.now);
        }
        self.next = (self.next + 1) % self.ordered.len().max(1);
    }

    /// When the interval and the hourly limit next allow an order.
    fn allowed_from(&self) -> Monotonic {
        let after = |last: Monotonic| last.plus(self.settings.min_interval);
        self.last_ordered
            .map_or(Monotonic(0), after)
            .max(self.hour_from())
    }

    /// When the hourly limit allows an order: an hour after the oldest order that it counts.
    fn hour_from(&self) -> Monotonic {
        let (slots, limit) = (self.ordered.len(), self.settings.max_actions_per_hour);
        let at = self.next + slots.saturating_sub(limit as usize);
        let oldest = self.ordered.get(at % slots.max(1)).copied().flatten();
        oldest.map_or(Monotonic(0), |oldest| oldest.plus(WINDOW))
    }
}

#[cfg(test)]
mod tests;
