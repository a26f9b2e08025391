//! The extent-size hint for copy on write, as long as a run needs another one than the image has.
//!
//! Before it is changed, what it was is written to a file of its own in our state directory; after
//! it was restored, that file is removed. So whatever becomes of us, the next start finds what is to
//! be restored. The file is locked as long as the run lives: what is locked is not left over.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, open};
use serde::{Deserialize, Serialize};

use crate::model::Bytes;
use crate::model::path::wire;
use crate::probe::open::{mount_point, regular_file};
use crate::sys::fsxattr::{self, Attributes, FLAG_COW_EXTENT_SIZE};
use crate::sys::{geometry, handle};

/// Where it is if systemd does not say.
const STATE: &str = "/var/lib/fragwatch";
/// How a record is called behind the name of its image.
const SUFFIX: &str = "hint";

/// Where the records lie.
#[must_use]
pub fn directory() -> PathBuf {
    let state = std::env::var_os("STATE_DIRECTORY").filter(|state| !state.is_empty());
    PathBuf::from(state.unwrap_or_else(|| STATE.into())).join("defrag")
}

/// What is to be restored, and of whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    #[serde(with = "wire")]
    path: PathBuf,
    /// Where its file system was mounted.
    #[serde(with = "wire")]
    mount: PathBuf,
    filesystem: [u8; 16],
    inode: u64,
    generation: u32,
    /// The hint that it had, nothing if none was in force.
    had: Option<u32>,
}

/// A hint that belongs to a run. Restored when it goes out of scope.
#[derive(Debug)]
pub struct Hint {
    image: File,
    record: Record,
    file: PathBuf,
    /// Locked.
    _lock: File,
    set: Option<u32>,
}

impl Hint {
    /// Writes down what hint the image has. `image` must be open for writing.
    ///
    /// # Errors
    /// When that cannot be done; then nothing was changed.
    pub fn keep(directory: &Path, path: &Path, mount: &Path, image: &File) -> io::Result<Hint> {
        let attributes = fsxattr::attributes(image)?;
        let stat = image.metadata()?;
        let record = Record {
            path: path.to_owned(),
            mount: mount.to_owned(),
            filesystem: geometry::geometry(image)?.uuid,
            inode: stat.ino(),
            generation: handle::generation(image)?,
            had: hint_of(&attributes),
        };
        let hex: String = record
            .filesystem
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let file = directory.join(format!("{hex}-{}.{SUFFIX}", record.inode));
        let lock = write(directory, &file, &record)?;
        Ok(Hint {
            image: image.try_clone()?,
            record,
            file,
            _lock: lock,
            set: None,
        })
    }

    /// From now on new blocks of the image come in pieces of this size. Larger than its file system
    /// allows, it is the largest that it does; 0 is what the image had.
    ///
    /// # Errors
    /// Those of FS_IOC_FSSETXATTR.
    pub fn set(&mut self, size: Bytes) -> io::Result<()> {
        let wanted = match size.0 {
            0 => self.record.had,
            size => Some(u32::try_from(size).unwrap_or(1 << 30)),
        };
        if self.set == Some(wanted.unwrap_or(0)) {
            return Ok(());
        }
        change(&self.image, wanted)?;
        self.set = Some(wanted.unwrap_or(0));
        Ok(())
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        // If it cannot be restored, the record stays and the next start tries.
        if self.set.is_none() || change(&self.image, self.record.had).is_ok() {
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn hint_of(attributes: &Attributes) -> Option<u32> {
    let in_force = attributes.flags & FLAG_COW_EXTENT_SIZE != 0;
    in_force.then_some(attributes.cow_extent_size)
}

fn change(image: &File, hint: Option<u32>) -> io::Result<()> {
    let mut attributes = fsxattr::attributes(image)?;
    attributes.cow_extent_size = hint.unwrap_or(0);
    attributes.flags = match hint {
        Some(_) => attributes.flags | FLAG_COW_EXTENT_SIZE,
        None => attributes.flags & !FLAG_COW_EXTENT_SIZE,
    };
    fsxattr::set_attributes(image, attributes)
}

/// So that after a power cut it is there as a whole or not at all. Gives the file back, locked.
fn write(directory: &Path, file: &Path, record: &Record) -> io::Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut new = tempfile::Builder::new()
        .prefix(".hint")
        .tempfile_in(directory)?;
    flock(new.as_file(), FlockOperation::NonBlockingLockExclusive)?;
    serde_json::to_writer(new.as_file_mut(), record)?;
    new.as_file_mut().flush()?;
    new.as_file().sync_all()?;
    let kept = new.persist(file).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()?;
    Ok(kept)
}

/// Restores the hints of runs that were killed. Gives the images whose hint was restored, and what
/// could not be done: their records stay where they are.
#[must_use]
pub fn restore_all(directory: &Path) -> (Vec<PathBuf>, Vec<(PathBuf, io::Error)>) {
    let (mut restored, mut failed) = (Vec::new(), Vec::new());
    let Ok(entries) = fs::read_dir(directory) else {
        return (restored, failed);
    };
    let files = entries.flatten().map(|entry| entry.path());
    for file in files.filter(|file| file.extension().is_some_and(|e| e == SUFFIX)) {
        match restore(&file) {
            Ok(Some(path)) => restored.push(path),
            Ok(None) => {}
            Err(error) => failed.push((file, error)),
        }
    }
    (restored, failed)
}

/// Nothing if a run that is alive will do it, or the image is gone.
fn restore(file: &Path) -> io::Result<Option<PathBuf>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock: File = match open(file, flags, Mode::empty()) {
        // A run has ended a moment ago.
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => other?.into(),
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    // Its run may have removed it, or another begun, between opening and locking.
    if fs::metadata(file).is_ok_and(|named| named.ino() != lock.metadata().map_or(0, |m| m.ino())) {
        return Ok(None);
    }
    let record: Record = serde_json::from_reader(&lock)?;
    let Some(image) = find(&record)? else {
        fs::remove_file(file)?;
        return Ok(None);
    };
    change(&image, record.had)?;
    fs::remove_file(file)?;
    Ok(Some(record.path))
}

/// The image, by its path or, if it was renamed, by its inode; nothing if it was removed.
fn find(record: &Record) -> io::Result<Option<File>> {
    let is_it = |file: &File| -> io::Result<bool> {
        Ok(file.metadata()?.ino() == record.inode
            && geometry::geometry(file).is_ok_and(|g| g.uuid == record.filesystem))
    };
    if let Ok((file, _)) = regular_file(CWD, record.path.as_os_str())
        && is_it(&file)?
    {
        return Ok(Some(file));
    }
    let mount = mount_point(&record.mount)?;
    if geometry::geometry(&mount).map_or([0; 16], |g| g.uuid) != record.filesystem {
        let what = "its file system is not mounted where it was";
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    match handle::open_inode(&mount, record.inode, record.generation) {
        Ok(held) => {
            let path = format!("/proc/self/fd/{}", held.as_raw_fd());
            Ok(Some(File::open(path)?))
        }
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(None),
        Err(error) => Err(error),
    }
}
