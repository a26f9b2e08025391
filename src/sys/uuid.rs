//! The UUID of any file system: FS_IOC_GETFSUUID (kernels from 6.9 on, include/uapi/linux/fs.h),
//! and BTRFS_IOC_FS_INFO (ioctl(2) of btrfs, include/uapi/linux/btrfs.h) on kernels before.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

/// `struct fsuuid2`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Uuid2 {
    length: u8,
    uuid: [u8; 16],
}

/// `struct btrfs_ioctl_fs_info_args`, as far as it is read here.
#[repr(C)]
#[derive(Clone, Copy)]
struct BtrfsInfo {
    max_id: u64,
    devices: u64,
    uuid: [u8; 16],
    rest: [u64; 124],
}

const _: () = assert!(size_of::<Uuid2>() == 17);
const _: () = assert!(size_of::<BtrfsInfo>() == 1024);
const FS_IOC_GETFSUUID: Opcode = opcode::read::<Uuid2>(0x15, 0);
const BTRFS_IOC_FS_INFO: Opcode = opcode::read::<BtrfsInfo>(0x94, 31);

/// UUID of the file system that the open file lies on.
///
/// # Errors
/// ENOTTY where neither call is known, and when the file system has no UUID of 16 bytes.
pub fn uuid(file: impl AsFd) -> io::Result<[u8; 16]> {
    // SAFETY: the opcode takes a pointer to a `struct fsuuid2` and fills it in; `Uuid2` has its
    // size (asserted above), and any bytes are a valid value of it.
    let generic = unsafe { ioctl(&file, Getter::<FS_IOC_GETFSUUID, Uuid2>::new()) };
    if let Ok(Uuid2 { length: 16, uuid }) = generic {
        return Ok(uuid);
    }
    // SAFETY: as above, with `struct btrfs_ioctl_fs_info_args`. The number is btrfs's own: another
    // file system answers ENOTTY.
    let btrfs = unsafe { ioctl(&file, Getter::<BTRFS_IOC_FS_INFO, BtrfsInfo>::new()) }?;
    Ok(btrfs.uuid)
}
