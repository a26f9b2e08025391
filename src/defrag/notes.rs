//! Notes of what a run has begun, for the next start. A note is written before the change, locked
//! while its run lives, and removed when nothing is left to be done: one that is not locked is that
//! of a run that was killed, or of one whose result is kept.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::Serialize;

use crate::durable;
use crate::sys::locks;

/// Writes a note atomically and durably, and its directory if that is missing. Returns the file,
/// locked.
pub(crate) fn write(file: &Path, note: &impl Serialize) -> io::Result<File> {
    let mut directory = DirBuilder::new();
    directory
        .recursive(true)
        .mode(0o700)
        .create(file.parent().unwrap_or(Path::new("/")))?;
    durable::replace_with(file, 0o600, |new| {
        flock(&*new, FlockOperation::NonBlockingLockExclusive)?;
        Ok(serde_json::to_writer(new, note)?)
    })
}

/// The notes with this suffix; none if the directory cannot be read.
pub(crate) fn all(directory: &Path, suffix: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    files.filter(move |file| file.extension().is_some_and(|its| its == suffix))
}

/// Opens and locks a note. `None` if its run is alive or has just ended.
pub(crate) fn left(file: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock: File = match open(file, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => other?.into(),
    };
    if !locks::lock(&lock)? {
        return Ok(None);
    }
    // Its run may have removed it, or another begun, between opening and locking.
    let locked = lock.metadata()?.ino();
    let is_named = fs::metadata(file).is_ok_and(|named| named.ino() == locked);
    Ok(is_named.then_some(lock))
}
