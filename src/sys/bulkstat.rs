//! XFS_IOC_BULKSTAT: reads the inodes of an XFS in batches, without opening them or loading their
//! extent maps (ioctl_xfs_bulkstat(2), fs/xfs/libxfs/xfs_fs.h). Since 5.3; needs CAP_SYS_ADMIN.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Maximum inodes per call.
const BATCH: u32 = 1024;
/// Restricts the call to one allocation group (`XFS_BULK_IREQ_AGNO`).
const REQUEST_GROUP: u32 = 1 << 0;
/// Requests 64-bit extent counts (`XFS_BULK_IREQ_NREXT64`, kernels from 5.19 on).
const REQUEST_NREXT64: u32 = 1 << 2;

/// `struct xfs_bulkstat`, as far as it is read here.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Inode {
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated blocks of [`block_size`](Inode::block_size) bytes.
    pub blocks: u64,
    xflags_and_times: [u64; 5],
    /// Generation of the inode number.
    pub generation: u32,
    owner_and_nanoseconds: [u32; 7],
    /// Block size in bytes.
    pub block_size: u32,
    rdev_hints_and_links: [u32; 4],
    extents32: u32,
    attribute_extents: u32,
    version_and_health: [u16; 4],
    /// `st_mode`.
    pub mode: u16,
    pad2: u16,
    extents64: u64,
    pad: [u64; 6],
}

impl Inode {
    /// Extents of the data fork. At most 2^31-1 on kernels without 64-bit counts
    /// (xfs_bulkstat_one_int, fs/xfs/xfs_itable.c).
    pub fn extents(&self) -> u64 {
        if self.extents64 != 0 {
            self.extents64
        } else {
            u64::from(self.extents32)
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        u32::from(self.mode) & libc::S_IFMT == libc::S_IFREG
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    inode: u64,
    flags: u32,
    wanted: u32,
    returned: u32,
    allocation_group: u32,
    reserved: [u64; 5],
}

#[repr(C)]
struct Request {
    header: Header,
    inodes: [Inode; BATCH as usize],
}

const _: () = assert!(size_of::<Inode>() == 192);
const _: () = assert!(size_of::<Header>() == 64);
const XFS_IOC_BULKSTAT: Opcode = opcode::read::<Header>(b'X', 127);
const _: () = assert!(XFS_IOC_BULKSTAT == 0x8040_587f);

/// Reads all inodes of an allocation group in batches.
pub struct Bulkstat(Box<Request>);

impl Bulkstat {
    /// Starts at the first inode of a group.
    pub fn of_group(group: u32) -> Self {
        Bulkstat(Box::new(Request {
            header: Header {
                allocation_group: group,
                flags: REQUEST_GROUP | REQUEST_NREXT64,
                wanted: BATCH,
                ..Header::default()
            },
            inodes: [Inode::default(); BATCH as usize],
        }))
    }

    /// Returns the next inodes, none at the end. `file` is any open file of the file system.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, ENOTTY before 5.3 or if not XFS, EINVAL without such a group.
    pub fn next(&mut self, file: impl AsFd) -> io::Result<&[Inode]> {
        match self.call(&file) {
            // Kernels before 5.19 reject the flag; they have no 64-bit counts.
            Err(Errno::INVAL) if self.0.header.flags & REQUEST_NREXT64 != 0 => {
                self.0.header.flags &= !REQUEST_NREXT64;
                self.call(&file)?;
            }
            other => other?,
        }
        let returned = self.0.header.returned.min(BATCH);
        Ok(&self.0.inodes[..returned as usize])
    }

    fn call(&mut self, file: impl AsFd) -> Result<(), Errno> {
        self.0.header.returned = 0;
        // SAFETY: the opcode takes a pointer to a `struct xfs_bulkstat_req`: a header that `icount`
        // records follow. `Request` has that layout and holds as many (sizes asserted above); the
        // kernel writes no more, and advances `inode` to where it goes on.
        unsafe {
            let updater = Updater::<XFS_IOC_BULKSTAT, Request>::new(&mut self.0);
            ioctl(file, updater)
        }
    }
}

#[cfg(test)]
impl Inode {
    /// A regular file for tests.
    pub(crate) fn example(inode: u64, extents64: u64) -> Inode {
        Inode {
            inode,
            extents64,
            mode: 0o100_644,
            ..Inode::default()
        }
    }
}
