//! The answer to `fragwatch status` and `fragwatch check`, as JSON. Keys are only ever added.

use serde::{Deserialize, Serialize};

use super::parts::PartStatus;
use crate::model::words::words;
use crate::model::{
    self, Bytes, Diagnosis, Engine, ExtentCount, ExtentsPerDay, Severity, UnixTime,
};

/// Version of this format; incremented only if a key changes its meaning.
pub const SCHEMA: u32 = 1;

/// The whole answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The daemon process.
    pub daemon: Daemon,
    /// Totals of all images.
    pub images: Images,
    /// The memory of all extent maps.
    pub host: Host,
    /// By severity, then by extents.
    pub worst: Vec<Row>,
    /// File systems that do not answer.
    pub stalled: Vec<Stalled>,
    /// The rescue.
    pub rescue: Rescue,
    /// The parts of the daemon.
    pub parts: Vec<PartStatus>,
    /// Whether the operator has paused defragmentation.
    pub paused: bool,
    /// Current defragmentations.
    pub runs: Vec<Run>,
    /// Empty for a moment after the start.
    pub engines: Vec<EngineState>,
    /// The last examination of the host.
    pub doctor: Doctor,
}

/// The last examination of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Doctor {
    /// When it was; `None` before the first one.
    pub examined: Option<UnixTime>,
    /// What it found.
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
}

/// The daemon process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Daemon {
    /// Version of fragwatch.
    pub version: String,
    /// Process ID.
    pub pid: u32,
    /// When it started.
    pub started: UnixTime,
    /// When the last sweep over all images ended.
    pub swept: Option<UnixTime>,
    /// How many seconds the next sweep is overdue.
    pub sweep_overdue_seconds: Option<u64>,
    /// The error in the last new configuration, or in that of the start.
    pub config_refused: Option<String>,
    /// Which settings are in force.
    pub config_in_force: InForce,
    /// Why nothing listens at `metrics.listen`, if nothing does.
    pub listen_error: Option<String>,
}

words! {
    /// The origin of the settings in force; the text is what a refused configuration means.
    #[derive(Default)]
    pub enum InForce {
        /// The configuration as last read without an error.
        #[default]
        Configured = "configured" =>
            "the last new configuration was refused, the former one is in force",
        /// The configuration of the start except its section `[maintenance]`, which is wrong.
        WithoutMaintenance = "without_maintenance" =>
            "[maintenance] is wrong, nothing is defragmented until that is mended and reloaded",
        /// The last good configuration before the start.
        LastGood = "last_good" =>
            "the configuration is wrong or cannot be read, the last good one is in force, and \
             nothing is defragmented until it is mended and reloaded",
        /// The defaults, without a last good configuration.
        Defaults = "defaults" =>
            "the configuration is wrong or cannot be read, the defaults are in force, and nothing \
             is defragmented until it is mended and reloaded",
    }
}

/// Totals of all images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Images {
    /// All images.
    pub total: usize,
    /// Images without warning.
    pub ok: usize,
    /// Images with severity warning.
    pub warning: usize,
    /// Images with severity critical.
    pub critical: usize,
    /// Extents of all images.
    pub extents: ExtentCount,
    /// The largest number of extents of one image.
    pub most_extents: ExtentCount,
    /// How many can shatter: [`Risk::Shatters`](crate::protect::verdict::Risk).
    pub unprotected: usize,
    /// Where the extents come from that these can gain.
    pub unprotected_by: Unprotected,
    /// Kernel memory of all extent maps when loaded.
    #[serde(rename = "extent_map_memory_bytes")]
    pub extent_map_memory: Bytes,
}

/// Images that can shatter, by [`Origin`](crate::protect::verdict::Origin); without reading maps, sharing
/// is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unprotected {
    /// Sparse ones without a hint.
    pub holes: usize,
    /// qcow2 that grow by small clusters.
    pub growth: usize,
}

/// The severity of the memory of all extent maps, relative to the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its severity.
    pub severity: Severity,
    /// The memory and the threshold reached; `None` if ok.
    pub reason: Option<String>,
}

/// One image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// On one line.
    pub path: String,
    /// Length of the file.
    #[serde(rename = "size_bytes")]
    pub size: Bytes,
    /// What it occupies on disk; 0 from an older daemon.
    #[serde(rename = "allocated_bytes")]
    pub allocated: Bytes,
    /// Its extents at the last count.
    pub extents: ExtentCount,
    /// Its severity.
    pub severity: Severity,
    /// The threshold reached; `None` if ok.
    pub reason: Option<String>,
    /// `None` while unknown, as the next one.
    pub growth_per_day: Option<ExtentsPerDay>,
    /// Seconds until it has the extents of `critical`.
    pub seconds_to_critical: Option<u64>,
    /// The name of the VM that has it open.
    pub vm: Option<String>,
}

/// Whether an engine can be used on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineState {
    /// The engine.
    pub engine: Engine,
    /// Whether it can be used.
    pub usable: bool,
    /// Why not, as one word: `not_configured`, `no_xfs_fsr`, `no_virsh`, `kernel_known_bad`, `kernel_unknown`.
    pub reason: Option<String>,
    /// Why not, in a sentence, with what to do.
    pub text: Option<String>,
}

impl From<&model::EngineState> for EngineState {
    fn from(state: &model::EngineState) -> EngineState {
        let unusable = state.unusable.as_ref();
        EngineState {
            engine: state.engine,
            usable: unusable.is_none(),
            reason: unusable.map(|it| it.reason.as_str().to_owned()),
            text: unusable.map(|it| it.text.clone()),
        }
    }
}

/// A current defragmentation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// On one line.
    pub path: String,
    /// The engine.
    pub engine: Engine,
    /// When it began.
    pub began: UnixTime,
    /// When it is expected to end.
    pub ends: UnixTime,
    /// How much is done, from 0 to 1, once known.
    #[serde(default)]
    pub progress: Option<f64>,
}

/// A file system that does not answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stalled {
    /// Mount point.
    pub mount: String,
    /// How long it has not answered.
    pub seconds: u64,
}

/// The rescue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rescue {
    /// Whether it would act now.
    pub armed: bool,
    /// Whether it only logs its actions.
    pub dry_run: bool,
    /// The triggers effective on the running kernel, in words.
    pub trigger: String,
    /// Whether there is an incident now.
    pub incident: bool,
    /// The last drill of the path from the kernel log to the actor.
    pub drilled: Option<UnixTime>,
    /// Its duration; `None` if it failed.
    pub roundtrip_seconds: Option<f64>,
}
