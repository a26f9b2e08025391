//! Reads /dev/kmsg, one record per read (Documentation/ABI/testing/dev-kmsg).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, read};
use tracing::warn;

use super::record::{KernelTime, Record};

/// Path of the kernel log device.
pub const KMSG: &str = "/dev/kmsg";
/// Maximum length of a record in bytes: `CONSOLE_EXT_LOG_MAX`, 8192, before Linux 6.4;
/// `PRINTK_MESSAGE_MAX`, 2048, since (kernel/printk/internal.h).
pub const RECORD_MAX: usize = 8192;

/// Prefix of a mark; see [`Kmsg::open`].
const MARK: &str = "fragwatch reads the kernel log, mark ";
/// Maximum number of other records between the end of the log and the mark.
const BETWEEN: usize = 1024;
/// How long to wait for the mark: a record before it may not be complete yet.
const MARK_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The kernel log, open for reading.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    past: Past,
}

/// Which records were written before the log was opened, and how old they may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// Sequence number of the first new record.
    pub end: u64,
    /// Older records count only from this timestamp on.
    pub since: KernelTime,
}

impl Past {
    /// Whether a record is too old to count.
    pub fn is_too_old(&self, record: &Record<'_>) -> bool {
        record.sequence < self.end && record.time < self.since
    }
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A record of this many bytes.
    Record(usize),
    /// No record is available (yet).
    Nothing,
    /// Records were overwritten before they were read. The next read returns the oldest one left.
    Overrun,
    /// The kernel log cannot be read any more.
    Failed(Errno),
}

impl Kmsg {
    /// Opens the log at its end, or at its oldest record if `look_back` is not zero; then
    /// [`Kmsg::is_too_old`] identifies records that are older than `look_back`. Reads never block.
    ///
    /// Only `local_clock`, which stamps the records (`vprintk_store`, kernel/printk/printk.c),
    /// measures their age. No system call reads it, and it differs from `CLOCK_MONOTONIC`: NTP does
    /// not discipline it, so the two are minutes apart after some months, and time namespaces shift
    /// only the latter. So a mark is written to the log and read back: its stamp is the current
    /// time. If that fails (printk.devkmsg=off ignores writes), there is no look back.
    ///
    /// # Errors
    /// EPERM without CAP_SYSLOG if kernel.dmesg_restrict is set; ENOENT under ProtectKernelLogs=.
    pub fn open(path: &Path, look_back: Duration) -> io::Result<Kmsg> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut kmsg = Kmsg {
            file: File::from(open(path, flags, Mode::empty())?),
            past: Past::default(),
        };
        // Fails on a pipe used in place of the log: it has no past records.
        if seek(&kmsg.file, SeekFrom::End(0)).is_ok() && !look_back.is_zero() {
            match kmsg.mark(path) {
                Ok(mark) => {
                    kmsg.past = before(mark, look_back);
                    seek(&kmsg.file, SeekFrom::Start(0))?;
                }
                Err(error) => {
                    warn!(
                        "{}: cannot tell the age of its records ({error}): those from before the start are not looked at; is printk.devkmsg=off set?",
                        path.display()
                    );
                    seek(&kmsg.file, SeekFrom::End(0))?;
                }
            }
        }
        Ok(kmsg)
    }

    /// Writes a mark and returns the sequence number and timestamp with which it is read back.
    fn mark(&self, path: &Path) -> io::Result<(u64, KernelTime)> {
        let text = format!("{MARK}{}", std::process::id());
        OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(format!("<6>{text}\n").as_bytes())?;
        let mut buffer = vec![0; RECORD_MAX];
        for _ in 0..BETWEEN {
            let length = match self.read(&mut buffer) {
                Read::Record(length) => length,
                Read::Overrun => continue,
                Read::Failed(error) => return Err(error.into()),
                Read::Nothing => {
                    let mut events = [PollFd::new(&self.file, PollFlags::IN)];
                    if poll(&mut events, Some(&MARK_TIMEOUT))? == 0 {
                        break;
                    }
                    continue;
                }
            };
            let record = Record::parse(buffer.get(..length).unwrap_or_default());
            if let Some(record) = record
                && !record.is_genuine()
                && record.text.0 == text.as_bytes()
            {
                return Ok((record.sequence, record.time));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "what was written to it does not come back",
        ))
    }

    /// Whether a record was written too long before the log was opened to count.
    pub fn is_too_old(&self, record: &Record<'_>) -> bool {
        self.past.is_too_old(record)
    }

    /// Reads one record into the buffer, which must hold [`RECORD_MAX`] bytes.
    pub fn read(&self, buffer: &mut [u8]) -> Read {
        loop {
            return match read(&self.file, &mut *buffer) {
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
        self.file.as_fd()
    }
}

fn before((sequence, time): (u64, KernelTime), look_back: Duration) -> Past {
    let look_back = u64::try_from(look_back.as_micros()).unwrap_or(u64::MAX);
    Past {
        end: sequence,
        since: KernelTime(time.0.saturating_sub(look_back)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_old_and_was_there_before_is_too_old() {
        let past = before((100, KernelTime(50_000_000)), Duration::from_secs(10));
        let is_too_old = |sequence: u64, micros: u64| {
            let record = format!("6,{sequence},{micros},-;text\n");
            past.is_too_old(&Record::parse(record.as_bytes()).unwrap())
        };
        assert!(is_too_old(98, 39_999_999));
        assert!(!is_too_old(99, 40_000_000));
        // What comes later is new, whatever its stamp.
        assert!(!is_too_old(101, 0));
        let record = Record::parse(b"6,0,0,-;text").unwrap();
        assert!(!Past::default().is_too_old(&record));
        let past = before((3, KernelTime(5)), Duration::from_secs(10));
        assert_eq!(past.since, KernelTime(0));
    }
}
