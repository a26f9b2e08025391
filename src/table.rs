//! Text tables for a terminal: no lines, two blanks between columns.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, presets};

/// Blanks between two columns.
pub const GAP: u16 = 2;

/// A table that is built row by row and rendered once.
pub struct TextTable(Table);

impl TextTable {
    /// A table without rows. A header that begins with `>` aligns its column to the right.
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

    /// Wraps cells so that lines have at most so many columns; `None` wraps nothing.
    pub fn wrapped(mut self, width: Option<u16>) -> TextTable {
        if let Some(width) = width {
            self.0
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        }
        self
    }

    /// Whether cells have their colours.
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

    /// The lines, the last one with its newline.
    pub fn render(&self) -> String {
        self.0.trim_fmt() + "\n"
    }
}

/// A value, or a dash where there is none.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}
