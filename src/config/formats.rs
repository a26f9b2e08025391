//! How serde reads and writes the settings: sections with defaults, and modules for
//! `#[serde(with = "…")]` for fields whose configured form differs from that of serde.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::units::{ParseError, Unit};

/// Defines sections whose keys may be missing, with the default of each key and, if not every value
/// of its type is valid, its check (see [`checks`](super::checks)).
macro_rules! sections {
    ($($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$key:meta])* pub $field:ident: $type:ty = $default:expr $(, check $check:expr)?;)+
    })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$key])* pub $field: $type,)+ }

        impl Default for $name {
            fn default() -> $name { $name { $($field: $default,)+ } }
        }

        impl $name {
            /// The invalid values of this section.
            #[allow(unused_mut, dead_code, reason = "not every section has a check")]
            pub(in crate::config) fn invalid(&self) -> $crate::config::checks::Invalid {
                let mut invalid = $crate::config::checks::Invalid::default();
                $($($check(&self.$field, stringify!($field), &mut invalid);)?)+
                invalid
            }
        }
    )+};
}
pub(super) use sections;

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

    #[derive(Deserialize)]
    #[serde(bound = "T: Unit")]
    struct Text<T: Unit>(#[serde(with = "text")] T);

    pub(crate) fn serialize<T: Unit, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(Unit::write))
    }

    pub(crate) fn deserialize<'de, T: Unit, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let list = Vec::<Text<T>>::deserialize(from)?;
        Ok(list.into_iter().map(|Text(value)| value).collect())
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
        let factor = f64::deserialize(from)?;
        if !(0.5..=1.0).contains(&factor) {
            let error = ParseError::new("is not a number from 0.5 to 1", None);
            return Err(D::Error::custom(error));
        }
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

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Count(ExtentCount),
        Never(Never),
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Never {
        Never,
    }

    pub(crate) fn serialize<S: Serializer>(
        rate: &Option<Option<ExtentsPerDay>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let never = Written::Never(Never::Never);
        let count = |rate: ExtentsPerDay| Written::Count(rate.count());
        rate.flatten().map_or(never, count).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Option<ExtentsPerDay>>, D::Error> {
        Ok(Some(match Written::deserialize(from)? {
            Written::Count(count) => Some(ExtentsPerDay::from_count(count)),
            Written::Never(_) => None,
        }))
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
        let written = Datetime::deserialize(from)?;
        let date = written.date.filter(|_| written.time.is_none());
        date.and_then(|date| date.to_string().parse().ok())
            .ok_or_else(|| D::Error::custom("is not a date"))
    }
}
