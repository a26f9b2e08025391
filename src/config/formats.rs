//! Modules for `#[serde(with = "…")]`: fields whose configured form differs from that of serde.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::units::{ParseError, Unit};

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

    pub(crate) fn serialize<T: Unit, S: Serializer>(
        values: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(Unit::write))
    }

    pub(crate) fn deserialize<'de, T: Unit, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let values = texts.iter().map(|text| T::parse(text));
        values.collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

/// Bytes as a rate per second: `200MiB/s`.
pub(super) mod rate {
    use super::*;
    use crate::config::units::Rate;
    use crate::model::Bytes;

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        text::serialize(&Rate(*bytes), to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        text::deserialize(from).map(|Rate(bytes)| bytes)
    }
}

/// A share as a number from 0 to 1.
pub(super) mod factor {
    use super::*;
    use crate::model::Share;

    pub(crate) fn serialize<S: Serializer>(share: &Share, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(f64::from(share.0) / f64::from(Share::WHOLE.0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Share, D::Error> {
        let factor = f64::deserialize(from)?;
        if !(0.0..=1.0).contains(&factor) {
            let error = ParseError::new("is not a number from 0 to 1", None);
            return Err(D::Error::custom(error));
        }
        // In range, so at most a million.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let millionths = (factor * f64::from(Share::WHOLE.0)).round() as u32;
        Ok(Share(millionths))
    }
}

/// A number of extents, or `"never"` for `None`.
pub(super) mod per_day {
    use super::*;
    use crate::model::{ExtentCount, ExtentsPerDay};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Count(ExtentCount),
        Text(String),
    }

    pub(crate) fn serialize<S: Serializer>(
        rate: &Option<ExtentsPerDay>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let never = Written::Text("never".to_owned());
        let count = |rate: ExtentsPerDay| Written::Count(rate.count());
        rate.map_or(never, count).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<ExtentsPerDay>, D::Error> {
        match Written::deserialize(from)? {
            Written::Count(count) => Ok(Some(ExtentsPerDay::from_count(count))),
            Written::Text(text) if text == "never" => Ok(None),
            Written::Text(_) => {
                let error = ParseError::new("is not a whole number", None);
                Err(D::Error::custom(error))
            }
        }
    }

    /// The same for an optional key.
    pub(crate) mod changed {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(
            rate: &Option<Option<ExtentsPerDay>>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            super::serialize(&rate.flatten(), to)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Option<ExtentsPerDay>>, D::Error> {
            super::deserialize(from).map(Some)
        }
    }
}

/// A date, unquoted in TOML.
pub(super) mod date {
    use super::*;
    use jiff::civil::Date;
    use toml::value::{Date as TomlDate, Datetime};

    pub(crate) fn serialize<S: Serializer>(date: &Date, to: S) -> Result<S::Ok, S::Error> {
        let part = |number: i8| u8::try_from(number).unwrap_or_default();
        let date = TomlDate {
            year: u16::try_from(date.year()).unwrap_or_default(),
            month: part(date.month()),
            day: part(date.day()),
        };
        Datetime::from(date).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Date, D::Error> {
        let written = Datetime::deserialize(from)?;
        let date: Option<Date> = written.date.and_then(|date| date.to_string().parse().ok());
        match (date, written.time) {
            (Some(date), None) => Ok(date),
            (date, _) => {
                let message = match (written.date, date) {
                    (Some(_), None) => "is on no calendar",
                    _ => "is not a date",
                };
                let instead = date.map(|date| date.to_string());
                Err(D::Error::custom(ParseError::new(message, instead)))
            }
        }
    }
}
