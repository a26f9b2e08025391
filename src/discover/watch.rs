//! Is told when a directory gains, renames or loses a name, so that the next sweep need not be
//! waited for.
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

/// What a watch has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Some name has come, changed or gone.
    Changed,
    /// Events were lost: anything can have happened.
    Lost,
}

impl News {
    /// What an event means; nothing if it is not about names.
    #[must_use]
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
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            News::Changed => b'c',
            News::Lost => b'l',
        }
    }

    /// What some bytes say together.
    #[must_use]
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
    refused: Option<Refusal>,
}

/// Why directories are not watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
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
    pub fn new(on_news: impl Fn(News) + Send + 'static) -> Result<Self, Refusal> {
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
        if self.refused == Some(Refusal::Limit) && !self.watched.contains_key(path) {
            return;
        }
        // Also if we think that it is watched: one that was removed and made anew may have the
        // same inode, and notify has heard of its end. It does nothing for one that it knows.
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(path.to_owned(), id)),
            Err(error) => {
                self.watched.remove(path);
                // Gone by now; the list will say so too.
                if !is_gone(&error) {
                    self.refused.get_or_insert_with(|| refusal(&error));
                }
            }
        }
    }

    /// Why not all directories of this sweep are watched, if so.
    #[must_use]
    pub fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    /// How many directories are watched.
    #[cfg(test)]
    #[must_use]
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

fn refusal(error: &notify::Error) -> Refusal {
    match &error.kind {
        ErrorKind::MaxFilesWatch => Refusal::Limit,
        ErrorKind::Io(error) => Refusal::Other(error.to_string()),
        _ => Refusal::Other(error.to_string()),
    }
}

/// When to sweep because of events: soon after the first, but not all the time. Pure.
#[derive(Debug, Default)]
pub struct Pace {
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

impl Pace {
    /// Something was heard.
    pub fn heard(&mut self, now: Instant) {
        if self.due.is_some() {
            return;
        }
        let soon = now + GATHER;
        self.due = Some(match self.rested {
            Some(rest) => soon.max(rest.since + rest.length),
            None => soon,
        });
        // Something is always going on if it is heard again before twice the rest is over.
        let again = |rest: Rest| now < rest.since + 2 * rest.length;
        self.streak = match self.rested.is_some_and(again) {
            true => self.streak.saturating_add(1),
            false => 0,
        };
    }

    /// When a sweep is due because of events; nothing if there were none.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A sweep has ended, for whatever reason it was begun. What is heard from now on may be of
    /// names that it had passed already.
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
mod tests {
    use super::*;
    use notify::event::{CreateKind, Flag};
    use notify::{EventHandler, WatcherKind};
    use proptest::prelude::*;
    use std::sync::mpsc::channel;

    #[test]
    fn lost_events_are_known() {
        let created = Event::new(EventKind::Create(CreateKind::File));
        assert_eq!(News::of(&Ok(created.clone())), Some(News::Changed));
        let lost = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(News::of(&Ok(lost)), Some(News::Lost));
        assert_eq!(
            News::of(&Err(notify::Error::generic("x"))),
            Some(News::Lost)
        );
        assert_eq!(News::of_bytes(b"ccc"), News::Changed);
        assert_eq!(News::of_bytes(b"clc"), News::Lost);
    }

    /// Allows so many watches.
    #[derive(Debug)]
    struct Limited {
        room: usize,
        watched: Vec<PathBuf>,
        calls: usize,
    }

    impl Watcher for Limited {
        fn new<F: EventHandler>(_: F, _: Config) -> notify::Result<Self> {
            Err(notify::Error::generic("made by hand"))
        }

        fn watch(&mut self, path: &Path, _: RecursiveMode) -> notify::Result<()> {
            self.calls += 1;
            if self.watched.iter().any(|watched| watched == path) {
                return Ok(());
            }
            if self.watched.len() >= self.room {
                return Err(notify::Error::new(ErrorKind::MaxFilesWatch));
            }
            self.watched.push(path.to_owned());
            Ok(())
        }

        fn unwatch(&mut self, path: &Path) -> notify::Result<()> {
            self.watched.retain(|watched| watched != path);
            Ok(())
        }

        fn kind() -> WatcherKind {
            WatcherKind::NullWatcher
        }
    }

    fn survey(watch: &mut DirectoryWatch<Limited>, paths: &[(&str, u64)]) -> Option<Refusal> {
        watch.begin(watch.sweep + 1);
        for (path, inode) in paths {
            watch.directory(Path::new(path), (1, *inode));
        }
        watch.refused().cloned()
    }

    #[test]
    fn the_limit_of_watches_is_told_and_the_others_are_kept() {
        let mut watch = DirectoryWatch::with(Limited {
            room: 2,
            watched: Vec::new(),
            calls: 0,
        });
        let all = [("/a", 1), ("/b", 2), ("/c", 3), ("/d", 4)];
        assert_eq!(survey(&mut watch, &all), Some(Refusal::Limit));
        assert_eq!(watch.watched(), 2);
        assert_eq!(watch.watcher.calls, 3, "it was not asked in vain again");
        // One goes, another gets its place in the survey after.
        assert_eq!(survey(&mut watch, &all[1..]), Some(Refusal::Limit));
        assert_eq!(survey(&mut watch, &all[1..3]), None);
        assert_eq!(watch.watched(), 2);
    }

    #[test]
    fn another_directory_at_the_path_is_watched_anew() {
        let mut watch = DirectoryWatch::with(Limited {
            room: 9,
            watched: Vec::new(),
            calls: 0,
        });
        assert_eq!(survey(&mut watch, &[("/a", 1), ("/b", 2)]), None);
        watch.watcher.watched.clear();
        assert_eq!(survey(&mut watch, &[("/a", 1), ("/b", 3)]), None);
        assert_eq!(watch.watcher.watched, ["/a", "/b"].map(PathBuf::from));
    }

    #[test]
    fn names_are_heard_of() {
        use std::fs;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let (say, hear) = channel();
        let tell = move |news| say.send(news).unwrap_or_default();
        let mut watch = DirectoryWatch::new(tell).unwrap();
        watch.begin(1);
        watch.directory(&path, (0, 0));
        assert_eq!(watch.refused(), None);
        // The same sweep goes on, elsewhere on the file system.
        watch.begin(1);
        let heard = |what: &str| {
            let news = hear.recv_timeout(Duration::from_secs(20));
            assert_eq!(news, Ok(News::Changed), "{what}");
            // What belongs to it, such as the second half of a rename.
            while hear.recv_timeout(Duration::from_millis(100)).is_ok() {}
        };
        fs::write(path.join("a"), "").unwrap();
        heard("created");
        fs::rename(path.join("a"), path.join("b")).unwrap();
        heard("renamed");
        fs::create_dir(path.join("c")).unwrap();
        heard("a directory");
        fs::rename(path.join("b"), path.join("c/b")).unwrap();
        heard("moved away");
        fs::rename(path.join("c/b"), path.join("b")).unwrap();
        heard("moved here");
        fs::remove_file(path.join("b")).unwrap();
        heard("removed");
        // Not watched any more.
        watch.begin(2);
        assert_eq!(watch.watched(), 1);
        watch.begin(3);
        assert_eq!(watch.watched(), 0);
        fs::write(path.join("d"), "").unwrap();
        assert!(hear.recv_timeout(Duration::from_millis(300)).is_err());
    }

    #[test]
    fn the_first_event_is_answered_soon_and_a_storm_seldom() {
        let begin = Instant::now();
        let work = Duration::from_millis(20);
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.heard(begin);
        assert_eq!(pace.due(), Some(begin + GATHER));
        // Something happens all the time, for a quarter of an hour.
        let mut now = begin;
        let mut sweeps = 0;
        while now < begin + Duration::from_secs(900) {
            pace.heard(now);
            if pace.due().is_some_and(|due| due <= now) {
                pace.swept(now, now + work);
                sweeps += 1;
            }
            now += Duration::from_millis(50);
        }
        assert!((90..=120).contains(&sweeps), "{sweeps}");
        // After a while without it is as in the beginning.
        pace.swept(now, now + work);
        now += Duration::from_secs(60);
        pace.heard(now);
        assert_eq!(pace.due(), Some(now + GATHER));
    }

    proptest! {
        /// Whatever is heard is answered, and sweeps take no more than a tenth of the time.
        #[test]
        fn nothing_is_left_unanswered(
            steps in prop::collection::vec((0_u64..3000, 1_u64..2000), 1..200)
        ) {
            let mut now = Instant::now();
            let mut pace = Pace::default();
            let mut ended: Option<(Instant, Duration)> = None;
            for (wait, work) in steps {
                now += Duration::from_millis(wait);
                pace.heard(now);
                let due = pace.due().unwrap();
                let work = Duration::from_millis(work);
                prop_assert!(due >= now + GATHER || ended.is_some());
                if let Some((ended, work)) = ended {
                    prop_assert!(due >= ended + work * REST_FOR_WORK);
                    prop_assert!(due <= now.max(ended) + GATHER.max(LONGEST_REST.max(work * REST_FOR_WORK)));
                }
                now = now.max(due);
                pace.swept(now, now + work);
                prop_assert_eq!(pace.due(), None);
                now += work;
                ended = Some((now, work));
            }
        }
    }
}
