//! Permission events (fanotify(7)): an open of a marked file waits until it is allowed.
//!
//! The event is raised in do_dentry_open (fs/open.c), which all ways to open lead through: by name,
//! by handle (also xfs_open_by_handle), by io_uring, by a procfs link, by the kernel's NFS server.
//! O_PATH returns before it, but gives no access to the contents.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, read, write};

use super::checked;

/// A group of marks and their events. When its last descriptor is closed, the kernel allows all
/// waiting opens (fanotify_release, fs/notify/fanotify/fanotify_user.c).
#[derive(Debug)]
pub struct Group(Arc<OwnedFd>);

/// A process that waits to open the file. If dropped, it waits until the group is closed.
#[derive(Debug)]
pub struct Opening {
    /// Process ID; 0 if it is not visible in our namespace.
    pub pid: i32,
    /// Identifies the event to the kernel: the file, opened once more for us.
    file: OwnedFd,
}

impl Group {
    /// Creates a group without marks. Its queue is unlimited, because the kernel allows opens that
    /// find it full (fanotify_handle_event, fs/notify/fanotify/fanotify.c, returns 0).
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, EINVAL or ENOSYS where the kernel has no permission events.
    pub fn new() -> io::Result<Group> {
        let flags = libc::FAN_CLASS_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE;
        let opened = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NOATIME)
            .cast_unsigned();
        // SAFETY: no memory is involved.
        let fd = checked(unsafe { libc::fanotify_init(flags, opened) })?;
        // SAFETY: the kernel has just given us this descriptor, and nothing else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Group(Arc::new(fd)))
    }

    /// Makes each open of this file, by any name, wait for permission.
    ///
    /// # Errors
    /// EINVAL where the kernel has no permission events, ENOMEM, ENOSPC.
    pub fn hold_openings(&self, file: impl AsFd) -> io::Result<()> {
        // SAFETY: both descriptors are open; without a name the mark goes to the file itself.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD,
                libc::FAN_OPEN_PERM,
                file.as_fd().as_raw_fd(),
                std::ptr::null(),
            )
        };
        checked(result).map(drop)
    }

    /// Its descriptor, for a process that is to keep the group alive, as does the result.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Returns the next waiting process, if any. Fails as read(2) does; EMFILE and ENFILE mean that
    /// the kernel had no descriptor for us and denied an open.
    pub fn next(&self) -> io::Result<Option<Opening>> {
        // `struct fanotify_event_metadata`. There is room for one event only.
        let mut event = [0; size_of::<libc::fanotify_event_metadata>()];
        match read(&self.0, &mut event) {
            Ok(length) if length == event.len() => {}
            Ok(_) => return Ok(None),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let [.., fd, pid] = event.as_chunks().0 else {
            return Ok(None);
        };
        let (fd, pid) = (i32::from_ne_bytes(*fd), i32::from_ne_bytes(*pid));
        // SAFETY: the kernel has just given us this descriptor, and nothing else has it.
        let file = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(file.map(|file| Opening { pid, file }))
    }

    /// Permits the open. Fails with ENOENT if the process no longer waits.
    pub fn allow(&self, opening: Opening) -> io::Result<()> {
        self.answer(&opening, libc::FAN_ALLOW)
    }

    /// Makes the open fail with EPERM. Fails as [`allow`](Group::allow) does.
    pub fn deny(&self, opening: Opening) -> io::Result<()> {
        self.answer(&opening, libc::FAN_DENY)
    }

    fn answer(&self, opening: &Opening, answer: u32) -> io::Result<()> {
        // `struct fanotify_response`
        let mut response = [0; 8];
        let (fd, answered) = response.split_at_mut(4);
        fd.copy_from_slice(&opening.file.as_raw_fd().to_ne_bytes());
        answered.copy_from_slice(&answer.to_ne_bytes());
        write(&self.0, &response)?;
        Ok(())
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::{self, NotHere};
    use std::fs::{self, File};
    use std::time::{Duration, Instant};

    fn next(group: &Group) -> Opening {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(opening) = group.next().unwrap() {
                return opening;
            }
            assert!(Instant::now() < deadline, "nobody came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_opens_waits_until_he_is_let() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.raw");
        fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        // A kernel may have fanotify without permission events.
        let group = match Group::new().and_then(|group| group.hold_openings(&file).map(|()| group))
        {
            Ok(group) => group,
            Err(error) => return skip::missing(module_path!(), &NotHere::because(error)),
        };
        let open = || {
            let path = path.clone();
            std::thread::spawn(move || File::open(path).map(drop))
        };
        let first = open();
        let opening = next(&group);
        assert_eq!(
            opening.pid,
            rustix::process::getpid().as_raw_nonzero().get()
        );
        assert!(!first.is_finished());
        group.allow(opening).unwrap();
        first.join().unwrap().unwrap();
        let denied = open();
        group.deny(next(&group)).unwrap();
        let error = denied.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        // And whoever waits when the group goes is let through as well.
        let second = open();
        drop(next(&group));
        assert!(!second.is_finished());
        drop(group);
        second.join().unwrap().unwrap();
    }
}
