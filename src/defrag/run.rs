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
mod tests;
