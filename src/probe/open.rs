//! Opening what is to be probed, so that only a regular file is ever opened for reading.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, open, openat};

use crate::model::ImageId;

/// Opens a regular file by its name in an open directory, following no link.
///
/// First without access (O_PATH), which has no effect on anything; only what turns out to be a
/// regular file is opened for reading, through the descriptor and so without a second look at the
/// name. A FIFO or a device that took the name meanwhile is never opened.
///
/// # Errors
/// Those of opening; InvalidInput if it is no regular file.
pub fn regular_file(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<(File, Stat)> {
    let handle = openat(
        at,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = fstat(&handle)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(not_a_file(kind));
    }
    Ok((reopen(&handle)?, stat))
}

/// Opens an image by its path, if it still is the same one.
///
/// # Errors
/// Those of opening; NotFound if another file has taken its path.
pub fn image(path: &Path, id: ImageId) -> io::Result<(File, Stat)> {
    let (file, stat) = regular_file(CWD, path.as_os_str())?;
    if (ImageId {
        device: stat.st_dev,
        inode: stat.st_ino,
    }) != id
    {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "replaced by another file",
        ));
    }
    Ok((file, stat))
}

/// Opens the root of a mounted file system for ioctls.
///
/// # Errors
/// Those of opening.
pub fn mount_point(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// The error for something that is named as an image and is none.
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
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("is {kind}, not a regular file"),
    )
}

/// Opens for reading what an O_PATH descriptor stands for (proc_pid_fd(5)).
fn reopen(handle: &OwnedFd) -> io::Result<File> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()));
    // O_NONBLOCK: a lease that someone holds on the file must not make us wait (fcntl(2), F_SETLEASE).
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // O_NOATIME is for the owner and root only; others get EPERM.
    match open(&path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(rustix::io::Errno::PERM) => Ok(open(&path, flags, Mode::empty())?.into()),
        other => Ok(other?.into()),
    }
}
