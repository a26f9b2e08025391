//! What the operator wants of defragmenting.

use std::time::Duration;

use crate::config::settings::Defrag;
use crate::model::{BytesPerSecond, Engine, Severity, Share};

/// What the operator wants of defragmenting.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Images of this severity or worse are defragmented.
    pub from: Severity,
    /// The engines that may be used. Of those that can do it, the first does.
    pub engines: Vec<Engine>,
    /// So much of a file system stays free.
    pub keep_free: Share,
    /// From the end of a run to the next one on the same image.
    pub cooldown: Duration,
    /// No run reads and writes more than this together.
    pub bandwidth: BytesPerSecond,
    /// Above this I/O pressure nothing begins: percent of the time in which some task waited (`some
    /// avg10` of io.pressure), where the disks were at work.
    pub max_io_pressure: f64,
    /// For so long may the swap at the end of `xfs_fsr` hold up readers.
    pub max_swap_stall: Duration,
    /// Runs at once, each on a file system of its own; one at least.
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
