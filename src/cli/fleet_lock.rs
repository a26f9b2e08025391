//! `[maintenance.lock]` and `[maintenance.hold]` for runs by hand.
//!
//! Each process has a lock of its own beside the daemon's, so that none releases that of another. A
//! [note](notes) is written before the lock is requested, and removed after its release. The lock of
//! a process that was killed, or whose copy has not ended, is released by the next `fragwatch defrag`,
//! or by the daemon: at its start, and each hour.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use super::command::block_on;
use super::output;
use crate::config::settings::{FleetLock as Settings, Hold};
use crate::defrag::blockcopy::copying;
use crate::defrag::notes;
use crate::fleet::lock::{FleetLock, host_id};
use crate::fleet::{Denied, hold};
use crate::model::path::shown;
use crate::sys::proc::ProcessId;

const SUFFIX: &str = "fleet-lock";
/// airlock answers with an error if another host changes the group at the same time.
const ATTEMPTS: u32 = 3;
const RETRY: Duration = Duration::from_secs(1);
const MACHINE_ID: &str = "/etc/machine-id";

/// The lock of this process, released on drop.
pub(super) struct HeldLock {
    pub(super) lock: FleetLock,
    note: PathBuf,
    _locked: File,
}

impl HeldLock {
    /// Requests the lock, with a note in `directory`. `None` if none is configured.
    ///
    /// # Errors
    /// If it is not granted. If there was no answer, it may be granted later: its note stays, so that it
    /// is released later.
    pub(super) fn take(settings: &Settings, directory: &Path) -> anyhow::Result<Option<HeldLock>> {
        if settings.url.is_empty() {
            return Ok(None);
        }
        let machine_id = fs::read_to_string(MACHINE_ID).context(MACHINE_ID)?;
        let host = host_id(&machine_id).with_context(|| format!("{MACHINE_ID} has no id"))?;
        let this = ProcessId::of(process::id()).context("the start of this process is unknown")?;
        let ProcessId { pid, start } = this;
        let lock = FleetLock {
            url: settings.url.clone(),
            group: settings.group.clone(),
            id: format!("{host}-{pid}-{start}"),
        };
        let note = directory.join(format!("{}.{SUFFIX}", lock.id));
        let locked = notes::write(&note, &lock).with_context(|| shown(&note))?;
        let taken = block_on(async { Ok(lock.take().await) })?;
        let Err(why) = taken else {
            return Ok(Some(HeldLock {
                lock,
                note,
                _locked: locked,
            }));
        };
        match why {
            Denied::Refused(_) | Denied::Unsent(_) => {
                fs::remove_file(&note).with_context(|| shown(&note))?;
            }
            Denied::Unclear(_) => release(&lock, &note).with_context(|| why.to_string())?,
            Denied::Failed(_) => {}
        }
        bail!("maintenance.lock: {why}; --force-lock defragments without the lock")
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if let Err(error) = release(&self.lock, &self.note) {
            output::eprint_error(&format!("{error:#}"));
        }
    }
}

/// Releases a lock, then removes its note. The note stays if the server does not answer, or while QEMU
/// copies for a run that is over.
fn release(lock: &FleetLock, note: &Path) -> anyhow::Result<()> {
    if let Some(copy) = note
        .parent()
        .and_then(|directory| copying(directory).next())
    {
        let copy = shown(&copy);
        bail!(
            "maintenance.lock is kept until the copy noted in {copy} has ended: the daemon, or the next \
             `fragwatch defrag`, ends it and releases the lock"
        );
    }
    let released = block_on(async {
        for _ in 1..ATTEMPTS {
            match lock.release().await {
                Err(Denied::Failed(_)) => tokio::time::sleep(RETRY).await,
                answer => return Ok(answer?),
            }
        }
        Ok(lock.release().await?)
    });
    let removed = released.and_then(|rejected| {
        if let Some(why) = rejected {
            let text = format!("maintenance.lock: nothing of this host was to be released: {why}");
            output::eprint_error(&text);
        }
        Ok(fs::remove_file(note)?)
    });
    removed.with_context(|| {
        let note = shown(note);
        format!(
            "maintenance.lock is not released; the next `fragwatch defrag`, the next start of the \
             daemon, or the daemon within an hour, tries again; if that server is gone, remove {note}"
        )
    })
}

/// Releases the locks of processes that were killed.
pub(super) fn release_left(directory: &Path) {
    for note in notes::all(directory, SUFFIX) {
        let read = || -> anyhow::Result<Option<(File, FleetLock)>> {
            let Some(locked) = notes::left(&note)? else {
                return Ok(None);
            };
            let lock = serde_json::from_reader(&locked).context(
                "not the note of a lock; send its name without `.fleet-lock` to /v1/steady-state as the id \
                 (fragwatch-fleet(7)), then remove it",
            )?;
            Ok(Some((locked, lock)))
        };
        let released = match read().with_context(|| shown(&note)) {
            Ok(Some((_locked, lock))) => release(&lock, &note),
            other => other.map(drop),
        };
        if let Err(error) = released {
            output::eprint_error(&format!("{error:#}"));
        }
    }
}

/// Fails if the query of `maintenance.hold` has a result, or no answer.
pub(super) fn check_hold(settings: &Hold) -> anyhow::Result<()> {
    if settings.url.is_empty() {
        return Ok(());
    }
    let answer = block_on(async { Ok(hold::ask(&settings.url, &settings.query).await?) });
    answer.map_err(|why| anyhow!("maintenance.hold: {why:#}; --force-window defragments now"))
}
