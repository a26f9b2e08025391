//! Blocks all processes that open an image until xfs_fsr has ended.
//!
//! # Why no write can be lost
//!
//! xfs_fsr copies a file and has the kernel exchange the two. A write to the file between copy and
//! exchange would be lost; the kernel detects one only by comparing modification times, which are
//! as coarse as its tick. So there are two lines of defence.
//!
//! **First line: while xfs_fsr runs, no other process has the file open, so none can write to it.**
//!
//! 1. The gate is raised first: a permission mark for FAN_OPEN_PERM on the inode. Only then a write
//!    lease ([`locks`](crate::sys::locks)) shows whether the file is open. do_dentry_open
//!    (fs/open.c) raises i_writecount or i_readcount *before* the permission event, both by atomic
//!    operations with full barriers; so each opener is detected by the lease
//!    (check_conflicting_open, fs/locks.c) or meets the mark. There is no gap.
//! 2. The counts stay raised as long as there is a `struct file`. So an earlier opener is detected,
//!    however it holds the file: as a descriptor, also one passed over a socket or in flight in
//!    one, taken with pidfd_getfd or registered with io_uring; as a mapping (vm_file), a request in
//!    flight (ki_filp), a loop device (lo_backing_file), swap, or a file of the kernel's NFS
//!    server.
//! 3. Every later opener passes through do_dentry_open: open, openat2, io_uring's open, a re-open
//!    through /proc/PID/fd (also of an O_PATH descriptor, which itself gives no access),
//!    open_by_handle_at, XFS_IOC_OPEN_BY_HANDLE, a new loop device, nfsd for each file not cached.
//!    There it waits (fanotify_get_response) for our answer, which comes after xfs_fsr has been
//!    ended *and is a zombie*: an exiting process closes its files and finishes their last
//!    references (exit_files, exit_task_work) before it becomes one (exit_notify, kernel/exit.c),
//!    and a kill does not interrupt the exchange but waits for it.
//! 4. Our own opens and those of xfs_fsr are allowed. Ours are all for reading, by processes that
//!    run this program (device and inode of /proc/PID/exe); xfs_fsr is known by its process group.
//!    No process gets into either by accident: setpgid(2) works only within a session, and only
//!    prctl(2) with PR_SET_MM_EXE_FILE or PR_SET_MM_MAP changes /proc/PID/exe without execve(2).
//! 5. The gate does not open before xfs_fsr ends. It opens when the last descriptor of the fanotify
//!    group is closed, because the kernel then allows all waiting openers (fanotify_release), and
//!    xfs_fsr has inherited one. If this process is killed, the kernel kills xfs_fsr too
//!    (PR_SET_PDEATHSIG), which opens the gate; if xfs_fsr is killed, this process opens it. Where
//!    SELinux changes the label for xfs_fsr, the kernel does not kill it; then openers wait until
//!    it has finished, and nothing is lost. systemd ends it with the service.
//! 6. The queue is unlimited: with a limit, events that do not fit are allowed unasked.
//!
//! **Second line: the kernel detects writes that bypass the gate.** overlayfs opens the files of
//! its layers with FMODE_NONOTIFY (OVL_OPEN_FLAGS, fs/overlayfs/file.c), so a container that has
//! the image in a layer is detected by the lease but not blocked by the mark; and truncate(2)
//! changes a file without opening it. Both set the modification times. xfs_swap_extents and
//! XFS_IOC_COMMIT_RANGE compare these with the values before the copy, under the locks that exclude
//! writers, and refuse with EBUSY. That fails only if the file was modified in the same tick (10 ms
//! at most) in which the copy began; so a run does not begin before the last modification is ten
//! times as old ([`guard`](super::guard)).
//!
//! The remaining risk is a program that writes without setting times and bypasses the gate, such as
//! a second xfs_fsr started on the same file in an overlay.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::holders;
use crate::model::NamedProcess;
use crate::sys::fanotify::{Group, Opening};
use crate::sys::proc::stat_field;

/// A raised gate. It opens when this and all inherited descriptors are closed.
#[derive(Debug)]
pub struct Gate {
    group: Group,
    proc: PathBuf,
    /// Our program: its path in procfs, its device and inode.
    own: Option<(PathBuf, u64, u64)>,
    /// The process group of xfs_fsr.
    worker: Option<i32>,
    worker_came: bool,
    waiting: Vec<Opening>,
}

impl Gate {
    /// Raises the gate of an open file. `proc` is where procfs is mounted. Fails as fanotify does:
    /// without CAP_SYS_ADMIN or permission events there is no gate, and so no run.
    pub fn raise(file: impl AsFd, proc: &Path) -> io::Result<Gate> {
        let group = Group::new()?;
        group.hold_openings(file)?;
        let link = proc.join("self/exe");
        let own = fs::read_link(&link).and_then(|name| {
            let program = fs::metadata(&link)?;
            Ok((name, program.dev(), program.ino()))
        });
        Ok(Gate {
            group,
            proc: proc.to_owned(),
            own: own.ok(),
            worker: None,
            worker_came: false,
            waiting: Vec::new(),
        })
    }

    /// A process that inherits this keeps the gate raised.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.group.descriptor()
    }

    /// Allows this process and its group. Its PID stays valid until it is waited for.
    pub fn set_worker(&mut self, pid: i32) {
        self.worker = Some(pid);
    }

    /// Whether the worker has opened the file.
    pub fn worker_came(&self) -> bool {
        self.worker_came
    }

    /// Allows all waiting openers, before there is a worker. Returns the first that is not ours.
    pub fn let_all_in(&mut self) -> io::Result<Option<NamedProcess>> {
        let mut foreign = None;
        while let Some(opening) = self.group.next()? {
            let process = (!self.is_ours(opening.pid)).then(|| self.process(&opening));
            foreign = foreign.or(process);
            self.allow(opening);
        }
        Ok(foreign)
    }

    /// Allows ours and the worker. Returns the first other process; it and all after it wait.
    pub fn let_ours_in(&mut self) -> io::Result<Option<NamedProcess>> {
        while let Some(opening) = self.group.next()? {
            if self.is_worker(opening.pid) {
                self.worker_came = true;
            } else if !self.is_ours(opening.pid) {
                let process = self.process(&opening);
                self.waiting.push(opening);
                return Ok(Some(process));
            }
            self.allow(opening);
        }
        Ok(None)
    }

    /// Allows ours, and makes the opens of all others that wait fail with EPERM.
    pub fn deny_foreign(&mut self) -> io::Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting);
        while let Some(opening) = self.group.next()? {
            match self.is_ours(opening.pid) {
                true => self.allow(opening),
                false => waiting.push(opening),
            }
        }
        for opening in waiting {
            // One that no longer waits opens nothing.
            let _ = self.group.deny(opening);
        }
        Ok(())
    }

    fn allow(&self, opening: Opening) {
        // An opener that no longer waits needs no permission.
        let _ = self.group.allow(opening);
    }

    fn process(&self, opening: &Opening) -> NamedProcess {
        holders::process(&self.proc, opening.pid)
    }

    fn is_worker(&self, pid: i32) -> bool {
        // Field 5 of stat is the process group (proc_pid_stat(5)).
        let group = || stat_field::<5>(&self.proc, pid.cast_unsigned());
        self.worker.is_some_and(|worker| {
            pid == worker || group() == Some(u64::from(worker.cast_unsigned()))
        })
    }

    /// Whether it runs our program. The link comes first: another program's file system may hang.
    fn is_ours(&self, pid: i32) -> bool {
        let Some((name, device, inode)) = &self.own else {
            return false;
        };
        let link = self.proc.join(format!("{pid}/exe"));
        fs::read_link(&link).is_ok_and(|its| its == *name)
            && fs::metadata(&link).is_ok_and(|its| (its.dev(), its.ino()) == (*device, *inode))
    }
}

impl AsFd for Gate {
    /// Readable when a process waits at the gate.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}
