//! What `fragwatch scan --map` adds: the shape of each extent map, to be taken in at a glance.

use std::fmt::Write as _;

use super::scan::{Found, Image};
use crate::config::settings::Sampling;
use crate::model::memory::extent_map_memory;
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, ExtentMap};

/// Columns of the longest bar; the formats that print bars pad to as many.
const BAR: u64 = 40;
/// Eighths of a column, from one to seven.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// One paragraph an image.
pub(super) fn render(found: &Found, sampling: &Sampling) -> String {
    let mut text = String::new();
    for image in &found.images {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "\n{}", shown(&image.sample.path));
        match &image.map {
            Some(map) => text.push_str(&paragraph(map)),
            None => text.push_str(&left_out(image, sampling)),
        }
        if found.map_memory(image).is_some() && image.sample.extents > sampling.map_max_extents {
            text.push_str(&cost(image));
        }
    }
    text
}

fn left_out(image: &Image, sampling: &Sampling) -> String {
    if image.sample.extents <= sampling.map_max_extents {
        return "  The map could not be read.\n".to_owned();
    }
    format!(
        "  The map was not read: {} extents are more than sampling.map_max_extents ({}); --map --force reads it.\n",
        image.sample.extents, sampling.map_max_extents
    )
}

/// What reading a large map costs.
fn cost(image: &Image) -> String {
    let memory = extent_map_memory(image.sample.extents);
    let has = if image.map.is_some() {
        "has loaded"
    } else {
        "loads"
    };
    format!(
        "  Reading it {has} about {memory} into kernel memory that cannot be reclaimed while anyone has the image open.\n"
    )
}

fn paragraph(map: &ExtentMap) -> String {
    let mean = map.mean().unwrap_or_default();
    let mut text = format!(
        "  {} extents in {} fragments, {} holes; mean {mean}, longest {}\n",
        map.extents,
        ExtentCount(map.fragments),
        ExtentCount(map.holes),
        map.longest
    );
    let kinds = [
        ("unwritten", map.unwritten),
        ("shared with other files", map.shared),
        ("not yet allocated", map.delayed),
    ];
    let told: Vec<_> = kinds
        .iter()
        .filter(|(_, bytes)| bytes.0 > 0)
        .map(|(kind, bytes)| format!("{bytes} {kind}"))
        .collect();
    if !told.is_empty() {
        let _ = writeln!(text, "  {} of {}", told.join(", "), map.mapped);
    }
    if !map.complete {
        text.push_str("  The map is longer; reading stopped there.\n");
    }
    text.push_str(&histogram(&map.histogram));
    text
}

/// A bar for each power of two between the shortest and the longest extent.
fn histogram(classes: &[u64]) -> String {
    let most = classes.iter().copied().max().unwrap_or(0);
    let first = classes
        .iter()
        .position(|&extents| extents > 0)
        .unwrap_or(classes.len());
    let mut text = String::new();
    for (class, &extents) in classes.iter().enumerate().skip(first) {
        let from = Bytes(1 << class);
        let _ = writeln!(
            text,
            "  {from:>9} │{:<40} {}",
            bar(extents, most),
            ExtentCount(extents)
        );
    }
    text
}

/// A bar as long as `value` is of `most`; anything above zero is seen.
pub(super) fn bar(value: u64, most: u64) -> String {
    if value == 0 || most == 0 {
        return String::new();
    }
    // Both are counts of extents of one file, far below 2^58.
    let eighths = (value.saturating_mul(BAR * 8) / most).max(1);
    let mut bar = "█".repeat(usize::try_from(eighths / 8).unwrap_or(0));
    if let Some(part) = usize::try_from(eighths % 8)
        .ok()
        .and_then(|part| part.checked_sub(1))
    {
        bar.push(EIGHTHS[part]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!(bar(0, 100), "");
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(50, 100), "█".repeat(20));
        assert_eq!(bar(100, 100), "█".repeat(40));
        assert_eq!(bar(1, 64), "▋");
    }

    #[test]
    fn a_histogram_begins_with_the_shortest_extent() {
        let mut classes = vec![0; 12];
        classes.extend([300, 0, 100]);
        let text = histogram(&classes);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("    4.0 KiB │████"), "{text}");
        assert!(lines[0].ends_with(" 300"));
        assert!(lines[1].contains("8.0 KiB │ "));
        assert!(lines[2].ends_with(" 100"));
    }
}
