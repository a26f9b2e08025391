//! The JSON of `fragwatch scan --json`. Keys are only added.

use serde_json::{Value, json};

use super::images::{Found, Image};
use super::output::{SCHEMA, print_json};
use crate::model::path::shown;
use crate::model::{ExtentMap, Filesystem, Opener, Owner};
use crate::serve::of_file;

/// Prints the document on one line.
pub(super) fn print(found: &Found) -> anyhow::Result<()> {
    let images = found.images.iter().map(|image| object(found, image));
    let errors = found.errors.iter();
    let errors = errors.map(|fault| of_file(&fault.path, json!({ "error": fault.error })));
    print_json(&json!({
        "schema": SCHEMA,
        "images": images.collect::<Vec<_>>(),
        "errors": errors.collect::<Vec<_>>(),
        "passed_over": {
            "too_small": found.passed_over.too_small,
            "not_an_image": found.passed_over.unwanted,
        },
    }))
}

fn object(found: &Found, image: &Image) -> Value {
    let sample = &image.sample;
    let owner = image.owner.as_ref();
    let keys = json!({
        "extents": sample.extents,
        "size_bytes": sample.size,
        "allocated_bytes": sample.allocated,
        "mean_extent_bytes": sample.allocated.per_extent(sample.extents),
        "extent_map_memory_bytes": found.map_memory(image),
        "extent_limit": found.extent_limit(image),
        "filesystem": found.filesystem(image).map(filesystem),
        "inode": sample.id.inode,
        "format": sample.format.as_str(),
        "severity": image.severity,
        "extent_size_hint_bytes": sample.extent_size_hint,
        "directory_extent_size_hint_bytes": sample.directory_hint,
        "map": image.map.as_ref().map(map),
        "vm": owner.and_then(Owner::vm),
        "openers": owner.map(|owner| owner.openers.iter().map(opener).collect::<Vec<_>>()),
    });
    of_file(&sample.path, keys)
}

fn filesystem(filesystem: &Filesystem) -> Value {
    json!({
        "mount": shown(&filesystem.mount),
        "type": filesystem.type_name,
        "uuid": filesystem.uuid,
    })
}

fn opener(opener: &Opener) -> Value {
    json!({
        "pid": opener.pid,
        "name": opener.name,
        "vm": opener.vm.as_ref().and_then(|vm| vm.name.as_ref()),
        "writes": opener.writes,
        "direct": opener.direct,
        "buffered": opener.buffered,
    })
}

fn map(map: &ExtentMap) -> Value {
    let class = |(class, extents): (usize, &u64)| {
        let from = 1u64 << class;
        // The upper end of the class of 2^63 does not fit.
        json!({ "from_bytes": from, "to_bytes": from.saturating_mul(2), "extents": extents })
    };
    let classes = map.histogram.iter().enumerate();
    let classes = classes.filter(|(_, extents)| **extents > 0);
    json!({
        "extents": map.extents,
        "fragments": map.fragments,
        "holes": map.holes,
        "unwritten_bytes": map.unwritten,
        "shared_bytes": map.shared,
        "delayed_bytes": map.delayed,
        "longest_extent_bytes": map.longest,
        "complete": map.complete,
        "histogram": classes.map(class).collect::<Vec<_>>(),
    })
}
