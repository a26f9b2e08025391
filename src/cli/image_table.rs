//! The table of `fragwatch scan`.

use std::fmt::Write as _;
use std::path::Path;

use comfy_table::{Cell, Color};

use super::images::{Found, Image};
use super::output::counted;
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, Opener, Owner, Severity, Vm};
use crate::table::{TextTable, or_dash};

/// From this percentage of the extent limit on, an image is mentioned below the table.
const NEAR_LIMIT: u64 = 10;

/// The table and the notes below it.
pub(super) fn render(found: &Found, width: Option<u16>, colours: bool) -> String {
    let mut text = String::new();
    if !found.images.is_empty() {
        text.push_str(&table(found, width, colours));
    }
    text.push_str(&summary(found));
    for image in &found.images {
        text.push_str(&limit_line(found, image).unwrap_or_default());
        text.push_str(&mixed_line(image).unwrap_or_default());
    }
    text
}

fn table(found: &Found, width: Option<u16>, colours: bool) -> String {
    let with_maps = found.images.iter().any(|image| image.map.is_some());
    let headers = match with_maps {
        true => "IMAGE|>EXTENTS|>FRAGMENTS|?>MEAN|>SIZE|?>ALLOCATED|?>MAP MEMORY|VM|SEVERITY",
        false => "IMAGE|>EXTENTS|?>MEAN|>SIZE|?>ALLOCATED|?>MAP MEMORY|VM|SEVERITY",
    };
    let mut table = TextTable::headed(headers).wrapped(width).coloured(colours);
    for image in &found.images {
        let mut row = vec![
            shown(&image.sample.path),
            image.sample.extents.to_string(),
            or_dash(image.sample.allocated.per_extent(image.sample.extents)),
            image.sample.size.to_string(),
            image.sample.allocated.to_string(),
            or_dash(found.map_memory(image)),
            vm(image),
        ];
        if with_maps {
            let fragments = image.map.as_ref().map(|map| ExtentCount(map.fragments));
            row.insert(2, or_dash(fragments));
        }
        let severity = Cell::new(image.severity).fg(colour(image.severity));
        table.row(row.into_iter().map(Cell::new).chain([severity]));
    }
    table.render()
}

fn colour(severity: Severity) -> Color {
    match severity {
        Severity::Ok => Color::Green,
        Severity::Warning => Color::Yellow,
        Severity::Critical => Color::Red,
    }
}

/// The name of the VM that has the image open, or its PID if it has no name.
fn vm(image: &Image) -> String {
    let vm = image.owner.as_ref().and_then(Owner::vm);
    let name = |vm: &Vm| match &vm.name {
        Some(name) => shown(Path::new(name)),
        None => format!("pid {}", vm.pid),
    };
    or_dash(vm.map(name))
}

fn summary(found: &Found) -> String {
    let mut text = String::new();
    let images = found.images.len();
    // Writing to a String cannot fail, here and below.
    if images == 0 {
        text.push_str("No disk image found.\n");
    } else {
        let extents: ExtentCount = found.images.iter().map(|image| image.sample.extents).sum();
        let memory = found
            .images
            .iter()
            .filter_map(|image| found.map_memory(image));
        let memory: Bytes = memory.sum();
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

/// A line for an image that is accessed with and without the page cache while it is written.
fn mixed_line(image: &Image) -> Option<String> {
    let owner = image.owner.as_ref().filter(|owner| owner.is_mixed())?;
    let name = |opener: &Opener| format!("{} {}", opener.pid, shown(Path::new(&opener.name)));
    let direct = owner.openers.iter().filter(|opener| opener.direct);
    let buffered = owner.openers.iter().filter(|opener| opener.buffered);
    let list = |names: Vec<String>| names.join(", ");
    Some(format!(
        "{}: opened past the page cache by {} and through it by {}; what is read through it can be out of date.\n",
        shown(&image.sample.path),
        list(direct.map(name).collect()),
        list(buffered.map(name).collect())
    ))
}
