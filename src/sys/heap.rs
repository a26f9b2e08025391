//! The allocator, set up for a daemon that works a moment each minute (mallopt(3), malloc_trim(3)).
//! Allocators other than glibc's are left as they are.

/// Few arenas, without large blocks. To be called before there are threads.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and locks what it works on.
    unsafe {
        // One for the main thread, one for all others.
        libc::mallopt(libc::M_ARENA_MAX, 2);
        // Larger allocations are mappings of their own, returned to the kernel when freed. Set
        // because glibc otherwise raises the threshold after the first large one.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Returns free whole pages to the kernel; glibc keeps them for reuse, which is rare here.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and locks what it works on.
    unsafe {
        libc::malloc_trim(0);
    }
}
