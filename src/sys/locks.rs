//! Whether a file is in use, where /proc cannot answer: leases and locks (fcntl(2)).
//!
//! /proc shows the processes of this host that may be looked into. A process that may not, or one
//! behind a network export of this host, still shows in a lease; QEMU marks its images with locks
//! on single bytes, whoever holds them.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// First byte of those that QEMU locks for what it does with an image: one byte for each
/// permission (`RAW_LOCK_PERM_BASE`, block/file-posix.c).
const PERMISSIONS: i64 = 100;
/// First byte of those that it locks for the permissions it denies to others (`RAW_LOCK_SHARED_BASE`).
const REFUSALS: i64 = 200;
/// Bytes of either kind, of which QEMU uses the first five (`BLK_PERM_ALL`, include/block/block-common.h).
const BYTES: i64 = 100;
/// The permissions to write and to resize: what a VM that may change its image holds
/// (`BLK_PERM_WRITE`, `BLK_PERM_RESIZE`).
const WRITE: i64 = 1;

/// Which signal a lease sends (include/uapi/asm-generic/fcntl.h; the same on x86 and arm64).
const F_SETSIG: libc::c_int = 10;

/// Which of QEMU's locks are held by others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QemuLocks {
    /// The image is used.
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

/// The use of a file by others, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// Whether another open file description exists. None if the kernel does not report it: the
    /// caller neither owns the file nor has CAP_LEASE, or the file system knows no leases.
    pub open: Option<bool>,
    /// Which of QEMU's locks others hold. Images that are opened with `locking=off` have none.
    pub qemu: QemuLocks,
}

impl InUse {
    /// Whether it is certainly in use.
    pub fn is_certain(self) -> bool {
        self.open == Some(true) || self.qemu.any()
    }
}

/// Whether others use an open file. It must not be open a second time in the calling process.
///
/// For a moment the caller holds a write lease, which only a file with no other opener allows
/// (check_conflicting_open, fs/locks.c). Whoever opens it in that moment waits until the lease is
/// given back, some microseconds later, or gets EWOULDBLOCK if he does not want to wait. The kernel
/// then sends us a signal; SIGIO would end a process that does not expect it, so it is made SIGURG,
/// which is ignored by default.
///
/// # Errors
/// Those of fcntl(2) for locks. Leases that cannot be had are no error.
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

/// Whether a range of bytes is locked by another open file description.
// The kernel's own constants, which fit the kernel's own field.
#[allow(clippy::cast_possible_truncation)]
fn is_locked(file: BorrowedFd<'_>, from: i64, length: i64) -> io::Result<bool> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // A lock for writing is in the way of each other lock.
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = from;
    lock.l_len = length;
    // SAFETY: the descriptor is open; the call reads and fills in a `struct flock`, which outlives
    // it. `l_pid` is zero, as F_OFD_GETLK asks for.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn is_open_elsewhere(file: BorrowedFd<'_>) -> Option<bool> {
    // Where that fails there must be no lease either.
    fcntl(file, F_SETSIG, libc::SIGURG).ok()?;
    match fcntl(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {
            // Cannot fail: we have it. Were it kept, it would go with the descriptor.
            let _ = fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
            Some(false)
        }
        Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => Some(true),
        Err(_) => None,
    }
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and both commands (F_SETSIG, F_SETLEASE) take an integer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.raw");
        fs::write(&path, [0; 4096]).unwrap();
        (dir, path)
    }

    #[test]
    fn whoever_has_it_open_shows() {
        let (_dir, path) = file();
        let ours = File::open(&path).unwrap();
        let free = InUse {
            open: Some(false),
            qemu: QemuLocks::default(),
        };
        assert_eq!(in_use(&ours).unwrap(), free);
        for write in [false, true] {
            let other = OpenOptions::new().read(true).write(write).open(&path);
            let seen = in_use(&ours).unwrap();
            assert_eq!(seen.open, Some(true), "write: {write}");
            assert!(seen.is_certain() && !seen.qemu.any());
            drop(other.unwrap());
            // And the lease was given back each time.
            assert_eq!(in_use(&ours).unwrap(), free);
        }
    }

    #[test]
    fn who_opens_it_while_it_is_pending_ends_nobody() {
        let (_dir, path) = file();
        let ours = File::open(&path).unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let mut seen = [0; 2];
                for _ in 0..20_000 {
                    let open = in_use(&ours).unwrap().open.unwrap();
                    seen[usize::from(open)] += 1;
                }
                seen
            });
            while !asked.is_finished() {
                drop(OpenOptions::new().write(true).open(&path).unwrap());
            }
            let seen = asked.join().unwrap();
            assert!(seen[0] > 0, "{seen:?}");
        });
        assert_eq!(in_use(&ours).unwrap().open, Some(false));
    }
}
