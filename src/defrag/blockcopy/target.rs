//! The file that an image is copied to: created without a name, so that a kill leaves nothing of it,
//! with the image's size, owner, mode, extended attributes and flags. Space is not preallocated: QEMU first
//! writes zeros to all of the copy, for which libvirt always permits holes, so that nothing of it would be left.
//!
//! On XFS, a raw image that is written as a whole gets an extent-size hint. With one, a write into a hole
//! allocates what lies around it, and the zeros that QEMU writes there punch holes into that. Extents and MiB
//! of copies of 512 MiB that QEMU 7.2 made:
//!
//! | data in the image | no hint | 1 MiB | 16 MiB |
//! |---|---|---|---|
//! | areas of 64 KiB to 4 MiB and holes of such sizes: 270 MiB | 317, 269 | 517, 375 | 321, 397 |
//! | 4 KiB of each 128 KiB: 16 MiB | 4,096, 256 | 6,112, 382 | 4,304, 269 |
//! | 4 KiB at random, in all 30 %: 154 MiB | 307, 510 | 49, 511 | 34, 510 |
//!
//! A qcow2 gets none, as it is written from one end: of 256 MiB written by four `qemu-img convert`
//! at a time each had 1 to 12 fragments without a hint, 12 to 17 with one of 16 MiB, and 41 to 123
//! with one of 1 MiB.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fsync, linkat, openat, unlinkat};

use super::content::Content;
use crate::config::settings::BlockCopy;
use crate::defrag::engine::cannot;
use crate::defrag::guard::{self, Target};
use crate::defrag::metadata::Metadata;
use crate::model::image::COPY_SUFFIX;
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, FilesystemKind, ReasonCode, Refusal, RunOutcome};
use crate::probe::Probe;
use crate::sys::fsxattr;

const HINT: Bytes = Bytes(16 << 20);

/// Nothing can be renamed or removed in the directory (FS_XFLAG_APPEND, include/uapi/linux/fs.h).
const APPEND_ONLY: u32 = 0x10;

/// Where the copy is made.
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) path: PathBuf,
}

impl Place {
    /// Beside the image, or in the configured directory.
    pub(super) fn of(target: &Target, settings: &BlockCopy) -> Result<Place, Refusal> {
        let beside = target.path.parent().unwrap_or(Path::new("/"));
        let directory = match settings.directory.as_os_str().is_empty() {
            true => beside,
            false => &settings.directory,
        };
        for directory in [beside, directory] {
            let attributes = fsxattr::attributes(guard::directory(directory)?).unwrap_or_default();
            if attributes.flags & APPEND_ONLY != 0 {
                let text = format!("{} is append-only: `chattr -a`", shown(directory));
                return Err(Refusal::new(ReasonCode::Hypervisor, text));
            }
        }
        let mut name = OsString::from(".");
        name.push(target.path.file_name().unwrap_or_default());
        name.push(format!(".{}{COPY_SUFFIX}", target.file.metadata()?.ino()));
        Ok(Place {
            directory: guard::directory(directory)?,
            path: directory.join(name),
        })
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Creates the copy. It has no name yet.
    pub(super) fn create(
        &self,
        target: &Target,
        content: &Content<'_>,
        hint: Option<Bytes>,
    ) -> Result<File, RunOutcome> {
        let make = || -> io::Result<File> {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let copy = File::from(openat(
                &self.directory,
                ".",
                flags,
                Mode::RUSR | Mode::WUSR,
            )?);
            if let Some(hint) = hint {
                set_hint(&copy, hint)?;
            }
            set_project(&target.file, &copy)?;
            content.prepare(&copy)?;
            Metadata::of(&target.file)?.access().give_access(&copy)?;
            copy.sync_all()?;
            Ok(copy)
        };
        make().map_err(cannot("the file for the copy cannot be created"))
    }

    /// Gives it its name. Fails if there is a file of that name.
    pub(super) fn link(&self, copy: &File) -> io::Result<()> {
        linkat(copy, "", &self.directory, self.name(), AtFlags::EMPTY_PATH)?;
        Ok(fsync(&self.directory)?)
    }

    /// Removes the name again.
    pub(super) fn unlink(&self, copy: &File) {
        let is_it = || Some(copy.metadata().ok()?.nlink() == 1);
        if is_it() == Some(true) {
            let _ = unlinkat(&self.directory, self.name(), AtFlags::empty());
        }
    }
}

/// The extent-size hint of a copy that allocates so much.
pub(super) fn hint(
    target: &Target,
    content: &Content<'_>,
    allocates: Bytes,
) -> io::Result<Option<Bytes>> {
    let takes_one = content.is_raw() && target.mount.kind() == FilesystemKind::Xfs;
    let is_whole = allocates.0 / 9 >= content.size()? / 10;
    Ok((takes_one && is_whole).then_some(HINT))
}

/// That of the image, in whose directory the copy gets a name.
fn set_project(image: &File, copy: &File) -> io::Result<()> {
    let project = fsxattr::attributes(image)?.project;
    let mut attributes = fsxattr::attributes(copy)?;
    if attributes.project == project {
        return Ok(());
    }
    attributes.project = project;
    fsxattr::set_attributes(copy, attributes)
}

fn set_hint(copy: &File, hint: Bytes) -> io::Result<()> {
    let mut attributes = fsxattr::attributes(copy)?;
    let hint = u32::try_from(hint.0).unwrap_or(1 << 30);
    attributes.set_hint(fsxattr::Hint::Own, Some(hint));
    fsxattr::set_attributes(copy, attributes)
}

/// Counts the extents of a file, on XFS in constant time.
pub(super) fn count(file: &File, target: &Target) -> io::Result<ExtentCount> {
    let mut probe = Probe::new(target.mount.kind());
    Ok(probe
        .count(file, target.directory.as_fd(), &mut || ())?
        .extents)
}
