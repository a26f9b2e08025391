//! The JSON of `fragwatch scan --json`. Keys are only added.

use serde::Serialize;

use super::images::{Found, Image};
use super::output::{SCHEMA, print_json};
use crate::model::path::{hex_unless_exact, shown};
use crate::model::{Bytes, ExtentCount, ExtentMap, Filesystem, Opener, Owner, Severity, Vm};
use crate::probe::protocol::Fault;

#[derive(Serialize)]
struct Document {
    schema: u32,
    images: Vec<ImageObject>,
    errors: Vec<ErrorObject>,
    passed_over: PassedOverObject,
}

#[derive(Serialize)]
struct ImageObject {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    extents: ExtentCount,
    size_bytes: Bytes,
    allocated_bytes: Bytes,
    mean_extent_bytes: Option<Bytes>,
    extent_map_memory_bytes: Option<Bytes>,
    extent_limit: Option<ExtentCount>,
    filesystem: Option<FilesystemObject>,
    inode: u64,
    format: &'static str,
    severity: Severity,
    extent_size_hint_bytes: Bytes,
    directory_extent_size_hint_bytes: Bytes,
    map: Option<MapObject>,
    vm: Option<Vm>,
    openers: Option<Vec<OpenerObject>>,
}

#[derive(Serialize)]
struct FilesystemObject {
    mount: String,
    #[serde(rename = "type")]
    type_name: String,
    uuid: Option<String>,
}

#[derive(Serialize)]
struct OpenerObject {
    pid: u32,
    name: String,
    vm: Option<String>,
    writes: bool,
    direct: bool,
    buffered: bool,
}

#[derive(Serialize)]
struct MapObject {
    extents: ExtentCount,
    fragments: u64,
    holes: u64,
    unwritten_bytes: Bytes,
    shared_bytes: Bytes,
    delayed_bytes: Bytes,
    longest_extent_bytes: Bytes,
    complete: bool,
    histogram: Vec<HistogramObject>,
}

#[derive(Serialize)]
struct HistogramObject {
    from_bytes: u64,
    to_bytes: u64,
    extents: u64,
}

#[derive(Serialize)]
struct ErrorObject {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    error: String,
}

#[derive(Serialize)]
struct PassedOverObject {
    too_small: u64,
    not_an_image: u64,
}

/// Prints the document on one line.
pub(super) fn print(found: &Found) -> anyhow::Result<()> {
    let error = |fault: &Fault| ErrorObject {
        path: shown(&fault.path),
        path_hex: hex_unless_exact(&fault.path),
        error: fault.error.clone(),
    };
    let images = found.images.iter();
    print_json(&Document {
        schema: SCHEMA,
        images: images.map(|image| object(found, image)).collect(),
        errors: found.errors.iter().map(error).collect(),
        passed_over: PassedOverObject {
            too_small: found.passed_over.too_small,
            not_an_image: found.passed_over.unwanted,
        },
    })
}

fn filesystem(filesystem: &Filesystem) -> FilesystemObject {
    FilesystemObject {
        mount: shown(&filesystem.mount),
        type_name: filesystem.type_name.clone(),
        uuid: filesystem.uuid.clone(),
    }
}

fn object(found: &Found, image: &Image) -> ImageObject {
    let sample = &image.sample;
    ImageObject {
        path: shown(&sample.path),
        path_hex: hex_unless_exact(&sample.path),
        extents: sample.extents,
        size_bytes: sample.size,
        allocated_bytes: sample.allocated,
        mean_extent_bytes: sample.mean_extent(),
        extent_map_memory_bytes: found.map_memory(image),
        extent_limit: found.extent_limit(image),
        filesystem: found.filesystem(image).map(filesystem),
        inode: sample.id.inode,
        format: sample.format.as_str(),
        severity: image.severity,
        extent_size_hint_bytes: sample.extent_size_hint,
        directory_extent_size_hint_bytes: sample.directory_hint,
        map: image.map.as_ref().map(map_object),
        vm: image.owner.as_ref().and_then(Owner::vm).cloned(),
        openers: image.owner.as_ref().map(openers),
    }
}

fn openers(owner: &Owner) -> Vec<OpenerObject> {
    let object = |opener: &Opener| OpenerObject {
        pid: opener.pid,
        name: opener.name.clone(),
        vm: opener.vm.as_ref().and_then(|vm| vm.name.clone()),
        writes: opener.writes,
        direct: opener.direct,
        buffered: opener.buffered,
    };
    owner.openers.iter().map(object).collect()
}

fn map_object(map: &ExtentMap) -> MapObject {
    let class = |(class, extents): (usize, &u64)| HistogramObject {
        from_bytes: 1 << class,
        // The upper end of the class of 2^63 does not fit.
        to_bytes: (1u64 << class).saturating_mul(2),
        extents: *extents,
    };
    let classes = map.histogram.iter().enumerate();
    let classes = classes.filter(|(_, extents)| **extents > 0);
    MapObject {
        extents: map.extents,
        fragments: map.fragments,
        holes: map.holes,
        unwritten_bytes: map.unwritten,
        shared_bytes: map.shared,
        delayed_bytes: map.delayed,
        longest_extent_bytes: map.longest,
        complete: map.complete,
        histogram: classes.map(class).collect(),
    }
}
