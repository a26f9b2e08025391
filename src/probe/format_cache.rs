//! Caches the formats of files, so that a sweep each minute need not read every header again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use crate::discover::format::{self, Header};
use crate::model::{Format, ImageId, Qcow2};

/// How long an image's format is trusted although the guest writes to the file.
const IMAGE_STAYS: Duration = Duration::from_secs(3600);
/// Maximum number of entries; the cache is cleared when it is full.
const MOST: usize = 100_000;

struct Known {
    header: Header,
    generation: u32,
    since: Instant,
    size: i64,
    modified: (i64, u64),
}

impl Known {
    fn is_unchanged(&self, stat: &Stat) -> bool {
        self.size == stat.st_size && self.modified == modified(stat)
    }

    /// Whether the header need not be read again.
    fn is_valid(&self, stat: &Stat) -> bool {
        let is_image = self.header.format.is_some();
        self.is_unchanged(stat) || (is_image && self.since.elapsed() < IMAGE_STAYS)
    }
}

/// The helper's cache of file formats.
#[derive(Default)]
pub(super) struct FormatCache(HashMap<ImageId, Known>);

impl FormatCache {
    /// The cached format of a file by its header; `Some(None)` if it has no image header.
    pub(super) fn get(&self, id: ImageId, generation: u32, stat: &Stat) -> Option<Option<Format>> {
        let known = self.of(id, generation)?;
        known.is_valid(stat).then_some(known.header.format)
    }

    /// Whether an unopened file is known not to be an image. A new file with the same inode passes
    /// for the old one only if size and modification time (ns) match.
    pub(super) fn is_no_image(&self, id: ImageId, stat: &Stat) -> bool {
        let known = self
            .0
            .get(&id)
            .filter(|known| known.header.format.is_none());
        known.is_some_and(|known| known.is_unchanged(stat))
    }

    /// Whether the header of an unopened file is known.
    pub(super) fn is_known(&self, id: ImageId, stat: &Stat) -> bool {
        self.0.get(&id).is_some_and(|known| known.is_valid(stat))
    }

    /// The files that hold the data of an image, if its header is known and names others.
    pub(super) fn data_files(&self, id: ImageId, stat: &Stat) -> Vec<OsString> {
        let known = self.0.get(&id).filter(|known| known.is_valid(stat));
        known
            .map(|known| known.header.data_files.clone())
            .unwrap_or_default()
    }

    /// The layout of a qcow2 image whose header is known, however old.
    pub(super) fn qcow2(&self, id: ImageId, generation: u32) -> Option<Qcow2> {
        self.of(id, generation)?.header.qcow2
    }

    /// The last known format of a file, however old.
    pub(super) fn last_known(&self, id: ImageId, generation: u32) -> Option<Format> {
        self.of(id, generation)?.header.format
    }

    /// The entry, unless the inode number was reused by a new file.
    fn of(&self, id: ImageId, generation: u32) -> Option<&Known> {
        let known = self.0.get(&id)?;
        (known.generation == generation).then_some(known)
    }

    pub(super) fn read(
        &mut self,
        id: ImageId,
        generation: u32,
        stat: &Stat,
        file: &File,
    ) -> io::Result<Option<Format>> {
        let header = format::read(file, stat.st_size.unsigned_abs())?;
        let format = header.format;
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let known = Known {
            header,
            generation,
            since: Instant::now(),
            size: stat.st_size,
            modified: modified(stat),
        };
        self.0.insert(id, known);
        Ok(format)
    }
}

fn modified(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, stat.st_mtime_nsec)
}
