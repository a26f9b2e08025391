//! Output and exit codes. Colour only on a terminal; a closed pipe is not an error.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

pub(super) use crate::table::counted;

/// Exit code: everything was done.
pub(super) const SUCCESS: u8 = 0;
/// Exit code: something could not be read.
pub(super) const INCOMPLETE: u8 = 1;
/// Exit code: wrong usage, invalid configuration, or nothing was done.
pub(super) const FAILURE: u8 = 2;
/// Exit code of the commands for monitoring: it could not be found out.
pub(super) const UNKNOWN: u8 = 3;

/// Version of the JSON documents. Keys are only added; incremented if one ever changes its meaning.
pub(super) const SCHEMA: u32 = 1;

/// Columns of the longest [`linear_bar`]; shorter ones are padded to it.
const BAR: usize = 40;
/// One to seven eighths of a column.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Whether to colour standard output: a terminal, and NO_COLOR not set (<https://no-color.org>).
pub(super) fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// Columns of the output: those of COLUMNS, or of the terminal; `None` if there is neither.
pub(super) fn width() -> Option<u16> {
    let set = std::env::var("COLUMNS").ok();
    let set = set.and_then(|columns| columns.parse().ok());
    if let Some(columns) = set.filter(|columns| *columns > 0) {
        return Some(columns);
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// Prints a text, in a single write if the pipe accepts it. For errors see [`is_broken_pipe`].
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Replaces what is on the terminal, from its first row on; lines below its last row are left out. If
/// the output is no terminal, prints the text and an empty line.
pub(super) fn redraw(text: &str) -> io::Result<()> {
    let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) else {
        return print(&format!("{text}\n"));
    };
    // Zero if the terminal reports no size.
    let limit = |size: u16| (size > 0).then_some(usize::from(size));
    let rows = limit(size.ws_row).map_or(usize::MAX, |rows| rows.max(2) - 1);
    print(&screen(
        text,
        rows,
        limit(size.ws_col).unwrap_or(usize::MAX),
    ))
}

/// The first lines of a text, as many as fit, and what puts them in place of what was there.
fn screen(text: &str, rows: usize, columns: usize) -> String {
    let mut left = rows;
    let mut screen = "\x1b[H".to_owned();
    for line in text.lines() {
        let taken = line.width().div_ceil(columns).max(1);
        let Some(rest) = left.checked_sub(taken) else {
            break;
        };
        left = rest;
        // Before the line: after one that ends in the last column, its last character would be erased.
        let erase = if taken > 1 { "\x1b[J" } else { "\x1b[K" };
        screen.extend([erase, line, "\n"]);
    }
    screen + "\x1b[J"
}

/// Prints a JSON document on one line.
pub(super) fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(&(serde_json::to_string(document)? + "\n"))?)
}

/// Writes a line to standard error. A write error is ignored; the exit code still reports failure.
pub(super) fn eprint_error(line: &str) {
    let _ = writeln!(io::stderr(), "fragwatch: {line}");
}

/// Whether a command failed because its output is no longer read.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A horizontal bar of the given number of eighths of a column.
pub(super) fn bar(eighths: usize) -> String {
    let mut bar = "█".repeat(eighths / 8);
    let part = (eighths % 8).checked_sub(1);
    bar.extend(part.and_then(|part| EIGHTHS.get(part)));
    bar
}

/// A bar proportional to `value`, padded to the length of that of `most`. Visible if above zero.
pub(super) fn linear_bar(value: u64, most: u64) -> String {
    bar_within(BAR, value, most)
}

/// As [`linear_bar`], where that of `most` has this number of columns.
pub(super) fn bar_within(columns: usize, value: u64, most: u64) -> String {
    let eighths = match value {
        0 => 0,
        // Counts of extents and files are far below 2^58.
        _ => (value.saturating_mul(columns as u64 * 8) / most.max(1)).max(1),
    };
    let bar = bar(usize::try_from(eighths).unwrap_or(0));
    format!("{bar:<columns$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_has_the_lines_that_fit() {
        let (home, row, below) = ("\x1b[H", "\x1b[K", "\x1b[J");
        assert_eq!(
            screen("ab\ncd\nef\n", 2, 2),
            format!("{home}{row}ab\n{row}cd\n{below}")
        );
        // A line of two rows.
        assert_eq!(
            screen("abc\nd\ne\n", 3, 2),
            format!("{home}{below}abc\n{row}d\n{below}")
        );
        assert_eq!(screen("a\nbcd\n", 2, 2), format!("{home}{row}a\n{below}"));
        assert_eq!(
            screen("\nb\n", usize::MAX, usize::MAX),
            format!("{home}{row}\n{row}b\n{below}")
        );
    }

    #[test]
    fn bars_are_in_proportion() {
        let bar = |value, most| linear_bar(value, most).trim_end().to_owned();
        assert_eq!(bar(0, 100), "");
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(50, 100), "█".repeat(20));
        assert_eq!(bar(100, 100), "█".repeat(40));
        assert_eq!(bar(1, 64), "▋");
        assert_eq!(linear_bar(0, 0), " ".repeat(40));
    }
}
