//! Moves one segment of an image to new blocks while the image is in use.
//!
//! ```text
//! read into the page cache     shared locks, in small pieces
//! clone to a temporary file    the image is locked; all blocks of the segment are shared now
//! unshare in the image         the image is locked; the kernel copies it to new blocks
//! cut the temporary file       only its own locks; the old blocks are free
//! ```
//!
//! Each step is a kernel call that keeps the contents correct under concurrent writes: a guest's
//! write between clone and unshare goes to new blocks, as in any file with shared blocks.
//!
//! The two locked steps are kept short:
//! - The segment is small, see [`governor`](super::governor).
//! - Its pages are read first: otherwise the kernel would read them singly under the lock.
//! - Unsharing writes the new blocks and waits for them, so no fsync is needed.
//! - One block, the first written one (the *anchor*), stays shared during the whole run. After each
//!   unshare the kernel searches for a block that is still shared, to clear the file's reflink
//!   flag; without the anchor it would read the whole map each time, 1.5 s with 6.4 million extents
//!   (xfs_reflink_try_clear_inode_flag, fs/xfs/xfs_reflink.c).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags, fadvise, fallocate, open, openat};

use super::segments::Segment;
use crate::model::{Bytes, Extent, ExtentCount};
use crate::probe::extents::MapReader;
use crate::sys::{clone::clone_range, pagecache};

/// Offset of segments in the temporary file; the anchor is before it.
const BEHIND_ANCHOR: u64 = 1 << 20;
/// Size of a read, in bytes: each holds the image's lock, shared.
const PIECE: usize = 64 << 10;
/// For how many segments the anchor is assumed to stay shared. A guest's write to it unshares it.
const ANCHORED: u32 = 32;
/// Largest map that the kernel may search for a shared extent at the end of the run.
const SHORT_MAP: ExtentCount = ExtentCount(100_000);

/// The durations of the steps that lock the image, and of all steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// FICLONERANGE.
    pub clone: Duration,
    /// FALLOC_FL_UNSHARE_RANGE.
    pub unshare: Duration,
    /// All steps.
    pub busy: Duration,
}

impl Took {
    pub fn longest(&self) -> Duration {
        self.clone.max(self.unshare)
    }
}

/// Moves segments of one image.
pub struct Mover {
    image: File,
    temporary: OwnedFd,
    block: u64,
    buffer: Vec<u8>,
    anchor: Option<Bytes>,
    anchored: u32,
    reader: MapReader,
}

impl Mover {
    /// The temporary file, which never has a name, lies in `directory`, that of the image. Fails if
    /// the image cannot be opened for writing, or no temporary file can be created.
    pub fn new(image: &File, directory: &OwnedFd, block: Bytes) -> io::Result<Mover> {
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        // NONBLOCK: do not wait for a lease that another process holds on it.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let image = open(path, flags, Mode::empty())?.into();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let temporary = openat(directory, ".", flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Mover {
            image,
            temporary,
            block: block.0.max(512),
            buffer: vec![0; PIECE],
            anchor: None,
            anchored: 0,
            reader: MapReader::default(),
        })
    }

    /// The image, open for writing.
    pub fn image(&self) -> &File {
        &self.image
    }

    /// The block size of its file system.
    pub fn block(&self) -> Bytes {
        Bytes(self.block)
    }

    /// The map from `start` to `end`, as far as one call returns it, and where that ends.
    pub fn map(&mut self, start: Bytes, end: Bytes) -> io::Result<(Vec<Extent>, Bytes)> {
        // After the last whole block of the file nothing can be cloned.
        let size = self.image.metadata()?.len();
        let end = end.0.min(size - size % self.block);
        let length = Bytes(end.saturating_sub(start.0));
        if length.0 == 0 {
            return Ok((Vec::new(), Bytes(u64::MAX)));
        }
        self.reader.read_range(&self.image, start, length)
    }

    /// Moves one segment. Fails as FICLONERANGE and fallocate(2) do: EINVAL if the image has become
    /// shorter, ENOSPC. The contents are unchanged in any case.
    pub fn move_segment(&mut self, segment: &Segment) -> io::Result<Took> {
        let began = Instant::now();
        let (start, length) = (segment.start.0, segment.length.0);
        self.keep_anchor()?;
        let was_cached = pagecache::cached_pages(&self.image, start, length).unwrap_or(0) > 0;
        self.read(start, length)?;
        let before = Instant::now();
        let cloned = clone_range(&self.image, start, length, &self.temporary, BEHIND_ANCHOR);
        let clone = before.elapsed();
        let before = Instant::now();
        let unshared = cloned.and_then(|()| self.unshare(start, length));
        let unshare = before.elapsed();
        // Also after an error: blocks that stay shared would be copied by the guest's writes.
        let cut = rustix::fs::ftruncate(&self.temporary, self.block);
        if !was_cached {
            // Host memory is for guests; those with direct I/O do not use the page cache.
            let _ = fadvise(&self.image, start, length.try_into().ok(), Advice::DontNeed);
        }
        unshared?;
        cut?;
        Ok(Took {
            clone,
            unshare,
            busy: began.elapsed(),
        })
    }

    /// Keeps the size: the image may just have become shorter.
    fn unshare(&self, start: u64, length: u64) -> io::Result<()> {
        let mode = FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.image, mode, start, length)?)
    }

    fn read(&mut self, start: u64, length: u64) -> io::Result<()> {
        // All at once, so that the disk can sort the requests. If it fails, reading is only slower.
        let _ = fadvise(&self.image, start, length.try_into().ok(), Advice::WillNeed);
        let (mut at, end) = (start, start + length);
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            match self.image.read_at(&mut self.buffer[..piece], at)? {
                0 => break,
                read => at += read as u64,
            }
        }
        Ok(())
    }

    /// Shares the first written block of the image, unless it is shared already.
    fn keep_anchor(&mut self) -> io::Result<()> {
        if self.anchored > 0 {
            self.anchored -= 1;
            return Ok(());
        }
        self.anchored = ANCHORED;
        let fit = |(extents, _): (Vec<Extent>, _)| {
            let mut extents = extents.into_iter();
            extents.find(|extent| !extent.flags.unwritten && !extent.flags.delayed)
        };
        let mut found = None;
        if let Some(from) = self.anchor {
            found = fit(self.map(from, Bytes(from.0.saturating_add(self.block)))?);
        }
        if found.is_none() {
            found = fit(self.map(Bytes(0), Bytes(u64::MAX))?);
        }
        self.anchor = found.map(|extent| extent.logical);
        let Some(extent) = found.filter(|extent| !extent.flags.shared) else {
            return Ok(());
        };
        match clone_range(
            &self.image,
            extent.logical.0,
            self.block,
            &self.temporary,
            0,
        ) {
            // It was just truncated.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other,
        }
    }

    /// Releases the anchor. If no other block of the image is shared and the map is short, the
    /// kernel then clears the reflink flag, so that writes need not check for shared blocks.
    pub fn finish(self, extents: ExtentCount, shares: bool) {
        // The file is closed soon in any case, and a remaining flag costs only that check.
        let _ = rustix::fs::ftruncate(&self.temporary, 0);
        if let Some(anchor) = self.anchor.filter(|_| !shares && extents < SHORT_MAP) {
            let _ = self.unshare(anchor.0, self.block);
        }
    }
}
