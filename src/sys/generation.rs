//! FS_IOC_GETVERSION: the generation of an inode (ioctl_iflags(2), include/uapi/linux/fs.h).
//!
//! An inode number is reused soon after its file was removed, but with another generation. XFS
//! increments it when it frees an inode (xfs_ifree, fs/xfs/xfs_inode.c) and draws it at random for
//! an inode that was not in memory (xfs_iget_cache_miss, fs/xfs/xfs_icache.c); ext4 draws it at
//! random (__ext4_new_inode, fs/ext4/ialloc.c); btrfs uses the transaction number
//! (btrfs_create_new_inode, fs/btrfs/inode.c). NFS needs it to detect stale handles, so file
//! systems that can be exported have it, and it is kept across mounts.

use std::ffi::c_long;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// The opcode encodes `long`, but every file system that supports it writes an `int`
/// (`put_user(inode->i_generation, (int __user *)arg)`, fs/ext4/ioctl.c and others). FUSE follows
/// the opcode and may fill all of it.
type Answer = [u32; size_of::<c_long>() / size_of::<u32>()];

const FS_IOC_GETVERSION: Opcode = opcode::read::<c_long>(b'v', 1);

/// Returns the generation of an open file's inode; ENOTTY where the file system has none.
pub fn generation(file: impl AsFd) -> io::Result<u32> {
    let mut answer: Answer = Default::default();
    // SAFETY: the opcode takes a pointer to at least as many bytes as a `long` has and fills in an
    // `int` or all of them; `Answer` has that size, is initialised, and any bytes are a value of it.
    unsafe {
        let updater = Updater::<FS_IOC_GETVERSION, Answer>::new(&mut answer);
        ioctl(file, updater)
    }?;
    Ok(answer[0])
}
