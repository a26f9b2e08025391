//! The thread that writes the history, and the bounded queue to it.
//!
//! Recording never waits. Records that do not fit into the queue or cannot be written are lost and
//! counted: a late count is worth less than memory on a host in trouble.

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

/// Most rows of sweeps in the queue: a quarter of an hour of a thousand images, some megabytes. A single
/// sweep may have more.
const WAITING_ROWS: usize = 16_384;
/// Most records in the queue.
const WAITING: usize = 256;
/// How long the start of the daemon waits for an upgrade of the database. Of 1,000 images it takes nine
/// seconds of processor time.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which opening the database is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// A record that takes longer shows that the disk hangs. Longer than a statement waits for other
/// processes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);

/// Starts the history. The database is opened on its thread; an error of it is logged and in
/// [`Health`].
///
/// # Errors
/// If no thread can be made.
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

/// Records in the history. A copy has the same queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    queue: Background<Job>,
}

impl Recorder {
    /// Queues a record. Never waits; false if the queue is full and the record lost.
    pub fn record(&self, record: Record) -> bool {
        self.queue(record, None)
    }

    /// The same for a record that is also in the file `note`, which is removed once the record is
    /// written, and stays if it is lost.
    pub fn record_noted(&self, record: Record, note: PathBuf) -> bool {
        self.queue(record, Some(note))
    }

    fn queue(&self, record: Record, note: Option<PathBuf>) -> bool {
        let weight = record.weight();
        let queued = self.queue.push_with(|jobs| {
            let rows: usize = jobs.iter().map(|job| job.record.weight()).sum();
            // A rare event is worth more than one count of many.
            let is_light = weight == 1 || rows.saturating_add(weight) <= WAITING_ROWS;
            let fits = jobs.is_empty() || (is_light && jobs.len() < WAITING);
            fits.then(|| jobs.push_back(Job { record, note })).is_some()
        });
        if !queued {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        queued
    }

    /// Sets for how long records are kept.
    pub fn set_retention(&self, retention: Duration) {
        *self.shared.retention() = retention;
    }

    /// Waits until the database is opened, or cannot be, for at most `within`, or [`UPGRADE_TIMEOUT`]
    /// if it is of an older schema. False if it is still being opened: it cannot be read then.
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

/// Ends the history's thread.
#[derive(Debug)]
pub struct WriterGuard(Background<Job>);

impl WriterGuard {
    /// Ends it once everything is written. False if that takes longer than `within`; the thread is then
    /// left behind.
    pub fn stop(self, within: Duration) -> bool {
        self.0.stop(within)
    }
}

/// The state of the history, for its metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Records that were committed.
    pub written: u64,
    /// Records that were lost.
    pub lost: u64,
    /// Damaged databases that were moved aside.
    pub moved_aside: u64,
    /// The database is open, and the last record was written in time.
    pub healthy: bool,
    /// Records that wait or are being written.
    pub waiting: usize,
    /// How long the present record has been written.
    pub busy_for: Option<Duration>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Locked for a copy and no longer.
    retention: Mutex<Duration>,
    written: AtomicU64,
    lost: AtomicU64,
    moved_aside: AtomicU64,
    healthy: AtomicBool,
    /// The database is of an older schema.
    upgrading: AtomicBool,
}

/// A record, and the file to be removed once it is written.
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

/// The thread.
struct Writer<'s> {
    shared: &'s Shared,
    store: Option<Store>,
    /// When opening failed.
    failed_at: Option<Instant>,
    /// The last error that was logged.
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

    /// Writes a record, and counts it.
    fn take(&mut self, job: &Job, retention: Duration) -> Result<(), StoreError> {
        let Job { record, note } = job;
        let written = match self.write(record, retention) {
            // It is written to the new database.
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

    /// Opens the database, unless it is open or could not be opened a moment ago.
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

    /// Moves a damaged database aside. The next write begins a new one.
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

    /// Logs when it begins to fail, when it fails in another way, and when it works again.
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
