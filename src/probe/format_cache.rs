//! Formats of files that were looked into before, so that a sweep each minute does not read the
//! header of every image each minute.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use crate::discover::format;
use crate::model::{Format, ImageId};

/// A guest's writes change an image all the time, but hardly ever what it is: looked at again
/// after this time.
const IMAGE_STAYS: Duration = Duration::from_secs(3600);
/// Files remembered at most; then all are forgotten and looked at again.
const MOST: usize = 100_000;

struct Known {
    format: Option<Format>,
    generation: u32,
    since: Instant,
    size: i64,
    modified: (i64, u64),
}

impl Known {
    fn is_unchanged(&self, stat: &Stat) -> bool {
        self.size == stat.st_size && self.modified == modified(stat)
    }
}

/// What the helper remembers of the files that it has looked into.
#[derive(Default)]
pub(super) struct FormatCache(HashMap<ImageId, Known>);

impl FormatCache {
    /// The format of a file by its header, if that is remembered: `Some(None)` is a file
    /// that is known to have no header of an image.
    pub(super) fn get(&self, id: ImageId, generation: u32, stat: &Stat) -> Option<Option<Format>> {
        let known = self.of(id, generation)?;
        let fresh = known.format.is_some() && known.since.elapsed() < IMAGE_STAYS;
        (known.is_unchanged(stat) || fresh).then_some(known.format)
    }

    /// Whether a file that was not opened is known to be no image. One that has taken the inode of
    /// such a file is taken for it only if it is as long and was written in the same nanosecond.
    pub(super) fn is_no_image(&self, id: ImageId, stat: &Stat) -> bool {
        let known = self.0.get(&id).filter(|known| known.format.is_none());
        known.is_some_and(|known| known.is_unchanged(stat))
    }

    /// What was known of the format of a file before, however long ago.
    pub(super) fn last_known(&self, id: ImageId, generation: u32) -> Option<Format> {
        self.of(id, generation)?.format
    }

    /// A new file may have the inode of an old one.
    fn of(&self, id: ImageId, generation: u32) -> Option<&Known> {
        let known = self.0.get(&id)?;
        (known.generation == generation).then_some(known)
    }

    /// Reads the header of a file and remembers its format.
    pub(super) fn read(
        &mut self,
        id: ImageId,
        generation: u32,
        stat: &Stat,
        file: &File,
    ) -> io::Result<Option<Format>> {
        let format = format::read_magic(file)?;
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let known = Known {
            format,
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
