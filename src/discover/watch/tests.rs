//! Tests of [`watch`](super).

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

fn survey(watch: &mut DirectoryWatch<Limited>, paths: &[(&str, u64)]) -> Option<WatchRefusal> {
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
    assert_eq!(survey(&mut watch, &all), Some(WatchRefusal::Limit));
    assert_eq!(watch.watched.len(), 2);
    assert_eq!(watch.watcher.calls, 3, "it was not asked in vain again");
    // One goes, another gets its place in the survey after.
    assert_eq!(survey(&mut watch, &all[1..]), Some(WatchRefusal::Limit));
    assert_eq!(survey(&mut watch, &all[1..3]), None);
    assert_eq!(watch.watched.len(), 2);
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
    assert_eq!(watch.watched.len(), 1);
    watch.begin(3);
    assert_eq!(watch.watched.len(), 0);
    fs::write(path.join("d"), "").unwrap();
    assert!(hear.recv_timeout(Duration::from_millis(300)).is_err());
}

#[test]
fn the_first_event_is_answered_soon_and_a_storm_seldom() {
    let begin = Instant::now();
    let work = Duration::from_millis(20);
    let mut pace = SweepPace::default();
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
        let mut pace = SweepPace::default();
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
