//! Project quotas of XFS (quotactl(2), include/uapi/linux/dqblk_xfs.h).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use libc::{SYS_quotactl, SYS_quotactl_fd, syscall};
use rustix::io::Errno;

/// `Q_XGETNEXTQUOTA`, since Linux 4.6.
const NEXT_QUOTA: u32 = ((b'X' as u32) << 8) + 9;
/// `XQM_PRJQUOTA`.
const PROJECT: u32 = 2;
/// `QCMD(Q_XGETNEXTQUOTA, XQM_PRJQUOTA)`.
const COMMAND: u32 = (NEXT_QUOTA << 8) | PROJECT;
/// Unit of the limits, in bytes.
const BASIC_BLOCK: u64 = 512;

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Record {
    version_and_flags: [u8; 4],
    id: u32,
    hard_limit: u64,
    limits: [u64; 3],
    used: u64,
    inodes: u64,
    rest: [u64; 7],
}

const _: () = assert!(size_of::<Record>() == 112);

/// What a project uses of an XFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectQuota {
    /// Its ID.
    pub project: u32,
    /// What its files occupy, in bytes.
    pub used: u64,
    /// Its hard limit, in bytes; 0 without one.
    pub limit: u64,
}

/// Returns the quota of the first project with this ID or a higher one; `None` if there is none, or if the
/// file system of `root` (the device `major:minor`) has no project quotas.
pub fn next_project(
    root: impl AsFd,
    device: (u32, u32),
    from: u32,
) -> io::Result<Option<ProjectQuota>> {
    let mut record = Record::default();
    let (root, address) = (root.as_fd().as_raw_fd(), &raw mut record);
    // SAFETY: with this command the kernel writes one `struct fs_disk_quota` to the address, which is
    // that of a live `Record` of its size (asserted above); any bytes are valid values of it.
    let mut result = unsafe { syscall(SYS_quotactl_fd, root, COMMAND, from, address) };
    // Before Linux 5.14.
    if result < 0 && Errno::from_io_error(&io::Error::last_os_error()) == Some(Errno::NOSYS) {
        let name = CString::new(format!("/dev/block/{}:{}", device.0, device.1))?;
        // SAFETY: as above; the name is a C string that lives beyond the call.
        result = unsafe { syscall(SYS_quotactl, COMMAND, name.as_ptr(), from, address) };
    }
    if result < 0 {
        let error = io::Error::last_os_error();
        return match Errno::from_io_error(&error) {
            // No such ID; no quotas of this kind; a kernel without quotas.
            Some(Errno::SRCH | Errno::NOENT | Errno::NOSYS | Errno::INVAL) => Ok(None),
            _ => Err(error),
        };
    }
    Ok(Some(ProjectQuota {
        project: record.id,
        used: record.used.saturating_mul(BASIC_BLOCK),
        limit: record.hard_limit.saturating_mul(BASIC_BLOCK),
    }))
}
