//! Determines the file system of a path from the path's text alone.
//!
//! stat(2) or statfs(2) would hang with the file system; the mount table is in memory. It may be
//! older than a mount, so an opened file is checked against it ([`Mount::holds`]).

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstatfs, major, minor};

use serde::{Deserialize, Serialize};

use crate::model::{DeviceNumber, FilesystemKind, path::wire};
use crate::sys;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Device number of the file system.
    pub device: DeviceNumber,
    /// The directory of the file system that is mounted here; `/` for all of it.
    #[serde(with = "wire")]
    pub root: PathBuf,
    /// The mount point.
    #[serde(with = "wire")]
    pub point: PathBuf,
    /// The kernel's name for the file system type.
    pub type_name: String,
}

impl Mount {
    /// The kind of file system, which decides how extents are counted.
    pub fn kind(&self) -> FilesystemKind {
        match self.type_name.as_str() {
            "xfs" => FilesystemKind::Xfs,
            _ => FilesystemKind::Other,
        }
    }

    /// Whether an open file with `st_dev` `device` lies on this file system, not on one that was
    /// mounted over the path after the mount table was read.
    ///
    /// Files on XFS and ext4 have the device number of their file system (generic_fillattr,
    /// fs/stat.c: `s_dev`). Other file systems may use different numbers, as for btrfs subvolumes
    /// (btrfs_getattr, fs/btrfs/inode.c) and on overlayfs (ovl_getattr, fs/overlayfs/inode.c).
    pub fn holds(&self, file: impl AsFd, device: u64) -> bool {
        const XFS: i64 = 0x5846_5342;
        const EXT: i64 = 0xEF53;
        if (major(device), minor(device)) == (self.device.major, self.device.minor) {
            return true;
        }
        let one_number = matches!(self.type_name.as_str(), "xfs" | "ext2" | "ext3" | "ext4");
        // The type of the field depends on the architecture.
        #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap)]
        let magic = |file| fstatfs(file).map(|statfs| statfs.f_type as i64);
        !one_number && !matches!(magic(file), Ok(XFS | EXT) | Err(_))
    }

    /// Whether it is a pseudo file system. These hold no images, and searching them has side
    /// effects (autofs mounts, /proc/kcore appears as large as memory).
    pub fn is_pseudo(&self) -> bool {
        const PSEUDO: [&str; 21] = [
            "autofs",
            "binfmt_misc",
            "bpf",
            "cgroup",
            "cgroup2",
            "configfs",
            "debugfs",
            "devpts",
            "devtmpfs",
            "efivarfs",
            "fuse.gvfsd-fuse",
            "fusectl",
            "hugetlbfs",
            "mqueue",
            "nsfs",
            "proc",
            "pstore",
            "rpc_pipefs",
            "securityfs",
            "sysfs",
            "tracefs",
        ];
        PSEUDO.contains(&self.type_name.as_str())
    }
}

/// The mounts of this host, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Converts the list of mounts from the kernel.
    pub fn new(mounts: Vec<sys::mounts::Mount>) -> Self {
        let ours = |mount: sys::mounts::Mount| Mount {
            device: DeviceNumber {
                major: mount.device.0,
                minor: mount.device.1,
            },
            root: mount.root,
            point: mount.point,
            type_name: mount.type_name,
        };
        MountTable(mounts.into_iter().map(ours).collect())
    }

    /// The mount of an absolute path without `.` and `..`: the one with the longest matching mount
    /// point; among several on one point the last, which hides the others.
    pub fn of(&self, path: &Path) -> Option<&Mount> {
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }

    /// The representative mount of a file system mounted in several places: the one that exposes
    /// the most of it, then the one with the shortest path. Mounts hidden by another do not count.
    pub fn principal(&self, device: DeviceNumber) -> Option<&Mount> {
        let is_seen = |mount: &&Mount| {
            let on_top = self.of(&mount.point);
            mount.device == device && on_top.is_some_and(|top| top.device == device)
        };
        let length = |path: &Path| path.as_os_str().len();
        let mounts = self.0.iter().filter(is_seen);
        mounts.min_by_key(|mount| (length(&mount.root), length(&mount.point), &mount.point))
    }

    /// The names in the directory `path` that are mount points.
    pub fn names_in(&self, path: &Path) -> Vec<&OsStr> {
        let inside = self
            .0
            .iter()
            .filter(|mount| mount.point.parent() == Some(path));
        inside.filter_map(|mount| mount.point.file_name()).collect()
    }
}

/// The single file system that a worker may access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemScope {
    /// All mounts of the host.
    pub mounts: MountTable,
    /// The file system's device number.
    pub device: DeviceNumber,
}

impl FilesystemScope {
    /// Whether an absolute path without links lies on this file system.
    pub fn is_here(&self, path: &Path) -> bool {
        self.mounts
            .of(path)
            .is_some_and(|mount| mount.device == self.device)
    }

    /// Whether an open file lies on this file system; see [`Mount::holds`].
    pub fn holds(&self, file: impl AsFd, device: u64) -> bool {
        let mut mounts = self.mounts.0.iter();
        let ours = mounts.find(|mount| mount.device == self.device);
        ours.is_some_and(|mount| mount.holds(file, device))
    }

    /// Replaces the made-up device number with that of real files.
    #[cfg(test)]
    pub(super) fn on_device(mut self, device: u64) -> FilesystemScope {
        let real = DeviceNumber {
            major: major(device),
            minor: minor(device),
        };
        let ours = self.device;
        let mounts = self.mounts.0.iter_mut();
        for mount in mounts.filter(|mount| mount.device == ours) {
            mount.device = real;
        }
        self.device = real;
        self
    }
}

/// A scope for tests: mount points with minor device numbers, and the scope's own minor number.
#[cfg(test)]
pub(super) fn scope(mounts: &[(&str, u32)], ours: u32) -> FilesystemScope {
    let device = |minor| DeviceNumber { major: 7, minor };
    let mount = |(point, minor): &(&str, u32)| Mount {
        device: device(*minor),
        root: PathBuf::from("/"),
        point: PathBuf::from(point),
        type_name: "xfs".to_owned(),
    };
    FilesystemScope {
        mounts: MountTable(mounts.iter().map(mount).collect()),
        device: device(ours),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_the_last_mount_counts() {
        let here = scope(&[("/", 0), ("/srv", 1), ("/srv/vm", 2), ("/srv/vm", 3)], 1);
        let minor = |path: &str| here.mounts.of(Path::new(path)).unwrap().device.minor;
        assert_eq!(minor("/"), 0);
        assert_eq!(minor("/srvother/x"), 0);
        assert_eq!(minor("/srv"), 1);
        assert_eq!(minor("/srv/vmx"), 1);
        assert_eq!(minor("/srv/vm/a/b"), 3);
        assert!(here.is_here(Path::new("/srv/a")));
        assert!(!here.is_here(Path::new("/srv/vm/a")));
        assert_eq!(here.mounts.names_in(Path::new("/")), ["srv"]);
        assert_eq!(here.mounts.names_in(Path::new("/srv")), ["vm", "vm"]);
        assert!(here.mounts.names_in(Path::new("/srv/vm")).is_empty());
    }

    #[test]
    fn the_mount_that_shows_the_most_stands_for_a_file_system() {
        let mounts = [
            ("/a", 1),
            ("/data/b", 1),
            ("/data", 1),
            ("/m", 1),
            ("/m", 2),
        ];
        let mut mounts = scope(&mounts, 1).mounts;
        mounts.0[0].root = PathBuf::from("/part");
        let point = |minor| {
            let device = DeviceNumber { major: 7, minor };
            mounts.principal(device).unwrap().point.to_str().unwrap()
        };
        assert_eq!((point(1), point(2)), ("/data", "/m"));
    }
}
