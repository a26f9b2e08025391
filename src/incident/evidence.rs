//! State of the host while XFS waits for memory, for later analysis.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Finding;
use crate::sys::proc::{self, Pressure, Slab};

/// Collected evidence, and what could not be collected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Time of collection: RFC 3339.
    pub at: String,
    /// Duration of the collection in milliseconds.
    pub took_ms: u64,
    /// Free blocks by order, per zone.
    pub buddyinfo: Vec<Zone>,
    /// Counters of /proc/vmstat: write-back and its thresholds, compaction, reclaim, allocation
    /// stalls, drops, free and slab pages, OOM kills. Those named `nr_` are in pages.
    pub vmstat: BTreeMap<String, u64>,
    /// /proc/meminfo, in KiB.
    pub meminfo_kib: BTreeMap<String, u64>,
    /// Pressure of `memory`, `io` and `cpu`, each by `some` and `full`.
    pub pressure: BTreeMap<String, BTreeMap<String, Pressure>>,
    /// The largest slab caches.
    pub slabs: Vec<Slab>,
    /// Number of tasks in state D, including those not listed in `tasks`.
    pub tasks_blocked: u64,
    /// Tasks in state D, up to a limit.
    pub tasks: Vec<BlockedTask>,
    /// The first mounts of this namespace.
    pub mounts: Vec<MountPoint>,
    /// The most fragmented images.
    pub images: Vec<ImageEvidence>,
    /// What the doctor has found, the most severe first.
    pub findings: Vec<Finding>,
    /// Collectors that failed or did not finish.
    pub left_out: Vec<LeftOut>,
}

/// Free blocks of a zone, by order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// NUMA node.
    pub node: u64,
    /// Name: `DMA32`, `Normal`, …
    pub zone: String,
    /// Free blocks of 2^n pages at index n.
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

/// A task in uninterruptible sleep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockedTask {
    /// Thread ID.
    pub tid: u32,
    /// Process ID.
    pub pid: u32,
    /// Name of the thread.
    pub comm: String,
    /// Its role.
    pub kind: TaskKind,
    /// The function in which it waits.
    pub wchan: Option<String>,
    /// Kernel stack, innermost function first. Empty without CAP_SYS_ADMIN.
    pub stack: Vec<String>,
}

/// Role of a task in file system work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// A thread of a program.
    #[default]
    Task,
    /// A kernel worker thread, for example for write-back.
    Kworker,
    /// A thread of a file system's journal.
    Journal,
}

/// A mount point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Path.
    pub point: String,
    /// File system type: `xfs`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Device number: `253:0`.
    pub device: String,
}

/// An image as of its last sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEvidence {
    /// Path.
    pub path: String,
    /// Number of extents.
    pub extents: u64,
    /// File size.
    pub size_bytes: u64,
}

/// A collector that failed, or returned only part of its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Name of the collector.
    pub collector: String,
    /// Why.
    pub reason: String,
}
