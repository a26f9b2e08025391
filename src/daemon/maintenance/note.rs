//! The notes about current runs, for the next start of the daemon.
//!
//! One file per run, `running-INODE-GENERATION-FILESYSTEM.json` in the state directory, with a hash
//! of the file system's lasting name, because a clone of a file system has the same inodes and
//! generations. It is replaced (write, fsync, rename, fsync of the directory) before each phase
//! begins, and removed when the run is over and in the history. Any file that begins with
//! `running-` is read: fragwatch 0.1.0 used names without the hash.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::phase::Phase;
use crate::durable::replace;
use crate::model::path::shown;
use crate::model::{Bytes, Engine, ExtentCount, ImageRef, OutcomeKind, RunRecord, UnixTime, Vm};
use crate::sys::proc::ProcessId;

const PREFIX: &str = "running-";
/// For root only: the command of a note is run.
const MODE: u32 = 0o600;

/// A run under way. Fields with a default are missing in the notes of fragwatch 0.1.0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    #[serde(flatten)]
    pub(super) image: ImageRef,
    /// The engine to be tried first.
    pub(super) engine: Engine,
    pub(super) extents: ExtentCount,
    pub(super) began: UnixTime,
    /// The VM that had the image open then.
    #[serde(default)]
    pub(super) vm: Option<Vm>,
    /// The command to be run after the current one, from the settings then in force.
    #[serde(default)]
    pub(super) hook_after: Vec<String>,
    #[serde(default = "job")]
    pub(super) phase: Phase,
    /// The command that runs.
    #[serde(default)]
    pub(super) process: Option<ProcessId>,
}

fn job() -> Phase {
    Phase::Job
}

impl Note {
    /// The row of the history for a run that was cut off.
    pub(super) fn interrupted(&self) -> RunRecord {
        RunRecord {
            image: self.image.clone(),
            at: self.began,
            engine: self.engine,
            from: self.extents,
            to: self.extents,
            bytes: Bytes(0),
            took: Duration::ZERO,
            stalls: None,
            outcome: OutcomeKind::Interrupted,
            reason:
                "the daemon was killed while it worked; the image is as before, or defragmented"
                    .to_owned(),
        }
    }

    /// Writes it to the state directory, replacing an earlier note of the same image.
    pub(super) fn write(&self, state: &Path) -> io::Result<NoteFile> {
        let key = &self.image.key;
        let mut hash = DefaultHasher::new();
        key.filesystem.hash(&mut hash);
        let (inode, generation) = (key.inode, key.generation);
        let name = format!("{PREFIX}{inode}-{generation}-{:016x}.json", hash.finish());
        let path = state.join(name);
        replace(&path, &serde_json::to_vec(self)?, MODE)?;
        Ok(NoteFile(path))
    }
}

#[derive(Debug)]
pub(super) struct NoteFile(pub(super) PathBuf);

impl NoteFile {
    /// Removes it: the run never began, or the history has it.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!("{}: cannot be removed: {error}", shown(&self.0));
        }
    }
}

/// The notes of an earlier daemon. An invalid file is logged and stays.
pub(super) fn left_behind(state: &Path) -> Vec<(Note, NoteFile)> {
    let Ok(entries) = fs::read_dir(state) else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        let path = entry.path();
        let read =
            fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        match read {
            Ok(note) => notes.push((note, NoteFile(path))),
            Err(error) => warn!(
                "{}: not a note of a defragmentation: {error}; remove it if hook_after need not run",
                shown(&path)
            ),
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ImageKey;

    #[test]
    fn a_note_is_read_back_and_one_of_the_first_release_too() {
        let directory = tempfile::tempdir().unwrap();
        let image = ImageRef {
            key: ImageKey {
                filesystem: "u".to_owned(),
                inode: 131,
                generation: 7,
            },
            path: PathBuf::from("/srv/a.raw"),
        };
        let note = Note {
            image,
            engine: Engine::XfsFsr,
            extents: ExtentCount(9),
            began: UnixTime(5),
            vm: None,
            hook_after: vec!["/bin/true".to_owned()],
            phase: Phase::HookBefore,
            process: ProcessId::of(std::process::id()),
        };
        assert!(note.process.is_some_and(ProcessId::runs));
        let file = note.write(directory.path()).unwrap();
        let read = left_behind(directory.path());
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].0, note);
        // An image of a clone of the file system.
        let mut clone = note.clone();
        clone.image.key.filesystem = "v".to_owned();
        let other = clone.write(directory.path()).unwrap();
        assert_eq!(left_behind(directory.path()).len(), 2);
        other.remove();
        file.remove();
        assert!(left_behind(directory.path()).is_empty());

        let first = r#"{"filesystem":"u","inode":131,"generation":7,"path":"/srv/a.raw",
            "engine":"online","extents":9,"began":5}"#;
        fs::write(directory.path().join("running-131-7.json"), first).unwrap();
        let image = note.image;
        let (note, _) = left_behind(directory.path()).pop().unwrap();
        assert_eq!(note.image, image);
        assert_eq!(note.phase, Phase::Job);
        assert!(note.hook_after.is_empty());
        fs::write(directory.path().join("running-1-1.json"), "{").unwrap();
        assert_eq!(left_behind(directory.path()).len(), 1);
    }
}
