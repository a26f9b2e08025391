//! The guest's disk in an image file, raw or qcow2, read beside QEMU.
//!
//! QEMU keeps changed L2 tables of a qcow2 in memory until a flush, so what is read while the guest runs may be
//! older than what the guest has. When QEMU suspends the guest, it flushes all images, the copy among them
//! (do_vm_stop, system/cpus.c; bdrv_flush_all).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::qcow2::{Layout, index};
use crate::defrag::engine::cannot;
use crate::discover::format::{HEADER, long};
use crate::model::{Bytes, ReasonCode, Refusal, RunOutcome, Stop};

/// Bits of an entry in an L1 or L2 table that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry without subclusters: the cluster reads as zeros.
const ZERO: u64 = 1;
/// How much QEMU copies as one at least and at most: the size of a cluster between these
/// (bdrv_get_default_bitmap_granularity, block/dirty-bitmap.c).
const GRAIN: (u64, u64) = (4 << 10, 64 << 10);
const UNKNOWN: &str = "where it has data cannot be found";
const DAMAGED: &str = "tables of its qcow2 are damaged: see `qemu-img check -U`";
/// A multiple of the size of a page, which is up to 64 KiB.
const PAGE: u64 = 64 << 10;

/// A disk in a file.
pub struct Content<'f> {
    file: &'f File,
    qcow2: Option<Layout>,
}

/// Where a part of a disk is in the file, unless it is zero, and its length.
type Part = (Option<u64>, u64);

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
        let mut found = Vec::with_capacity(length);
        let mut at = at;
        while at < end {
            // What one L2 table describes.
            let span = layout.cluster * layout.entries();
            let until = end.min(at - at % span + span);
            let Some(parts) = self.parts(layout, at, until)? else {
                return Ok(None);
            };
            for (offset, length) in parts {
                let filled = found.len() + index(length);
                if let Some(offset) = offset {
                    found.extend(read(self.file, offset, index(length))?);
                }
                // Also behind the end of the file.
                found.resize(filled, 0);
            }
            at = until;
        }
        Ok(Some(found))
    }

    /// The parts of the disk from `at` until `end`, which one L2 table describes. `None` if some of it is
    /// compressed.
    fn parts(&self, layout: &Layout, at: u64, end: u64) -> io::Result<Option<Vec<Part>>> {
        let first = at / layout.cluster;
        let step = layout.cluster / layout.entries();
        let mut entries = vec![0; index((end.div_ceil(layout.cluster) - first) * step)];
        let table = read(self.file, layout.l1 + first / layout.entries() * 8, 8)?;
        let table = number(&table, 0) & OFFSET;
        if table != 0 {
            let begin = table + first % layout.entries() * step;
            let read = read(self.file, begin, entries.len())?;
            entries[..read.len()].copy_from_slice(&read);
        }
        let piece = layout.piece();
        let mut parts: Vec<Part> = Vec::new();
        let mut at = at;
        while at < end {
            let length = end.min(at - at % piece + piece) - at;
            let entry = Entry::of(
                &entries[index((at / layout.cluster - first) * step)..],
                layout,
            );
            if entry.is_compressed {
                return Ok(None);
            }
            let within = at % layout.cluster;
            let is_there = entry.data >> (within / piece) & 1 != 0;
            let offset = is_there.then_some(entry.offset + within);
            match parts.last_mut() {
                Some((begin, so_far)) if begin.map(|begin| begin + *so_far) == offset => {
                    *so_far += length
                }
                _ => parts.push((offset, length)),
            }
            at += length;
        }
        Ok(Some(parts))
    }

    /// What a copy takes up at most besides the guest's data, in bytes.
    pub(super) fn metadata(&self) -> Bytes {
        Bytes(self.qcow2.as_ref().map_or(0, Layout::metadata))
    }

    /// What QEMU writes to a copy as data, in bytes. Of a raw image each grain with data. Of a qcow2 also what
    /// are holes of the file in allocated clusters (qcow2_co_block_status, block/qcow2.c, returns data for
    /// them), and what is compressed: reads all L2 tables, and refuses damaged ones. Calls `stop` between.
    pub fn copied(&self, stop: &mut dyn FnMut() -> Option<Stop>) -> Result<Bytes, RunOutcome> {
        let Some(layout) = &self.qcow2 else {
            return self.with_data(stop);
        };
        let mut copied = 0;
        for table in self.tables(layout)? {
            if let Some(why) = stop() {
                return Err(RunOutcome::Stopped { why });
            }
            copied += copied_of(&read(self.file, table, index(layout.cluster))?, layout);
        }
        Ok(Bytes(copied))
    }

    /// What of the file QEMU takes for data: as it does, this asks the file system (find_allocation,
    /// block/file-posix.c), for which unwritten extents are holes.
    fn with_data(&self, stop: &mut dyn FnMut() -> Option<Stop>) -> Result<Bytes, RunOutcome> {
        let grain = GRAIN.1;
        let (size, mut at, mut found) = (self.size()?, 0, 0);
        while at < size {
            if let Some(why) = stop() {
                return Err(RunOutcome::Stopped { why });
            }
            let data = match seek(self.file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                data => data.map_err(cannot(UNKNOWN))?,
            };
            let hole = seek(self.file, SeekFrom::Hole(data)).map_err(cannot(UNKNOWN))?;
            at = hole.next_multiple_of(grain).min(size);
            found += at.saturating_sub(data - data % grain);
        }
        Ok(Bytes(found))
    }

    /// Where the L2 tables are in the file.
    fn tables(&self, layout: &Layout) -> Result<Vec<u64>, Refusal> {
        let l1 = read(self.file, layout.l1, index(layout.tables() * 8))?;
        let tables = l1.chunks(8).map(|entry| number(entry, 0) & OFFSET);
        let tables: Vec<u64> = tables.filter(|table| *table != 0).collect();
        // QEMU writes a table before the entry that names it (l2_allocate, block/qcow2-cluster.c).
        let length = self.file.metadata()?.len();
        let is_inside = |table: &u64| *table < length && table.is_multiple_of(layout.cluster);
        // Each has clusters of its own.
        let are_distinct = tables.len() as u64 <= length / layout.cluster;
        match are_distinct && tables.iter().all(is_inside) {
            true => Ok(tables),
            false => Err(Refusal::new(ReasonCode::Hypervisor, DAMAGED)),
        }
    }
}

/// An entry of an L2 table. Each bit is a subcluster, or the lowest one the whole cluster if it has none.
struct Entry {
    offset: u64,
    is_compressed: bool,
    /// What is in the file.
    data: u64,
    /// What reads as zeros, be it in the file.
    zeros: u64,
}

impl Entry {
    /// `bytes` begin with it.
    fn of(bytes: &[u8], layout: &Layout) -> Entry {
        let word = number(bytes, 0);
        let (there, zeros) = match layout.has_subclusters {
            false => (u64::from(word & OFFSET != 0), word & ZERO),
            true => {
                let bitmap = number(bytes, 8);
                (bitmap & u64::from(u32::MAX), bitmap >> 32)
            }
        };
        let is_compressed = word & COMPRESSED != 0;
        Entry {
            offset: word & OFFSET,
            is_compressed,
            data: if is_compressed {
                layout.all()
            } else {
                there & !zeros
            },
            zeros: if is_compressed { 0 } else { zeros },
        }
    }
}

/// How much of what an L2 table describes is copied as data, in bytes: each grain of the disk with data, or with
/// zeros that fill no cluster, as there are with small clusters and with subclusters (mirror_iteration,
/// block/mirror.c).
fn copied_of(table: &[u8], layout: &Layout) -> u64 {
    let (piece, step) = (layout.piece(), index(layout.cluster / layout.entries()));
    let grain = layout.cluster.clamp(GRAIN.0, GRAIN.1).max(piece);
    let clusters = index(grain.div_ceil(layout.cluster));
    let pieces = layout.cluster / piece;
    let of_unit = |unit: &[u8]| {
        let (mut data, mut zeros, mut all) = (0, 0, 0);
        for (at, entry) in (0_u64..).step_by(index(pieces)).zip(unit.chunks(step)) {
            let entry = Entry::of(entry, layout);
            data |= entry.data << at;
            zeros |= entry.zeros << at;
            all |= layout.all() << at;
        }
        // Zeros that fill whole clusters are written without data.
        let touched = if zeros == all { 0 } else { data | zeros };
        let of_grain = u64::MAX >> (64 - grain / piece);
        let grains = (0..64_u64).step_by(index(grain / piece));
        grains.filter(|at| touched >> at & of_grain != 0).count() as u64
    };
    table.chunks(clusters * step).map(of_unit).sum::<u64>() * grain
}

/// The word of a table at this offset, or 0 behind its end.
fn number(table: &[u8], at: usize) -> u64 {
    long(table, at).unwrap_or(0)
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
