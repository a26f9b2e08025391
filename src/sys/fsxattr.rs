//! FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR: attributes that XFS keeps in the inode, including the
//! number of extents (ioctl_xfs_fsgetxattr(2), include/uapi/linux/fs.h).

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};
use serde::{Deserialize, Serialize};

/// The extent-size hint in [`Attributes::extent_size`] is in force (`FS_XFLAG_EXTSIZE`).
const FLAG_EXTENT_SIZE: u32 = 0x0000_0800;
/// New files in this directory inherit its hint (`FS_XFLAG_EXTSZINHERIT`).
const FLAG_EXTENT_SIZE_INHERIT: u32 = 0x0000_1000;
/// The hint in [`Attributes::cow_extent_size`] is in force (`FS_XFLAG_COWEXTSIZE`).
const FLAG_COW_EXTENT_SIZE: u32 = 0x0001_0000;

/// The extent-size hints that an inode can have. In force only with its flag; the number may be stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Of a file.
    Own,
    /// Of a directory, for new files and directories in it.
    Inherited,
    /// Of a file, for copy on write.
    CopyOnWrite,
}

impl Hint {
    fn flag(self) -> u32 {
        match self {
            Hint::Own => FLAG_EXTENT_SIZE,
            Hint::Inherited => FLAG_EXTENT_SIZE_INHERIT,
            Hint::CopyOnWrite => FLAG_COW_EXTENT_SIZE,
        }
    }
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Flags (`fsx_xflags`).
    pub flags: u32,
    /// Extent-size hint in bytes (`fsx_extsize`).
    extent_size: u32,
    /// Records of the data fork's extent map (`fsx_nextents`); 0 on other file systems than XFS.
    /// Includes delayed allocations once the map is in memory.
    pub extents: u32,
    /// Project quota (`fsx_projid`).
    pub project: u32,
    /// Extent-size hint for copy on write, in bytes (`fsx_cowextsize`).
    cow_extent_size: u32,
    pad: [u8; 8],
}

const _: () = assert!(size_of::<Attributes>() == 28);

impl Attributes {
    /// A hint in bytes; `None` if it is not in force.
    pub fn hint(&self, hint: Hint) -> Option<u32> {
        let size = match hint {
            Hint::Own | Hint::Inherited => self.extent_size,
            Hint::CopyOnWrite => self.cow_extent_size,
        };
        (self.flags & hint.flag() != 0).then_some(size)
    }

    /// Puts a hint in force, in bytes, or for `None` out of force. Then the number must be 0
    /// (xfs_inode_validate_extsize, fs/xfs/libxfs/xfs_inode_buf.c).
    pub fn set_hint(&mut self, hint: Hint, wanted: Option<u32>) {
        match wanted {
            Some(_) => self.flags |= hint.flag(),
            None => self.flags &= !hint.flag(),
        }
        let size = match hint {
            Hint::Own | Hint::Inherited => &mut self.extent_size,
            Hint::CopyOnWrite => &mut self.cow_extent_size,
        };
        *size = wanted.unwrap_or(0);
    }
}

const FS_IOC_FSGETXATTR: Opcode = opcode::read::<Attributes>(b'X', 31);
const _: () = assert!(FS_IOC_FSGETXATTR == 0x801c_581f);
const FS_IOC_FSSETXATTR: Opcode = opcode::write::<Attributes>(b'X', 32);
const _: () = assert!(FS_IOC_FSSETXATTR == 0x401c_5820);

/// Returns the attributes of an open file; ENOTTY or EOPNOTSUPP where not supported. Constant time
/// on XFS for any number of extents: the map is not loaded (xfs_fill_fsxattr, fs/xfs/xfs_ioctl.c).
pub fn attributes(file: impl AsFd) -> io::Result<Attributes> {
    // SAFETY: the opcode takes a pointer to a `struct fsxattr` and fills it in; `Attributes` has
    // its size and layout (asserted above), and any bytes are a valid value of it.
    let attributes = unsafe {
        let getter = Getter::<FS_IOC_FSGETXATTR, Attributes>::new();
        ioctl(file, getter)
    }?;
    Ok(attributes)
}

/// Sets the attributes that [`attributes`] returned, with changes; `extents` is ignored. EINVAL for
/// a hint that is not a multiple of the block size or is too long.
pub fn set_attributes(file: impl AsFd, attributes: Attributes) -> io::Result<()> {
    // SAFETY: the opcode takes a pointer to a `struct fsxattr` and reads it; `Attributes` has its
    // size and layout (asserted above).
    unsafe {
        ioctl(
            file,
            Setter::<FS_IOC_FSSETXATTR, Attributes>::new(attributes),
        )
    }?;
    Ok(())
}
