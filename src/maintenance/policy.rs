//! What the operator wants of defragmenting.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{BytesPerSecond, Severity, Share};

/// A way to defragment an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Copies the whole image and swaps the extents at the end; for images that nobody has open.
    XfsFsr,
    /// Copies segment by segment underneath a running VM.
    Online,
}

impl Engine {
    /// The name as the configuration has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::XfsFsr => "xfs_fsr",
            Engine::Online => "online",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

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
    /// No run copies faster.
    pub bandwidth: BytesPerSecond,
    /// From this I/O pressure on nothing begins: percent of the time in which some task waited
    /// (`some avg10` of /proc/pressure/io).
    pub max_io_pressure: f64,
    /// For so long may the swap at the end of `xfs_fsr` hold up readers.
    pub max_swap_stall: Duration,
    /// Runs at once, each on a file system of its own; one at least.
    pub parallel: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            from: Severity::Warning,
            engines: vec![Engine::XfsFsr, Engine::Online],
            keep_free: Share::percent(5),
            cooldown: Duration::from_secs(7 * 86_400),
            bandwidth: BytesPerSecond(200 << 20),
            max_io_pressure: 40.0,
            max_swap_stall: Duration::from_secs(2),
            parallel: 2,
        }
    }
}
