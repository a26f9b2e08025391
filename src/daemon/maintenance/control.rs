//! What a run on its thread and the scheduler share: the orders to the run, and its progress.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::atomic::AtomicCell;

use crate::defrag::job::JobProgress;
use crate::model::Stop;

#[derive(Debug, Default)]
pub(super) struct Control {
    stop: OnceLock<Stop>,
    cancelled: AtomicBool,
    pub(super) progress: AtomicCell<Option<JobProgress>>,
}

impl Control {
    /// Ends the job soon, but waits for a running command: a `hook_before` killed half-way could
    /// leave a VM that shuts down after `hook_after` has started it. The first reason counts.
    pub(super) fn stop(&self, why: Stop) {
        self.stop.get_or_init(|| why);
    }

    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stop.get().copied()
    }

    /// Also ends a running command, because the daemon ends now. The next daemon finishes the run.
    pub(super) fn cancel_hooks(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
