//! An image: its identity, its format, a sample of it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::history::ImageKey;
use super::path;
use super::units::{Bytes, ExtentCount};

/// The identity of an image while its file system is mounted: device and inode. A rename keeps it, a
/// hard link shares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId {
    /// `st_dev` of the file; on btrfs that is its subvolume.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// What kind of disk image it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// No header; an image by its name, because QEMU has it open, or because it was named.
    Raw,
    /// QEMU copy-on-write.
    Qcow2,
    /// VMware.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Hyper-V.
    Vhdx,
    /// An image by its name or its many extents, not read: reading one byte would load its whole extent
    /// map.
    Unknown,
}

impl Format {
    /// The name as in QEMU and in our output.
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

/// One count of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Its identity while it exists.
    pub id: ImageId,
    /// Its lasting identity; or why that could not be read, and then nothing is recorded of it.
    pub key: Result<ImageKey, String>,
    /// Where it was found: absolute, without symbolic links.
    #[serde(with = "path::wire")]
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Records of its extent map.
    pub extents: ExtentCount,
    /// Its length as a file.
    pub size: Bytes,
    /// What it occupies on disk (`st_blocks`).
    pub allocated: Bytes,
    /// The extent-size hint of the file, 0 if it has none. XFS only.
    pub extent_size_hint: Bytes,
    /// The extent-size hint that its directory gives to new files, 0 if none. XFS only.
    pub directory_hint: Bytes,
}

impl Sample {
    /// Mean length of an extent; `None` for a file without extents.
    pub fn mean_extent(&self) -> Option<Bytes> {
        self.allocated.0.checked_div(self.extents.0).map(Bytes)
    }
}

/// An image, and where it was when something was noted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// Its lasting identity.
    pub key: ImageKey,
    /// Its path.
    pub path: PathBuf,
}
