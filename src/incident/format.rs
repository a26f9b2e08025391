//! The JSON format of incident files, read by `fragwatch incidents` and by the operator's hook.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::hook::{HookReport, Moment};
use crate::model::words::words;
use crate::model::{Outcome, RescueStep, Trigger};
use crate::rescue::entry::Report;
use crate::rescue::proof::Counters;

/// Incremented only if the meaning of a key changes.
pub const SCHEMA: u32 = 1;

/// An incident as stored in its file. Keys are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Permanent name: `20261120T120305.123Z-1`.
    pub id: String,
    /// Number since the start of the daemon.
    pub number: u64,
    /// State.
    pub state: IncidentState,
    /// Trigger; `None` if the notice of its start was lost.
    pub trigger: Option<Trigger>,
    /// Start: RFC 3339.
    pub began: String,
    /// When the end was detected: RFC 3339.
    pub ended: Option<String>,
    /// Time from the start to `ended`.
    pub duration_ms: Option<u64>,
    /// Time from the start to the last sign that XFS waits for memory.
    pub last_match_ms: Option<u64>,
    /// Kernel release.
    pub kernel: String,
    /// Host name.
    pub host: String,
    /// Version of fragwatch.
    pub version: String,
    /// Signs that XFS waits for memory; in an open incident, all lines and stalls recorded so far.
    pub matches: u64,
    /// Matches that arrived while an action was in flight.
    pub matches_in_flight: u64,
    /// Number of actions.
    pub actions: u32,
    /// Number of failed actions.
    pub failed: u32,
    /// Slab memory freed by drops, in KiB.
    pub slab_freed_kib: u64,
    /// Events in chronological order.
    pub events: Vec<Event>,
    /// Events omitted from the middle because there were too many.
    pub events_left_out: u64,
    /// Evidence from the start and from the end.
    pub evidence: Vec<TakenEvidence>,
    /// Results of the hooks.
    pub hooks: Vec<HookReport>,
}

impl Incident {
    /// The recorded actions in chronological order.
    pub fn actions(&self) -> impl DoubleEndedIterator<Item = &Action> {
        self.events.iter().filter_map(|event| match &event.what {
            EventKind::Action(action) => Some(&**action),
            _ => None,
        })
    }
}

words! {
    /// State of an incident.
    #[derive(Default)]
    pub enum IncidentState {
        /// In progress.
        #[default]
        Open = "open",
        /// Over.
        Ended = "ended",
        /// The daemon ended before the incident did.
        Interrupted = "interrupted",
    }
}

/// An event of an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time: RFC 3339.
    pub at: String,
    /// Time since the start of the incident; negative before it.
    pub after_ms: i64,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// Kinds of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// A line matched a rule.
    Line {
        /// Name of the rule.
        rule: String,
        /// The line, truncated.
        text: String,
        /// The kernel's timestamp, in microseconds since boot.
        #[serde(default)]
        kernel_us: Option<u64>,
        /// The log file; `None` for a line of the kernel log.
        #[serde(default)]
        file: Option<String>,
    },
    /// A task is stuck in the allocator, called by XFS.
    Stall {
        /// Thread ID.
        tid: u32,
        /// Name of the task.
        comm: String,
        /// Duration of the stall.
        for_ms: u64,
        /// Kernel stack, innermost function first.
        stack: Vec<String>,
    },
    /// An action.
    Action(Box<Action>),
    /// Actions were due, but the hourly limit was reached.
    Limited {
        /// Number of matches held back, as far as known.
        times: u64,
    },
    /// An event kind of a later version.
    #[serde(other)]
    Unknown,
}

/// An action and its effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What was done.
    pub step: RescueStep,
    /// Number within the incident, from 1.
    pub number: u32,
    /// Whether it worked.
    pub outcome: Outcome,
    /// Error of the write.
    #[serde(default)]
    pub error: Option<String>,
    /// Time from reading the trigger to the start of the write.
    pub reaction_us: u64,
    /// Duration of the write.
    pub duration_us: u64,
    /// Age of `before` when the write began.
    pub before_age_ms: u64,
    /// Counters before the write.
    pub before: Counters,
    /// Counters after the write.
    pub after: Counters,
}

impl From<&Report> for Action {
    fn from(report: &Report) -> Action {
        let error = i32::try_from(report.error).unwrap_or(0);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Action {
            step: report.order.step,
            number: report.order.number,
            outcome: report.outcome,
            error: (error != 0).then(|| io::Error::from_raw_os_error(error).to_string()),
            reaction_us: micros(report.began.since(report.read)),
            duration_us: micros(report.ended.since(report.began)),
            before_age_ms: millis(report.began.since(report.before_at)),
            before: report.before,
            after: report.after,
        }
    }
}

impl Action {
    /// Slab memory freed, in KiB; 0 if the step was not a drop or did not succeed.
    pub fn slab_freed_kib(&self) -> u64 {
        let drops = matches!(self.step, RescueStep::DropSlab | RescueStep::DropAll);
        if !drops || self.outcome != Outcome::Done {
            return 0;
        }
        self.before.slab_kib().saturating_sub(self.after.slab_kib())
    }
}

/// Evidence and when it was collected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakenEvidence {
    /// At which moment of the incident.
    pub moment: Moment,
    /// What was collected.
    #[serde(flatten)]
    pub evidence: Evidence,
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
