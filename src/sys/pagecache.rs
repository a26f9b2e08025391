//! cachestat(2): how much of a range of a file is in the page cache (kernels from 6.5 on).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use super::checked;

/// The same number on all architectures that XFS hypervisors have.
const CACHESTAT: libc::c_long = 451;

/// Returns how many pages of a range are cached; ENOSYS where the kernel lacks the call.
pub fn cached_pages(file: impl AsFd, offset: u64, length: u64) -> io::Result<u64> {
    // `struct cachestat_range`
    let mut range = [offset, length];
    // `struct cachestat`: cached, dirty, in writeback, evicted, recently evicted.
    let mut pages = [0_u64; 5];
    // SAFETY: the call reads a `struct cachestat_range` and fills in a `struct cachestat`, which
    // consist of two and five numbers of 64 bits; both outlive it.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_fd().as_raw_fd(),
            &raw mut range,
            &raw mut pages,
            0,
        )
    };
    checked(result)?;
    Ok(pages[0])
}
