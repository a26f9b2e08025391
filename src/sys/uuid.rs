//! The UUID of a file system: EXT4_IOC_GETFSUUID (kernels from 6.0 on, ext4_ioctl_getuuid,
//! fs/ext4/ioctl.c), FS_IOC_GETFSUUID (from 6.9 on, include/uapi/linux/fs.h) and BTRFS_IOC_FS_INFO
//! (include/uapi/linux/btrfs.h).

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};

/// `struct fsuuid2`: the length and 16 bytes.
type Uuid2 = [u8; 17];
/// `struct btrfs_ioctl_fs_info_args`: two numbers, the UUID, and others.
type BtrfsInfo = [[u8; 16]; 64];

/// `struct fsuuid` of ext4, followed by room for a UUID of `length` bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ext4Uuid {
    length: u32,
    flags: u32,
    uuid: [u8; 16],
}

const FS_IOC_GETFSUUID: Opcode = opcode::read::<Uuid2>(0x15, 0);
/// The opcode encodes the size of the first two fields.
const EXT4_IOC_GETFSUUID: Opcode = opcode::read::<[u32; 2]>(b'f', 44);
const BTRFS_IOC_FS_INFO: Opcode = opcode::read::<BtrfsInfo>(0x94, 31);

/// UUID of an open file's file system; ENOTTY if no call is supported or it has no 16-byte UUID.
pub fn uuid(file: impl AsFd) -> io::Result<[u8; 16]> {
    // First, because its UUID can be set while mounted (EXT4_IOC_SETFSUUID, as by tune2fs -U), and
    // FS_IOC_GETFSUUID still returns the one it had when mounted.
    let mut answer = ext4(&file);
    if answer == Err(Errno::NOTTY) {
        // SAFETY: the opcode takes a pointer to a `struct fsuuid2` and fills it in; `Uuid2` has its
        // size, and any bytes are a valid value of it.
        let generic = unsafe { ioctl(&file, Getter::<FS_IOC_GETFSUUID, Uuid2>::new()) };
        answer = generic.and_then(|answer| match answer.split_last_chunk() {
            Some(([16], uuid)) => Ok(*uuid),
            _ => Err(Errno::NOTTY),
        });
    }
    if answer == Err(Errno::NOTTY) {
        // SAFETY: as above, with `struct btrfs_ioctl_fs_info_args`. The number is btrfs's own:
        // another file system answers ENOTTY.
        let btrfs = unsafe { ioctl(&file, Getter::<BTRFS_IOC_FS_INFO, BtrfsInfo>::new()) };
        answer = btrfs.map(|info| info[1]);
    }
    Ok(answer?)
}

fn ext4(file: impl AsFd) -> rustix::io::Result<[u8; 16]> {
    let mut answer = Ext4Uuid {
        length: 16,
        flags: 0,
        uuid: [0; 16],
    };
    // SAFETY: the opcode takes a pointer to a `struct fsuuid`, which ends in as many bytes as its
    // `length` says, and fills in those; `Ext4Uuid` is that for 16 bytes, and any bytes are a valid
    // value of it.
    unsafe {
        let updater = Updater::<EXT4_IOC_GETFSUUID, Ext4Uuid>::new(&mut answer);
        ioctl(file, updater)
    }?;
    Ok(answer.uuid)
}
