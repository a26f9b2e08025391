//! What passes between a run on its thread and the scheduler outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::defrag::job::JobProgress;
use crate::model::Stop;

/// Why nothing was done, where that is no fault of the image: the state directory cannot be written,
/// or no process can be started.
#[derive(Debug)]
pub(super) struct NotReady(pub(super) String);

/// The orders to a run, from outside of its thread.
#[derive(Debug, Default)]
pub(super) struct Control {
    stop: AtomicBool,
    why: Mutex<Option<Stop>>,
    cancel_hooks: AtomicBool,
    progress: Mutex<Option<JobProgress>>,
}

impl Control {
    /// Ends the job soon. A command that runs is waited for: `hook_before` killed half-way could
    /// leave a VM that goes down after `hook_after` has started it. The first reason counts.
    pub(super) fn stop(&self, why: Stop) {
        lock(&self.why).get_or_insert(why);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Ends a command that runs too: the daemon ends now. The next one finishes the run.
    pub(super) fn cancel_hooks(&self) {
        self.cancel_hooks.store(true, Ordering::Relaxed);
    }

    /// Why it was stopped, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        *lock(&self.why)
    }

    /// Whether it is to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How far the job is.
    pub(super) fn progress(&self) -> Option<JobProgress> {
        *lock(&self.progress)
    }

    pub(super) fn set_progress(&self, progress: JobProgress) {
        *lock(&self.progress) = Some(progress);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel_hooks.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
