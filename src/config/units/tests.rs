//! Values as they are written, and what is proposed for those that are none.

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
            parse_duration(text),
            Ok(Duration::from_secs(seconds)),
            "{text}"
        );
    }
    assert_eq!(parse_duration("20ms"), Ok(Duration::from_millis(20)));
    assert_eq!(parse_duration("1s500ms"), Ok(Duration::from_millis(1500)));
}

#[test]
fn a_refused_duration_says_what_to_write() {
    for (text, message, instead) in [
        ("", "is empty", None),
        ("60", "has no unit", Some("60s")),
        ("1_000", "has no unit", Some("1000s")),
        ("-5m", "is negative", None),
        ("1 minute", "is not a duration", Some("1m")),
        ("1 hour 30 minutes", "is not a duration", Some("1h30m")),
        ("5min", "is not a duration", Some("5m")),
        ("12H", "is not a duration", Some("12h")),
        ("+5m", "is not a duration", None),
        ("1.5h", "is not a duration", None),
        ("30m1h", "is not a duration", None),
        ("1h1h", "is not a duration", None),
        ("soon", "is not a duration", None),
        ("5m!", "is not a duration", None),
        ("٥m", "is not a duration", None),
        ("_", "is not a duration", None),
        ("36501d", "is longer than 100 years", None),
        ("99999999999999999999s", "is longer than 100 years", None),
        ("9999999999999999999d", "is longer than 100 years", None),
    ] {
        let expected = ParseError::new(message, instead.map(str::to_owned));
        assert_eq!(parse_duration(text), Err(expected), "{text}");
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
        assert_eq!(parse_size(text), Ok(Bytes(bytes)), "{text}");
    }
}

#[test]
fn a_refused_size_says_what_to_write() {
    for (text, message, instead) in [
        ("", "is empty", None),
        ("4096", "has no unit", Some("4096B")),
        ("-1KiB", "is negative", None),
        ("64K", "is not a size", Some("64KiB")),
        ("10 GiB", "is not a size", Some("10GiB")),
        ("10gb", "is not a size", Some("10GB")),
        ("1_000MiB", "is not a size", Some("1000MiB")),
        ("100 bytes", "is not a size", Some("100B")),
        ("1.5GiB", "is not a size", None),
        ("1GiB512MiB", "is not a size", None),
        ("big", "is not a size", None),
        ("16EiB", "is 16EiB or more", None),
    ] {
        let expected = ParseError::new(message, instead.map(str::to_owned));
        assert_eq!(parse_size(text), Err(expected), "{text}");
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
        assert_eq!(Share::parse(text), Ok(Share(millionths)), "{text}");
    }
}

#[test]
fn a_refused_share_says_what_to_write() {
    for (text, message, instead) in [
        ("", "is empty", None),
        ("5", "has no unit", Some("5%")),
        ("-5%", "is negative", None),
        ("5 %", "is not a share", Some("5%")),
        ("0.05", "is not a share", None),
        ("0.00001%", "is not a share", None),
        ("five%", "is not a share", None),
        ("5.%", "is not a share", None),
        (".5%", "is not a share", None),
        ("101%", "is more than 100%", None),
        ("99999999999999999999999%", "is more than 100%", None),
    ] {
        let expected = ParseError::new(message, instead.map(str::to_owned));
        assert_eq!(Share::parse(text), Err(expected), "{text}");
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
fn an_address_that_is_none_says_what_to_write() {
    for (text, message, instead) in [
        ("127.0.0.1", "has no port", Some("127.0.0.1:9843")),
        ("::1", "has no port", Some("[::1]:9843")),
        (
            "::1:9843",
            "is not a numeric address with a port",
            Some("[::1]:9843"),
        ),
        (
            "localhost:80",
            "is not a numeric address with a port",
            Some("127.0.0.1:80"),
        ),
        (
            ":9843",
            "is not a numeric address with a port",
            Some("0.0.0.0:9843"),
        ),
        (
            "*:9843",
            "is not a numeric address with a port",
            Some("0.0.0.0:9843"),
        ),
        ("fe80::g:1", "is not a numeric address with a port", None),
        ("9843", "is not a numeric address with a port", None),
        (
            "127.0.0.1:99999",
            "is not a numeric address with a port",
            None,
        ),
    ] {
        let expected = ParseError::new(message, instead.map(str::to_owned));
        assert_eq!(SocketAddr::parse(text), Err(expected), "{text}");
    }
    assert!(SocketAddr::parse("[::1]:9843").is_ok());
}

#[test]
fn a_rate_is_a_size_per_second() {
    let rate = BytesPerSecond(200 << 20);
    assert_eq!(BytesPerSecond::parse("200MiB/s"), Ok(rate));
    assert_eq!(rate.write(), "200MiB/s");
    for (text, message, instead) in [
        ("200MiB", "is not per second", Some("200MiB/s")),
        ("200MiB/h", "is not a rate", Some("200MiB/s")),
        ("200", "has no unit", Some("200B/s")),
        ("200 MiB/s", "is not a size", Some("200MiB/s")),
        ("fast", "is not a size", None),
    ] {
        let expected = ParseError::new(message, instead.map(str::to_owned));
        assert_eq!(BytesPerSecond::parse(text), Err(expected), "{text}");
    }
}

proptest! {
    #[test]
    fn a_written_duration_reads_back(milliseconds in 0..=36_500 * 86_400_000_u64) {
        let duration = Duration::from_millis(milliseconds);
        prop_assert_eq!(parse_duration(&duration.write()), Ok(duration));
    }

    #[test]
    fn a_written_size_reads_back(bytes: u64, shift in 0..64_u32) {
        let size = Bytes(bytes >> shift << (shift / 2));
        prop_assert_eq!(parse_size(&size.write()), Ok(size));
    }

    #[test]
    fn a_written_share_reads_back(millionths in 0..=1_000_000_u32) {
        let share = Share(millionths);
        prop_assert_eq!(Share::parse(&share.to_string()), Ok(share));
    }

    #[test]
    fn what_is_proposed_is_accepted(text in "[-+]?[0-9_.]{0,22} ?[A-Za-zµ]{0,7}[0-9]{0,3}") {
        if let Err(ParseError { instead: Some(instead), .. }) = parse_duration(&text) {
            // A bare number may be too long for any unit; that is said when it has one.
            prop_assert!(parse_duration(&instead).is_ok() || instead.len() > 10, "{}", instead);
        }
        if let Err(ParseError { instead: Some(instead), .. }) = parse_size(&text) {
            prop_assert!(parse_size(&instead).is_ok() || instead.len() > 19, "{}", instead);
        }
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = parse_duration(&text);
        let _ = parse_size(&text);
        let _ = Share::parse(&text);
    }
}
