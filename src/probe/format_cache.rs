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
    since: Instant,
    size: i64,
    modified: (i64, u64),
}

/// What the helper remembers of the files that it has looked into.
#[derive(Default)]
pub(super) struct FormatCache(HashMap<ImageId, Known>);

impl FormatCache {
    /// The format of a file as its header tells it, if that is remembered: `Some(None)` is a file
    /// that is known to have no header of an image.
    pub(super) fn get(&self, id: ImageId, stat: &Stat) -> Option<Option<Format>> {
        let known = self.0.get(&id)?;
        let unchanged = known.size == stat.st_size && known.modified == modified(stat);
        let fresh = known.format.is_some() && known.since.elapsed() < IMAGE_STAYS;
        (unchanged || fresh).then_some(known.format)
    }

    /// What was known of the format of a file before, however long ago.
    pub(super) fn last_known(&self, id: ImageId) -> Option<Format> {
        self.0.get(&id)?.format
    }

    /// Reads the header of a file and remembers what it says.
    pub(super) fn read(
        &mut self,
        id: ImageId,
        stat: &Stat,
        file: &File,
    ) -> io::Result<Option<Format>> {
        let format = format::read_magic(file)?;
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let known = Known {
            format,
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
