//! The phases of one defragmentation and of the operator's commands around it. Pure.
//!
//! ```text
//!            hook_before configured          succeeded, not stopped
//! start ───────────────────────► HookBefore ───────────────────────► Job ─┐
//!   │                              │    │                                 │
//!   │                   not started│    │ failed, timed out, stopped      │ ended in any way
//!   │                              ▼    ▼                                 ▼
//!   │                             end  HookAfter ◄────────────────────────┘
//!   └── no hook_before ──► Job            │  ended
//!                                         ▼
//! the daemon died in any phase ──► HookAfter ──► end       (the next start of the daemon)
//! ```
//!
//! A phase is written to disk before it begins ([`note`](super::note)), so the next start can read
//! which one was reached. `HookAfter` runs at least once for every `HookBefore` that began: a
//! daemon that dies in `HookAfter` repeats it. Without a `hook_after` its phase is skipped.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// `defrag.hook_before` runs.
    HookBefore,
    /// The defragmenting process runs.
    Job,
    /// `defrag.hook_after` runs.
    HookAfter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PhaseEnd {
    /// It succeeded, and the run is not to end.
    Done,
    /// The command was never executed.
    NotStarted,
    /// It failed, or the run is to end.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hooks {
    pub(super) before: bool,
    pub(super) after: bool,
}

impl Phase {
    pub(super) fn first(hooks: Hooks) -> Phase {
        match hooks.before {
            true => Phase::HookBefore,
            false => Phase::Job,
        }
    }

    /// The phase that follows; `None` if the run is over.
    pub(super) fn next(self, end: PhaseEnd, hooks: Hooks) -> Option<Phase> {
        let last = hooks.after.then_some(Phase::HookAfter);
        match (self, end) {
            (Phase::HookBefore, PhaseEnd::Done) => Some(Phase::Job),
            (Phase::HookBefore, PhaseEnd::NotStarted) | (Phase::HookAfter, _) => None,
            (Phase::HookBefore, PhaseEnd::Ended) | (Phase::Job, _) => last,
        }
    }

    /// The phase in which a new daemon continues if the former one died in this one.
    pub(super) fn after_a_crash(self, hooks: Hooks) -> Option<Phase> {
        hooks.after.then_some(Phase::HookAfter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What happens in a run: a phase ends, or the daemon dies and is started again.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Ends(PhaseEnd),
        Dies,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let ends = [PhaseEnd::Done, PhaseEnd::NotStarted, PhaseEnd::Ended];
        prop_oneof![
            3 => prop::sample::select(ends.to_vec()).prop_map(Event::Ends),
            1 => Just(Event::Dies),
        ]
    }

    proptest! {
        #[test]
        fn a_hook_before_that_began_is_followed_by_hook_after(
            before: bool,
            after: bool,
            events in prop::collection::vec(any_event(), 0..12),
        ) {
            let hooks = Hooks { before, after };
            let mut phase = Some(Phase::first(hooks));
            let (mut began, mut paired, mut worked) = (false, false, 0);
            for event in events {
                let Some(now) = phase else { break };
                worked += u32::from(now == Phase::Job);
                prop_assert!(now != Phase::HookBefore || before);
                let never_began = matches!(event, Event::Ends(PhaseEnd::NotStarted));
                began |= now == Phase::HookBefore && !never_began;
                match event {
                    Event::Ends(end) => {
                        paired |= now == Phase::HookAfter;
                        phase = now.next(end, hooks);
                    }
                    Event::Dies => phase = now.after_a_crash(hooks),
                }
            }
            // At most once, however often the daemon died.
            prop_assert!(worked <= 1);
            // A run that is over has run the command after the one before.
            if phase.is_none() && began && after {
                prop_assert!(paired);
            }
        }
    }
}
