//! Durations, sizes, shares, times and addresses as configured: `90s`, `1h30m`, `64KiB`, `5%`,
//! `01:00`. A number without a unit is an error, which suggests what to write. Values read back as
//! written.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Time, Weekday};

use super::text::nearest;
use crate::model::{Bytes, Share};

/// Milliseconds of each unit of time, largest first: the order of the units in `1h30m`.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// A hundred years. Longer durations are mistakes, and could overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(36_500 * 86_400);

/// Bytes of each unit of size, largest first; binary before decimal, which breaks ties in length.
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

const DAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];

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
        ParseError {
            message: message.into(),
            instead,
        }
    }
}

impl fmt::Display for ParseError {
    /// The message, [`INSTEAD`] and the suggestion, so that both survive a serde error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{INSTEAD}", self.message)?;
        f.write_str(self.instead.as_deref().unwrap_or_default())
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
        let milliseconds = self.as_millis();
        TIME_UNITS
            .iter()
            .find(|(_, unit)| milliseconds > 0 && milliseconds.is_multiple_of(u128::from(*unit)))
            .map_or("0s".to_owned(), |(name, unit)| {
                format!("{}{name}", milliseconds / u128::from(*unit))
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
        SIZE_UNITS
            .iter()
            .filter(|(_, unit)| self.0.is_multiple_of(*unit) && (self.0 > 0 || *unit == 1))
            .map(|(name, unit)| format!("{}{name}", self.0 / unit))
            .min_by_key(String::len)
            .unwrap_or_default()
    }
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Rate(pub(super) Bytes);

impl Unit for Rate {
    fn parse(text: &str) -> Result<Rate, ParseError> {
        let (size, per) = text.split_once('/').unwrap_or((text, ""));
        let whole = |size: Bytes| Some(Rate(size).write());
        match (parse_size(size), per) {
            (Ok(size), "s") => Ok(Rate(size)),
            (Ok(size), "") => Err(ParseError::new("is not per second", whole(size))),
            (Ok(size), _) => Err(ParseError::new("is not a rate", whole(size))),
            (Err(error), _) => {
                let size = error.instead.and_then(|text| parse_size(&text).ok());
                Err(ParseError::new(error.message, size.and_then(whole)))
            }
        }
    }

    fn write(&self) -> String {
        format!("{}/s", self.0.write())
    }
}

impl Unit for Share {
    /// With up to four decimals.
    fn parse(text: &str) -> Result<Share, ParseError> {
        if let Some(error) = common_error(text, "%") {
            return Err(error);
        }
        let share = |text: &str| {
            let (whole, rest) = text.strip_suffix('%').map(|number| {
                let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
                (whole.to_owned(), rest.to_owned())
            })?;
            let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let is_decimal = digits(&whole) && digits(&rest) && rest.len() <= 4;
            // A number too long for `u32` is reported as too large.
            is_decimal.then(|| format!("{whole}{rest:0<4}").parse().unwrap_or(u32::MAX))
        };
        match share(text) {
            Some(millionths) if Share(millionths) <= Share::WHOLE => Ok(Share(millionths)),
            Some(_) => Err(ParseError::new("is more than 100%", None)),
            None => {
                let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
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
        let host_and_port = text.rsplit_once(':');
        // `::1:9843` is an IPv6 address without a port, but rarely meant as one.
        let has_port = host_and_port.is_some_and(|(_, port)| port.len() >= 4);
        let no_port = |instead| Err(ParseError::new("has no port", Some(instead)));
        if text.parse::<Ipv4Addr>().is_ok() {
            return no_port(format!("{text}:9843"));
        }
        if text.parse::<Ipv6Addr>().is_ok() && !has_port {
            return no_port(format!("[{text}]:9843"));
        }
        let instead = host_and_port.and_then(|(host, port)| {
            let address = match host {
                "localhost" => format!("127.0.0.1:{port}"),
                "" | "*" => format!("0.0.0.0:{port}"),
                host => format!("[{host}]:{port}"),
            };
            address.parse::<SocketAddr>().is_ok().then_some(address)
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
        let day = DAYS.iter().find(|(name, _)| *name == text);
        day.map(|(_, day)| *day)
            .ok_or_else(|| ParseError::new("is not a day", guess_day(text)))
    }

    fn write(&self) -> String {
        let day = DAYS.iter().find(|(_, day)| day == self);
        day.map(|(name, _)| (*name).to_owned()).unwrap_or_default()
    }
}

/// To the minute.
impl Unit for Time {
    fn parse(text: &str) -> Result<Time, ParseError> {
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let time = guess_time(text);
        match text.split_once(':') {
            Some((hour, minute)) if digits(hour) && digits(minute) => time,
            _ => None,
        }
        .ok_or_else(|| ParseError::new("is not a time of day", time.map(|time| time.write())))
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
    if let Some(error) = common_error(text, "s") {
        return Err(error);
    }
    match sum_of(text, &TIME_UNITS) {
        Some(total) => u64::try_from(total)
            .ok()
            .map(Duration::from_millis)
            .filter(|duration| *duration <= MAX_DURATION)
            .ok_or_else(|| ParseError::new("is longer than 100 years", None)),
        None => {
            let guess =
                guess(text, time_unit).filter(|it| it != text && parse_duration(it).is_ok());
            Err(ParseError::new("is not a duration", guess))
        }
    }
}

/// Parses a size: a whole number and `B`, `KiB` … `EiB`, or `kB` (or `KB`), `MB` … `EB`.
///
/// # Errors
/// If the text has another form, or the size is 2^64 bytes or more.
pub fn parse_size(text: &str) -> Result<Bytes, ParseError> {
    if let Some(error) = common_error(text, "B") {
        return Err(error);
    }
    let one = parts(text).is_some_and(|parts| parts.len() == 1);
    match sum_of(&text.replace("KB", "kB"), &SIZE_UNITS).filter(|_| one) {
        Some(bytes) => u64::try_from(bytes)
            .map(Bytes)
            .map_err(|_| ParseError::new("is 16EiB or more", None)),
        None => {
            let guess = guess(text, size_unit).filter(|it| it != text && parse_size(it).is_ok());
            Err(ParseError::new("is not a size", guess))
        }
    }
}

/// The sum of numbers with units, in the order of `units`, none twice; `None` for other texts.
fn sum_of(text: &str, units: &[(&str, u64)]) -> Option<u128> {
    let mut units = units.iter();
    let mut total: u128 = 0;
    for (number, unit) in parts(text)? {
        // Each search continues behind the unit found last, which rejects `30m1h` and `1h1h`.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        // Only digits, so a number that does not parse is too large.
        let number: u128 = number.parse().unwrap_or(u128::MAX);
        total = total.saturating_add(number.saturating_mul(u128::from(*factor)));
    }
    Some(total)
}

/// The errors common to all kinds. `unit` is the most probable one for a bare number.
fn common_error(text: &str, unit: &str) -> Option<ParseError> {
    if text.is_empty() {
        return Some(ParseError::new("is empty", None));
    }
    if text.starts_with('-') {
        return Some(ParseError::new("is negative", None));
    }
    let digits = text.replace('_', "");
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| ParseError::new("has no unit", Some(format!("{digits}{unit}"))))
}

/// Splits `1h30m` into numbers and units; `None` if they do not alternate or `text` is empty.
fn parts(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, behind) = rest.split_at(unit_at);
        let end = behind.find(|c: char| c.is_ascii_digit());
        let (unit, behind) = behind.split_at(end.unwrap_or(behind.len()));
        if number.is_empty() {
            return None;
        }
        parts.push((number, unit));
        rest = behind;
    }
    (!parts.is_empty()).then_some(parts)
}

/// The probable intention of `1 minute`, `64K`, `1_000 MB`; `known` maps units to valid ones.
fn guess(text: &str, known: impl Fn(&str) -> Option<&'static str>) -> Option<String> {
    let is_kept = |c: &char| !c.is_whitespace() && *c != '_';
    let text: String = text.chars().filter(is_kept).collect();
    parts(&text)?
        .into_iter()
        .map(|(number, unit)| known(unit).map(|unit| format!("{number}{unit}")))
        .collect()
}

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

/// The unit of size meant by `gib`, `gb`, `G`, `bytes`.
fn size_unit(unit: &str) -> Option<&'static str> {
    let unit = unit.to_lowercase();
    if matches!(unit.as_str(), "byte" | "bytes") {
        return Some("B");
    }
    // A single letter is binary, as in qemu-img and truncate.
    SIZE_UNITS.iter().map(|(name, _)| *name).find(|name| {
        let name = name.to_lowercase();
        name == unit || name.strip_suffix("ib") == Some(unit.as_str())
    })
}

/// The day meant by `saturday`, `SAT`, `Sa`, `Thurs`.
fn guess_day(text: &str) -> Option<String> {
    const NAMES: [&str; 7] = [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
    ];
    let text = text.to_lowercase();
    let begun = |name: &&str| text.len() >= 2 && name.to_lowercase().starts_with(&text);
    let day = NAMES.into_iter().find(begun);
    let day = day.or_else(|| nearest(&text, NAMES))?;
    day.get(..3).map(str::to_owned)
}

/// The time meant by `1:00`, `01:00:00`, `24:00`, `1am`, `3 PM`, `22`.
fn guess_time(text: &str) -> Option<Time> {
    let text = text.to_lowercase();
    let (text, noon) = match (text.strip_suffix("am"), text.strip_suffix("pm")) {
        (Some(text), _) => (text, Some(0)),
        (_, Some(text)) => (text, Some(12)),
        _ => (text.as_str(), None),
    };
    let mut parts = text.trim().split(':');
    let hour: i8 = parts.next()?.parse().ok()?;
    let minute: i8 = parts.next().unwrap_or("0").parse().ok()?;
    let hour = match (noon, hour) {
        (Some(noon), 1..=12) => hour % 12 + noon,
        (Some(_), _) => return None,
        (None, 24) if minute == 0 => 0,
        (None, hour) => hour,
    };
    // Seconds are dropped: windows have a resolution of one minute.
    Time::new(hour, minute, 0, 0).ok()
}

#[cfg(test)]
mod tests;
