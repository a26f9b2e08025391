//! What is rendered of images, file systems and host: metrics, status, landing page.

use std::time::Duration;

use crate::assess::Reason;
use crate::model::{
    Bytes, ExtentCount, ExtentMap, ExtentsPerDay, Filesystem, Owner, Sample, Severity,
};

/// One image.
#[derive(Debug, Clone, Copy)]
pub struct ImageView<'a> {
    /// Its last count.
    pub sample: &'a Sample,
    /// The processes that have it open.
    pub owner: &'a Owner,
    /// Its last map, if one was read.
    pub map: Option<&'a ExtentMap>,
    /// What it gains, if that is known.
    pub growth: Option<ExtentsPerDay>,
    /// How long until it is critical, if that is known.
    pub time_left: Option<Duration>,
    /// How bad it is.
    pub severity: Severity,
    /// Why.
    pub reason: Reason,
    /// Its file system.
    pub filesystem: Option<&'a Filesystem>,
}

/// One file system.
#[derive(Debug, Clone, Copy)]
pub struct FilesystemView<'a> {
    /// How full it is.
    pub filesystem: &'a Filesystem,
    /// Extents of all images on it.
    pub extents: ExtentCount,
}

/// The host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostView {
    /// Kernel memory that all extent maps take when they are loaded.
    pub memory: Bytes,
    /// How bad that is.
    pub severity: Severity,
    /// Why; `None` before it was judged.
    pub reason: Option<Reason>,
}
