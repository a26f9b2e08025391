//! The extent-size hint for copy on write, changed for the duration of a run.
//!
//! Before the change, the previous hint is written to a record in our state directory, which is
//! removed after the hint was restored; so after any crash the next start knows what to restore.
//! The record is locked while the run lives: a locked record is not left over.
//!
//! Only a hint that we have set is restored. If another process or an operator has changed it
//! since, the run continues with that hint and leaves it. (Such a change between our check and our
//! own change is overwritten; the kernel has no atomic compare and set.)

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::notes;
use crate::model::Bytes;
use crate::model::path::shown;
use crate::probe::located::Located;
use crate::probe::reason;
use crate::sys::fsxattr::{self, Hint::CopyOnWrite};

/// The hidden subcommand that restores hints.
pub const RESTORE_COMMAND: &str = "restore-hints";
const SUFFIX: &str = "hint";

/// What is to be restored, and for which image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    image: Located,
    /// The previous hint; `None` if none was in force.
    had: Option<u32>,
    /// The hints that the run may set. Any other was set later by another process.
    ours: Vec<u32>,
}

/// A hint that belongs to a run; restored on drop.
#[derive(Debug)]
pub struct Hint {
    image: File,
    record: Record,
    file: PathBuf,
    _lock: File,
    /// The current hint, unless another process has changed it.
    is: Option<u32>,
    /// Another process has changed it.
    is_theirs: bool,
}

impl Hint {
    /// Records the hint of the image, and those that the run may [set](Hint::set). `image` must be
    /// open for writing. On failure nothing was changed.
    pub fn keep(
        directory: &Path,
        path: &Path,
        mount: &Path,
        image: &File,
        ours: &[Bytes],
    ) -> io::Result<Hint> {
        let record = Record {
            image: Located::of(path, mount, image)?,
            had: fsxattr::attributes(image)?.hint(CopyOnWrite),
            ours: ours.iter().map(|size| in_bytes(*size)).collect(),
        };
        let file = file_of(directory, &record.image);
        let lock = notes::write(&file, &record)?;
        Ok(Hint {
            image: image.try_clone()?,
            is: record.had,
            is_theirs: false,
            record,
            file,
            _lock: lock,
        })
    }

    /// Sets the hint to `size`, or for 0 to the previous one, unless another process changed it.
    pub fn set(&mut self, size: Bytes) -> io::Result<()> {
        let wanted = match size.0 {
            0 => self.record.had,
            _ => Some(in_bytes(size)),
        };
        if self.is != wanted && !self.is_theirs {
            self.is_theirs = !change(&self.image, wanted, |is| is == self.is)?;
            self.is = wanted;
        }
        Ok(())
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        // If it cannot be restored, the record stays, and the next start tries again.
        if self.set(Bytes(0)).is_ok() {
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn in_bytes(size: Bytes) -> u32 {
    u32::try_from(size.0).unwrap_or(1 << 30)
}

fn file_of(directory: &Path, image: &Located) -> PathBuf {
    let filesystem = image.filesystem.iter();
    let hex: String = filesystem.map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("{hex}-{}.{SUFFIX}", image.inode))
}

/// Whether a run has the hint of this image, or had it and was killed.
pub fn is_kept(directory: &Path, image: &Located) -> bool {
    file_of(directory, image).exists()
}

/// Sets the hint if the current one may be changed. Returns whether it may.
fn change(
    image: &File,
    hint: Option<u32>,
    may_change: impl Fn(Option<u32>) -> bool,
) -> io::Result<bool> {
    let mut attributes = fsxattr::attributes(image)?;
    if !may_change(attributes.hint(CopyOnWrite)) {
        return Ok(false);
    }
    attributes.set_hint(CopyOnWrite, hint);
    fsxattr::set_attributes(image, attributes)?;
    Ok(true)
}

/// Restores the hints left by killed runs, and reports each. Records of hints that cannot be
/// restored are kept.
pub fn restore_all(directory: &Path, mut notice: impl FnMut(String)) {
    for file in notes::all(directory, SUFFIX) {
        match restore(&file) {
            Ok(None) => {}
            Ok(Some(path)) => notice(format!(
                "restored the extent-size hint of {}, whose run was killed",
                shown(&path)
            )),
            Err(error) => notice(format!(
                "the extent-size hint noted in {} cannot be restored: {}",
                shown(&file),
                reason(&error)
            )),
        }
    }
}

/// `None` if a live run will do it, the image is gone, or its hint is not ours.
fn restore(file: &Path) -> io::Result<Option<PathBuf>> {
    let Some(lock) = notes::left(file)? else {
        return Ok(None);
    };
    let record: Record = serde_json::from_reader(&lock)?;
    let Some(image) = record.image.find()? else {
        fs::remove_file(file)?;
        return Ok(None);
    };
    let is_ours = |is: Option<u32>| is.is_some_and(|is| record.ours.contains(&is));
    let restored = change(&image, record.had, is_ours)?;
    fs::remove_file(file)?;
    Ok(restored.then_some(record.image.path))
}
