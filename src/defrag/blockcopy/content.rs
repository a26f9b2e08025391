//! The guest's disk in an image file, raw or qcow2, read beside QEMU.
//!
//! QEMU keeps changed L2 tables of a qcow2 in memory until a flush, so what is read while the guest runs may be
//! older than what the guest has. When QEMU suspends the guest, it flushes all images, the copy among them
//! (do_vm_stop, system/cpus.c; bdrv_flush_all).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Advice, fadvise};

use super::qcow2::Layout;

/// How much of the file is read for the header.
pub(super) const HEADER: usize = 4096;
/// Bits of an entry in an L1 or L2 table that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry without subclusters: the cluster reads as zeros.
const ZERO: u64 = 1;
/// In a cluster, if it has any.
const SUBCLUSTERS: u64 = 32;
/// A multiple of the size of a page, which is up to 64 KiB.
const PAGE: u64 = 64 << 10;

/// A disk in a file.
pub struct Content<'f> {
    file: &'f File,
    qcow2: Option<Layout>,
}

/// Where a part of a disk is.
enum Place {
    Zeros,
    At(u64),
    Compressed,
}

impl<'f> Content<'f> {
    /// `format` is that of libvirt, `raw` or `qcow2`.
    pub fn of(file: &'f File, format: &str) -> io::Result<Content<'f>> {
        let layout = || Layout::of(&read(file, 0, HEADER)?).map_err(io::Error::other);
        Ok(Content {
            file,
            qcow2: (format == "qcow2").then(layout).transpose()?,
        })
    }

    pub(super) fn is_raw(&self) -> bool {
        self.qcow2.is_none()
    }

    /// An empty file becomes an image for a copy of this disk.
    pub(super) fn prepare(&self, copy: &File) -> io::Result<()> {
        let Some(layout) = &self.qcow2 else {
            return copy.set_len(self.size()?);
        };
        let empty = layout.empty();
        copy.write_all_at(&empty.begin, 0)?;
        copy.set_len(empty.length)
    }

    /// Length of the disk in bytes.
    pub fn size(&self) -> io::Result<u64> {
        match &self.qcow2 {
            Some(layout) => Ok(layout.size),
            None => Ok(self.file.metadata()?.len()),
        }
    }

    /// Reads a part of the disk, less at its end; `None` if some of it is compressed.
    pub fn read(&self, at: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(layout) = &self.qcow2 else {
            return read(self.file, at, length).map(Some);
        };
        let end = layout.size.min(at.saturating_add(length as u64));
        let subclusters = if layout.has_subclusters {
            SUBCLUSTERS
        } else {
            1
        };
        let piece = layout.cluster / subclusters;
        let mut found = Vec::with_capacity(length);
        let mut at = at;
        while at < end {
            let length = usize::try_from(end.min(at - at % piece + piece) - at).unwrap_or(length);
            let filled = found.len() + length;
            match self.place(layout, at)? {
                Place::Zeros => {}
                Place::At(offset) => found.extend(read(self.file, offset, length)?),
                Place::Compressed => return Ok(None),
            }
            // Also behind the end of the file.
            found.resize(filled, 0);
            at += length as u64;
        }
        Ok(Some(found))
    }

    /// Looks a byte of the disk up.
    fn place(&self, layout: &Layout, at: u64) -> io::Result<Place> {
        let (cluster, within) = (at / layout.cluster, at % layout.cluster);
        let (table, entry) = (cluster / layout.entries(), cluster % layout.entries());
        let table = self.word(layout.l1 + table * 8)? & OFFSET;
        if table == 0 {
            return Ok(Place::Zeros);
        }
        let length = layout.cluster / layout.entries();
        let word = self.word(table + entry * length)?;
        let (is_zero, is_there) = match layout.has_subclusters {
            false => (word & ZERO != 0, word & OFFSET != 0),
            true => {
                let bits = self.word(table + entry * length + 8)?
                    >> (within / (layout.cluster / SUBCLUSTERS));
                (bits >> 32 & 1 != 0, bits & 1 != 0)
            }
        };
        Ok(match () {
            () if word & COMPRESSED != 0 => Place::Compressed,
            () if is_zero || !is_there => Place::Zeros,
            () => Place::At((word & OFFSET) + within),
        })
    }

    fn word(&self, at: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        let read = read(self.file, at, word.len())?;
        word[..read.len()].copy_from_slice(&read);
        Ok(u64::from_be_bytes(word))
    }

    /// What a copy needs besides what the image takes up, in bytes: QEMU writes the copy uncompressed.
    pub fn growth(&self) -> io::Result<u64> {
        let Some(layout) = &self.qcow2 else {
            return Ok(0);
        };
        let length = usize::try_from(layout.cluster).unwrap_or(HEADER);
        let step = length / usize::try_from(layout.entries()).unwrap_or(length);
        let mut compressed = 0;
        for table in 0..layout.tables() {
            let table = self.word(layout.l1 + table * 8)? & OFFSET;
            if table != 0 {
                let entries = read(self.file, table, length)?;
                // The first byte has the highest bits.
                let marks = entries
                    .iter()
                    .step_by(step)
                    .filter(|byte| **byte & 0x40 != 0);
                compressed += marks.count() as u64;
            }
        }
        Ok(layout.metadata() + compressed * layout.cluster)
    }
}

/// Reads past the page cache, in which an earlier reading would be found: QEMU may bypass it. Less at the end of
/// the file.
pub(super) fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    // Whole pages: parts of one are kept (generic_fadvise, mm/fadvise.c).
    let (begin, end) = (at - at % PAGE, (at + length as u64).next_multiple_of(PAGE));
    fadvise(file, begin, (end - begin).try_into().ok(), Advice::DontNeed)?;
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut buffer[filled..], at + filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}
