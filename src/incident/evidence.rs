//! What a host looks like while XFS waits for memory, for later analysis.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::sys::proc::{self, Pressure, Slab};

/// What was found, and what could not be collected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// When: RFC 3339.
    pub at: String,
    /// How long it took.
    pub took_ms: u64,
    /// Free blocks by order, of each zone.
    pub buddyinfo: Vec<Zone>,
    /// Counters of /proc/vmstat: of write-back (with the thresholds that nr_dirty is held
    /// against), compaction, allocation stalls and drops. Those named `nr_` are pages.
    pub vmstat: BTreeMap<String, u64>,
    /// /proc/meminfo, in KiB.
    pub meminfo_kib: BTreeMap<String, u64>,
    /// Pressure of `memory`, `io` and `cpu`, each by `some` and `full`.
    pub pressure: BTreeMap<String, BTreeMap<String, Pressure>>,
    /// The largest slabs.
    pub slabs: Vec<Slab>,
    /// Tasks in state D, those that are not named among `tasks` as well.
    pub tasks_blocked: u64,
    /// Tasks in state D.
    pub tasks: Vec<BlockedTask>,
    /// What is mounted.
    pub mounts: Vec<MountPoint>,
    /// The most fragmented images.
    pub images: Vec<ImageEvidence>,
    /// What could not be collected.
    pub left_out: Vec<LeftOut>,
}

/// Free blocks of a zone, by order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The NUMA node.
    pub node: u64,
    /// Its name: `DMA32`, `Normal`, …
    pub zone: String,
    /// Free blocks of 2^n pages.
    pub free_blocks: Vec<u64>,
}

impl From<proc::BuddyZone<'_>> for Zone {
    fn from(zone: proc::BuddyZone<'_>) -> Zone {
        Zone {
            node: zone.node,
            zone: String::from_utf8_lossy(zone.name).into_owned(),
            free_blocks: zone.free_blocks().collect(),
        }
    }
}

/// A task that cannot be interrupted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockedTask {
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its role for the file systems.
    pub kind: TaskKind,
    /// The function it waits in.
    pub wchan: Option<String>,
    /// Its kernel stack, innermost function first. Empty without CAP_SYS_ADMIN.
    pub stack: Vec<String>,
}

/// The role of a task for the file systems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// A thread of some program.
    #[default]
    Task,
    /// A thread of the kernel's work queues, for example one that writes back.
    Kworker,
    /// A thread of a file system's journal.
    Journal,
}

/// Where something is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The path.
    pub point: String,
    /// The file system's type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Its device: `253:0`.
    pub device: String,
}

/// An image, as its last sample had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEvidence {
    /// Its path.
    pub path: String,
    /// Its extents.
    pub extents: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// A collector that returned nothing, or not all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which.
    pub collector: String,
    /// Why.
    pub reason: String,
}
