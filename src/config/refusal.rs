//! Explains why a value is invalid, and suggests what was probably meant.

use std::borrow::Cow;

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::schema::Value;
use super::settings::Settings;
use super::text::{grouped, nearest, quoted};
use super::units::{INSTEAD, Unit as _};
use crate::model::Share;

/// The name of a section on the path to a value, and whether it is an item of a list.
pub(super) type Step<'t> = (Cow<'t, str>, bool);

/// The position of a value.
pub(super) struct Slot<'s> {
    pub(super) path: &'s [Step<'s>],
    /// Whether the value is an item of the list at `path`.
    pub(super) is_item: bool,
    /// A valid value. `None` for an item of a list of texts.
    pub(super) expected: Option<&'static Value<'static>>,
}

impl Slot<'_> {
    /// Why a value is invalid; `None` if it is valid. Other, missing keys are ignored.
    pub(super) fn reject(&self, mut value: Value<'_>) -> Option<String> {
        if self.is_item {
            let span = value.span();
            value = Spanned::new(span, DeValue::Array(std::iter::once(value).collect()));
        }
        let error = nested(self.path, value).err()?;
        missing_field(&error)
            .is_none()
            .then(|| error.message().to_owned())
    }

    fn reject_text(&self, text: &str) -> Option<String> {
        match DeValue::parse(text) {
            Ok(value) => self.reject(value),
            Err(error) => Some(error.message().to_owned()),
        }
    }
}

/// An invalid value.
pub(super) struct Refusal<'r> {
    pub(super) value: &'r DeValue<'r>,
    /// The value as written in the file.
    pub(super) raw: &'r str,
    pub(super) slot: &'r Slot<'r>,
}

impl Refusal<'_> {
    /// What is wrong, to be appended to the value, and the probable intention as TOML.
    pub(super) fn explain(&self, mut error: String) -> (String, Option<String>) {
        if self.raw.is_empty() {
            return ("has no value".to_owned(), None);
        }
        let expected = self.slot.expected.map(Spanned::get_ref);
        let expects_text = expected.is_none_or(DeValue::is_str);
        let is_nested = self.value.is_array() || self.value.is_table();
        if expects_text && !is_nested && !self.value.is_str() {
            let text = quoted(self.raw);
            match self.slot.reject_text(&text) {
                None => return ("must stand in quotes".to_owned(), Some(text)),
                Some(other) => error = other,
            }
        }
        let inner = self.value.as_str().unwrap_or(self.raw);
        if let (true, Some((_, names))) = (
            error.starts_with("unknown variant"),
            error.rsplit_once(", expected "),
        ) {
            let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
            let near = nearest(inner, names.iter().copied()).map(quoted);
            return (format!("is none of {}", names.join(", ")), near);
        }
        let (reason, instead) = error.split_once(INSTEAD).unwrap_or_default();
        if !instead.is_empty() {
            let instead = if expects_text {
                quoted(instead)
            } else {
                instead.to_owned()
            };
            return (reason.to_owned(), Some(instead));
        }
        let instead = self.guesses(inner).into_iter().flatten();
        let instead = { instead }.find(|guess| self.slot.reject_text(guess).is_none());
        let without_quotes = self.value.is_str() && instead.as_deref() == Some(inner);
        let message = match expected {
            _ if without_quotes => "must stand without quotes".to_owned(),
            _ if !reason.is_empty() => reason.to_owned(),
            Some(DeValue::Integer(_)) if self.raw.starts_with('-') => "is negative".to_owned(),
            Some(DeValue::Integer(_)) if self.value.is_integer() => "is too large".to_owned(),
            Some(DeValue::Integer(_)) => "is not a whole number".to_owned(),
            Some(DeValue::Boolean(_)) => "is neither true nor false".to_owned(),
            Some(DeValue::Float(_)) => "is not a number from 0 to 1".to_owned(),
            Some(DeValue::Datetime(_)) => "is not a date".to_owned(),
            Some(DeValue::Array(_)) => "is not a list".to_owned(),
            _ => format!("must be text, not a TOML {}", self.value.type_str()),
        };
        (message, instead)
    }

    fn guesses(&self, inner: &str) -> [Option<String>; 6] {
        let factor = |share: Share| format!("{:?}", f64::from(share.0) / f64::from(Share::WHOLE.0));
        [
            self.value.as_str().map(str::to_owned),
            guess_count(inner).map(grouped),
            guess_switch(inner).map(|switch| switch.to_string()),
            Share::parse(inner).ok().map(factor),
            inner.split(['T', 't', ' ']).next().map(str::to_owned),
            Some(format!("[{}]", quoted(inner))),
        ]
    }
}

/// The name of a missing mandatory key, if `error` is about one.
pub(super) fn missing_field(error: &toml::de::Error) -> Option<String> {
    let (_, rest) = error.message().split_once("missing field `")?;
    rest.strip_suffix('`').map(str::to_owned)
}

/// Parses a file that contains only this value, at `path`.
pub(super) fn nested<'v>(
    path: &'v [Step<'v>],
    mut value: Value<'v>,
) -> Result<Settings, toml::de::Error> {
    for (name, is_list) in path.iter().rev() {
        let span = value.span();
        if *is_list {
            let list: DeArray<'_> = std::iter::once(value).collect();
            value = Spanned::new(span.clone(), DeValue::Array(list));
        }
        let mut table = DeTable::new();
        let key = Spanned::new(span.clone(), Cow::Borrowed(name.as_ref()));
        table.insert(key, value);
        value = Spanned::new(span, DeValue::Table(table));
    }
    Settings::deserialize(value.into_deserializer())
}

/// The path for messages.
pub(super) fn dotted(path: &[Step<'_>]) -> String {
    let names: Vec<&str> = path.iter().map(|(name, _)| name.as_ref()).collect();
    names.join(".")
}

/// The number meant by `"500000"`, `500k`, `5 M`, `1,000`.
fn guess_count(text: &str) -> Option<u64> {
    let is_digit = |c: &char| !matches!(c, ' ' | ',' | '_');
    let text: String = text.chars().filter(is_digit).collect();
    let (digits, factor) = match (text.strip_suffix(['k', 'K']), text.strip_suffix('M')) {
        (Some(digits), _) => (digits, 1000),
        (_, Some(digits)) => (digits, 1_000_000),
        _ => (text.as_str(), 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn guess_switch(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" | "enabled" => Some(true),
        "false" | "no" | "n" | "off" | "0" | "disabled" | "never" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(guess_switch("Yes"), Some(true));
        assert_eq!(guess_switch("1"), Some(true));
        assert_eq!(guess_switch("OFF"), Some(false));
        assert_eq!(guess_switch("2"), None);
    }
}
