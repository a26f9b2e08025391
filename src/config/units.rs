//! Durations, sizes and shares as an operator writes them: `90s`, `1h30m`, `64KiB`, `5%`.
//!
//! A number without a unit is refused rather than guessed at, and every refusal says what to write
//! instead. What is printed here reads back as the same value.

use std::time::Duration;

use crate::model::{Bytes, Share};

/// Milliseconds of each unit of time, largest first: the order in which `1h30m` is written.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// A hundred years. Longer ones are slips, and adding them to a clock could overflow it.
const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);

/// Bytes of each unit of size, largest first; binary before decimal, so that binary wins when both
/// are as short.
const SIZE_UNITS: [(&str, u64); 13] = [
    ("EiB", 1 << 60),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("EB", 10_u64.pow(18)),
    ("PB", 10_u64.pow(15)),
    ("TB", 10_u64.pow(12)),
    ("GB", 10_u64.pow(9)),
    ("MB", 10_u64.pow(6)),
    ("kB", 10_u64.pow(3)),
    ("B", 1),
];

/// Why a text is not the value that it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What is wrong with it, to be read after the text itself: `has no unit`.
    pub message: String,
    /// What was probably meant, nothing if that cannot be told.
    pub instead: Option<String>,
}

impl Misfit {
    /// A refusal with `message`, and `instead` if what was meant can be told.
    #[must_use]
    pub fn new(message: impl Into<String>, instead: Option<String>) -> Misfit {
        Misfit {
            message: message.into(),
            instead,
        }
    }
}

/// Reads a duration: whole numbers of `d`, `h`, `m`, `s`, `ms`, the larger unit first and none
/// twice.
///
/// # Errors
/// Everything else, and durations of more than a hundred years.
pub fn parse_duration(text: &str) -> Result<Duration, Misfit> {
    if let Some(misfit) = common_misfit(text, "s") {
        return Err(misfit);
    }
    read_duration(text).map_err(|unfit| match unfit {
        Unfit::Form => {
            let guess = guess(text, time_unit).filter(|guess| read_duration(guess).is_ok());
            Misfit::new("is not a duration", guess)
        }
        Unfit::TooLarge => Misfit::new("is longer than 100 years", None),
    })
}

/// What keeps a text from being a value, before anybody guesses what was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    Form,
    TooLarge,
}

fn read_duration(text: &str) -> Result<Duration, Unfit> {
    let mut units = TIME_UNITS.iter();
    let mut total: u64 = 0;
    for (number, unit) in parts(text).ok_or(Unfit::Form)? {
        // Going on where the search before ended is what refuses `30m1h` and `1h1h`.
        let (_, milliseconds) = units.find(|(name, _)| *name == unit).ok_or(Unfit::Form)?;
        let part = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*milliseconds));
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or(Unfit::TooLarge)?;
    }
    let duration = Duration::from_millis(total);
    if duration > LONGEST {
        Err(Unfit::TooLarge)
    } else {
        Ok(duration)
    }
}

/// Writes a duration in the largest unit that holds it exactly, for [`parse_duration`]. What is
/// below a millisecond is dropped.
#[must_use]
pub fn write_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    TIME_UNITS
        .iter()
        .find(|(_, unit)| milliseconds.is_multiple_of(u128::from(*unit)))
        .map(|(name, unit)| format!("{}{name}", milliseconds / u128::from(*unit)))
        .unwrap_or_default()
}

/// Reads a size: a whole number with a unit, binary (`KiB` … `EiB`), decimal (`kB` or `KB`, `MB` …
/// `EB`) or `B`.
///
/// # Errors
/// Everything else, and sizes of 2^64 bytes or more.
pub fn parse_size(text: &str) -> Result<Bytes, Misfit> {
    if let Some(misfit) = common_misfit(text, "B") {
        return Err(misfit);
    }
    read_size(text).map_err(|unfit| match unfit {
        Unfit::Form => {
            let guess = guess(text, size_unit).filter(|guess| read_size(guess).is_ok());
            Misfit::new("is not a size", guess)
        }
        Unfit::TooLarge => Misfit::new("is 16EiB or more", None),
    })
}

fn read_size(text: &str) -> Result<Bytes, Unfit> {
    let parts = parts(text).ok_or(Unfit::Form)?;
    let [(number, unit)] = parts.as_slice() else {
        return Err(Unfit::Form);
    };
    let unit = if *unit == "KB" { "kB" } else { unit };
    let (_, factor) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(Unfit::Form)?;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .map(Bytes)
        .ok_or(Unfit::TooLarge)
}

/// Writes a size in the unit that makes it shortest and is exact, for [`parse_size`].
#[must_use]
pub fn write_size(size: Bytes) -> String {
    SIZE_UNITS
        .iter()
        .filter(|(_, unit)| size.0.is_multiple_of(*unit) && (size.0 > 0 || *unit == 1))
        .map(|(name, unit)| format!("{}{name}", size.0 / unit))
        .min_by_key(String::len)
        .unwrap_or_default()
}

/// Reads a share: `5%`, `0.25%`, with four decimals at most.
///
/// # Errors
/// Everything else, and shares of more than `100%`.
pub fn parse_share(text: &str) -> Result<Share, Misfit> {
    if let Some(misfit) = common_misfit(text, "%") {
        return Err(misfit);
    }
    let is_share = |text: &str| text.strip_suffix('%').and_then(|n| read_decimal(n, 4));
    match is_share(text) {
        Some(millionths) => {
            let share = u32::try_from(millionths).map(Share);
            let share = share.ok().filter(|share| *share <= Share::WHOLE);
            share.ok_or_else(|| Misfit::new("is more than 100%", None))
        }
        None => {
            let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            let instead = is_share(&bare).map(|_| bare);
            Err(Misfit::new("is not a share", instead))
        }
    }
}

/// Reads a factor from 0 to 1 with six decimals at most: `0.9`. Nothing if it is none.
#[must_use]
pub fn parse_factor(text: &str) -> Option<Share> {
    let millionths = u32::try_from(read_decimal(text, 6)?).ok()?;
    Some(Share(millionths)).filter(|share| *share <= Share::WHOLE)
}

/// Writes a factor for [`parse_factor`]: `0.9`, `1.0`.
#[must_use]
pub fn write_factor(share: Share) -> String {
    let whole = Share::WHOLE.0;
    let rest = format!("{:06}", share.0 % whole);
    let rest = rest.trim_end_matches('0');
    format!(
        "{}.{}",
        share.0 / whole,
        if rest.is_empty() { "0" } else { rest }
    )
}

/// A decimal number, in units of its last decimal but `decimals`: `0.25` with four is 2500.
fn read_decimal(text: &str, decimals: usize) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_whole = !whole.is_empty() && is_number(whole) && is_number(rest);
    if !is_whole || rest.len() > decimals || text.ends_with('.') {
        return None;
    }
    // Too long a number is the largest there is: it is refused as too large.
    Some(
        format!("{whole}{rest:0<decimals$}")
            .parse()
            .unwrap_or(u64::MAX),
    )
}

/// What all kinds refuse in the same words. `unit` is the one that a bare number probably meant.
fn common_misfit(text: &str, unit: &str) -> Option<Misfit> {
    if text.is_empty() {
        return Some(Misfit::new("is empty", None));
    }
    if text.starts_with('-') {
        return Some(Misfit::new("is negative", None));
    }
    let digits = text.replace('_', "");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Misfit::new("has no unit", Some(format!("{digits}{unit}"))));
    }
    None
}

/// Splits `1h30m` into numbers and units; nothing if the text does not alternate between them or
/// is empty.
fn parts(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (number, behind) = split_where(rest, |c| !c.is_ascii_digit());
        let (unit, behind) = split_where(behind, |c| c.is_ascii_digit());
        if number.is_empty() || unit.is_empty() {
            return None;
        }
        parts.push((number, unit));
        rest = behind;
    }
    (!parts.is_empty()).then_some(parts)
}

/// The text before and from the first character that `is_end`.
fn split_where(text: &str, is_end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_end).unwrap_or(text.len()))
}

/// The unit of time that was meant by `minutes`, `min`, `H`.
fn time_unit(unit: &str) -> Option<&'static str> {
    Some(match unit.to_lowercase().as_str() {
        "d" | "day" | "days" => "d",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" => "ms",
        _ => return None,
    })
}

/// The unit of size that was meant by `gib`, `gb`, `G`, `bytes`.
fn size_unit(unit: &str) -> Option<&'static str> {
    let unit = unit.to_lowercase();
    if matches!(unit.as_str(), "byte" | "bytes") {
        return Some("B");
    }
    // A lone letter is binary, as with qemu-img and truncate.
    SIZE_UNITS.iter().map(|(name, _)| *name).find(|name| {
        let name = name.to_lowercase();
        name == unit || name.strip_suffix("ib") == Some(unit.as_str())
    })
}

/// What was probably meant by `1 minute`, `64K`, `1_000 MB`: the text without blanks and
/// underscores, each unit replaced by the one that `known` takes it for.
fn guess(text: &str, known: impl Fn(&str) -> Option<&'static str>) -> Option<String> {
    let text: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '_')
        .collect();
    parts(&text)?
        .into_iter()
        .map(|(number, unit)| known(unit).map(|unit| format!("{number}{unit}")))
        .collect()
}

#[cfg(test)]
mod tests {
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
            let expected = Misfit::new(message, instead.map(str::to_owned));
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
            let expected = Misfit::new(message, instead.map(str::to_owned));
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
            assert_eq!(parse_share(text), Ok(Share(millionths)), "{text}");
        }
        assert_eq!(parse_factor("0.9"), Some(Share::percent(90)));
        assert_eq!(parse_factor("1"), Some(Share::WHOLE));
        assert_eq!(parse_factor("1.01"), None);
        assert_eq!(parse_factor("1e-1"), None);
        assert_eq!(parse_factor(".5"), None);
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
            let expected = Misfit::new(message, instead.map(str::to_owned));
            assert_eq!(parse_share(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn written_short() {
        assert_eq!(write_duration(Duration::from_secs(60)), "1m");
        assert_eq!(write_duration(Duration::from_secs(90)), "90s");
        assert_eq!(write_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(write_duration(Duration::ZERO), "0s");
        assert_eq!(write_size(Bytes(256 << 20)), "256MiB");
        assert_eq!(write_size(Bytes(500_000_000)), "500MB");
        assert_eq!(write_size(Bytes(0)), "0B");
        assert_eq!(write_size(Bytes(u64::MAX)), "18446744073709551615B");
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_back(milliseconds in 0..=36_500 * 86_400_000_u64) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&write_duration(duration)), Ok(duration));
        }

        #[test]
        fn a_written_size_reads_back(bytes: u64, shift in 0..64_u32) {
            let size = Bytes(bytes >> shift << (shift / 2));
            prop_assert_eq!(parse_size(&write_size(size)), Ok(size));
        }

        #[test]
        fn a_written_share_reads_back(millionths in 0..=1_000_000_u32) {
            let share = Share(millionths);
            prop_assert_eq!(parse_share(&share.to_string()), Ok(share));
            prop_assert_eq!(parse_factor(&write_factor(share)), Some(share));
        }

        #[test]
        fn what_is_proposed_is_accepted(text in "[-+]?[0-9_.]{0,22} ?[A-Za-zµ]{0,7}[0-9]{0,3}") {
            if let Err(Misfit { instead: Some(instead), .. }) = parse_duration(&text) {
                // A bare number may be too long for any unit; that is said when it has one.
                prop_assert!(parse_duration(&instead).is_ok() || instead.len() > 10, "{}", instead);
            }
            if let Err(Misfit { instead: Some(instead), .. }) = parse_size(&text) {
                prop_assert!(parse_size(&instead).is_ok() || instead.len() > 19, "{}", instead);
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
            let _ = parse_share(&text);
            let _ = parse_factor(&text);
        }
    }
}
