//! What `fragwatch status` and `fragwatch check` get, as JSON. Keys are only ever added.

use serde::{Deserialize, Serialize};

use super::parts::PartStatus;
use crate::model::{self, Bytes, Engine, ExtentCount, ExtentsPerDay, Severity, UnixTime};

/// Version of this form; it grows only if a key ever changes its meaning.
pub const SCHEMA: u32 = 1;

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The daemon.
    pub daemon: Daemon,
    /// All images together.
    pub images: Images,
    /// What all extent maps together mean for the host.
    pub host: Host,
    /// The worst images: those with the worst severity, and of these the most fragmented, first.
    pub worst: Vec<Row>,
    /// Mount points whose file systems do not answer.
    pub stalled: Vec<Stalled>,
    /// The rescue.
    pub rescue: Rescue,
    /// The parts of the daemon and how each does.
    pub parts: Vec<PartStatus>,
    /// Whether the operator has paused defragmentation.
    pub paused: bool,
    /// Defragmentations that are under way.
    pub runs: Vec<Run>,
    /// Which engines can be used on this host; empty until that is known, a moment after the start.
    pub engines: Vec<EngineState>,
}

/// The process that answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it was started.
    pub started: UnixTime,
    /// When the last sweep over all images ended.
    pub swept: Option<UnixTime>,
    /// By how many seconds the next one is overdue.
    pub sweep_overdue_seconds: Option<u64>,
    /// What is wrong with the configuration: the last new one, or that of the start.
    pub config_refused: Option<String>,
    /// What is in force.
    pub config_in_force: InForce,
    /// Why nothing listens at `metrics.listen`, if nothing does.
    pub listen_error: Option<String>,
}

/// Where the settings in force come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InForce {
    /// The configuration as it was when it was read last without a mistake.
    #[default]
    Configured,
    /// The configuration of the start, but for its section `[maintenance]`, which is wrong.
    WithoutMaintenance,
    /// The last good one before the start.
    LastGood,
    /// The defaults: there was no last good one.
    Defaults,
}

impl InForce {
    /// What a refused configuration means, as half a sentence.
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

/// All images together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Images {
    /// How many there are.
    pub total: usize,
    /// How many are ok.
    pub ok: usize,
    /// How many are at or above a warning threshold.
    pub warning: usize,
    /// How many are at or above a critical threshold.
    pub critical: usize,
    /// Their extents.
    pub extents: ExtentCount,
    /// The extents of the one that has the most.
    pub most_extents: ExtentCount,
    /// Kernel memory that all their extent maps take if they are loaded.
    #[serde(rename = "extent_map_memory_bytes")]
    pub extent_map_memory: Bytes,
}

/// The host, by what all extent maps together take of its memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// How bad that is.
    pub severity: Severity,
    /// How much it is, and which threshold it has reached; `None` while it is ok.
    pub reason: Option<String>,
}

/// One image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// Its path, on one line.
    pub path: String,
    /// Its length.
    #[serde(rename = "size_bytes")]
    pub size: Bytes,
    /// Its extents.
    pub extents: ExtentCount,
    /// How bad that is.
    pub severity: Severity,
    /// Which threshold it has reached; `None` while it is ok.
    pub reason: Option<String>,
    /// How fast it grows, as far as that is known.
    pub growth_per_day: Option<ExtentsPerDay>,
    /// How long until it is critical, as far as that is known.
    pub seconds_to_critical: Option<u64>,
    /// The name of the VM that has it open.
    pub vm: Option<String>,
}

/// Whether an engine can be used on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineState {
    /// The engine.
    pub engine: Engine,
    /// Whether it can.
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

/// A defragmentation that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The image, on one line.
    pub path: String,
    /// By what.
    pub engine: Engine,
    /// When it began.
    pub began: UnixTime,
    /// When it is expected to have ended.
    pub ends: UnixTime,
    /// How much of it is done, from 0 to 1, once that is known.
    #[serde(default)]
    pub progress: Option<f64>,
}

/// A file system that does not answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stalled {
    /// Where it is mounted.
    pub mount: String,
    /// For how long.
    pub seconds: u64,
}

/// The rescue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rescue {
    /// Whether it would act now.
    pub armed: bool,
    /// Whether it does all but act.
    pub dry_run: bool,
    /// What can start it on the running kernel, in words.
    pub trigger: String,
    /// Whether there is an incident now.
    pub incident: bool,
    /// When the path from the kernel's log to the actor was last tried out.
    pub drilled: Option<UnixTime>,
    /// How long that took; `None` if it failed.
    pub roundtrip_seconds: Option<f64>,
}
