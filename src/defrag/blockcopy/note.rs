//! What a copy has begun, for the next start. The note is written, and flushed, before the step that
//! it names is taken; the inodes and QEMU's descriptors show how far that came.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, linkat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use super::decide::{Name, Step};
use super::mark::Mark;
use super::open_files::{self, Opened};
use super::refusal::FileId;
use crate::defrag::guard;
use crate::defrag::notes;
use crate::history::{StoreError, rekey};
use crate::model::path::wire;
use crate::model::{FilesystemKind, ImageKey, ReasonCode, Refusal};
use crate::probe::{self, open};
use crate::sys::generation;
use crate::sys::proc::ProcessId;

pub(super) const SUFFIX: &str = "blockcopy";
const PROC: &str = "/proc";
/// How long a note of the last copy may be locked by another that looks at it, such as a watchdog.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// A copy that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The path of the image, and that of the copy.
    #[serde(with = "wire")]
    pub(super) image: PathBuf,
    #[serde(with = "wire")]
    pub(super) copy: PathBuf,
    /// The path of the copy before, another name of the image, which the VM runs with; empty if there
    /// is none.
    #[serde(default, with = "wire")]
    pub(super) former: PathBuf,
    /// The image's file at the beginning, and the copy's.
    pub(super) old: ImageKey,
    pub(super) new: ImageKey,
    /// User and group of the image while its VM runs.
    pub(super) owner: (u32, u32),
    /// Its SELinux label then; empty if it has none.
    #[serde(default)]
    pub(super) label: Vec<u8>,
    /// UUID of the domain, and target of the disk in it.
    pub(super) domain: String,
    pub(super) disk: String,
    pub(super) step: Step,
    /// What both files were marked with before QEMU was to use the copy.
    pub(super) mark: Option<Mark>,
    /// The history; empty if there is none.
    #[serde(with = "wire")]
    pub(super) database: PathBuf,
    /// The process that holds the lock of a fleet for its run.
    pub(super) holder: Option<ProcessId>,
}

/// Where a copy takes place, held by descriptors.
pub(super) struct Places {
    pub(super) image: OwnedFd,
    pub(super) copy: OwnedFd,
    pub(super) former: Option<OwnedFd>,
    device: u64,
}

/// The note of the last copy of an image whose VM was not shut down since, locked. Refused if anything
/// is to be done about a copy of it before.
pub(super) fn of_image(directory: &Path, image: &Path) -> Result<Option<Noted>, Refusal> {
    let is_it = |file: &PathBuf| read(file).is_some_and(|note| note.image == image);
    let mut last = None;
    for file in notes::all(directory, SUFFIX).filter(is_it) {
        match Noted::left_within(&file, LOCK_TIMEOUT)? {
            Some(noted) if noted.note.is_settled()? => last = Some(noted),
            None if !file.exists() => {}
            _ => {
                let text = "a copy of it has not ended, or libvirt takes it for given up: it is copied \
                            again when its VM was shut down, or the next run has ended that copy";
                return Err(Refusal::new(ReasonCode::Hypervisor, text));
            }
        }
    }
    Ok(last)
}

/// The notes of copies that QEMU may be making: as long as there is one, this process releases no lock of
/// a fleet. Those of processes that live and hold locks of their own do not count. Reads only the notes,
/// so it does not wait for the file systems of images.
pub fn copying(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let may_copy = |file: &PathBuf| read(file).is_some_and(|note| note.may_copy());
    notes::all(directory, SUFFIX).filter(may_copy)
}

/// Whether a later copy of the same image, which has not ended, decides about what this note is about.
pub(super) fn is_superseded(directory: &Path, file: &Path) -> bool {
    let mut later = notes::all(directory, SUFFIX).filter_map(|file| read(&file));
    let by = |note: Note| later.any(|later| later.former == note.copy);
    read(file).is_some_and(by)
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
        let above = |path: &Path| guard::directory(parent(path));
        let places = Places {
            image: above(&self.image)?,
            copy: above(&self.copy)?,
            former: self.former().map(above).transpose()?,
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

    /// The history goes on under the identity of the copy. Called before the guest is suspended: when
    /// the copy has the path of the image, a sweep records it as a new one.
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

    /// The path of the copy before.
    pub(super) fn former(&self) -> Option<&Path> {
        Some(self.former.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// The directories of the names that its files have.
    pub(super) fn directories(&self) -> Vec<&Path> {
        let paths = [self.image.as_path(), &self.copy];
        paths.into_iter().chain(self.former()).map(parent).collect()
    }

    /// Whether a process writes to the old file, and to the copy.
    pub(super) fn written(&self, places: &Places) -> [bool; 2] {
        let opened = open_files::opened(Path::new(PROC), &self.directories());
        places.written(self, &opened)
    }

    /// Whether nothing is left to be done about it as long as the VM runs.
    fn is_settled(&self) -> Result<bool, Refusal> {
        let places = self.places()?;
        let names = [(&places.image, &self.image), (&places.copy, &self.copy)];
        for (at, path) in names {
            let (found, _) = self.find(at, basename(path))?;
            if found != Name::New {
                return Ok(false);
            }
        }
        Ok(self.former().is_none() && !self.suspends())
    }

    /// Tries whether the copy can be given names in the directories of the image and of the copy before:
    /// not if one is another mount, or has another project.
    pub(super) fn try_link(&self) -> io::Result<()> {
        let places = self.places().map_err(io::Error::other)?;
        let (copy, temporary) = (basename(&self.copy), self.temporary());
        let (at, to, none) = (&places.copy, &places.image, AtFlags::empty());
        linkat(at, copy, to, temporary.as_str(), none)?;
        let former = places.former.as_ref().unwrap_or(to);
        let renamed = renameat(to, temporary.as_str(), former, temporary.as_str());
        let at = if renamed.is_ok() { former } else { to };
        unlinkat(at, temporary.as_str(), none)?;
        Ok(renamed?)
    }

    /// Whether QEMU may be copying, and no other process holds a lock because of that.
    fn may_copy(&self) -> bool {
        let is_other = |holder: ProcessId| holder.runs() && holder.pid != std::process::id();
        !self.holder.is_some_and(is_other) && (self.step == Step::Copying || self.suspends())
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

/// The last part of one of the paths.
pub(super) fn basename(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

impl Places {
    /// The file with this inode number.
    pub(super) fn id(&self, key: &ImageKey) -> FileId {
        FileId {
            device: self.device,
            inode: key.inode,
        }
    }

    /// The directories in which the copy is given names: that of the image, and that of the copy before.
    pub(super) fn of_links(&self) -> impl Iterator<Item = &OwnedFd> {
        [&self.image].into_iter().chain(&self.former)
    }

    /// Whether the old file, and the copy, are written to by a process that has them open. An inode number
    /// alone does not show that: the old file's is soon that of another.
    pub(super) fn written(&self, note: &Note, opened: &[Opened]) -> [bool; 2] {
        let of = |key: &ImageKey| {
            let is_it = |it: &&Opened| {
                it.file == self.id(key) && open_files::has_generation(it, key.generation)
            };
            let opened = opened.iter().filter(is_it);
            opened.fold(Use::default(), |so_far, it| Use {
                is_open: so_far.is_open || it.writes,
                is_locked: so_far.is_locked || it.locks,
            })
        };
        written([of(&note.old), of(&note.new)])
    }
}

/// What shows that a file is written to.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    /// It is open for writing.
    is_open: bool,
    /// QEMU's lock for writing is held.
    is_locked: bool,
}

/// Which of two files are written to.
///
/// QEMU may have one open that it does not use: newer libvirt (11.3 and 12.8, not 9.0) opens raw images
/// without a format layer above, and if it is killed before it has QEMU close one, that stays open for
/// writing as long as the VM runs, but its lock is released. Where no lock is held, QEMU was started without
/// (`locking=off`), or Linux does not show them (before 4.1).
fn written(files: [Use; 2]) -> [bool; 2] {
    let locks = files.iter().any(|file| file.is_locked);
    files.map(|file| if locks { file.is_locked } else { file.is_open })
}

/// A note on disk, locked by this process.
pub(super) struct Noted {
    pub(super) note: Note,
    pub(super) file: PathBuf,
    /// Whether its run is this one.
    pub(super) is_own: bool,
    lock: File,
    /// When the guest went on.
    pub(super) resumed: Option<Instant>,
}

impl Noted {
    /// Writes a note into a directory.
    pub(super) fn write(note: Note, directory: &Path) -> io::Result<Noted> {
        let file = file_of(directory, &note.new);
        let lock = notes::write(&file, &note)?;
        Ok(Noted {
            note,
            file,
            is_own: true,
            lock,
            resumed: None,
        })
    }

    /// Reads one that was left; `None` if its run is alive.
    pub(super) fn left(file: &Path) -> io::Result<Option<Noted>> {
        let Some(lock) = notes::left(file)? else {
            return Ok(None);
        };
        Ok(Some(Noted {
            note: serde_json::from_reader(&lock)?,
            file: file.to_owned(),
            is_own: false,
            lock,
            resumed: None,
        }))
    }

    /// The same, which waits for another that has it locked.
    fn left_within(file: &Path, timeout: Duration) -> io::Result<Option<Noted>> {
        let deadline = Instant::now() + timeout;
        loop {
            let noted = Noted::left(file)?;
            if noted.is_some() || !file.exists() || Instant::now() > deadline {
                return Ok(noted);
            }
            thread::sleep(LOCK_INTERVAL);
        }
    }

    /// Removes the note of the copy before, whose path is removed or leads to this copy.
    pub(super) fn forget_former(&mut self) -> io::Result<()> {
        let file = file_of(parent(&self.file), &self.note.old);
        // A number of an inode is soon that of another copy.
        if read(&file).is_some_and(|note| note.copy == self.note.former) {
            remove(&file)?;
        }
        self.change(|note| note.former = PathBuf::new())
    }

    /// Changes the note.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Note)) -> io::Result<()> {
        let mut note = self.note.clone();
        change(&mut note);
        self.lock = notes::write(&self.file, &note)?;
        self.note = note;
        Ok(())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.file)
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The note of the copy that is this file.
fn file_of(
    directory: &Path,
    ImageKey {
        filesystem, inode, ..
    }: &ImageKey,
) -> PathBuf {
    directory.join(format!("{filesystem}-{inode}.{SUFFIX}"))
}

#[cfg(test)]
mod tests;
