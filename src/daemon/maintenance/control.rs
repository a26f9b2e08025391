//! Shared state of a run on its thread and the scheduler.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::defrag::job::JobProgress;
use crate::model::Stop;

/// Why a run did nothing, if no fault of the image: the state directory is not writable, or no
/// process can be started.
#[derive(Debug)]
pub(super) struct NotReady(pub(super) String);

/// The orders to a run and its progress.
#[derive(Debug, Default)]
pub(super) struct Control {
    stop: AtomicBool,
    why: Mutex<Option<Stop>>,
    cancel_hooks: AtomicBool,
    progress: Mutex<Option<JobProgress>>,
}

impl Control {
    /// Ends the job soon, but waits for a running command: a `hook_before` killed half-way could
    /// leave a VM that shuts down after `hook_after` has started it. The first reason counts.
    pub(super) fn stop(&self, why: Stop) {
        lock(&self.why).get_or_insert(why);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Also ends a running command, because the daemon ends now. The next daemon finishes the run.
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

    /// The progress of the job.
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
