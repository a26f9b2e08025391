//! One record of an extent map.

use serde::{Deserialize, Serialize};

use super::units::Bytes;

/// Flags of an extent (`FIEMAP_EXTENT_*`, linux/fiemap.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentFlags {
    /// Reserved but not written: reads as zeros.
    pub unwritten: bool,
    /// Its blocks are shared with another file.
    pub shared: bool,
    /// Not yet placed on disk: its physical address is meaningless.
    pub delayed: bool,
}

/// One record of an extent map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the file.
    pub logical: Bytes,
    /// Offset on the device.
    pub physical: Bytes,
    /// Its length.
    pub length: Bytes,
    /// Its flags.
    pub flags: ExtentFlags,
}

impl Extent {
    /// End offset in the file.
    pub fn end(&self) -> Bytes {
        self.logical.saturating_add(self.length)
    }
}

#[cfg(test)]
pub(crate) mod tests;
