//! What is recorded of an image: its lasting identity, and its count at a time.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::units::ExtentCount;

/// Wall-clock time in whole seconds since 1970.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// From seconds since 1970 as Prometheus writes them.
    pub fn from_seconds(seconds: f64) -> Self {
        // Rounds down; what lies beyond the ends becomes the end.
        #[allow(clippy::cast_possible_truncation)]
        UnixTime(seconds.floor() as i64)
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: UnixTime) -> std::time::Duration {
        let seconds = self.0.saturating_sub(earlier.0);
        std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }
}

/// The lasting identity of an image: a rename keeps it, a file put in its place does not have it, and
/// neither has one that was restored from a backup.
///
/// Not the device number, which changes from boot to boot ([`ImageId`](super::ImageId)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageKey {
    /// UUID of its file system, or [what names one that has none](super::filesystem::lasting_name). On
    /// btrfs a slash and the number of its subvolume follow: a snapshot has the inodes and generations
    /// of its original.
    pub filesystem: String,
    /// Inode number.
    pub inode: u64,
    /// The inode's generation: a number that changes when an inode number is given to a new file
    /// (`FS_IOC_GETVERSION`, ioctl_iflags(2)). 0 where the file system has none.
    pub generation: u32,
}

/// How many extents an image had when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// When it was counted.
    pub at: UnixTime,
    /// What was counted.
    pub extents: ExtentCount,
}

/// How fast an image gains extents. Negative while it loses some.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExtentsPerDay(pub f64);

impl ExtentsPerDay {
    /// So many in a day. Above 2^53 the last digits are lost.
    #[allow(clippy::cast_precision_loss)]
    pub fn from_count(extents: ExtentCount) -> ExtentsPerDay {
        ExtentsPerDay(extents.0 as f64)
    }

    /// The nearest count of extents that it gains, or loses, in a day.
    pub fn count(self) -> ExtentCount {
        // A float becomes the nearest number there is, and not a number becomes zero.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        ExtentCount(self.0.abs().round() as u64)
    }

    /// In few columns: `+1.2k/d`, `-7/d`, `0/d`.
    pub fn short(self) -> String {
        format!("{}{}/d", self.sign(), self.count().short())
    }

    fn sign(self) -> &'static str {
        match self.0.round() {
            rate if rate > 0.0 => "+",
            rate if rate < 0.0 => "-",
            _ => "",
        }
    }

    /// From what is gained in a second.
    pub fn from_per_second(rate: f64) -> ExtentsPerDay {
        ExtentsPerDay(rate * 86_400.0)
    }

    /// As Prometheus counts: in a second.
    pub fn per_second(self) -> f64 {
        self.0 / 86_400.0
    }
}

impl fmt::Display for ExtentsPerDay {
    /// As a person reads it: `+12,345/d`, `-7/d`, `0/d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}/d", self.sign(), self.count()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_reads_with_its_sign() {
        assert_eq!(ExtentsPerDay(12_345.4).to_string(), "+12,345/d");
        assert_eq!(ExtentsPerDay(-7.0).to_string(), "-7/d");
        assert_eq!(ExtentsPerDay(-0.2).to_string(), "0/d");
        assert_eq!(ExtentsPerDay(-12_345.4).short(), "-12.3k/d");
        assert_eq!(ExtentsPerDay(0.0).short(), "0/d");
        assert_eq!(ExtentsPerDay(f64::NAN).to_string(), "0/d");
        assert!((ExtentsPerDay(86_400.0).per_second() - 1.0).abs() < f64::EPSILON);
    }
}
