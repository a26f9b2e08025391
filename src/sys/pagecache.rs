//! cachestat(2): how much of a range of a file is in the page cache (kernels from 6.5 on).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// The same number on all architectures that XFS hypervisors have.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat`.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

const _: () = assert!(size_of::<Range>() == 16);
const _: () = assert!(size_of::<Pages>() == 40);

/// Returns how many pages of a range are cached; ENOSYS where the kernel lacks the call.
pub fn cached_pages(file: impl AsFd, offset: u64, length: u64) -> io::Result<u64> {
    let mut range = Range { offset, length };
    let mut pages = Pages::default();
    // SAFETY: the call reads a `struct cachestat_range` and fills in a `struct cachestat`, whose
    // sizes the types have (asserted above); both outlive it.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_fd().as_raw_fd(),
            &raw mut range,
            &raw mut pages,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.cached)
}
