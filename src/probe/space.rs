//! The free space of a file system, by FS_IOC_GETFSMAP. No file is opened but its mount point.
//!
//! `xfs_db -r -c freesp` on a mounted file system reads what was last written back to the device, and
//! differs; `xfs_spaceman -c "freesp -s"` asks the kernel, as this does.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use super::extents::ReadPace;
use super::open;
use crate::discover::mounts::Mount;
use crate::model::free_space::Summary;
use crate::model::{Bytes, FreeSpace};
use crate::sys::fsmap::FreeExtents;
use crate::sys::geometry::geometry;

/// Reads the free extents of a mounted file system. Each batch is a beat.
///
/// # Errors
/// Unsupported if the file system does not report its free extents, and errors of opening the mount point.
pub fn free_space(mount: &Mount, beat: &mut dyn FnMut()) -> io::Result<FreeSpace> {
    let root = open::mount_point(&mount.point)?;
    let mut beat = || {
        beat();
        Ok(())
    };
    of_open_file(&root, &mut beat).map_err(|error| explained(error, mount))
}

/// Reads the free extents of the file system of an open file, resting for as long as it works. `beat` is
/// called after each batch; its error ends the reading.
///
/// # Errors
/// ENOTTY or EOPNOTSUPP if the file system does not report its free extents, and that of `beat`.
pub fn of_open_file(
    file: &File,
    beat: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<FreeSpace> {
    let mut summary = match geometry(file) {
        Ok(geometry) => {
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(u64::from(geometry.block_size)));
            let group = bytes(u64::from(geometry.group_blocks));
            Summary::new(bytes(geometry.data_blocks), bytes(1), group)
        }
        // Another file system, which counts as one group.
        Err(_) => {
            let numbers = rustix::fs::fstatvfs(file)?;
            let size = Bytes(numbers.f_blocks.saturating_mul(numbers.f_frsize));
            Summary::new(size, Bytes(numbers.f_frsize), size)
        }
    };
    let mut extents = FreeExtents::of_device(file.metadata()?.dev());
    let mut worked = Duration::ZERO;
    loop {
        let began = Instant::now();
        let Some(batch) = extents.next(file)? else {
            return Ok(summary.finish());
        };
        for extent in batch {
            summary.add(extent.start, extent.length);
        }
        worked += began.elapsed();
        ReadPace::GENTLE.rest(&mut worked);
        beat()?;
    }
}

fn explained(error: io::Error, mount: &Mount) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => {
            let text = format!(
                "lies on {}, which does not report its free extents",
                mount.type_name
            );
            io::Error::new(io::ErrorKind::Unsupported, text)
        }
        _ => error,
    }
}
