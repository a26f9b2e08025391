//! What a kind of file system must be able to do to be counted.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use crate::model::{Bytes, ExtentCount, Features};

/// The count of an open image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Records of the extent map.
    pub extents: ExtentCount,
    /// Extent-size hint of the file; 0: none.
    pub hint: Bytes,
    /// Extent-size hint that its directory gives to new files; 0: none.
    pub directory_hint: Bytes,
}

/// How the files of a kind of file system are counted.
pub trait Probe {
    /// Counts the extents of an open image. `beat` is called where that takes several steps.
    ///
    /// # Errors
    /// Those of the system call.
    fn count(
        &mut self,
        image: &File,
        directory: BorrowedFd<'_>,
        beat: &mut dyn FnMut(),
    ) -> io::Result<Count>;

    /// Whether reading a byte of a file loads its whole extent map into kernel memory for good.
    fn loads_whole_maps(&self) -> bool;

    /// Features of the file system that the open directory lies on.
    fn features(&mut self, directory: &File) -> Option<Features>;
}
