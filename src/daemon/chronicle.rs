//! What the daemon tells the history, and what it asks of it at the start. Nothing here waits for
//! the database: see [`crate::history`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::registry::{SeverityChange, SharedRegistry, Subject};
use crate::config::Settings;
use crate::config::settings::History;
use crate::history::lock::{self, Lock, LockError};
use crate::history::recent::CAPACITY;
use crate::history::{
    IncidentRow, Keeper, MapRow, Reader, Record, Recorder, SampleRow, SeverityRow, Sweep, open,
};
use crate::incident::format::{Incident, State, What};
use crate::maintenance::gather::Runs;
use crate::model::path::shown;
use crate::model::{Bytes, ExtentMap, ImageRef, Point, RunRecord, Severity, UnixTime};
use crate::serve::metrics;
use crate::serve::parts::State as PartState;
use crate::state_dir::StateDir;

/// What the last records may take when the daemon ends.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long the rescue waits, before it is armed, for the lock of the directory.
const BEFORE_ARMING: Duration = Duration::from_millis(250);
/// What reading the past may take at the start. The first sweep waits for it.
pub(super) const LOOKING_BACK: Duration = Duration::from_secs(5);
/// Defragmentations that are looked through.
const RUNS: u32 = 4096;

/// The history while the daemon runs. Ends it when it goes out of scope.
pub(super) struct Chronicle {
    /// Of the directory.
    _lock: Option<Lock>,
    teller: Teller,
    keeper: Option<Keeper>,
    state: StateDir,
}

/// Tells the history something; a copy tells the same one. Nothing if there is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Teller(Option<Recorder>);

impl Chronicle {
    /// Starts the history in the directory that is claimed.
    ///
    /// # Errors
    /// If another daemon has the directory. Whatever else is wrong with it is told in the log, and
    /// the daemon goes on without a past.
    pub(super) fn start(settings: &Settings, claim: Claim) -> Result<Self, LockError> {
        let lock = claim.lock()?;
        let state = StateDir::of(&settings.history);
        let started = open(&History {
            path: state.database().to_owned(),
            ..settings.history.clone()
        });
        let (recorder, keeper) = match started {
            Ok((recorder, keeper)) => (Some(recorder), Some(keeper)),
            Err(error) => {
                warn!("there will be no history: {error}");
                (None, None)
            }
        };
        let teller = Teller(recorder);
        teller.tell_health();
        Ok(Chronicle {
            _lock: lock,
            teller,
            keeper,
            state,
        })
    }

    /// Who tells it something.
    pub(super) fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Where it is, and all other state.
    pub(super) fn state(&self) -> &StateDir {
        &self.state
    }
}

/// The directory of the history is being locked, or is.
///
/// On a thread of its own, because its disk may hang: the rescue must not wait for that, and is
/// armed after [`BEFORE_ARMING`] at the latest. Within that time a disk that is well has answered,
/// so that a second daemon finds out that it is one before it can act.
pub(super) struct Claim {
    directory: PathBuf,
    answer: mpsc::Receiver<Result<Lock, LockError>>,
    answered: Option<Lock>,
}

impl Claim {
    /// Begins to lock it.
    ///
    /// # Errors
    /// If another daemon has it.
    pub(super) fn of(settings: &Settings) -> Result<Claim, LockError> {
        let directory = StateDir::of(&settings.history).path().to_owned();
        let (sender, answer) = mpsc::channel();
        let there = directory.clone();
        let locking = thread::Builder::new().name("lock".to_owned());
        let spawned = locking.spawn(move || {
            // Whoever asked has ended.
            let _ = sender.send(lock::acquire(&there));
        });
        if let Err(error) = spawned {
            warn!("{}: cannot be locked: {error}", shown(&directory));
        }
        let mut claim = Claim {
            directory,
            answer,
            answered: None,
        };
        claim.answered = claim.wait(BEFORE_ARMING)?.flatten();
        Ok(claim)
    }

    /// The lock. If the disk does not answer, there is none, and the daemon begins all the same: now
    /// it is needed most.
    fn lock(mut self) -> Result<Option<Lock>, LockError> {
        if let Some(lock) = self.answered.take() {
            return Ok(Some(lock));
        }
        let answer = self.wait(LOOKING_BACK)?;
        if answer.is_none() {
            warn!(
                "{} does not answer; there may be a second daemon beside this one",
                shown(&self.directory)
            );
        }
        Ok(answer.flatten())
    }

    /// Nothing if there is no answer in this time; no lock in it if there can be none.
    fn wait(&self, within: Duration) -> Result<Option<Option<Lock>>, LockError> {
        match self.answer.recv_timeout(within) {
            Ok(Ok(lock)) => Ok(Some(Some(lock))),
            Ok(Err(error @ LockError::LockedBy { .. })) => Err(error),
            Ok(Err(error)) => {
                warn!("{error}; there may be a second daemon beside this one");
                Ok(Some(None))
            }
            // Or it has answered already that there can be none.
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(Some(None)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        }
    }
}

impl Drop for Chronicle {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take()
            && !keeper.stop(LAST_WORDS)
        {
            warn!(
                "the last samples were not written to {}",
                shown(self.state.database())
            );
        }
    }
}

/// What the history of `teller` knows of the last `window`, before the first sweep. Without it
/// growth would be unknown after each restart, and each image that is bad would be told anew.
pub(super) async fn look_back(
    teller: &Teller,
    path: &Path,
    window: Duration,
    now: UnixTime,
    registry: &SharedRegistry,
) {
    let (from, recorder) = (path.to_owned(), teller.0.clone());
    let reading = tokio::task::spawn_blocking(move || {
        if let Some(recorder) = recorder {
            recorder.wait_for_opening(LOOKING_BACK);
        }
        read_past(&from, window, now)
    });
    match tokio::time::timeout(LOOKING_BACK, reading).await {
        // The first start.
        Ok(Ok(Ok(past))) if past.is_empty() => {}
        Ok(Ok(Ok(past))) => {
            let number = past.len();
            let mut registry = registry.lock();
            for (key, points, severity) in past {
                registry.restore(key, &points, severity, window);
            }
            info!("the history of {number} images is known");
        }
        Ok(Ok(Err(error))) => warn!("beginning without a past: {error}"),
        Ok(Err(error)) => warn!("beginning without a past: {error}"),
        Err(_) => warn!("beginning without a past: {} does not answer", shown(path)),
    }
}

/// Whether the operator has paused defragmentation before this daemon was started.
pub(super) async fn is_paused(state: &StateDir) -> bool {
    let file = state.pause_file();
    let looking = tokio::task::spawn_blocking(move || file.exists());
    // If the disk does not answer, nothing is to be defragmented.
    !matches!(
        tokio::time::timeout(LOOKING_BACK, looking).await,
        Ok(Ok(false))
    )
}

/// The defragmentations that the history knows of.
pub(super) async fn past_runs(path: &Path) -> Runs {
    let database = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || match database.exists() {
        true => read_runs(&database),
        false => Ok(Vec::new()),
    });
    let Ok(Ok(known)) = tokio::time::timeout(LOOKING_BACK, reading).await else {
        warn!("nothing is known of earlier defragmentations");
        return Runs::default();
    };
    let runs = known.unwrap_or_else(|error| {
        warn!("nothing is known of earlier defragmentations: {error}");
        Vec::new()
    });
    Runs::new(runs)
}

/// When the last incident was, as far as the history knows: before this daemon was started, and often
/// before the host was.
pub(super) async fn last_incident(path: &Path) -> Option<UnixTime> {
    let database = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_last_incident(&database));
    let read = tokio::time::timeout(LOOKING_BACK, reading).await;
    read.ok()?.ok()?
}

/// The same, by whoever asks for a plan.
pub(crate) fn read_last_incident(database: &Path) -> Option<UnixTime> {
    if !database.exists() {
        return None;
    }
    let last = Reader::open(database).ok()?.incidents(1).ok()?.pop()?;
    Some(last.ended.unwrap_or(last.at))
}

/// Runs of the past, by whoever asks for a plan.
pub(crate) fn read_runs(database: &Path) -> Result<Vec<RunRecord>, crate::history::ReadError> {
    Reader::open(database)?.runs(None, RUNS)
}

type Past = Vec<(crate::model::ImageKey, Vec<Point>, Severity)>;

fn read_past(
    path: &Path,
    window: Duration,
    now: UnixTime,
) -> Result<Past, crate::history::ReadError> {
    if !path.exists() {
        return Ok(Past::new());
    }
    let reader = Reader::open(path)?;
    let seconds = i64::try_from(window.as_secs()).unwrap_or(i64::MAX);
    let since = UnixTime(now.0.saturating_sub(seconds));
    // In the order of recording, not of time: what lies ahead of the clock is from before it was set
    // back, and is no news.
    let mut severities = reader.last_severities()?;
    let mut past = Vec::new();
    reader.each_image_between(since..=now, CAPACITY, |image, readings| {
        let points = readings.iter().map(|reading| reading.point).collect();
        let severity = severities.remove(&image.id);
        past.push((image.key.clone(), points, severity.unwrap_or_default()));
    })?;
    // Not counted for long, but if they are met again they are as bad as they were told to be.
    if severities.values().any(|severity| *severity > Severity::Ok) {
        for image in reader.images()? {
            let severity = severities.remove(&image.id).unwrap_or_default();
            if severity > Severity::Ok {
                past.push((image.key, Vec::new(), severity));
            }
        }
    }
    Ok(past)
}

impl Teller {
    /// A sweep has ended.
    pub(super) fn swept(&self, at: UnixTime, images: Vec<SampleRow>) {
        self.record(|| Record::Sweep(Sweep { at, images }));
        self.tell_health();
    }

    /// The map of an image was read.
    pub(super) fn map(&self, at: UnixTime, image: ImageRef, map: ExtentMap) {
        self.record(|| Record::Map(MapRow { image, at, map }));
    }

    /// The severity of an image has changed.
    pub(super) fn severity(&self, at: UnixTime, change: &SeverityChange, image: Option<ImageRef>) {
        if let (Some(image), Subject::Image { extents, .. }) = (image, &change.subject) {
            self.record(|| {
                Record::Severity(SeverityRow {
                    image,
                    at,
                    from: change.from,
                    to: change.to,
                    extents: *extents,
                    reason: change.reason.to_string(),
                })
            });
        }
    }

    /// A defragmentation has ended. Its note stays until the row is in the database: without a
    /// history, or with one that cannot be written, the next start of the daemon finds it.
    pub(super) fn run(&self, row: RunRecord, note: Option<PathBuf>) {
        match (&self.0, note) {
            (Some(recorder), Some(note)) => drop(recorder.record_noted(Record::Run(row), note)),
            _ => self.record(|| Record::Run(row)),
        }
    }

    /// How an incident stands.
    pub(super) fn incident(&self, incident: &Incident, began: SystemTime) {
        self.record(|| Record::Incident(incident_row(incident, began)));
    }

    /// After a reload.
    pub(super) fn set_retention(&self, retention: Duration) {
        if let Some(recorder) = &self.0 {
            recorder.set_retention(retention);
        }
    }

    /// How it does; not to be asked in its first seconds, in which it opens its database.
    pub(super) fn state(&self) -> PartState {
        match &self.0 {
            None => PartState::Down("it could not be started, see the log".to_owned()),
            Some(recorder) if recorder.health().healthy => PartState::Up,
            Some(_) => {
                PartState::Down("its database cannot be opened or written, see the log".to_owned())
            }
        }
    }

    fn tell_health(&self) {
        if let Some(recorder) = &self.0 {
            metrics::history(&recorder.health());
        }
    }

    fn record(&self, record: impl FnOnce() -> Record) {
        if let Some(recorder) = &self.0 {
            // What is lost is counted there.
            recorder.record(record());
        }
    }
}

fn incident_row(incident: &Incident, began: SystemTime) -> IncidentRow {
    let at = unix(began);
    let last = incident
        .events
        .iter()
        .rev()
        .find_map(|event| match &event.what {
            What::Action(action) => Some(action.outcome),
            _ => None,
        });
    let duration = Duration::from_millis(incident.duration_ms.unwrap_or(0));
    IncidentRow {
        name: incident.id.clone(),
        at,
        ended: (incident.state != State::Open).then(|| unix(began + duration)),
        trigger: incident.trigger,
        actions: incident.actions,
        outcome: last,
        freed: Bytes(incident.slab_freed_kib.saturating_mul(1024)),
    }
}

fn unix(time: SystemTime) -> UnixTime {
    let since = time.duration_since(UNIX_EPOCH);
    UnixTime::from_seconds(since.map_or(0.0, |since| since.as_secs_f64()))
}

/// Tells the history of incidents.
pub(super) fn incident_listener(teller: Teller) -> crate::incident::recorder::Listener {
    Arc::new(move |incident, began| teller.incident(incident, began))
}
