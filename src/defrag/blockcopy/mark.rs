//! Shows which of two files was written to since both were the same: a time of modification that both
//! get while the guest stands still.
//!
//! Whoever resumes the guest by hand between the pivot and the link has it write to the copy alone. If
//! QEMU ends before the link, and libvirt has not noted the pivot, nothing but these times shows that
//! the copy is the current file. They need not be flushed: after a power cut, they do not count.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Another one after each boot (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The time, and the boot in which it is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Since 1970: file systems keep seconds, and not all of them parts of a second.
    seconds: i64,
    boot: String,
}

impl Mark {
    /// That of now.
    pub(super) fn now() -> io::Result<Mark> {
        Ok(Mark {
            seconds: clock_gettime(ClockId::Realtime).tv_sec,
            boot: fs::read_to_string(BOOT)?,
        })
    }

    /// Sets it.
    pub(super) fn set(&self, file: &File) -> io::Result<()> {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(0, UTIME_OMIT),
            last_modification: time(self.seconds, 0),
        };
        Ok(futimens(file, &times)?)
    }

    /// Whether the new file was written to since it was set, and the old one was not.
    pub(super) fn is_overtaken(&self, old: &File, new: &File) -> io::Result<bool> {
        let has = |file: &File| {
            let found = file.metadata()?;
            Ok::<bool, io::Error>((found.mtime(), found.mtime_nsec()) == (self.seconds, 0))
        };
        let is_boot = fs::read_to_string(BOOT)? == self.boot;
        Ok(is_boot && has(old)? && !has(new)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_write_to_one_of_them_shows() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let [mut old, mut new] = files;
        let mark = Mark::now().unwrap();
        let is_overtaken = |old: &File, new: &File| mark.is_overtaken(old, new).unwrap();
        new.write_all(b"a").unwrap();
        assert!(!is_overtaken(&old, &new));
        mark.set(&old).unwrap();
        mark.set(&new).unwrap();
        assert!(!is_overtaken(&old, &new));
        new.write_all(b"b").unwrap();
        assert!(is_overtaken(&old, &new));
        let boot = "another".to_owned();
        let before = Mark {
            boot,
            ..mark.clone()
        };
        assert!(!before.is_overtaken(&old, &new).unwrap());
        old.write_all(b"c").unwrap();
        assert!(!is_overtaken(&old, &new));
    }
}
