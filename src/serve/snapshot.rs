//! The state of images, file systems and host, as it is served.

use std::collections::BTreeMap;

use super::metrics::{ImageMetrics, render_sweep};
use super::status;
use super::view::{FilesystemView, HostView, ImageView};
use crate::assess::Reason;
use crate::model::path::shown;
use crate::model::{Severity, UnixTime};
use crate::protect::verdict::Origin;

/// Images on the landing page, in `status` and in incident files.
const WORST: usize = 20;

/// Made once per change, and shared by all readers.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Metrics of file systems and host, as text for Prometheus.
    pub text: String,
    /// Metrics of all images.
    pub metrics: ImageMetrics,
    /// Totals of all images.
    pub images: status::Images,
    /// The worst images first: by severity, then by extents.
    pub worst: Vec<status::Row>,
    /// The severity of all extent maps together.
    pub host: status::Host,
    /// Names of the VMs that have images open, by the displayed paths of the images.
    pub vms: BTreeMap<String, String>,
    /// When the sweep ended.
    pub swept: Option<UnixTime>,
}

impl Snapshot {
    /// Of images, file systems and host; `swept` in seconds since 1970.
    pub fn new(
        images: &[ImageView<'_>],
        filesystems: &[FilesystemView<'_>],
        host: HostView,
        swept: Option<f64>,
    ) -> Snapshot {
        let path = |image: &ImageView<'_>| shown(&image.sample.path);
        let with_vm = images
            .iter()
            .filter_map(|image| Some((path(image), image.vm()?)));
        Snapshot {
            text: render_sweep(images, filesystems, &host, swept),
            metrics: ImageMetrics::new(images),
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
    let by = |origin| {
        images
            .iter()
            .filter(|it| it.unprotected() == Some(origin))
            .count()
    };
    let extents = || images.iter().map(|image| image.sample.extents);
    status::Images {
        total: images.len(),
        ok: with(Severity::Ok),
        warning: with(Severity::Warning),
        critical: with(Severity::Critical),
        extents: extents().sum(),
        most_extents: extents().max().unwrap_or_default(),
        unprotected: images
            .iter()
            .filter(|it| it.unprotected().is_some())
            .count(),
        unprotected_by: status::Unprotected {
            holes: by(Origin::Holes),
            growth: by(Origin::Growth),
        },
        extent_map_memory: host.memory,
    }
}

fn worst(images: &[ImageView<'_>]) -> Vec<status::Row> {
    let mut images: Vec<_> = images.iter().collect();
    // By severity first, so that images with fast growth only are not hidden behind ok ones.
    images.sort_by_key(|image| std::cmp::Reverse((image.severity, image.sample.extents)));
    let row = |image: &ImageView<'_>| status::Row {
        path: shown(&image.sample.path),
        size: image.sample.size,
        allocated: image.sample.allocated,
        extents: image.sample.extents,
        severity: image.severity,
        reason: reason(image.severity, image.reason),
        vm: image.vm(),
        growth_per_day: image.growth.rate(),
        seconds_to_critical: image.forecast.time_left().map(|left| left.as_secs()),
    };
    images.into_iter().take(WORST).map(row).collect()
}

fn reason(severity: Severity, reason: Reason) -> Option<String> {
    (severity > Severity::Ok).then(|| reason.to_string())
}
