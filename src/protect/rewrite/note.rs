//! What a rewrite has begun, for the next start, and what becomes of the file that it keeps.
//!
//! The note is written before the copy gets a name, and stays as long as the old file is kept. The
//! two inodes show how far the rewrite came, whatever happened:
//!
//! | `IMAGE` is | `IMAGE.before-rewrite` is | so | next start |
//! |---|---|---|---|
//! | the old file | missing | killed before the link | history back, note removed |
//! | the old file | the copy | killed before the exchange | copy removed, history back, note removed |
//! | the copy | the old file | done, or killed after the exchange | old file made immutable, if it is not |
//! | anything | missing | removed by the operator | note removed |
//! | else | | moved by others | nothing |

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, fsync, unlinkat};
use serde::{Deserialize, Serialize};

use crate::defrag::metadata::Metadata;
use crate::defrag::{HostInterfaces, guard, notes};
use crate::history::{StoreError, rekey};
use crate::model::image::{kept_name, kept_path};
use crate::model::path::{shown, wire};
use crate::model::{FilesystemKind, ImageKey, ReasonCode, Refusal};
use crate::probe::{self, open};
use crate::sys::{fsxattr, generation, locks};

const SUFFIX: &str = "rewrite";

/// A rewrite that has begun to change names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    #[serde(with = "wire")]
    path: PathBuf,
    /// The old file and the copy.
    from: ImageKey,
    to: ImageKey,
    /// Of the old file: its size and when it was modified.
    size: u64,
    modified: (i64, i64),
    #[serde(with = "wire")]
    database: PathBuf,
}

/// A note on disk, locked as long as the rewrite lives.
pub(super) struct NoteFile {
    path: PathBuf,
    _lock: File,
}

impl NoteFile {
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }
}

impl Note {
    pub(super) fn new(
        path: &Path,
        image: &File,
        copy: &File,
        metadata: &Metadata,
        database: &Path,
    ) -> io::Result<Note> {
        Ok(Note {
            path: path.to_owned(),
            from: identify(image)?,
            to: identify(copy)?,
            size: metadata.size,
            modified: metadata.modified,
            database: database.to_owned(),
        })
    }

    pub(super) fn write(&self, directory: &Path) -> io::Result<NoteFile> {
        let ImageKey {
            filesystem,
            inode,
            generation,
        } = &self.from;
        let path = directory.join(format!("{filesystem}-{inode}-{generation}.{SUFFIX}"));
        if path.exists() {
            let text = format!("{} is there already", shown(&path));
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let lock = notes::write(&path, self)?;
        Ok(NoteFile { path, _lock: lock })
    }

    /// The history goes on under the identity of the copy.
    pub(super) fn history_forth(&self) -> Result<bool, StoreError> {
        rekey(&self.database, &self.from, &self.to)
    }

    /// The history is that of the old file again.
    pub(super) fn history_back(&self) -> Result<bool, StoreError> {
        rekey(&self.database, &self.to, &self.from)
    }

    /// Whether a file of the two was modified after the copy, or is open.
    fn is_used(&self, file: &File) -> io::Result<bool> {
        Ok(self.is_modified(file)? || locks::in_use(file)?.open == Some(true))
    }

    /// Whether the old file was modified after the copy.
    pub(super) fn is_modified(&self, file: &File) -> io::Result<bool> {
        let now = file.metadata()?;
        Ok((now.len(), (now.mtime(), now.mtime_nsec())) != (self.size, self.modified))
    }
}

fn identify(file: &File) -> io::Result<ImageKey> {
    Ok(ImageKey {
        filesystem: probe::uuid(file, FilesystemKind::Xfs)?.unwrap_or_default(),
        inode: file.metadata()?.ino(),
        generation: generation::generation(file)?,
    })
}

/// Makes a file immutable, or no longer so.
pub(super) fn set_immutable(file: &File, is: bool) -> io::Result<()> {
    let mut attributes = fsxattr::attributes(file)?;
    attributes.flags = match is {
        true => attributes.flags | guard::IMMUTABLE,
        false => attributes.flags & !guard::IMMUTABLE,
    };
    fsxattr::set_attributes(file, attributes)
}

/// What a name leads to.
enum Found {
    Old(File),
    Copy(File),
    Missing,
    Other,
}

impl Note {
    fn directory(&self) -> Result<OwnedFd, Refusal> {
        guard::directory(self.path.parent().unwrap_or(Path::new("/")))
    }

    fn find(&self, directory: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<Found> {
        let file = match open::regular_file(directory.as_fd(), name) {
            Ok((file, _)) => file,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound => Ok(Found::Missing),
                    io::ErrorKind::InvalidInput => Ok(Found::Other),
                    _ => Err(error),
                };
            }
        };
        let key = identify(&file)?;
        Ok(match () {
            () if key == self.from => Found::Old(file),
            () if key == self.to => Found::Copy(file),
            () => Found::Other,
        })
    }
}

/// Ends what killed rewrites have begun, and reports each. Notes of rewrites whose old file is kept
/// stay, as do those that cannot be dealt with.
pub fn recover(directory: &Path, mut notice: impl FnMut(String)) {
    for file in notes::all(directory, SUFFIX) {
        match recover_one(&file) {
            Ok(None) => {}
            Ok(Some(text)) => notice(text),
            Err(error) => notice(format!(
                "the rewrite noted in {} cannot be ended: {error}",
                shown(&file)
            )),
        }
    }
}

fn recover_one(file: &Path) -> Result<Option<String>, Refusal> {
    let Some(lock) = notes::left(file)? else {
        return Ok(None);
    };
    let note: Note = serde_json::from_reader(&lock).map_err(io::Error::from)?;
    let directory = note.directory()?;
    // Where its file system is not mounted, missing names say nothing.
    let on = probe::uuid(&File::from(directory.try_clone()?), FilesystemKind::Xfs);
    if on.ok().flatten().unwrap_or_default() != note.from.filesystem {
        return Err(io::Error::other("its file system is not mounted there").into());
    }
    let kept = kept_name(&note.path);
    let (name, beside) = (shown(&note.path), shown(&kept_path(&note.path)));
    let image = note.find(&directory, note.path.file_name().unwrap_or_default())?;
    let text = match (image, note.find(&directory, &kept)?) {
        // Somebody has exchanged the two by hand after a rewrite.
        (Found::Old(_), Found::Copy(copy)) if note.is_used(&copy)? => {
            return Ok(Some(format!(
                "{beside} is the copy of a rewrite of {name} and was used since: it stays"
            )));
        }
        (Found::Old(_), Found::Copy(_)) => {
            unlinkat(&directory, &kept, AtFlags::empty())?;
            fsync(&directory)?;
            Some(format!(
                "removed {beside}, the copy of a rewrite of {name} that was killed"
            ))
        }
        (Found::Copy(_), Found::Old(old)) => {
            let attributes = fsxattr::attributes(&old)?;
            let is_immutable = attributes.flags & guard::IMMUTABLE != 0;
            if note.is_modified(&old)? || (!is_immutable && note.is_used(&old)?) {
                return Ok(Some(format!(
                    "{beside} is in use or was written to after {name} was copied from it: {name} lacks \
                     that; compare the two first"
                )));
            }
            if !is_immutable {
                set_immutable(&old, true)?;
            }
            return Ok(None);
        }
        (Found::Old(_), Found::Missing) => None,
        (_, Found::Missing) => {
            fs::remove_file(file)?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    // Without a history there is nothing to put back.
    let _ = note.history_back();
    fs::remove_file(file)?;
    Ok(text)
}

/// Removes the old file that a rewrite of this image has kept, and returns its path. Refused if it
/// is in use, or was written to since.
pub fn finish(path: &Path, directory: &Path, host: &HostInterfaces) -> Result<PathBuf, Refusal> {
    let refused = |text: String| Err(Refusal::new(ReasonCode::KeptFile, text));
    let target = guard::open(path, host)?;
    let key = identify(&target.file)?;
    let mut found = None;
    for file in notes::all(directory, SUFFIX) {
        if let Some(lock) = notes::left(&file)? {
            let note: Note = serde_json::from_reader(&lock).map_err(io::Error::from)?;
            if note.to == key {
                found = Some((note, file, lock));
            }
        }
    }
    let Some((note, file, _lock)) = found else {
        return refused("no rewrite is known whose old file is still kept".to_owned());
    };
    let (kept, path) = (kept_name(&note.path), kept_path(&note.path));
    let directory = note.directory()?;
    let Found::Old(old) = note.find(&directory, &kept)? else {
        return refused(format!("{} is not the file that was kept", shown(&path)));
    };
    if note.is_modified(&old)? {
        return refused(format!(
            "{} was written to after it was copied, by somebody who still had a way to it: the image \
             lacks that. Compare the two, then remove it by hand (chattr -i, rm)",
            shown(&path)
        ));
    }
    if locks::in_use(&old)?.open != Some(false) {
        return refused(format!("{} is in use", shown(&path)));
    }
    set_immutable(&old, false)?;
    if let Err(error) = unlinkat(&directory, &kept, AtFlags::empty()) {
        let _ = set_immutable(&old, true);
        return Err(error.into());
    }
    fsync(&directory)?;
    fs::remove_file(file)?;
    Ok(path)
}
