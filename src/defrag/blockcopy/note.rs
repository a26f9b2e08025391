//! What a copy has begun, for the next start. The note is written, and flushed, before the step that
//! it names is taken; the inodes and QEMU's descriptors show how far that came.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, linkat, unlinkat};
use serde::{Deserialize, Serialize};

use super::decide::{Name, Step};
use super::refusal::FileId;
use crate::defrag::guard;
use crate::defrag::notes;
use crate::history::{StoreError, rekey};
use crate::model::path::wire;
use crate::model::{FilesystemKind, ImageKey, Refusal};
use crate::probe::{self, open};
use crate::sys::generation;

pub(super) const SUFFIX: &str = "blockcopy";

/// A copy that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The path of the image, and that of the copy.
    #[serde(with = "wire")]
    pub(super) image: PathBuf,
    #[serde(with = "wire")]
    pub(super) copy: PathBuf,
    /// The image's file at the beginning, and the copy's.
    pub(super) old: ImageKey,
    pub(super) new: ImageKey,
    /// User and group of the image while its VM runs.
    pub(super) owner: (u32, u32),
    /// UUID of the domain, and target of the disk in it.
    pub(super) domain: String,
    pub(super) disk: String,
    pub(super) step: Step,
    /// The history; empty if there is none.
    #[serde(with = "wire")]
    pub(super) database: PathBuf,
}

/// Where a copy takes place, held by descriptors.
pub(super) struct Places {
    pub(super) image: OwnedFd,
    pub(super) copy: OwnedFd,
    device: u64,
}

/// Whether a copy of this image is noted.
pub(super) fn is_noted(directory: &Path, image: &Path) -> bool {
    let mut notes = notes::all(directory, SUFFIX).filter_map(|file| read(&file));
    notes.any(|note| note.image == image)
}

/// A note, whether its run is alive or not.
pub(super) fn read(file: &Path) -> Option<Note> {
    serde_json::from_reader(File::open(file).ok()?).ok()
}

/// What a file is, as long as it exists.
pub(super) fn identify(file: &File, kind: FilesystemKind) -> io::Result<ImageKey> {
    Ok(ImageKey {
        filesystem: probe::uuid(file, kind)?.unwrap_or_default(),
        inode: file.metadata()?.ino(),
        generation: generation::generation(file).unwrap_or(0),
    })
}

impl Note {
    /// Opens both directories. Fails where the file system is not mounted: there, missing names
    /// would say nothing.
    pub(super) fn places(&self) -> Result<Places, Refusal> {
        let above = |path: &Path| guard::directory(path.parent().unwrap_or(Path::new("/")));
        let places = Places {
            image: above(&self.image)?,
            copy: above(&self.copy)?,
            device: 0,
        };
        let directory = File::from(places.image.try_clone()?);
        let filesystem = |kind| probe::uuid(&directory, kind).ok().flatten();
        let found = filesystem(FilesystemKind::Xfs).or_else(|| filesystem(FilesystemKind::Other));
        if found.unwrap_or_default() != self.old.filesystem {
            return Err(io::Error::other("its file system is not mounted there").into());
        }
        Ok(Places {
            device: directory.metadata()?.dev(),
            ..places
        })
    }

    /// What a name in one of the directories leads to, and the file if it is one of the two.
    pub(super) fn find(&self, at: &OwnedFd, name: &OsStr) -> io::Result<(Name, Option<File>)> {
        let (file, stat) = match open::regular_file(at.as_fd(), name) {
            Ok(found) => found,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound => Ok((Name::Missing, None)),
                    io::ErrorKind::InvalidInput => Ok((Name::Other, None)),
                    _ => Err(error),
                };
            }
        };
        let generation = generation::generation(&file).unwrap_or(0);
        let is = |key: &ImageKey| (key.inode, key.generation) == (stat.st_ino, generation);
        let name = match () {
            () if is(&self.old) => Name::Old,
            () if is(&self.new) => Name::New,
            () => Name::Other,
        };
        Ok((name, Some(file)))
    }

    /// The history goes on under the identity of the copy. Called before the copy gets the path of
    /// the image: afterwards a sweep would record it as a new one.
    pub(super) fn history_forth(&self) -> Result<(), StoreError> {
        self.rekey(&self.old, &self.new)
    }

    /// The history is that of the old file again; nothing is done if it always was.
    pub(super) fn history_back(&self) -> Result<(), StoreError> {
        self.rekey(&self.new, &self.old)
    }

    fn rekey(&self, from: &ImageKey, to: &ImageKey) -> Result<(), StoreError> {
        match self.database.exists() {
            true => rekey(&self.database, from, to).map(|_| ()),
            false => Ok(()),
        }
    }

    /// Tries whether the copy can be given a name in the directory of the image: not if that is another
    /// mount, or has another project.
    pub(super) fn try_link(&self) -> io::Result<()> {
        let places = self.places().map_err(io::Error::other)?;
        let (copy, temporary) = (self.copy.file_name().unwrap_or_default(), self.temporary());
        let (at, to, none) = (&places.copy, &places.image, AtFlags::empty());
        linkat(at, copy, to, temporary.as_str(), none)?;
        Ok(unlinkat(to, temporary.as_str(), none)?)
    }

    /// Whether the guest may stand still because of the copy.
    pub(super) fn suspends(&self) -> bool {
        self.step == (Step::Switching { suspends: true })
    }

    /// The temporary name by which the copy gets that of the image.
    pub(super) fn temporary(&self) -> String {
        format!(".fragwatch-{}.tmp", self.new.inode)
    }
}

impl Places {
    /// The file with this inode number.
    pub(super) fn id(&self, key: &ImageKey) -> FileId {
        FileId {
            device: self.device,
            inode: key.inode,
        }
    }
}

/// A note on disk, locked by this process.
pub(super) struct Noted {
    pub(super) note: Note,
    pub(super) file: PathBuf,
    lock: File,
}

impl Noted {
    /// Writes a note into a directory.
    pub(super) fn write(note: Note, directory: &Path) -> io::Result<Noted> {
        let ImageKey {
            filesystem, inode, ..
        } = &note.new;
        let file = directory.join(format!("{filesystem}-{inode}.{SUFFIX}"));
        let lock = notes::write(&file, &note)?;
        Ok(Noted { note, file, lock })
    }

    /// Reads one that was left; `None` if its run is alive.
    pub(super) fn left(file: &Path) -> io::Result<Option<Noted>> {
        let Some(lock) = notes::left(file)? else {
            return Ok(None);
        };
        Ok(Some(Noted {
            note: serde_json::from_reader(&lock)?,
            file: file.to_owned(),
            lock,
        }))
    }

    /// Notes the step that is taken next.
    pub(super) fn step(&mut self, step: Step) -> io::Result<()> {
        let mut note = self.note.clone();
        note.step = step;
        self.lock = notes::write(&self.file, &note)?;
        self.note = note;
        Ok(())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
