//! Reports when a directory gains, renames or loses a name, so that a sweep can follow at once.
//!
//! Only a hint; the periodic sweep remains authoritative. Changes made by other hosts on a network
//! file system raise no event, nor do mounts.
//!
//! [`DirectoryWatch`] runs in the probe helper of a file system, because inotify_add_watch(2) looks
//! up a path and hangs with its file system. The survey adds each directory *before* listing it, so
//! a new name is listed, raises an event, or both. A new directory is itself a new name; the sweep
//! that follows watches it.
//!
//! The kernel filters by the mask. notify's default mask (MODIFY, OPEN) would raise an event for
//! each write of a guest and each of our own reads; it made a writer 2.5 times slower.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::{
    Config, ErrorKind, Event, EventKind, EventKindMask, RecommendedWatcher, RecursiveMode, Watcher,
};

/// Delay from the first event to the sweep, so that related events are handled together.
const GATHER: Duration = Duration::from_millis(200);
/// Minimum rest after a sweep.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// Rest as a multiple of a sweep's duration, so that sweeps take at most a tenth of the time.
const REST_FOR_WORK: u32 = 9;
/// Number of consecutive sweeps that counts as a burst, as when images are copied in. Beyond it the
/// directory is considered permanently busy, and each rest is twice the previous one.
const BURST: u32 = 8;
/// Doubling does not extend the rest beyond this.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// What a watch reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A name has appeared, changed or disappeared.
    Changed,
    /// Events were lost; anything may have changed.
    Lost,
}

impl News {
    /// The meaning of an event; `None` if it does not concern names.
    pub fn of(event: &notify::Result<Event>) -> Option<News> {
        match event {
            // Has no path, and occurs with any kind of event.
            Ok(event) if event.need_rescan() => Some(News::Lost),
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => None,
            Ok(_) => Some(News::Changed),
            // Reading the queue failed.
            Err(_) => Some(News::Lost),
        }
    }

    /// The encoding as one byte.
    pub fn to_byte(self) -> u8 {
        match self {
            News::Changed => b'c',
            News::Lost => b'l',
        }
    }

    /// The combined meaning of several encoded bytes.
    pub fn of_bytes(bytes: &[u8]) -> News {
        if bytes.contains(&News::Lost.to_byte()) {
            News::Lost
        } else {
            News::Changed
        }
    }
}

/// Device and inode of a directory.
type DirectoryId = (u64, u64);

pub struct DirectoryWatch<W = RecommendedWatcher> {
    watcher: W,
    watched: BTreeMap<PathBuf, DirectoryId>,
    /// Number of the current sweep, and the directories that it has met.
    sweep: u64,
    met: BTreeSet<PathBuf>,
    refused: Option<WatchRefusal>,
}

/// Why directories are not watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchRefusal {
    /// The user's limit on watches is reached.
    #[error(
        "no more directories can be watched: fs.inotify.max_user_watches is reached; raise it \
         (sysctl). Until then new images there are found by the periodic sweep only"
    )]
    Limit,
    /// inotify does not work here.
    #[error(
        "directories cannot be watched: {0}. New images are found by the periodic sweep only; \
         fs.inotify.max_user_instances may have to be raised (sysctl)"
    )]
    Other(String),
}

impl DirectoryWatch {
    /// Watches nothing yet; calls `on_news` on a separate thread. Fails if inotify does not work.
    pub fn new(on_news: impl Fn(News) + Send + 'static) -> Result<Self, WatchRefusal> {
        let names = EventKindMask::CREATE | EventKindMask::REMOVE | EventKindMask::MODIFY_NAME;
        let config = Config::default()
            .with_event_kinds(names)
            .with_follow_symlinks(false);
        let handler = move |event| {
            if let Some(news) = News::of(&event) {
                on_news(news);
            }
        };
        let watcher = RecommendedWatcher::new(handler, config);
        Ok(DirectoryWatch::with(
            watcher.map_err(|error| refusal(&error))?,
        ))
    }
}

impl<W: Watcher> DirectoryWatch<W> {
    fn with(watcher: W) -> Self {
        DirectoryWatch {
            watcher,
            watched: BTreeMap::new(),
            sweep: 0,
            met: BTreeSet::new(),
            refused: None,
        }
    }

    /// Begins a survey. A sweep may consist of several, all with the same number; directories that
    /// the previous sweep did not meet are no longer watched.
    pub fn begin(&mut self, sweep: u64) {
        if self.sweep == sweep {
            return;
        }
        self.sweep = sweep;
        self.refused = None;
        let met = std::mem::take(&mut self.met);
        let gone = self.watched.keys().filter(|path| !met.contains(*path));
        for path in gone.cloned().collect::<Vec<_>>() {
            self.forget(&path);
        }
    }

    /// Watches a directory before it is listed. **May hang** with its file system.
    pub fn directory(&mut self, path: &Path, id: DirectoryId) {
        if !self.met.insert(path.to_owned()) {
            return;
        }
        // Another directory has this path now; notify would take it for the known one.
        if self.watched.get(path).is_some_and(|known| *known != id) {
            self.forget(path);
        }
        // Once the limit is reached, further directories would be refused too.
        if self.refused == Some(WatchRefusal::Limit) && !self.watched.contains_key(path) {
            return;
        }
        // Also if it is in `watched`: a directory that was removed and recreated may have the same
        // inode, and in notify its watch has ended. For one still watched, this is a no-op.
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(path.to_owned(), id)),
            Err(error) => {
                self.watched.remove(path);
                // Gone by now; the listing reports that too.
                if !is_gone(&error) {
                    self.refused.get_or_insert_with(|| refusal(&error));
                }
            }
        }
    }

    /// Why not all directories of this sweep are watched; `None` if all are.
    pub fn refused(&self) -> Option<&WatchRefusal> {
        self.refused.as_ref()
    }

    fn forget(&mut self, path: &Path) {
        self.watched.remove(path);
        // Fails if the directory is gone and its watch with it.
        let _ = self.watcher.unwatch(path);
    }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn refusal(error: &notify::Error) -> WatchRefusal {
    match &error.kind {
        ErrorKind::MaxFilesWatch => WatchRefusal::Limit,
        ErrorKind::Io(error) => WatchRefusal::Other(error.to_string()),
        _ => WatchRefusal::Other(error.to_string()),
    }
}

/// Schedules event-driven sweeps: soon after the first event, but not continuously. Pure.
#[derive(Debug, Default)]
pub struct SweepPace {
    due: Option<Instant>,
    rested: Option<Rest>,
    /// Number of consecutive event-driven sweeps.
    streak: u32,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    since: Instant,
    length: Duration,
}

impl SweepPace {
    /// Records an event.
    pub fn heard(&mut self, now: Instant) {
        if self.due.is_some() {
            return;
        }
        let soon = now + GATHER;
        self.due = Some(match self.rested {
            Some(rest) => soon.max(rest.since + rest.length),
            None => soon,
        });
        // Activity is continuous if an event comes before twice the rest is over.
        let again = |rest: Rest| now < rest.since + 2 * rest.length;
        self.streak = match self.rested.is_some_and(again) {
            true => self.streak.saturating_add(1),
            false => 0,
        };
    }

    /// When the next event-driven sweep is due; `None` without events.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Records the end of a sweep, for whatever reason it was begun. An event received after this
    /// may concern names that the sweep had already passed.
    pub fn swept(&mut self, began: Instant, ended: Instant) {
        let work = ended.saturating_duration_since(began);
        let rest = (work * REST_FOR_WORK).max(SHORTEST_REST);
        let doubled = 2_u32.saturating_pow(self.streak.saturating_sub(BURST));
        let longest = rest.max(LONGEST_REST);
        self.rested = Some(Rest {
            since: ended,
            length: rest.saturating_mul(doubled).min(longest),
        });
        self.due = None;
    }
}

#[cfg(test)]
mod tests;
