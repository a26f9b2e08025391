//! What a copy of an image takes over: owner, mode, access and modification time, extended attributes (ACL
//! and SELinux label among them), project, flags. Its change time, its birth time and its inode
//! number are its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{
    Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fremovexattr, fsetxattr, futimens,
};
use rustix::io::Errno;

use super::engine::cannot;
use crate::model::{Bytes, RunOutcome};
use crate::sys::fsxattr::{self, Hint};

/// Set by the kernel (FS_XFLAG_PREALLOC, FS_XFLAG_HASATTR; include/uapi/linux/fs.h), or ours
/// (FS_XFLAG_EXTSIZE).
const NOT_CARRIED: u32 = 0x2 | 0x8000_0000 | 0x800;
/// Maximum length of a list of names, and of a value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const LONGEST: usize = 65_536;
/// The owner and label from before the VM started: libvirt keeps these itself, with a count of users
/// (src/util/virfile.c; src/security/security_util.c).
const LIBVIRT: &[u8] = b"trusted.libvirt.";

/// The SELinux label (security/selinux, XATTR_NAME_SELINUX).
pub(crate) const LABEL: &[u8] = b"security.selinux";

/// Everything about a file but its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) size: u64,
    owner: (u32, u32),
    mode: u32,
    /// Seconds and nanoseconds of last access and modification.
    accessed: (i64, i64),
    pub(crate) modified: (i64, i64),
    extended: BTreeMap<Vec<u8>, Vec<u8>>,
    flags: u32,
    project: u32,
    cow_hint: Option<u32>,
}

impl Metadata {
    pub(crate) fn of(file: &File) -> io::Result<Metadata> {
        let stat = file.metadata()?;
        let attributes = fsxattr::attributes(file)?;
        Ok(Metadata {
            size: stat.len(),
            owner: (stat.uid(), stat.gid()),
            mode: stat.mode(),
            accessed: (stat.atime(), stat.atime_nsec()),
            modified: (stat.mtime(), stat.mtime_nsec()),
            extended: extended(file)?,
            flags: attributes.flags & !NOT_CARRIED,
            project: attributes.project,
            cow_hint: attributes.hint(Hint::CopyOnWrite),
        })
    }

    /// Gives an empty file the hint and the project, which count from the first block on.
    pub(crate) fn prepare(&self, copy: &File, hint: Bytes) -> io::Result<()> {
        let mut attributes = fsxattr::attributes(copy)?;
        let hint = u32::try_from(hint.0).unwrap_or(1 << 30);
        attributes.set_hint(Hint::Own, Some(hint));
        attributes.project = self.project;
        fsxattr::set_attributes(copy, attributes)
    }

    /// Gives the rest to the finished copy, flushes it, and checks that the copy has it.
    pub(crate) fn carry_over(&self, copy: &File) -> Result<(), RunOutcome> {
        self.give(copy)
            .map_err(cannot("its attributes cannot be carried over"))?;
        copy.sync_all()
            .map_err(cannot("the copy cannot be flushed"))?;
        if Metadata::of(copy)? == *self {
            return Ok(());
        }
        let reason = "the copy does not take over all attributes of the image (owner, mode, times, \
                      extended attributes, project, flags)";
        Err(RunOutcome::Failed {
            reason: reason.to_owned(),
        })
    }

    /// What permits access, for the copy of an image in use, whose times change.
    pub(crate) fn access(mut self) -> Metadata {
        self.extended.retain(|name, _| !name.starts_with(LIBVIRT));
        self
    }

    /// The user and the group.
    pub(crate) fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// The SELinux label; empty if it has none.
    pub(crate) fn label(&self) -> Vec<u8> {
        self.extended.get(LABEL).cloned().unwrap_or_default()
    }

    fn give(&self, copy: &File) -> io::Result<()> {
        self.give_access(copy)?;
        let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(self.accessed),
            last_modification: time(self.modified),
        };
        Ok(futimens(copy, &times)?)
    }

    /// Gives owner, mode, extended attributes and flags.
    pub(crate) fn give_access(&self, copy: &File) -> io::Result<()> {
        let (user, group) = self.owner;
        // First: it clears bits of the mode and security.capability.
        fchown(copy, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        fchmod(copy, Mode::from_raw_mode(self.mode & 0o7777))?;
        // A directory may have given it an ACL and a label.
        let has = extended(copy)?;
        for name in has.keys().filter(|name| !self.extended.contains_key(*name)) {
            match fremovexattr(copy, name.as_slice()) {
                // XFS shows root an ACL by two names (xfs_xattr_put_listent, fs/xfs/xfs_xattr.c).
                Err(Errno::NODATA) => {}
                other => other?,
            }
        }
        for (name, value) in &self.extended {
            if has.get(name) != Some(value) {
                fsetxattr(copy, name.as_slice(), value, XattrFlags::empty())?;
            }
        }
        let mut attributes = fsxattr::attributes(copy)?;
        attributes.flags = attributes.flags & NOT_CARRIED | self.flags;
        attributes.set_hint(Hint::CopyOnWrite, self.cow_hint);
        fsxattr::set_attributes(copy, attributes)
    }
}

fn extended(file: &File) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0; LONGEST];
    let length = match flistxattr(file, buffer.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let list = buffer[..length].to_vec();
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let length = fgetxattr(file, name, buffer.as_mut_slice())?;
            Ok((name.to_owned(), buffer[..length].to_vec()))
        })
        .collect()
}
