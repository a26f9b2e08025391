//! Locks of our own, and whether a file is in use, where /proc cannot answer: leases and locks (fcntl(2)).
//!
//! /proc shows the processes of this host that may be inspected. Others, and clients of a network
//! export of this host, still show in a lease; QEMU's locks on single bytes of its images are
//! visible whoever holds them.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::checked;

/// First of the bytes that QEMU locks for its own use of an image, one per permission
/// (`RAW_LOCK_PERM_BASE`, block/file-posix.c).
const PERMISSIONS: i64 = 100;
/// First of those that it locks for permissions denied to others (`RAW_LOCK_SHARED_BASE`).
const REFUSALS: i64 = 200;
/// Bytes of each kind; QEMU uses the first five (`BLK_PERM_ALL`, include/block/block-common.h).
const BYTES: i64 = 100;
/// Offset of the permission to write, which a VM that may change its image has (`BLK_PERM_WRITE`).
const WRITE: i64 = 1;
/// The byte that QEMU locks where it writes to an image.
pub const QEMU_WRITES: u64 = (PERMISSIONS + WRITE).cast_unsigned();

/// Sets the signal of a lease (include/uapi/asm-generic/fcntl.h; the same on x86 and arm64).
const F_SETSIG: libc::c_int = 10;

/// How often a lock is tried, and how long between.
const TRIES: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(50);

/// Locks a file exclusively (flock(2)). `false` if others hold a lock for half a second: one that has been
/// released lives on in a child that was just being started, until its exec closes the descriptor.
///
/// # Errors
/// Those of flock(2).
pub fn lock(file: &File) -> io::Result<bool> {
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => thread::sleep(BETWEEN),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

/// QEMU's locks that are held by others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QemuLocks {
    /// The image is in use.
    pub used: bool,
    /// It may be written to.
    pub written: bool,
    /// Some permission is denied to others.
    pub guarded: bool,
}

impl QemuLocks {
    /// Whether any lock is held.
    pub fn any(self) -> bool {
        self.used || self.written || self.guarded
    }
}

/// Use of a file by others, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// Whether another open file description exists; `None` if unknown: the caller neither owns the
    /// file nor has CAP_LEASE, or the file system does not support leases.
    pub open: Option<bool>,
    /// QEMU's locks held by others; images opened with `locking=off` have none.
    pub qemu: QemuLocks,
}

/// Whether others use an open file, which must not be open twice in the calling process.
///
/// The caller holds a write lease for some microseconds; it is granted only without other openers
/// (check_conflicting_open, fs/locks.c). A process that opens the file then waits until the lease
/// is returned, or gets EWOULDBLOCK with O_NONBLOCK, and the kernel signals the caller: with
/// SIGURG, ignored by default, because SIGIO would kill a process that does not expect it.
///
/// # Errors
/// Those of fcntl(2) for locks; a refused lease is not an error.
pub fn in_use(file: impl AsFd) -> io::Result<InUse> {
    let file = file.as_fd();
    let first = |from, length| is_locked(file, from, length);
    let qemu = QemuLocks {
        used: first(PERMISSIONS, BYTES)?,
        written: first(PERMISSIONS + WRITE, 1)?,
        guarded: first(REFUSALS, BYTES)?,
    };
    Ok(InUse {
        open: is_open_elsewhere(file),
        qemu,
    })
}

/// Whether another open file description holds a lock in a range of bytes.
// Constants of the kernel, which fit its own field.
#[allow(clippy::cast_possible_truncation)]
fn is_locked(file: BorrowedFd<'_>, from: i64, length: i64) -> io::Result<bool> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // A write lock conflicts with every other lock.
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = from;
    lock.l_len = length;
    // SAFETY: the descriptor is open; the call reads and fills in a `struct flock`, which outlives
    // it. `l_pid` is zero, as F_OFD_GETLK asks for.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn is_open_elsewhere(file: BorrowedFd<'_>) -> Option<bool> {
    // If this fails, no lease may be taken.
    fcntl(file, F_SETSIG, libc::SIGURG).ok()?;
    match fcntl(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {
            // Cannot fail: the lease is held. Otherwise it would end with the descriptor.
            let _ = fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
            Some(false)
        }
        Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => Some(true),
        Err(_) => None,
    }
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and both commands (F_SETSIG, F_SETLEASE) take an integer.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), command, value) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::time::Duration;

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.raw");
        fs::write(&path, [0; 4096]).unwrap();
        (dir, path)
    }

    /// Not at once: a process that another test starts has what was open as well until its exec.
    #[track_caller]
    fn assert_free(ours: &File) {
        let free = InUse {
            open: Some(false),
            qemu: QemuLocks::default(),
        };
        let is_free = (0..400).any(|_| {
            let is_free = in_use(ours).unwrap() == free;
            std::thread::sleep(Duration::from_millis(if is_free { 0 } else { 50 }));
            is_free
        });
        assert!(is_free, "{:?}", in_use(ours));
    }

    #[test]
    fn whoever_has_it_open_shows() {
        let (_dir, path) = file();
        let ours = File::open(&path).unwrap();
        assert_free(&ours);
        for write in [false, true] {
            let other = OpenOptions::new().read(true).write(write).open(&path);
            let seen = in_use(&ours).unwrap();
            assert_eq!(seen.open, Some(true), "write: {write}");
            assert!(!seen.qemu.any());
            drop(other.unwrap());
            // And the lease was given back each time.
            assert_free(&ours);
        }
    }

    #[test]
    fn who_opens_it_while_it_is_pending_ends_nobody() {
        let (_dir, path) = file();
        let ours = File::open(&path).unwrap();
        std::thread::scope(|scope| {
            let opens = scope.spawn(|| {
                let open = |flags| {
                    let mut options = OpenOptions::new();
                    options.write(true).custom_flags(flags).open(&path)
                };
                for _ in 0..10 {
                    // Only a lease refuses it.
                    let refused = loop {
                        if let Err(error) = open(libc::O_NONBLOCK) {
                            break error;
                        }
                    };
                    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
                    // This waits for the lease's release, if need be.
                    drop(open(0).unwrap());
                }
            });
            while !opens.is_finished() {
                in_use(&ours).unwrap().open.unwrap();
            }
            opens.join().unwrap();
        });
        assert_free(&ours);
    }
}
