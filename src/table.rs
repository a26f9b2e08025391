//! Text tables for a terminal, without lines between cells, and their words.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, presets};

use crate::model::ExtentCount;

/// Number of spaces between two columns.
const GAP: u16 = 2;
/// Cells of columns that are wider are wrapped, others are not.
const WRAPPED: u16 = 24;

/// A table that is built row by row and rendered once.
pub struct TextTable {
    table: Table,
    /// The columns that are left out where the table does not fit.
    optional: Vec<usize>,
}

impl TextTable {
    /// Creates a table without rows. A header with a `>` prefix aligns its column to the right; with a
    /// `?` before that, the column is left out where the table does not fit.
    pub fn new(headers: &[&str]) -> TextTable {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        table.set_header(headers.iter().map(|it| it.trim_start_matches(['?', '>'])));
        for (column, header) in table.column_iter_mut().zip(headers) {
            let alignment = match header.trim_start_matches('?').starts_with('>') {
                true => CellAlignment::Right,
                false => CellAlignment::Left,
            };
            column.set_padding((0, GAP)).set_cell_alignment(alignment);
        }
        let optional = (0..headers.len()).filter(|at| headers[*at].starts_with('?'));
        let optional = optional.collect();
        TextTable { table, optional }
    }

    /// As [`new`](TextTable::new), for headers with a `|` between them.
    pub fn headed(headers: &str) -> TextTable {
        TextTable::new(&headers.split('|').collect::<Vec<_>>())
    }

    /// Wraps cells so that lines have at most `width` columns; `None` disables wrapping.
    pub fn wrapped(mut self, width: Option<u16>) -> TextTable {
        if let Some(width) = width {
            self.table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        }
        self
    }

    /// Sets whether cells are coloured.
    pub fn coloured(mut self, colours: bool) -> TextTable {
        if colours {
            self.table.enforce_styling();
        }
        self
    }

    /// Adds a row.
    pub fn row<T: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.table.add_row(Row::from(cells));
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The lines, including a final newline.
    pub fn render(mut self) -> String {
        if let Some(width) = self.table.width() {
            self.fit(width);
        }
        self.table.trim_fmt() + "\n"
    }

    /// Leaves out optional columns, the last one first, until only wide columns need to be wrapped.
    fn fit(&mut self, width: u16) {
        let mut widths = self.table.column_max_content_widths();
        let fits = |widths: &[u16]| {
            let columns = widths.iter().filter(|its| **its > 0);
            let least: u16 = columns.map(|its| (*its).min(WRAPPED) + GAP).sum();
            least - GAP <= width
        };
        while !fits(&widths) {
            let Some(hidden) = self.optional.pop() else {
                return;
            };
            widths[hidden] = 0;
            if let Some(column) = self.table.column_mut(hidden) {
                column.set_constraint(ColumnConstraint::Hidden);
            }
        }
        for (column, width) in self.table.column_iter_mut().zip(widths) {
            if (1..=WRAPPED).contains(&width) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(width: u16) -> Vec<String> {
        let mut table = TextTable::headed("IMAGE|>EXTENTS|?>MEAN|SEVERITY").wrapped(Some(width));
        let image = "/srv/images/of-a-guest-with-a-long-name.img";
        table.row([image, "39,996", "4.0 KiB", "critical"]);
        table.render().lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_the_wide_column_is_wrapped() {
        let wide = lines(100);
        assert_eq!(wide.len(), 2);
        assert!(wide[0].contains("MEAN"));
        let narrow = lines(60);
        assert_eq!(narrow[0].split_whitespace().count(), 4);
        assert!(narrow[1].contains("39,996") && narrow[1].ends_with("critical"));
        assert!(narrow.len() > 2);
    }

    #[test]
    fn optional_columns_go_first() {
        for (width, has_mean) in [(52, true), (51, false), (45, false)] {
            let lines = lines(width);
            assert_eq!(lines[0].contains("MEAN"), has_mean, "{width}: {lines:?}");
            let all = lines.iter().map(|line| line.chars().count());
            assert!(all.max() <= Some(usize::from(width)), "{width}: {lines:?}");
            assert!(lines[1].contains("39,996") && lines[1].ends_with("critical"));
        }
    }
}
