//! A rewrite in progress: what is checked between two of its steps.

use std::thread;
use std::time::Duration;

use crate::defrag::engine::{Controls, monotonic};
use crate::defrag::gate::Gate;
use crate::defrag::run::{Input, Machine, RunState};
use crate::model::{Bytes, RunOutcome, Stop};

const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_millis(5);

/// A rewrite in progress.
pub(super) struct Work<'w, 't, 'r> {
    // Dropped first: openers must not wait for the rest.
    pub(super) gate: Gate,
    pub(super) controls: &'w mut Controls<'t, 'r>,
    machine: Machine,
    moved: Bytes,
    total: Bytes,
    progress: &'w mut dyn FnMut(Bytes, Bytes),
}

impl<'w, 't, 'r> Work<'w, 't, 'r> {
    pub(super) fn new(
        gate: Gate,
        controls: &'w mut Controls<'t, 'r>,
        total: Bytes,
        progress: &'w mut dyn FnMut(Bytes, Bytes),
    ) -> Work<'w, 't, 'r> {
        Work {
            gate,
            controls,
            machine: Machine::new(monotonic(), STUCK_TIMEOUT),
            moved: Bytes(0),
            total,
            progress,
        }
    }

    /// Records that so many bytes were read or written, and waits while the rewrite is held. Fails
    /// if it is to end.
    pub(super) fn step(&mut self, bytes: u64) -> Result<(), RunOutcome> {
        self.moved.0 = self.moved.0.saturating_add(bytes);
        (self.progress)(self.moved.min(self.total), self.total);
        self.machine.step(monotonic(), Input::Moved);
        loop {
            if let Some(by) = self.gate.let_ours_in()? {
                return Err(RunOutcome::Busy { by: Some(by) });
            }
            for input in self
                .controls
                .inputs(self.moved)
                .into_iter()
                .chain([Input::Tick])
            {
                self.machine.step(monotonic(), input);
            }
            if matches!(self.machine.state(), RunState::Ending | RunState::Ended) {
                let why = self.machine.stopped_by().unwrap_or(Stop::Shutdown);
                return Err(RunOutcome::Stopped { why });
            }
            let is_held = self.machine.held_by().is_some();
            self.controls.note_held(is_held);
            if !is_held {
                return Ok(());
            }
            thread::sleep(INTERVAL);
        }
    }
}
