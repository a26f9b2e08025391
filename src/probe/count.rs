//! Counting the extents of an open file.
//!
//! On XFS the inode itself holds the number, so a count takes a microsecond and loads nothing,
//! whatever the number (xfs_fill_fsxattr, fs/xfs/xfs_ioctl.c). On any other file system that has
//! FIEMAP (ext4, btrfs, …) the extents are counted one by one; those file systems give the memory of
//! extent maps back under pressure, so that the count pins nothing.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use super::extents::{MapReader, ReadPace};
use crate::model::{Bytes, ExtentCount, Features, FilesystemKind};
use crate::sys::{fsxattr, geometry};

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
pub enum Probe {
    /// XFS: by the number in the inode.
    Xfs,
    /// Any other: by reading the extent map.
    Generic(MapReader),
}

impl Probe {
    /// For a kind of file system.
    pub fn new(kind: FilesystemKind) -> Probe {
        match kind {
            FilesystemKind::Xfs => Probe::Xfs,
            FilesystemKind::Other => Probe::Generic(MapReader::new()),
        }
    }

    /// Counts the extents of an open image. `beat` is called where that takes several steps.
    ///
    /// # Errors
    /// Those of the system call.
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

    /// Whether reading a byte of a file loads its whole extent map into kernel memory for good.
    pub fn loads_whole_maps(&self) -> bool {
        matches!(self, Probe::Xfs)
    }

    /// Features of the file system that the open directory lies on.
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
    // A hint is in force only with its flag; the number alone may be left over.
    let hint = |attributes: fsxattr::Attributes, flag| match attributes.flags & flag {
        0 => Bytes(0),
        _ => Bytes(attributes.extent_size.into()),
    };
    let image = fsxattr::attributes(image)?;
    // A directory that may not be read gives no answer; the count does not need one.
    let directory_hint = fsxattr::attributes(directory).map_or(Bytes(0), |directory| {
        hint(directory, fsxattr::FLAG_EXTENT_SIZE_INHERIT)
    });
    Ok(Count {
        extents: ExtentCount(image.extents.into()),
        hint: hint(image, fsxattr::FLAG_EXTENT_SIZE),
        directory_hint,
    })
}
