//! The lock of the state directory while the daemon starts. It is taken on a separate thread,
//! because the disk may hang: the rescue is armed after [`BEFORE_ARMING`] at the latest. A healthy
//! disk answers within that time, so a second daemon ends before it can act.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use tracing::warn;

use super::blocking::on_thread;
use crate::config::Settings;
use crate::history::lock::{self, Lock, LockError};
use crate::model::path::shown;
use crate::state_dir::StateDir;

/// How long the rescue waits for the lock before it is armed.
const BEFORE_ARMING: Duration = Duration::from_millis(250);
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A lock that is being taken, or is held.
pub(super) struct InstanceLock {
    directory: PathBuf,
    /// `None` without a thread.
    answer: Option<mpsc::Receiver<Result<Lock, LockError>>>,
    lock: Option<Lock>,
}

impl InstanceLock {
    /// Begins to take the lock; fails if another daemon holds it.
    pub(super) fn take(settings: &Settings) -> Result<InstanceLock, LockError> {
        let directory = StateDir::of(&settings.history).path().to_owned();
        let there = directory.clone();
        let answer = on_thread("lock", move || lock::acquire(&there));
        let answer = answer
            .inspect_err(|error| warn!("{}: cannot be locked: {error}", shown(&directory)))
            .ok();
        let mut lock = InstanceLock {
            directory,
            answer,
            lock: None,
        };
        lock.wait(BEFORE_ARMING)?;
        Ok(lock)
    }

    /// Waits for the lock; fails if another daemon holds it. If the disk does not answer, or cannot
    /// be locked, the daemon starts without it.
    pub(super) fn finish(mut self) -> Result<Option<Lock>, LockError> {
        if self.lock.is_none() && !self.wait(LOCK_TIMEOUT)? {
            warn!(
                "{} does not answer; there may be a second daemon beside this one",
                shown(&self.directory)
            );
        }
        Ok(self.lock)
    }

    fn wait(&mut self, within: Duration) -> Result<bool, LockError> {
        let Some(answer) = &self.answer else {
            return Ok(true);
        };
        match answer.recv_timeout(within) {
            Ok(Ok(lock)) => self.lock = Some(lock),
            Ok(Err(error @ LockError::LockedBy { .. })) => return Err(error),
            Ok(Err(error)) => warn!("{error}; there may be a second daemon beside this one"),
            // An earlier call has received and logged the error.
            Err(mpsc::RecvTimeoutError::Disconnected) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
        }
        Ok(true)
    }
}
