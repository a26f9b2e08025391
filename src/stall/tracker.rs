//! Since when each task has been starved, scan after scan.

use std::collections::BTreeMap;
use std::time::Duration;

use super::stack::StackVerdict;
use crate::model::Monotonic;

/// Looks at which a task was seen starved may be so far apart and still count as one stall.
pub const GAP: Duration = Duration::from_secs(5);

/// Names a task for good: its number can be used again, but not with the same begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The thread.
    pub tid: u32,
    /// Clock ticks after boot at which it began.
    pub start: u64,
}

/// Who has been starved for how long: a state machine that gets the time and the verdicts.
#[derive(Debug)]
pub struct StallTracker {
    stall_after: Duration,
    streaks: BTreeMap<TaskKey, Streak>,
    looks: u64,
}

#[derive(Debug)]
struct Streak {
    since: Monotonic,
    last: Monotonic,
    /// The look at which the task was seen, starved or not to be judged.
    look: u64,
}

impl StallTracker {
    /// Tasks are stuck that are starved in each look for so long.
    #[must_use]
    pub fn new(stall_after: Duration) -> StallTracker {
        StallTracker {
            stall_after,
            streaks: BTreeMap::new(),
            looks: 0,
        }
    }

    /// A look at all tasks that are worth one. Those that are missing do something else. Gives
    /// those that are stuck and since when they are starved.
    pub fn update(
        &mut self,
        now: Monotonic,
        tasks: impl IntoIterator<Item = (TaskKey, StackVerdict)>,
    ) -> Vec<(TaskKey, Monotonic)> {
        self.looks += 1;
        let look = self.looks;
        for (key, verdict) in tasks {
            match verdict {
                StackVerdict::Starved => {
                    let fresh = Streak {
                        since: now,
                        last: now,
                        look,
                    };
                    let streak = self.streaks.entry(key).or_insert(fresh);
                    if now.since(streak.last) > GAP {
                        streak.since = now;
                    }
                    streak.last = now;
                    streak.look = look;
                }
                StackVerdict::Unseen => {
                    if let Some(streak) = self.streaks.get_mut(&key) {
                        streak.look = look;
                    }
                }
                StackVerdict::Elsewhere => {}
            }
        }
        self.streaks
            .retain(|_, streak| streak.look == look && now.since(streak.last) <= GAP);
        let stuck = |(key, streak): (&TaskKey, &Streak)| {
            let lasts = streak.last == now && now.since(streak.since) >= self.stall_after;
            lasts.then_some((*key, streak.since))
        };
        self.streaks.iter().filter_map(stuck).collect()
    }

    /// Whether any task is starved, if not for long enough yet.
    #[must_use]
    pub fn is_alarmed(&self) -> bool {
        !self.streaks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(tid: u32) -> TaskKey {
        TaskKey { tid, start: 9 }
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
        // Unseen says nothing; somewhere else ends it.
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
        assert!(!tracker.is_alarmed());
        assert_eq!(
            tracker.update(at(16_000), [(key(1), StackVerdict::Starved)]),
            []
        );
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
