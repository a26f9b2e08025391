//! The directory of incident files, which may lie on the very file system that hangs.
//!
//! A file is written beside its place, flushed, renamed, and the directory is flushed too: whoever
//! looks, after whatever crash, finds the old state or the new. All of that happens on one thread
//! that nobody waits for. It takes its jobs from a short queue, in which a newer state of a file
//! takes the place of the older one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tracing::{error, info, warn};

use super::utc;
use crate::background::{Background, Jobs, STACK};
use crate::durable;
use crate::model::path::shown;

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
    durable::replace(&directory.join(name), bytes, 0o600)
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
        if durable::is_left_over(&entry.file_name()) {
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

/// The thread that writes. A copy is the same thread.
#[derive(Debug, Clone)]
pub struct Writer {
    jobs: Background<Job>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
    /// The last attempt failed.
    failing: AtomicBool,
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
        let counts = Arc::new(Counts::default());
        let archive = Archive {
            directory,
            keep: keep.max(1),
            counts: Arc::clone(&counts),
        };
        let jobs = Background::start("incident-writer", QUEUE, STACK, move |jobs| {
            archive.run(jobs);
        })?;
        Ok(Writer { jobs, counts })
    }

    /// Has a file written, in its newest state. Never waits for the directory: if too many files
    /// wait already this one is refused, and that is false.
    #[must_use]
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> bool {
        self.jobs.push_with(|jobs| {
            let full = jobs.len() >= QUEUE;
            match jobs.iter_mut().find(|job| job.name == name) {
                Some(job) => job.bytes = bytes,
                None if full => return false,
                None => jobs.push_back(Job {
                    name: name.to_owned(),
                    bytes,
                }),
            }
            true
        })
    }

    /// Counts a file that was refused and is not asked for again.
    pub fn give_up(&self) {
        self.jobs.count_dropped();
    }

    /// How it goes.
    #[must_use]
    pub fn health(&self) -> WriterHealth {
        let load = self.jobs.load();
        WriterHealth {
            written: self.counts.written.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
            dropped: self.jobs.dropped(),
            waiting: load.waiting,
            failing: self.counts.failing.load(Ordering::Relaxed),
            hung_for: load.busy_for,
        }
    }

    /// Ends it once everything is written, or cannot be. False if that is not within the time;
    /// then the thread is left behind.
    #[must_use]
    pub fn stop(&self, within: Duration) -> bool {
        self.jobs.stop(within)
    }
}

/// What the thread needs.
struct Archive {
    directory: PathBuf,
    keep: usize,
    counts: Arc<Counts>,
}

impl Archive {
    fn run(&self, jobs: &mut Jobs<Job>) {
        let began = utc::compact(SystemTime::now());
        let directory = shown(&self.directory);
        let mut recovered = false;
        loop {
            if !recovered {
                let result = recover(&self.directory, &began);
                recovered = result.is_ok();
                if let Err(error) = result {
                    warn!("{directory}: cannot be put in order: {error}");
                }
            }
            if self.counts.failing.load(Ordering::Relaxed) {
                jobs.pause(RETRY);
            }
            // What fails is tried once more at the end, and then given up.
            let Some(job) = jobs.next() else { break };
            if self.told(&job.name, save(&self.directory, &job.name, &job.bytes)) {
                self.counts.written.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = prune(&self.directory, self.keep, &job.name) {
                    warn!("{directory}: old incidents cannot be removed: {error}");
                }
            } else {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                // Unless a newer state of its file has come meanwhile.
                jobs.put_back(job, |job, newer| newer.name == job.name);
            }
        }
    }

    /// Logs when it begins to fail, and when it works again.
    fn told(&self, name: &str, result: io::Result<()>) -> bool {
        let failed = result.is_err();
        let failed_before = self.counts.failing.swap(failed, Ordering::Relaxed);
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
            (".fragwatch-abc.tmp", false),
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
        write(".fragwatch-abc.tmp", "half a fi");
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
