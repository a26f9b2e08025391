//! The kernel's interfaces, one file each, and the only unsafe code of the crate.
//!
//! Nothing here imports the rest of the crate. Values are the kernel's own; their users interpret
//! them. Readers of /proc take its path, so that tests can pass another.
#![allow(unsafe_code)]

pub mod bulkstat;
pub mod child;
pub mod clone;
pub mod fanotify;
pub mod fiemap;
pub mod fsmap;
pub mod fsxattr;
pub mod generation;
pub mod geometry;
pub mod handle;
pub mod heap;
pub mod locks;
pub mod mounts;
pub mod mutex;
pub mod pagecache;
pub mod proc;
pub mod processes;
pub mod realtime;
pub mod subvolume;
pub mod uuid;
pub mod zone;

/// The result of a call of the C library, which is negative after an error.
fn checked<T: Default + PartialOrd>(result: T) -> std::io::Result<T> {
    match result < T::default() {
        true => Err(std::io::Error::last_os_error()),
        false => Ok(result),
    }
}
