//! The copy: allocated, written and verified with direct I/O, which leaves the page cache to
//! guests, and reads what is on disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{
    FallocateFlags, Mode, OFlags, SeekFrom, fallocate, fcntl_getfl, fcntl_setfl, ftruncate, openat,
    seek,
};
use rustix::io::Errno;

use super::plan::Plan;
use super::work::Work;
use crate::defrag::engine::cannot;
use crate::defrag::guard::{self, Target};
use crate::defrag::metadata::Metadata;
use crate::model::{Bytes, RunOutcome, Share};

/// Length of a read or write. Openers wait for one to end.
const PIECE: u64 = LENGTH as u64;
const LENGTH: usize = 1 << 20;
/// What is allocated at once, for the same reason: in fragmented free space it takes long.
const ALLOCATION: u64 = 256 << 20;
/// Alignment of direct I/O: that of the largest block of any XFS.
const ALIGNMENT: usize = 65_536;

/// Memory for direct I/O.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Buffer {
        let bytes = vec![0; LENGTH + ALIGNMENT];
        // The vector never grows, so its memory stays where it is.
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { bytes, start }
    }

    /// Reads a piece; beyond the end of the file there are zeros.
    fn read(&mut self, file: &File, piece: &Range<u64>) -> io::Result<&[u8]> {
        let length = usize::try_from(piece.end - piece.start).unwrap_or(0);
        let buffer = &mut self.bytes[self.start..][..length];
        let mut done = 0;
        while done < length {
            match file.read_at(&mut buffer[done..], piece.start + done as u64)? {
                0 => break,
                read => done += read,
            }
            if !done.is_multiple_of(512) {
                // Only the end of the file can have cut it there.
                break;
            }
        }
        buffer[done..].fill(0);
        Ok(buffer)
    }
}

/// A copy in progress.
pub(super) struct Copier<'t> {
    target: &'t Target,
    copy: File,
    size: u64,
    buffers: [Buffer; 2],
}

impl<'t> Copier<'t> {
    /// Makes an empty file without name beside the image, with this hint and in its project, and
    /// prepares the image for direct I/O.
    pub(super) fn new(
        target: &'t Target,
        metadata: &Metadata,
        hint: Bytes,
    ) -> Result<Copier<'t>, RunOutcome> {
        let flags =
            OFlags::TMPFILE | OFlags::RDWR | OFlags::DIRECT | OFlags::NOATIME | OFlags::CLOEXEC;
        let made = openat(&target.directory, ".", flags, Mode::RUSR | Mode::WUSR);
        let made = made.map_err(io::Error::from).and_then(|copy| {
            let copy = File::from(copy);
            metadata.prepare(&copy, hint).map(|()| copy)
        });
        let copy = made.map_err(cannot("no file can be made beside it"))?;
        let direct = fcntl_getfl(&target.file)
            .and_then(|flags| fcntl_setfl(&target.file, flags | OFlags::DIRECT));
        direct.map_err(cannot("it cannot be read directly"))?;
        Ok(Copier {
            size: target.file.metadata()?.len(),
            target,
            copy,
            buffers: [Buffer::new(), Buffer::new()],
        })
    }

    /// Copies as planned, to disk.
    pub(super) fn copy(
        &mut self,
        work: &mut Work<'_, '_, '_>,
        plan: &Plan,
        keep_free: Share,
    ) -> Result<(), RunOutcome> {
        for run in plan.allocations(ALLOCATION) {
            let length = run.end - run.start;
            guard::check_space(self.target, Bytes(length), keep_free)
                .map_err(|_| RunOutcome::NoSpace)?;
            fallocate(&self.copy, FallocateFlags::KEEP_SIZE, run.start, length)
                .map_err(cannot("the copy cannot be allocated"))?;
            work.step(0)?;
            for piece in plan.data_within(run, PIECE) {
                let [buffer, _] = &mut self.buffers;
                let bytes = buffer
                    .read(&self.target.file, &piece)
                    .map_err(cannot("it cannot be read"))?;
                self.copy
                    .write_all_at(bytes, piece.start)
                    .map_err(cannot("the copy cannot be written"))?;
                work.step(2 * (piece.end - piece.start))?;
            }
        }
        // The last piece is written to the end of its block.
        ftruncate(&self.copy, self.size).map_err(cannot("the copy cannot be cut"))?;
        self.copy
            .sync_all()
            .map_err(cannot("the copy cannot be flushed"))
    }

    /// Compares image and copy wherever one of them has data. What both lack reads as zeros.
    pub(super) fn verify(&mut self, work: &mut Work<'_, '_, '_>) -> Result<(), RunOutcome> {
        let unreadable = || cannot("the copy cannot be compared");
        let mut at = 0;
        while let Some(start) = self.data_from(at).map_err(unreadable())? {
            let piece = start / PIECE * PIECE..(start / PIECE + 1) * PIECE;
            let [ours, copied] = &mut self.buffers;
            let image = ours.read(&self.target.file, &piece).map_err(unreadable())?;
            let copy = copied.read(&self.copy, &piece).map_err(unreadable())?;
            if image != copy {
                let at = image.iter().zip(copy).take_while(|(a, b)| a == b).count() as u64;
                let reason = format!(
                    "the copy differs at byte {}: check the disk and its memory",
                    piece.start + at
                );
                return Err(RunOutcome::Failed { reason });
            }
            at = piece.end;
            work.step(2 * PIECE)?;
        }
        match self.copy.metadata()?.len() == self.target.file.metadata()?.len() {
            true => Ok(()),
            false => Err(RunOutcome::Busy { by: None }),
        }
    }

    /// Where the next data of either file is.
    fn data_from(&self, at: u64) -> io::Result<Option<u64>> {
        let next = |file: &File| match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => Ok(None),
            other => other.map(Some),
        };
        let found = [next(&self.target.file)?, next(&self.copy)?];
        Ok(found.into_iter().flatten().min())
    }

    pub(super) fn finish(self) -> File {
        self.copy
    }
}
