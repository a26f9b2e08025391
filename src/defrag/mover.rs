//! Moves one segment of an image to new blocks, under whoever uses it.
//!
//! ```text
//! read into the page cache     shared locks, in small pieces
//! clone to a temporary file    the image is locked; all blocks of the segment are shared now
//! unshare in the image         the image is locked; the kernel copies it to new blocks
//! cut the temporary file       only its own locks; the old blocks are free
//! ```
//!
//! Each step is the kernel's own and keeps the contents right whoever writes meanwhile: a guest's
//! write between clone and unshare goes to new blocks, as with any file that shares its blocks.
//!
//! What keeps the two locked steps short:
//! - the segment is small, see [`governor`](super::governor);
//! - its pages are in memory before: else the kernel would read them one by one under the lock;
//! - nothing waits for the disk's queue twice: unsharing writes the new blocks and waits for that,
//!   so no fsync is needed;
//! - one block stays shared during the whole run (the *anchor*), the first that is written. After
//!   each unsharing the kernel looks for a block that is still shared, to forget that the file ever
//!   was; without the anchor it would go through the whole map each time, 1.5 s with 6.4 million
//!   extents (xfs_reflink_try_clear_inode_flag, fs/xfs/xfs_reflink.c).

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

/// Where segments come to lie in the temporary file; before it is the anchor.
const BEHIND_ANCHOR: u64 = 1 << 20;
/// In what pieces a segment is read: one holds the image's lock, shared.
const PIECE: usize = 64 << 10;
/// How many segments the anchor is believed to hold. A guest's write to it makes it whole again.
const ANCHORED: u32 = 32;
/// At the end, the kernel may look through a map of so many extents for one that is shared.
const SHORT_MAP: ExtentCount = ExtentCount(100_000);

/// How long the steps took during which the image was locked, and all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// The clone.
    pub clone: Duration,
    /// The unsharing.
    pub unshare: Duration,
    /// All together.
    pub busy: Duration,
}

impl Took {
    /// The longer of the two.
    #[must_use]
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
    /// `directory` is that of the image: the temporary file, which never has a name, lies on its
    /// file system.
    ///
    /// # Errors
    /// If the image cannot be opened for writing, or there is no temporary file to be had.
    pub fn new(image: &File, directory: &OwnedFd, block: Bytes) -> io::Result<Mover> {
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        // NONBLOCK: a lease that somebody holds on it must not make us wait.
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
            reader: MapReader::new(),
        })
    }

    /// The image, open for writing.
    #[must_use]
    pub fn image(&self) -> &File {
        &self.image
    }

    /// The block size of its file system.
    #[must_use]
    pub fn block(&self) -> Bytes {
        Bytes(self.block)
    }

    /// The map from `start` to `end`, but only so much as one call gives, and up to where that is.
    ///
    /// # Errors
    /// Those of FIEMAP.
    pub fn map(&mut self, start: Bytes, end: Bytes) -> io::Result<(Vec<Extent>, Bytes)> {
        // Behind the last whole block of the file nothing can be cloned.
        let size = self.image.metadata()?.len();
        let end = end.0.min(size - size % self.block);
        let length = Bytes(end.saturating_sub(start.0));
        if length.0 == 0 {
            return Ok((Vec::new(), Bytes(u64::MAX)));
        }
        self.reader.read_range(&self.image, start, length)
    }

    /// Moves a segment.
    ///
    /// # Errors
    /// Those of FICLONERANGE and fallocate(2): EINVAL if the image has become shorter, ENOSPC. The
    /// contents are as they were, whatever happened.
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
        // Also after an error: what stays shared would be copied by the guest's writes.
        let cut = rustix::fs::ftruncate(&self.temporary, self.block);
        if !was_cached {
            // A guest that reads past the cache has nothing of it; a host's memory is for guests.
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

    /// Keeping the size: the image may have become shorter a moment ago.
    fn unshare(&self, start: u64, length: u64) -> io::Result<()> {
        let mode = FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.image, mode, start, length)?)
    }

    fn read(&mut self, start: u64, length: u64) -> io::Result<()> {
        // All at once, so that the disk can sort them. A kernel that does not will be slower.
        let _ = fadvise(&self.image, start, length.try_into().ok(), Advice::WillNeed);
        let (mut at, end) = (start, start + length);
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let read = match self.buffer.get_mut(..piece) {
                Some(buffer) => self.image.read_at(buffer, at)?,
                None => 0,
            };
            if read == 0 {
                break;
            }
            at += read as u64;
        }
        Ok(())
    }

    /// Shares the first written block of the image, unless it is shared.
    fn keep_anchor(&mut self) -> io::Result<()> {
        if self.anchored > 0 {
            self.anchored -= 1;
            return Ok(());
        }
        self.anchored = ANCHORED;
        let from = self.anchor.unwrap_or(Bytes(0));
        let end = Bytes(from.0.saturating_add(self.block));
        let is_fit = |extents: &[Extent]| {
            let first = extents
                .iter()
                .find(|e| !e.flags.unwritten && !e.flags.delayed);
            first.copied()
        };
        let mut found = match self.anchor {
            Some(_) => is_fit(&self.map(from, end)?.0),
            None => None,
        };
        if found.is_none() {
            found = is_fit(&self.map(Bytes(0), Bytes(u64::MAX))?.0);
        }
        self.anchor = found.map(|extent| extent.logical);
        match found.filter(|extent| !extent.flags.shared) {
            Some(extent) => {
                let (from, block) = (extent.logical.0, self.block);
                match clone_range(&self.image, from, block, &self.temporary, 0) {
                    // Cut off a moment ago.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                    other => other,
                }
            }
            None => Ok(()),
        }
    }

    /// Lets go of the anchor and, if nothing else of the image is shared, has the kernel forget
    /// that something ever was: its writes need not look then. With a map that is still long that
    /// is left to the kernel's own next look.
    pub fn finish(self, extents: ExtentCount, shares: bool) {
        // What fails here is made up for when the file is closed, or costs a guest nothing but a
        // look at each write.
        let _ = rustix::fs::ftruncate(&self.temporary, 0);
        if let Some(anchor) = self.anchor.filter(|_| !shares && extents < SHORT_MAP) {
            let _ = self.unshare(anchor.0, self.block);
        }
    }
}
