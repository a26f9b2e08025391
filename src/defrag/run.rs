//! The life of one run, as a state machine without clock or system calls.
//!
//! ```text
//! idle ─► guarded ─► running ◄─► paused
//!   │        │          └──► ending ◄──┘        SIGTERM, and SIGKILL if that was not enough
//!   └────────┴───────────────► ended
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
pub enum State {
    /// Nothing has happened.
    Idle,
    /// The guards passed; it is about to start.
    Guarded,
    /// The engine's process works.
    Running,
    /// The engine's process is stopped.
    Paused,
    /// The engine's process was signalled to end.
    Ending,
    /// There is no process (any more).
    Ended,
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The guards passed.
    Cleared,
    /// The engine's process was started.
    Started,
    /// There is a reason to hold the run.
    Held(Hold),
    /// That reason is gone.
    Freed(Hold),
    /// The engine has read or written something.
    Moved,
    /// The run is to end.
    Stop(Stop),
    /// Time has passed.
    Tick,
    /// The process has ended, or could not be started.
    Exited,
}

/// An action for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the engine's process.
    Start,
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

/// One run.
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
    pressure: bool,
    bandwidth: bool,
    stop: Option<Stop>,
    /// When it last moved something, was started or continued.
    moved: Duration,
    /// When SIGKILL is due.
    kill: Duration,
    killed: bool,
    patience: Duration,
}

impl Machine {
    /// `patience` is how long a running engine may move nothing before it is stuck.
    pub fn new(patience: Duration) -> Machine {
        Machine {
            state: State::Idle,
            pressure: false,
            bandwidth: false,
            stop: None,
            moved: Duration::ZERO,
            kill: Duration::ZERO,
            killed: false,
            patience,
        }
    }

    /// The current state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The first reason why it was ended.
    pub fn stopped_by(&self) -> Option<Stop> {
        self.stop
    }

    /// The reason if it is held.
    pub fn held_by(&self) -> Option<Hold> {
        match (self.state, self.pressure) {
            (State::Paused, true) => Some(Hold::Pressure),
            (State::Paused, false) => Some(Hold::Bandwidth),
            _ => None,
        }
    }

    /// Processes an input at the time `now` of a monotonic clock.
    pub fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Cleared if self.state == State::Idle => {
                self.state = State::Guarded;
                vec![Action::Start]
            }
            Input::Started if self.state == State::Guarded => self.started(now),
            Input::Held(hold) => self.hold(now, hold, true),
            Input::Freed(hold) => self.hold(now, hold, false),
            Input::Moved => {
                self.moved = now;
                Vec::new()
            }
            Input::Stop(stop) => self.stop(now, stop),
            Input::Tick => self.tick(now),
            Input::Exited => {
                self.state = State::Ended;
                Vec::new()
            }
            Input::Cleared | Input::Started => Vec::new(),
        }
    }

    fn started(&mut self, now: Duration) -> Vec<Action> {
        self.state = State::Running;
        self.moved = now;
        match self.stop {
            Some(stop) => self.end(now, stop),
            None => self.follow_holds(now),
        }
    }

    fn hold(&mut self, now: Duration, hold: Hold, held: bool) -> Vec<Action> {
        match hold {
            Hold::Pressure => self.pressure = held,
            Hold::Bandwidth => self.bandwidth = held,
        }
        self.follow_holds(now)
    }

    fn follow_holds(&mut self, now: Duration) -> Vec<Action> {
        match (self.state, self.pressure || self.bandwidth) {
            (State::Running, true) => {
                self.state = State::Paused;
                vec![Action::Pause]
            }
            (State::Paused, false) => {
                self.state = State::Running;
                self.moved = now;
                vec![Action::Continue]
            }
            _ => Vec::new(),
        }
    }

    fn stop(&mut self, now: Duration, stop: Stop) -> Vec<Action> {
        match self.state {
            State::Idle => {
                self.stop = Some(stop);
                self.state = State::Ended;
                Vec::new()
            }
            State::Guarded => {
                self.stop.get_or_insert(stop);
                Vec::new()
            }
            State::Running | State::Paused => self.end(now, stop),
            // It is being ended; if a process waits now, more quickly.
            State::Ending if stop.is_urgent() => {
                self.kill = self.kill.min(now + URGENT_GRACE);
                Vec::new()
            }
            State::Ending | State::Ended => Vec::new(),
        }
    }

    fn end(&mut self, now: Duration, stop: Stop) -> Vec<Action> {
        let paused = self.state == State::Paused;
        self.stop = Some(stop);
        self.state = State::Ending;
        let grace = if stop.is_urgent() {
            URGENT_GRACE
        } else {
            GRACE
        };
        self.kill = now + grace;
        // A stopped process does not handle SIGTERM until it is continued.
        let mut actions = vec![Action::Terminate];
        actions.extend(paused.then_some(Action::Continue));
        actions
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        match self.state {
            State::Running if now.saturating_sub(self.moved) >= self.patience => {
                self.end(now, Stop::Stuck)
            }
            State::Ending if !self.killed && now >= self.kill => {
                self.killed = true;
                vec![Action::Kill]
            }
            State::Ending if self.killed && now >= self.kill + EXIT_TIMEOUT => self.abandon(),
            _ => Vec::new(),
        }
    }

    fn abandon(&mut self) -> Vec<Action> {
        if self.stop != Some(Stop::Shutdown) {
            return Vec::new();
        }
        self.state = State::Ended;
        vec![Action::Abandon]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn running() -> Machine {
        let mut machine = Machine::new(Duration::from_secs(60));
        assert_eq!(machine.step(at(0), Input::Cleared), [Action::Start]);
        assert_eq!(machine.step(at(0), Input::Started), []);
        machine
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn it_stands_still_as_long_as_there_is_a_reason() {
        let mut machine = running();
        let mut step = |input| machine.step(at(1), input);
        assert_eq!(step(Input::Held(Hold::Bandwidth)), [Action::Pause]);
        assert_eq!(step(Input::Held(Hold::Pressure)), []);
        assert_eq!(step(Input::Freed(Hold::Bandwidth)), []);
        assert_eq!(step(Input::Freed(Hold::Pressure)), [Action::Continue]);
    }

    #[test]
    fn the_end_comes_with_grace_and_then_without() {
        let mut machine = running();
        machine.step(at(1), Input::Held(Hold::Pressure));
        assert_eq!(
            machine.step(at(10), Input::Stop(Stop::WindowClosed)),
            [Action::Terminate, Action::Continue]
        );
        assert_eq!(machine.step(at(500), Input::Held(Hold::Bandwidth)), []);
        assert_eq!(machine.step(at(2009), Input::Tick), []);
        assert_eq!(machine.step(at(2010), Input::Tick), [Action::Kill]);
        assert_eq!(machine.step(at(2011), Input::Tick), []);
        assert_eq!(machine.step(at(9_999_999), Input::Tick), []);
        assert_eq!(machine.step(at(9_999_999), Input::Exited), []);
        assert_eq!(machine.state(), State::Ended);
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
        machine.step(at(60_999), Input::Held(Hold::Pressure));
        assert_eq!(machine.step(at(200_000), Input::Tick), []);
        machine.step(at(200_000), Input::Freed(Hold::Pressure));
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
        assert_eq!(machine.state(), State::Ended);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        let hold = prop::sample::select(vec![Hold::Pressure, Hold::Bandwidth]);
        prop_oneof![
            2 => Just(Input::Cleared),
            2 => Just(Input::Started),
            4 => hold.clone().prop_map(Input::Held),
            4 => hold.prop_map(Input::Freed),
            4 => Just(Input::Moved),
            1 => prop::sample::select(Stop::ALL.to_vec()).prop_map(Input::Stop),
            8 => Just(Input::Tick),
            1 => Just(Input::Exited),
        ]
    }

    /// What the process that the actions are for would have gone through.
    #[derive(Default)]
    struct Process {
        starts: u32,
        stopped: bool,
        terminated: u32,
        killed: u32,
    }

    impl Process {
        fn take(&mut self, action: Action) {
            match action {
                Action::Start => self.starts += 1,
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
            assert!(self.starts == 1 && self.terminated <= 1 && self.killed <= 1);
        }
    }

    proptest! {
        /// Whatever comes in whatever order: it starts once, and only when it was cleared; nothing
        /// is done to a process that is not there; a process that is told to end never stands
        /// still; and a process that does not end of itself is made to.
        #[test]
        fn nothing_is_done_out_of_order(
            inputs in prop::collection::vec((any_input(), 0_u64..3000), 1..200)
        ) {
            let mut machine = Machine::new(at(20_000));
            let mut process = Process::default();
            let (mut cleared, mut now) = (false, 0);
            for (input, wait) in inputs {
                now += wait;
                cleared |= input == Input::Cleared;
                let before = machine.state();
                let actions = machine.step(at(now), input);
                prop_assert!(before != State::Ended || actions.is_empty());
                prop_assert!(before != State::Ended || machine.state() == State::Ended);
                for action in actions {
                    process.take(action);
                }
                prop_assert!(process.starts == 0 || cleared);
                prop_assert_eq!(machine.state() == State::Paused, process.stopped && machine.state() != State::Ended);
                if machine.state() == State::Ending {
                    prop_assert!(machine.stopped_by().is_some() && !process.stopped);
                    prop_assert_eq!(process.terminated, 1);
                }
            }
            if matches!(machine.state(), State::Running | State::Paused) {
                for action in machine.step(at(now), Input::Stop(Stop::Incident)) {
                    process.take(action);
                }
            }
            if machine.state() == State::Ending {
                for action in machine.step(at(now + 2000), Input::Tick) {
                    process.take(action);
                }
                prop_assert_eq!(process.killed, 1);
            }
        }
    }
}
