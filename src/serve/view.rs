//! The data of images, file systems and host that metrics, status and landing page render.

use std::fmt::Debug;
use std::path::Path;

use crate::assess::Reason;
use crate::model::path::shown;
use crate::model::{
    Bytes, ExtentCount, ExtentMap, Filesystem, Forecast, FreeSpace, Growth, Owner, Sample, Severity,
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
    /// Its recent growth.
    pub growth: &'a Growth,
    /// When it is critical.
    pub forecast: Forecast,
    /// Its severity.
    pub severity: Severity,
    /// The reason for the severity.
    pub reason: Reason,
    /// Its file system.
    pub filesystem: Option<&'a Filesystem>,
}

impl<'a> ImageView<'a> {
    /// What `protect` judges it by, with its map if it is to be used.
    pub fn facts(&self, map: Option<&'a ExtentMap>) -> Facts<'a> {
        Facts {
            sample: self.sample,
            filesystem: self.filesystem,
            map,
            owner: Some(self.owner),
        }
    }

    /// Whether it can gain an extent with nearly every block that is written, and where these come from. By
    /// the last count, which reads no map: as the number of these images is served, it must not depend on
    /// when a map is read.
    pub fn unprotected(&self) -> Option<Origin> {
        let verdict = Verdict::of(&self.facts(None));
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

/// The images and file systems that the daemon knows.
pub trait Inventory: Debug + Send + Sync {
    /// Calls `see` once with all of them; nothing changes meanwhile, so it must not wait.
    fn lend(&self, see: &mut dyn FnMut(&[ImageView<'_>], &[FilesystemView<'_>]));
}
