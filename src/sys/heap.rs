//! The allocator, set up for a daemon that works a moment each minute (mallopt(3), malloc_trim(3)).

/// From this size on an allocation is a mapping of its own, and goes back to the kernel when it is
/// freed. Set, because glibc otherwise raises it after the first large one.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 128 * 1024;

/// Few arenas, and no large blocks in them. To be called before there are threads.
#[cfg(target_env = "gnu")]
pub fn configure() {
    // SAFETY: takes no pointer, and locks what it works on.
    unsafe {
        // One for the main thread, one for all others.
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    }
}

/// Gives back what was freed and lies on whole pages. glibc keeps it otherwise, for most programs
/// soon want it again; a daemon that works a moment each minute does not.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: takes no pointer, and locks what it works on.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators do as they think best.
#[cfg(not(target_env = "gnu"))]
pub fn configure() {}

/// Likewise.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
