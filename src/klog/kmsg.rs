//! /dev/kmsg: one read, one record (Documentation/ABI/testing/dev-kmsg).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read};

/// The longest record that a read returns (`PRINTK_MESSAGE_MAX`, kernel/printk/internal.h:
/// 2048; kernels before 6.4 gave up to `CONSOLE_EXT_LOG_MAX`, 8192).
pub const RECORD_MAX: usize = 8192;

/// The kernel's log, open for reading.
#[derive(Debug)]
pub struct Kmsg(File);

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A record of so many bytes.
    Record(usize),
    /// There is none (yet).
    Nothing,
    /// Records were overwritten before they were read. The next read gives the oldest one left.
    Overrun,
    /// The kernel's log cannot be read any more.
    Failed(Errno),
}

impl Kmsg {
    /// Opens it at its oldest record. Reading never waits.
    ///
    /// # Errors
    /// EPERM without CAP_SYSLOG where kernel.dmesg_restrict is set; ENOENT in a sandbox that hides
    /// it (ProtectKernelLogs=).
    pub fn open(path: &Path) -> io::Result<Kmsg> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Kmsg(File::from(open(path, flags, Mode::empty())?)))
    }

    /// Reads one record into the buffer, which must hold [`RECORD_MAX`].
    pub fn read(&self, buffer: &mut [u8]) -> Read {
        loop {
            return match read(&self.0, &mut *buffer) {
                Ok(0) => Read::Nothing,
                Ok(length) => Read::Record(length),
                Err(Errno::AGAIN) => Read::Nothing,
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE) => Read::Overrun,
                Err(error) => Read::Failed(error),
            };
        }
    }
}

impl AsFd for Kmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
