//! The data of images, file systems and host that metrics, status and landing page render.

use std::path::Path;
use std::time::Duration;

use crate::assess::Reason;
use crate::model::path::shown;
use crate::model::{
    Bytes, ExtentCount, ExtentMap, ExtentsPerDay, Filesystem, FreeSpace, Owner, Sample, Severity,
};
use crate::protect::facts::Facts;
use crate::protect::verdict::{Origin, Risk, Verdict};

/// One image.
#[derive(Debug, Clone, Copy)]
pub struct ImageView<'a> {
    /// Its last count.
    pub sample: &'a Sample,
    /// The processes that have it open.
    pub owner: &'a Owner,
    /// Its last map, if one was read.
    pub map: Option<&'a ExtentMap>,
    /// Its growth, if known.
    pub growth: Option<ExtentsPerDay>,
    /// The time until it is critical, if known.
    pub time_left: Option<Duration>,
    /// Its severity.
    pub severity: Severity,
    /// The reason for the severity.
    pub reason: Reason,
    /// Its file system.
    pub filesystem: Option<&'a Filesystem>,
}

impl ImageView<'_> {
    /// Whether it can gain an extent with nearly every block that is written, and where these come from. By
    /// the last count, which reads no map: as the number of these images is served, it must not depend on
    /// when a map is read.
    pub fn unprotected(&self) -> Option<Origin> {
        let facts = Facts {
            sample: self.sample,
            filesystem: self.filesystem,
            map: None,
            owner: Some(self.owner),
        };
        let verdict = Verdict::of(&facts);
        let shatters = verdict.risk == Some(Risk::Shatters);
        verdict.origin().filter(|_| shatters)
    }

    /// The name of the VM that has it open, as displayed.
    pub fn vm(&self) -> Option<String> {
        let name = self.owner.vm()?.name.as_deref()?;
        Some(shown(Path::new(name)))
    }
}

/// One file system.
#[derive(Debug, Clone, Copy)]
pub struct FilesystemView<'a> {
    /// Its size and free space.
    pub filesystem: &'a Filesystem,
    /// Extents of all images on it.
    pub extents: ExtentCount,
    /// Its free extents, if they were read.
    pub space: Option<&'a FreeSpace>,
}

/// The host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostView {
    /// Kernel memory of all extent maps when loaded.
    pub memory: Bytes,
    /// The severity of that.
    pub severity: Severity,
    /// The reason; `None` before the first assessment.
    pub reason: Option<Reason>,
}
