//! A file mapped into memory, as some guests' disks and most of their databases are.
#![allow(
    unsafe_code,
    reason = "there is no other way to memory that the kernel may take away"
)]

use std::fs::File;
use std::io;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping that others share. It may be longer than the file: whoever touches what lies behind the
/// file's end is killed (SIGBUS), so the user has to know how long the file is.
#[derive(Debug)]
pub struct Mapped {
    start: *mut u8,
    length: usize,
}

impl Mapped {
    /// The first `length` bytes of a file that is open for reading and writing.
    pub fn new(file: &File, length: u64) -> io::Result<Mapped> {
        let length = length as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, file, 0)? };
        Ok(Mapped {
            start: start.cast(),
            length,
        })
    }

    /// Stores `bytes` at an offset.
    ///
    /// # Panics
    /// If they lie behind the mapping's end.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let to = self.at(at, bytes.len());
        // SAFETY: it lies within the mapping, which no reference points into.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Loads what is at an offset.
    ///
    /// # Panics
    /// As [`Mapped::write`].
    pub fn read(&self, at: u64, bytes: &mut [u8]) {
        let from = self.at(at, bytes.len());
        // SAFETY: as in write.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    fn at(&self, at: u64, length: usize) -> *mut u8 {
        let at = at as usize;
        assert!(at + length <= self.length, "{at} and {length}");
        self.start.wrapping_add(at)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}
