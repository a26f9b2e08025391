//! The daemon's part of the history: what it records, and what it reads at the start. Recording
//! never waits for the database, see [`crate::history`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::blocking::within;
use super::clock::{unix, wall};
use super::instance_lock::InstanceLock;
use super::registry::{SeverityChange, SharedRegistry, Subject};
use crate::config::Settings;
use crate::config::settings::History;
use crate::growth::{CAPACITY, Recent};
use crate::history::lock::{Lock, LockError};
use crate::history::{
    HistoryReader, IncidentRow, ReadError, Record, Recorder, SampleRow, SeverityRow, Sweep, open,
};
use crate::incident::format::{Incident, IncidentState};
use crate::incident::recorder::Listener;
use crate::maintenance::gather::PastRuns;
use crate::model::path::shown;
use crate::model::{Bytes, ImageKey, RunRecord, Severity, UnixTime};
use crate::serve::metrics;
use crate::serve::parts::State as PartState;
use crate::state_dir::StateDir;

const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// Limit for each read of the state directory at the start.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The history while the daemon runs; ended on drop.
pub(super) struct HistoryService {
    _lock: Option<Lock>,
    pub(super) handle: HistoryHandle,
    /// Where the history and all other state is.
    pub(super) state: StateDir,
}

/// Records in the history, if there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct HistoryHandle(Option<Recorder>);

impl HistoryService {
    /// Starts the history in the locked directory. Fails only if another daemon holds the lock;
    /// other errors are logged, and there is no history.
    pub(super) fn start(settings: &Settings, lock: InstanceLock) -> Result<Self, LockError> {
        let lock = lock.finish()?;
        let state = StateDir::of(&settings.history);
        let started = open(&History {
            path: state.database().to_owned(),
            ..settings.history.clone()
        });
        let recorder = started
            .inspect_err(|error| warn!("history unavailable; growth unknown: {error}"))
            .ok();
        let handle = HistoryHandle(recorder);
        handle.export_health();
        Ok(HistoryService {
            _lock: lock,
            handle,
            state,
        })
    }
}

impl Drop for HistoryService {
    fn drop(&mut self) {
        if let Some(recorder) = &self.handle.0
            && !recorder.stop(SHUTDOWN_TIMEOUT)
        {
            warn!(
                "the last samples were not written to {}",
                shown(self.state.database())
            );
        }
    }
}

/// Restores counts within `window` and severities in the registry, before the first sweep.
/// Otherwise growth would be unknown and bad images reported again after each restart.
pub(super) async fn look_back(
    handle: &HistoryHandle,
    path: &Path,
    window: Duration,
    now: UnixTime,
    registry: &SharedRegistry,
) {
    if let Some(recorder) = handle.0.clone() {
        // Ends by itself: it waits for a thread, not for the disk.
        let opening = spawn_blocking(move || recorder.wait_for_opening(READ_TIMEOUT));
        if !opening.await.unwrap_or(false) {
            warn!("starting without history: {} does not answer", shown(path));
            return;
        }
    }
    let database = path.to_owned();
    match within(READ_TIMEOUT, move || read_past(&database, window, now)).await {
        Some(Ok(past)) if past.is_empty() => {}
        Some(Ok(past)) => {
            info!("history of {} images read", past.len());
            let mut registry = registry.lock();
            for (key, (recent, severity)) in past {
                registry.restore(key, recent, severity);
            }
        }
        Some(Err(error)) => warn!("starting without history: {error}"),
        None => warn!("starting without history: {} does not answer", shown(path)),
    }
}

/// Whether the operator paused defragmentation before this start; true if the disk does not answer.
pub(super) async fn is_paused(state: &StateDir) -> bool {
    let file = state.pause_file();
    within(READ_TIMEOUT, move || file.exists()).await != Some(false)
}

/// The defragmentations and the time of the last incident in the history.
pub(super) async fn past_events(path: &Path) -> (PastRuns, Option<UnixTime>) {
    let database = path.to_owned();
    let read = move || match database.exists() {
        true => (
            read_runs(&database).map_err(|error| error.to_string()),
            read_last_incident(&database),
        ),
        false => (Ok(Vec::new()), None),
    };
    let (runs, incident) = within(READ_TIMEOUT, read)
        .await
        .unwrap_or_else(|| (Err("no answer".to_owned()), None));
    let runs = runs.unwrap_or_else(|error| {
        warn!("earlier defragmentations unknown: {error}");
        Vec::new()
    });
    (PastRuns::new(runs), incident)
}

/// The time of the last incident in the history, for a process that may wait.
pub(crate) fn read_last_incident(database: &Path) -> Option<UnixTime> {
    HistoryReader::open(database).ok()?.last_incident().ok()?
}

/// The defragmentations in the history, for a process that may wait.
pub(crate) fn read_runs(database: &Path) -> Result<Vec<RunRecord>, ReadError> {
    HistoryReader::open(database)?.runs(None, PastRuns::MOST)
}

type Past = Vec<(ImageKey, (Recent, Severity))>;

fn read_past(path: &Path, window: Duration, now: UnixTime) -> Result<Past, ReadError> {
    if !path.exists() {
        return Ok(Past::new());
    }
    let reader = HistoryReader::open(path)?;
    // Counts ahead of the clock are left out: they are from before it was set back.
    let mut counts: HashMap<i64, Recent> = HashMap::new();
    reader.each_count(now.before(window)..=now, CAPACITY, |image, point| {
        counts.entry(image).or_default().push(point, window);
    })?;
    // By order of recording, not by time, for the same reason.
    let mut severities = reader.last_severities()?;
    // Also images that were not counted lately: they keep their severity, and are not new.
    let past = reader.images()?.into_iter().map(|image| {
        let counts = counts.remove(&image.id).unwrap_or_default();
        let severity = severities.remove(&image.id).unwrap_or_default();
        (image.key, (counts, severity))
    });
    Ok(past.collect())
}

impl HistoryHandle {
    /// Records a finished sweep.
    pub(super) fn swept(&self, images: Vec<SampleRow>) {
        self.record(Record::Sweep(Sweep { at: wall(), images }));
        self.export_health();
    }

    pub(super) fn severity(&self, change: &SeverityChange) {
        if let Subject::Image { image, extents, .. } = &change.subject {
            self.record(Record::Severity(SeverityRow {
                image: image.clone(),
                at: wall(),
                from: change.from,
                to: change.to,
                extents: *extents,
                reason: change.reason.to_string(),
            }));
        }
    }

    /// Records a finished defragmentation. Its note is kept until the row is in the database: if
    /// the row is never written, the next start of the daemon finds the note.
    pub(super) fn run(&self, row: RunRecord, note: Option<PathBuf>) {
        if let Some(recorder) = &self.0 {
            recorder.record_noted(Record::Run(row), note);
        }
    }

    pub(super) fn set_retention(&self, retention: Duration) {
        if let Some(recorder) = &self.0 {
            recorder.set_retention(retention);
        }
    }

    /// The state; not meaningful in the first seconds, while the database is opened.
    pub(super) fn state(&self) -> PartState {
        match &self.0 {
            None => PartState::Down("it could not be started, see the log".to_owned()),
            Some(recorder) if recorder.health().healthy => PartState::Up,
            Some(_) => {
                PartState::Down("its database cannot be opened or written, see the log".to_owned())
            }
        }
    }

    fn export_health(&self) {
        if let Some(recorder) = &self.0 {
            metrics::history(&recorder.health());
        }
    }

    /// Records without blocking, if there is a history.
    pub(super) fn record(&self, record: Record) {
        if let Some(recorder) = &self.0 {
            // The recorder counts lost records.
            recorder.record(record);
        }
    }
}

fn incident_row(incident: &Incident, began: SystemTime) -> IncidentRow {
    let at = unix(began);
    let duration = Duration::from_millis(incident.duration_ms.unwrap_or(0));
    IncidentRow {
        name: incident.id.clone(),
        at,
        ended: (incident.state != IncidentState::Open).then(|| unix(began + duration)),
        trigger: incident.trigger,
        actions: incident.actions,
        outcome: incident.actions().next_back().map(|action| action.outcome),
        freed: Bytes(incident.slab_freed_kib.saturating_mul(1024)),
    }
}

pub(super) fn incident_listener(handle: HistoryHandle) -> Listener {
    Arc::new(move |incident, began| handle.record(Record::Incident(incident_row(incident, began))))
}
