//! Prints values and settings as TOML, and suggests corrections for misspelled words.

use std::path::Path;

use toml::Value;

use crate::model::ExtentCount;
use crate::model::path::shown;

/// The word of `known` that is nearest to `word`, with at most one wrong letter, or one in three.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let distance = |candidate: &str| {
        let is_near = word.len() <= 2 * candidate.len();
        is_near.then(|| strsim::levenshtein(word, &candidate.to_lowercase()))
    };
    let known = known.into_iter();
    known
        .filter_map(|candidate| Some((distance(candidate)?, candidate)))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The text as a TOML string in double quotes, on one line, escaped for terminals as by [`shown`].
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if is_plain(character) => quoted.push(character),
            _ => quoted.push_str(&format!("\\U{:08X}", u32::from(character))),
        }
    }
    quoted.push('"');
    quoted
}

/// The text in single quotes (TOML literal string), for readable regular expressions, if it
/// contains a backslash or quote and can be written so; otherwise as by `quoted`.
pub(super) fn literal(text: &str) -> String {
    let fits = |character| character != '\'' && is_plain(character);
    if text.contains(['\\', '"']) && text.chars().all(fits) {
        format!("'{text}'")
    } else {
        quoted(text)
    }
}

fn is_plain(character: char) -> bool {
    let alone = character.to_string();
    character == '\\' || shown(Path::new(&alone)) == alone
}

/// A whole number with `_` as thousands separator.
pub(super) fn grouped(number: u64) -> String {
    ExtentCount(number).to_string().replace(',', "_")
}

/// The path of `name` in `section`, which is empty for the top level.
pub(super) fn join(section: &str, name: &str) -> String {
    let dot = if section.is_empty() { "" } else { "." };
    format!("{section}{dot}{name}")
}

/// The name of a key: its path without item numbers.
pub(super) fn key_of(path: &str) -> String {
    let is_name = |part: &&str| !part.starts_with(|c: char| c.is_ascii_digit());
    let names = path.split('.').filter(is_name);
    names.collect::<Vec<_>>().join(".")
}

/// A table as TOML: first its keys, then its sections. Contains no control characters but newlines.
pub(super) fn document(table: &toml::Table) -> String {
    let mut text = String::new();
    section(&mut text, "", table);
    text
}

fn section(text: &mut String, path: &str, table: &toml::Table) {
    for (name, value) in table.iter().filter(|(_, value)| !is_section(value)) {
        text.push_str(&format!("{name} = {}\n", written(value)));
    }
    let mut headed = |header: String, path: &str, table: &toml::Table| {
        // A section without keys of its own needs no header.
        if !table.values().all(is_section) {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{header}\n"));
        }
        section(text, path, table);
    };
    for (name, value) in table {
        let path = join(path, name);
        match value {
            Value::Table(table) => headed(format!("[{path}]"), &path, table),
            Value::Array(items) if is_section(value) => items
                .iter()
                .filter_map(Value::as_table)
                .for_each(|table| headed(format!("[[{path}]]"), &path, table)),
            _ => {}
        }
    }
}

fn is_section(value: &Value) -> bool {
    value.is_table() || value.get(0).is_some_and(Value::is_table)
}

fn written(value: &Value) -> String {
    match value {
        Value::String(text) => literal(text),
        Value::Integer(number) => grouped(number.unsigned_abs()),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(written).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_nearest_word_is_not_far() {
        let known = ["interval", "map_interval", "probe_timeout"];
        assert_eq!(nearest("intervall", known), Some("interval"));
        assert_eq!(nearest("map-interval", known), Some("map_interval"));
        assert_eq!(nearest("probe_timout", known), Some("probe_timeout"));
        assert_eq!(nearest("timeout", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), known), None);
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
