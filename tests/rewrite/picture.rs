//! All that is to be seen of a file but its extents.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr, utimensat,
};

use super::{tools, xfs_io};

/// An ACL as the kernel takes it (include/uapi/linux/posix_acl_xattr.h): user 1000 may read.
const ACL: &[(u16, u16, u32)] = &[
    (0x01, 6, u32::MAX),
    (0x02, 4, 1000),
    (0x04, 4, u32::MAX),
    (0x10, 4, u32::MAX),
    (0x20, 0, u32::MAX),
];

#[derive(Debug, PartialEq, Eq)]
pub struct Picture {
    checksum: String,
    owner: (u32, u32),
    mode: u32,
    size: u64,
    names: u64,
    accessed: (i64, i64),
    modified: (i64, i64),
    extended: BTreeMap<Vec<u8>, Vec<u8>>,
    /// As xfs_io shows them; without those that say how it is
    /// allocated, whether it ever had attributes, and whether it is kept.
    flags: String,
    project: String,
    cow_hint: String,
}

pub fn of(path: &Path) -> Picture {
    let stat = fs::metadata(path).unwrap();
    let said = xfs_io_stat(path);
    let value = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {said}")).to_owned()
    };
    let flags = value("fsxattr.xflags = ");
    let (_, flags) = flags.split_once(' ').unwrap();
    Picture {
        owner: (stat.uid(), stat.gid()),
        mode: stat.mode(),
        size: stat.len(),
        names: stat.nlink(),
        accessed: (stat.atime(), stat.atime_nsec()),
        modified: (stat.mtime(), stat.mtime_nsec()),
        extended: extended(path),
        flags: flags.replace(['p', 'e', 'i', 'X'], "-"),
        project: value("fsxattr.projid = "),
        cow_hint: value("fsxattr.cowextsize = "),
        // Last: it reads the file.
        checksum: tools::checksum(path),
    }
}

fn xfs_io_stat(path: &Path) -> String {
    let output = std::process::Command::new("xfs_io")
        .args(["-r", "-c", "stat"])
        .arg(path)
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

fn extended(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let length = llistxattr(path, buffer.as_mut_slice()).unwrap();
    let list = buffer[..length].to_vec();
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let length = lgetxattr(path, name, buffer.as_mut_slice()).unwrap();
            (name.to_vec(), buffer[..length].to_vec())
        })
        .collect()
}

fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in ACL {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Gives a directory an ACL that new files in it inherit.
pub fn give_default_acl(directory: &Path) {
    let name = "system.posix_acl_default";
    lsetxattr(directory, name, &acl(), XattrFlags::empty()).unwrap();
}

/// Gives a file something of everything.
pub fn colour(path: &Path) {
    std::os::unix::fs::chown(path, Some(1234), Some(5678)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2750);
    fs::set_permissions(path, mode).unwrap();
    let long = vec![b'v'; 3000];
    let extended: [(&str, &[u8]); 5] = [
        ("user.note", b"of the operator"),
        ("user.long", &long),
        ("user.empty", b""),
        ("trusted.secret", b"\0\xff\n"),
        ("system.posix_acl_access", &acl()),
    ];
    for (name, value) in extended {
        lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }
    xfs_io("chproj 42", path);
    // No dump, no access times.
    xfs_io("chattr +dA", path);
    xfs_io("cowextsize 65536", path);
    File::open(path).unwrap().sync_all().unwrap();
    set_times(path, 1_000_000_000, 123_456_789);
}

pub fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = |tv_sec| Timespec {
        tv_sec,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(seconds + 7),
        last_modification: time(seconds),
    };
    utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}
