//! Counts the extents of an open file.
//!
//! On XFS the inode holds the count, so counting takes a microsecond and loads no extent map,
//! whatever the number (xfs_fill_fsxattr, fs/xfs/xfs_ioctl.c). On other file systems with FIEMAP
//! (ext4, btrfs, …) the extents are counted one by one; these file systems release extent-map
//! memory under pressure, so counting pins none.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use super::extents::{MapReader, ReadPace};
use crate::model::{Bytes, ExtentCount, Features, FilesystemKind};
use crate::sys::fsxattr::Hint;
use crate::sys::{fsxattr, geometry};

/// The count of an open image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of records in the extent map.
    pub extents: ExtentCount,
    /// The file's extent-size hint; 0 if none.
    pub hint: Bytes,
    /// The extent-size hint that its directory passes on to new files; 0 if none.
    pub directory_hint: Bytes,
    /// The file's hint for copy on write; 0 if none.
    pub cow_hint: Bytes,
}

/// How to count the extents of a file.
pub enum Probe {
    /// XFS: reads the count from the inode.
    Xfs,
    /// Other file systems: reads the extent map.
    Generic(MapReader),
}

impl Probe {
    /// The method for a kind of file system.
    pub fn new(kind: FilesystemKind) -> Probe {
        match kind {
            FilesystemKind::Xfs => Probe::Xfs,
            FilesystemKind::Other => Probe::Generic(MapReader::default()),
        }
    }

    /// Counts the extents of an open image. `beat` is called between steps if there are several.
    pub fn count(
        &mut self,
        image: &File,
        directory: BorrowedFd<'_>,
        beat: &mut dyn FnMut(),
    ) -> io::Result<Count> {
        let Probe::Generic(reader) = self else {
            return count_xfs(image, directory);
        };
        let mut count = Count::default();
        let visit = |_| {
            count.extents.0 += 1;
            ControlFlow::Continue(())
        };
        reader.read(image, Bytes(0), ReadPace::QUICK, visit, beat)?;
        Ok(count)
    }

    /// Whether reading a byte of a file loads its whole extent map into kernel memory permanently.
    pub fn loads_whole_maps(&self) -> bool {
        matches!(self, Probe::Xfs)
    }

    /// Features of the file system of the open directory; `None` if it is not XFS.
    pub fn features(&self, directory: &File) -> Option<Features> {
        let Probe::Xfs = self else { return None };
        let geometry = geometry::geometry(directory).ok()?;
        let has = |flag| geometry.flags & flag != 0;
        Some(Features {
            reflink: has(geometry::FLAG_REFLINK),
            rmapbt: has(geometry::FLAG_RMAPBT),
            nrext64: has(geometry::FLAG_NREXT64),
            exchange_range: has(geometry::FLAG_EXCHANGE_RANGE),
        })
    }
}

fn count_xfs(image: &File, directory: BorrowedFd<'_>) -> io::Result<Count> {
    let image = fsxattr::attributes(image)?;
    Ok(Count {
        extents: ExtentCount(image.extents.into()),
        hint: in_force(&image, Hint::Own),
        // The count does not need the directory, which may be unreadable (O_PATH).
        directory_hint: directory_hint(directory),
        cow_hint: in_force(&image, Hint::CopyOnWrite),
    })
}

/// The extent-size hint that an open directory gives to new files; 0 if none or not readable.
pub fn directory_hint(directory: impl AsFd) -> Bytes {
    let attributes = fsxattr::attributes(directory).unwrap_or_default();
    in_force(&attributes, Hint::Inherited)
}

fn in_force(attributes: &fsxattr::Attributes, hint: Hint) -> Bytes {
    Bytes(attributes.hint(hint).unwrap_or(0).into())
}
