//! FICLONERANGE: makes a range of a file share its blocks with a range of another file
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

/// Makes `length` bytes of `to` at `to_offset` share the blocks of `from` at `from_offset`. Both
/// files are locked meanwhile; pending writes to `from` are waited for.
///
/// # Errors
/// EINVAL beyond the end of `from` and off block boundaries, EOPNOTSUPP where not supported.
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
