//! The file of an incident: JSON, read by `fragwatch incidents` and by the operator's hook.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::hook::{HookReport, Moment};
use crate::model::{Outcome, RescueStep, Trigger};
use crate::rescue::entry::Report;
use crate::rescue::proof::Counters;

/// Raised only if a key has to change its meaning.
pub const SCHEMA: u32 = 1;

/// An incident, as its file has it. Keys are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its permanent name: `20261120T120305.123Z-1`.
    pub id: String,
    /// Its number since the start of the daemon.
    pub number: u64,
    /// How far it is.
    pub state: State,
    /// Its trigger; `None` if the notice of its begin was lost.
    pub trigger: Option<Trigger>,
    /// When it began: RFC 3339.
    pub began: String,
    /// When its end was noticed.
    pub ended: Option<String>,
    /// From its begin to the noticing of its end.
    pub duration_ms: Option<u64>,
    /// From its begin to the last sign of XFS waiting for memory.
    pub last_match_ms: Option<u64>,
    /// The kernel's release.
    pub kernel: String,
    /// The name of the host.
    pub host: String,
    /// The version of fragwatch.
    pub version: String,
    /// Signs of XFS waiting for memory; while it goes on, all lines and stalls that were recorded.
    pub matches: u64,
    /// Those among them that came while an action was in flight.
    pub matches_in_flight: u64,
    /// Actions.
    pub actions: u32,
    /// Those among them that failed.
    pub failed: u32,
    /// Slab memory that drops gave back, in KiB.
    pub slab_freed_kib: u64,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Events in the middle that were too many to keep.
    pub events_left_out: u64,
    /// How the host looked, at the begin and at the end.
    pub evidence: Vec<TakenEvidence>,
    /// The outcomes of the hooks.
    pub hooks: Vec<HookReport>,
}

/// How far an incident is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It goes on.
    #[default]
    Open,
    /// It is over.
    Ended,
    /// The daemon ended before it did.
    Interrupted,
}

impl State {
    /// The name in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Ended => "ended",
            State::Interrupted => "interrupted",
        }
    }
}

/// Something that happened in an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When: RFC 3339.
    pub at: String,
    /// The same, from the begin of the incident; below zero if before it.
    pub after_ms: i64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A line matched a rule.
    Line {
        /// The rule.
        rule: String,
        /// The line, as much of it as is kept.
        text: String,
        /// The kernel's own time of it, in microseconds since boot.
        #[serde(default)]
        kernel_us: Option<u64>,
        /// The log file it came from, if not from the kernel itself.
        #[serde(default)]
        file: Option<String>,
    },
    /// A task that is stuck in the allocator underneath XFS.
    Stall {
        /// The thread.
        tid: u32,
        /// Its name.
        comm: String,
        /// For how long.
        for_ms: u64,
        /// Its kernel stack, innermost function first.
        stack: Vec<String>,
    },
    /// An action.
    Action(Box<Action>),
    /// Actions were due, but the hourly limit was reached.
    Limited {
        /// For how many matches, as far as known.
        times: u64,
    },
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// An action and what it brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What was done.
    pub step: RescueStep,
    /// Which action of the incident it was, from 1.
    pub number: u32,
    /// How it came out.
    pub outcome: Outcome,
    /// The error of the write.
    #[serde(default)]
    pub error: Option<String>,
    /// From the reading of its reason to its begin.
    pub reaction_us: u64,
    /// How long the write took.
    pub duration_us: u64,
    /// How long before the write `before` was read.
    pub before_age_ms: u64,
    /// The counters before.
    pub before: Memory,
    /// The counters after.
    pub after: Memory,
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
            before: Memory::from(&report.before),
            after: Memory::from(&report.after),
        }
    }
}

impl Action {
    /// Slab memory that it gave back, in KiB; 0 if it was not a drop, or not done.
    pub fn slab_freed_kib(&self) -> u64 {
        let drops = matches!(self.step, RescueStep::DropSlab | RescueStep::DropAll);
        if !drops || self.outcome != Outcome::Done {
            return 0;
        }
        self.before.slab_kib().saturating_sub(self.after.slab_kib())
    }
}

/// Counters of the kernel's memory; see [`Counters`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Drops of slab objects since boot.
    pub drop_slab: u64,
    /// Drops of the page cache since boot.
    pub drop_pagecache: u64,
    /// Pages that compaction looked at.
    pub compact_scanned: u64,
    /// Compactions that failed.
    pub compact_fail: u64,
    /// Tasks that had to reclaim memory themselves.
    pub allocation_stalls: u64,
    /// Reclaimable slab memory.
    pub slab_reclaimable_kib: u64,
    /// Slab memory that cannot be reclaimed.
    pub slab_unreclaimable_kib: u64,
    /// Free blocks of 2^n pages.
    pub free_blocks: Vec<u64>,
}

impl Memory {
    /// All slab memory.
    pub fn slab_kib(&self) -> u64 {
        self.slab_reclaimable_kib
            .saturating_add(self.slab_unreclaimable_kib)
    }
}

impl From<&Counters> for Memory {
    fn from(counters: &Counters) -> Memory {
        Memory {
            drop_slab: counters.drop_slab,
            drop_pagecache: counters.drop_pagecache,
            compact_scanned: counters.compact_scanned,
            compact_fail: counters.compact_fail,
            allocation_stalls: counters.allocation_stalls,
            slab_reclaimable_kib: counters.slab_reclaimable,
            slab_unreclaimable_kib: counters.slab_unreclaimable,
            free_blocks: counters.free_blocks.to_vec(),
        }
    }
}

/// Evidence, and when it was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakenEvidence {
    /// At the begin or at the end.
    pub moment: Moment,
    /// What was found.
    #[serde(flatten)]
    pub evidence: Evidence,
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
