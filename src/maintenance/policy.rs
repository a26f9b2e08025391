//! The operator's settings for defragmentation.

use std::time::Duration;

use crate::config::settings::Defrag;
use crate::model::{BytesPerSecond, Engine, Severity, Share};

/// The operator's settings for defragmentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Minimum severity of images to be defragmented.
    pub from: Severity,
    /// The allowed engines; the first suitable one is used.
    pub engines: Vec<Engine>,
    /// The share of a file system that must stay free.
    pub keep_free: Share,
    /// Minimum time from the end of a run to the next one on the same image.
    pub cooldown: Duration,
    /// Limit of a run's reads and writes together.
    pub bandwidth: BytesPerSecond,
    /// I/O pressure above which no run begins, in percent of time in which some task waited (`some
    /// avg10` of io.pressure) while the disks were active.
    pub max_io_pressure: f64,
    /// Maximum time for which the final swap of `xfs_fsr` may block readers.
    pub max_swap_stall: Duration,
    /// Maximum number of parallel runs, each on its own file system; at least one.
    pub parallel: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::from(&Defrag::default())
    }
}

impl From<&Defrag> for Policy {
    fn from(settings: &Defrag) -> Policy {
        Policy {
            from: settings.from,
            engines: settings.engines.clone(),
            keep_free: settings.keep_free,
            cooldown: settings.cooldown,
            bandwidth: BytesPerSecond(settings.bandwidth.0),
            max_io_pressure: f64::from(settings.max_io_pressure),
            max_swap_stall: settings.max_swap_stall,
            parallel: usize::try_from(settings.parallel).unwrap_or(1),
        }
    }
}
