//! /dev/kmsg: one read, one record (Documentation/ABI/testing/dev-kmsg).

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

/// Its path.
pub const KMSG: &str = "/dev/kmsg";
/// The longest record that a read returns (`PRINTK_MESSAGE_MAX`, kernel/printk/internal.h:
/// 2048; kernels before 6.4 gave up to `CONSOLE_EXT_LOG_MAX`, 8192).
pub const RECORD_MAX: usize = 8192;

/// How the text of a mark begins; see [`Kmsg::open`].
const MARK: &str = "fragwatch reads the kernel log, mark ";
/// Records of others that may come between a mark and its reading.
const BETWEEN: usize = 1024;
/// How long a mark may take to be readable: a record before it may not be complete yet.
const MARK_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The kernel's log, open for reading.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    past: Past,
}

/// Which records were written before the log was opened, and how old they may be to count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// The number of the first record that is new.
    pub end: u64,
    /// Records before that count from this stamp on.
    pub since: KernelTime,
}

impl Past {
    /// Whether a record is too old to count.
    pub fn is_too_old(&self, record: &Record<'_>) -> bool {
        record.sequence < self.end && record.time < self.since
    }
}

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
    /// Opens it at its end, or, to look back, at its oldest record; then those that are older than
    /// `look_back` are known by [`Kmsg::is_too_old`]. Reading never waits.
    ///
    /// How old a record is can only be measured by the clock that stamps it, `local_clock` (`vprintk_store`,
    /// kernel/printk/printk.c). No system call reads that clock, and it is not `CLOCK_MONOTONIC`: it is
    /// not disciplined by NTP, so that the two are minutes apart after some months, and a time
    /// namespace shifts only the latter. So a mark is written to the log and read back: its stamp is
    /// the time now. Without it (printk.devkmsg=off ignores what is written) there is no look back.
    ///
    /// # Errors
    /// EPERM without CAP_SYSLOG where kernel.dmesg_restrict is set; ENOENT in a sandbox that hides
    /// it (ProtectKernelLogs=).
    pub fn open(path: &Path, look_back: Duration) -> io::Result<Kmsg> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut kmsg = Kmsg {
            file: File::from(open(path, flags, Mode::empty())?),
            past: Past::default(),
        };
        // Fails on what only stands for the log, a pipe: that has no past.
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

    /// Writes a mark and reads it back: its number and its stamp.
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

    /// Reads one record into the buffer, which must hold [`RECORD_MAX`].
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

/// What was before a mark.
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
