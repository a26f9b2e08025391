//! File systems and their features.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::path;
use super::units::Bytes;

/// Device number of a mounted file system: the third field of /proc/self/mountinfo (`major:minor`,
/// proc_pid_mountinfo(5)). It identifies the whole file system; on btrfs `st_dev` differs, because
/// it is that of the subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(DeviceNumber {
            major: major.parse().map_err(|_| ())?,
            minor: minor.parse().map_err(|_| ())?,
        })
    }
}

/// Kind of file system, as far as it determines how extents are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemKind {
    /// XFS: FS_IOC_FSGETXATTR counts in constant time.
    Xfs,
    /// Any other: FS_IOC_FIEMAP counts, where supported.
    #[default]
    Other,
}

/// Features of an XFS, from the flags of `XFS_IOC_FSGEOMETRY` (fs/xfs/libxfs/xfs_fs.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Files can share blocks (`XFS_FSOP_GEOM_FLAGS_REFLINK`).
    pub reflink: bool,
    /// Reverse-mapping tree: swapping the extents of two files takes one step per extent
    /// (`XFS_FSOP_GEOM_FLAGS_RMAPBT`).
    pub rmapbt: bool,
    /// 64-bit extent counters (`XFS_FSOP_GEOM_FLAGS_NREXT64`).
    pub nrext64: bool,
    /// Contents of two files can be exchanged atomically (`XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE`).
    pub exchange_range: bool,
}

/// A mounted file system and its free space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Its mount point.
    #[serde(with = "path::wire")]
    pub mount: PathBuf,
    /// Its type as the kernel names it: `xfs`, `ext4`, `btrfs`, …
    pub type_name: String,
    /// How its extents are counted.
    pub kind: FilesystemKind,
    /// Its UUID with hyphens, if the kernel reports it.
    pub uuid: Option<String>,
    /// Its features, if it is an XFS that reports them.
    pub features: Option<Features>,
    /// Its size.
    pub size: Bytes,
    /// Space free for unprivileged users (`f_bavail`, statvfs(3)).
    pub free: Bytes,
    /// Its block size.
    pub block_size: Bytes,
}

impl Filesystem {
    /// Its [`lasting_name`], from what could be read at its mount point.
    pub fn lasting_name(&self) -> String {
        lasting_name(self.uuid.clone(), &self.type_name, &self.mount)
    }
}

/// A name of a file system that survives mounts and boots: its UUID, or its type and mount point if
/// it has none or the kernel cannot report it; no UUID contains a colon. If the UUID could not be
/// read, there is no name.
pub fn lasting_name(uuid: Option<String>, type_name: &str, mount: &Path) -> String {
    uuid.unwrap_or_else(|| format!("{type_name}:{}", path::shown(mount)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_named_by_its_uuid_or_its_place() {
        let mut filesystem = Filesystem {
            mount: PathBuf::from("/srv/vm"),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            uuid: None,
            features: None,
            size: Bytes(0),
            free: Bytes(0),
            block_size: Bytes(0),
        };
        assert_eq!(filesystem.lasting_name(), "xfs:/srv/vm");
        let uuid = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        filesystem.uuid = Some(uuid.to_owned());
        assert_eq!(filesystem.lasting_name(), uuid);
    }

    #[test]
    fn a_device_number_reads_as_mountinfo_writes_it() {
        let number: DeviceNumber = "259:12".parse().unwrap();
        assert_eq!(
            number,
            DeviceNumber {
                major: 259,
                minor: 12
            }
        );
        assert_eq!(number.to_string(), "259:12");
        for wrong in ["", "1", "1:", ":1", "a:1", "1:2:3", "-1:2"] {
            assert!(wrong.parse::<DeviceNumber>().is_err(), "{wrong}");
        }
    }
}
