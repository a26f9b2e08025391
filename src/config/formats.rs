//! How serde reads and writes the settings: sections with defaults, and modules for
//! `#[serde(with = "…")]` for fields whose configured form differs from that of serde.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::units::Unit;

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

/// A share as a number from 0.5 to 1.
pub(super) mod factor {
    use super::*;
    use crate::model::Share;

    pub(crate) fn serialize<S: Serializer>(share: &Share, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(share.factor())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Share, D::Error> {
        let factor = f64::deserialize(from)
            .ok()
            .filter(|it| (0.5..=1.0).contains(it));
        let factor = factor.ok_or_else(|| D::Error::custom("is not a number from 0.5 to 1"))?;
        // In range, so at most a million.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let millionths = (factor * f64::from(Share::WHOLE.0)).round() as u32;
        Ok(Share(millionths))
    }
}

/// A number of extents, or `"never"` for the inner `None`. The outer one is a key that is not set.
pub(super) mod per_day {
    use super::*;
    use crate::model::{ExtentCount, ExtentsPerDay};
    use toml::Value;

    pub(crate) fn serialize<S: Serializer>(
        rate: &Option<Option<ExtentsPerDay>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match rate.flatten() {
            Some(rate) => rate.count().serialize(to),
            None => to.serialize_str("never"),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Option<ExtentsPerDay>>, D::Error> {
        match Value::deserialize(from)? {
            Value::Integer(count) if count >= 0 => {
                let count = ExtentCount(count.unsigned_abs());
                Ok(Some(Some(ExtentsPerDay::from_count(count))))
            }
            Value::String(text) if text == "never" => Ok(Some(None)),
            _ => Err(D::Error::custom("is neither a whole number nor \"never\"")),
        }
    }
}

/// A date, unquoted in TOML.
pub(super) mod date {
    use super::*;
    use jiff::civil::Date;
    use toml::value::Datetime;

    pub(crate) fn serialize<S: Serializer>(date: &Date, to: S) -> Result<S::Ok, S::Error> {
        let date: Result<Datetime, _> = date.to_string().parse();
        date.map_err(serde::ser::Error::custom)?.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Date, D::Error> {
        let written = Datetime::deserialize(from)
            .ok()
            .filter(|it| it.time.is_none());
        let date = written.and_then(|written| written.date?.to_string().parse().ok());
        date.ok_or_else(|| D::Error::custom("is not a date such as 2026-12-20, without quotes"))
    }
}
