//! The extent counts of all files of a file system.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path;
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
    #[serde(with = "optional_path")]
    pub path: Option<PathBuf>,
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

mod optional_path {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::path::wire;

    #[derive(Serialize, Deserialize)]
    struct Wrapped(#[serde(with = "wire")] PathBuf);

    pub(super) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        path.clone().map(Wrapped).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_ten() {
        for (extents, class) in [
            (0, 0),
            (1, 1),
            (9, 1),
            (10, 2),
            (99, 2),
            (100, 3),
            (10_000_000, 8),
        ] {
            assert_eq!(Census::class_of(ExtentCount(extents)), class, "{extents}");
        }
    }
}
