//! Converts the texts of the files to [`Settings`]. serde stops at the first mistake: a valid value
//! takes the place of the one that it refuses, and the file is deserialized again.

use std::borrow::Cow;

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::explain::{explain, missing_field};
use super::report::{Finding, Place, keep_first};
use super::schema::{SCHEMA, Value, example_of, header, home, section};
use super::settings::Settings;
use super::text::{join, key_of, literal, nearest, quoted};

/// Maximum number of characters of a value in a message; the line below it shows more.
const MAX_REPEATED: usize = 40;
/// Maximum number of mistakes looked for in a file. A megabyte of garbage causes a million.
const MAX_MISTAKES: usize = 100;

/// The keys of the file with this content, and what is wrong in it. Invalid values are replaced by
/// valid ones. No keys if it is not TOML.
pub(super) fn read(text: &str) -> (DeTable<'_>, Vec<Finding>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut table = table.into_inner();
    let mut reader = Reader {
        text,
        findings: Vec::new(),
        unknown: Vec::new(),
        shortened: Vec::new(),
    };
    if !reader.syntax(&mut table, errors) {
        return (DeTable::new(), reader.findings);
    }
    reader.shape(&mut table, &SCHEMA, "");
    while let Err(error) = parse(table.clone()) {
        if !reader.value(&mut table, &error) {
            return (DeTable::new(), reader.findings);
        }
    }
    for place in &reader.shortened {
        if let Some(Slot(_, list, example)) = find(&mut table, &SCHEMA, place, "") {
            *list = Spanned::new(place.clone(), example.get_ref().clone());
        }
    }
    (table, reader.findings)
}

/// The settings of a table returned by [`read`].
pub(super) fn settings(table: DeTable<'_>) -> Settings {
    // Cannot fail: [`read`] tried.
    parse(table).unwrap_or_default()
}

fn parse(table: DeTable<'_>) -> Result<Settings, toml::de::Error> {
    let root = Spanned::new(0..0, DeValue::Table(table));
    Settings::deserialize(root.into_deserializer())
}

/// Copies every key of `later`. Lists of values are replaced, lists of sections are extended.
pub(super) fn merge<'t>(table: &mut DeTable<'t>, later: DeTable<'t>) {
    for (key, value) in later {
        let span = value.span();
        match (table.get_mut(key.get_ref().as_ref()), value.into_inner()) {
            (Some(old), DeValue::Table(new)) if old.get_ref().is_table() => {
                if let DeValue::Table(old) = old.get_mut() {
                    merge(old, new);
                }
            }
            (Some(old), DeValue::Array(new)) if section(old.get_ref()).is_some() => {
                if let DeValue::Array(old) = old.get_mut() {
                    new.into_iter().for_each(|item| old.push(item));
                }
            }
            (_, value) => _ = table.insert(key, Spanned::new(span, value)),
        }
    }
}

/// The place of the value with a path such as `klog.rule.0.name`; `None` if it is not set.
pub(super) fn place(table: &DeTable<'_>, path: &str) -> Option<Place> {
    let mut names = path.split('.');
    let mut value = table.get(names.next()?)?;
    for name in names {
        value = match value.get_ref() {
            DeValue::Table(table) => table.get(name)?,
            DeValue::Array(items) => items.get(name.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value.span())
}

struct Reader<'t> {
    text: &'t str,
    findings: Vec<Finding>,
    /// The names of unknown keys.
    unknown: Vec<String>,
    /// The lists of values from which invalid items were removed.
    shortened: Vec<Place>,
}

/// The path of a value of a file, or of a section in a list; the value, and a valid one.
struct Slot<'s, 't>(String, &'s mut Value<'t>, &'static Value<'static>);

impl Reader<'_> {
    fn report(&mut self, place: Place, message: String, help: String) {
        self.findings.push(Finding::with_help(place, message, help));
    }

    /// Reports the errors of the parser. False if the rest of the file is unreliable: a missing
    /// bracket moves keys into wrong sections.
    fn syntax(&mut self, table: &mut DeTable<'_>, mut errors: Vec<toml::de::Error>) -> bool {
        errors.truncate(MAX_MISTAKES);
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let mut is_reliable = true;
        let mut lines = Vec::new();
        for error in errors {
            let place = error.span().unwrap_or_default();
            let before = self.text.get(..place.start).unwrap_or_default();
            let line = before.matches('\n').count();
            // One mistake causes several errors in its line.
            if lines.contains(&line) {
                continue;
            }
            lines.push(line);
            let slot = find(table, &SCHEMA, &place, "");
            if !slot.is_some_and(|slot| self.unquoted(slot, &place, error.message())) {
                let raw = self.text.get(place.clone()).unwrap_or_default();
                let (message, help) = explain_syntax(error.message(), raw);
                self.report(place, message, help);
                is_reliable = false;
            }
        }
        is_reliable
    }

    /// Reports a parser error in a value that is not in quotes, such as `5m` or `yes`, or that has a
    /// wrong escape.
    fn unquoted(&mut self, slot: Slot<'_, '_>, place: &Place, error: &str) -> bool {
        let value = match (
            item(slot.1, slot.2, place),
            slot.1.get_ref(),
            slot.2.get_ref(),
        ) {
            (Some(i), DeValue::Array(items), _) => items.get(i).unwrap_or(slot.1),
            // Between the items: a missing comma or bracket.
            (None, DeValue::Array(_), DeValue::Array(_)) => return false,
            _ => &*slot.1,
        };
        let raw = self.text.get(value.span()).unwrap_or_default();
        // The start of the parser error for a string like `"\d"`.
        let is_escape = error.starts_with("missing escaped value");
        if value.get_ref().is_table() || (raw.starts_with(['"', '\'']) && !is_escape) {
            return false;
        }
        self.refuse(slot, place, (!is_escape).then_some(""))
    }

    /// Removes keys and sections that are not in `schema`, and values in the place of sections.
    fn shape(&mut self, table: &mut DeTable<'_>, schema: &DeTable<'_>, path: &str) {
        for (key, mut value) in std::mem::take(table) {
            let name = key.get_ref().as_ref();
            let keep = match schema.get(name) {
                None => self.unknown(&key, &value, schema, path),
                Some(example) => self.has_shape(&mut value, example, &join(path, name)),
            };
            if keep {
                table.insert(key, value);
            }
        }
    }

    fn has_shape(&mut self, value: &mut Value<'_>, example: &Value<'_>, path: &str) -> bool {
        let Some(keys) = section(example.get_ref()) else {
            return true;
        };
        let place = value.span();
        let is_list = example.get_ref().is_array();
        match value.get_mut() {
            DeValue::Table(table) if !is_list => self.shape(table, keys, path),
            DeValue::Array(items) if is_list && items.iter().all(is_table) => {
                for item in items.iter_mut() {
                    if let DeValue::Table(table) = item.get_mut() {
                        self.shape(table, keys, path);
                    }
                }
            }
            value => {
                let header = header(path).unwrap_or_default();
                let (message, help) = if value.is_table() {
                    let message = format!("{path} is a list, each item has a header of its own");
                    (message, format!("write: {header}"))
                } else {
                    let help = format!("write: {header} and below it its keys: {}", names(keys));
                    (format!("{path} is a section, not a value"), help)
                };
                self.report(place, message, help);
                return false;
            }
        }
        true
    }

    /// Reports a key that is not in the section `schema`; returns false, so that it is not kept.
    fn unknown(
        &mut self,
        key: &Spanned<Cow<'_, str>>,
        value: &Value<'_>,
        schema: &DeTable<'_>,
        section: &str,
    ) -> bool {
        let written = key.get_ref().as_ref();
        let shown = keep_first(join(section, written), MAX_REPEATED);
        let (is_section, message) = match value.get_ref() {
            DeValue::Table(_) => (true, format!("unknown section [{shown}]")),
            DeValue::Array(items) if items.iter().any(is_table) => {
                (true, format!("unknown section [[{shown}]]"))
            }
            _ => (false, format!("unknown key {shown}")),
        };
        let near = nearest(written, schema.keys().map(|key| key.get_ref().as_ref()));
        let near_header = near.and_then(|near| header(&join(section, near)));
        let help = match (near, near_header, home(written)) {
            (_, Some(header), _) if is_section => format!("write: {header}"),
            (Some(near), _, _) if !is_section => format!("write: {near}"),
            (None, _, Some(home)) if !is_section => format!("help: it belongs in {home}"),
            _ => match header(section) {
                Some(header) => format!("help: the keys of {header} are {}", names(schema)),
                None => format!(
                    "help: the sections are [{}]",
                    names(schema).replace(", ", "], [")
                ),
            },
        };
        self.unknown.push(written.to_owned());
        self.report(key.span(), message, help);
        false
    }

    /// Reports the error of serde and removes its cause. False if that cannot be found, or there
    /// were too many.
    fn value(&mut self, table: &mut DeTable<'_>, error: &toml::de::Error) -> bool {
        let place = error.span().unwrap_or_default();
        let slot = find(table, &SCHEMA, &place, "");
        let slot = slot.filter(|_| self.findings.len() < MAX_MISTAKES);
        let is_removed = match (slot, missing_field(error)) {
            (Some(slot), Some(key)) => self.missing(slot, key),
            (Some(slot), None) => self.refuse(slot, &place, Some(error.message())),
            (None, _) => false,
        };
        if !is_removed {
            let help = "help: `fragwatch check-config --show` prints a valid file".to_owned();
            self.report(place, error.message().to_owned(), help);
        }
        is_removed
    }

    /// Reports a missing key and adds it. A misspelled name was already reported.
    fn missing(&mut self, slot: Slot<'_, '_>, name: &str) -> bool {
        let Slot(path, value, example) = slot;
        let place = value.span();
        let keys = example.get_ref().as_table();
        let example = keys.and_then(|keys| keys.get_key_value(name));
        let (Some((key, example)), DeValue::Table(table)) = (example, value.get_mut()) else {
            return false;
        };
        table.insert(key.clone(), example.clone());
        if !self.unknown.iter().any(|it| nearest(it, [name]).is_some()) {
            let message = format!("{}: {name} is missing", key_of(&path));
            let help = format!("write: {name} = {}", example_of(example));
            self.report(place, message, help);
        }
        true
    }

    /// Reports an invalid value and replaces it by its example; removes an invalid item of a list.
    /// `error` is that of serde, `Some("")` if the value could not be parsed, `None` if only its
    /// escapes are wrong.
    fn refuse(&mut self, slot: Slot<'_, '_>, place: &Place, error: Option<&str>) -> bool {
        let Slot(path, value, example) = slot;
        let span = value.span();
        let (old, example, is_item) = match (item(value, example, place), value.get_mut()) {
            (Some(i), DeValue::Array(items)) => {
                if !self.shortened.contains(&span) {
                    self.shortened.push(span);
                }
                let all = std::mem::replace(items, std::iter::empty().collect());
                let mut rest: Vec<_> = all.into_iter().collect();
                let old = rest.remove(i);
                *items = rest.into_iter().collect();
                (old, example.get_ref().get(0), true)
            }
            _ => {
                let valid = Spanned::new(span, example.get_ref().clone());
                (std::mem::replace(value, valid), Some(example), false)
            }
        };
        let place = old.span();
        let raw = self.text.get(place.clone()).unwrap_or_default();
        let slot = format!("{path}{}", if is_item { ".0" } else { "" });
        let (message, instead) = match (error, old.get_ref()) {
            (None, text) => {
                let message = "holds a backslash that begins no escape".to_owned();
                (message, text.as_str().map(literal))
            }
            // Whatever the parser took it for, it is not text.
            (Some(""), _) => explain(&slot, raw, &DeValue::Boolean(true), example, ""),
            (Some(error), value) => explain(&slot, raw, value, example, error),
        };
        let found = match old.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) => String::new(),
            _ => keep_first(
                raw.lines().next().unwrap_or_default().to_owned(),
                MAX_REPEATED,
            ),
        };
        let space = if found.is_empty() { "" } else { " " };
        let lead = match path.rsplit('.').next() {
            Some(name) if !is_item => format!("{name} = "),
            _ => String::new(),
        };
        let write = instead.as_deref().or(example.map(example_of));
        let message = format!("{}: {found}{space}{message}", key_of(&path));
        let help = format!("write: {lead}{}", write.unwrap_or("\"…\""));
        self.report(place, message, help);
        true
    }
}

/// The value at `place`, or the list of values or the section with that place.
fn find<'s, 't>(
    table: &'s mut DeTable<'t>,
    schema: &'static DeTable<'static>,
    place: &Place,
    path: &str,
) -> Option<Slot<'s, 't>> {
    for (key, value) in table.iter_mut() {
        let Some(example) = schema.get(key.get_ref().as_ref()) else {
            continue;
        };
        let path = join(path, key.get_ref());
        let Some(keys) = section(example.get_ref()) else {
            if lies_within(place, &value.span()) {
                return Some(Slot(path, value, example));
            }
            continue;
        };
        match value.get_mut() {
            DeValue::Table(table) => {
                if let Some(slot) = find(table, keys, place, &path) {
                    return Some(slot);
                }
            }
            DeValue::Array(items) => {
                for (i, value) in items.iter_mut().enumerate() {
                    let path = format!("{path}.{i}");
                    if value.span() == *place {
                        let example = example.get_ref().get(0)?;
                        return Some(Slot(path, value, example));
                    }
                    if let DeValue::Table(table) = value.get_mut()
                        && let Some(slot) = find(table, keys, place, &path)
                    {
                        return Some(slot);
                    }
                }
            }
            _ => {}
        }
    }
    None
}

/// The index of the item that contains `place`, if a list of values is valid here.
fn item(value: &Value<'_>, example: &Value<'_>, place: &Place) -> Option<usize> {
    let (DeValue::Array(items), true) = (value.get_ref(), example.get_ref().is_array()) else {
        return None;
    };
    items
        .iter()
        .position(|item| lies_within(place, &item.span()))
}

/// Whether an error is inside `span`; one behind it is about something missing after it.
fn lies_within(error: &Place, span: &Place) -> bool {
    let begins_in = error.start < span.end || span.is_empty();
    error.start >= span.start && error.end <= span.end && begins_in
}

fn is_table(value: &Value<'_>) -> bool {
    value.get_ref().is_table()
}

/// The names of the keys of a section.
fn names(schema: &DeTable<'_>) -> String {
    let names = schema.keys().map(|key| key.get_ref().as_ref());
    names.collect::<Vec<_>>().join(", ")
}

/// A parser message in plain words, and a hint; `raw` is the text that it refers to.
fn explain_syntax(message: &str, raw: &str) -> (String, String) {
    let (message, help) = match message {
        "duplicate key" => {
            let key = keep_first(raw.to_owned(), MAX_REPEATED);
            let help = "help: keep one of the two, or put them together";
            return (
                format!("{key} is there twice in this file"),
                help.to_owned(),
            );
        }
        _ if message.starts_with("string values must be quoted") && !raw.is_empty() => {
            let help = format!("write: {}", quoted(raw));
            return ("text must stand in quotes".to_owned(), help);
        }
        _ if message.ends_with("expected `'`") || message.ends_with("expected `\"`") => {
            ("the closing quote is missing".to_owned(), "write: \"text\"")
        }
        _ => (
            format!("not TOML: {message}"),
            "help: a line is [section] or key = value, text stands in quotes: \"text\"",
        ),
    };
    (message, help.to_owned())
}
