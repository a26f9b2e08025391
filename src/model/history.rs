//! What is recorded of an image: its lasting identity and its extent counts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::units::ExtentCount;
use super::units::units;

units! {
    /// Wall-clock time in whole seconds since 1970.
    UnixTime(i64),
}

impl UnixTime {
    /// Converts seconds since 1970 as Prometheus writes them, rounding down.
    pub fn from_seconds(seconds: f64) -> Self {
        // The cast saturates.
        #[allow(clippy::cast_possible_truncation)]
        UnixTime(seconds.floor() as i64)
    }

    /// The time that was `duration` ago, saturating.
    pub fn before(self, duration: std::time::Duration) -> UnixTime {
        UnixTime(self.0.saturating_sub_unsigned(duration.as_secs()))
    }

    /// Time elapsed since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: UnixTime) -> std::time::Duration {
        let seconds = self.0.saturating_sub(earlier.0);
        std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }
}

/// Lasting identity of an image, kept by renames but not by replacements or restored backups. No
/// device number, which changes from boot to boot (unlike [`ImageId`](super::ImageId)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageKey {
    /// UUID of its file system, or [its substitute](super::filesystem::lasting_name). On btrfs plus
    /// a slash and the subvolume number: a snapshot has the inodes and generations of its original.
    pub filesystem: String,
    /// Inode number.
    pub inode: u64,
    /// Generation of the inode, which changes when the inode number is reused (`FS_IOC_GETVERSION`,
    /// ioctl_iflags(2)); 0 where the file system has none.
    pub generation: u32,
}

/// An extent count and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// When it was counted.
    pub at: UnixTime,
    /// The count.
    pub extents: ExtentCount,
}

/// Growth rate of an image in extents per day; negative if it loses extents.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExtentsPerDay(pub f64);

impl ExtentsPerDay {
    /// Converts a count per day; above 2^53 the last digits are lost.
    #[allow(clippy::cast_precision_loss)]
    pub fn from_count(extents: ExtentCount) -> ExtentsPerDay {
        ExtentsPerDay(extents.0 as f64)
    }

    /// The absolute rate, rounded to a whole number of extents.
    pub fn count(self) -> ExtentCount {
        // The cast saturates, and NaN becomes zero.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        ExtentCount(self.0.abs().round() as u64)
    }

    /// In compact form: `+1.2k/d`, `-7/d`, `0/d`.
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

    /// Converts extents per second.
    pub fn from_per_second(rate: f64) -> ExtentsPerDay {
        ExtentsPerDay(rate * 86_400.0)
    }

    /// Extents per second, the unit of Prometheus.
    pub fn per_second(self) -> f64 {
        self.0 / 86_400.0
    }
}

impl fmt::Display for ExtentsPerDay {
    /// For people: `+12,345/d`, `-7/d`, `0/d`.
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
