//! FICLONERANGE: a range of a file that shares its blocks with a range of another
//! (ioctl_ficlonerange(2), include/uapi/linux/fs.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `struct file_clone_range`.
#[repr(C)]
struct Range {
    from: i64,
    from_offset: u64,
    length: u64,
    to_offset: u64,
}

const _: () = assert!(size_of::<Range>() == 32);
const FICLONERANGE: Opcode = opcode::write::<Range>(0x94, 13);
const _: () = assert!(FICLONERANGE == 0x4020_940d);

/// Makes `length` bytes of `to` from `to_offset` on share the blocks that `from` has from
/// `from_offset` on. Both are locked as long as it takes; what is being written to `from` is
/// waited for.
///
/// # Errors
/// What the ioctl returns: EINVAL beyond the end of `from` and where blocks begin elsewhere,
/// EOPNOTSUPP where the file system cannot.
pub fn clone_range(
    from: impl AsFd,
    from_offset: u64,
    length: u64,
    to: impl AsFd,
    to_offset: u64,
) -> io::Result<()> {
    let range = Range {
        from: from.as_fd().as_raw_fd().into(),
        from_offset,
        length,
        to_offset,
    };
    // SAFETY: the opcode takes a pointer to a `struct file_clone_range`, which `Range` is (size
    // asserted above); the kernel reads it, and the descriptor in it is open during the call.
    unsafe { ioctl(to, Setter::<FICLONERANGE, Range>::new(range)) }?;
    Ok(())
}
