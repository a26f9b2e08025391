//! State that the follower and watcher threads of a log file share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;
use tokio::sync::Notify;

use crate::sys::mutex::lock;

/// Why a file is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Down {
    /// Not checked yet.
    #[error("not looked at yet")]
    NotYet,
    /// The file does not exist.
    #[error("there is no such file")]
    Missing,
    /// A symbolic link, which could lead to any file.
    #[error("it is a symbolic link; configure the file that it leads to")]
    Link,
    /// Not a regular file.
    #[error("it is {0}, not a regular file")]
    NotRegular(&'static str),
    /// A system call failed.
    #[error("cannot {0} it: {1}")]
    Failed(&'static str, Errno),
    /// The follower has been busy for too long: the file system hangs.
    #[error("no answer from the file system for {} s", .0.as_secs())]
    Hangs(Duration),
}

/// The state of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    /// Why the file is not followed; `None` if it is.
    pub down: Option<Down>,
    /// Inode number of the file at the path and the offset up to which it has been read.
    pub position: Option<(u64, u64)>,
    /// Number of delivered lines.
    pub lines: u64,
    /// Number of delivered lines that were truncated.
    pub cut: u64,
}

impl Default for FileState {
    fn default() -> FileState {
        FileState {
            down: Some(Down::NotYet),
            position: None,
            lines: 0,
            cut: 0,
        }
    }
}

/// Each lock is held only for a copy.
#[derive(Debug)]
pub(super) struct Shared {
    stopping: AtomicBool,
    /// Whether the follower is to check the file.
    woken: Mutex<bool>,
    bell: Condvar,
    state: Mutex<FileState>,
    epoch: Instant,
    /// Start of the follower's current operation in ms since the epoch plus 1; 0 while it waits.
    busy_since: AtomicU64,
    wanted: Mutex<Wanted>,
    pub(super) wanted_changed: Notify,
}

/// What linemux is to do. A new number requests a new instance of linemux.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    number: u64,
    /// Whether the file exists and is to be watched.
    pub(super) watch: bool,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            stopping: AtomicBool::new(false),
            woken: Mutex::default(),
            bell: Condvar::new(),
            state: Mutex::default(),
            epoch: Instant::now(),
            busy_since: AtomicU64::new(0),
            wanted: Mutex::default(),
            wanted_changed: Notify::new(),
        }
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, FileState> {
        lock(&self.state)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
        self.wanted_changed.notify_one();
    }

    pub(super) fn wake(&self) {
        *lock(&self.woken) = true;
        self.bell.notify_one();
    }

    /// Waits up to `time` to be woken. Returns true if it was woken.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let woken = lock(&self.woken);
        let waited = self.bell.wait_timeout_while(woken, time, |woken| !*woken);
        let (mut woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut woken)
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Called by the follower before all that could hang. Returns false if it is to end.
    pub(super) fn goes_on(&self) -> bool {
        self.busy_since
            .store(self.milliseconds().saturating_add(1), Ordering::Relaxed);
        !self.is_stopping()
    }

    pub(super) fn rests(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn busy_for(&self) -> Option<Duration> {
        let since = self.busy_since.load(Ordering::Relaxed).checked_sub(1)?;
        let time = self.milliseconds().saturating_sub(since);
        Some(Duration::from_millis(time))
    }

    pub(super) fn wanted(&self) -> Wanted {
        *lock(&self.wanted)
    }

    /// Requests a new instance of linemux, or none.
    pub(super) fn request_watch(&self, watch: bool) {
        let mut wanted = lock(&self.wanted);
        wanted.number += 1;
        wanted.watch = watch;
        self.wanted_changed.notify_one();
    }
}
