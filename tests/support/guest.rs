//! Fragments files as guests do. The same arguments give the same extents in every run, as far as
//! the file system allows.
//!
//! All of them panic with the name of the file if something fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};

use super::random::{Random, SEED, mix};

/// Block size of all file systems of the bed; what a guest writes at least.
pub const BLOCK: u64 = 4096;

/// How large a bed must be for [`alternate_blocks`] with that many extents. It takes no room on
/// the disk below.
pub fn room_for(extents: u64) -> u64 {
    // All blocks are reserved before every second one is given back; a quarter for metadata.
    (extents * 2 * BLOCK).saturating_mul(5) / 4 + super::GIB
}

/// A sparse file of `size` that a guest wrote `count` different blocks of, without order, each by
/// a direct write. On XFS nearly every block becomes an extent.
pub fn random_direct_writes(path: &Path, size: u64, count: u64) {
    create(path, |file| file.set_len(size));
    write_blocks(path, Random::new(SEED).distinct(size / BLOCK, count));
}

/// As [`random_direct_writes`], but all of the file was reserved before: many extents, written and
/// unwritten by turns, and one run on disk.
pub fn preallocated_then_random_writes(path: &Path, size: u64, count: u64) {
    create(path, |file| {
        Ok(fallocate(file, FallocateFlags::empty(), 0, size)?)
    });
    write_blocks(path, Random::new(SEED).distinct(size / BLOCK, count));
}

/// A file of exactly `extents` extents, each one unwritten block, at every second block. Takes
/// about 20 µs an extent and no room for data.
pub fn alternate_blocks(path: &Path, extents: u64) {
    create(path, |file| {
        fallocate(file, FallocateFlags::empty(), 0, (2 * extents - 1) * BLOCK)?;
        // Backwards: forwards, XFS looks for room for its extent map among the blocks that were
        // given back a moment ago and cannot be used yet, and the time grows with the square.
        for gap in (1..extents).rev() {
            punch(file, 2 * gap - 1)?;
        }
        Ok(())
    });
}

/// Gives `count` blocks of a file back, as a guest's discard does, so that no two gaps touch: in a
/// file without holes each of them splits an extent.
pub fn discard_holes(path: &Path, count: u64) {
    at(path, || {
        let file = OpenOptions::new().write(true).open(path)?;
        let blocks = file.metadata()?.len() / BLOCK;
        // Odd ones, and never the last.
        for n in Random::new(SEED).distinct((blocks - 1) / 2, count) {
            punch(&file, 2 * n + 1)?;
        }
        file.sync_all()
    });
}

/// Gives block number `block` of a file back.
pub fn discard_block(path: &Path, block: u64) {
    at(path, || {
        let file = OpenOptions::new().write(true).open(path)?;
        Ok(punch(&file, block)?)
    });
}

/// A copy that shares all blocks with the original.
pub fn reflink_copy(from: &Path, to: &Path) {
    create(to, |copy| Ok(ioctl_ficlone(copy, File::open(from)?)?));
}

/// A file whose `extents` blocks, every second one, are in memory only: the file system has
/// counted them but not yet chosen their places. That lasts until the kernel writes them out,
/// which it does on its own after 30 s.
pub fn buffered_delalloc(path: &Path, extents: u64) {
    create(path, |file| {
        // Behind the end of a file XFS would reserve more than is written, gaps included.
        file.set_len((2 * extents - 1) * BLOCK)?;
        let mut block = Aligned::block();
        for n in (0..extents).map(|n| 2 * n) {
            stamp(&mut block, n, 0);
            file.write_all_at(&block, n * BLOCK)?;
        }
        Ok(())
    });
}

/// A file of `size` written from front to back and on disk: as few extents as there can be.
pub fn sequential(path: &Path, size: u64) {
    create(path, |file| {
        fallocate(file, FallocateFlags::empty(), 0, size)?;
        let mut block = Aligned::block();
        for n in 0..size / BLOCK {
            stamp(&mut block, n, 0);
            file.write_all_at(&block, n * BLOCK)?;
        }
        file.sync_all()
    });
}

/// Opens a file for direct I/O.
pub fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

/// Fills a block with what tells it from every other: its number in the file and its version.
pub fn stamp(block: &mut [u8], number: u64, version: u64) {
    let mut word = mix(number).wrapping_add(version);
    for bytes in block.chunks_exact_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    }
}

fn write_blocks(path: &Path, blocks: Vec<u64>) {
    at(path, || {
        let file = open_direct(path)?;
        let mut block = Aligned::block();
        for n in blocks {
            stamp(&mut block, n, 0);
            file.write_all_at(&block, n * BLOCK)?;
        }
        file.sync_all()
    });
}

fn punch(file: &File, block: u64) -> rustix::io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, hole, block * BLOCK, BLOCK)
}

fn create(path: &Path, fill: impl FnOnce(&File) -> io::Result<()>) {
    at(path, || fill(&File::create_new(path)?));
}

fn at<T>(path: &Path, act: impl FnOnce() -> io::Result<T>) -> T {
    act().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Memory that begins at a page, as direct I/O wants it.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// `length` zeros.
    pub fn zeroed(length: usize) -> Aligned {
        let page = BLOCK as usize;
        let bytes = vec![0; length + page];
        // The vector never grows, so its memory stays where it is.
        let start = bytes.as_ptr().align_offset(page);
        Aligned {
            bytes,
            start,
            length,
        }
    }

    /// One block.
    pub fn block() -> Aligned {
        Aligned::zeroed(BLOCK as usize)
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}
