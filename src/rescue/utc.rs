//! Times of day as they are written: UTC, by the calendar of ISO 8601.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::UnixTime;

/// `2026-11-20T12:03:05.123Z`
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let Utc {
        year,
        month,
        day,
        hour,
        minute,
        second,
        milli,
    } = Utc::of(time);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// `2026-11-20T12:03:05Z`
#[must_use]
pub fn rfc3339_seconds(time: UnixTime) -> String {
    let since = Duration::from_secs(u64::try_from(time.0).unwrap_or(0));
    let text = rfc3339(UNIX_EPOCH + since);
    text.replace(".000Z", "Z")
}

/// `20261120T120305.123Z`: sorts by time, and is a file name everywhere.
#[must_use]
pub fn compact(time: SystemTime) -> String {
    let Utc {
        year,
        month,
        day,
        hour,
        minute,
        second,
        milli,
    } = Utc::of(time);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{milli:03}Z")
}

struct Utc {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    milli: u32,
}

impl Utc {
    /// A clock before 1970 is taken for 1970.
    fn of(time: SystemTime) -> Utc {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // The calendar repeats after 400 years of 146097 days. Years that begin in March have
        // their leap day at the end, so that the months before it always add up to the same.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        Utc {
            year: era * 400 + year + u64::from(month >= 10),
            month: if month < 10 { month + 3 } else { month - 9 },
            day: day - (153 * month + 2) / 5 + 1,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            milli: since.subsec_millis(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> String {
        rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn known_days() {
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000Z");
        let time = UNIX_EPOCH + Duration::from_millis(1_795_176_185_123);
        assert_eq!(compact(time), "20261120T120305.123Z");
        assert_eq!(rfc3339(time), "2026-11-20T12:03:05.123Z");
    }

    proptest! {
        #[test]
        fn text_sorts_as_time_does(a in 0_u64..250_000_000_000_000, b in 0_u64..250_000_000_000_000) {
            let of = |milliseconds| compact(UNIX_EPOCH + Duration::from_millis(milliseconds));
            prop_assert_eq!(a.cmp(&b), of(a).cmp(&of(b)));
        }

        #[test]
        fn a_day_later_is_the_next_date(day in 0_u64..2_900_000) {
            let date = |day: u64| {
                let text = at(day * 86_400);
                let part = |range: std::ops::Range<usize>| text[range].parse::<u64>().unwrap();
                (part(0..4), part(5..7), part(8..10))
            };
            let (year, month, of_month) = date(day);
            let next = date(day + 1);
            prop_assert!(next == (year, month, of_month + 1)
                || next == (year, month + 1, 1) && of_month >= 28
                || next == (year + 1, 1, 1) && (month, of_month) == (12, 31));
        }
    }
}
