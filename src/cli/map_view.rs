//! The output of `fragwatch scan --map`: the shape of each extent map.

use std::fmt::Write as _;

use super::images::{Found, Image};
use super::output::linear_bar;
use crate::config::settings::Sampling;
use crate::model::memory::extent_map_memory;
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, ExtentMap};

/// One paragraph for each image.
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
    let mean = map.mapped.per_extent(map.extents).unwrap_or_default();
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
    let kinds = kinds.iter().filter(|(_, bytes)| bytes.0 > 0);
    let kinds: Vec<_> = kinds
        .map(|(kind, bytes)| format!("{bytes} {kind}"))
        .collect();
    if !kinds.is_empty() {
        let _ = writeln!(text, "  {} of {}", kinds.join(", "), map.mapped);
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
    let mut text = String::new();
    let classes = classes.iter().enumerate();
    for (class, &extents) in classes.skip_while(|(_, extents)| **extents == 0) {
        let from = Bytes(1 << class);
        let _ = writeln!(
            text,
            "  {from:>9} │{} {}",
            linear_bar(extents, most),
            ExtentCount(extents)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
