//! The metrics of the current state, rendered anew each time: a series must vanish with its image,
//! and the global recorder cannot remove one.

use std::collections::BTreeMap;
use std::path::Path;

use super::table::*;
use super::text::{Text, float, label};
use crate::model::path::shown;
use crate::model::{Filesystem, Severity};
use crate::rescue::proof::Counters;
use crate::serve::parts::Parts;
use crate::serve::status;
use crate::serve::view::{FilesystemView, HostView, ImageView};

/// The metrics of an image that have no label beside its path.
const IMAGE_GAUGES: [Metric; 8] = [
    IMAGE_EXTENTS,
    IMAGE_FRAGMENTS,
    IMAGE_SIZE,
    IMAGE_ALLOCATED,
    IMAGE_GROWTH,
    IMAGE_SECONDS_TO_CRITICAL,
    IMAGE_SEVERITY,
    IMAGE_IN_USE,
];

/// Their values; `None` if a series is absent.
fn values(image: &ImageView<'_>) -> [Option<f64>; 8] {
    [
        Some(float(image.sample.extents.0)),
        image.map.map(|map| float(map.fragments)),
        Some(float(image.sample.size.0)),
        Some(float(image.sample.allocated.0)),
        image.growth.map(|growth| growth.per_second()),
        image.time_left.map(|left| left.as_secs_f64()),
        Some(image.severity.as_number().into()),
        Some(image.owner.in_use().into()),
    ]
}

/// The views by label value; the last of several with the same value counts. A duplicate series
/// would make Prometheus refuse the whole page. Names can become equal by [`shown`], and while a
/// file system hangs, an image that was replaced is not forgotten yet.
fn by_label<T>(views: impl Iterator<Item = (String, T)>) -> BTreeMap<String, T> {
    views.map(|(name, view)| (label(&name), view)).collect()
}

/// Renders images, file systems and host; `swept` is the end of the last sweep in seconds since
/// 1970.
pub fn render_sweep(
    images: &[ImageView<'_>],
    filesystems: &[FilesystemView<'_>],
    host: &HostView,
    swept: Option<f64>,
) -> String {
    let mut text = Text::default();
    let images = by_label(
        images
            .iter()
            .map(|image| (shown(&image.sample.path), image)),
    );
    for (number, metric) in IMAGE_GAUGES.into_iter().enumerate() {
        let mut family = text.family(metric);
        for (name, image) in &images {
            if let Some(value) = values(image)[number] {
                family.set(&[("image", name)], value);
            }
        }
    }
    let mount = |filesystem: &Filesystem| label(&shown(&filesystem.mount));
    let mut info = text.family(IMAGE_INFO);
    for (name, image) in &images {
        let vm = image.owner.vm().and_then(|vm| vm.name.as_deref());
        let vm = label(&shown(Path::new(vm.unwrap_or_default())));
        let mount = image.filesystem.map(mount).unwrap_or_default();
        let labels = [
            ("image", name.as_str()),
            ("vm", &vm),
            ("filesystem", &mount),
            ("format", image.sample.format.name()),
        ];
        info.set(&labels, 1.0);
    }
    let filesystems = filesystems.iter();
    let filesystems = by_label(filesystems.map(|view| (shown(&view.filesystem.mount), view)));
    let gauges: [(Metric, fn(&FilesystemView<'_>) -> u64); 3] = [
        (FILESYSTEM_EXTENTS, |view| view.extents.0),
        (FILESYSTEM_FREE, |view| view.filesystem.free.0),
        (FILESYSTEM_SIZE, |view| view.filesystem.size.0),
    ];
    for (metric, value) in gauges {
        let mut family = text.family(metric);
        for (mount, view) in &filesystems {
            family.set(&[("filesystem", mount)], float(value(view)));
        }
    }
    text.single(MAP_MEMORY, float(host.memory.0));
    text.single(HOST_SEVERITY, host.severity.as_number().into());
    if let Some(swept) = swept {
        text.single(SWEEP_TIMESTAMP, swept);
    }
    text.into_string()
}

/// Renders for each mount point whether its file system hangs.
pub fn render_stalls<'a>(stalls: impl Iterator<Item = (&'a str, bool)>) -> String {
    let mut text = Text::default();
    let mut family = text.family(PROBE_STALLED);
    for (mount, stalled) in by_label(stalls.map(|(mount, stalled)| (mount.to_owned(), stalled))) {
        family.set(&[("filesystem", &mount)], stalled.into());
    }
    text.into_string()
}

/// Renders which engines can be used.
pub fn render_engines(engines: &[status::EngineState]) -> String {
    let mut text = Text::default();
    let mut family = text.family(ENGINE_USABLE);
    for state in engines {
        let reason = label(state.reason.as_deref().unwrap_or_default());
        let labels = [("engine", state.engine.as_str()), ("reason", &reason)];
        family.set(&labels, state.usable.into());
    }
    text.into_string()
}

/// Renders the early warnings: free blocks of memory by order, and failed compactions.
pub fn render_memory(counters: &Counters) -> String {
    let mut text = Text::default();
    let mut family = text.family(FREE_BLOCKS);
    for (order, blocks) in counters.free_blocks.iter().enumerate() {
        family.set(&[("order", &order.to_string())], float(*blocks));
    }
    text.single(COMPACTION_FAILURES, float(counters.compact_fail));
    text.single(ALLOCATION_STALLS, float(counters.allocation_stalls));
    text.into_string()
}

/// Renders the parts' states and the last drill. Parts that no longer exist have no series.
pub fn render_parts(parts: &Parts, rescue: &status::Rescue) -> String {
    let mut text = Text::default();
    let mut family = text.family(PART_SEVERITY);
    for (part, severity) in parts.severities() {
        let labels = [("part", &*label(&part.to_string()))];
        family.set(&labels, severity.as_number().into());
    }
    let mut family = text.family(KLOG_SOURCE_UP);
    for (part, severity) in parts.severities() {
        if let Some(source) = part.source() {
            let up = severity < Severity::Critical;
            family.set(&[("source", &label(source))], up.into());
        }
    }
    if rescue.drilled.is_some() {
        if let Some(took) = rescue.roundtrip_seconds {
            text.single(ROUNDTRIP_SECONDS, took);
        }
        text.single(ROUNDTRIP_SUCCESS, rescue.roundtrip_seconds.is_some().into());
    }
    text.into_string()
}

#[cfg(test)]
mod tests;
