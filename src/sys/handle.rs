//! Opens files by inode number: open_by_handle_at(2) with XFS handles. Needs CAP_DAC_READ_SEARCH.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use super::checked;

/// `FILEID_INO32_GEN | XFS_FILEID_TYPE_64FLAG`: inode number of 64 bits and generation
/// (fs/xfs/xfs_export.h).
const TYPE_INODE64_GENERATION: i32 = 0x81;

/// `struct file_handle` with the bytes that XFS expects (`struct xfs_fid64`, fs/xfs/xfs_export.h).
#[repr(C, packed(4))]
struct XfsHandle {
    bytes: u32,
    kind: i32,
    inode: u64,
    generation: u32,
}

const _: () = assert!(size_of::<XfsHandle>() == 20);

/// Opens an inode of the XFS that contains `mount`, without access to its contents (O_PATH).
///
/// # Errors
/// ESTALE if there is no such inode, EPERM without CAP_DAC_READ_SEARCH.
pub fn open_inode(mount: impl AsFd, inode: u64, generation: u32) -> io::Result<OwnedFd> {
    let mut handle = XfsHandle {
        bytes: 12,
        kind: TYPE_INODE64_GENERATION,
        inode,
        generation,
    };
    // SAFETY: the call reads a `struct file_handle`: two 32-bit numbers and as many bytes as the
    // first one says, which is what `XfsHandle` is. Its alignment is that of the struct, 4.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    let fd = checked(fd)?;
    // SAFETY: the kernel has just given us this descriptor, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
