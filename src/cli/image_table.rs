//! The table of `fragwatch scan`.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::scan::{Found, Image};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, Severity};

/// An image nearer than this to the number of extents at which its writes fail is worth a line:
/// percent.
const NEAR_LIMIT: u64 = 10;

/// The table and what is to be said below it.
pub(super) fn render(found: &Found, width: Option<u16>, colours: bool) -> String {
    let mut text = String::new();
    if !found.images.is_empty() {
        text.push_str(&table(found, width, colours));
        text.push('\n');
    }
    text.push_str(&summary(found));
    for image in &found.images {
        text.push_str(&limit_line(found, image).unwrap_or_default());
    }
    text
}

fn table(found: &Found, width: Option<u16>, colours: bool) -> String {
    let with_maps = found.images.iter().any(|image| image.map.is_some());
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if colours {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width);
    }
    let mut header = vec![
        "IMAGE",
        "EXTENTS",
        "MEAN",
        "SIZE",
        "ALLOCATED",
        "MAP MEMORY",
        "SEVERITY",
    ];
    if with_maps {
        header.insert(2, "FRAGMENTS");
    }
    table.set_header(header.clone());
    for image in &found.images {
        let mut row = vec![
            shown(&image.sample.path),
            image.sample.extents.to_string(),
            or_dash(image.sample.mean_extent()),
            image.sample.size.to_string(),
            image.sample.allocated.to_string(),
            or_dash(found.map_memory(image)),
        ];
        if with_maps {
            let fragments = image.map.as_ref().map(|map| ExtentCount(map.fragments));
            row.insert(2, or_dash(fragments));
        }
        let severity = Cell::new(image.severity.to_string()).fg(colour(image.severity));
        table.add_row(row.into_iter().map(Cell::new).chain([severity]));
    }
    for (number, name) in header.iter().enumerate() {
        let left = matches!(*name, "IMAGE" | "SEVERITY");
        let alignment = if left {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        };
        if let Some(column) = table.column_mut(number) {
            column.set_padding((0, 2)).set_cell_alignment(alignment);
        }
    }
    table.trim_fmt()
}

fn colour(severity: Severity) -> Color {
    match severity {
        Severity::Ok => Color::Green,
        Severity::Warning => Color::Yellow,
        Severity::Critical => Color::Red,
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

fn summary(found: &Found) -> String {
    let mut text = String::new();
    let images = found.images.len();
    // Writing to a String cannot fail, here and below.
    if images == 0 {
        text.push_str("No disk image found.\n");
    } else {
        let extents: ExtentCount = found.images.iter().map(|image| image.sample.extents).sum();
        let memory: Bytes = found
            .images
            .iter()
            .filter_map(|image| found.map_memory(image))
            .sum();
        let _ = writeln!(
            text,
            "\n{} with {extents} extents; their maps take up to {memory} of kernel memory that cannot be reclaimed while the images are open.",
            counted(images as u64, "image")
        );
    }
    let passed_over = found.passed_over;
    if passed_over.too_small > 0 {
        let _ = writeln!(
            text,
            "{} below the minimum size left out ({} in all; --min-size changes it).",
            counted(passed_over.too_small, "file"),
            passed_over.too_small_bytes
        );
    }
    text
}

/// `1 image`, `2 images`
pub(super) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", ExtentCount(number))
}

/// A line for an image that comes near the number of extents at which its writes fail.
fn limit_line(found: &Found, image: &Image) -> Option<String> {
    let limit = found.extent_limit(image)?;
    let percent = image.sample.extents.0.saturating_mul(100) / limit.0;
    (percent >= NEAR_LIMIT).then(|| {
        format!(
            "{}: {percent} % of the {limit} extents that its inode can hold; at the limit the guest's writes fail (EFBIG).\n",
            shown(&image.sample.path)
        )
    })
}
