//! Reports when a directory gains, renames or loses a name, so that a sweep can follow at once.
//!
//! A hint, no more: the periodic sweep stays the truth. What another host does on a network file
//! system raises no event, nor does what is mounted.
//!
//! [`DirectoryWatch`] runs in the probe helper of a file system, for inotify_add_watch(2) looks up a
//! path and hangs with its file system. The survey adds each directory *before* it lists it: what
//! comes in between is in the list or raises an event, or both. So new directories need no care of
//! their own, they are names that appear, and the sweep that follows watches them.
//!
//! The kernel filters by the mask. With notify's usual one (MODIFY, OPEN) each write of a guest and
//! each of our own looks would raise an event; a writer was 2.5 times slower for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::{
    Config, ErrorKind, Event, EventKind, EventKindMask, RecommendedWatcher, RecursiveMode, Watcher,
};

/// From the first event until something is done about it: those that belong together come together.
const GATHER: Duration = Duration::from_millis(200);
/// Rest after a sweep, at the least.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// Sweeps because of events take this part of the time at most: one in ten.
const REST_FOR_WORK: u32 = 9;
/// So many sweeps one behind the other are a burst of work, as when images are copied in. From then
/// on it is a directory in which something is always going on, and each rest is twice the last.
const BURST: u32 = 8;
/// The rest does not grow beyond this.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// What a watch reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Some name has come, changed or gone.
    Changed,
    /// Events were lost: anything can have happened.
    Lost,
}

impl News {
    /// The meaning of an event. None if it is not about names.
    pub fn of(event: &notify::Result<Event>) -> Option<News> {
        match event {
            // Carries no path, and stands in any kind of event.
            Ok(event) if event.need_rescan() => Some(News::Lost),
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => None,
            Ok(_) => Some(News::Changed),
            // Reading the queue failed.
            Err(_) => Some(News::Lost),
        }
    }

    /// As one byte.
    pub fn to_byte(self) -> u8 {
        match self {
            News::Changed => b'c',
            News::Lost => b'l',
        }
    }

    /// The sum of some bytes.
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

/// The directories of one file system that are watched.
pub struct DirectoryWatch<W = RecommendedWatcher> {
    watcher: W,
    watched: BTreeMap<PathBuf, DirectoryId>,
    /// Number of the sweep under way, and which directories it has met.
    sweep: u64,
    met: BTreeSet<PathBuf>,
    refused: Option<WatchRefusal>,
}

/// Why directories are not watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchRefusal {
    /// The user has as many watches as he may.
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
    /// Watches nothing yet. `on_news` is called on a thread of its own.
    ///
    /// # Errors
    /// When inotify gives no more instances.
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

    /// Begins a survey. A sweep can have several, and has the same number in all of them;
    /// directories that the sweep before did not meet are watched no more.
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

    /// Watches a directory that is about to be listed, if it is not watched already. **May hang**
    /// with its file system.
    pub fn directory(&mut self, path: &Path, id: DirectoryId) {
        if !self.met.insert(path.to_owned()) {
            return;
        }
        // Another directory has the path now; notify would take it for the one that it knows.
        if self.watched.get(path).is_some_and(|known| *known != id) {
            self.forget(path);
        }
        // At the limit each further one would be refused as well.
        if self.refused == Some(WatchRefusal::Limit) && !self.watched.contains_key(path) {
            return;
        }
        // Also if we think that it is watched: one that was removed and made anew may have the
        // same inode, and notify knows of its end. It does nothing for one that it knows.
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(path.to_owned(), id)),
            Err(error) => {
                self.watched.remove(path);
                // Gone by now; listing it reports that too.
                if !is_gone(&error) {
                    self.refused.get_or_insert_with(|| refusal(&error));
                }
            }
        }
    }

    /// Why not all directories of this sweep are watched, if so.
    pub fn refused(&self) -> Option<&WatchRefusal> {
        self.refused.as_ref()
    }

    /// How many directories are watched.
    #[cfg(test)]
    pub fn watched(&self) -> usize {
        self.watched.len()
    }

    fn forget(&mut self, path: &Path) {
        self.watched.remove(path);
        // Fails if the directory has ended and its watch with it.
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

/// When to sweep because of events: soon after the first, but not all the time. Pure.
#[derive(Debug, Default)]
pub struct SweepPace {
    due: Option<Instant>,
    rested: Option<Rest>,
    /// Sweeps because of events, one behind the other.
    streak: u32,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    since: Instant,
    length: Duration,
}

impl SweepPace {
    /// News has come.
    pub fn heard(&mut self, now: Instant) {
        if self.due.is_some() {
            return;
        }
        let soon = now + GATHER;
        self.due = Some(match self.rested {
            Some(rest) => soon.max(rest.since + rest.length),
            None => soon,
        });
        // Something is always going on if news comes before twice the rest is over.
        let again = |rest: Rest| now < rest.since + 2 * rest.length;
        self.streak = match self.rested.is_some_and(again) {
            true => self.streak.saturating_add(1),
            false => 0,
        };
    }

    /// When a sweep is due because of events. None if there were none.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A sweep has ended, for whatever reason it was begun. News from now on may be of names that it
    /// had passed already.
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
