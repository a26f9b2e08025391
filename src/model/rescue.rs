//! Types of the rescue: triggers, steps, outcomes, rules.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::units;
use super::words::words;

units! {
    /// A time of `CLOCK_MONOTONIC`, in nanoseconds. It is one word, so that it goes through the
    /// rings of the rescue unchanged; it overflows after 584 years.
    Monotonic(u64),
    /// Number of an incident, counted from 1 since the start of the daemon.
    IncidentId(u64),
}

impl Monotonic {
    /// This time plus `later`, saturating.
    pub fn plus(self, later: Duration) -> Monotonic {
        let nanoseconds = u64::try_from(later.as_nanos()).unwrap_or(u64::MAX);
        Monotonic(self.0.saturating_add(nanoseconds))
    }

    /// Time elapsed since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A task that is stuck in the allocator below XFS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckTask {
    /// Thread ID.
    pub tid: u32,
    /// Its name (`comm`).
    pub comm: String,
    /// How long it has been observed to starve.
    pub lasted: Duration,
    /// Its kernel stack, innermost function first.
    pub stack: Vec<String>,
}

words! {
    /// A step of the rescue, which frees memory for XFS.
    #[derive(Default)]
    pub enum RescueStep: Display {
        /// Drop dentries, inodes and other slab objects: write 2 to /proc/sys/vm/drop_caches.
        #[default]
        DropSlab = "drop_slab",
        /// Drop these and the clean page cache: write 3 to /proc/sys/vm/drop_caches.
        DropAll = "drop_all",
        /// Compact free pages into larger blocks: write 1 to /proc/sys/vm/compact_memory.
        CompactMemory = "compact_memory",
    }
}

words! {
    /// What triggered the rescue.
    #[derive(Default)]
    pub enum Trigger: Display {
        /// A record of the kernel log.
        #[default]
        KernelLog = "kernel_log",
        /// A task that is stuck in the allocator below XFS.
        Stall = "stall",
        /// A line of a followed log file.
        File = "file",
        /// A drill.
        Drill = "drill",
    }
}

words! {
    /// The outcome of an action of the rescue.
    #[derive(Default)]
    pub enum Outcome: Display {
        /// The kernel's own counter confirms that it ran.
        Done = "done",
        /// The write failed, or the counter did not change.
        #[default]
        Failed = "failed",
        /// Everything except the write was done.
        DryRun = "dry_run",
    }
}

/// What a match of a kernel-log rule leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    /// The match is counted and reported.
    #[default]
    Observe,
    /// The match starts the rescue.
    Rescue,
}

/// A rule from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDefinition {
    /// The label `rule` of its metric.
    pub name: String,
    /// A regular expression over bytes.
    pub pattern: String,
    /// What a match leads to.
    #[serde(default)]
    pub action: RuleAction,
}

impl fmt::Display for IncidentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_saturates_at_both_ends() {
        let start = Monotonic(5);
        assert_eq!(start.plus(Duration::from_nanos(3)), Monotonic(8));
        assert_eq!(start.plus(Duration::MAX), Monotonic(u64::MAX));
        assert_eq!(Monotonic(8).since(start), Duration::from_nanos(3));
        assert_eq!(start.since(Monotonic(8)), Duration::ZERO);
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for step in RescueStep::ALL {
            let json = serde_json::to_string(&step).unwrap();
            assert_eq!(json, format!("\"{step}\""));
        }
        for trigger in Trigger::ALL {
            let json = serde_json::to_string(&trigger).unwrap();
            assert_eq!(json, format!("\"{trigger}\""));
        }
        for outcome in Outcome::ALL {
            let json = serde_json::to_string(&outcome).unwrap();
            assert_eq!(json, format!("\"{outcome}\""));
        }
    }
}
