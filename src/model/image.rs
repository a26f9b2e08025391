//! An image: its identity, its format and a sample of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::history::ImageKey;
use super::path;
use super::units::{Bytes, ExtentCount};
use super::words::words;

/// Identity of an image while its file system is mounted. A rename keeps it, hard links share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId {
    /// `st_dev` of the file; on btrfs that of its subvolume.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// What the name of an image gets appended for the old file that a rewrite keeps. Such a file is no
/// image.
pub const KEPT_SUFFIX: &str = ".before-rewrite";
/// End of the name of the copy that `blockcopy` makes of an image, and of its second name afterwards.
pub const COPY_SUFFIX: &str = ".blockcopy";

/// The name under which the old file is kept.
pub fn kept_name(image: &Path) -> OsString {
    let mut name = image.file_name().unwrap_or_default().to_owned();
    name.push(KEPT_SUFFIX);
    name
}

/// The path at which the old file is kept.
pub fn kept_path(image: &Path) -> PathBuf {
    image.with_file_name(kept_name(image))
}

words! {
    /// Format of a disk image; the name is that of QEMU, except for `vhd`, which QEMU calls `vpc`.
    pub enum Format: Display {
        /// No header; an image by its partition table or name, because QEMU has it open, or because
        /// the user named it.
        Raw = "raw",
        /// QEMU copy-on-write.
        Qcow2 = "qcow2",
        /// VMware.
        Vmdk = "vmdk",
        /// VirtualBox.
        Vdi = "vdi",
        /// Hyper-V.
        Vhdx = "vhdx",
        /// Virtual PC, Hyper-V, Azure.
        Vhd = "vhd",
        /// QEMU's former enhanced disk.
        Qed = "qed",
        /// Parallels, Virtuozzo.
        Parallels = "parallels",
        /// Encrypted, version 1 or 2.
        Luks = "luks",
        /// Not read, as one byte loads the whole extent map; an image by its name or extent count.
        Unknown = "unknown",
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
    /// Hint of the file for copy on write; 0 if it has none. XFS only.
    pub cow_hint: Bytes,
    /// Its header, if it is qcow2 and was read.
    pub qcow2: Option<Qcow2>,
}

/// What the header of a qcow2 image says of its layout (docs/interop/qcow2.rst of QEMU).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qcow2 {
    /// It grows by pieces of this size: 512 B to 2 MiB.
    pub cluster: Bytes,
    /// Length of the guest's disk.
    pub disk: Bytes,
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
