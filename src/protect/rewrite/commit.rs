//! Gives the copy the name of the image, so that no write to the image can be lost.
//!
//! Before the exchange, nobody has the image open (lease), and whoever opens it waits at the gate
//! and ends the rewrite. The exchange changes names only: whoever has found the old file by its name
//! before, and opens it after, would write to a file that is the image no more. So
//!
//! 1. the gate stays raised for [`SETTLE`] after the exchange, and denies (EPERM) what waits at it: a
//!    process that was about to open the image at this moment has to do so again;
//! 2. the old file becomes immutable at once, so that a process that has found it but not yet passed
//!    the check of permissions (may_open, fs/namei.c) fails there. What is left are the instructions
//!    between that check and the gate; only a process that is preempted in them for longer than
//!    `SETTLE` gets through;
//! 3. after that time the lease shows again that nobody has the old file open, and its size and
//!    modification time are those from before the copy. Else, as after a truncate(2) or a write
//!    through an overlay in the last moment, the names are exchanged back;
//! 4. so a second gate keeps all away from the copy until it is certain that it stays;
//! 5. the modification time is checked once more when the old file is to be removed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, RenameFlags, fsync, linkat, renameat_with, statat, unlinkat};

use super::clear::check_fit;
use super::note::{Note, NoteFile, set_immutable};
use super::work::Work;
use crate::defrag::engine::{Event, cannot, raise_gate};
use crate::defrag::gate::Gate;
use crate::defrag::guard::{self, Target};
use crate::defrag::metadata::Metadata;
use crate::model::image::{kept_name, kept_path};
use crate::model::path::shown;
use crate::model::{ReasonCode, Refusal, RunOutcome};
use crate::sys::locks;

/// How long the gate denies after the exchange.
const SETTLE: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_millis(5);

/// Exchanges image and copy. Returns the path of the old file.
pub(super) fn exchange(
    work: &mut Work<'_, '_, '_>,
    copy: &File,
    metadata: &Metadata,
    database: &Path,
) -> Result<PathBuf, RunOutcome> {
    let target = work.controls.target;
    let host = work.controls.request.host;
    work.step(0)?;
    guard::check_unused(target, &mut work.gate, host)?;
    check_fit(target, host)?;
    if Metadata::of(&target.file)? != *metadata {
        return Err(RunOutcome::Busy { by: None });
    }
    let mut copy_gate = raise_gate(copy, host)?;
    let note = Note::new(&target.path, &target.file, copy, metadata, database)
        .map_err(cannot("it cannot be identified"))?;
    let note_file = note
        .write(&host.hints)
        .map_err(cannot("the rewrite cannot be noted in the state directory"))?;
    let names = Names {
        target,
        copy,
        kept: kept_name(&target.path),
        note,
        note_file,
    };
    if database.exists()
        && let Err(error) = names.note.history_forth()
    {
        let text = format!("its history does not go on: {} {error}", shown(database));
        work.controls.send(Event::Notice(text));
    }
    // The history may have been waited for, and a change of attributes does not pass the gate.
    if !matches!(Metadata::of(&target.file), Ok(now) if now == *metadata) {
        return Err(names.abandon(RunOutcome::Busy { by: None }));
    }
    match names.give(&mut work.gate) {
        Ok(()) => {}
        Err(outcome) => return Err(names.abandon(outcome)),
    }
    match names.settle(&mut work.gate) {
        Ok(()) => Ok(kept_path(&target.path)),
        Err(outcome) => {
            let outcome = names.take_back(&mut copy_gate, outcome);
            // As in `settle`, for those who have found the copy by the name of the image.
            thread::sleep(SETTLE);
            let _ = copy_gate.deny_foreign();
            Err(outcome)
        }
    }
}

struct Names<'a> {
    target: &'a Target,
    copy: &'a File,
    /// The second name, first that of the copy, then that of the old file.
    kept: OsString,
    note: Note,
    note_file: NoteFile,
}

impl Names<'_> {
    fn image(&self) -> &OsStr {
        self.target.path.file_name().unwrap_or_default()
    }

    fn leads_to(&self, name: &OsStr, file: &File) -> bool {
        let named = statat(&self.target.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let file = file.metadata();
        matches!((named, file), (Ok(named), Ok(file))
            if (named.st_dev, named.st_ino) == (file.dev(), file.ino()))
    }

    /// Whether image and copy have the two names, in this order or exchanged.
    fn are(&self, exchanged: bool) -> bool {
        let (first, second) = match exchanged {
            false => (&self.target.file, self.copy),
            true => (self.copy, &self.target.file),
        };
        self.leads_to(self.image(), first) && self.leads_to(&self.kept, second)
    }

    fn swap(&self) -> io::Result<()> {
        let directory = &self.target.directory;
        let (image, kept) = (self.image(), self.kept.as_os_str());
        Ok(renameat_with(
            directory,
            image,
            directory,
            kept,
            RenameFlags::EXCHANGE,
        )?)
    }

    /// Links the copy, and exchanges the names if nobody has come until then.
    fn give(&self, gate: &mut Gate) -> Result<(), RunOutcome> {
        let directory = &self.target.directory;
        linkat(self.copy, "", directory, &self.kept, AtFlags::EMPTY_PATH)
            .map_err(cannot("the copy cannot be given a name"))?;
        if let Some(by) = gate.let_ours_in()? {
            return Err(RunOutcome::Busy { by: Some(by) });
        }
        if !self.are(false) {
            return Err(renamed().into());
        }
        self.swap().map_err(cannot("the files cannot be exchanged"))
    }

    /// Denies the old file to all, until nobody can have found it by its name before the exchange.
    fn settle(&self, gate: &mut Gate) -> Result<(), RunOutcome> {
        let old = &self.target.file;
        if !self.are(true) {
            return Err(renamed().into());
        }
        set_immutable(old, true).map_err(cannot("the old file cannot be made immutable"))?;
        gate.deny_foreign()?;
        fsync(&self.target.directory).map_err(cannot("its directory cannot be flushed"))?;
        let exchanged = Instant::now();
        loop {
            gate.deny_foreign()?;
            let is_used = locks::in_use(old)?.open != Some(false);
            let waited = exchanged.elapsed();
            if waited > SETTLE && !is_used {
                break;
            }
            // Possibly a short probe of our own.
            if waited > SETTLE + guard::PROBE_TIMEOUT {
                return Err(RunOutcome::Busy { by: None });
            }
            thread::sleep(INTERVAL);
        }
        match self.note.is_modified(old)? {
            true => Err(RunOutcome::Busy { by: None }),
            false => Ok(gate.deny_foreign()?),
        }
    }

    /// Exchanges the names back. Nobody has opened the copy, and nobody who waits to may do so.
    fn take_back(self, copy_gate: &mut Gate, outcome: RunOutcome) -> RunOutcome {
        let back = set_immutable(&self.target.file, false).and_then(|()| match self.are(true) {
            true => self.swap(),
            false => Err(io::Error::other(renamed())),
        });
        // If it cannot answer, the kernel lets them in when the gate is closed, to a file that is
        // removed next.
        let _ = copy_gate.deny_foreign();
        match back {
            Ok(()) => self.abandon(outcome),
            Err(error) => {
                let (image, kept) = (shown(&self.target.path), shown(Path::new(&self.kept)));
                let reason = format!(
                    "{image} was exchanged, and cannot be exchanged back: {error}. The old file is \
                     {kept} beside it, and was in use after that: compare the two"
                );
                RunOutcome::Failed { reason }
            }
        }
    }

    /// Removes the copy, and what was noted of it. What cannot be removed now, the next start does.
    fn abandon(self, outcome: RunOutcome) -> RunOutcome {
        let directory = &self.target.directory;
        if self.leads_to(&self.kept, self.copy) {
            let removed = unlinkat(directory, &self.kept, AtFlags::empty());
            if removed.and_then(|()| fsync(directory)).is_err() {
                return outcome;
            }
        } else if self.leads_to(self.image(), self.copy) {
            return outcome;
        }
        // Without a history there is nothing to put back.
        let _ = self.note.history_back();
        let _ = self.note_file.remove();
        outcome
    }
}

fn renamed() -> Refusal {
    let text = "somebody else renames files in its directory at this moment";
    Refusal::new(ReasonCode::Changing, text)
}
