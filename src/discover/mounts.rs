//! Which file system a path lies on, by its text alone.
//!
//! Asking the kernel (stat, statfs) would hang with the file system; so would leave everyone who
//! asks. The mount table answers the same from memory. It can be older than a mount, so a file that
//! was opened is compared with the table ([`Mount::holds`]).

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstatfs, major, minor};

use serde::{Deserialize, Serialize};

use crate::model::{DeviceNumber, FilesystemKind, path::wire};
use crate::sys;

/// One mount, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The file system's device number.
    pub device: DeviceNumber,
    /// The directory of the file system that is seen there: `/` if all of it is.
    #[serde(with = "wire")]
    pub root: PathBuf,
    /// Where it is mounted.
    #[serde(with = "wire")]
    pub point: PathBuf,
    /// The kernel's name of its type.
    pub type_name: String,
}

impl Mount {
    /// What the type means for counting.
    pub fn kind(&self) -> FilesystemKind {
        match self.type_name.as_str() {
            "xfs" => FilesystemKind::Xfs,
            _ => FilesystemKind::Other,
        }
    }

    /// Whether an open file, whose `st_dev` is `device`, lies on its file system, and not on one that
    /// was mounted in the way after the mount table was read.
    ///
    /// Files of XFS and ext4 have the device number of their file system (generic_fillattr, fs/stat.c:
    /// `s_dev`). Others can have numbers of their own, as in the subvolumes of btrfs (btrfs_getattr,
    /// fs/btrfs/inode.c) and on overlayfs (ovl_getattr, fs/overlayfs/inode.c).
    pub fn holds(&self, file: impl AsFd, device: u64) -> bool {
        const XFS: i64 = 0x5846_5342;
        const EXT: i64 = 0xEF53;
        if (major(device), minor(device)) == (self.device.major, self.device.minor) {
            return true;
        }
        let one_number = matches!(self.type_name.as_str(), "xfs" | "ext2" | "ext3" | "ext4");
        // The type of the field differs from one architecture to the next.
        #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap)]
        let magic = |file| fstatfs(file).map(|statfs| statfs.f_type as i64);
        !one_number && !matches!(magic(file), Ok(XFS | EXT) | Err(_))
    }

    /// Whether it is one of the kernel's own, which hold no images; searching them has effects
    /// (autofs mounts, /proc/kcore is as long as the memory).
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
    /// Made from what the kernel lists.
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

    /// The mount that an absolute path without `.` and `..` lies on: the one with the longest
    /// mount point that leads to it, and of several on one point the last, which hides the others.
    pub fn of(&self, path: &Path) -> Option<&Mount> {
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }

    /// The mount that stands for a file system mounted in several places: the one that shows the
    /// most of it, and of several such the shortest path. One behind another mount shows nothing.
    pub fn principal(&self, device: DeviceNumber) -> Option<&Mount> {
        let is_seen = |mount: &&Mount| {
            let on_top = self.of(&mount.point);
            mount.device == device && on_top.is_some_and(|top| top.device == device)
        };
        let length = |path: &Path| path.as_os_str().len();
        let mounts = self.0.iter().filter(is_seen);
        mounts.min_by_key(|mount| (length(&mount.root), length(&mount.point), &mount.point))
    }

    /// Names in the directory `path` on which something is mounted.
    pub fn names_in(&self, path: &Path) -> Vec<&OsStr> {
        let inside = self
            .0
            .iter()
            .filter(|mount| mount.point.parent() == Some(path));
        inside.filter_map(|mount| mount.point.file_name()).collect()
    }
}

/// The one file system that a worker may touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemScope {
    /// All mounts.
    pub mounts: MountTable,
    /// Its own file system.
    pub device: DeviceNumber,
}

impl FilesystemScope {
    /// Whether an absolute path without links lies on it.
    pub fn is_here(&self, path: &Path) -> bool {
        self.mounts
            .of(path)
            .is_some_and(|mount| mount.device == self.device)
    }

    /// Whether an open file lies on it: see [`Mount::holds`].
    pub fn holds(&self, file: impl AsFd, device: u64) -> bool {
        let mut mounts = self.mounts.0.iter();
        let ours = mounts.find(|mount| mount.device == self.device);
        ours.is_some_and(|mount| mount.holds(file, device))
    }

    /// The same with the device number of real files.
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

/// A made-up scope: mount points with minor device numbers, and our own minor number.
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
