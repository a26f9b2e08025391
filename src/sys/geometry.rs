//! XFS_IOC_FSGEOMETRY: features and UUID of an XFS (ioctl_xfs_fsgeometry(2),
//! fs/xfs/libxfs/xfs_fs.h).

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

/// Reverse-mapping tree (`XFS_FSOP_GEOM_FLAGS_RMAPBT`).
pub const FLAG_RMAPBT: u32 = 1 << 19;
/// Files can share blocks (`XFS_FSOP_GEOM_FLAGS_REFLINK`).
pub const FLAG_REFLINK: u32 = 1 << 20;
/// 64-bit extent counters (`XFS_FSOP_GEOM_FLAGS_NREXT64`).
pub const FLAG_NREXT64: u32 = 1 << 23;
/// Atomic exchange of contents (`XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE`).
pub const FLAG_EXCHANGE_RANGE: u32 = 1 << 24;

/// The first 112 bytes of `struct xfs_fsop_geom`, the same in both versions of the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Size of a block, in bytes.
    pub block_size: u32,
    realtime_extent: u32,
    /// Blocks of an allocation group.
    pub group_blocks: u32,
    /// Allocation groups.
    pub groups: u32,
    numbers: [u32; 4],
    /// Blocks of the data section.
    pub data_blocks: u64,
    realtime_and_log: [u64; 3],
    /// UUID of the file system.
    pub uuid: [u8; 16],
    stripe: [u32; 2],
    version: i32,
    /// `FLAG_*`.
    pub flags: u32,
    sectors: [u32; 2],
    directory_block: u32,
    log_stripe: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Geometry5 {
    common: Geometry,
    rest: [u64; 18],
}

const _: () = assert!(size_of::<Geometry>() == 112);
const _: () = assert!(size_of::<Geometry5>() == 256);
const XFS_IOC_FSGEOMETRY_V4: Opcode = opcode::read::<Geometry>(b'X', 124);
const XFS_IOC_FSGEOMETRY: Opcode = opcode::read::<Geometry5>(b'X', 126);

/// Returns the geometry of the XFS of an open file; ENOTTY on another file system.
pub fn geometry(file: impl AsFd) -> io::Result<Geometry> {
    // SAFETY: each opcode takes a pointer to its version of `struct xfs_fsop_geom` and fills it in;
    // the types have their sizes (asserted above), and any bytes are valid values of them.
    let answer = unsafe {
        match ioctl(&file, Getter::<XFS_IOC_FSGEOMETRY, Geometry5>::new()) {
            // Kernels before 5.2 know only the older version.
            Err(Errno::NOTTY) => ioctl(&file, Getter::<XFS_IOC_FSGEOMETRY_V4, Geometry>::new()),
            other => other.map(|geometry| geometry.common),
        }
    };
    Ok(answer?)
}
