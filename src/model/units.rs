//! One type for each unit, so that extents are never added to bytes, and its display.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! units {
    ($($(#[$about:meta])* $unit:ident($number:ty),)*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $unit(pub $number);
    )*};
}

pub(super) use units;

units! {
    /// A number of bytes.
    Bytes(u64),
    /// Extents: records of an extent map, `nextents` of XFS. Not physical fragments: an unwritten
    /// range next to a written one is two extents, but one fragment (see
    /// [`ExtentMap`](super::ExtentMap)).
    ExtentCount(u64),
    /// A part of a whole, in millionths.
    Share(u32),
    /// A data rate.
    BytesPerSecond(u64),
}

const BINARY_UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const DECIMAL_UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];

macro_rules! sums {
    ($($unit:ident),*) => {$(
        impl $unit {
            /// The sum, saturating.
            pub fn saturating_add(self, other: $unit) -> $unit {
                $unit(self.0.saturating_add(other.0))
            }
        }

        impl std::iter::Sum for $unit {
            fn sum<I: Iterator<Item = $unit>>(iter: I) -> $unit {
                iter.fold($unit(0), $unit::saturating_add)
            }
        }
    )*};
}

sums!(Bytes, ExtentCount);

impl Bytes {
    /// The mean length of an extent, if there are any, in which these bytes are.
    pub fn per_extent(self, extents: ExtentCount) -> Option<Bytes> {
        self.0.checked_div(extents.0).map(Bytes)
    }
}

impl ExtentCount {
    /// The difference, saturating at 0.
    pub fn saturating_sub(self, other: ExtentCount) -> ExtentCount {
        ExtentCount(self.0.saturating_sub(other.0))
    }

    /// In compact form: `999`, `12.3k`, `34.7M`.
    pub fn short(self) -> String {
        match self.0 {
            0..1000 => self.0.to_string(),
            _ => scaled(self.0, 1000, &DECIMAL_UNITS, ""),
        }
    }
}

impl Share {
    /// 100 %.
    pub const WHOLE: Share = Share(1_000_000);

    /// A share in percent.
    pub const fn percent(percent: u32) -> Share {
        Share(percent.saturating_mul(10_000))
    }

    /// As a factor: 0.9 for 90 %.
    pub fn factor(self) -> f64 {
        f64::from(self.0) / f64::from(Share::WHOLE.0)
    }

    /// This share of another share: 90 % of 5 %.
    pub fn of(self, other: Share) -> Share {
        let share = u64::from(self.0) * u64::from(other.0) / u64::from(Share::WHOLE.0);
        Share(u32::try_from(share).unwrap_or(u32::MAX))
    }

    /// Whether `part` is at least this share of `whole`.
    pub fn is_reached_by(self, part: Bytes, whole: Bytes) -> bool {
        u128::from(part.0) * u128::from(Share::WHOLE.0) >= u128::from(whole.0) * u128::from(self.0)
    }

    /// This share of `whole`, rounded up.
    pub fn of_bytes(self, whole: Bytes) -> Bytes {
        let share = u128::from(whole.0) * u128::from(self.0);
        let share = share.div_ceil(u128::from(Share::WHOLE.0));
        Bytes(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

impl BytesPerSecond {
    /// Time to transfer this many bytes; [`Duration::MAX`] at speed 0.
    pub fn time_for(self, bytes: Bytes) -> Duration {
        let nanoseconds = u128::from(bytes.0) * 1_000_000_000;
        let nanoseconds = nanoseconds.checked_div(u128::from(self.0));
        nanoseconds
            .and_then(|nanoseconds| u64::try_from(nanoseconds).ok())
            .map_or(Duration::MAX, Duration::from_nanos)
    }
}

impl fmt::Display for Bytes {
    /// For people: `0 B`, `64.0 KiB`, `265 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self.0 {
            0..1024 => format!("{} B", self.0),
            _ => scaled(self.0, 1024, &BINARY_UNITS, " "),
        })
    }
}

impl fmt::Display for Share {
    /// As in the configuration: `5%`, `0.25%`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000, self.0 % 10_000);
        if rest == 0 {
            return f.pad(&format!("{whole}%"));
        }
        let rest = format!("{rest:04}");
        f.pad(&format!("{whole}.{}%", rest.trim_end_matches('0')))
    }
}

impl fmt::Display for BytesPerSecond {
    /// For people: `118 MiB/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", Bytes(self.0)))
    }
}

/// As a signed number; the largest one if it is larger.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A time, rounded down, in the largest unit with a count of two or more: `90 seconds`, `36 hours`.
pub fn roughly(time: Duration) -> String {
    const UNITS: [(&str, u64); 3] = [("days", 86_400), ("hours", 3_600), ("minutes", 60)];
    let seconds = time.as_secs();
    let unit = UNITS.iter().find(|(_, length)| seconds >= 2 * length);
    match unit {
        Some((name, length)) => format!("{} {name}", seconds / length),
        None if seconds == 1 => "1 second".to_owned(),
        None => format!("{seconds} seconds"),
    }
}

impl fmt::Display for ExtentCount {
    /// All digits, in groups of three: `34,694,398`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().collect();
        f.pad(&String::from_utf8_lossy(&groups.join(&b',')))
    }
}

/// `value` in the largest unit that keeps it at or above one, with at least two significant digits:
/// `1.5 MiB`, `12.0 MiB`, `265 GiB`. Rounds down: `1023.99 KiB` is not `1.0 MiB`.
fn scaled(value: u64, base: u64, units: &[&str], space: &str) -> String {
    let mut divisor = base;
    let mut unit = 0;
    while unit + 1 < units.len() && value / divisor >= base {
        divisor *= base;
        unit += 1;
    }
    let whole = value / divisor;
    // The remainder is below the divisor, at most 2^60, so ten times it fits in 128 bits.
    let tenth = u128::from(value % divisor) * 10 / u128::from(divisor);
    let unit = units[unit];
    match whole {
        0..100 => format!("{whole}.{tenth}{space}{unit}"),
        _ => format!("{whole}{space}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_an_operator_writes_them() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(65_536).to_string(), "64.0 KiB");
        assert_eq!(Bytes(1024 * 1024 - 1).to_string(), "1023 KiB");
        assert_eq!(Bytes(265 << 30).to_string(), "265 GiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "15.9 EiB");
    }

    #[test]
    fn extents_read_in_groups_of_three() {
        assert_eq!(ExtentCount(0).to_string(), "0");
        assert_eq!(ExtentCount(999).to_string(), "999");
        assert_eq!(ExtentCount(1_000).to_string(), "1,000");
        assert_eq!(ExtentCount(34_694_398).to_string(), "34,694,398");
        assert_eq!(ExtentCount(34_694_398).short(), "34.6M");
        assert_eq!(ExtentCount(999).short(), "999");
        assert_eq!(ExtentCount(130_909).short(), "130k");
    }

    #[test]
    fn a_share_is_a_part_of_a_whole() {
        assert_eq!(Share::percent(5).to_string(), "5%");
        assert_eq!(Share(2_500).to_string(), "0.25%");
        assert_eq!(Share(1).to_string(), "0.0001%");
        assert_eq!(
            Share::percent(90).of(Share::percent(50)),
            Share::percent(45)
        );
        let (half, whole) = (Bytes(1 << 63), Bytes(u64::MAX));
        assert!(Share::percent(50).is_reached_by(half, whole));
        assert!(!Share(500_001).is_reached_by(half, whole));
        assert_eq!(Share::percent(5).of_bytes(Bytes(101)), Bytes(6));
        assert_eq!(Share::WHOLE.of_bytes(whole), whole);
    }

    #[test]
    fn a_speed_takes_its_time() {
        let speed = BytesPerSecond(100 << 20);
        assert_eq!(speed.to_string(), "100 MiB/s");
        assert_eq!(speed.time_for(Bytes(50 << 20)), Duration::from_millis(500));
        assert_eq!(BytesPerSecond(0).time_for(Bytes(1)), Duration::MAX);
        assert_eq!(BytesPerSecond(1).time_for(Bytes(u64::MAX)), Duration::MAX);
    }

    #[test]
    fn a_time_reads_as_it_is_said() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (86_400, "24 hours"),
            (14 * 86_400, "14 days"),
        ] {
            assert_eq!(roughly(Duration::from_secs(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn grouping_loses_no_digit(n: u64) {
            prop_assert_eq!(ExtentCount(n).to_string().replace(',', ""), n.to_string());
        }

        #[test]
        fn every_size_prints_short(n: u64) {
            prop_assert!(Bytes(n).to_string().len() <= 8, "{}", Bytes(n));
        }
    }
}
