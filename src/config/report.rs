//! Error messages: file, line and column, the line itself, a caret below the value, and what to
//! write instead. Control characters are escaped and long lines cut, so that a binary or hostile
//! file cannot affect the terminal.

use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;
use unicode_width::UnicodeWidthStr as _;

use crate::model::path::{printable, shown};

const MAX_PROBLEMS: usize = 20;
/// Maximum number of characters displayed before, of, and behind a value.
const MAX_BEFORE: usize = 50;
const MAX_VALUE: usize = 60;
const MAX_BEHIND: usize = 40;
/// Maximum number of characters of a message or a suggestion.
const MAX_MESSAGE: usize = 300;

#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The name under which it was opened.
    pub(super) path: PathBuf,
    /// Its content.
    pub(super) text: String,
}

/// A range of bytes in the concatenation of all files, with one byte between two files.
pub(super) type Place = Range<usize>;

/// The texts of the files, each behind so many spaces that a range of its bytes is a [`Place`].
pub(super) fn placed(sources: &[Source]) -> Vec<String> {
    let mut begin = 0;
    let texts = sources.iter().map(|Source { text, .. }| {
        let placed = " ".repeat(begin) + text;
        begin = placed.len() + 1;
        placed
    });
    texts.collect()
}

/// What is wrong at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) place: Place,
    /// What is wrong, in one line. Of an invalid value, it begins with the path of its key.
    pub(super) message: String,
    /// The hint with its label: `write: …` or `help: …`.
    pub(super) help: String,
}

impl Finding {
    pub(super) fn new(place: Place, message: String, help: impl Into<String>) -> Finding {
        let help = help.into();
        Finding {
            place,
            message,
            help,
        }
    }

    /// Whether it is in this section: the message begins with the key, or names one that is unknown.
    pub(super) fn is_in(&self, section: &str) -> bool {
        let key = ["unknown key ", "unknown section ["]
            .into_iter()
            .find_map(|unknown| self.message.strip_prefix(unknown));
        let rest = key.unwrap_or(&self.message).strip_prefix(section);
        rest.is_some_and(|rest| rest.starts_with(['.', ':']))
    }

    /// As by [`problem_at`]; the place is in one of these files.
    fn problem(&self, sources: &[Source]) -> String {
        let mut begin = 0;
        for Source { path, text } in sources {
            let end = begin + text.len();
            if self.place.start <= end {
                let bytes = self.place.start - begin..self.place.end.min(end) - begin;
                return problem_at(path, text.as_bytes(), bytes, &self.message, &self.help);
            }
            begin = end + 1;
        }
        one_line(&self.message)
    }
}

/// All problems of a configuration that can be determined at once, 1 to 20 of them. Displayed as
/// several lines, without a final newline. The first of each problem is `FILE:LINE:COLUMN: message`,
/// or `FILE: message` if the file could not be read; lines and columns count from 1, columns in
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// First `problems`, then `findings` in the order of the files.
    pub(super) fn new(
        mut problems: Vec<String>,
        mut findings: Vec<Finding>,
        sources: &[Source],
    ) -> ConfigError {
        findings.sort_by_key(|finding| finding.place.start);
        let total = problems.len() + findings.len();
        let room = MAX_PROBLEMS.saturating_sub(problems.len());
        let shown = findings.iter().take(room);
        problems.extend(shown.map(|finding| finding.problem(sources)));
        problems.truncate(MAX_PROBLEMS);
        if total > MAX_PROBLEMS {
            problems.push(format!("and {} more", total - MAX_PROBLEMS));
        }
        ConfigError(problems.join("\n\n"))
    }
}

/// A problem of a whole file.
pub(super) fn problem_of(path: &Path, message: &str, help: &str) -> String {
    let (message, help) = (one_line(message), one_line(help));
    format!("{}: {message}\n    help: {help}", shown(path))
}

/// A problem at `bytes` of `text`, which need not be UTF-8: the message with its place, the line of
/// the value, a caret below the value, and the hint.
pub(super) fn problem_at(
    path: &Path,
    text: &[u8],
    bytes: Range<usize>,
    message: &str,
    help: &str,
) -> String {
    let start = bytes.start.min(text.len());
    let end = bytes.end.clamp(start, text.len());
    let is_newline = |byte: &u8| *byte == b'\n';
    let (above, below) = text.split_at(start);
    let first = above.iter().rposition(is_newline).map_or(0, |at| at + 1);
    let last = below.iter().position(is_newline);
    let line = &text[first..last.map_or(text.len(), |at| start + at)];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // The value may begin at the end of the line (something is missing) or end in another line.
    let (before, value) = line.split_at((start - first).min(line.len()));
    let (value, behind) = value.split_at((end - start).min(value.len()));

    let number = above.iter().filter(|byte| is_newline(byte)).count() + 1;
    let column = String::from_utf8_lossy(before).chars().count() + 1;
    let before = keep_last(harmless(before), MAX_BEFORE);
    let value = keep_first(harmless(value), MAX_VALUE);
    let behind = keep_first(harmless(behind), MAX_BEHIND);
    // Terminal columns: a Chinese character takes two.
    let indent = " ".repeat(before.width());
    let caret = "^".repeat(value.width().max(1));
    let line = format!("    {before}{value}{behind}");
    let (path, line) = (shown(path), line.trim_end());
    let (message, help) = (one_line(message), one_line(help));
    format!("{path}:{number}:{column}: {message}\n{line}\n    {indent}{caret}\n    {help}")
}

/// Part of a line in printable form. A tab becomes one space: the caret stays below the value.
fn harmless(bytes: &[u8]) -> String {
    let plain = |byte: &u8| if *byte == b'\t' { b' ' } else { *byte };
    printable(&bytes.iter().map(plain).collect::<Vec<u8>>())
}

/// A printable message: it may contain names and values from the file.
fn one_line(text: &str) -> String {
    keep_first(printable(text.as_bytes()), MAX_MESSAGE)
}

/// At most `count` characters from the beginning of `text`.
pub(super) fn keep_first(mut text: String, count: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(count) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn keep_last(text: String, count: usize) -> String {
    match text.chars().count().checked_sub(count) {
        None | Some(0) => text,
        Some(cut) => std::iter::once('…').chain(text.chars().skip(cut)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is shown of the first `value` in `text`.
    fn shown_at(text: &str, value: &str) -> String {
        let start = text.find(value).unwrap();
        let bytes = start..start + value.len();
        let problem = problem_at(Path::new("f"), text.as_bytes(), bytes, "wrong", "help");
        problem.strip_suffix("\n    help").unwrap().to_owned()
    }

    #[test]
    fn the_caret_stands_below_the_value() {
        for (text, value, expected) in [
            ("a = 5", "5", "f:1:5: wrong\n    a = 5\n        ^"),
            ("a = 5\n", "5", "f:1:5: wrong\n    a = 5\n        ^"),
            (
                "x\r\na = 5\r\nb\r\n",
                "5",
                "f:2:5: wrong\n    a = 5\n        ^",
            ),
            (
                "\ta\t= 55 # x",
                "55",
                "f:1:6: wrong\n     a = 55 # x\n         ^^",
            ),
            (
                "é = [\"ü\", 5]",
                "5",
                "f:1:11: wrong\n    é = [\"ü\", 5]\n              ^",
            ),
            (
                "'磁盘' = '磁'",
                "'磁'",
                "f:1:8: wrong\n    '磁盘' = '磁'\n             ^^^^",
            ),
            (
                "a = [\n 1,\n]",
                "[\n 1,\n]",
                "f:1:5: wrong\n    a = [\n        ^",
            ),
            ("a =\n", "\n", "f:1:4: wrong\n    a =\n       ^"),
            (
                "a = '\u{1b}[2J' 5",
                "5",
                "f:1:12: wrong\n    a = '\\x1b[2J' 5\n                  ^",
            ),
        ] {
            assert_eq!(shown_at(text, value), expected, "{text:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut_around_the_value() {
        let text = format!("{}5{}", "é".repeat(100_000), "b".repeat(100_000));
        assert_eq!(
            shown_at(&text, "5"),
            format!(
                "f:1:100001: wrong\n    …{}5{}…\n    {}^",
                "é".repeat(50),
                "b".repeat(40),
                " ".repeat(51)
            )
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        let problem = problem_at(Path::new("f\n"), b"a\nb = \xff\xfe", 6..7, "wrong", "help");
        assert_eq!(
            problem,
            "f\\x0a:2:5: wrong\n    b = \\xff\\xfe\n        ^^^^\n    help"
        );
    }

    #[test]
    fn too_many_problems_are_counted() {
        let sources = [Source {
            path: PathBuf::from("f"),
            text: "a".to_owned(),
        }];
        let finding = Finding::new(0..0, "wrong".to_owned(), "right");
        let error = ConfigError::new(Vec::new(), vec![finding; 25], &sources).to_string();
        assert_eq!(error.matches("wrong").count(), 20);
        assert!(error.ends_with("\n\nand 5 more"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_raw_and_nothing_long_is_shown(
            text: Vec<u8>, start in 0..300_usize, length in 0..300_usize, message: String
        ) {
            let text = text.repeat(3);
            let problem =
                problem_at(Path::new("f"), &text, start..start + length, &message, &message);
            for line in problem.split('\n') {
                prop_assert!(!line.contains(char::is_control), "{:?}", line);
                prop_assert!(line.chars().count() <= MAX_MESSAGE + 20);
            }
        }
    }
}
