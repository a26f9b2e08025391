//! Opens what is to be probed; opens nothing but regular files for reading.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, open, openat};

use crate::model::{Bytes, ImageId};

/// Opens a regular file by its name in an open directory, following no link.
///
/// Opens it with O_PATH first, which has no side effects. Only if it is a regular file is it opened
/// for reading, through the descriptor and so without a second lookup. A FIFO or device that has
/// taken the name meanwhile is never opened.
///
/// # Errors
/// Errors of openat(2); InvalidInput if it is not a regular file.
pub fn regular_file(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<(File, Stat)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = openat(at, name, flags, Mode::empty())?;
    let stat = fstat(&handle)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(not_a_file(kind));
    }
    Ok((reopen(&handle)?, stat))
}

/// Opens an image by its path. Fails with NotFound if another file has taken the path.
pub fn image(path: &Path, image: ImageId) -> io::Result<(File, Stat)> {
    let (file, stat) = regular_file(CWD, path.as_os_str())?;
    if id(&stat) != image {
        let error = "replaced by another file";
        return Err(io::Error::new(io::ErrorKind::NotFound, error));
    }
    Ok((file, stat))
}

pub(super) fn id(stat: &Stat) -> ImageId {
    ImageId {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

pub(super) fn size(stat: &Stat) -> Bytes {
    Bytes(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Opens a directory by a path without links. Fails with ENOTDIR for anything else.
pub fn directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// Opens the root of a mounted file system for ioctls.
pub fn mount_point(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// The error for a path that is configured as an image but is not a regular file.
pub fn not_a_file(kind: FileType) -> io::Error {
    let kind = match kind {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Symlink => "a symbolic link",
        FileType::Directory => "a directory",
        _ => "of unknown kind",
    };
    let error = format!("is {kind}, not a regular file");
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Opens for reading what an O_PATH descriptor refers to (proc_pid_fd(5)).
pub(crate) fn reopen(handle: &OwnedFd) -> io::Result<File> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()));
    // O_NONBLOCK: do not wait for another process's lease on the file (fcntl(2), F_SETLEASE).
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // O_NOATIME is allowed for the owner and root only; others get EPERM.
    match open(&path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(rustix::io::Errno::PERM) => Ok(open(&path, flags, Mode::empty())?.into()),
        other => Ok(other?.into()),
    }
}
