//! The allocator, set up for a daemon that works a moment each minute (mallopt(3), malloc_trim(3)).

/// Allocations from this size on are mappings of their own, returned to the kernel when freed. Set
/// because glibc otherwise raises the threshold after the first large one.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 128 * 1024;

/// Few arenas, without large blocks. To be called before there are threads.
#[cfg(target_env = "gnu")]
pub fn configure() {
    // SAFETY: takes no pointer, and locks what it works on.
    unsafe {
        // One for the main thread, one for all others.
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    }
}

/// Returns free whole pages to the kernel; glibc keeps them for reuse, which is rare here.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: takes no pointer, and locks what it works on.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn configure() {}

/// Likewise.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
