//! From the texts of the files to [`Settings`]: the shape of each file, then its values, then all
//! files together.
//!
//! serde ends at the first mistake, and an operator is to get all of them at once. So a file that
//! does not fit is read once more key by key, each in a table of its own.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::report::{Finding, Place, keep_first};
use super::settings::Settings;
use super::text::{grouped, join, literal, nearest, quoted};
use super::units::{INSTEAD, Unit as _};
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// Characters of a value that a message repeats; the line below shows more.
const MAX_REPEATED: usize = 40;
/// Errors of the parser that are looked at. A megabyte of nonsense gives a million.
const MAX_SYNTAX_ERRORS: usize = 100;
/// How the parser's error for a string like `"\d"` begins.
const NO_ESCAPE: &str = "missing escaped value";

/// Sections of which there may be several, each with an example.
const EXAMPLES: &str = r#"
[[klog.rule]]
name = "disk_failed"
pattern = 'md/raid.*Disk failure on'
action = "observe"

[[thresholds.override]]
images = ["/srv/db-*"]
warning = { extents = 100_000, growth_per_day = 250_000, time_to_critical = "14d" }
critical = { extents = 1_000_000, growth_per_day = 500_000, time_to_critical = "1d" }

[[maintenance.window]]
days = ["Sat", "Sun"]
start = "01:00"
duration = "4h"

[[maintenance.blackout]]
from = 2026-12-20
to = 2027-01-06
"#;

/// A file that sets every key there is, to a value that is valid.
pub(super) static EVERY_KEY: LazyLock<String> = LazyLock::new(|| {
    let mut settings = Settings::default();
    // Either may be a number or "never".
    settings.thresholds.critical.growth_per_day =
        Some(ExtentsPerDay::from_count(ExtentCount(500_000)));
    settings.to_toml() + EXAMPLES
});

/// What [`EVERY_KEY`] holds: the keys and sections that a file may have.
static SCHEMA: LazyLock<DeTable<'static>> =
    LazyLock::new(|| DeTable::parse_recoverable(&EVERY_KEY).0.into_inner());

type Value<'t> = Spanned<DeValue<'t>>;

/// The keys of a file that holds `text` and begins at the place `begin`, with what is wrong in it.
/// A value that is wrong is replaced by a valid one.
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

/// The settings that a table makes which [`read`] has returned.
pub(super) fn settings(table: DeTable<'_>) -> Settings {
    // Its values were read one by one or are examples.
    parse(table).unwrap_or_default()
}

fn parse(table: DeTable<'_>) -> Result<Settings, toml::de::Error> {
    let root = Spanned::new(0..0, DeValue::Table(table));
    Settings::deserialize(root.into_deserializer())
}

/// Takes over every key that `later` sets. A list of values replaces a list, one of sections is
/// added to it.
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

/// Where the value of a key was written, by its path: `klog.rule.0.name`. None if it was not.
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

fn is_list_of_tables(value: &DeValue<'_>) -> bool {
    let items = value.as_array();
    items.is_some_and(|items| !items.is_empty() && items.iter().all(is_table))
}

/// The keys of a section, or of the first of a list of them. None for any other value.
fn section<'s, 'v>(value: &'s DeValue<'v>) -> Option<&'s DeTable<'v>> {
    value.get(0).map_or(value, Spanned::get_ref).as_table()
}

fn is_table(value: &Value<'_>) -> bool {
    value.get_ref().is_table()
}

/// The table with every place moved by `by` bytes.
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

/// A section on the way to a value, and whether it is an item of a list.
type Step<'t> = (Cow<'t, str>, bool);

/// Reads one file and collects what is wrong with it.
struct Reader<'t> {
    text: &'t str,
    begin: usize,
    /// The errors of the parser that no value explains: text without quotes is explained.
    syntax: Vec<toml::de::Error>,
    /// What explains an error of the parser.
    explained: Vec<Finding>,
    findings: Vec<Finding>,
    /// The names of unknown keys.
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

    /// The value as it stands in the file.
    fn raw(&self, place: &Place) -> &'t str {
        self.text.get(place.clone()).unwrap_or_default()
    }

    /// All findings, once everything was read.
    fn finish(mut self) -> Vec<Finding> {
        let mut findings = std::mem::take(&mut self.explained);
        if self.syntax.is_empty() {
            findings.append(&mut self.findings);
            return findings;
        }
        // A bracket that is missing puts keys into sections where they were never meant to be:
        // what was found without the parser is not reliable.
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

    /// Takes out the keys and sections that `schema` does not have, and what is a value where it
    /// has a section.
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

    /// Reports a key that the section with `schema` does not have, which is not kept.
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

    /// Replaces the values that do not fit by those of `schema`, and adds keys that are missing.
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

    /// An item of a list of sections.
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
            // A mistake in its name was reported already.
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

    /// A value, or a list of them, each of which is read by itself.
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

    /// Whether the value is accepted; reports why not.
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
            // The parser's own message is as good.
            _ if raw.starts_with(['"', '\'']) => return true,
            // Whatever the parser made of it, it is no text.
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

/// Whether the parser's error is inside of `span`. Behind its last character it is rather something
/// that should follow which is missing.
fn lies_within(error: &toml::de::Error, span: &Place) -> bool {
    error.span().is_some_and(|error| {
        error.start >= span.start
            && error.end <= span.end
            && (error.start < span.end || span.is_empty())
    })
}

/// The beginning of a text, to be repeated in a message.
fn repeated(text: &str) -> String {
    keep_first(text.to_owned(), MAX_REPEATED)
}

/// Where a value stands.
struct Slot<'s> {
    path: &'s [Step<'s>],
    /// Whether it is an item of the list at that path.
    is_item: bool,
    /// A value that fits. None for an item of a list of texts.
    expected: Option<&'static Value<'static>>,
}

impl Slot<'_> {
    /// Why a value does not fit; None if it does. That other keys are missing is no reason.
    fn reject(&self, mut value: Value<'_>) -> Option<String> {
        if self.is_item {
            let span = value.span();
            value = Spanned::new(span, DeValue::Array(std::iter::once(value).collect()));
        }
        let error = nested(self.path, value).err()?;
        missing_field(&error)
            .is_none()
            .then(|| error.message().to_owned())
    }

    /// The same of a value as TOML.
    fn reject_text(&self, text: &str) -> Option<String> {
        match DeValue::parse(text) {
            Ok(value) => self.reject(value),
            Err(error) => Some(error.message().to_owned()),
        }
    }
}

/// A value that does not fit.
struct Refusal<'r> {
    value: &'r DeValue<'r>,
    /// The value as it was written.
    raw: &'r str,
    slot: &'r Slot<'r>,
}

impl Refusal<'_> {
    /// What is wrong, to be read after the value, and what was probably meant, as TOML.
    fn explain(&self, mut error: String) -> (String, Option<String>) {
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

    /// What may have been meant, as TOML.
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

fn missing_field(error: &toml::de::Error) -> Option<String> {
    let (_, rest) = error.message().split_once("missing field `")?;
    rest.strip_suffix('`').map(str::to_owned)
}

/// Reads a file that has nothing but this value, at the end of `path`.
fn nested<'v>(path: &'v [Step<'v>], mut value: Value<'v>) -> Result<Settings, toml::de::Error> {
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

fn dotted(path: &[Step<'_>]) -> String {
    let names: Vec<&str> = path.iter().map(|(name, _)| name.as_ref()).collect();
    names.join(".")
}

fn names<'s>(schema: &'s DeTable<'_>) -> Vec<&'s str> {
    schema.keys().map(|key| key.get_ref().as_ref()).collect()
}

/// How a section is headed: `[sampling]`, `[[klog.rule]]`. None if there is no such section.
fn header(path: &str) -> Option<String> {
    let mut keys: &DeTable<'_> = &SCHEMA;
    let mut is_list = false;
    for name in path.split('.') {
        let value = keys.get(name)?.get_ref();
        is_list = value.is_array();
        keys = section(value)?;
    }
    Some(if is_list {
        format!("[[{path}]]")
    } else {
        format!("[{path}]")
    })
}

/// The header of the first section that has a key of this name.
fn home(keys: &DeTable<'_>, name: &str, path: &str) -> Option<String> {
    let is_value = |value: &Value<'_>| header(&join(path, name)).is_none() && !is_table(value);
    if keys.get(name).is_some_and(is_value) {
        return header(path);
    }
    keys.iter().find_map(|(key, value)| {
        let value = value.get_ref();
        let keys = section(value)?;
        home(keys, name, &join(path, key.get_ref()))
    })
}

/// How a value of the schema is written.
fn example_of(value: &Value<'_>) -> &'static str {
    EVERY_KEY.get(value.span()).unwrap_or_default()
}

/// The number that was meant by `"500000"`, `500k`, `5 M`, `1,000`.
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

/// What was meant by `yes`, `On`, `1`.
fn guess_switch(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" | "enabled" => Some(true),
        "false" | "no" | "n" | "off" | "0" | "disabled" | "never" => Some(false),
        _ => None,
    }
}

/// A message of the parser in plain words, and what to do; `raw` is the text that it points to.
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
