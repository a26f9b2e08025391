//! The allocator's unused pages, given back to the kernel (malloc_trim(3)).

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
pub fn trim() {}
