//! The thread that writes incident files, to a directory that may lie on the very file system that
//! hangs. Nobody waits for it: it takes its jobs from a short queue, in which a newer state of a file
//! replaces the older one.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use super::archive::{prune, recover, save};
use crate::model::path::shown;
use crate::model::utc;

/// Files that may wait to be written.
const QUEUE: usize = 16;
/// After this time a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The state of the writer.
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

/// The writer. A clone hands its files to the same thread.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    keep: usize,
    queue: Mutex<Queue>,
    /// Something changed in the queue.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Files by name, with their contents.
    jobs: VecDeque<(String, Vec<u8>)>,
    busy_since: Option<Instant>,
    /// All but `waiting` and `hung_for`.
    health: WriterHealth,
    stopping: bool,
    ended: bool,
}

impl Writer {
    /// Starts the thread. Up to `keep` files are kept.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(directory: PathBuf, keep: usize) -> io::Result<Writer> {
        let shared = Arc::new(Shared {
            directory,
            keep: keep.max(1),
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("incident-writer".to_owned())
            .spawn(move || shared.run())?;
        Ok(writer)
    }

    /// Queues a file in its newest state. Never waits for the directory: false if too many files
    /// wait already; then this one is refused.
    #[must_use]
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) -> bool {
        let mut queue = self.shared.lock();
        let full = queue.jobs.len() >= QUEUE;
        match queue.jobs.iter_mut().find(|(waiting, _)| waiting == name) {
            Some((_, former)) => *former = bytes,
            None if full => return false,
            None => queue.jobs.push_back((name.to_owned(), bytes)),
        }
        self.shared.changed.notify_all();
        true
    }

    /// Counts a file that was refused and will not be queued again.
    pub(super) fn give_up(&self) {
        self.shared.lock().health.dropped += 1;
    }

    /// Its state.
    #[must_use]
    pub(super) fn health(&self) -> WriterHealth {
        let queue = self.shared.lock();
        WriterHealth {
            waiting: queue.jobs.len(),
            hung_for: queue.busy_since.map(|since| since.elapsed()),
            ..queue.health
        }
    }

    /// Ends the thread once everything is written, or cannot be. False if that takes longer than
    /// `within`; then the thread is left behind.
    #[must_use]
    pub(super) fn stop(&self, within: Duration) -> bool {
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
        self.lock().busy_since = Some(Instant::now());
        loop {
            if !recovered {
                let result = recover(&self.directory, &began);
                recovered = result.is_ok();
                if let Err(error) = result {
                    warn!("{directory}: cannot be put in order: {error}");
                }
            }
            let Some((name, bytes)) = self.next() else {
                break;
            };
            let saved = save(&self.directory, &name, &bytes);
            if self.saved(&name, bytes, saved)
                && let Err(error) = prune(&self.directory, self.keep, &name)
            {
                warn!("{directory}: old incidents cannot be removed: {error}");
            }
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The next file to write, once it is due; `None` at the end.
    fn next(&self) -> Option<(String, Vec<u8>)> {
        let mut queue = self.lock();
        queue.busy_since = None;
        if queue.health.failing && !queue.stopping {
            queue = self
                .changed
                .wait_timeout_while(queue, RETRY, |queue| !queue.stopping)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        // A file that failed is tried once more at the end, and then given up.
        let queue = self
            .changed
            .wait_while(queue, |queue| queue.jobs.is_empty() && !queue.stopping);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        let job = queue.jobs.pop_front()?;
        queue.busy_since = Some(Instant::now());
        Some(job)
    }

    /// Counts an attempt and logs when writing begins to fail and when it works again. A file that
    /// failed is queued again, unless a newer state of it waits or the thread is to end. True if it
    /// was written.
    fn saved(&self, name: &str, bytes: Vec<u8>, result: io::Result<()>) -> bool {
        let mut queue = self.lock();
        let written = result.is_ok();
        let failed_before = std::mem::replace(&mut queue.health.failing, !written);
        if written {
            queue.health.written += 1;
        } else {
            queue.health.failed += 1;
            if queue.stopping {
                queue.health.dropped += 1;
            } else if !queue.jobs.iter().any(|(newer, _)| newer == name) {
                queue.jobs.push_front((name.to_owned(), bytes));
            }
        }
        drop(queue);
        let directory = shown(&self.directory);
        match result {
            Err(error) if !failed_before => {
                error!("{directory}: {name} cannot be written: {error}; tried again every 10 s");
            }
            Ok(()) if failed_before => info!("{directory}: incidents can be written again"),
            _ => {}
        }
        written
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
            assert!(writer.put(&name, b"{}".to_vec()));
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
            assert!(writer.put("20261120T120305.123Z-1.json", vec![round]));
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
