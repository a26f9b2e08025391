//! Reads the keys of a file. serde stops at the first mistake: each key, and each of repeated
//! sections, is deserialized by itself, so that the mistakes of all are reported at once.

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::examples::{EXAMPLES, write};
use super::report::{Finding, Place, keep_first};
use super::settings::Settings;
use super::text::{join, quoted};

/// Maximum number of characters of a value in a message; the line below it shows more.
const MAX_REPEATED: usize = 40;
/// The depth of the keys in `[thresholds.warning]`.
const DEPTH: usize = 3;

/// A value and its place in the file.
type Value<'t> = Spanned<DeValue<'t>>;

/// The valid keys of the file with this content, and what is wrong with the others. No keys if it
/// is not TOML: a missing bracket moves keys into wrong sections.
pub(super) fn read(text: &str) -> (DeTable<'_>, Vec<Finding>) {
    let mut keys = DeTable::new();
    let mut findings: Vec<Finding> = Vec::new();
    let (table, errors) = DeTable::parse_recoverable(text);
    let start = |error: &toml::de::Error| error.span().map(|span| span.start);
    if let Some(error) = errors.into_iter().min_by_key(start) {
        let message = format!("not TOML: {}", error.message());
        let help = "help: a line is [section] or key = value; text is in quotes: 'text'";
        let place = error.span().unwrap_or_default();
        return (keys, vec![Finding::new(place, message, help)]);
    }
    for part in parts(root(table.into_inner()), DEPTH) {
        let finding = refusal(text, &part);
        match (finding, part.into_inner()) {
            // An unknown section is refused with each of its keys.
            (Some(it), _) if findings.last().is_some_and(|last| last.place == it.place) => {}
            (Some(finding), _) => findings.push(finding),
            (None, DeValue::Table(part)) => merge(&mut keys, part),
            (None, _) => {}
        }
    }
    (keys, findings)
}

/// The settings of a table of valid keys.
pub(super) fn settings(table: &DeTable<'_>) -> Settings {
    // Cannot fail: [`read`] tried each key.
    Settings::deserialize(root(table.clone()).into_deserializer()).unwrap_or_default()
}

fn root(table: DeTable<'_>) -> Value<'_> {
    Spanned::new(0..0, DeValue::Table(table))
}

/// The value with one key only, for each of its keys and each item of repeated sections.
fn parts(value: Value<'_>, depth: usize) -> Vec<Value<'_>> {
    let span = value.span();
    let mut found = Vec::new();
    match value.into_inner() {
        DeValue::Table(table) if depth > 0 && !table.is_empty() => {
            for (key, value) in table {
                let only = |part| DeValue::Table(DeTable::from_iter([(key.clone(), part)]));
                found.extend(parts(value, depth - 1).into_iter().map(only));
            }
        }
        DeValue::Array(items) if are_sections(&items) => {
            let only = |item| DeValue::Array(DeArray::from_iter([item]));
            found.extend(items.into_iter().map(only));
        }
        value => found.push(value),
    }
    let found = found.into_iter();
    found.map(|part| Spanned::new(span.clone(), part)).collect()
}

fn are_sections(items: &DeArray<'_>) -> bool {
    !items.is_empty() && items.iter().all(|item| item.get_ref().is_table())
}

/// Copies every key of `later`. Lists of values are replaced, lists of sections are extended.
pub(super) fn merge<'t>(table: &mut DeTable<'t>, later: DeTable<'t>) {
    for (key, value) in later {
        let span = value.span();
        let old = table.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut);
        match (old, value.into_inner()) {
            (Some(DeValue::Table(old)), DeValue::Table(new)) => merge(old, new),
            (Some(DeValue::Array(old)), DeValue::Array(new)) if are_sections(old) => {
                new.into_iter().for_each(|item| old.push(item));
            }
            (_, value) => _ = table.insert(key, Spanned::new(span, value)),
        }
    }
}

/// The place of the value with a path such as `klog.rule.0.name`; `None` if it is not set.
pub(super) fn place(table: &DeTable<'_>, path: &str) -> Option<Place> {
    let mut names = path.split('.');
    let first = table.get(names.next()?)?;
    let value = names.try_fold(first, |value, name| match name.parse::<usize>() {
        Ok(item) => value.get_ref().get(item),
        Err(_) => value.get_ref().get(name),
    });
    Some(value?.span())
}

/// A condition for [`find`]: on the place of its key or list item, the value, and the example of it.
type Condition<'c> = &'c dyn Fn(&Place, &Value<'_>, Option<&toml::Value>) -> bool;

/// The innermost value that meets the condition, and its path without the numbers of list items.
fn find<'v, 't>(
    value: &'v Value<'t>,
    key: &Place,
    example: Option<&toml::Value>,
    condition: Condition<'_>,
) -> Option<(String, &'v Value<'t>)> {
    let inside = match value.get_ref() {
        DeValue::Table(table) => table.iter().find_map(|(key, value)| {
            let example = example.and_then(|example| example.get(key.get_ref().as_ref()));
            let (path, found) = find(value, &key.span(), example, condition)?;
            Some((join(key.get_ref(), &path), found))
        }),
        DeValue::Array(items) => {
            let example = example.and_then(|example| example.get(0));
            let mut items = items.iter();
            items.find_map(|item| find(item, &item.span(), example, condition))
        }
        _ => None,
    };
    inside.or_else(|| condition(key, value, example).then(|| (String::new(), value)))
}

/// Why a part of the file is refused.
fn refusal(text: &str, part: &Value<'_>) -> Option<Finding> {
    // serde would take the items of a list for the keys of a section.
    let is_list: Condition<'_> = &|_, value, example| {
        value.get_ref().is_array() && example.is_some_and(toml::Value::is_table)
    };
    if let Some((path, list)) = find(part, &(0..0), Some(&EXAMPLES), is_list) {
        let message = format!("{path}: is a section, not a list");
        return Some(Finding::new(list.span(), message, write(&path)));
    }
    let error = Settings::deserialize(part.clone().into_deserializer()).err()?;
    Some(explain(text, part, &error))
}

/// Reports the error of a part of the file.
fn explain(text: &str, part: &Value<'_>, error: &toml::de::Error) -> Finding {
    let place = error.span().unwrap_or_default();
    let is_here: Condition<'_> = &|key, value, _| *key == place || value.span() == place;
    let found = find(part, &(0..0), None, is_here);
    let (path, value) = found.unwrap_or((String::new(), part));
    let (section, name) = path.rsplit_once('.').unwrap_or(("", &path));
    let value = value.get_ref();
    let error = error.message();
    // The names in `unknown field …, expected one of …`.
    let (_, expected) = error.rsplit_once(", expected ").unwrap_or_default();
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();

    let (message, help) = if error.starts_with("unknown field") {
        let message = match value.get(0).map_or(value, Spanned::get_ref).is_table() {
            true => format!("unknown section [{path}]"),
            false => format!("unknown key {path}"),
        };
        let all = || format!("help: valid here are {}", known.join(", "));
        let near = nearest(name, known.iter().copied());
        (
            message,
            near.map_or_else(all, |near| write(&join(section, near))),
        )
    } else if let Some(name) = error.strip_prefix("missing field `") {
        let name = name.trim_end_matches('`');
        (
            format!("{path}: {name} is missing"),
            write(&join(&path, name)),
        )
    } else {
        let line = text.get(place.clone()).and_then(|raw| raw.lines().next());
        let raw = match value {
            DeValue::Array(_) | DeValue::Table(_) => String::new(),
            _ if expected.starts_with("struct") => String::new(),
            _ => keep_first(line.unwrap_or_default().to_owned(), MAX_REPEATED) + " ",
        };
        let problem = match expected {
            _ if error.starts_with("unknown variant") => format!("is none of {}", known.join(", ")),
            _ if error.starts_with("wanted string") => "is not text in quotes".to_owned(),
            "a string" | "path string" | "socket address" => "is not text in quotes".to_owned(),
            "a boolean" => "is neither true nor false".to_owned(),
            "a sequence" => "is not a list".to_owned(),
            "u32" | "u64" => "is not a whole number in range".to_owned(),
            _ if expected.starts_with("struct") => "is a section, not a value".to_owned(),
            _ => error.to_owned(),
        };
        let near = nearest(value.as_str().unwrap_or_default(), known);
        let help = near.map_or_else(|| write(&path), |near| format!("write: {}", quoted(near)));
        (format!("{path}: {raw}{problem}"), help)
    };
    Finding::new(place, message, help)
}

/// The word of `known` that is nearest to `word`, with at most one wrong letter, or one in three.
fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let near = known.into_iter().filter_map(|candidate| {
        // A word of a megabyte is not compared.
        let distance = (word.len() <= 2 * candidate.len())
            .then(|| strsim::levenshtein(word, &candidate.to_lowercase()))?;
        (distance <= (candidate.len() / 3).max(1)).then_some((distance, candidate))
    });
    Some(near.min_by_key(|(distance, _)| *distance)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
