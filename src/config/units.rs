//! Durations, sizes, shares, times and addresses as configured: `90s`, `1h30m`, `64KiB`, `5%`,
//! `01:00`. A number without a unit is an error, which suggests what to write. Values read back as
//! written.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Time, Weekday};

use super::text::nearest;
use crate::model::{Bytes, BytesPerSecond, Share};

/// The units of a quantity, each with its factor and, in lower case, other words for it.
type Units = [(&'static str, u64, &'static str)];

/// In milliseconds, in the order of `1h30m`.
const TIMES: &Units = &[
    ("d", 86_400_000, "day days"),
    ("h", 3_600_000, "hr hrs hour hours"),
    ("m", 60_000, "min mins minute minutes"),
    ("s", 1000, "sec secs second seconds"),
    ("ms", 1, "msec msecs millisecond milliseconds"),
];

/// In bytes; binary before decimal, which breaks ties in length. A single letter is binary, as in
/// qemu-img and truncate.
const SIZES: &Units = &[
    ("EiB", 1 << 60, "e"),
    ("PiB", 1 << 50, "p"),
    ("TiB", 1 << 40, "t"),
    ("GiB", 1 << 30, "g"),
    ("MiB", 1 << 20, "m"),
    ("KiB", 1 << 10, "k"),
    ("EB", 10_u64.pow(18), ""),
    ("PB", 10_u64.pow(15), ""),
    ("TB", 10_u64.pow(12), ""),
    ("GB", 10_u64.pow(9), ""),
    ("MB", 10_u64.pow(6), ""),
    ("kB", 10_u64.pow(3), ""),
    ("B", 1, "byte bytes"),
];

/// A hundred years. Longer durations are mistakes, and could overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(36_500 * 86_400);

/// Why a text is not a valid value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// What is wrong, to be appended to the text: `has no unit`.
    pub message: String,
    /// What was probably meant, if known.
    pub instead: Option<String>,
}

impl ParseError {
    /// An error with `message` and the probable intention.
    pub fn new(message: impl Into<String>, instead: Option<String>) -> ParseError {
        let message = message.into();
        ParseError { message, instead }
    }
}

impl fmt::Display for ParseError {
    /// The message, [`INSTEAD`] and the suggestion, so that both survive a serde error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instead = self.instead.as_deref().unwrap_or_default();
        write!(f, "{}{INSTEAD}{instead}", self.message)
    }
}

/// Separates the two parts of a displayed [`ParseError`].
pub(super) const INSTEAD: &str = "; write: ";

/// A value that is configured as text.
pub(crate) trait Unit: Sized {
    fn parse(text: &str) -> Result<Self, ParseError>;
    /// The text of the value; [`Unit::parse`] reads it back.
    fn write(&self) -> String;
}

impl Unit for Duration {
    fn parse(text: &str) -> Result<Duration, ParseError> {
        parse_duration(text)
    }

    /// In the largest unit that is exact. Fractions of a millisecond are dropped.
    fn write(&self) -> String {
        let total = self.as_millis();
        let is_exact = |unit: u64| total > 0 && total.is_multiple_of(u128::from(unit));
        let unit = TIMES.iter().find(|(_, unit, _)| is_exact(*unit));
        unit.map_or("0s".to_owned(), |(name, unit, _)| {
            format!("{}{name}", total / u128::from(*unit))
        })
    }
}

/// `never` is `None`.
impl Unit for Option<Duration> {
    fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "never" => Ok(None),
            "" => Err(ParseError::new("is empty", Some("never".to_owned()))),
            _ => parse_duration(text).map(Some),
        }
    }

    fn write(&self) -> String {
        self.as_ref().map_or("never".to_owned(), Unit::write)
    }
}

/// The outer `None` is a key that is not set.
impl Unit for Option<Option<Duration>> {
    fn parse(text: &str) -> Result<Self, ParseError> {
        Unit::parse(text).map(Some)
    }

    fn write(&self) -> String {
        self.flatten().write()
    }
}

impl Unit for Bytes {
    fn parse(text: &str) -> Result<Bytes, ParseError> {
        parse_size(text)
    }

    /// In the exact unit with the shortest text.
    fn write(&self) -> String {
        let is_exact = |unit: u64| self.0.is_multiple_of(unit) && (self.0 > 0 || unit == 1);
        let exact = SIZES.iter().filter(|(_, unit, _)| is_exact(*unit));
        exact
            .map(|(name, unit, _)| format!("{}{name}", self.0 / unit))
            .min_by_key(String::len)
            .unwrap_or_default()
    }
}

impl Unit for BytesPerSecond {
    fn parse(text: &str) -> Result<BytesPerSecond, ParseError> {
        let (size, per) = text.split_once('/').unwrap_or((text, ""));
        let whole = |size: Bytes| Some(BytesPerSecond(size.0).write());
        match (parse_size(size), per) {
            (Ok(size), "s") => Ok(BytesPerSecond(size.0)),
            (Ok(size), "") => Err(ParseError::new("is not per second", whole(size))),
            (Ok(size), _) => Err(ParseError::new("is not a rate", whole(size))),
            (Err(error), _) => {
                let size = error.instead.and_then(|text| parse_size(&text).ok());
                Err(ParseError::new(error.message, size.and_then(whole)))
            }
        }
    }

    fn write(&self) -> String {
        format!("{}/s", Bytes(self.0).write())
    }
}

impl Unit for Share {
    /// With up to four decimals.
    fn parse(text: &str) -> Result<Share, ParseError> {
        common_error(text, "%")?;
        let share = |text: &str| {
            let number = text.strip_suffix('%')?;
            let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
            let is_decimal = is_digits(whole) && is_digits(rest) && rest.len() <= 4;
            // A number too long for `u32` is reported as too large.
            is_decimal.then(|| Share(format!("{whole}{rest:0<4}").parse().unwrap_or(u32::MAX)))
        };
        match share(text) {
            Some(share) if share <= Share::WHOLE => Ok(share),
            Some(_) => Err(ParseError::new("is more than 100%", None)),
            None => {
                let bare = text.replace(char::is_whitespace, "");
                let instead = share(&bare).map(|_| bare);
                Err(ParseError::new("is not a share", instead))
            }
        }
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Unit for SocketAddr {
    fn parse(text: &str) -> Result<SocketAddr, ParseError> {
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let valid = |address: String| address.parse::<SocketAddr>().is_ok().then_some(address);
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        // `::1:9843` is an IPv6 address without a port, but rarely meant as one.
        let bare = valid(format!("{text}:9843"));
        let bare = bare.or_else(|| valid(format!("[{text}]:9843")).filter(|_| port.len() < 4));
        if bare.is_some() {
            return Err(ParseError::new("has no port", bare));
        }
        let instead = valid(match host {
            "localhost" => format!("127.0.0.1:{port}"),
            "" | "*" => format!("0.0.0.0:{port}"),
            host => format!("[{host}]:{port}"),
        });
        let message = "is not a numeric address with a port";
        Err(ParseError::new(message, instead))
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// An empty text is `None`.
impl Unit for Option<PathBuf> {
    fn parse(text: &str) -> Result<Self, ParseError> {
        Ok((!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn write(&self) -> String {
        let path = self.as_ref().map(|path| path.to_string_lossy());
        path.unwrap_or_default().into_owned()
    }
}

impl Unit for Weekday {
    fn parse(text: &str) -> Result<Weekday, ParseError> {
        let days = Weekday::Monday.cycle_forward().take(7);
        let (names, days): (Vec<_>, Vec<_>) = days.map(|day| (day.write(), day)).unzip();
        if let Some(day) = names.iter().position(|name| name == text) {
            return Ok(days[day]);
        }
        let begin = text.get(..3).unwrap_or(text).to_lowercase();
        let near = nearest(&begin, names.iter().map(String::as_str));
        let is_word = text.chars().all(char::is_alphabetic);
        let instead = near.filter(|_| is_word).map(str::to_owned);
        Err(ParseError::new("is not a day", instead))
    }

    fn write(&self) -> String {
        format!("{self:?}").chars().take(3).collect()
    }
}

/// To the minute.
impl Unit for Time {
    fn parse(text: &str) -> Result<Time, ParseError> {
        let bare = text.replace(' ', "");
        let forms = ["%H:%M", "%H:%M:%S", "%I:%M%p", "%I%p", "%H"];
        let time = { forms.iter() }.find_map(|form| Time::strptime(form, &bare).ok());
        let instead = time.map(|time| time.write());
        time.filter(|_| instead.as_deref() == Some(text))
            .ok_or_else(|| ParseError::new("is not a time of day", instead))
    }

    fn write(&self) -> String {
        format!("{:02}:{:02}", self.hour(), self.minute())
    }
}

/// Parses a duration: whole numbers of `d`, `h`, `m`, `s`, `ms`, larger units first, none twice.
///
/// # Errors
/// If the text has another form, or the duration is longer than a hundred years.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    common_error(text, "s")?;
    let Some(total) = sum_of(text, TIMES) else {
        let instead = guess(text, TIMES).filter(|it| it != text && parse_duration(it).is_ok());
        return Err(ParseError::new("is not a duration", instead));
    };
    let duration = u64::try_from(total).ok().map(Duration::from_millis);
    duration
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| ParseError::new("is longer than 100 years", None))
}

/// Parses a size: a whole number and `B`, `KiB` … `EiB`, or `kB` (or `KB`), `MB` … `EB`.
///
/// # Errors
/// If the text has another form, or the size is 2^64 bytes or more.
pub fn parse_size(text: &str) -> Result<Bytes, ParseError> {
    common_error(text, "B")?;
    let is_one = parts(text).is_some_and(|parts| parts.len() == 1);
    let Some(total) = sum_of(&text.replace("KB", "kB"), SIZES).filter(|_| is_one) else {
        let instead = guess(text, SIZES).filter(|it| it != text && parse_size(it).is_ok());
        return Err(ParseError::new("is not a size", instead));
    };
    let bytes = u64::try_from(total).map(Bytes);
    bytes.map_err(|_| ParseError::new("is 16EiB or more", None))
}

/// The sum of numbers with units, in the order of `units`, none twice; `None` for other texts.
fn sum_of(text: &str, units: &Units) -> Option<u128> {
    let mut units = units.iter();
    let mut total: u128 = 0;
    for (number, unit) in parts(text)? {
        // Each search continues behind the unit found last, which rejects `30m1h` and `1h1h`.
        let (_, factor, _) = units.find(|(name, _, _)| *name == unit)?;
        // Only digits, so a number that does not parse is too large.
        let number: u128 = number.parse().unwrap_or(u128::MAX);
        total = total.saturating_add(number.saturating_mul(u128::from(*factor)));
    }
    Some(total)
}

/// The errors common to all kinds. `unit` is the most probable one for a bare number.
fn common_error(text: &str, unit: &str) -> Result<(), ParseError> {
    let digits = text.replace('_', "");
    match text {
        "" => Err(ParseError::new("is empty", None)),
        _ if text.starts_with('-') => Err(ParseError::new("is negative", None)),
        _ if is_digits(&digits) => {
            let instead = Some(format!("{digits}{unit}"));
            Err(ParseError::new("has no unit", instead))
        }
        _ => Ok(()),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Splits `1h30m` into numbers and units; `None` if they do not alternate or `text` is empty.
fn parts(mut text: &str) -> Option<Vec<(&str, &str)>> {
    let mut parts = Vec::new();
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let end = rest.find(|c: char| c.is_ascii_digit());
        let (unit, rest) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push((number, unit));
        text = rest;
    }
    let is_complete = !parts.is_empty() && parts.iter().all(|(number, _)| !number.is_empty());
    is_complete.then_some(parts)
}

/// The probable intention of `1 minute`, `64K`, `1_000 MB`.
fn guess(text: &str, units: &Units) -> Option<String> {
    let text = text.replace(|c: char| c.is_whitespace() || c == '_', "");
    let valid = |(number, unit): (&str, &str)| {
        let unit = unit.to_lowercase();
        let is_meant = |word: &str| word == unit;
        let (name, _, _) = units.iter().find(|(name, _, words)| {
            is_meant(&name.to_lowercase()) || words.split(' ').any(is_meant)
        })?;
        Some(format!("{number}{name}"))
    };
    parts(&text)?.into_iter().map(valid).collect()
}

#[cfg(test)]
mod tests;
