//! The metrics of the current state, rendered anew each time: a series must vanish with what it is
//! about, and the global recorder cannot remove one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use super::table::*;
use super::text::{Family, Text, float, label};
use crate::model::path::distinct;
use crate::model::{CheckId, Diagnosis, ExtentCount, ExtentsPerDay, FreeSpace, Severity};
use crate::rescue::proof::Counters;
use crate::serve::parts::Parts;
use crate::serve::status;
use crate::serve::view::{FilesystemView, HostView, ImageView};

/// As many images as the rule `fleet:fragwatch_image_extents:topk20` chooses: all of them may be on one
/// host.
const WORST: usize = 20;

/// The views by label value; the last of several with the same value counts, as with
/// [images](super::images::ImageMetrics::new).
fn by_label<T>(views: impl Iterator<Item = (String, T)>) -> BTreeMap<String, T> {
    views.map(|(name, view)| (label(&name), view)).collect()
}

type Value = fn(&FilesystemView<'_>) -> u64;

/// Renders the sums of all images, file systems and host; `swept` is the end of the last sweep in
/// seconds since 1970.
pub fn render_sweep(
    images: &[ImageView<'_>],
    filesystems: &[FilesystemView<'_>],
    host: &HostView,
    swept: Option<f64>,
) -> String {
    let mut text = Text::default();
    render_sums(images, &mut text);
    render_chosen(images, &mut text);
    let filesystems = filesystems.iter();
    let filesystems = by_label(filesystems.map(|view| (distinct(&view.filesystem.mount), view)));
    let gauges: [(Metric, Value); 3] = [
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
    let mut family = text.family(FREE_EXTENTS);
    for (mount, view) in &filesystems {
        if let Some(space) = view.space {
            free_extents(&mut family, mount, space);
        }
    }
    let mut family = text.family(LARGEST_FREE_EXTENT);
    for (mount, view) in &filesystems {
        if let Some(space) = view.space {
            family.set(&[("filesystem", mount)], float(space.longest().0));
        }
    }
    text.single(MAP_MEMORY, float(host.memory.0));
    text.single(HOST_SEVERITY, host.severity.as_number().into());
    if let Some(swept) = swept {
        text.single(SWEEP_TIMESTAMP, swept);
    }
    text.into_string()
}

/// The histogram of a file system. The classes of [`FreeSpace`] end below a power of two; a bucket
/// includes its end.
fn free_extents(family: &mut Family<'_>, mount: &str, space: &FreeSpace) {
    // From 4 KiB to 1 GiB.
    for class in (12..=30).step_by(2) {
        let below = space.classes.iter().take(class);
        let count: ExtentCount = below.map(|class| class.extents).sum();
        let end = ((1_u64 << class) - 1).to_string();
        family.part(
            "_bucket",
            &[("filesystem", mount), ("le", &end)],
            float(count.0),
        );
    }
    let (count, labels) = (float(space.extents().0), [("filesystem", mount)]);
    family.part("_bucket", &[labels[0], ("le", "+Inf")], count);
    family.part("_sum", &labels, float(space.bytes().0));
    family.part("_count", &labels, count);
}

/// Renders sums over images, so that rules for a whole fleet need not read the series of every image.
fn render_sums(images: &[ImageView<'_>], text: &mut Text) {
    let mut family = text.family(IMAGES);
    for severity in Severity::ALL {
        let count = images.iter().filter(|it| it.severity == severity).count();
        let severity = severity.as_number().to_string();
        family.set(&[("severity", &severity)], float(count as u64));
    }
    let unprotected = images
        .iter()
        .filter(|it| it.unprotected().is_some())
        .count();
    text.single(IMAGES_UNPROTECTED, float(unprotected as u64));
    let mut vms: BTreeMap<String, u64> = BTreeMap::new();
    for image in images {
        *vms.entry(label(&image.vm().unwrap_or_default()))
            .or_default() += image.sample.extents.0;
    }
    let mut family = text.family(VM_EXTENTS);
    for (vm, extents) in &vms {
        family.set(&[("vm", vm)], float(*extents));
    }
    let growths = images.iter().filter_map(|image| image.growth.rate());
    if let Some(growth) = growths.map(ExtentsPerDay::per_second).reduce(|a, b| a + b) {
        text.single(GROWTH, growth);
    }
}

/// Renders the images that are not ok and those with the most extents, with what rules for a whole fleet
/// would otherwise have to join.
fn render_chosen(images: &[ImageView<'_>], text: &mut Text) {
    let images = images.iter();
    let images = by_label(images.map(|image| (distinct(&image.sample.path), image)));
    let vm = |image: &ImageView<'_>| label(&image.vm().unwrap_or_default());
    let mut family = text.family(BAD_IMAGE_SEVERITY);
    for (path, image) in &images {
        if image.severity > Severity::Ok {
            let in_use = u8::from(image.owner.in_use()).to_string();
            let labels = [("image", &**path), ("vm", &vm(image)), ("in_use", &in_use)];
            family.set(&labels, image.severity.as_number().into());
        }
    }
    let mut worst: Vec<_> = images.iter().collect();
    worst.sort_by_key(|(_, image)| Reverse(image.sample.extents));
    let mut family = text.family(WORST_IMAGE_EXTENTS);
    for (path, image) in worst.into_iter().take(WORST) {
        let labels = [("image", &**path), ("vm", &vm(image))];
        family.set(&labels, float(image.sample.extents.0));
    }
}

/// Renders for each mount point whether its file system hangs.
pub fn render_stalls<'a>(stalls: impl Iterator<Item = (&'a Path, bool)>) -> String {
    let mut text = Text::default();
    let mut family = text.family(PROBE_STALLED);
    for (mount, stalled) in by_label(stalls.map(|(mount, stalled)| (distinct(mount), stalled))) {
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

/// Renders the number of findings by check and severity; a check without any has no series.
pub fn render_doctor(diagnosis: &Diagnosis) -> String {
    let mut counts: BTreeMap<(CheckId, Severity), u64> = BTreeMap::new();
    for finding in diagnosis.open() {
        *counts.entry((finding.id, finding.severity)).or_default() += 1;
    }
    let mut text = Text::default();
    let mut family = text.family(DOCTOR_FINDINGS);
    for ((id, severity), count) in counts {
        let labels = [("id", &*id.to_string()), ("severity", severity.as_str())];
        family.set(&labels, float(count));
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
