//! Shows which of two files was written to since both were the same: a time of modification that both
//! get while the guest stands still, before QEMU is to use the copy.
//!
//! Whoever resumes the guest by hand between the pivot and the link has it write to the copy alone. If
//! QEMU ends before the link, and libvirt has not noted the pivot, nothing but these times shows that
//! the copy is the current file. They are flushed before they are noted. A later time of modification
//! is on the disk when the file system was unmounted, and after a power cut if it was flushed: XFS
//! does so within 30 seconds (fs.xfs.xfssyncd_centisecs), and fdatasync(2) does not.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Since 1970: file systems keep seconds, and not all of them parts of a second.
    seconds: i64,
}

impl Mark {
    /// That of now.
    pub(super) fn now() -> Mark {
        Mark {
            seconds: clock_gettime(ClockId::Realtime).tv_sec,
        }
    }

    /// Sets it, and flushes the file.
    pub(super) fn set(&self, file: &File) -> io::Result<()> {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(0, UTIME_OMIT),
            last_modification: time(self.seconds, 0),
        };
        futimens(file, &times)?;
        file.sync_all()
    }

    /// Whether the file was written to since it was set.
    pub(super) fn is_changed(&self, file: &File) -> io::Result<bool> {
        let found = file.metadata()?;
        Ok((found.mtime(), found.mtime_nsec()) != (self.seconds, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_write_shows() {
        let mut file = tempfile::tempfile().unwrap();
        let mark = Mark::now();
        file.write_all(b"a").unwrap();
        assert!(mark.is_changed(&file).unwrap());
        mark.set(&file).unwrap();
        assert!(!mark.is_changed(&file).unwrap());
        file.write_all(b"b").unwrap();
        assert!(mark.is_changed(&file).unwrap());
    }
}
