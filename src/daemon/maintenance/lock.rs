//! `[maintenance.lock]`: the lock that a group of hosts shares, held while a run works.
//!
//! A record in the state directory is written before a request for the lock, and removed after its
//! release, or when the server has certainly not granted it. However a run or the daemon ends, the
//! next start releases the lock, but not before the copies of killed runs have ended.
//!
//! ```text
//!         a run is due           granted            no run works
//! Free ────────────────► Taking ────────► Held ─────────────────┐
//!  ▲ ▲                    │ │ no answer                         ▼
//!  │ └────────────────────┘ └───────────────────────────► ToRelease ◄── the start of the daemon
//!  │   refused, not sent                                        │
//!  └──────────────────── Releasing ◄────────────────────────────┘
//!       released
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use super::request::{self, Request};
use crate::config::settings::FleetLock as Settings;
use crate::daemon::blocking::within;
use crate::daemon::history::READ_TIMEOUT;
use crate::defrag::blockcopy::copying;
use crate::durable;
use crate::fleet::Denied;
use crate::fleet::lock::{FleetLock, host_id};
use crate::model::path::shown;
use crate::model::{ReasonCode, Refusal};
use crate::state_dir::StateDir;

const FILE: &str = "fleet-lock.json";
const MODE: u32 = 0o600;
/// Time until it is asked for again.
const RETRY: Duration = Duration::from_secs(60);
/// Time until giving it back is tried again; more than a request takes that has no answer.
const RELEASE_RETRY: Duration = Duration::from_secs(10);
/// Limit for giving it back at the end of the daemon.
const LAST_RELEASE: Duration = Duration::from_millis(500);

enum State {
    Free,
    Taking(JoinHandle<Result<(), Denied>>),
    Held,
    /// To be released, at this time.
    ToRelease(Instant),
    Releasing(JoinHandle<Result<(), Denied>>),
}

pub(super) struct Lock {
    file: PathBuf,
    /// The directory of the notes of copies.
    hints: PathBuf,
    id: Option<String>,
    state: State,
    /// The settings by which it is taken or held.
    of: Settings,
    /// The last answer, and until when it is not asked for again.
    answer: Option<Result<(), Denied>>,
    refused_until: Option<Instant>,
}

impl Lock {
    /// `machine_id` is that of the host.
    pub(super) fn new(state: &StateDir, machine_id: &str) -> Lock {
        Lock {
            file: state.path().join(FILE),
            hints: state.hints(),
            id: host_id(machine_id),
            state: State::ToRelease(Instant::now()),
            of: Settings::default(),
            answer: None,
            refused_until: None,
        }
    }

    /// Whether a run may begin. If not, asks for the lock, unless that was refused a moment ago. One
    /// that is held by other settings must be released before.
    pub(super) fn take(&mut self, settings: &Settings) -> bool {
        if settings.url.is_empty() {
            // Left by a crash; runs that follow each other would prevent it.
            if matches!(self.state, State::ToRelease(_)) {
                self.release();
            }
            return true;
        }
        if matches!(self.state, State::Free) && !self.is_refused() {
            let (file, id) = (self.file.clone(), self.id.clone());
            self.of = settings.clone();
            self.state = State::Taking(tokio::spawn(take(file, settings.clone(), id)));
        }
        matches!(self.state, State::Held) && self.of == *settings
    }

    /// Asks again soon, although it was refused.
    pub(super) fn forget(&mut self) {
        self.refused_until = None;
    }

    /// Releases it, if it is held or was not released before. For each tick without a run.
    pub(super) fn release(&mut self) {
        let is_due = match self.state {
            State::Held => true,
            State::ToRelease(at) => at <= Instant::now(),
            _ => false,
        };
        if is_due {
            let released = release(self.file.clone(), self.hints.clone());
            self.state = State::Releasing(tokio::spawn(released));
        }
    }

    /// Waits for the answer to a request; forever if there is none. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let (request, task) = match &mut self.state {
            State::Taking(task) => (Request::Lock, Some(task)),
            State::Releasing(task) => (Request::Unlock, Some(task)),
            _ => (Request::Lock, None),
        };
        let answer = request::join(task).await;
        let now = Instant::now();
        self.state = match (request, &answer) {
            (Request::Lock, Ok(())) => State::Held,
            (Request::Lock, Err(Denied::Refused(_) | Denied::Unsent(_))) => State::Free,
            (Request::Lock, Err(Denied::Unclear(_))) => State::ToRelease(now),
            // It may have been granted; or may yet be, and should not be released before.
            (Request::Lock, Err(Denied::Failed(_))) => State::ToRelease(now + RELEASE_RETRY),
            (_, Ok(())) => State::Free,
            (_, Err(_)) => State::ToRelease(now + RELEASE_RETRY),
        };
        // If it was released, `release` has counted that.
        if request == Request::Lock || answer.is_err() {
            request::report(request, &answer, self.answer.as_ref());
            self.refused_until = answer.is_err().then_some(now + RETRY);
            self.answer = Some(answer);
        }
    }

    fn is_refused(&self) -> bool {
        self.refused_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Why no run may begin; `None` if it may, or may ask.
    pub(super) fn why_not(&self, settings: &Settings) -> Option<Refusal> {
        let is_asked = !settings.url.is_empty() && self.is_refused();
        let why = self.answer.as_ref().filter(|_| is_asked)?;
        let why = why.as_ref().err()?;
        let text = format!("no run can begin: maintenance.lock: {why}");
        Some(Refusal::new(ReasonCode::Locked, text))
    }

    /// Releases it at the end of the daemon. What does not succeed is left to the next start.
    pub(super) async fn end(mut self) {
        let released = async {
            self.release();
            while matches!(self.state, State::Taking(_) | State::Releasing(_)) {
                self.answered().await;
                self.release();
            }
        };
        let _ = tokio::time::timeout(LAST_RELEASE, released).await;
    }
}

/// Records the lock, then requests it. The record stays if it may have been granted.
async fn take(file: PathBuf, settings: Settings, id: Option<String>) -> Result<(), Denied> {
    let Settings { url, group } = settings;
    let id = id.ok_or_else(|| Denied::Failed("/etc/machine-id has no id".to_owned()))?;
    let lock = FleetLock { url, group, id };
    let note = lock.clone();
    on_disk(file.clone(), move |file| {
        durable::replace(file, &serde_json::to_vec(&note)?, MODE)
    })
    .await?;
    let taken = lock.take().await;
    if let Err(Denied::Refused(_) | Denied::Unsent(_)) = taken {
        on_disk(file, |file| fs::remove_file(file)).await?;
    }
    taken
}

/// Releases the lock that is recorded, then removes the record. Refused while QEMU copies for a run that is over.
async fn release(file: PathBuf, hints: PathBuf) -> Result<(), Denied> {
    let read = |file: &Path| match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice::<FleetLock>(&read?)?)),
    };
    let Some(lock) = on_disk(file.clone(), read).await? else {
        return Ok(());
    };
    if let Some(copy) = on_disk(hints, |hints| Ok(copying(hints).next())).await? {
        let why = format!("kept until the copy noted in {} has ended", shown(&copy));
        return Err(Denied::Refused(why));
    }
    let name = shown(&file);
    let gone = |why| Denied::Failed(format!("{why}; if that server is gone, remove {name}"));
    let rejected = lock.release().await.map_err(gone)?;
    if let Some(why) = &rejected {
        warn!("maintenance.lock: nothing of this host is there to be given back: {why}");
    }
    let outcome = rejected.map_or(Ok(()), |why| Err(Denied::Refused(why)));
    request::count(Request::Unlock, &outcome);
    on_disk(file, |file| fs::remove_file(file)).await
}

async fn on_disk<T: Send + 'static>(
    file: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Denied> {
    let name = shown(&file);
    let done = within(READ_TIMEOUT, move || work(&file)).await;
    let done = done.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    done.map_err(|error| Denied::Failed(format!("{name}: {error}")))
}
