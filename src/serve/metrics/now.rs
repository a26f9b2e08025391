//! The metrics of the current state, rendered anew each time: a series must vanish with its image,
//! and the global recorder cannot remove one.

use std::collections::BTreeMap;
use std::path::Path;

use super::text::{Text, float, label};
use crate::model::path::{distinct, shown};
use crate::model::{Filesystem, Severity};
use crate::rescue::proof::Counters;
use crate::serve::parts::Parts;
use crate::serve::status;
use crate::serve::view::{FilesystemView, HostView, ImageView};

type ImageGauge = (
    &'static str,
    &'static str,
    fn(&ImageView<'_>) -> Option<f64>,
);
const IMAGE_GAUGES: [ImageGauge; 8] = [
    (
        "fragwatch_image_extents",
        "Records of the image's extent map.",
        |image| Some(float(image.sample.extents.0)),
    ),
    (
        "fragwatch_image_fragments",
        "Physically contiguous runs of the image, when its map was last read.",
        |image| Some(float(image.map?.fragments)),
    ),
    (
        "fragwatch_image_size_bytes",
        "Length of the image file.",
        |image| Some(float(image.sample.size.0)),
    ),
    (
        "fragwatch_image_allocated_bytes",
        "What the image occupies on disk.",
        |image| Some(float(image.sample.allocated.0)),
    ),
    (
        "fragwatch_image_extents_growth_per_second",
        "Extents that the image gains in a second, over the growth window; absent while unknown.",
        |image| Some(image.growth?.per_second()),
    ),
    (
        "fragwatch_image_seconds_to_critical",
        "Seconds until the image has as many extents as is critical; absent while unknown or far.",
        |image| Some(image.time_left?.as_secs_f64()),
    ),
    (
        "fragwatch_image_severity",
        "How bad it is by the configured thresholds: 0 ok, 1 warning, 2 critical.",
        |image| Some(image.severity.as_number().into()),
    ),
    (
        "fragwatch_image_in_use",
        "Whether a process of this host has the image open: 1 or 0.",
        |image| Some(image.owner.in_use().into()),
    ),
];

type FilesystemGauge = (&'static str, &'static str, fn(&FilesystemView<'_>) -> u64);
const FILESYSTEM_GAUGES: [FilesystemGauge; 3] = [
    (
        "fragwatch_filesystem_extents",
        "Extents of all images on the file system.",
        |view| view.extents.0,
    ),
    (
        "fragwatch_filesystem_free_bytes",
        "Free space of the file system.",
        |view| view.filesystem.free.0,
    ),
    (
        "fragwatch_filesystem_size_bytes",
        "Size of the file system.",
        |view| view.filesystem.size.0,
    ),
];

/// The views by label value; the last of several with the same value counts. A duplicate series
/// would make Prometheus refuse the whole page. Different paths have different values; but while a
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
            .map(|image| (distinct(&image.sample.path), image)),
    );
    for (gauge, help, value) in IMAGE_GAUGES {
        let mut gauge = text.gauge(gauge, help);
        for (name, image) in &images {
            if let Some(value) = value(image) {
                gauge.set(&[("image", name)], value);
            }
        }
    }
    let mount = |filesystem: &Filesystem| label(&distinct(&filesystem.mount));
    let mut info = text.gauge("fragwatch_image_info", "What the image is; always 1.");
    for (name, image) in &images {
        let vm = image.owner.vm().and_then(|vm| vm.name.as_deref());
        let labels = [
            ("image", name.as_str()),
            ("vm", &label(&shown(Path::new(vm.unwrap_or_default())))),
            (
                "filesystem",
                &image.filesystem.map(mount).unwrap_or_default(),
            ),
            ("format", image.sample.format.as_str()),
        ];
        info.set(&labels, 1.0);
    }
    let filesystems = filesystems.iter();
    let filesystems = by_label(filesystems.map(|view| (distinct(&view.filesystem.mount), view)));
    for (gauge, help, value) in FILESYSTEM_GAUGES {
        let mut gauge = text.gauge(gauge, help);
        for (mount, view) in &filesystems {
            gauge.set(&[("filesystem", mount)], float(value(view)));
        }
    }
    let help = "Kernel memory that the extent maps of all images on XFS take when they are loaded (estimate).";
    text.gauge("fragwatch_extent_map_memory_bytes", help)
        .set(&[], float(host.memory.0));
    let help =
        "How bad it is what these maps take of the host's memory: 0 ok, 1 warning, 2 critical.";
    text.gauge("fragwatch_host_severity", help)
        .set(&[], host.severity.as_number().into());
    if let Some(swept) = swept {
        let help = "When the last pass over all images ended.";
        text.gauge("fragwatch_sweep_timestamp_seconds", help)
            .set(&[], swept);
    }
    text.into_string()
}

/// Renders for each mount point whether its file system hangs.
pub fn render_stalls<'a>(stalls: impl Iterator<Item = (&'a str, bool)>) -> String {
    let mut text = Text::default();
    let help = "Whether a probe of this file system hangs (1); its counts are then old.";
    let mut gauge = text.gauge("fragwatch_probe_stalled", help);
    for (mount, stalled) in by_label(stalls.map(|(mount, stalled)| (mount.to_owned(), stalled))) {
        gauge.set(&[("filesystem", &mount)], stalled.into());
    }
    text.into_string()
}

/// Renders which engines can be used.
pub fn render_engines(engines: &[status::EngineState]) -> String {
    let mut text = Text::default();
    let help = "Whether an engine can be used on this host (1), or why not (reason).";
    let mut gauge = text.gauge("fragwatch_engine_usable", help);
    for state in engines {
        let reason = label(state.reason.as_deref().unwrap_or_default());
        let labels = [("engine", state.engine.as_str()), ("reason", &reason)];
        gauge.set(&labels, state.usable.into());
    }
    text.into_string()
}

/// Renders the early warnings: free blocks of memory by order, and failed compactions.
pub fn render_memory(counters: &Counters) -> String {
    let mut text = Text::default();
    let help = "Free blocks of 2^order pages, in all zones. None left of order 4 and more is when the XFS of old kernels begins to wait.";
    let mut gauge = text.gauge("fragwatch_memory_free_blocks", help);
    for (order, blocks) in counters.free_blocks.iter().enumerate() {
        gauge.set(&[("order", &order.to_string())], float(*blocks));
    }
    let help = "Compactions that made no block.";
    text.counter("fragwatch_memory_compaction_failures_total", help)
        .set(&[], float(counters.compact_fail));
    let help = "Allocations that had to wait until their own task had reclaimed memory.";
    text.counter("fragwatch_memory_allocation_stalls_total", help)
        .set(&[], float(counters.allocation_stalls));
    text.into_string()
}

/// Renders the parts' states and the last drill. Parts that no longer exist have no series.
pub fn render_parts(parts: &Parts, rescue: &status::Rescue) -> String {
    let mut text = Text::default();
    let help = "How bad the state of a part of the daemon is: 0 up, 1 impaired, 2 down; absent if it is switched off.";
    let mut gauge = text.gauge("fragwatch_part_severity", help);
    for (part, severity) in parts.severities() {
        let labels = [("part", &*label(&part.to_string()))];
        gauge.set(&labels, severity.as_number().into());
    }
    let help = "Whether a source of kernel messages can be read.";
    let mut gauge = text.gauge("fragwatch_klog_source_up", help);
    for (part, severity) in parts.severities() {
        if let Some(source) = part.source() {
            let up = severity < Severity::Critical;
            gauge.set(&[("source", &label(source))], up.into());
        }
    }
    if rescue.drilled.is_some() {
        if let Some(took) = rescue.roundtrip_seconds {
            let help = "Time of the last drill from writing its record to the kernel's log to the actor's report.";
            text.gauge("fragwatch_klog_roundtrip_seconds", help)
                .set(&[], took);
        }
        let help = "Whether the last drill came through.";
        text.gauge("fragwatch_klog_roundtrip_success", help)
            .set(&[], rescue.roundtrip_seconds.is_some().into());
    }
    text.into_string()
}

#[cfg(test)]
mod tests;
