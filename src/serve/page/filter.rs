//! Which images the table shows, and in which order, from the query of its link. Pure.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::rows::Row;

/// The columns that can be sorted by: word and heading.
const COLUMNS: [(&str, &str); 8] = [
    ("name", "Image"),
    ("vm", "VM"),
    ("severity", "Severity"),
    ("since", "Since"),
    ("extents", "Extents"),
    ("growth", "Growth"),
    ("critical", "Critical"),
    ("size", "Size"),
];

/// The query; an empty text selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// A word of [`COLUMNS`], after `-` in reverse.
    pub sort: String,
    /// Part of the name of a VM or image.
    pub q: String,
    /// A mount point.
    pub fs: String,
    /// `warning`: that or worse.
    pub severity: String,
}

/// A heading of the table.
#[derive(Debug)]
pub struct Heading {
    pub text: &'static str,
    pub link: String,
    /// `ascending`, `descending` or `none`.
    pub order: &'static str,
}

impl Filter {
    /// Removes the rows that are not selected, and sorts the others.
    pub fn apply(&self, rows: &mut Vec<Row>) {
        let part = self.q.to_lowercase();
        rows.retain(|row| {
            let vm = row.vm.as_deref().unwrap_or_default();
            let named = [vm, &row.path]
                .into_iter()
                .any(|it| it.to_lowercase().contains(&part));
            let is_bad = match self.severity.as_str() {
                "critical" => row.severity.as_number() == 2,
                "warning" => row.severity.as_number() >= 1,
                _ => true,
            };
            named && is_bad && (self.fs.is_empty() || self.fs == row.mount)
        });
        match self.column() {
            "name" => rows.sort_by(|a, b| a.name().cmp(b.name())),
            "vm" => rows.sort_by(|a, b| a.vm.cmp(&b.vm)),
            "since" => rows.sort_by_key(|row| Reverse(row.since)),
            "extents" => rows.sort_by_key(|row| Reverse(row.extents)),
            "growth" => rows.sort_by(|a, b| {
                let rate = |row: &Row| row.growth.map_or(f64::NEG_INFINITY, |it| it.0);
                rate(b).total_cmp(&rate(a))
            }),
            "critical" => rows.sort_by_key(|row| {
                let now = row.severity.as_number() == 2;
                (!now, row.left.is_none(), row.left)
            }),
            "size" => rows.sort_by_key(|row| Reverse(row.size)),
            // As they come: the worst first.
            _ => {}
        }
        if self.sort.starts_with('-') {
            rows.reverse();
        }
    }

    fn column(&self) -> &str {
        match self.sort.trim_start_matches('-') {
            "" => "severity",
            column => column,
        }
    }

    /// The headings, with links that sort by them, or the other way round.
    pub fn headings(&self) -> Vec<Heading> {
        let heading = |(word, text): (&str, &'static str)| {
            let (is_it, reversed) = (self.column() == word, self.sort.starts_with('-'));
            let sign = if is_it && !reversed { "-" } else { "" };
            let next = Filter {
                sort: format!("{sign}{word}"),
                ..self.clone()
            };
            // Texts are always encoded.
            let query = serde_urlencoded::to_string(&next).unwrap_or_default();
            // Names begin with the first, numbers with the largest.
            let ascends = matches!(word, "name" | "vm" | "critical") != reversed;
            let order = match (is_it, ascends) {
                (false, _) => "none",
                (true, true) => "ascending",
                (true, false) => "descending",
            };
            Heading {
                text,
                link: format!("/images?{query}"),
                order,
            }
        };
        COLUMNS.into_iter().map(heading).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ExtentCount, Severity};

    fn rows() -> Vec<Row> {
        let row = |path: &str, vm: Option<&str>, extents, severity| Row {
            path: path.to_owned(),
            vm: vm.map(str::to_owned),
            extents: ExtentCount(extents),
            severity,
            mount: "/srv".to_owned(),
            ..Row::default()
        };
        vec![
            row("/srv/c.img", Some("web"), 5, Severity::Critical),
            row("/srv/a.img", None, 900, Severity::Warning),
            row("/srv/b.img", Some("DB"), 70, Severity::Ok),
        ]
    }

    fn shown(query: &str) -> Vec<u64> {
        let filter: Filter = serde_urlencoded::from_str(query).unwrap();
        let mut rows = rows();
        filter.apply(&mut rows);
        rows.iter().map(|row| row.extents.0).collect()
    }

    #[test]
    fn a_link_sorts_and_selects() {
        assert_eq!(shown(""), [5, 900, 70]);
        assert_eq!(shown("sort=extents"), [900, 70, 5]);
        assert_eq!(shown("sort=-extents"), [5, 70, 900]);
        assert_eq!(shown("sort=name"), [900, 70, 5]);
        assert_eq!(shown("sort=critical"), [5, 900, 70]);
        assert_eq!(shown("q=db"), [70]);
        assert_eq!(shown("severity=warning"), [5, 900]);
        assert_eq!(shown("fs=%2Fsrv&severity=critical"), [5]);
        assert!(shown("fs=/other&sort=nonsense").is_empty());
    }

    #[test]
    fn a_heading_turns_the_order_round() {
        let filter = Filter {
            sort: "extents".to_owned(),
            q: "a&b".to_owned(),
            ..Filter::default()
        };
        let headings = filter.headings();
        let extents = headings.iter().find(|it| it.text == "Extents").unwrap();
        assert_eq!(extents.link, "/images?sort=-extents&q=a%26b&fs=&severity=");
        assert_eq!(extents.order, "descending");
        assert!(headings.iter().filter(|it| it.order == "none").count() == 7);
    }
}
