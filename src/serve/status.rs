//! The answer to `fragwatch status` and `fragwatch check`, as JSON. Keys are only ever added.

use serde::{Deserialize, Serialize};

use super::parts::PartStatus;
use crate::model::{self, Bytes, Engine, ExtentCount, ExtentsPerDay, Severity, UnixTime};

/// Version of this format; incremented only if a key changes its meaning.
pub const SCHEMA: u32 = 1;

/// The whole answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The daemon.
    pub daemon: Daemon,
    /// Totals of all images.
    pub images: Images,
    /// The effect of all extent maps on the host.
    pub host: Host,
    /// The worst images first: by severity, then by extents.
    pub worst: Vec<Row>,
    /// Mount points whose file systems do not answer.
    pub stalled: Vec<Stalled>,
    /// The rescue.
    pub rescue: Rescue,
    /// The parts of the daemon and their states.
    pub parts: Vec<PartStatus>,
    /// Whether the operator has paused defragmentation.
    pub paused: bool,
    /// Current defragmentations.
    pub runs: Vec<Run>,
    /// Which engines can be used on this host; empty for a moment after the start.
    pub engines: Vec<EngineState>,
}

/// The daemon process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its PID.
    pub pid: u32,
    /// When it was started.
    pub started: UnixTime,
    /// When the last sweep over all images ended.
    pub swept: Option<UnixTime>,
    /// How many seconds the next sweep is overdue.
    pub sweep_overdue_seconds: Option<u64>,
    /// The error in the last new configuration, or in that of the start.
    pub config_refused: Option<String>,
    /// The origin of the settings in force.
    pub config_in_force: InForce,
    /// Why nothing listens at `metrics.listen`, if nothing does.
    pub listen_error: Option<String>,
}

/// The origin of the settings in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InForce {
    /// The configuration as last read without an error.
    #[default]
    Configured,
    /// The configuration of the start except its section `[maintenance]`, which is wrong.
    WithoutMaintenance,
    /// The last good configuration before the start.
    LastGood,
    /// The defaults, without a last good configuration.
    Defaults,
}

impl InForce {
    /// The meaning of a refused configuration, as a clause.
    pub fn in_words(self) -> &'static str {
        match self {
            InForce::Configured => {
                "the last new configuration was refused, the former one is in force"
            }
            InForce::WithoutMaintenance => {
                "[maintenance] is wrong, nothing is defragmented until that is mended and reloaded"
            }
            InForce::LastGood => {
                "the configuration is wrong, the last good one is in force, and nothing is \
                 defragmented until it is mended and reloaded"
            }
            InForce::Defaults => {
                "the configuration is wrong, the defaults are in force, and nothing is \
                 defragmented until it is mended and reloaded"
            }
        }
    }
}

/// Totals of all images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Images {
    /// The number of images.
    pub total: usize,
    /// Images with the severity ok.
    pub ok: usize,
    /// Images with the severity warning.
    pub warning: usize,
    /// Images with the severity critical.
    pub critical: usize,
    /// All extents.
    pub extents: ExtentCount,
    /// The largest number of extents of one image.
    pub most_extents: ExtentCount,
    /// Kernel memory of all extent maps when loaded.
    #[serde(rename = "extent_map_memory_bytes")]
    pub extent_map_memory: Bytes,
}

/// The severity of the memory of all extent maps, relative to the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// The severity.
    pub severity: Severity,
    /// The memory and the threshold reached; `None` if ok.
    pub reason: Option<String>,
}

/// One image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// The path, on one line.
    pub path: String,
    /// The length.
    #[serde(rename = "size_bytes")]
    pub size: Bytes,
    /// The number of extents.
    pub extents: ExtentCount,
    /// The severity.
    pub severity: Severity,
    /// The threshold reached; `None` if ok.
    pub reason: Option<String>,
    /// The growth, if known.
    pub growth_per_day: Option<ExtentsPerDay>,
    /// The time until it is critical, if known.
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
    /// Why not, as one word: `not_configured`, `no_xfs_fsr`, `kernel_known_bad`, `kernel_unknown`.
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
    /// The image, on one line.
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
    /// The mount point.
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
