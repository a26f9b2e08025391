//! XFS_IOC_FSGEOMETRY, XFS_IOC_FSCOUNTS and XFS_IOC_AG_GEOMETRY: layout, features, UUID and free blocks of
//! an XFS (ioctl_xfs_fsgeometry(2), ioctl_xfs_fscounts(2), ioctl_xfs_ag_geometry(2),
//! fs/xfs/libxfs/xfs_fs.h).

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};

/// Reverse-mapping tree (`XFS_FSOP_GEOM_FLAGS_RMAPBT`).
pub const FLAG_RMAPBT: u32 = 1 << 19;
/// Files can share blocks (`XFS_FSOP_GEOM_FLAGS_REFLINK`).
pub const FLAG_REFLINK: u32 = 1 << 20;
/// Timestamps beyond 2038 (`XFS_FSOP_GEOM_FLAGS_BIGTIME`).
pub const FLAG_BIGTIME: u32 = 1 << 21;
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
    /// Blocks of the log.
    pub log_blocks: u32,
    numbers: [u32; 3],
    /// Blocks of the data section.
    pub data_blocks: u64,
    /// Blocks of the realtime section; 0 without one.
    pub realtime_blocks: u64,
    realtime_and_log: [u64; 2],
    /// UUID of the file system.
    pub uuid: [u8; 16],
    stripe: [u32; 2],
    version: i32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Sector size of the log, in bytes.
    pub log_sector: u32,
    sectors: [u32; 2],
    /// Stripe unit of the log, in bytes; 0 or 1 without one.
    pub log_stripe: u32,
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

/// `struct xfs_fsop_counts`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Counts {
    free_data: u64,
    rest: [u64; 3],
}

/// `struct xfs_ag_geometry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Group {
    number: u32,
    length: u32,
    free: u32,
    rest: [u32; 5],
    reserved: [u64; 12],
}

const _: () = assert!(size_of::<Counts>() == 32);
const _: () = assert!(size_of::<Group>() == 128);
const XFS_IOC_FSCOUNTS: Opcode = opcode::read::<Counts>(b'X', 113);
const XFS_IOC_AG_GEOMETRY: Opcode = opcode::read_write::<Group>(b'X', 61);

/// Returns the free blocks of the data section, from the counters in memory: unlike statfs(2) it does not
/// wait for deleted files (xfs_fs_counts, fs/xfs/xfs_fsops.c).
pub fn free_blocks(file: impl AsFd) -> io::Result<u64> {
    // SAFETY: the opcode takes a pointer to a `struct xfs_fsop_counts` and fills it in; the type has its
    // size (asserted above), and any bytes are valid values of it.
    let counts = unsafe { ioctl(file, Getter::<XFS_IOC_FSCOUNTS, Counts>::new())? };
    // The kernel subtracts its reserve without a check: on a full file system it can be below zero.
    Ok(i64::try_from(counts.free_data).map_or(0, i64::unsigned_abs))
}

/// Returns the blocks of an allocation group, and how many of them are free. May read the headers of the
/// group from the disk; ENOTTY before Linux 5.2.
pub fn group(file: impl AsFd, number: u32) -> io::Result<(u32, u32)> {
    let mut group = Group {
        number,
        length: 0,
        free: 0,
        rest: [0; 5],
        reserved: [0; 12],
    };
    // SAFETY: the opcode takes a pointer to a `struct xfs_ag_geometry`, reads its number and fills in the
    // rest; the type has its size (asserted above), and any bytes are valid values of it.
    unsafe { ioctl(file, Updater::<XFS_IOC_AG_GEOMETRY, Group>::new(&mut group))? };
    Ok((group.length, group.free))
}
