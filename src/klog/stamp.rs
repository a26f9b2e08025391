//! The time at the head of a log line: the words in which it is written, and its age. Pure.
//!
//! ```text
//! Feb 11 04:05:06   févr. 11 04:05:06   11 août 04:05:06   2027 Feb 11 04:05:06.123
//! Thu Feb 11 04:05:06 2027   Thu 2027-02-11 04:05:06 CET   2027-02-11 04:05:06
//! 2027-02-11T04:05:06.123456+01:00   20270211040506   1802228706.123456
//! ```
//!
//! Month names of other languages are recognised by their place. Which month they name is not known.

use jiff::Zoned;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{Offset, TimeZone};

use super::record::split_once;
use crate::sys::proc::number;

/// Age in seconds beyond which a line does not report the present. A clock may be minutes off, and
/// a writer may wait for a disk.
const OLD: i64 = 600;
/// Maximum number of words before the time of day: weekday, `de`, month, day, year.
const DATE_WORDS: u8 = 5;
const MONTHS: [&[u8]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// The time of a line, as far as the line states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// Seconds since 1970.
    Unix(i64),
    /// A local time.
    Civil {
        /// `None` if not written.
        year: Option<i16>,
        /// `None` if its name is not English.
        month: Option<i8>,
        /// Day of the month.
        day: i8,
        /// Time of day.
        time: Time,
        /// `None` if unknown.
        zone: Option<Offset>,
    },
}

impl Stamp {
    /// Whether the line was written long before `now`. What the line does not state (year, month,
    /// zone: local or UTC) is taken so that the time is nearest to `now`.
    pub fn is_old(&self, now: &Zoned) -> bool {
        let ages = self.readings(now).into_iter();
        let ages = ages.map(|at| now.timestamp().as_second().saturating_sub(at));
        ages.min_by_key(|age| age.unsigned_abs())
            .is_some_and(|age| age > OLD)
    }

    /// Every time that the stamp may mean, in seconds since 1970.
    fn readings(&self, now: &Zoned) -> Vec<i64> {
        let (year, month, day, time, zone) = match *self {
            Stamp::Unix(seconds) => return vec![seconds],
            Stamp::Civil {
                year,
                month,
                day,
                time,
                zone,
            } => (year, month, day, time, zone),
        };
        let zones = match zone {
            Some(zone) => vec![zone.to_time_zone()],
            None => vec![now.time_zone().clone(), TimeZone::UTC],
        };
        let years = year.map_or(now.year() - 1..=now.year() + 1, |year| year..=year);
        let months = month.map_or(1..=12, |month| month..=month);
        let dates = years.flat_map(|year| {
            let months = months.clone();
            months.filter_map(move |month| Date::new(year, month, day).ok())
        });
        let times = dates.map(|date| DateTime::from_parts(date, time));
        let readings = times.flat_map(|time| zones.iter().map(move |zone| seconds(time, zone)));
        readings.flatten().collect()
    }
}

/// Of two local times of that name, the later one.
fn seconds(time: DateTime, zone: &TimeZone) -> Option<i64> {
    let at = zone.to_ambiguous_timestamp(time).later().ok()?;
    Some(at.as_second())
}

/// A time at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamped<'a> {
    /// The time.
    pub stamp: Stamp,
    /// Whether it has the form of `dmesg --time-format iso`, whose fraction follows a comma.
    pub is_dmesg: bool,
    /// What follows, without the blank in between.
    pub rest: &'a [u8],
}

/// Parses the time at the start of a text.
pub fn parse(text: &[u8]) -> Option<Stamped<'_>> {
    let mut date = DateWords::default();
    let (mut word, mut rest) = next_word(text);
    if let Some(stamp) = digits_only(word) {
        return stamped(stamp, false, rest);
    }
    for _ in 0..=DATE_WORDS {
        if let Some((time, is_dmesg)) = time_of_day(&mut date, word) {
            rest = date.after_time(rest);
            return stamped(date.stamp(time)?, is_dmesg, rest);
        }
        date.take(word)?;
        (word, rest) = next_word(rest.trim_ascii_start());
    }
    None
}

/// The end of the line is as good as a blank.
fn stamped(stamp: Stamp, is_dmesg: bool, rest: &[u8]) -> Option<Stamped<'_>> {
    let rest = match rest {
        [] => rest,
        _ => rest.strip_prefix(b" ")?,
    };
    Some(Stamped {
        stamp,
        is_dmesg,
        rest,
    })
}

/// The time of `dmesg --reltime`: `Feb10 04:05`.
pub fn parse_short(text: &[u8]) -> Option<Stamp> {
    let (date, time) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let time = clock(&[time.strip_prefix(b" ")?, b":00"].concat())?.0;
    let (name, day) = date.split_at_checked(date.len().checked_sub(2)?)?;
    let mut date = DateWords::default();
    for word in name
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
    {
        date.take(word)?;
    }
    date.take(day.trim_ascii())?;
    date.stamp(time)
}

fn next_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| *byte == b' ');
    text.split_at_checked(end.unwrap_or(text.len()))
        .unwrap_or_default()
}

/// `1802228706.123456`, or rsyslog's `date-mysql`: `20270211040506`.
fn digits_only(word: &[u8]) -> Option<Stamp> {
    let (whole, part) = split_once(word, b'.').unwrap_or((word, b"0"));
    number(part)?;
    match whole.len() {
        9 | 10 => Some(Stamp::Unix(i64::try_from(number(whole)?).ok()?)),
        14 => {
            let two = |at: usize| small(whole.get(at..at + 2)?);
            let mut date = DateWords::default();
            date.set(whole.get(..4)?, whole.get(4..6)?, whole.get(6..8)?)?;
            date.stamp(Time::new(two(8)?, two(10)?, two(12)?, 0).ok()?)
        }
        _ => None,
    }
}

/// A number of one or two digits.
fn small(digits: &[u8]) -> Option<i8> {
    let value = (digits.len() <= 2).then(|| number(digits))??;
    i8::try_from(value).ok()
}

/// `04:05:06` or `2027-02-11T04:05:06`, with fraction and zone; and whether dmesg writes it so.
fn time_of_day(date: &mut DateWords, word: &[u8]) -> Option<(Time, bool)> {
    let (day, word) = match word.get(10) {
        Some(b'T' | b't' | b'_') => (word.get(..10), word.get(11..)?),
        _ => (None, word),
    };
    let (time, comma, zone) = clock(word)?;
    if let Some(day) = day {
        date.take(day).filter(|()| date.is_iso)?;
    }
    date.zone = zone;
    Some((time, comma && day.is_some() && zone.is_some()))
}

fn clock(word: &[u8]) -> Option<(Time, bool, Option<Offset>)> {
    let (hour, rest) = split_once(word, b':')?;
    let (minute, rest) = split_once(rest, b':')?;
    let (second, rest) = rest.split_at_checked(2)?;
    if minute.len() != 2 {
        return None;
    }
    // A leap second is the one before.
    let second = small(second)?.min(if second == b"60" { 59 } else { i8::MAX });
    let time = Time::new(small(hour)?, small(minute)?, second, 0).ok()?;
    let (comma, zone) = match rest {
        [separator @ (b'.' | b','), fraction @ ..] => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit());
            let (_, zone) = fraction
                .split_at_checked(digits.count())
                .filter(|(digits, _)| !digits.is_empty())?;
            (*separator == b',', zone)
        }
        zone => (false, zone),
    };
    let zone = match zone {
        [] => None,
        zone => Some(offset(zone)?),
    };
    Some((time, comma, zone))
}

/// `Z`, `+01`, `+0100` or `+01:00`.
fn offset(zone: &[u8]) -> Option<Offset> {
    let (sign, rest) = match zone {
        b"Z" | b"z" | b"UTC" | b"GMT" => return Some(Offset::UTC),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, rest) = rest.split_at_checked(2)?;
    let minutes = match rest.strip_prefix(b":").unwrap_or(rest) {
        [] => 0,
        minutes if minutes.len() == 2 => small(minutes)?,
        _ => return None,
    };
    let seconds = i32::from(small(hours)?) * 3600 + i32::from(minutes) * 60;
    Offset::from_seconds(sign * seconds).ok()
}

/// The words of a date, as far as read.
#[derive(Debug, Clone, Copy, Default)]
struct DateWords {
    year: Option<i16>,
    month: Option<i8>,
    day: Option<i8>,
    zone: Option<Offset>,
    /// Number of words that are a name.
    names: u8,
    is_iso: bool,
}

impl DateWords {
    /// Takes the next word; `None` if it is not one of a date.
    fn take(&mut self, word: &[u8]) -> Option<()> {
        let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, suffix) = word.split_at_checked(digits)?;
        // `11.` in German, `2月` in Japanese, `2-р` in Mongolian.
        let is_suffix = |byte: &u8| !byte.is_ascii() || b".,-".contains(byte);
        match digits.len() {
            4 if word.len() == 10 => self.take_iso(word),
            0 => self.take_name(word),
            _ if !suffix.iter().all(is_suffix) => None,
            4 if self.year.is_none() => self.set_year(digits),
            1 | 2 => {
                self.names += u8::from(!suffix.is_ascii());
                // Of two numbers, the first one is the month: `2月 11`, Vietnamese `Thg 2 11`.
                self.month = self.day.or(self.month);
                self.day = Some(small(digits)?);
                Some(())
            }
            _ => None,
        }
    }

    /// `2027-02-11` or `2027/02/11`.
    fn take_iso(&mut self, word: &[u8]) -> Option<()> {
        let separator = *word.get(4).filter(|byte| b"-/".contains(byte))?;
        let mut parts = word.split(|byte| *byte == separator);
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        self.set(year, month, day)
    }

    fn set(&mut self, year: &[u8], month: &[u8], day: &[u8]) -> Option<()> {
        self.month = Some(small(month).filter(|month| (1..=12).contains(month))?);
        self.day = Some(small(day)?);
        self.is_iso = true;
        self.set_year(year)
    }

    fn set_year(&mut self, digits: &[u8]) -> Option<()> {
        let year = i16::try_from(number(digits)?).ok()?;
        self.year = Some(Some(year).filter(|year| (1970..=2199).contains(year))?);
        Some(())
    }

    fn take_name(&mut self, word: &[u8]) -> Option<()> {
        let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || !byte.is_ascii();
        // Vietnamese writes `T5 Th02`, Tibetan `ཟླ་2`.
        let may_count = word.starts_with(b"T") && word.len() <= 4 || !word.is_ascii();
        let is_name = |byte: &u8| {
            is_letter(byte) || b".,'-".contains(byte) || may_count && byte.is_ascii_digit()
        };
        if !word.first().is_some_and(is_letter) || !word.iter().all(is_name) || word.len() > 32 {
            return None;
        }
        self.names += 1;
        if !self.is_iso {
            // The last name is the month, the one before it the weekday.
            let months = (1..).zip(MONTHS);
            self.month = months
                .filter(|(_, month)| *month == word)
                .map(|(number, _)| number)
                .last();
        }
        Some(())
    }

    /// Takes a year and a zone that follow the time of day. Returns what follows them.
    fn after_time<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let mut rest = text;
        for _ in 0..2 {
            let Some(inside) = rest.strip_prefix(b" ") else {
                break;
            };
            let (word, after) = next_word(inside);
            let is_year = word.len() == 4 && self.year.is_none() && self.set_year(word).is_some();
            // A name may be that of the host, except in a form that has a zone.
            let named = self.names + u8::from(self.is_iso) > 1
                && (2..=5).contains(&word.len())
                && word.iter().all(u8::is_ascii_uppercase);
            let is_offset = matches!(word, [b'+' | b'-', ..]) && offset(word).is_some();
            if !(is_year || named || is_offset) {
                break;
            }
            if !is_year {
                self.zone = offset(word).or(self.zone);
            }
            rest = after;
        }
        rest
    }

    fn stamp(&self, time: Time) -> Option<Stamp> {
        (self.is_iso || self.names > 0).then_some(())?;
        Some(Stamp::Civil {
            year: self.year,
            month: self.month,
            day: self.day.filter(|day| (1..=31).contains(day))?,
            time,
            zone: self.zone,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan as _;
    use proptest::prelude::*;

    fn stamp(text: &str) -> Option<Stamp> {
        parse(text.as_bytes()).map(|stamped| stamped.stamp)
    }

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    #[test]
    fn a_line_is_old_only_if_the_nearest_of_its_times_is() {
        let berlin = |time: &str| at(&format!("{time}[Europe/Berlin]"));
        for (text, now, is_old) in [
            (
                "2026-02-03T01:02:03+00:00",
                berlin("2026-11-20T22:58:01"),
                true,
            ),
            ("2026-02-03 01:02:03", berlin("2026-11-20T22:58:01"), true),
            (
                "2026-11-20T22:58:01+01:00",
                berlin("2026-11-20T23:03:01"),
                false,
            ),
            (
                "2026-11-20T22:58:01+01:00",
                berlin("2026-11-20T23:08:02"),
                true,
            ),
            // A clock that is ahead.
            (
                "2026-11-20T22:58:01+01:00",
                berlin("2026-11-20T22:53:01"),
                false,
            ),
            (
                "2027-11-20T22:58:01+01:00",
                berlin("2026-11-20T22:58:01"),
                false,
            ),
            // Local time or UTC.
            ("Nov 20 22:58:01", berlin("2026-11-20T22:59:01"), false),
            ("Nov 20 21:58:01", berlin("2026-11-20T22:59:01"), false),
            ("Nov 20 20:58:01", berlin("2026-11-20T22:59:01"), true),
            (
                "Thu 2026-11-20 21:58:01 UTC",
                berlin("2026-11-20T22:59:01"),
                false,
            ),
            (
                "Thu 2026-11-20 21:58:01 +01",
                berlin("2026-11-20T22:59:01"),
                true,
            ),
            // The turn of the year.
            ("Dec 31 23:59:59", berlin("2027-01-01T00:00:10"), false),
            ("Jan  1 00:00:01", berlin("2026-12-31T23:59:50"), false),
            ("Dec 30 23:59:59", berlin("2027-01-01T00:00:10"), true),
            ("2026 Dec 31 23:59:59", berlin("2027-01-01T00:00:10"), false),
            ("Feb 29 12:00:00", berlin("2028-02-29T12:01:00"), false),
            ("Feb 29 12:00:00", berlin("2028-03-01T12:01:00"), true),
            // The hour that comes twice is not over before its second time is.
            (
                "Oct 25 02:30:00",
                at("2026-10-25T02:31:00+01:00[Europe/Berlin]"),
                false,
            ),
            // A month of another language: the day alone.
            ("Mär 20 22:58:01", berlin("2026-03-20T22:59:01"), false),
            ("Mär 20 22:58:01", berlin("2026-03-21T22:59:01"), true),
            ("11月 20 22:58:01", berlin("2026-11-20T22:59:01"), false),
            ("10月 20 22:58:01", berlin("2026-11-20T22:59:01"), true),
            ("Thg 11 20 22:58:01", berlin("2026-11-20T22:59:01"), false),
            (
                "1763675881",
                at("2025-11-20T22:59:01+01:00[Europe/Berlin]"),
                false,
            ),
            ("1763675881.123456", berlin("2025-11-20T23:59:01"), true),
            ("20261120225801", berlin("2026-11-20T22:59:01"), false),
        ] {
            let stamp = stamp(text).unwrap();
            assert_eq!(stamp.is_old(&now), is_old, "{text} at {now}: {stamp:?}");
        }
        let short = parse_short(b"Nov20 22:58").unwrap();
        assert!(!short.is_old(&berlin("2026-11-20T22:59:01")));
        assert!(short.is_old(&berlin("2026-11-21T22:59:01")));
    }

    proptest! {
        #[test]
        fn what_a_writer_writes_now_is_never_old_and_yesterdays_is(
            second in 1_700_000_000_i64..1_900_000_000,
            zone in prop::sample::select(&["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"][..]),
            format in prop::sample::select(&[
                "%b %e %H:%M:%S", "%b %d %H:%M:%S.%6f", "%Y %b %d %H:%M:%S", "%a %b %e %H:%M:%S %Y",
                "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%:z", "%Y-%m-%dT%H:%M:%S%z", "%s",
                "%Y%m%d%H%M%S", "%a %Y-%m-%d %H:%M:%S %Z", "%d %b %H:%M:%S",
            ][..]),
            late in 0_i64..300,
        ) {
            let now = jiff::Timestamp::from_second(second).unwrap().in_tz(zone).unwrap();
            let text = now.strftime(format).to_string();
            let stamp = stamp(&text).unwrap();
            prop_assert!(!stamp.is_old(&now.checked_add(late.seconds()).unwrap()), "{}", text);
            prop_assert!(!stamp.is_old(&now.checked_sub(late.seconds()).unwrap()), "{}", text);
            let next_day = now.checked_add(1.day()).unwrap();
            prop_assert!(stamp.is_old(&next_day), "{} at {}", text, next_day);
        }

        #[test]
        fn no_text_makes_it_panic(bytes: Vec<u8>, words in "[0-9TZ:.,+ -]{0,40}", second: i64) {
            let now = at("2026-11-20T22:58:01+01:00[Europe/Berlin]");
            for text in [bytes.as_slice(), words.as_bytes()] {
                if let Some(stamped) = parse(text) {
                    let _ = stamped.stamp.is_old(&now);
                }
                let _ = parse_short(text);
            }
            let _ = Stamp::Unix(second).is_old(&now);
        }
    }
}
