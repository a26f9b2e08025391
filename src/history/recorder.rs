//! The thread that writes the history, and its bounded queue. Recording never blocks: records that
//! do not fit or cannot be written are lost and counted, to save memory on a host in trouble.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::error::StoreError;
use super::record::Record;
use super::store::{QuarantinedDb, Store};
use crate::background::{Background, Jobs, STACK};
use crate::config::settings;
use crate::model::path::shown;

/// Maximum number of sweep rows in the queue, except for a single larger sweep: a quarter of an
/// hour of a thousand images, some megabytes.
const WAITING_ROWS: usize = 16_384;
/// Maximum number of records in the queue.
const WAITING: usize = 256;
/// How long the daemon waits for an upgrade at start. 1,000 images take nine seconds of CPU time.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between attempts to open the database.
const RETRY: Duration = Duration::from_secs(60);
/// A write that takes longer means a stalled disk. Longer than the busy timeout of a statement.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);

/// Starts the thread, and fails if it cannot be created. The thread opens the database; its errors
/// are logged and reflected in [`Health`].
pub fn open(settings: &settings::History) -> io::Result<(Recorder, WriterGuard)> {
    let shared = Arc::new(Shared {
        path: settings.path.clone(),
        retention: Mutex::new(settings.retention),
        written: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        moved_aside: AtomicU64::new(0),
        healthy: AtomicBool::new(false),
        upgrading: AtomicBool::new(false),
    });
    let at_work = Arc::clone(&shared);
    let queue = Background::start("history", WAITING, STACK, move |jobs| {
        Writer::new(&at_work).run(jobs);
    })?;
    let guard = WriterGuard(queue.clone());
    Ok((Recorder { shared, queue }, guard))
}

/// Records in the history. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    queue: Background<Job>,
}

impl Recorder {
    /// Queues a record without blocking. Returns false if the queue is full and the record lost.
    pub fn record(&self, record: Record) -> bool {
        self.queue(record, None)
    }

    /// As `record`, for a record also in the file `note`, which is removed once that is written.
    pub fn record_noted(&self, record: Record, note: PathBuf) -> bool {
        self.queue(record, Some(note))
    }

    fn queue(&self, record: Record, note: Option<PathBuf>) -> bool {
        let weight = record.weight();
        let queued = self.queue.push_with(|jobs| {
            let rows: usize = jobs.iter().map(|job| job.record.weight()).sum();
            // A single event is worth more than one of many counts.
            let is_light = weight == 1 || rows.saturating_add(weight) <= WAITING_ROWS;
            let fits = jobs.is_empty() || (is_light && jobs.len() < WAITING);
            fits.then(|| jobs.push_back(Job { record, note })).is_some()
        });
        if !queued {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        queued
    }

    /// Sets how long records are kept.
    pub fn set_retention(&self, retention: Duration) {
        *self.shared.retention() = retention;
    }

    /// Waits up to `within`, and [`UPGRADE_TIMEOUT`] more during an upgrade, until opening the
    /// database succeeded or failed. Returns false if it is still being opened and cannot be read.
    pub fn wait_for_opening(&self, within: Duration) -> bool {
        let is_upgraded = || self.shared.upgrading.load(Ordering::Relaxed);
        self.queue.wait_until_ready(within)
            || (is_upgraded() && self.queue.wait_until_ready(UPGRADE_TIMEOUT))
    }

    /// The state of the history.
    pub fn health(&self) -> Health {
        let load = self.queue.load();
        let is_alive = load.busy_for.is_none_or(|busy| busy < WRITE_TIMEOUT);
        Health {
            written: self.shared.written.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
            moved_aside: self.shared.moved_aside.load(Ordering::Relaxed),
            healthy: self.shared.healthy.load(Ordering::Relaxed) && is_alive,
            waiting: load.waiting + usize::from(load.busy_for.is_some()),
            busy_for: load.busy_for,
        }
    }
}

/// Ends the thread of the history.
#[derive(Debug)]
pub struct WriterGuard(Background<Job>);

impl WriterGuard {
    /// Ends the thread after the last write; after `within`, leaves it running and returns false.
    pub fn stop(self, within: Duration) -> bool {
        self.0.stop(within)
    }
}

/// The state of the history, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Committed records.
    pub written: u64,
    /// Lost records.
    pub lost: u64,
    /// Damaged databases that were moved aside.
    pub moved_aside: u64,
    /// Whether the database is open and the last record was written in time.
    pub healthy: bool,
    /// Records that are queued or being written.
    pub waiting: usize,
    /// How long the current record has been written.
    pub busy_for: Option<Duration>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Locked only to copy the value.
    retention: Mutex<Duration>,
    written: AtomicU64,
    lost: AtomicU64,
    moved_aside: AtomicU64,
    healthy: AtomicBool,
    /// Whether the database has an older schema.
    upgrading: AtomicBool,
}

/// A record, and the file to remove once it is written.
#[derive(Debug)]
struct Job {
    record: Record,
    note: Option<PathBuf>,
}

impl Shared {
    fn retention(&self) -> MutexGuard<'_, Duration> {
        let retention = self.retention.lock();
        retention.unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer<'s> {
    shared: &'s Shared,
    store: Option<Store>,
    /// When opening last failed.
    failed_at: Option<Instant>,
    /// The last error logged.
    trouble: Option<String>,
}

impl<'s> Writer<'s> {
    fn new(shared: &'s Shared) -> Writer<'s> {
        Writer {
            shared,
            store: None,
            failed_at: None,
            trouble: None,
        }
    }

    fn run(mut self, jobs: &mut Jobs<Job>) {
        let retention = *self.shared.retention();
        let opened = self.open(retention);
        self.report(opened);
        for job in jobs {
            let retention = *self.shared.retention();
            let result = self.take(&job, retention);
            self.report(result);
        }
    }

    /// Writes a record and counts it as written or lost.
    fn take(&mut self, job: &Job, retention: Duration) -> Result<(), StoreError> {
        let Job { record, note } = job;
        let written = match self.write(record, retention) {
            // Written to the new database.
            Err(StoreError::Damaged(damage)) => self
                .move_aside(damage)
                .and_then(|()| self.write(record, retention)),
            written => written,
        };
        let counter = if written.is_ok() {
            &self.shared.written
        } else {
            &self.shared.lost
        };
        counter.fetch_add(1, Ordering::Relaxed);
        written?;
        if let Some(note) = note
            && let Err(error) = fs::remove_file(note)
        {
            warn!("{}: cannot be removed: {error}", shown(note));
        }
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        match store.upkeep() {
            Err(StoreError::Damaged(damage)) => self.move_aside(damage),
            done => done,
        }
    }

    fn write(&mut self, record: &Record, retention: Duration) -> Result<(), StoreError> {
        self.open(retention)?;
        let Some(store) = &mut self.store else {
            let trouble = self.trouble.clone();
            return Err(StoreError::File(
                trouble.unwrap_or_else(|| "cannot be opened".to_owned()),
            ));
        };
        store.set_retention(retention);
        store.write(record)
    }

    /// Opens the database unless it is open or opening failed recently.
    fn open(&mut self, retention: Duration) -> Result<(), StoreError> {
        let too_early = self
            .failed_at
            .is_some_and(|failed| failed.elapsed() < RETRY);
        if self.store.is_some() || too_early {
            return Ok(());
        }
        let upgrading = |is| self.shared.upgrading.store(is, Ordering::Relaxed);
        match Store::open_with(&self.shared.path, retention, || upgrading(true)) {
            Ok((store, quarantined)) => {
                self.store = Some(store);
                self.failed_at = None;
                if let Some(QuarantinedDb { to, damage }) = quarantined {
                    self.moved(&to, &damage);
                }
                Ok(())
            }
            Err(error) => {
                self.failed_at = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// Moves a damaged database aside. The next write creates a new one.
    fn move_aside(&mut self, damage: String) -> Result<(), StoreError> {
        let Some(store) = self.store.take() else {
            return Err(StoreError::Damaged(damage));
        };
        let to = store.move_aside(&self.shared.path).inspect_err(|_| {
            self.failed_at = Some(Instant::now());
        })?;
        self.moved(&to, &damage);
        Ok(())
    }

    fn moved(&self, to: &Path, damage: &str) {
        self.shared.moved_aside.fetch_add(1, Ordering::Relaxed);
        error!(
            "history {}: damaged ({damage}); moved aside to {}, and a new one is begun; what was \
             recorded before is in there, as far as sqlite3's .recover finds it",
            shown(&self.shared.path),
            shown(to)
        );
    }

    /// Logs the first failure, each different failure, and the recovery.
    fn report(&mut self, result: Result<(), StoreError>) {
        let path = shown(&self.shared.path);
        let trouble = result.err().map(|error| error.to_string());
        let healthy = trouble.is_none() && self.store.is_some();
        self.shared.healthy.store(healthy, Ordering::Relaxed);
        match &trouble {
            Some(trouble) if self.trouble.as_ref() != Some(trouble) => {
                warn!("history {path}: {trouble}; until then samples are counted but not kept");
            }
            None if self.trouble.is_some() => info!("history {path}: is written again"),
            _ => {}
        }
        self.trouble = trouble;
    }
}
