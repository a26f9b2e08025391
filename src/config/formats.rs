//! How serde reads and writes the settings: sections with defaults, and modules for
//! `#[serde(with = "…")]` for fields whose configured form differs from that of serde.

use jiff::civil::Date;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Value;

use crate::model::notation::{Unit, units};
use crate::model::{ExtentsPerDay, Share};
use crate::sys::zone::Zone;

/// Defines sections, whose keys may all be missing: `key: type as "format" = default, check check;`.
/// The format is that of `#[serde(with = "format")]`, the check one of [`checks`](super::checks);
/// either may be missing. The field of a repeated section has the name of the section in brackets.
macro_rules! sections {
    ($($(#[$meta:meta])* $name:ident {$(
        $(#[$key:meta])*
        $field:ident $([$section:literal])?: $type:ty $(as $format:literal)? = $default:expr
        $(, check $check:expr)?;
    )+})+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {$(
            $(#[$key])*
            $(#[serde(rename = $section, skip_serializing_if = "Vec::is_empty")])?
            $(#[serde(with = $format)])?
            pub $field: $type,
        )+}

        impl Default for $name {
            fn default() -> $name { $name { $($field: $default,)+ } }
        }

        impl $name {
            /// Adds the invalid values; `path` is that of the section.
            #[allow(unused_variables, reason = "not every key has a check")]
            pub(in crate::config) fn invalid(
                &self,
                path: &str,
                invalid: &mut $crate::config::checks::Invalid,
            ) {$(
                // The name in brackets, if there is one.
                let key = [$($section,)? stringify!($field)][0];
                $($check(&self.$field, &$crate::config::text::join(path, key), invalid);)?
            )+}
        }
    )+};
}
pub(super) use sections;

/// Defines [`sections!`] with their names, and the settings that consist of them.
macro_rules! settings {
    ($($(#[$meta:meta])* $section:ident: $name:ident { $($keys:tt)+ })+) => {
        sections! {
            /// All settings.
            Settings {$(
                $(#[$meta])* $section: $name = $name::default(), check $name::invalid;
            )+}
            $($(#[$meta])* $name { $($keys)+ })+
        }
    };
}
pub(super) use settings;

units! {
    Zone: "a time zone such as Europe/Berlin",
        |text| Zone::named(text),
        |zone| zone.name().to_owned();
}

/// A value as text with its unit.
pub(super) mod text {
    use super::*;

    pub(crate) fn serialize<T: Unit, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.write())
    }

    pub(crate) fn deserialize<'de, T: Unit, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        T::parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A list of such texts.
pub(super) mod texts {
    use super::*;

    pub(crate) fn serialize<T: Unit, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(Unit::write))
    }

    pub(crate) fn deserialize<'de, T: Unit, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let value = |text: &String| {
            T::parse(text).map_err(|why| D::Error::custom(format!("{text:?} {why}")))
        };
        texts.iter().map(value).collect()
    }
}

/// Defines formats of values that are not text: what is wrong with others, how a value is read, and
/// how it is written.
macro_rules! formats {
    ($($(#[$about:meta])* $format:ident: $type:ty, $wrong:literal,
        |$value:ident| $read:expr,
        |$setting:ident| $write:expr;
    )+) => {$(
        $(#[$about])*
        pub(super) mod $format {
            use $crate::config::formats::*;

            pub(crate) fn serialize<S: Serializer>(
                $setting: &$type,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                let value: Option<Value> = $write;
                value.serialize(to)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<$type, D::Error> {
                let $value = Value::deserialize(from)?;
                let setting: Option<$type> = $read;
                setting.ok_or_else(|| D::Error::custom($wrong))
            }
        }
    )+};
}

formats! {
    /// A share as a number from 0.5 to 1.
    factor: Share, "is not a number from 0.5 to 1",
        |value| {
            // In range, so at most a million.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let share = |factor: f64| Share((factor * f64::from(Share::WHOLE.0)).round() as u32);
            value.try_into().ok().filter(|factor| (0.5..=1.0).contains(factor)).map(share)
        },
        |share| Some(share.factor().into());

    /// A number of extents, or `"never"` for the inner `None`. The outer one is a key that is not set.
    per_day: Option<Option<ExtentsPerDay>>, "is neither a whole number nor \"never\"",
        |value| match value.as_str() {
            Some("never") => Some(Some(None)),
            _ => value.try_into().ok().map(|count| Some(Some(ExtentsPerDay::from_count(count)))),
        },
        |rate| match rate.flatten() {
            Some(rate) => Value::try_from(rate.count()).ok(),
            None => Some("never".into()),
        };

    /// A date, unquoted in TOML.
    date: Date, "is not a date such as 2026-12-20, without quotes",
        |value| {
            let written = value.as_datetime().filter(|it| it.time.is_none());
            written.and_then(|written| written.date?.to_string().parse().ok())
        },
        |date| date.to_string().parse().ok().map(Value::Datetime);
}
