//! The thread that writes the history, and its bounded queue. Recording never blocks: records that
//! do not fit or cannot be written are lost and counted, to save memory on a host in trouble.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::error::StoreError;
use super::record::Record;
use super::store::{QuarantinedDb, Store};
use crate::background::{Background, Jobs, STACK};
use crate::config::settings;
use crate::model::path::shown;
use crate::sys::mutex::lock;

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
pub fn open(settings: &settings::History) -> io::Result<Recorder> {
    let shared = Arc::new(Shared {
        path: settings.path.clone(),
        retention: Mutex::new(settings.retention),
        health: Mutex::default(),
        upgrading: AtomicBool::new(false),
    });
    let at_work = Arc::clone(&shared);
    let queue = Background::start("history", WAITING, STACK, move |jobs| {
        let writer = Writer {
            shared: &at_work,
            store: None,
            failed_at: None,
            trouble: None,
        };
        writer.run(jobs);
    })?;
    Ok(Recorder { shared, queue })
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
        self.record_noted(record, None)
    }

    /// As `record`; the file `note`, which has the record too, is removed once it is written.
    pub fn record_noted(&self, record: Record, note: Option<PathBuf>) -> bool {
        let weight = record.weight();
        let queued = self.queue.push_with(|jobs| {
            let rows: usize = jobs.iter().map(|job| job.record.weight()).sum();
            // A single event is worth more than one of many counts.
            let is_light = weight == 1 || rows.saturating_add(weight) <= WAITING_ROWS;
            let fits = jobs.is_empty() || (is_light && jobs.len() < WAITING);
            fits.then(|| jobs.push_back(Job { record, note })).is_some()
        });
        if !queued {
            lock(&self.shared.health).lost += 1;
        }
        queued
    }

    /// Sets how long records are kept.
    pub fn set_retention(&self, retention: Duration) {
        *lock(&self.shared.retention) = retention;
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
        let health = *lock(&self.shared.health);
        Health {
            healthy: health.healthy && load.busy_for.is_none_or(|busy| busy < WRITE_TIMEOUT),
            waiting: load.waiting + usize::from(load.busy_for.is_some()),
            busy_for: load.busy_for,
            ..health
        }
    }

    /// Ends the thread after the last write; after `within`, leaves it running and returns false.
    pub fn stop(&self, within: Duration) -> bool {
        self.queue.stop(within)
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
    /// The locks are held only to copy or change the value.
    retention: Mutex<Duration>,
    health: Mutex<Health>,
    /// Whether the database has an older schema.
    upgrading: AtomicBool,
}

/// A record, and the file to remove once it is written.
#[derive(Debug)]
struct Job {
    record: Record,
    note: Option<PathBuf>,
}

struct Writer<'s> {
    shared: &'s Shared,
    store: Option<Store>,
    /// When opening last failed.
    failed_at: Option<Instant>,
    /// The last error logged.
    trouble: Option<String>,
}

impl Writer<'_> {
    fn run(mut self, jobs: &mut Jobs<Job>) {
        let opened = self.open();
        self.report(opened);
        for job in jobs {
            let result = self.take(&job);
            self.report(result);
        }
    }

    /// Writes a record and counts it as written or lost.
    fn take(&mut self, Job { record, note }: &Job) -> Result<(), StoreError> {
        let written = match self.write(record) {
            // Written to the new database.
            Err(StoreError::Damaged(damage)) => {
                self.move_aside(damage).and_then(|()| self.write(record))
            }
            written => written,
        };
        let mut health = lock(&self.shared.health);
        health.written += u64::from(written.is_ok());
        health.lost += u64::from(written.is_err());
        drop(health);
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

    fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        self.open()?;
        let Some(store) = &mut self.store else {
            let trouble = self.trouble.as_deref().unwrap_or("cannot be opened");
            return Err(StoreError::File(trouble.to_owned()));
        };
        store.set_retention(*lock(&self.shared.retention));
        store.write(record)
    }

    /// Opens the database unless it is open or opening failed recently.
    fn open(&mut self) -> Result<(), StoreError> {
        let too_early = |failed: Instant| failed.elapsed() < RETRY;
        if self.store.is_some() || self.failed_at.is_some_and(too_early) {
            return Ok(());
        }
        let retention = *lock(&self.shared.retention);
        let on_upgrade = || self.shared.upgrading.store(true, Ordering::Relaxed);
        let opened = Store::open(&self.shared.path, retention, &on_upgrade);
        self.failed_at = opened.is_err().then(Instant::now);
        let (store, quarantined) = opened?;
        self.store = Some(store);
        if let Some(QuarantinedDb { to, damage }) = quarantined {
            self.moved(&to, &damage);
        }
        Ok(())
    }

    /// Moves a damaged database aside. The next write creates a new one.
    fn move_aside(&mut self, damage: String) -> Result<(), StoreError> {
        let Some(store) = self.store.take() else {
            return Err(StoreError::Damaged(damage));
        };
        let to = store.move_aside(&self.shared.path);
        self.failed_at = to.is_err().then(Instant::now);
        self.moved(&to?, &damage);
        Ok(())
    }

    fn moved(&self, to: &Path, damage: &str) {
        lock(&self.shared.health).moved_aside += 1;
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
        lock(&self.shared.health).healthy = trouble.is_none() && self.store.is_some();
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
