//! Tracks since when each task has been starved.

use std::collections::BTreeMap;
use std::time::Duration;

use super::stack::StackVerdict;
use crate::model::Monotonic;

/// Maximum time between two starved readings of one stall.
pub const GAP: Duration = Duration::from_secs(5);

/// Identifies a task: its number can be reused, but not with the same start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// Process ID.
    pub pid: u32,
    /// Thread ID.
    pub tid: u32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

/// A state machine over times and verdicts.
#[derive(Debug, Default)]
pub struct StallTracker {
    stall_after: Duration,
    starved: BTreeMap<TaskKey, Starvation>,
    scans: u64,
    updated: Monotonic,
}

#[derive(Debug, Default)]
struct Starvation {
    since: Monotonic,
    last: Monotonic,
    /// The last scan that saw the task starved or could not judge it.
    scan: u64,
}

impl StallTracker {
    /// A task is stuck once it has been starved at each scan for `stall_after`.
    pub fn new(stall_after: Duration) -> StallTracker {
        StallTracker {
            stall_after,
            ..StallTracker::default()
        }
    }

    /// Adds a scan. Tasks of [`StallTracker::tracked`] missing in it have ended. Returns the stuck
    /// tasks and since when each has been starved.
    pub fn update(
        &mut self,
        now: Monotonic,
        tasks: impl IntoIterator<Item = (TaskKey, StackVerdict)>,
    ) -> Vec<(TaskKey, Monotonic)> {
        self.scans += 1;
        self.updated = now;
        let scan = self.scans;
        for (key, verdict) in tasks {
            match verdict {
                StackVerdict::Starved => {
                    let stall = self.starved.entry(key).or_default();
                    // Also a new one, which has no earlier scan.
                    if stall.scan == 0 || now.since(stall.last) > GAP {
                        stall.since = now;
                    }
                    (stall.last, stall.scan) = (now, scan);
                }
                StackVerdict::Unseen => {
                    if let Some(stall) = self.starved.get_mut(&key) {
                        stall.scan = scan;
                    }
                }
                StackVerdict::Elsewhere => {}
            }
        }
        self.starved
            .retain(|_, stall| stall.scan == scan && now.since(stall.last) <= GAP);
        let stuck = |(key, stall): (&TaskKey, &Starvation)| {
            let lasts = stall.last == now && now.since(stall.since) >= self.stall_after;
            lasts.then_some((*key, stall.since))
        };
        self.starved.iter().filter_map(stuck).collect()
    }

    /// Adds a failed scan. Its duration does not count against [`GAP`].
    pub fn missed(&mut self, now: Monotonic) {
        let took = now.since(self.updated);
        self.updated = now;
        for stall in self.starved.values_mut() {
            stall.last = stall.last.plus(took);
        }
    }

    /// The starved tasks, stuck or not, longest first. The next scan must read them in any state.
    pub fn tracked(&self) -> Vec<TaskKey> {
        let mut tracked: Vec<_> = self.starved.iter().collect();
        tracked.sort_by_key(|(_, stall)| stall.since);
        tracked.into_iter().map(|(key, _)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(tid: u32) -> TaskKey {
        TaskKey {
            pid: tid,
            tid,
            start: 9,
        }
    }

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * 1_000_000)
    }

    #[test]
    fn starved_in_each_look_for_long_enough() {
        let mut tracker = StallTracker::new(Duration::from_secs(10));
        for second in 0..10 {
            assert_eq!(
                tracker.update(at(second * 1000), [(key(1), StackVerdict::Starved)]),
                []
            );
        }
        // From then on at each look.
        for second in 10..13 {
            let stuck = tracker.update(at(second * 1000), [(key(1), StackVerdict::Starved)]);
            assert_eq!(stuck, [(key(1), at(0))]);
        }
        // Unseen decides nothing; other work ends it.
        assert_eq!(
            tracker.update(at(13_000), [(key(1), StackVerdict::Unseen)]),
            []
        );
        assert_eq!(
            tracker
                .update(at(14_000), [(key(1), StackVerdict::Starved)])
                .len(),
            1
        );
        assert_eq!(
            tracker.update(at(15_000), [(key(1), StackVerdict::Elsewhere)]),
            []
        );
        assert!(tracker.tracked().is_empty());
        assert_eq!(
            tracker.update(at(16_000), [(key(1), StackVerdict::Starved)]),
            []
        );
    }

    /// Scans that fail one after the other take longer than the gap.
    #[test]
    fn a_scan_that_could_not_be_made_clears_nothing() {
        let mut tracker = StallTracker::new(Duration::from_secs(10));
        for second in [0, 1] {
            let _ = tracker.update(at(second * 1000), [(key(1), StackVerdict::Starved)]);
        }
        for second in [5, 9, 13] {
            tracker.missed(at(second * 1000));
            assert_eq!(tracker.tracked(), [key(1)]);
        }
        let _ = tracker.update(at(14_000), [(key(1), StackVerdict::Unseen)]);
        let stuck = tracker.update(at(15_000), [(key(1), StackVerdict::Starved)]);
        assert_eq!(stuck, [(key(1), at(0))]);
        // Seen by scans that were made, and never starved in them.
        for second in 16..=20 {
            let _ = tracker.update(at(second * 1000), [(key(1), StackVerdict::Unseen)]);
            assert_eq!(tracker.tracked(), [key(1)]);
        }
        let _ = tracker.update(at(21_000), [(key(1), StackVerdict::Unseen)]);
        assert_eq!(tracker.tracked(), []);
    }

    #[test]
    fn the_longest_starved_comes_first() {
        let mut tracker = StallTracker::new(Duration::from_secs(10));
        let starved = |tids: &[u32]| {
            let tasks = tids.iter().map(|tid| (key(*tid), StackVerdict::Starved));
            tasks.collect::<Vec<_>>()
        };
        let _ = tracker.update(at(0), starved(&[3]));
        let _ = tracker.update(at(1000), starved(&[1, 3]));
        let _ = tracker.update(at(2000), starved(&[1, 2, 3]));
        assert_eq!(tracker.tracked(), [key(3), key(1), key(2)]);
    }

    proptest! {
        /// The rule itself, spelled out over the whole history.
        #[test]
        fn the_tracker_keeps_its_rule(
            looks in proptest::collection::vec((1_u64..7000, proptest::collection::vec(0_u8..4, 3)), 1..60),
        ) {
            let stall_after = Duration::from_secs(10);
            let mut tracker = StallTracker::new(stall_after);
            let mut history: Vec<(Monotonic, Vec<u8>)> = Vec::new();
            let mut time = 0;
            for (step, tasks) in looks {
                time += step;
                let verdicts = [StackVerdict::Starved, StackVerdict::Unseen, StackVerdict::Elsewhere];
                let seen = tasks.iter().enumerate().filter_map(|(tid, verdict)| {
                    Some((key(u32::try_from(tid).ok()?), *verdicts.get(usize::from(*verdict))?))
                });
                let stuck = tracker.update(at(time), seen.collect::<Vec<_>>());
                history.push((at(time), tasks));
                for tid in 0..3_u32 {
                    let mut since = None;
                    let mut later = at(time);
                    for (place, (when, tasks)) in history.iter().rev().enumerate() {
                        let verdict = tasks[tid as usize];
                        if verdict >= 2 || later.since(*when) > GAP || (place == 0 && verdict != 0) {
                            break;
                        }
                        if verdict == 0 {
                            since = Some(*when);
                            later = *when;
                        }
                    }
                    let expected = since.filter(|since| at(time).since(*since) >= stall_after);
                    let told = stuck.iter().find(|(stuck, _)| *stuck == key(tid));
                    prop_assert_eq!(told.map(|(_, since)| *since), expected);
                }
            }
        }
    }
}
