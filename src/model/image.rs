//! An image: its identity, its format and a sample of it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::history::ImageKey;
use super::path;
use super::units::{Bytes, ExtentCount};

/// Identity of an image while its file system is mounted. A rename keeps it, hard links share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId {
    /// `st_dev` of the file; on btrfs that of its subvolume.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// No header; an image by its name, because QEMU has it open, or because the user named it.
    Raw,
    /// QEMU copy-on-write.
    Qcow2,
    /// VMware.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Hyper-V.
    Vhdx,
    /// Not read, as one byte loads the whole extent map; an image by its name or extent count.
    Unknown,
}

impl Format {
    /// The name used by QEMU and in our output.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhdx => "vhdx",
            Format::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One extent count of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Its identity while mounted.
    pub id: ImageId,
    /// Its lasting identity, or why it could not be read; then nothing is recorded of it.
    pub key: Result<ImageKey, String>,
    /// Where it was found: absolute, without symbolic links.
    #[serde(with = "path::wire")]
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Records of its extent map.
    pub extents: ExtentCount,
    /// Length of the file.
    pub size: Bytes,
    /// Allocated size (`st_blocks`).
    pub allocated: Bytes,
    /// Extent-size hint of the file; 0 if it has none. XFS only.
    pub extent_size_hint: Bytes,
    /// Extent-size hint that its directory gives to new files; 0 if none. XFS only.
    pub directory_hint: Bytes,
}

impl Sample {
    /// Mean length of an extent; `None` without extents.
    pub fn mean_extent(&self) -> Option<Bytes> {
        self.allocated.0.checked_div(self.extents.0).map(Bytes)
    }
}

/// An image and its path at the time of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Its lasting identity.
    #[serde(flatten)]
    pub key: ImageKey,
    /// Its path.
    #[serde(with = "path::wire")]
    pub path: PathBuf,
}
