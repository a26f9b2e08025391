//! Every other file system that knows FIEMAP (ext4, btrfs, …): the extents are counted one by one.
//! Those file systems give the memory of extent maps back under pressure, so that the count, unlike
//! on XFS, pins nothing.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use super::extents::{MapReader, ReadPace};
use super::{Count, Probe};
use crate::model::{Bytes, ExtentCount, Features};

/// Probe of file systems that are no XFS.
pub struct Generic {
    reader: MapReader,
    pace: ReadPace,
}

impl Generic {
    /// Reads maps at this pace.
    #[must_use]
    pub fn new(pace: ReadPace) -> Self {
        Generic {
            reader: MapReader::new(),
            pace,
        }
    }
}

impl Probe for Generic {
    fn count(
        &mut self,
        image: &File,
        _: BorrowedFd<'_>,
        beat: &mut dyn FnMut(),
    ) -> io::Result<Count> {
        let mut extents = ExtentCount(0);
        self.reader.read(
            image,
            Bytes(0),
            self.pace,
            |_| {
                extents.0 += 1;
                ControlFlow::Continue(())
            },
            beat,
        )?;
        Ok(Count {
            extents,
            ..Count::default()
        })
    }

    fn loads_whole_maps(&self) -> bool {
        false
    }

    fn features(&mut self, _: &File) -> Option<Features> {
        None
    }
}
