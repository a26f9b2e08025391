//! One daemon per state directory: a file beside the database, locked while the daemon runs. The
//! kernel releases the lock (flock(2)) whenever the daemon dies; the process id in the file is only
//! informative. The file is not removed: two daemons could otherwise lock two files of that name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::file::{FILE_MODE, make_directory};
use crate::model::path::shown;

/// The file name.
pub const NAME: &str = "fragwatch.lock";

/// The lock of a directory, released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon holds the lock.
    #[error(
        "{}: another fragwatch{} uses this directory; stop it, or give this one another history.path",
        shown(directory), process(*pid)
    )]
    LockedBy {
        /// Its process id, if readable.
        pid: Option<u32>,
        /// The directory.
        directory: PathBuf,
    },
    /// The file cannot be created or locked.
    #[error("{}: cannot be locked: {error}", shown(path))]
    Failed {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

/// Locks a directory, and creates it if necessary. Accesses the disk, so it may block.
///
/// # Errors
/// If another process holds the lock, or the file cannot be created or locked.
pub fn acquire(directory: &Path) -> Result<Lock, LockError> {
    let path = directory.join(NAME);
    let opened = make_directory(directory).and_then(|()| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
    });
    let locked = opened.map(|file| (file.try_lock(), file));
    match locked {
        Ok((Ok(()), file)) => {
            // The lock is held even on a full disk; errors then lack the process id.
            let pid = format!("{}\n", std::process::id());
            let _ = file
                .set_len(0)
                .and_then(|()| file.write_all_at(pid.as_bytes(), 0));
            Ok(Lock { _file: file })
        }
        Ok((Err(TryLockError::WouldBlock), file)) => Err(LockError::LockedBy {
            pid: io::read_to_string(file.take(32))
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            directory: directory.to_owned(),
        }),
        Ok((Err(TryLockError::Error(error)), _)) | Err(error) => {
            Err(LockError::Failed { path, error })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, Instant};

    #[test]
    fn the_second_is_told_who_was_first() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("a/state");
        let lock = acquire(&state).unwrap();
        // flock(2) is about open files, so this process is as good a second one as any.
        let error = acquire(&state).unwrap_err();
        let pid = std::process::id();
        assert!(matches!(error, LockError::LockedBy { pid: Some(p), .. } if p == pid));
        assert!(
            error.to_string().contains(&format!("(process {pid})")),
            "{error}"
        );
        drop(lock);
        // A longer number of before is gone.
        std::fs::write(state.join(NAME), "12345678901234567890").unwrap();
        // A process that another test starts has the old one as well until its exec.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = acquire(&state) {
            assert!(Instant::now() < deadline, "{error}");
        }
        assert_eq!(
            std::fs::read_to_string(state.join(NAME)).unwrap(),
            format!("{pid}\n")
        );
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        std::fs::write(&target, "kept").unwrap();
        symlink(&target, directory.path().join(NAME)).unwrap();
        let error = acquire(directory.path()).unwrap_err();
        assert!(matches!(error, LockError::Failed { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
    }
}
