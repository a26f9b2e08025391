//! Explains why a value is invalid, and suggests what was probably meant.

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use super::schema::Value;
use super::settings::Settings;
use super::text::{grouped, nearest, quoted};
use super::units::{INSTEAD, Unit as _};
use crate::model::Share;

/// What is wrong with a value, and what to write instead, if that is known.
type Explanation = (String, Option<String>);

/// Explains the error that serde reports for the value at `path`, written as `raw`. `example` is
/// valid there; `None` is an item of a list of texts.
pub(super) fn explain(
    path: &str,
    raw: &str,
    value: &DeValue<'_>,
    example: Option<&Value<'_>>,
    error: &str,
) -> Explanation {
    let inner = value.as_str().unwrap_or(raw);
    let example = example.map(Spanned::get_ref);
    if raw.is_empty() {
        return ("has no value".to_owned(), None);
    }
    if let (true, Some((_, names))) = (
        error.starts_with("unknown variant"),
        error.rsplit_once(", expected "),
    ) {
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        let near = nearest(inner, names.iter().copied()).map(quoted);
        return (format!("is none of {}", names.join(", ")), near);
    }
    let expects_text = example.is_none_or(DeValue::is_str);
    if let Some((reason, instead)) = error.split_once(INSTEAD) {
        let instead = (!instead.is_empty() && expects_text).then(|| quoted(instead));
        return (reason.to_owned(), instead);
    }
    if expects_text && !value.is_str() && !value.is_array() && !value.is_table() {
        let text = quoted(raw);
        return match error_of(path, &text) {
            None => ("must stand in quotes".to_owned(), Some(text)),
            Some(error) => explain(path, raw, &DeValue::String(raw.into()), None, &error),
        };
    }
    let factor = |share: Share| format!("{:?}", share.factor());
    let (message, guess) = match example {
        Some(DeValue::Boolean(_)) => {
            let switch = guess_switch(inner).map(|switch| switch.to_string());
            ("is neither true nor false", switch)
        }
        Some(DeValue::Integer(_)) => {
            let message = match value {
                _ if raw.starts_with('-') => "is negative",
                DeValue::Integer(_) => "is too large",
                _ => "is not a whole number",
            };
            (message, guess_count(inner).map(grouped))
        }
        Some(DeValue::Float(_)) => {
            let share = Share::parse(inner).ok();
            ("is not a number from 0.5 to 1", share.map(factor))
        }
        Some(DeValue::Datetime(_)) => {
            let date = inner.split(['T', 't', ' ']).next();
            ("is not a date", date.map(str::to_owned))
        }
        Some(DeValue::Array(_)) => ("is not a list", Some(format!("[{}]", quoted(inner)))),
        _ => ("must be text", None),
    };
    let guess = guess.filter(|guess| error_of(path, guess).is_none());
    let without_quotes = value.is_str() && guess.as_deref() == Some(inner);
    let message = if without_quotes {
        "must stand without quotes"
    } else {
        message
    };
    (message.to_owned(), guess)
}

/// Why a file would be invalid that contains only the value `toml`, at `path`. Other, missing keys
/// are ignored.
fn error_of(path: &str, toml: &str) -> Option<String> {
    let inside = |inner: String, name: &str| match name.parse::<usize>() {
        Ok(_) => format!("[{inner}]"),
        Err(_) => format!("{{{name} = {inner}}}"),
    };
    let file = path.rsplit('.').fold(toml.to_owned(), inside);
    let error = DeValue::parse(toml)
        .and_then(|_| ValueDeserializer::parse(&file))
        .and_then(Settings::deserialize)
        .err()?;
    missing_field(&error)
        .is_none()
        .then(|| error.message().to_owned())
}

/// The name of a missing mandatory key, if `error` is about one.
pub(super) fn missing_field(error: &toml::de::Error) -> Option<&str> {
    let (_, rest) = error.message().split_once("missing field `")?;
    rest.strip_suffix('`')
}

/// The number meant by `"500000"`, `500k`, `5 M`, `1,000`.
fn guess_count(text: &str) -> Option<u64> {
    let text = text.replace([' ', ',', '_'], "");
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
