//! What is known at the end of a sweep, as it is served.

use std::collections::BTreeMap;
use std::path::Path;

use super::metrics::render_sweep;
use super::status;
use super::view::{FilesystemView, HostView, ImageView};
use crate::assess::Reason;
use crate::model::path::shown;
use crate::model::{Severity, UnixTime};

/// Images on the landing page.
const WORST: usize = 20;

/// Made once, read by many.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Metrics of images and file systems, as text for Prometheus.
    pub text: axum::body::Bytes,
    /// All images together.
    pub images: status::Images,
    /// The worst images: those with the worst severity, and of these the most fragmented, first.
    pub worst: Vec<status::Row>,
    /// All extent maps together.
    pub host: status::Host,
    /// The names of the VMs that have images open, by the paths of the images as they are shown.
    pub vms: BTreeMap<String, String>,
    /// When the sweep ended.
    pub swept: Option<UnixTime>,
}

impl Snapshot {
    /// Renders images, file systems and host; `swept` in seconds since 1970.
    pub fn new(
        images: &[ImageView<'_>],
        filesystems: &[FilesystemView<'_>],
        host: HostView,
        swept: Option<f64>,
    ) -> Snapshot {
        let path = |image: &ImageView<'_>| shown(&image.sample.path);
        let with_vm = images
            .iter()
            .filter_map(|image| Some((path(image), vm(image)?)));
        Snapshot {
            text: render_sweep(images, filesystems, &host, swept).into(),
            images: totals(images, &host),
            worst: worst(images),
            host: status::Host {
                severity: host.severity,
                reason: host.reason.and_then(|it| reason(host.severity, it)),
            },
            vms: with_vm.collect(),
            swept: swept.map(UnixTime::from_seconds),
        }
    }
}

fn totals(images: &[ImageView<'_>], host: &HostView) -> status::Images {
    let with = |severity| images.iter().filter(|it| it.severity == severity).count();
    let extents = || images.iter().map(|image| image.sample.extents);
    status::Images {
        total: images.len(),
        ok: with(Severity::Ok),
        warning: with(Severity::Warning),
        critical: with(Severity::Critical),
        extents: extents().sum(),
        most_extents: extents().max().unwrap_or_default(),
        extent_map_memory: host.memory,
    }
}

fn worst(images: &[ImageView<'_>]) -> Vec<status::Row> {
    let mut images: Vec<_> = images.iter().collect();
    // One that is bad only for its growth is not hidden behind those that are ok.
    images.sort_by_key(|image| std::cmp::Reverse((image.severity, image.sample.extents)));
    let row = |image: &ImageView<'_>| status::Row {
        path: shown(&image.sample.path),
        size: image.sample.size,
        extents: image.sample.extents,
        severity: image.severity,
        reason: reason(image.severity, image.reason),
        vm: vm(image),
        growth_per_day: image.growth,
        seconds_to_critical: image.time_left.map(|left| left.as_secs()),
    };
    images.into_iter().take(WORST).map(row).collect()
}

/// `None` while all is well.
fn reason(severity: Severity, reason: Reason) -> Option<String> {
    (severity > Severity::Ok).then(|| reason.to_string())
}

/// The name of the VM that has an image open, in one line.
fn vm(image: &ImageView<'_>) -> Option<String> {
    let name = image.owner.vm()?.name.as_deref()?;
    Some(shown(Path::new(name)))
}
