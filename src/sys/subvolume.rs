//! BTRFS_IOC_INO_LOOKUP: the btrfs subvolume of a file (include/uapi/linux/btrfs.h).
//!
//! A snapshot has the inode numbers and generations of its original; only the subvolume, whose
//! number is never reused (`btrfs_get_free_objectid`, fs/btrfs/disk-io.c), distinguishes their
//! files. `st_dev` differs too, but changes with each mount.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Lookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

const _: () = assert!(size_of::<Lookup>() == 4096);
const BTRFS_IOC_INO_LOOKUP: Opcode = opcode::read_write::<Lookup>(0x94, 18);
/// `BTRFS_FIRST_FREE_OBJECTID`: the root directory of a subvolume. Looking it up needs no
/// privilege, because no name is returned (btrfs_ioctl_ino_lookup, fs/btrfs/ioctl.c).
const ROOT: u64 = 256;

/// Returns the number of the subvolume of an open file; ENOTTY on another file system.
pub fn subvolume(file: impl AsFd) -> io::Result<u64> {
    // Tree 0 stands for that of the file.
    let mut lookup = Lookup {
        tree: 0,
        object: ROOT,
        name: [0; 4080],
    };
    // SAFETY: the opcode takes a pointer to a `struct btrfs_ioctl_ino_lookup_args` and writes within
    // it; `Lookup` has its size (asserted above), and any bytes are a valid value of it. The number
    // is btrfs's own: another file system answers ENOTTY.
    unsafe {
        let updater = Updater::<BTRFS_IOC_INO_LOOKUP, Lookup>::new(&mut lookup);
        ioctl(file, updater)
    }?;
    Ok(lookup.tree)
}
