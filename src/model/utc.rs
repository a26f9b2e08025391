//! Times as UTC text in the calendar of ISO 8601; times before 1970 count as 1970.

use std::time::SystemTime;

use jiff::Timestamp;

use super::UnixTime;

/// `2026-11-20T12:03:05.123Z`
pub fn rfc3339(time: SystemTime) -> String {
    format(time, "%FT%T%.3fZ")
}

/// `2026-11-20T12:03:05Z`
pub fn rfc3339_seconds(time: UnixTime) -> String {
    let time = Timestamp::from_second(time.0.max(0)).unwrap_or(Timestamp::MAX);
    time.strftime("%FT%TZ").to_string()
}

/// `20261120T120305.123Z`: sorts by time and is a valid file name everywhere.
pub fn compact(time: SystemTime) -> String {
    format(time, "%Y%m%dT%H%M%S%.3fZ")
}

fn format(time: SystemTime, form: &str) -> String {
    let time = Timestamp::try_from(time.max(SystemTime::UNIX_EPOCH)).unwrap_or(Timestamp::MAX);
    time.strftime(form).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn known_times() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        let time = UNIX_EPOCH + Duration::from_nanos(1_795_176_185_123_999_999);
        assert_eq!(compact(time), "20261120T120305.123Z");
        assert_eq!(rfc3339(time), "2026-11-20T12:03:05.123Z");
        assert_eq!(
            rfc3339_seconds(UnixTime(1_795_176_185)),
            "2026-11-20T12:03:05Z"
        );
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(rfc3339(before), at(0));
        assert_eq!(rfc3339_seconds(UnixTime(-1)), "1970-01-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn text_sorts_as_time_does(a in 0_u64..250_000_000_000_000, b in 0_u64..250_000_000_000_000) {
            let of = |milliseconds| compact(UNIX_EPOCH + Duration::from_millis(milliseconds));
            prop_assert_eq!(a.cmp(&b), of(a).cmp(&of(b)));
        }
    }
}
