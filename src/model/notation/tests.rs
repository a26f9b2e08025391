//! Values as they are written, and what is refused.

use super::*;
use proptest::prelude::*;

#[test]
fn durations() {
    for (text, seconds) in [
        ("90s", 90),
        ("5m", 300),
        ("12h", 43_200),
        ("7d", 604_800),
        ("1h30m", 5400),
        ("1d2h3m4s", 93_784),
        ("0s", 0),
        ("007s", 7),
        ("36500d", 36_500 * 86_400),
    ] {
        assert_eq!(
            Duration::read(text),
            Some(Duration::from_secs(seconds)),
            "{text}"
        );
    }
    assert_eq!(Duration::read("20ms"), Some(Duration::from_millis(20)));
    assert_eq!(Duration::read("1s500ms"), Some(Duration::from_millis(1500)));
}

#[test]
fn durations_that_are_none() {
    let texts = "|60|1_000|-5m|1 minute|1 hour 30 minutes|5min|12H|+5m|1.5h|30m1h|1h1h|soon|5m!|\
        ٥m|_|36501d|99999999999999999999s|9999999999999999999d";
    for text in texts.split('|') {
        assert_eq!(Duration::read(text), None, "{text}");
    }
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0B", 0),
        ("4096B", 4096),
        ("64KiB", 65_536),
        ("10GiB", 10 << 30),
        ("500MB", 500_000_000),
        ("1kB", 1000),
        ("1KB", 1000),
        ("15EiB", 15 << 60),
    ] {
        assert_eq!(Bytes::read(text), Some(Bytes(bytes)), "{text}");
    }
}

#[test]
fn sizes_that_are_none() {
    let texts = "|4096|-1KiB|64K|10 GiB|10gb|1_000MiB|100 bytes|1.5GiB|1GiB512MiB|big|16EiB";
    for text in texts.split('|') {
        assert_eq!(Bytes::read(text), None, "{text}");
    }
}

#[test]
fn shares() {
    for (text, millionths) in [
        ("0%", 0),
        ("1%", 10_000),
        ("0.25%", 2_500),
        ("12.3456%", 123_456),
        ("100%", 1_000_000),
        ("100.0000%", 1_000_000),
    ] {
        assert_eq!(Share::read(text), Some(Share(millionths)), "{text}");
    }
}

#[test]
fn shares_that_are_none() {
    let texts = "|5|-5%|5 %|0.05|0.00001%|five%|5.%|.5%|101%|99999999999999999999999%";
    for text in texts.split('|') {
        assert_eq!(Share::read(text), None, "{text}");
    }
}

#[test]
fn written_short() {
    assert_eq!(Duration::from_secs(60).write(), "1m");
    assert_eq!(Duration::from_secs(90).write(), "90s");
    assert_eq!(Duration::from_secs(86_400).write(), "1d");
    assert_eq!(Duration::ZERO.write(), "0s");
    assert_eq!(Bytes(256 << 20).write(), "256MiB");
    assert_eq!(Bytes(500_000_000).write(), "500MB");
    assert_eq!(Bytes(0).write(), "0B");
    assert_eq!(Bytes(u64::MAX).write(), "18446744073709551615B");
}

#[test]
fn a_rate_is_a_size_per_second() {
    let rate = BytesPerSecond(200 << 20);
    assert_eq!(BytesPerSecond::read("200MiB/s"), Some(rate));
    assert_eq!(rate.write(), "200MiB/s");
    for text in ["200MiB", "200MiB/h", "200", "200 MiB/s", "fast", "/s"] {
        assert_eq!(BytesPerSecond::read(text), None, "{text}");
    }
}

#[test]
fn a_refused_text_names_the_form() {
    let error = Duration::parse("60").unwrap_err();
    assert_eq!(
        error,
        "is not a duration such as 90s or 1h30m, at most 36500d"
    );
}

proptest! {
    #[test]
    fn a_written_duration_reads_back(milliseconds in 0..=36_500 * 86_400_000_u64) {
        let duration = Duration::from_millis(milliseconds);
        prop_assert_eq!(Duration::read(&duration.write()), Some(duration));
    }

    #[test]
    fn a_written_size_reads_back(bytes: u64, shift in 0..64_u32) {
        let size = Bytes(bytes >> shift << (shift / 2));
        prop_assert_eq!(Bytes::read(&size.write()), Some(size));
    }

    #[test]
    fn a_written_share_reads_back(millionths in 0..=1_000_000_u32) {
        let share = Share(millionths);
        prop_assert_eq!(Share::read(&share.to_string()), Some(share));
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = Duration::read(&text);
        let _ = Bytes::read(&text);
        let _ = Share::read(&text);
    }
}
