//! Text tables for a terminal, without lines between cells, and their words.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, presets};

use crate::model::ExtentCount;

/// Number of spaces between two columns.
const GAP: u16 = 2;

/// A table that is built row by row and rendered once.
pub struct TextTable(Table);

impl TextTable {
    /// Creates a table without rows. A header with a `>` prefix aligns its column to the right.
    pub fn new(headers: &[&str]) -> TextTable {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        table.set_header(headers.iter().map(|header| header.trim_start_matches('>')));
        for (column, header) in table.column_iter_mut().zip(headers) {
            let alignment = match header.starts_with('>') {
                true => CellAlignment::Right,
                false => CellAlignment::Left,
            };
            column.set_padding((0, GAP)).set_cell_alignment(alignment);
        }
        TextTable(table)
    }

    /// As [`new`](TextTable::new), for headers with a `|` between them.
    pub fn headed(headers: &str) -> TextTable {
        TextTable::new(&headers.split('|').collect::<Vec<_>>())
    }

    /// Wraps cells so that lines have at most `width` columns; `None` disables wrapping.
    pub fn wrapped(mut self, width: Option<u16>) -> TextTable {
        if let Some(width) = width {
            self.0
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        }
        self
    }

    /// Sets whether cells are coloured.
    pub fn coloured(mut self, colours: bool) -> TextTable {
        if colours {
            self.0.enforce_styling();
        }
        self
    }

    /// Adds a row.
    pub fn row<T: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(Row::from(cells));
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lines, including a final newline.
    pub fn render(&self) -> String {
        self.0.trim_fmt() + "\n"
    }
}

/// `1 image`, `2 images`
pub fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", ExtentCount(number))
}

/// A value, or a dash if there is none.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}
