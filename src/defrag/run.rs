//! The life of one run, as a state machine without clock or system calls.
//!
//! ```text
//! running ◄─► paused
//!    └──► ending ◄──┘        SIGTERM, and SIGKILL if that was not enough
//!            └──► ended
//! ```
//!
//! It decides when a run ends and how it is made to; the outcome is determined by extent counts.

use std::time::Duration;

use crate::model::Stop;

/// From SIGTERM to SIGKILL. Both are safe while xfs_fsr copies; it only allows a tidy exit.
const GRACE: Duration = Duration::from_secs(2);
/// The same while a process is waiting.
const URGENT_GRACE: Duration = Duration::from_millis(100);
/// How long after SIGKILL a terminating fragwatch waits for a process that hangs in the kernel.
const EXIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a run is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Other processes wait too much for the disks.
    Pressure,
    /// It has moved more than its bandwidth allows.
    Bandwidth,
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// The engine works.
    Running,
    /// The engine is held.
    Paused,
    /// The engine was signalled to end.
    Ending,
    /// The engine has ended.
    Ended,
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Whether there is a reason of this kind to hold the run.
    Held(Hold, bool),
    /// The engine has read or written something.
    Moved,
    /// The run is to end.
    Stop(Stop),
    /// Time has passed.
    Tick,
    /// The engine's process has ended.
    Exited,
}

/// An action for the caller, if the engine is a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Continue,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// Stop waiting for a process that does not die.
    Abandon,
}

/// One run, from the start of its engine on.
#[derive(Debug, Clone)]
pub struct Machine {
    state: RunState,
    pressure: bool,
    bandwidth: bool,
    stop: Option<Stop>,
    /// When it last moved something, was started or continued.
    moved: Duration,
    /// When SIGKILL is due.
    kill: Duration,
    killed: bool,
    stuck_after: Duration,
}

impl Machine {
    /// A run that starts `now`, and is stuck if it moves nothing for `stuck_after`.
    pub fn new(now: Duration, stuck_after: Duration) -> Machine {
        Machine {
            state: RunState::Running,
            pressure: false,
            bandwidth: false,
            stop: None,
            moved: now,
            kill: Duration::ZERO,
            killed: false,
            stuck_after,
        }
    }

    /// The current state.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// The first reason why it was ended.
    pub fn stopped_by(&self) -> Option<Stop> {
        self.stop
    }

    /// The reason if it is held.
    pub fn held_by(&self) -> Option<Hold> {
        let hold = if self.pressure {
            Hold::Pressure
        } else {
            Hold::Bandwidth
        };
        (self.state == RunState::Paused).then_some(hold)
    }

    /// Processes an input at the time `now` of a monotonic clock.
    pub fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Held(hold, is_held) => return self.hold(now, hold, is_held),
            Input::Stop(stop) => return self.stop(now, stop),
            Input::Tick => return self.tick(now),
            Input::Moved => self.moved = now,
            Input::Exited => self.state = RunState::Ended,
        }
        Vec::new()
    }

    fn hold(&mut self, now: Duration, hold: Hold, is_held: bool) -> Vec<Action> {
        match hold {
            Hold::Pressure => self.pressure = is_held,
            Hold::Bandwidth => self.bandwidth = is_held,
        }
        match (self.state, self.pressure || self.bandwidth) {
            (RunState::Running, true) => {
                self.state = RunState::Paused;
                vec![Action::Pause]
            }
            (RunState::Paused, false) => {
                self.state = RunState::Running;
                self.moved = now;
                vec![Action::Continue]
            }
            _ => Vec::new(),
        }
    }

    fn stop(&mut self, now: Duration, stop: Stop) -> Vec<Action> {
        let grace = if stop.is_urgent() {
            URGENT_GRACE
        } else {
            GRACE
        };
        let is_paused = self.state == RunState::Paused;
        match self.state {
            RunState::Running | RunState::Paused => {
                self.stop = Some(stop);
                self.state = RunState::Ending;
                self.kill = now + grace;
                // A stopped process does not handle SIGTERM until it is continued.
                let mut actions = vec![Action::Terminate];
                actions.extend(is_paused.then_some(Action::Continue));
                return actions;
            }
            // It is being ended; if a process waits now, more quickly.
            RunState::Ending => self.kill = self.kill.min(now + grace),
            RunState::Ended => {}
        }
        Vec::new()
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        match self.state {
            RunState::Running if now.saturating_sub(self.moved) >= self.stuck_after => {
                self.stop(now, Stop::Stuck)
            }
            RunState::Ending if !self.killed && now >= self.kill => {
                self.killed = true;
                vec![Action::Kill]
            }
            RunState::Ending
                if self.killed
                    && now >= self.kill + EXIT_TIMEOUT
                    && self.stop == Some(Stop::Shutdown) =>
            {
                self.state = RunState::Ended;
                vec![Action::Abandon]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn running() -> Machine {
        Machine::new(at(0), Duration::from_secs(60))
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn it_stands_still_as_long_as_there_is_a_reason() {
        let mut machine = running();
        let mut step = |input| machine.step(at(1), input);
        assert_eq!(step(Input::Held(Hold::Bandwidth, true)), [Action::Pause]);
        assert_eq!(step(Input::Held(Hold::Pressure, true)), []);
        assert_eq!(step(Input::Held(Hold::Bandwidth, false)), []);
        assert_eq!(step(Input::Held(Hold::Pressure, false)), [Action::Continue]);
    }

    #[test]
    fn the_end_comes_with_grace_and_then_without() {
        let mut machine = running();
        machine.step(at(1), Input::Held(Hold::Pressure, true));
        assert_eq!(
            machine.step(at(10), Input::Stop(Stop::WindowClosed)),
            [Action::Terminate, Action::Continue]
        );
        assert_eq!(
            machine.step(at(500), Input::Held(Hold::Bandwidth, true)),
            []
        );
        assert_eq!(machine.step(at(2009), Input::Tick), []);
        assert_eq!(machine.step(at(2010), Input::Tick), [Action::Kill]);
        assert_eq!(machine.step(at(2011), Input::Tick), []);
        assert_eq!(machine.step(at(9_999_999), Input::Tick), []);
        assert_eq!(machine.step(at(9_999_999), Input::Exited), []);
        assert_eq!(machine.state(), RunState::Ended);
        assert_eq!(machine.stopped_by(), Some(Stop::WindowClosed));
    }

    #[test]
    fn who_waits_does_not_wait_for_comfort() {
        let mut machine = running();
        machine.step(at(10), Input::Stop(Stop::Paused));
        machine.step(at(20), Input::Stop(Stop::Opened));
        assert_eq!(machine.step(at(120), Input::Tick), [Action::Kill]);
        assert_eq!(machine.stopped_by(), Some(Stop::Paused));
    }

    #[test]
    fn one_that_does_nothing_is_ended_unless_it_was_told_to() {
        let mut machine = running();
        machine.step(at(1000), Input::Moved);
        assert_eq!(machine.step(at(60_999), Input::Tick), []);
        machine.step(at(60_999), Input::Held(Hold::Pressure, true));
        assert_eq!(machine.step(at(200_000), Input::Tick), []);
        machine.step(at(200_000), Input::Held(Hold::Pressure, false));
        assert_eq!(machine.step(at(259_999), Input::Tick), []);
        assert_eq!(machine.step(at(260_000), Input::Tick), [Action::Terminate]);
        assert_eq!(machine.stopped_by(), Some(Stop::Stuck));
    }

    #[test]
    fn a_fragwatch_that_is_to_end_ends() {
        let mut machine = running();
        machine.step(at(0), Input::Stop(Stop::Shutdown));
        assert_eq!(machine.step(at(2000), Input::Tick), [Action::Kill]);
        assert_eq!(machine.step(at(22_000), Input::Tick), [Action::Abandon]);
        assert_eq!(machine.state(), RunState::Ended);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        let hold = prop::sample::select(vec![Hold::Pressure, Hold::Bandwidth]);
        prop_oneof![
            8 => (hold, any::<bool>()).prop_map(|(hold, is_held)| Input::Held(hold, is_held)),
            4 => Just(Input::Moved),
            1 => prop::sample::select(Stop::ALL.to_vec()).prop_map(Input::Stop),
            8 => Just(Input::Tick),
            1 => Just(Input::Exited),
        ]
    }

    /// What the process that the actions are for would have gone through.
    #[derive(Default)]
    struct Process {
        stopped: bool,
        terminated: u32,
        killed: u32,
    }

    impl Process {
        fn take(&mut self, action: Action) {
            match action {
                Action::Pause => {
                    assert!(!self.stopped && self.terminated == 0);
                    self.stopped = true;
                }
                Action::Continue => {
                    assert!(self.stopped);
                    self.stopped = false;
                }
                Action::Terminate => self.terminated += 1,
                Action::Kill => {
                    assert_eq!(self.terminated, 1);
                    self.killed += 1;
                }
                Action::Abandon => assert_eq!(self.killed, 1),
            }
            assert!(self.terminated <= 1 && self.killed <= 1);
        }
    }

    proptest! {
        /// Whatever comes in whatever order: nothing is done to a process that has ended; a process
        /// that is told to end never stands still; and one that does not end of itself is made to.
        #[test]
        fn nothing_is_done_out_of_order(
            inputs in prop::collection::vec((any_input(), 0_u64..3000), 1..200)
        ) {
            let mut machine = Machine::new(at(0), at(20_000));
            let mut process = Process::default();
            let mut now = 0;
            for (input, wait) in inputs {
                now += wait;
                let before = machine.state();
                let actions = machine.step(at(now), input);
                prop_assert!(before != RunState::Ended || actions.is_empty());
                prop_assert!(before != RunState::Ended || machine.state() == RunState::Ended);
                for action in actions {
                    process.take(action);
                }
                prop_assert_eq!(machine.state() == RunState::Paused, process.stopped && machine.state() != RunState::Ended);
                if machine.state() == RunState::Ending {
                    prop_assert!(machine.stopped_by().is_some() && !process.stopped);
                    prop_assert_eq!(process.terminated, 1);
                }
            }
            if matches!(machine.state(), RunState::Running | RunState::Paused) {
                for action in machine.step(at(now), Input::Stop(Stop::Incident)) {
                    process.take(action);
                }
            }
            if machine.state() == RunState::Ending {
                for action in machine.step(at(now + 2000), Input::Tick) {
                    process.take(action);
                }
                prop_assert_eq!(process.killed, 1);
            }
        }
    }
}
