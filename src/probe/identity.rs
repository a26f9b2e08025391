//! The permanent identity of an image, read from the open file: a path may have changed meanwhile.

use std::fs::File;
use std::io;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::count::Probe;
use super::open;
use super::protocol::reason;
use crate::discover::mounts::Mount;
use crate::model::filesystem::lasting_name;
use crate::model::{Bytes, Filesystem, FilesystemKind, ImageKey};
use crate::sys::{generation, geometry, subvolume, uuid};

/// The identity of an open file on `mount`, or why it cannot be read.
pub(super) fn key(file: &File, stat: &Stat, mount: &Mount) -> Result<ImageKey, String> {
    let failed =
        |call: &'static str| move |error: io::Error| format!("{call} failed: {}", reason(&error));
    let uuid = uuid(file, mount.kind()).map_err(failed("reading the UUID of its file system"))?;
    let mut filesystem = lasting_name(uuid, &mount.type_name, &mount.point);
    if mount.kind() == FilesystemKind::Other {
        let number =
            if_known(subvolume::subvolume(file)).map_err(failed("BTRFS_IOC_INO_LOOKUP"))?;
        filesystem.extend(number.map(|number| format!("/{number}")));
    }
    let generation = if_known(generation::generation(file)).map_err(failed("FS_IOC_GETVERSION"))?;
    Ok(ImageKey {
        filesystem,
        inode: stat.st_ino,
        generation: generation.unwrap_or(0),
    })
}

/// The UUID of an open file's file system. `None` if it has none or the kernel lacks the call.
pub fn uuid(file: &File, kind: FilesystemKind) -> io::Result<Option<String>> {
    let uuid = match kind {
        FilesystemKind::Xfs => Some(geometry::geometry(file)?.uuid),
        FilesystemKind::Other => if_known(uuid::uuid(file))?,
    };
    // A UUID that was cleared to zeros is not unique.
    Ok(uuid.filter(|uuid| *uuid != [0; 16]).map(hyphenated))
}

/// `None` if the file system lacks the call, which is a permanent answer: ENOTTY (vfs_ioctl,
/// fs/ioctl.c) or one of the errors that other drivers return. Any other error may be transient.
fn if_known<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    const UNKNOWN: [Errno; 4] = [Errno::NOTTY, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL];
    match answer.as_ref().err().and_then(Errno::from_io_error) {
        Some(errno) if UNKNOWN.contains(&errno) => Ok(None),
        _ => answer.map(Some),
    }
}

/// Describes a mounted file system; without features and UUID if it cannot be opened.
///
/// # Errors
/// If its size cannot be read either, or another file system is mounted there now.
pub(super) fn filesystem(probe: &Probe, mount: &Mount) -> io::Result<Filesystem> {
    let opened = open::mount_point(&mount.point).ok();
    let size = match &opened {
        Some(file) => {
            if !mount.holds(file, rustix::fs::fstat(file)?.st_dev) {
                return Err(io::Error::other("another file system is mounted here now"));
            }
            rustix::fs::fstatvfs(file)?
        }
        None => rustix::fs::statvfs(&mount.point)?,
    };
    let uuid = opened
        .as_ref()
        .and_then(|file| uuid(file, mount.kind()).ok()?);
    let features = opened.as_ref().and_then(|file| probe.features(file));
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(size.f_frsize));
    Ok(Filesystem {
        mount: mount.point.clone(),
        type_name: mount.type_name.clone(),
        kind: mount.kind(),
        uuid,
        features,
        size: bytes(size.f_blocks),
        free: bytes(size.f_bavail),
        block_size: Bytes(size.f_bsize),
    })
}

/// Formats as `0fc63daf-8483-4772-8e79-3d69d8477de4`.
fn hyphenated(uuid: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(uuid));
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_everywhere() {
        let uuid = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();
        assert_eq!(hyphenated(uuid), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
