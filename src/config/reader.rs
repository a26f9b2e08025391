//! From the text of one file to the keys that it sets, each with its place.
//!
//! TOML is parsed by the toml crate with recovery, and every key is then read by itself rather than
//! through a derived `Deserialize`, which ends at the first mistake: an operator gets all mistakes
//! of all files at once, each with the value that was found and what to write in its place.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::diagnose::{Finding, Place, keep_first};
use super::values::{Value, literal, quoted};

/// Characters of a value that a message repeats; the line below shows more.
const MAX_REPEATED: usize = 40;

/// Errors of the parser that are looked at. A megabyte of nonsense gives a million, nobody reads
/// more than the first few, and each is looked for in the text.
const MAX_SYNTAX_ERRORS: usize = 100;

/// How the parser's word on a string like `"\d"` begins.
const NO_ESCAPE: &str = "missing escaped value";

/// A value and where it was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    /// What was set.
    pub(super) value: T,
    /// Where.
    pub(super) place: Place,
}

impl<T> Located<T> {
    /// A value that came from no file, to be printed.
    pub(super) fn nowhere(value: T) -> Located<T> {
        Located {
            value,
            place: Place::default(),
        }
    }
}

/// The name of a key.
pub(super) struct Name {
    /// From the root: `thresholds.warning.extents`; empty for the root itself.
    pub(super) path: String,
    /// What stands before its value in a line that shows how to write it: `extents = `. Empty for
    /// an item of a list.
    pub(super) lead: String,
}

impl Name {
    /// The file itself.
    pub(super) fn root() -> Name {
        Name {
            path: String::new(),
            lead: String::new(),
        }
    }

    /// The key `name` of this section.
    pub(super) fn child(&self, name: &str) -> Name {
        Name {
            path: join(&self.path, name),
            lead: format!("{name} = "),
        }
    }

    /// An item of this list.
    pub(super) fn item(&self) -> Name {
        Name {
            path: self.path.clone(),
            lead: String::new(),
        }
    }
}

/// A line to be printed.
pub(super) enum Line {
    /// Another section of a list begins: `[[klog.rule]]`.
    Item {
        /// Path of the list.
        section: String,
    },
    /// A key that is set.
    Key {
        /// Path of the section that it stands in.
        section: String,
        /// Its name there.
        name: &'static str,
        /// Its value as TOML.
        value: String,
    },
}

/// All that a file can set.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Paths of the keys.
    pub(super) keys: Vec<String>,
    /// Paths of the lists of sections.
    pub(super) lists: Vec<String>,
}

impl Known {
    /// How the section `path` is headed: `[sampling]`, `[[klog.rule]]`.
    fn header(&self, path: &str) -> String {
        if self.lists.iter().any(|list| list == path) {
            format!("[[{path}]]")
        } else {
            format!("[{path}]")
        }
    }
}

/// What may stand behind a key: a value, a section of further keys, or a list of such sections.
pub(super) trait Field {
    /// Takes what stands behind `key`. What is wrong is left with the reader.
    fn read(&mut self, key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>);

    /// Takes over every key that `later` sets. A list of values replaces a list, one of sections is
    /// added to it.
    fn merge(&mut self, later: Self);

    /// Adds the keys that are set, in the order of their declaration.
    fn lines(&self, section: &str, name: &'static str, lines: &mut Vec<Line>);

    /// Adds all that there is.
    fn known(key: &Name, known: &mut Known);
}

/// A section that can be there several times: `[[klog.rule]]`.
pub(super) trait Item: Field + Default {
    /// The keys that each must have, and a line that shows how to set them.
    const REQUIRED: &'static [(&'static str, &'static str)];
}

impl<T: Value> Field for Option<Located<T>> {
    fn read(&mut self, key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) {
        let place = reader.place(value.span());
        *self = T::read(key, value, reader).map(|value| Located { value, place });
    }

    fn merge(&mut self, later: Self) {
        if later.is_some() {
            *self = later;
        }
    }

    fn lines(&self, section: &str, name: &'static str, lines: &mut Vec<Line>) {
        lines.extend(self.iter().map(|located| Line::Key {
            section: section.to_owned(),
            name,
            value: located.value.write(),
        }));
    }

    fn known(key: &Name, known: &mut Known) {
        known.keys.push(key.path.clone());
    }
}

/// A list of sections, each with the place of its header.
impl<S: Item> Field for Vec<Located<S>> {
    fn read(&mut self, key: &Name, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) {
        match value.get_ref() {
            DeValue::Array(items) => {
                self.extend(items.iter().map(|item| read_item(key, item, reader)));
            }
            DeValue::Table(_) => {
                let header = reader.known.header(&key.path);
                let message = format!("{} is a list, each item has a header of its own", key.path);
                reader.report(value, message, &header);
                // Looked at all the same, for what else is wrong with it.
                self.push(read_item(key, value, reader));
            }
            _ => _ = read_item::<S>(key, value, reader),
        }
    }

    fn merge(&mut self, later: Self) {
        self.extend(later);
    }

    fn lines(&self, section: &str, name: &'static str, lines: &mut Vec<Line>) {
        for item in self {
            lines.push(Line::Item {
                section: join(section, name),
            });
            item.value.lines(section, name, lines);
        }
    }

    fn known(key: &Name, known: &mut Known) {
        known.lists.push(key.path.clone());
        S::known(key, known);
    }
}

fn read_item<S: Item>(
    key: &Name,
    item: &Spanned<DeValue<'_>>,
    reader: &mut Reader<'_>,
) -> Located<S> {
    let place = reader.place(item.span());
    let mut section = S::default();
    section.read(key, item, reader);
    if let DeValue::Table(table) = item.get_ref() {
        for (name, write) in S::REQUIRED {
            // A slip in its name was found already.
            let is_slip = |other: &str| {
                nearest(other, &[*name]).is_some()
                    && !reader.known.keys.contains(&join(&key.path, other))
            };
            if !table.contains_key(*name) && !table.keys().any(|other| is_slip(other.get_ref())) {
                let message = format!("{}: {name} is missing", key.path);
                reader.report(item, message, write);
            }
        }
    }
    Located {
        value: section,
        place,
    }
}

/// The path of `name` in `section`, which is empty for the file itself.
pub(super) fn join(section: &str, name: &str) -> String {
    let dot = if section.is_empty() { "" } else { "." };
    format!("{section}{dot}{name}")
}

/// Declares sections of the file. A key is `name: Option<Located<kind of value>>`, a section within
/// the section is `name: its type`, a list of sections `name: Vec<Located<its type>>`; keys come
/// before sections, as TOML prints them. What is called by a word of Rust is
/// `name as "its name in the file": …`.
macro_rules! sections {
    ($(
        $(#[$doc:meta])*
        $section:ident { $($(#[$key_doc:meta])* $key:ident $(as $name:literal)?: $kind:ty,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(super) struct $section {
            $($(#[$key_doc])* pub(super) $key: $kind,)*
        }

        impl $crate::config::reader::Field for $section {
            fn read(
                &mut self,
                key: &$crate::config::reader::Name,
                value: &toml::Spanned<toml::de::DeValue<'_>>,
                reader: &mut $crate::config::reader::Reader<'_>,
            ) {
                const KNOWN: &[&str] = &[$(key_name!($key $($name)?)),*];
                let Some(table) = reader.table(key, value, KNOWN) else { return };
                for (name, value) in table {
                    match name.get_ref().as_ref() {
                        $(key_name!($key $($name)?) => {
                            let child = key.child(key_name!($key $($name)?));
                            self.$key.read(&child, value, reader);
                        })*
                        _ => reader.unknown(key, name, value, KNOWN),
                    }
                }
            }

            fn merge(&mut self, later: Self) {
                $(self.$key.merge(later.$key);)*
            }

            fn lines(
                &self,
                section: &str,
                name: &'static str,
                lines: &mut Vec<$crate::config::reader::Line>,
            ) {
                let section = $crate::config::reader::join(section, name);
                $(self.$key.lines(&section, key_name!($key $($name)?), lines);)*
            }

            fn known(
                key: &$crate::config::reader::Name,
                known: &mut $crate::config::reader::Known,
            ) {
                $(<$kind as $crate::config::reader::Field>::known(
                    &key.child(key_name!($key $($name)?)),
                    known,
                );)*
            }
        }
    )*};
}
pub(super) use sections;

/// How a key is called in the file.
macro_rules! key_name {
    ($key:ident) => {
        stringify!($key)
    };
    ($key:ident $name:literal) => {
        $name
    };
}
pub(super) use key_name;

/// Reads one file and collects what is wrong with it.
pub(super) struct Reader<'t> {
    file: usize,
    text: &'t str,
    /// All that there is, for those who put a key into the wrong section.
    known: Known,
    /// What the parser said and no value has explained yet.
    syntax: Vec<toml::de::Error>,
    /// Mistakes that the parser stumbled over and that a value could explain: missing quotes.
    unquoted: Vec<Finding>,
    /// All other mistakes.
    findings: Vec<Finding>,
}

/// Reads the file number `file`, which holds `text`: the keys that it sets, and what is wrong.
pub(super) fn read<F: Field + Default>(file: usize, text: &str) -> (F, Vec<Finding>) {
    let (table, mut syntax) = DeTable::parse_recoverable(text);
    syntax.truncate(MAX_SYNTAX_ERRORS);
    let mut reader = Reader {
        file,
        text,
        known: Known::default(),
        syntax,
        unquoted: Vec::new(),
        findings: Vec::new(),
    };
    F::known(&Name::root(), &mut reader.known);
    let root = Spanned::new(table.span(), DeValue::Table(table.into_inner()));
    let mut fields = F::default();
    fields.read(&Name::root(), &root, &mut reader);
    (fields, reader.finish())
}

impl Reader<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        Place {
            file: self.file,
            start: span.start,
            end: span.end,
        }
    }

    /// The keys of a section; nothing, with a finding, if it is none.
    pub(super) fn table<'v, 'i>(
        &mut self,
        key: &Name,
        value: &'v Spanned<DeValue<'i>>,
        known: &[&str],
    ) -> Option<&'v DeTable<'i>> {
        if let DeValue::Table(table) = value.get_ref() {
            return Some(table);
        }
        let message = format!("{} is a section, not a value", key.path);
        let header = self.known.header(&key.path);
        let write = format!("{header} and below it its keys: {}", known.join(", "));
        self.report(value, message, &write);
        None
    }

    /// A key that is none of the section's.
    pub(super) fn unknown(
        &mut self,
        section: &Name,
        name: &Spanned<Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        known: &[&str],
    ) {
        let written = name.get_ref().as_ref();
        let is_list = |list: &DeArray<'_>| !list.is_empty() && list.iter().all(is_table);
        let path = keep_first(section.child(written).path, MAX_REPEATED);
        let (message, is_section) = match value.get_ref() {
            DeValue::Table(_) => (format!("unknown section [{path}]"), true),
            DeValue::Array(list) if is_list(list) => (format!("unknown section [[{path}]]"), true),
            _ => (format!("unknown key {path}"), false),
        };
        let home = self.known.keys.iter().find_map(|path| {
            let (section, last) = path.rsplit_once('.')?;
            (last == written && !is_section).then_some(section)
        });
        let header = |path: &str| self.known.header(path);
        let near = nearest(written, known).map(|near| (near, section.child(near).path));
        let help = match (near, home) {
            (Some((_, path)), _) if is_section && !self.known.keys.contains(&path) => {
                format!("write: {}", header(&path))
            }
            (Some((near, _)), _) if !is_section => format!("write: {near}"),
            (None, Some(home)) => format!("help: it belongs into the section {}", header(home)),
            _ if section.path.is_empty() => {
                format!("help: the sections are [{}]", known.join("], ["))
            }
            _ => format!("help: {} knows {}", header(&section.path), known.join(", ")),
        };
        self.findings.push(Finding {
            place: self.place(name.span()),
            message,
            other: None,
            help,
        });
    }

    /// A value that does not fit. `proposal` is TOML.
    pub(super) fn misfit(
        &mut self,
        key: &Name,
        value: &Spanned<DeValue<'_>>,
        message: &str,
        proposal: &str,
    ) {
        let found = match value.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) => "",
            _ => self.raw(&value.span()).lines().next().unwrap_or_default(),
        };
        let space = if found.is_empty() { "" } else { " " };
        let found = keep_first(found.to_owned(), MAX_REPEATED);
        let message = format!("{}: {found}{space}{message}", key.path);
        let write = format!("{}{proposal}", key.lead);
        self.report(value, message, &write);
    }

    fn report(&mut self, value: &Spanned<DeValue<'_>>, message: String, write: &str) {
        let span = value.span();
        let finding = Finding::new(self.place(span.clone()), message, write);
        if self.stumbled_over(&span) {
            // Said here, and better than the parser can.
            self.syntax.retain(|error| !lies_within(error, &span));
            self.unquoted.push(finding);
        } else {
            self.findings.push(finding);
        }
    }

    /// A scalar as text: what a string says, or how anything else is written. The flag tells which:
    /// true for a string. Nothing, and the matter is settled, for an array or a table (`what` should
    /// stand there), for an empty value and for a string that the parser could not read.
    pub(super) fn scalar<'v>(
        &mut self,
        key: &Name,
        value: &'v Spanned<DeValue<'_>>,
        what: &str,
        example: &str,
    ) -> Option<(Cow<'v, str>, bool)> {
        let span = value.span();
        let raw = self.raw(&span);
        let stumbled = self.stumbled_over(&span);
        match value.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) => {
                let found = value.get_ref().type_str();
                self.misfit(
                    key,
                    value,
                    &format!("must be {what}, not a TOML {found}"),
                    example,
                );
                None
            }
            _ if raw.is_empty() => {
                self.misfit(key, value, "has no value", example);
                None
            }
            DeValue::String(text) if !stumbled => Some((Cow::Borrowed(text.as_ref()), true)),
            DeValue::String(text) if self.only_misses_escapes(&span) => {
                let message = "holds a backslash that begins no escape";
                self.misfit(key, value, message, &literal(text));
                None
            }
            _ if raw.starts_with(['"', '\'']) => None,
            _ => Some((Cow::Owned(raw.to_owned()), false)),
        }
    }

    /// The value as it stands in the file.
    fn raw(&self, span: &Range<usize>) -> &str {
        self.text.get(span.clone()).unwrap_or_default()
    }

    /// Whether the parser found fault with the value in `span`.
    fn stumbled_over(&self, span: &Range<usize>) -> bool {
        self.syntax.iter().any(|error| lies_within(error, span))
    }

    /// Whether all that the parser has against the string in `span` is `\d` or the like. What it
    /// made of the string has the backslash in it then.
    fn only_misses_escapes(&self, span: &Range<usize>) -> bool {
        let mut errors = self.syntax.iter();
        errors.all(|error| !lies_within(error, span) || error.message().starts_with(NO_ESCAPE))
    }

    /// All findings, once everything was read.
    fn finish(mut self) -> Vec<Finding> {
        let mut findings = std::mem::take(&mut self.unquoted);
        if self.syntax.is_empty() {
            findings.append(&mut self.findings);
            return findings;
        }
        // A bracket that is missing puts keys into sections where they were never meant to be, so
        // nothing that was said of this file without the parser's word can be relied on.
        self.syntax
            .sort_by_key(|error| error.span().map(|span| span.start));
        let line_of = |at: usize| {
            let before = self.text.as_bytes().iter().take(at);
            before.filter(|byte| **byte == b'\n').count()
        };
        let mut lines: Vec<usize> = findings.iter().map(|f| line_of(f.place.start)).collect();
        // One mistake makes the parser stumble more than once in its line.
        for error in &self.syntax {
            let span = error.span().unwrap_or_default();
            let line = line_of(span.start);
            if !lines.contains(&line) {
                lines.push(line);
                let (message, help) = explain(error.message(), self.raw(&span));
                findings.push(Finding {
                    place: self.place(span),
                    message,
                    other: None,
                    help,
                });
            }
        }
        findings
    }
}

fn is_table(value: &Spanned<DeValue<'_>>) -> bool {
    value.get_ref().is_table()
}

/// Whether the parser stumbled inside of `span`. Behind its last character it is rather something
/// that should follow which is missing.
fn lies_within(error: &toml::de::Error, span: &Range<usize>) -> bool {
    error.span().is_some_and(|error| {
        error.start >= span.start
            && error.end <= span.end
            && (error.start < span.end || span.is_empty())
    })
}

/// A message of the parser in our words, and what to do; `raw` is the text that it points to.
fn explain(message: &str, raw: &str) -> (String, String) {
    if message == "duplicate key" {
        let raw = keep_first(raw.to_owned(), MAX_REPEATED);
        let message = format!("{raw} is there twice in this file");
        return (
            message,
            "help: keep one of the two, or put them together".to_owned(),
        );
    }
    if message.starts_with("string values must be quoted") && !raw.is_empty() {
        let message = "text must stand in quotes".to_owned();
        return (message, format!("write: {}", quoted(raw)));
    }
    if message.ends_with("expected `'`") || message.ends_with("expected `\"`") {
        let message = "the closing quote is missing".to_owned();
        return (message, "write: \"text\"".to_owned());
    }
    let help = "help: a line is [section] or key = value, text stands in quotes: \"text\"";
    (format!("not TOML: {message}"), help.to_owned())
}

/// The word of `known` that was probably meant by `word`: one slip, or one for every three letters.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (slips(word, candidate), *candidate))
        .filter(|(slips, candidate)| *slips <= (candidate.len() / 3).max(1))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// Letters to add, drop or change to make one word of the other (Levenshtein distance).
fn slips(a: &str, b: &str) -> usize {
    let difference = a.len().abs_diff(b.len());
    if difference > b.len() {
        // Far enough, and a key may be as long as the file.
        return difference;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_not_far() {
        let known = ["interval", "map_interval", "probe_timeout"];
        assert_eq!(nearest("intervall", &known), Some("interval"));
        assert_eq!(nearest("map-interval", &known), Some("map_interval"));
        assert_eq!(nearest("probe_timout", &known), Some("probe_timeout"));
        assert_eq!(nearest("timeout", &known), None);
        assert_eq!(nearest("", &known), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), &known), None);
        assert_eq!(slips("kitten", "sitting"), 3);
    }
}
