//! Converts the texts of the files to [`Settings`]: structure and values of each file, then the
//! whole. serde stops at the first mistake, but all of them are to be reported: a file that does
//! not fit is read again key by key, each in a table of its own.

use std::borrow::Cow;

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::refusal::{Refusal, Slot, Step, dotted, missing_field, nested};
use super::report::{Finding, Place, keep_first};
use super::schema::{
    SCHEMA, Value, example_of, header, home, is_list_of_tables, is_table, names, section,
};
use super::settings::Settings;
use super::text::{join, literal, nearest, quoted};

/// Maximum number of characters of a value in a message; the line below it shows more.
const MAX_REPEATED: usize = 40;
/// Maximum number of parser errors examined. A megabyte of garbage causes a million.
const MAX_SYNTAX_ERRORS: usize = 100;
/// The start of the parser error for a string like `"\d"`.
const NO_ESCAPE: &str = "missing escaped value";

/// The keys of a file with the content `text` that begins at the place `begin`, and what is wrong
/// in it. Invalid values are replaced by valid ones.
pub(super) fn read(text: &str, begin: usize) -> (DeTable<'_>, Vec<Finding>) {
    let (table, mut syntax) = DeTable::parse_recoverable(text);
    syntax.truncate(MAX_SYNTAX_ERRORS);
    let mut reader = Reader {
        text,
        begin,
        syntax,
        explained: Vec::new(),
        findings: Vec::new(),
        unknown: Vec::new(),
    };
    let mut table = table.into_inner();
    reader.shape(&mut table, &SCHEMA, "");
    if !reader.syntax.is_empty() || parse(table.clone()).is_err() {
        reader.values(&mut table, &SCHEMA, &mut Vec::new());
    }
    let findings = reader.finish();
    (moved(table, begin), findings)
}

/// The settings of a table returned by [`read`].
pub(super) fn settings(table: DeTable<'_>) -> Settings {
    // Cannot fail: the values were read one by one or are examples.
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
            (Some(old), DeValue::Array(new)) if is_list_of_tables(old.get_ref()) => {
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

/// Moves every place by `by` bytes.
fn moved(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    fn place<T>(spanned: &Spanned<T>, by: usize) -> Place {
        spanned.span().start + by..spanned.span().end + by
    }
    fn value(old: Value<'_>, by: usize) -> Value<'_> {
        let place = place(&old, by);
        let new = match old.into_inner() {
            DeValue::Table(table) => DeValue::Table(moved(table, by)),
            DeValue::Array(items) => {
                DeValue::Array(items.into_iter().map(|item| value(item, by)).collect())
            }
            scalar => scalar,
        };
        Spanned::new(place, new)
    }
    let moved = table.into_iter().map(|(key, old)| {
        let key = Spanned::new(place(&key, by), key.into_inner());
        (key, value(old, by))
    });
    moved.collect()
}

/// Reads one file and collects what is wrong with it.
struct Reader<'t> {
    text: &'t str,
    begin: usize,
    /// Parser errors that are not explained by a value, such as text without quotes.
    syntax: Vec<toml::de::Error>,
    /// The findings that explain parser errors.
    explained: Vec<Finding>,
    findings: Vec<Finding>,
    unknown: Vec<String>,
}

impl<'t> Reader<'t> {
    fn finding(&self, place: Place, message: String, help: String) -> Finding {
        let place = place.start + self.begin..place.end + self.begin;
        Finding::with_help(place, message, help)
    }

    fn report(&mut self, place: Place, message: String, help: String) {
        let finding = self.finding(place, message, help);
        self.findings.push(finding);
    }

    fn raw(&self, place: &Place) -> &'t str {
        self.text.get(place.clone()).unwrap_or_default()
    }

    fn finish(mut self) -> Vec<Finding> {
        let mut findings = std::mem::take(&mut self.explained);
        if self.syntax.is_empty() {
            findings.append(&mut self.findings);
            return findings;
        }
        // A missing bracket moves keys into wrong sections, which makes `self.findings` unreliable.
        self.syntax
            .sort_by_key(|error| error.span().map(|span| span.start));
        let line_of = |at: usize| {
            self.text
                .get(..at)
                .map(|before| before.matches('\n').count())
        };
        let lines = findings
            .iter()
            .map(|it| line_of(it.place.start - self.begin));
        let mut lines: Vec<_> = lines.collect();
        for error in &self.syntax {
            // One mistake causes several errors in its line.
            let span = error.span().unwrap_or_default();
            let line = line_of(span.start);
            if !lines.contains(&line) {
                lines.push(line);
                let (message, help) = explain(error.message(), self.raw(&span));
                findings.push(self.finding(span, message, help));
            }
        }
        findings
    }

    /// Removes keys and sections that are not in `schema`, and values in the place of sections.
    fn shape(&mut self, table: &mut DeTable<'_>, schema: &DeTable<'_>, path: &str) {
        for (key, mut value) in std::mem::take(table) {
            let path = join(path, key.get_ref());
            let keep = match schema.get(key.get_ref().as_ref()) {
                None => self.unknown(&key, value.get_ref(), schema, &path),
                Some(expected) => self.has_shape(&mut value, expected.get_ref(), &path),
            };
            if keep {
                table.insert(key, value);
            }
        }
    }

    fn has_shape(&mut self, value: &mut Value<'_>, expected: &DeValue<'_>, path: &str) -> bool {
        let Some(keys) = section(expected) else {
            return true;
        };
        let span = value.span();
        match (expected, value.get_mut()) {
            (DeValue::Table(_), DeValue::Table(table)) => self.shape(table, keys, path),
            (DeValue::Array(_), DeValue::Array(items)) if items.iter().all(is_table) => {
                for item in items.iter_mut() {
                    if let DeValue::Table(table) = item.get_mut() {
                        self.shape(table, keys, path);
                    }
                }
            }
            (_, value) => {
                let header = header(path).unwrap_or_default();
                let (message, help) = if value.is_table() {
                    let message = format!("{path} is a list, each item has a header of its own");
                    (message, format!("write: {header}"))
                } else {
                    let keys = names(keys).join(", ");
                    let help = format!("write: {header} and below it its keys: {keys}");
                    (format!("{path} is a section, not a value"), help)
                };
                self.report(span, message, help);
                return false;
            }
        }
        true
    }

    /// Reports a key that is not in the section `schema`; returns false, so that it is not kept.
    fn unknown(
        &mut self,
        key: &Spanned<Cow<'_, str>>,
        value: &DeValue<'_>,
        schema: &DeTable<'_>,
        path: &str,
    ) -> bool {
        let written = key.get_ref().as_ref();
        let section = path.strip_suffix(written).unwrap_or_default();
        let section = section.trim_end_matches('.');
        let shown = repeated(path);
        self.unknown.push(written.to_owned());
        let is_section = value.is_table() || is_list_of_tables(value);
        let message = match value {
            DeValue::Table(_) => format!("unknown section [{shown}]"),
            _ if is_section => format!("unknown section [[{shown}]]"),
            _ => format!("unknown key {shown}"),
        };
        let known = names(schema);
        let near = nearest(written, known.iter().copied());
        let near_header = near.and_then(|near| header(&join(section, near)));
        let help = match (near, near_header, home(&SCHEMA, written, "")) {
            (_, Some(header), _) if is_section => format!("write: {header}"),
            (Some(near), _, _) if !is_section => format!("write: {near}"),
            (None, _, Some(home)) if !is_section => format!("help: it belongs in {home}"),
            _ => match header(section) {
                Some(header) => format!("help: the keys of {header} are {}", known.join(", ")),
                None => format!("help: the sections are [{}]", known.join("], [")),
            },
        };
        self.report(key.span(), message, help);
        false
    }

    /// Replaces invalid values by those of `schema`, and adds missing keys.
    fn values<'v>(
        &mut self,
        table: &mut DeTable<'v>,
        schema: &'static DeTable<'static>,
        path: &mut Vec<Step<'v>>,
    ) {
        for (key, value) in table.iter_mut() {
            let Some(expected) = schema.get(key.get_ref().as_ref()) else {
                continue;
            };
            path.push((key.get_ref().clone(), false));
            match (section(expected.get_ref()), value.get_mut()) {
                (Some(keys), DeValue::Table(table)) => self.values(table, keys, path),
                (Some(keys), DeValue::Array(items)) => {
                    if let Some(last) = path.last_mut() {
                        last.1 = true;
                    }
                    for item in items.iter_mut() {
                        self.item(item, keys, path);
                    }
                }
                _ => self.value(value, expected, path),
            }
            path.pop();
        }
    }

    fn item<'v>(
        &mut self,
        item: &mut Value<'v>,
        schema: &'static DeTable<'static>,
        path: &mut Vec<Step<'v>>,
    ) {
        let span = item.span();
        let DeValue::Table(table) = item.get_mut() else {
            return;
        };
        self.values(table, schema, path);
        loop {
            let error = nested(
                path,
                Spanned::new(span.clone(), DeValue::Table(table.clone())),
            );
            let missing = error.err().and_then(|error| missing_field(&error));
            let missing = missing.and_then(|name| schema.get_key_value(name.as_str()));
            let Some((key, example)) = missing else {
                return;
            };
            let name = key.get_ref().as_ref();
            // A misspelled name was already reported.
            if !self.unknown.iter().any(|it| nearest(it, [name]).is_some()) {
                self.report(
                    span.clone(),
                    format!("{}: {name} is missing", dotted(path)),
                    format!("write: {name} = {}", example_of(example)),
                );
            }
            table.insert(key.clone(), example.clone());
        }
    }

    fn value<'v>(
        &mut self,
        value: &mut Value<'v>,
        expected: &'static Value<'static>,
        path: &[Step<'v>],
    ) {
        let mut slot = Slot {
            path,
            is_item: false,
            expected: Some(expected),
        };
        let fits = match (value.get_ref(), expected.get_ref()) {
            (DeValue::Array(items), DeValue::Array(examples)) => {
                slot.is_item = true;
                slot.expected = examples.first();
                let wrong = items.iter().filter(|item| !self.fits(item, &slot));
                wrong.count() == 0
            }
            _ => self.fits(value, &slot),
        };
        if !fits {
            *value = Spanned::new(value.span(), expected.get_ref().clone());
        }
    }

    /// Whether the value is accepted; reports the reason if not.
    fn fits(&mut self, value: &Value<'_>, slot: &Slot<'_>) -> bool {
        let span = value.span();
        let raw = self.raw(&span);
        let lies_within = |error: &toml::de::Error| lies_within(error, &span);
        let errors = self.syntax.iter().filter(|error| lies_within(error));
        let only_escapes = errors.clone().all(|it| it.message().starts_with(NO_ESCAPE));
        let is_parsed = errors.count() == 0;
        let refusal = |value, error| Refusal { value, raw, slot }.explain(error);
        let (message, instead) = match (value.get_ref(), is_parsed) {
            (parsed, true) => match slot.reject(value.clone()) {
                None => return true,
                Some(error) => refusal(parsed, error),
            },
            (DeValue::String(text), _) if only_escapes => {
                let message = "holds a backslash that begins no escape".to_owned();
                (message, Some(literal(text)))
            }
            // The parser's own message is sufficient.
            _ if raw.starts_with(['"', '\'']) => return true,
            // Whatever the parser took it for, it is not text.
            _ => refusal(&DeValue::Boolean(true), String::new()),
        };
        let found = match value.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) => String::new(),
            _ => repeated(raw.lines().next().unwrap_or_default()),
        };
        let space = if found.is_empty() { "" } else { " " };
        let message = format!("{}: {found}{space}{message}", dotted(slot.path));
        let lead = match slot.path.last() {
            Some((name, _)) if !slot.is_item => format!("{name} = "),
            _ => String::new(),
        };
        let example = slot.expected.map_or("\"…\"", example_of);
        let instead = instead.as_deref().unwrap_or(example);
        let finding = self.finding(span.clone(), message, format!("write: {lead}{instead}"));
        if is_parsed {
            self.findings.push(finding);
        } else {
            self.syntax.retain(|error| !lies_within(error));
            self.explained.push(finding);
        }
        false
    }
}

/// Whether a parser error is inside `span`; one behind it is about something missing after it.
fn lies_within(error: &toml::de::Error, span: &Place) -> bool {
    error.span().is_some_and(|error| {
        error.start >= span.start
            && error.end <= span.end
            && (error.start < span.end || span.is_empty())
    })
}

fn repeated(text: &str) -> String {
    keep_first(text.to_owned(), MAX_REPEATED)
}

/// A parser message in plain words, and a hint; `raw` is the text that it refers to.
fn explain(message: &str, raw: &str) -> (String, String) {
    let (message, help) = match message {
        "duplicate key" => (
            format!("{} is there twice in this file", repeated(raw)),
            "help: keep one of the two, or put them together".to_owned(),
        ),
        _ if message.starts_with("string values must be quoted") && !raw.is_empty() => (
            "text must stand in quotes".to_owned(),
            format!("write: {}", quoted(raw)),
        ),
        _ if message.ends_with("expected `'`") || message.ends_with("expected `\"`") => (
            "the closing quote is missing".to_owned(),
            "write: \"text\"".to_owned(),
        ),
        _ => (
            format!("not TOML: {message}"),
            "help: a line is [section] or key = value, text stands in quotes: \"text\"".to_owned(),
        ),
    };
    (message, help)
}
