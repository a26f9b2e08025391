//! Determines the file system of a path from the path's text and the mount table.
//!
//! stat(2), statx(2) or statfs(2) of a path would hang with the file system; the mount table is in
//! memory. It may be older than a mount, so an opened file is checked against it
//! ([`Mount::holds`]).

use std::collections::{HashMap, HashSet};
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
    /// Its mount ID, which is used again after it was unmounted.
    pub id: u32,
    /// The mount that it is mounted on; `None` if that is not in the table, as for the root.
    pub parent: Option<u32>,
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

    /// Where a file with this path lies: its file system, and its path inside that, which is the
    /// same through every mount. `None` if the mount is not on the way to it.
    pub fn place(&self, path: &Path) -> Option<Place> {
        let rest = path.strip_prefix(&self.point).ok()?;
        Some((self.device, joined(&self.root, rest)))
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
        const PSEUDO: &str = "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs \
            efivarfs fuse.gvfsd-fuse fusectl hugetlbfs mqueue nsfs proc pstore rpc_pipefs securityfs \
            sysfs tracefs";
        PSEUDO.split_whitespace().any(|it| it == self.type_name)
    }
}

/// A file system, and the path of a file inside it.
pub type Place = (DeviceNumber, PathBuf);

/// `base.join("")` would end in a slash, which stands for a directory.
fn joined(base: &Path, rest: &Path) -> PathBuf {
    base.join(rest).components().collect()
}

/// The mounts of a process, in the order of the kernel: by age, since Linux 6.8 by mount ID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Converts the list of mounts from the kernel.
    pub fn new(mounts: Vec<sys::mounts::Mount>) -> Self {
        let ids: HashSet<u32> = mounts.iter().map(|mount| mount.id).collect();
        let ours = |mount: sys::mounts::Mount| Mount {
            id: mount.id,
            parent: Some(mount.parent).filter(|it| *it != mount.id && ids.contains(it)),
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

    /// The mount of an absolute path without `.`, `..` and links, found as by the kernel
    /// (__follow_mount_rcu, fs/namei.c): from the root it enters what is mounted on the current
    /// mount at each directory of the path, again and again. Other mounts on the same directory are
    /// hidden: below the ones entered, or on a mount that is itself hidden.
    pub fn of(&self, path: &Path) -> Option<&Mount> {
        let on_the_way = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        let mut on_the_way: Vec<&Mount> = on_the_way.collect();
        on_the_way.sort_by_key(|mount| mount.point.components().count());
        let mut at: Option<&Mount> = None;
        for stack in on_the_way.chunk_by(|a, b| a.point == b.point) {
            let parent = at.map(|mount| mount.id);
            // Before Linux 4.10 a mount could have two on one directory; the later one is entered.
            let mut mounts = stack.iter().rev();
            let mut next = mounts.find(|it| it.parent.is_none() || it.parent == parent);
            // Bounded, because a table that is made up can contain a circle.
            for _ in stack {
                let Some(entered) = next else { break };
                at = Some(entered);
                let mut mounts = stack.iter().rev();
                next = mounts.find(|it| it.parent == Some(entered.id));
            }
        }
        at
    }

    /// Whether a mount is not hidden by others.
    fn is_visible(&self, mount: &Mount) -> bool {
        let seen = self.of(&mount.point);
        seen.is_some_and(|seen| std::ptr::eq(seen, mount))
    }

    /// The mount with this ID, which the kernel gives for an open file.
    pub fn with_id(&self, id: u32) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// The mounts by their IDs.
    pub fn by_id(&self) -> HashMap<u32, Mount> {
        let mounts = self.0.iter();
        mounts.map(|mount| (mount.id, mount.clone())).collect()
    }

    /// Where the file with this path lies; see [`Mount::place`].
    pub fn place(&self, path: &Path) -> Option<Place> {
        self.of(path)?.place(path)
    }

    /// A path to a file at `place`; of several, the one through the mount that exposes the most.
    pub fn path_to(&self, place: &Place) -> Option<PathBuf> {
        let (device, inside) = place;
        let mounts = self.0.iter().filter(|mount| mount.device == *device);
        let paths = mounts.filter_map(|mount| {
            let path = joined(&mount.point, inside.strip_prefix(&mount.root).ok()?);
            let seen = self.of(&path)?;
            std::ptr::eq(seen, mount).then_some((mount.root.as_os_str().len(), path))
        });
        paths.min().map(|(_, path)| path)
    }

    /// The representative mount of a file system mounted in several places: the one that exposes
    /// the most of it, then the one with the shortest path. Mounts hidden by another do not count.
    pub fn principal(&self, device: DeviceNumber) -> Option<&Mount> {
        let is_seen = |mount: &&Mount| mount.device == device && self.is_visible(mount);
        let length = |path: &Path| path.as_os_str().len();
        let mounts = self.0.iter().filter(is_seen);
        mounts.min_by_key(|mount| (length(&mount.root), length(&mount.point), &mount.point))
    }

    /// The names in the directory `path` that are mount points.
    pub fn names_in(&self, path: &Path) -> Vec<&OsStr> {
        let inside = self
            .0
            .iter()
            .filter(|mount| mount.point.parent() == Some(path) && self.is_visible(mount));
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
}

#[cfg(test)]
impl FilesystemScope {
    /// Replaces the made-up device number with that of real files.
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
    let mount = |(id, (point, minor)): (u32, &(&str, u32))| Mount {
        id,
        parent: None,
        device: device(*minor),
        root: PathBuf::from("/"),
        point: PathBuf::from(point),
        type_name: "xfs".to_owned(),
    };
    FilesystemScope {
        mounts: MountTable((0..).zip(mounts).map(mount).collect()),
        device: device(ours),
    }
}

#[cfg(test)]
mod tests;
