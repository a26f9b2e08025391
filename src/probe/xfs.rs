//! XFS: the inode itself holds the number of extents, so a count takes a microsecond and loads
//! nothing, whatever the number (xfs_fill_fsxattr, fs/xfs/xfs_ioctl.c).

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use super::{Count, Probe};
use crate::model::{Bytes, ExtentCount, Features};
use crate::sys::{fsxattr, geometry};

/// Probe of XFS.
#[derive(Debug)]
pub struct Xfs;

impl Probe for Xfs {
    fn count(
        &mut self,
        image: &File,
        directory: BorrowedFd<'_>,
        _: &mut dyn FnMut(),
    ) -> io::Result<Count> {
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

    fn loads_whole_maps(&self) -> bool {
        true
    }

    fn features(&mut self, directory: &File) -> Option<Features> {
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

/// A hint is in force only with its flag; the number alone may be left over.
fn hint(attributes: fsxattr::Attributes, flag: u32) -> Bytes {
    if attributes.flags & flag == 0 {
        return Bytes(0);
    }
    Bytes(attributes.extent_size.into())
}
