//! The directory of incident files, which may lie on the very file system that hangs.
//!
//! A file is written beside its place, flushed, renamed, and the directory is flushed too: whoever
//! looks, after whatever crash, finds the old state or the new. All of that happens on one thread
//! that nobody waits for. It takes its jobs from a short queue, in which a newer state of a file
//! takes the place of the older one.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use super::utc;
use crate::model::path::shown;

const TEMPORARY_PREFIX: &str = ".incident-";
const TEMPORARY_SUFFIX: &str = ".tmp";
const SUFFIX: &str = ".json";
/// Files that may wait to be written.
const QUEUE: usize = 16;
/// After this a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Nothing of ours is larger.
const LARGEST: u64 = 64 << 20;
/// How the state of an unfinished incident is written; see [`super::incident::State`].
const OPEN: &str = "open";
const INTERRUPTED: &str = "interrupted";

/// The files in a directory, newest first. What else lies there is left out.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_ours(&entry.file_name()) {
            files.push(entry.path());
        }
    }
    // Names begin with the time.
    files.sort_unstable_by(|a, b| b.cmp(a));
    Ok(files)
}

/// The whole of a file.
///
/// # Errors
/// Those of reading, and a file that is too large to be one of ours.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Writes a file so that it is there whole or not at all.
///
/// # Errors
/// Those of each step. The old state is still there then, unless it was the last step that failed.
pub fn save(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .suffix(TEMPORARY_SUFFIX)
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name))?;
    // A rename alone can be lost.
    File::open(directory)?.sync_all()
}

/// Puts the directory in order after a death in the middle of anything: what was being written is
/// removed, and incidents that were going on are marked as interrupted. Only those of before
/// `now`, as [`compact`](super::utc::compact) writes it: later ones are our own.
///
/// # Errors
/// When the directory can neither be read nor made, or something in it cannot be written.
pub fn recover(directory: &Path, now: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_bytes();
        if name.starts_with(TEMPORARY_PREFIX.as_bytes())
            && name.ends_with(TEMPORARY_SUFFIX.as_bytes())
        {
            fs::remove_file(entry.path())?;
        }
    }
    for path in list(directory)? {
        let name = path.file_name().and_then(OsStr::to_str);
        let Some(name) = name.filter(|name| *name < now) else {
            continue;
        };
        if let Some(bytes) = interrupted(&read(&path)?) {
            save(directory, name, &bytes)?;
        }
    }
    Ok(())
}

/// The file of an open incident, marked as interrupted; nothing if it is none. Keys that this
/// version does not know are kept.
fn interrupted(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut incident: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let state = incident.get_mut("state")?;
    if state != OPEN {
        return None;
    }
    *state = INTERRUPTED.into();
    serde_json::to_vec(&incident).ok()
}

/// Removes the oldest. `newest` stays in any case: the clock may have gone back.
fn prune(directory: &Path, keep: usize, newest: &str) -> io::Result<()> {
    for path in list(directory)?.into_iter().skip(keep) {
        if path.file_name() != Some(OsStr::new(newest)) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// `20261120T120305.123Z-1.json`
fn is_ours(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
    let parts = name.and_then(|name| name.split_once("Z-"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    parts.is_some_and(|(time, number)| {
        digits(number) && time.len() == 19 && digits(&time.replace(['T', '.'], ""))
    })
}

/// How the writing goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterHealth {
    /// Files written.
    pub written: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Files that were given up, because too many waited or because the daemon ended.
    pub dropped: u64,
    /// Files that wait.
    pub waiting: usize,
    /// Whether the last attempt failed.
    pub failing: bool,
    /// For how long the directory has not answered.
    pub hung_for: Option<Duration>,
}

/// The thread that writes. A copy speaks to the same thread.
#[derive(Debug, Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    keep: usize,
    queue: Mutex<Queue>,
    /// Something changed in the queue.
    changed: Condvar,
    written: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    at_work_since: Option<Instant>,
    /// The last attempt failed.
    failing: bool,
    stopping: bool,
    ended: bool,
}

#[derive(Debug)]
struct Job {
    name: String,
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts it. Up to `keep` files are kept.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(directory: PathBuf, keep: usize) -> io::Result<Writer> {
        let shared = Arc::new(Shared {
            directory,
            keep: keep.max(1),
            queue: Mutex::default(),
            changed: Condvar::new(),
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("incident-writer".to_owned())
            .spawn(move || shared.run())?;
        Ok(writer)
    }

    /// Has a file written, in its newest state. Never waits for the directory: if too many files
    /// wait already this one is refused, and that is false.
    #[must_use]
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> bool {
        let mut queue = self.shared.lock();
        let full = queue.jobs.len() >= QUEUE;
        match queue.jobs.iter_mut().find(|job| job.name == name) {
            Some(job) => job.bytes = bytes,
            None if full => return false,
            None => queue.jobs.push_back(Job {
                name: name.to_owned(),
                bytes,
            }),
        }
        self.shared.changed.notify_all();
        true
    }

    /// Counts a file that was refused and is not asked for again.
    pub fn give_up(&self) {
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// How it goes.
    #[must_use]
    pub fn health(&self) -> WriterHealth {
        let queue = self.shared.lock();
        WriterHealth {
            written: self.shared.written.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            waiting: queue.jobs.len(),
            failing: queue.failing,
            hung_for: queue.at_work_since.map(|since| since.elapsed()),
        }
    }

    /// Ends it once everything is written, or cannot be. False if that is not within the time;
    /// then the thread is left behind.
    #[must_use]
    pub fn stop(&self, within: Duration) -> bool {
        let mut queue = self.shared.lock();
        queue.stopping = true;
        self.shared.changed.notify_all();
        let (queue, _) = self
            .shared
            .changed
            .wait_timeout_while(queue, within, |queue| !queue.ended)
            .unwrap_or_else(PoisonError::into_inner);
        queue.ended
    }
}

impl Shared {
    /// Never held while a file is touched.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let began = utc::compact(SystemTime::now());
        let directory = shown(&self.directory);
        let mut recovered = false;
        self.lock().at_work_since = Some(Instant::now());
        loop {
            if !recovered {
                let result = recover(&self.directory, &began);
                recovered = result.is_ok();
                if let Err(error) = result {
                    warn!("{directory}: cannot be put in order: {error}");
                }
            }
            let Some(job) = self.next() else { break };
            if self.told(&job.name, save(&self.directory, &job.name, &job.bytes)) {
                self.written.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = prune(&self.directory, self.keep, &job.name) {
                    warn!("{directory}: old incidents cannot be removed: {error}");
                }
            } else {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.put_back(job);
            }
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The next file to write, once it is time for it; nothing when all is done.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        queue.at_work_since = None;
        if queue.failing && !queue.stopping {
            queue = self
                .changed
                .wait_timeout_while(queue, RETRY, |queue| !queue.stopping)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        // What fails is tried once more at the end, and then given up.
        let queue = self
            .changed
            .wait_while(queue, |queue| queue.jobs.is_empty() && !queue.stopping);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        let job = queue.jobs.pop_front()?;
        queue.at_work_since = Some(Instant::now());
        Some(job)
    }

    /// A job that failed, unless a newer state of its file has come meanwhile or all is over.
    fn put_back(&self, job: Job) {
        let mut queue = self.lock();
        if queue.stopping {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else if !queue.jobs.iter().any(|newer| newer.name == job.name) {
            queue.jobs.push_front(job);
        }
    }

    /// Says when it begins to fail, and when it works again.
    fn told(&self, name: &str, result: io::Result<()>) -> bool {
        let failed = result.is_err();
        let failed_before = std::mem::replace(&mut self.lock().failing, failed);
        let directory = shown(&self.directory);
        match result {
            Err(error) if !failed_before => {
                error!("{directory}: {name} cannot be written: {error}; tried again every 10 s");
            }
            Ok(()) if failed_before => info!("{directory}: incidents can be written again"),
            _ => {}
        }
        !failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "20261120T120305.123Z-1.json";

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_our_names_are_ours() {
        for (name, ours) in [
            (NAME, true),
            ("20261120T120305.123Z-77.json", true),
            ("20261120T120305.123Z-.json", false),
            ("20261120T120305Z-1.json", false),
            ("notes.json", false),
            (".incident-abc.tmp", false),
        ] {
            assert_eq!(is_ours(OsStr::new(name)), ours, "{name}");
        }
        let name = super::super::utc::compact(std::time::SystemTime::now());
        assert!(is_ours(OsStr::new(&format!("{name}-3.json"))));
    }

    #[test]
    fn what_was_left_by_a_death_is_put_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
        write(".incident-abc.tmp", "half a fi");
        write(NAME, r#"{"state":"open","later":{"key":1}}"#);
        write("20261120T120306.000Z-2.json", r#"{"state":"ended"}"#);
        write("20261120T120307.000Z-3.json", "no JSON");
        write("notes.txt", "mine");
        write("20991120T120307.000Z-1.json", r#"{"state":"open"}"#);
        recover(path, "20261121").unwrap();
        assert_eq!(names(path).len(), 5, "{:?}", names(path));
        let marked: serde_json::Value =
            serde_json::from_slice(&read(&path.join(NAME)).unwrap()).unwrap();
        assert_eq!(marked["state"], "interrupted");
        assert_eq!(marked["later"]["key"], 1);
        let ours = read(&path.join("20991120T120307.000Z-1.json")).unwrap();
        assert_eq!(ours, br#"{"state":"open"}"#);
        let state = serde_json::to_value(super::super::incident::State::Interrupted).unwrap();
        assert_eq!(state, INTERRUPTED);
        assert_eq!(
            serde_json::to_value(super::super::incident::State::Open).unwrap(),
            OPEN
        );
    }

    #[test]
    fn the_oldest_are_pruned_and_strangers_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/incidents");
        let writer = Writer::start(path.clone(), 3).unwrap();
        for number in 0..6 {
            let name = format!("2026112{number}T000000.000Z-1.json");
            assert!(writer.put(&name, b"{}".to_vec()));
        }
        assert!(writer.stop(Duration::from_secs(10)));
        let kept =
            ["20261123", "20261124", "20261125"].map(|day| format!("{day}T000000.000Z-1.json"));
        assert_eq!(names(&path), kept);
        let health = writer.health();
        assert_eq!((health.written, health.failed, health.dropped), (6, 0, 0));
    }

    #[test]
    fn the_queue_is_short_and_keeps_the_newest_state() {
        let directory = tempfile::tempdir().unwrap();
        // Not a directory: nothing can be written.
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        let writer = Writer::start(path, 100).unwrap();
        for round in 0..10 {
            assert!(writer.put(NAME, vec![round]));
        }
        assert!(writer.health().waiting <= 2);
        let taken = (0..30).filter(|number| {
            writer.put(&format!("20261120T120305.123Z-{number}.json"), Vec::new())
        });
        assert!((QUEUE - 2..=QUEUE).contains(&taken.count()));
        assert!(writer.health().waiting <= QUEUE + 1);
        assert!(writer.stop(Duration::from_secs(10)));
        assert!(writer.health().failed >= 1);
        assert_eq!(writer.health().written, 0);
    }
}
