//! The extent counts of all files of a file system.

use serde::{Deserialize, Serialize};

use super::path::PlainPath;
use super::units::{Bytes, ExtentCount};

/// One of the most fragmented files of a census.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusFile {
    /// Inode number.
    pub inode: u64,
    /// Records of its extent map.
    pub extents: ExtentCount,
    /// Its length.
    pub size: Bytes,
    /// Its allocated size.
    pub allocated: Bytes,
    /// One of its names, found from the inode; `None` if none was found.
    pub path: Option<PlainPath>,
}

/// The result of a census.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Number of regular files.
    pub files: u64,
    /// Total extents of their data.
    pub extents: ExtentCount,
    /// Kernel memory that all their extent maps would take.
    pub extent_map_memory: Bytes,
    /// Files by number of extents: index 0 for none, index n for 10^(n-1) or more, below 10^n.
    pub classes: Vec<u64>,
    /// The most fragmented files, worst first.
    pub worst: Vec<CensusFile>,
}

impl Census {
    /// Index in [`classes`](Census::classes) of a file with `extents`.
    pub fn class_of(extents: ExtentCount) -> usize {
        extents.0.checked_ilog10().map_or(0, |it| it as usize + 1)
    }
}
