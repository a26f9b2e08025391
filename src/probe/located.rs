//! Finds a file or directory of an XFS again: by its path, or after a rename by its inode number.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use serde::{Deserialize, Serialize};

use super::open::mount_point;
use crate::model::path::wire;
use crate::sys::{generation, geometry, handle};

/// A file or directory, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// Its path at the time.
    #[serde(with = "wire")]
    pub path: PathBuf,
    #[serde(with = "wire")]
    mount: PathBuf,
    /// UUID of the file system.
    pub filesystem: [u8; 16],
    /// Inode number.
    pub inode: u64,
    generation: u32,
}

impl Located {
    /// Of an open file or directory on the XFS that is mounted at `mount`.
    pub fn of(path: &Path, mount: &Path, file: &File) -> io::Result<Located> {
        Ok(Located {
            path: path.to_owned(),
            mount: mount.to_owned(),
            filesystem: geometry::geometry(file)?.uuid,
            inode: file.metadata()?.ino(),
            generation: generation::generation(file)?,
        })
    }

    /// Whether both are the same file, by whatever name.
    pub fn is_same(&self, other: &Located) -> bool {
        let id = |it: &Located| (it.filesystem, it.inode, it.generation);
        id(self) == id(other)
    }

    /// Opens it for reading; `None` if it was removed.
    ///
    /// # Errors
    /// NotFound if its file system is not mounted where it was; EPERM without CAP_DAC_READ_SEARCH.
    pub fn find(&self) -> io::Result<Option<File>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(named) = open(&self.path, flags, Mode::empty())
            && fstat(&named)?.st_ino == self.inode
            && let Some(file) = reopened(named.as_fd())?
            && geometry::geometry(&file).is_ok_and(|it| it.uuid == self.filesystem)
            // A new file can have the inode number of one that was removed.
            && generation::generation(&file)? == self.generation
        {
            return Ok(Some(file));
        }
        let mount = mount_point(&self.mount)?;
        if geometry::geometry(&mount).map_or([0; 16], |it| it.uuid) != self.filesystem {
            let what = "its file system is not mounted where it was";
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        match handle::open_inode(&mount, self.inode, self.generation) {
            Ok(held) => reopened(held.as_fd()),
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Opens for reading what an O_PATH descriptor refers to, if it is a file or directory.
fn reopened(held: BorrowedFd<'_>) -> io::Result<Option<File>> {
    let kind = FileType::from_raw_mode(fstat(held)?.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    // O_NONBLOCK: do not wait for another process's lease on the file (fcntl(2), F_SETLEASE).
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(Some(open(path, flags, Mode::empty())?.into()))
}
