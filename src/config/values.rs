//! The kinds of values that a key can have: how each is read and written.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZoneDatabase;
use toml::Spanned;
use toml::de::DeValue;

use super::reader::{Field as _, Located, Name, Reader, nearest};
use super::settings::Zone;
use super::units::{
    Misfit, parse_duration, parse_factor, parse_share, parse_size, write_duration, write_factor,
    write_size,
};
use crate::model::path::shown;
use crate::model::{Bytes, Engine, ExtentCount, RescueStep, RuleAction, Severity, Share};

/// A kind of value.
pub(super) trait Value: Sized {
    /// The value that stands behind `key`. Nothing if it is none of this kind; then the reader was
    /// told why.
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self>;

    /// The value as TOML.
    fn write(&self) -> String;
}

/// A kind of value that is written in quotes.
pub(super) trait Text: Sized {
    /// What it is, with its article.
    const WHAT: &'static str;
    /// How it is written, as TOML.
    const EXAMPLE: &'static str;

    /// The value that the text stands for.
    fn from_text(text: &str) -> Result<Self, Misfit>;

    /// The text of the value.
    fn to_text(&self) -> String;
}

impl<T: Text> Value for T {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<T> {
        let (text, in_quotes) = reader.scalar(key, value, T::WHAT, T::EXAMPLE)?;
        let misfit = match T::from_text(&text) {
            Ok(fits) if in_quotes => return Some(fits),
            Ok(_) => Misfit::new("must stand in quotes", Some(text.into_owned())),
            Err(misfit) => misfit,
        };
        let instead = misfit.instead.as_deref().map(quoted);
        let proposal = instead.as_deref().unwrap_or(T::EXAMPLE);
        reader.misfit(key, value, &misfit.message, proposal);
        None
    }

    fn write(&self) -> String {
        literal(&self.to_text())
    }
}

impl Text for String {
    const WHAT: &'static str = "text";
    const EXAMPLE: &'static str = "\"text\"";

    fn from_text(text: &str) -> Result<String, Misfit> {
        Ok(text.to_owned())
    }

    fn to_text(&self) -> String {
        self.clone()
    }
}

impl Text for Duration {
    const WHAT: &'static str = "a duration";
    const EXAMPLE: &'static str = r#""90s", "5m", "12h" or "7d""#;

    fn from_text(text: &str) -> Result<Duration, Misfit> {
        parse_duration(text)
    }

    fn to_text(&self) -> String {
        write_duration(*self)
    }
}

/// A duration, or `never`, which is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OrNever(pub(super) Option<Duration>);

impl Text for OrNever {
    const WHAT: &'static str = "a duration or \"never\"";
    const EXAMPLE: &'static str = r#""90s", "5m", "12h", "7d" or "never""#;

    fn from_text(text: &str) -> Result<OrNever, Misfit> {
        match text {
            "never" => Ok(OrNever(None)),
            "" => Err(Misfit::new("is empty", Some("never".to_owned()))),
            _ => parse_duration(text).map(|duration| OrNever(Some(duration))),
        }
    }

    fn to_text(&self) -> String {
        self.0.map_or_else(|| "never".to_owned(), write_duration)
    }
}

impl Text for Bytes {
    const WHAT: &'static str = "a size";
    const EXAMPLE: &'static str = r#""4096B", "64KiB", "500MB" or "10GiB""#;

    fn from_text(text: &str) -> Result<Bytes, Misfit> {
        parse_size(text)
    }

    fn to_text(&self) -> String {
        write_size(*self)
    }
}

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Rate(pub(super) Bytes);

impl Text for Rate {
    const WHAT: &'static str = "a rate";
    const EXAMPLE: &'static str = r#""200MiB/s" or "1GiB/s""#;

    fn from_text(text: &str) -> Result<Rate, Misfit> {
        let (size, per) = text.split_once('/').unwrap_or((text, ""));
        let whole = |size: Bytes| Rate(size).to_text();
        match (parse_size(size), per) {
            (Ok(size), "s") => Ok(Rate(size)),
            (Ok(size), "") => Err(Misfit::new("is not per second", Some(whole(size)))),
            (Ok(size), _) => Err(Misfit::new("is not a rate", Some(whole(size)))),
            (Err(misfit), _) => {
                let instead = misfit.instead.and_then(|text| parse_size(&text).ok());
                Err(Misfit::new(misfit.message, instead.map(whole)))
            }
        }
    }

    fn to_text(&self) -> String {
        format!("{}/s", write_size(self.0))
    }
}

impl Text for Severity {
    const WHAT: &'static str = "a severity";
    const EXAMPLE: &'static str = r#""ok", "warning" or "critical""#;

    fn from_text(text: &str) -> Result<Severity, Misfit> {
        let all = [Severity::Ok, Severity::Warning, Severity::Critical];
        let severity = all.into_iter().find(|severity| severity.to_text() == text);
        severity.ok_or_else(|| Misfit::new("is not a severity", None))
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Text for Engine {
    const WHAT: &'static str = "an engine";
    const EXAMPLE: &'static str = r#""xfs_fsr" or "online""#;

    fn from_text(text: &str) -> Result<Engine, Misfit> {
        let engine = Engine::ALL
            .into_iter()
            .find(|engine| engine.as_str() == text);
        engine.ok_or_else(|| Misfit::new("is not an engine", None))
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Text for Share {
    const WHAT: &'static str = "a share";
    const EXAMPLE: &'static str = r#""5%" or "0.5%""#;

    fn from_text(text: &str) -> Result<Share, Misfit> {
        parse_share(text)
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Text for SocketAddr {
    const WHAT: &'static str = "an address with a port";
    const EXAMPLE: &'static str = r#""127.0.0.1:9843", or for IPv6 "[::1]:9843""#;

    fn from_text(text: &str) -> Result<SocketAddr, Misfit> {
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let misfit = |message, instead| Err(Misfit::new(message, instead));
        let host_and_port = text.rsplit_once(':');
        // `::1:9843` is an IPv6 address without a port; hardly ever is that what was meant.
        let has_port = host_and_port.is_some_and(|(_, port)| port.len() >= 4);
        if text.parse::<Ipv4Addr>().is_ok() {
            return misfit("has no port", Some(format!("{text}:9843")));
        }
        if text.parse::<Ipv6Addr>().is_ok() && !has_port {
            return misfit("has no port", Some(format!("[{text}]:9843")));
        }
        let instead = host_and_port.and_then(|(host, port)| {
            let host = match host {
                "localhost" => "127.0.0.1".to_owned(),
                "" | "*" => "0.0.0.0".to_owned(),
                host => format!("[{host}]"),
            };
            let address = format!("{host}:{port}");
            address.parse::<SocketAddr>().is_ok().then_some(address)
        });
        misfit("is not a numeric address with a port", instead)
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Text for RescueStep {
    const WHAT: &'static str = "a step";
    const EXAMPLE: &'static str = r#""drop_slab", "drop_all" or "compact_memory""#;

    fn from_text(text: &str) -> Result<RescueStep, Misfit> {
        let step = RescueStep::ALL
            .into_iter()
            .find(|step| step.as_str() == text);
        step.ok_or_else(|| Misfit::new("is not a step", None))
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Text for RuleAction {
    const WHAT: &'static str = "an action";
    const EXAMPLE: &'static str = r#""observe" or "rescue""#;

    fn from_text(text: &str) -> Result<RuleAction, Misfit> {
        match text {
            "observe" => Ok(RuleAction::Observe),
            "rescue" => Ok(RuleAction::Rescue),
            _ => Err(Misfit::new("is not an action", None)),
        }
    }

    fn to_text(&self) -> String {
        match self {
            RuleAction::Observe => "observe".to_owned(),
            RuleAction::Rescue => "rescue".to_owned(),
        }
    }
}

/// The days of the week as they are written.
const DAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];

impl Text for Weekday {
    const WHAT: &'static str = "a day";
    const EXAMPLE: &'static str = r#""Mon", "Tue", "Wed", "Thu", "Fri", "Sat" or "Sun""#;

    fn from_text(text: &str) -> Result<Weekday, Misfit> {
        let day = DAYS.iter().find(|(name, _)| *name == text);
        day.map(|(_, day)| *day)
            .ok_or_else(|| Misfit::new("is not a day", guess_day(text)))
    }

    fn to_text(&self) -> String {
        let day = DAYS.iter().find(|(_, day)| day == self);
        day.map(|(name, _)| (*name).to_owned()).unwrap_or_default()
    }
}

/// The day that was meant by `saturday`, `SAT`, `Sa`, `Thurs`.
fn guess_day(text: &str) -> Option<String> {
    const NAMES: [&str; 7] = [
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
    ];
    let text = text.to_lowercase();
    let begun = |name: &&str| text.len() >= 2 && name.starts_with(&text);
    let day = NAMES.into_iter().find(begun);
    let day = day.or_else(|| nearest(&text, &NAMES))?;
    let (first, rest) = day.get(..3)?.split_at(1);
    Some(format!("{}{rest}", first.to_uppercase()))
}

impl Text for Time {
    const WHAT: &'static str = "a time of day";
    const EXAMPLE: &'static str = r#""01:00" or "22:30""#;

    fn from_text(text: &str) -> Result<Time, Misfit> {
        let instead = || guess_time(text).map(|time| time.to_text());
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.split_once(':')
            .filter(|(hour, minute)| digits(hour) && digits(minute))
            .and_then(|_| guess_time(text))
            .ok_or_else(|| Misfit::new("is not a time of day", instead()))
    }

    fn to_text(&self) -> String {
        format!("{:02}:{:02}", self.hour(), self.minute())
    }
}

/// The time that was meant by `1:00`, `01:00:00`, `24:00`, `1am`, `3 PM`, `22`.
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
    // Seconds are dropped: windows are to the minute.
    Time::new(hour, minute, 0, 0).ok()
}

impl Text for Zone {
    const WHAT: &'static str = "a time zone";
    const EXAMPLE: &'static str = r#""local", "UTC" or an IANA name such as "Europe/Berlin""#;

    fn from_text(text: &str) -> Result<Zone, Misfit> {
        let is_none = || Misfit::new("is not a time zone", guess_zone(text));
        Zone::named(text).ok_or_else(is_none)
    }

    fn to_text(&self) -> String {
        self.name().to_owned()
    }
}

/// The zone that was meant by `Berlin`, `Europe/Berln`, `New York`, `Local`.
fn guess_zone(text: &str) -> Option<String> {
    let text = text.to_lowercase().replace(' ', "_");
    let mut names: Vec<String> = jiff::tz::db()
        .available()
        .chain(TimeZoneDatabase::bundled().available())
        .map(|zone| zone.to_string())
        .collect();
    names.sort_unstable();
    names.dedup();
    let lower: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
    // Berlin is at the end of Europe/Berlin.
    let city = |name: &String| name.rsplit('/').next() == Some(text.as_str());
    if let Some(at) = lower.iter().position(city) {
        return names.get(at).cloned();
    }
    let known: Vec<&str> = std::iter::once("local")
        .chain(lower.iter().map(String::as_str))
        .collect();
    let near = nearest(&text, &known)?;
    let found = std::iter::zip(&lower, &names).find(|(lower, _)| *lower == near);
    Some(found.map_or_else(|| near.to_owned(), |(_, name)| name.clone()))
}

/// A date stands without quotes: TOML knows dates.
impl Value for Date {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self> {
        const EXAMPLE: &str = "2026-12-20";
        let (text, in_quotes) = reader.scalar(key, value, "a date", EXAMPLE)?;
        // What stands before the time of day, if there is one.
        let date = text.split(['T', 't', ' ']).next().unwrap_or_default();
        let proposal = match date.parse::<Date>() {
            Ok(date) if !in_quotes && is_date(&text) => return Some(date),
            Ok(date) => date.write(),
            Err(_) => EXAMPLE.to_owned(),
        };
        let message = match is_date(&text) {
            true if in_quotes => "must stand without quotes",
            true => "is on no calendar",
            false => "is not a date",
        };
        reader.misfit(key, value, message, &proposal);
        None
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// Whether a text has the form of a date as TOML writes it.
fn is_date(text: &str) -> bool {
    let form = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    text.len() == 10 && text.bytes().enumerate().all(form)
}

impl Value for bool {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<bool> {
        const EXAMPLE: &str = "true or false";
        let (text, in_quotes) = reader.scalar(key, value, EXAMPLE, EXAMPLE)?;
        match text.as_ref() {
            "true" if !in_quotes => return Some(true),
            "false" if !in_quotes => return Some(false),
            _ => {}
        }
        let proposal = guess_bool(&text).map(|guess| guess.write());
        let message = match text.as_ref() {
            "true" | "false" => "must stand without quotes",
            _ => "is neither true nor false",
        };
        let proposal = proposal.as_deref().unwrap_or(EXAMPLE);
        reader.misfit(key, value, message, proposal);
        None
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// What was meant by `yes`, `On`, `1`.
fn guess_bool(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" | "enabled" => Some(true),
        "false" | "no" | "n" | "off" | "0" | "disabled" | "never" => Some(false),
        _ => None,
    }
}

impl Value for ExtentCount {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self> {
        read_count(key, value, reader, u64::MAX, "500_000").map(ExtentCount)
    }

    fn write(&self) -> String {
        write_count(self.0)
    }
}

/// A number of extents, or `"never"`, which is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct CountOrNever(pub(super) Option<ExtentCount>);

impl Value for CountOrNever {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self> {
        if value.get_ref().as_str() == Some("never") {
            return Some(CountOrNever(None));
        }
        let count = read_count(key, value, reader, u64::MAX, "250_000 or \"never\"")?;
        Some(CountOrNever(Some(ExtentCount(count))))
    }

    fn write(&self) -> String {
        self.0
            .map_or_else(|| "\"never\"".to_owned(), |count| count.write())
    }
}

/// A share that is written as a number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Factor(pub(super) Share);

impl Value for Factor {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self> {
        const EXAMPLE: &str = "0.9";
        let (text, in_quotes) = reader.scalar(key, value, "a number", EXAMPLE)?;
        let factor = parse_factor(&text).map(Factor);
        let misfit = match (factor, parse_share(&text)) {
            (Some(factor), _) if !in_quotes => return Some(factor),
            (Some(factor), _) => ("must stand without quotes", Some(factor)),
            (None, Ok(share)) => ("is not a number", Some(Factor(share))),
            (None, Err(_)) => ("is not a number from 0 to 1", None),
        };
        let proposal = misfit
            .1
            .map_or_else(|| EXAMPLE.to_owned(), |factor| factor.write());
        reader.misfit(key, value, misfit.0, &proposal);
        None
    }

    fn write(&self) -> String {
        write_factor(self.0)
    }
}

impl Value for u32 {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self> {
        let number = read_count(key, value, reader, u64::from(u32::MAX), "120")?;
        u32::try_from(number).ok()
    }

    fn write(&self) -> String {
        write_count(u64::from(*self))
    }
}

/// A whole number of at most `most`.
fn read_count(
    key: &Name,
    value: &Spanned<DeValue<'_>>,
    reader: &mut Reader<'_>,
    most: u64,
    example: &str,
) -> Option<u64> {
    let (text, _) = reader.scalar(key, value, "a whole number", example)?;
    let DeValue::Integer(integer) = value.get_ref() else {
        let number = guess_count(&text).map(write_count);
        let proposal = number.as_deref().unwrap_or(example);
        reader.misfit(key, value, "is not a whole number", proposal);
        return None;
    };
    let message = match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(number) if number <= most => return Some(number),
        Err(_) if integer.as_str().starts_with('-') => "is negative",
        _ => "is too large",
    };
    reader.misfit(key, value, message, example);
    None
}

fn write_count(number: u64) -> String {
    ExtentCount(number).to_string().replace(',', "_")
}

/// The number that was meant by `"500000"`, `500k`, `5 M`, `1,000`.
fn guess_count(text: &str) -> Option<u64> {
    let text: String = text
        .chars()
        .filter(|c| !matches!(c, ' ' | ',' | '_'))
        .collect();
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1000),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1_000_000),
            None => (text.as_str(), 1),
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

impl<T: Value> Value for Vec<Located<T>> {
    fn read(key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) -> Option<Self> {
        const EXAMPLE: &str = "[\"…\", \"…\"]";
        let DeValue::Array(array) = value.get_ref() else {
            let (text, _) = reader.scalar(key, value, "a list", EXAMPLE)?;
            reader.misfit(key, value, "is not a list", &format!("[{}]", quoted(&text)));
            return None;
        };
        // An item that does not fit is left out, so that the others are still checked.
        let items = array.iter().filter_map(|item| {
            let mut located: Option<Located<T>> = None;
            located.read(&key.item(), item, reader);
            located
        });
        Some(items.collect())
    }

    fn write(&self) -> String {
        let items: Vec<String> = self.iter().map(|item| item.value.write()).collect();
        format!("[{}]", items.join(", "))
    }
}

/// The text as TOML, in quotes and on one line. What could upset a terminal is escaped, as
/// [`shown`] does it.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
            quoted.push(character);
        } else if is_plain(character) {
            quoted.push(character);
        } else {
            quoted.push_str(&format!("\\U{:08X}", u32::from(character)));
        }
    }
    quoted.push('"');
    quoted
}

/// The text as TOML in which a backslash stands for itself, if there is one and that can be: so
/// can a regular expression be read.
pub(super) fn literal(text: &str) -> String {
    let fits = |character| character != '\'' && is_plain(character);
    if text.contains(['\\', '"']) && text.chars().all(fits) {
        format!("'{text}'")
    } else {
        quoted(text)
    }
}

/// Whether a character can upset no terminal.
fn is_plain(character: char) -> bool {
    let mut buffer = [0; 4];
    let alone: &str = character.encode_utf8(&mut buffer);
    character == '\\' || shown(std::path::Path::new(alone)) == alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            let expected = Misfit::new(message, instead.map(str::to_owned));
            assert_eq!(SocketAddr::from_text(text), Err(expected), "{text}");
        }
        assert!(SocketAddr::from_text("[::1]:9843").is_ok());
    }

    #[test]
    fn a_rate_is_a_size_per_second() {
        let rate = Rate(Bytes(200 << 20));
        assert_eq!(Rate::from_text("200MiB/s"), Ok(rate));
        assert_eq!(rate.to_text(), "200MiB/s");
        for (text, message, instead) in [
            ("200MiB", "is not per second", Some("200MiB/s")),
            ("200MiB/h", "is not a rate", Some("200MiB/s")),
            ("200", "has no unit", Some("200B/s")),
            ("200 MiB/s", "is not a size", Some("200MiB/s")),
            ("fast", "is not a size", None),
        ] {
            let expected = Misfit::new(message, instead.map(str::to_owned));
            assert_eq!(Rate::from_text(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_number_as_people_write_it_is_understood() {
        assert_eq!(guess_count("500000"), Some(500_000));
        assert_eq!(guess_count("500k"), Some(500_000));
        assert_eq!(guess_count("5 M"), Some(5_000_000));
        assert_eq!(guess_count("1,000"), Some(1000));
        assert_eq!(guess_count("many"), None);
        assert_eq!(guess_count("99999999999999999999M"), None);
    }

    #[test]
    fn yes_and_no_are_understood() {
        assert_eq!(guess_bool("Yes"), Some(true));
        assert_eq!(guess_bool("1"), Some(true));
        assert_eq!(guess_bool("OFF"), Some(false));
        assert_eq!(guess_bool("2"), None);
    }

    #[test]
    fn every_word_is_listed_where_one_is_asked_for() {
        for step in RescueStep::ALL {
            assert!(RescueStep::EXAMPLE.contains(&step.write()), "{step}");
            assert_eq!(RescueStep::from_text(step.as_str()), Ok(step));
        }
        for engine in Engine::ALL {
            assert!(Engine::EXAMPLE.contains(&engine.write()));
            assert_eq!(Engine::from_text(engine.as_str()), Ok(engine));
        }
        for severity in [Severity::Ok, Severity::Warning, Severity::Critical] {
            assert!(Severity::EXAMPLE.contains(&severity.write()));
            assert_eq!(Severity::from_text(&severity.to_text()), Ok(severity));
        }
        for action in [RuleAction::Observe, RuleAction::Rescue] {
            assert!(RuleAction::EXAMPLE.contains(&action.write()));
            assert_eq!(RuleAction::from_text(&action.to_text()), Ok(action));
        }
    }

    #[test]
    fn backslashes_are_not_doubled_without_need() {
        assert_eq!(literal(r#"^md\d+: "x""#), r#"'^md\d+: "x"'"#);
        assert_eq!(literal("plain"), r#""plain""#);
        assert_eq!(literal(r"it's \d"), r#""it's \\d""#);
        assert_eq!(literal("\\d\n"), r#""\\d\U0000000A""#);
    }

    #[test]
    fn quotes_hold_everything() {
        assert_eq!(quoted(r#"a "b" \c é"#), r#""a \"b\" \\c é""#);
        assert_eq!(quoted("\n\u{202e}"), r#""\U0000000A\U0000202E""#);
    }

    proptest! {
        #[test]
        fn a_quoted_text_reads_back(text: String) {
            let document = format!("a = {}\nb = {}", quoted(&text), literal(&text));
            let table: toml::Table = document.parse().unwrap();
            prop_assert_eq!(table["a"].as_str(), Some(text.as_str()));
            prop_assert_eq!(table["b"].as_str(), Some(text.as_str()));
            prop_assert!(!document.replacen('\n', "", 1).contains(char::is_control));
        }
    }
}
