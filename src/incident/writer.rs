//! The thread that writes incident files, possibly to the file system that hangs. Callers never
//! block: they use a short queue, in which a newer state of a file replaces the older one.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tracing::{error, info, warn};

use super::archive::{prune, recover, save};
use crate::background::{Background, Jobs, STACK};
use crate::model::path::shown;
use crate::model::utc;
use crate::sys::mutex::lock;

const QUEUE: usize = 16;
const RETRY: Duration = Duration::from_secs(10);

/// State of the writer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterHealth {
    /// Files written.
    pub written: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Files dropped because the queue was full or the daemon ended.
    pub dropped: u64,
    /// Files in the queue.
    pub waiting: usize,
    /// Whether the last attempt failed.
    pub failing: bool,
    /// How long the current operation on the directory has been running.
    pub hung_for: Option<Duration>,
}

/// A handle to the writer thread; clones share the thread.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    jobs: Background<IncidentFile>,
    health: Arc<Mutex<WriterHealth>>,
}

#[derive(Debug)]
struct IncidentFile {
    name: String,
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts the thread. The newest `keep` files are kept.
    pub(super) fn start(directory: PathBuf, keep: usize) -> io::Result<Writer> {
        let health = Arc::<Mutex<WriterHealth>>::default();
        let archive = Archive {
            directory,
            keep,
            health: Arc::clone(&health),
        };
        let jobs = Background::start("incident-writer", QUEUE, STACK, move |jobs| {
            archive.run(jobs);
        })?;
        Ok(Writer { jobs, health })
    }

    /// Queues the newest state of a file without blocking. Returns false if the queue is full.
    pub(super) fn put(&self, name: String, bytes: Vec<u8>) -> bool {
        self.jobs.push_with(|jobs| {
            let full = jobs.len() >= QUEUE;
            match jobs.iter_mut().find(|job| job.name == name) {
                Some(job) => job.bytes = bytes,
                None if full => return false,
                None => jobs.push_back(IncidentFile { name, bytes }),
            }
            true
        })
    }

    /// Counts a refused file that will not be queued again.
    pub(super) fn give_up(&self) {
        self.jobs.count_dropped();
    }

    /// Returns the state of the writer.
    pub(super) fn health(&self) -> WriterHealth {
        let load = self.jobs.load();
        WriterHealth {
            dropped: self.jobs.dropped(),
            waiting: load.waiting,
            hung_for: load.busy_for,
            ..*lock(&self.health)
        }
    }

    /// Stops the thread after a last attempt to write all queued files. Returns false, and leaves
    /// the thread running, if that takes longer than `within`.
    pub(super) fn stop(&self, within: Duration) -> bool {
        self.jobs.stop(within)
    }
}

struct Archive {
    directory: PathBuf,
    keep: usize,
    health: Arc<Mutex<WriterHealth>>,
}

impl Archive {
    fn run(&self, jobs: &mut Jobs<IncidentFile>) {
        let began = utc::compact(SystemTime::now());
        let directory = shown(&self.directory);
        let mut recovered = false;
        loop {
            if !recovered {
                let result = recover(&self.directory, &began);
                recovered = result.is_ok();
                if let Err(error) = result {
                    warn!("{directory}: files of an earlier daemon cannot be recovered: {error}");
                }
            }
            if lock(&self.health).failing {
                jobs.pause(RETRY);
            }
            // A failed file is retried once when the writer stops, and then dropped.
            let Some(job) = jobs.next() else { break };
            if self.save(&job) {
                if let Err(error) = prune(&self.directory, self.keep, &job.name) {
                    warn!("{directory}: old incidents cannot be removed: {error}");
                }
            } else {
                // Unless a newer state of the file has been queued meanwhile.
                jobs.put_back(job, |job, newer| newer.name == job.name);
            }
        }
    }

    /// Logs the first failure and the recovery.
    fn save(&self, IncidentFile { name, bytes }: &IncidentFile) -> bool {
        let saved = save(&self.directory, name, bytes);
        let mut health = lock(&self.health);
        let failed_before = std::mem::replace(&mut health.failing, saved.is_err());
        health.written += u64::from(saved.is_ok());
        health.failed += u64::from(saved.is_err());
        drop(health);
        let directory = shown(&self.directory);
        match &saved {
            Err(error) if !failed_before => {
                error!("{directory}: {name} cannot be written: {error}; retrying every 10 s");
            }
            Ok(()) if failed_before => info!("{directory}: incidents can be written again"),
            _ => {}
        }
        saved.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::archive::list;
    use super::*;
    use std::fs;

    #[test]
    fn all_are_written_and_the_oldest_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/incidents");
        let writer = Writer::start(path.clone(), 3).unwrap();
        for number in 0..6 {
            let name = format!("2026112{number}T000000.000Z-1.json");
            assert!(writer.put(name, b"{}".to_vec()));
        }
        assert!(writer.stop(Duration::from_secs(10)));
        assert_eq!(list(&path).unwrap().len(), 3);
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
            assert!(writer.put("20261120T120305.123Z-1.json".to_owned(), vec![round]));
        }
        assert!(writer.health().waiting <= 2);
        let taken = (0..30)
            .filter(|number| writer.put(format!("20261120T120305.123Z-{number}.json"), Vec::new()));
        assert!((QUEUE - 2..=QUEUE + 1).contains(&taken.count()));
        assert!(writer.health().waiting <= QUEUE + 1);
        assert!(writer.stop(Duration::from_secs(10)));
        assert!(writer.health().failed >= 1);
        assert_eq!(writer.health().written, 0);
    }
}
