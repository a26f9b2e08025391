//! Durations, sizes, shares and times as written in the configuration and on the command line:
//! `90s`, `1h30m`, `64KiB`, `5%`, `01:00`. A number without a unit is an error. Values read back as
//! written.

use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Time, Weekday};

use super::{Bytes, BytesPerSecond, Share};

/// The units of a quantity with their factors.
type Units = [(&'static str, u64)];

/// In milliseconds, in the order of `1h30m`.
const TIMES: &Units = &[
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// In bytes; binary before decimal, which breaks ties in length.
const SIZES: &Units = &[
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

/// A hundred years. Longer durations are mistakes, and could overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(36_500 * 86_400);

/// A value that is written as text.
pub trait Unit: Sized {
    /// What a text must be.
    const FORM: &'static str;

    /// The value of a text; `None` if it is not valid.
    fn read(text: &str) -> Option<Self>;

    /// The text of the value; [`Unit::read`] reads it back.
    fn write(&self) -> String;

    /// As [`Unit::read`].
    ///
    /// # Errors
    /// What is wrong, to be appended to the text.
    fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).ok_or_else(|| format!("is not {}", Self::FORM))
    }
}

/// Implements [`Unit`]: the form, and the bodies of `read` and `write` with their arguments.
macro_rules! units {
    ($($(#[$about:meta])* $unit:ty: $form:expr,
        |$text:ident| $read:expr,
        |$value:ident| $write:expr;
    )+) => {$(
        $(#[$about])*
        impl $crate::model::notation::Unit for $unit {
            const FORM: &'static str = $form;

            fn read($text: &str) -> Option<$unit> {
                $read
            }

            fn write(&self) -> String {
                let $value = self;
                $write
            }
        }
    )+};
}
pub(crate) use units;

units! {
    /// Whole numbers of `d`, `h`, `m`, `s`, `ms`, larger units first, none twice. Written in the
    /// largest unit that is exact, without fractions of a millisecond.
    Duration: "a duration such as 90s or 1h30m, at most 36500d",
        |text| {
            let total = u64::try_from(sum_of(text, TIMES)?).ok();
            total.map(Duration::from_millis).filter(|duration| *duration <= MAX_DURATION)
        },
        |duration| {
            let total = duration.as_millis();
            let is_exact = |unit: u64| total > 0 && total.is_multiple_of(u128::from(unit));
            let (name, unit) = TIMES.iter().find(|(_, unit)| is_exact(*unit)).unwrap_or(&("s", 1));
            format!("{}{name}", total / u128::from(*unit))
        };

    /// `never` is `None`.
    Option<Duration>: "a duration such as 90s or 1h30m, at most 36500d, or never",
        |text| if text == "never" { Some(None) } else { Duration::read(text).map(Some) },
        |duration| duration.map_or("never".to_owned(), |duration| duration.write());

    /// The outer `None` is a key that is not set.
    Option<Option<Duration>>: Option::<Duration>::FORM,
        |text| Unit::read(text).map(Some),
        |duration| duration.flatten().write();

    /// A whole number and `B`, `KiB` … `EiB`, or `kB` (or `KB`), `MB` … `EB`. Written in the exact
    /// unit with the shortest text.
    Bytes: "a size such as 64KiB or 500MB, below 16EiB",
        |text| {
            let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
            let total = sum_of(&text.replace("KB", "kB"), SIZES)?;
            u64::try_from(total).ok().filter(|_| unit.chars().all(char::is_alphabetic)).map(Bytes)
        },
        |size| {
            let is_exact = |unit: u64| size.0.is_multiple_of(unit) && (size.0 > 0 || unit == 1);
            let exact = SIZES.iter().filter(|(_, unit)| is_exact(*unit));
            let texts = exact.map(|(name, unit)| format!("{}{name}", size.0 / unit));
            texts.min_by_key(String::len).unwrap_or_default()
        };

    BytesPerSecond: "a rate such as 200MiB/s",
        |text| Bytes::read(text.strip_suffix("/s")?).map(|size| BytesPerSecond(size.0)),
        |rate| format!("{}/s", Bytes(rate.0).write());

    /// With up to four decimals.
    Share: "a share such as 5%, at most 100%",
        |text| {
            let number = text.strip_suffix('%')?;
            let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
            let is_decimal = is_number(whole) && is_number(rest) && rest.len() <= 4;
            let millionths = format!("{whole}{rest:0<4}").parse().ok().map(Share);
            millionths.filter(|share| is_decimal && *share <= Share::WHOLE)
        },
        |share| share.to_string();

    /// An empty text is `None`.
    Option<PathBuf>: "a path",
        |text| Some((!text.is_empty()).then(|| PathBuf::from(text))),
        |path| path.as_ref().map_or(String::new(), |path| path.to_string_lossy().into_owned());

    Weekday: "a day: Mon, Tue, Wed, Thu, Fri, Sat or Sun",
        |text| Weekday::Monday.cycle_forward().take(7).find(|day| day.write() == text),
        |day| format!("{day:?}").chars().take(3).collect();

    /// To the minute.
    Time: "a time of day such as 01:00",
        |text| Time::strptime("%H:%M", text).ok().filter(|time| time.write() == text),
        |time| format!("{:02}:{:02}", time.hour(), time.minute());
}

/// The sum of numbers with units, in the order of `units`, none twice; `None` for other texts.
fn sum_of(mut text: &str, units: &Units) -> Option<u128> {
    let mut units = units.iter();
    let mut total: u128 = 0;
    loop {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let end = rest.find(|c: char| c.is_ascii_digit());
        let (unit, rest) = rest.split_at(end.unwrap_or(rest.len()));
        // Each search continues behind the unit found last, which rejects `30m1h` and `1h1h`.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        let number: u128 = number.parse().ok()?;
        total = total.saturating_add(number.saturating_mul(u128::from(*factor)));
        if rest.is_empty() {
            return Some(total);
        }
        text = rest;
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
