//! Counting extents, without being taken along by a file system that hangs.
//!
//! ```text
//! sweep ─► worker (one a file system, in our process)     deadline, one call at a time
//!             │  socket pair, protocol
//!          helper (a process of its own)                  may hang; nobody waits for it
//!             └─► survey ─► discover::walk ─► Probe (xfs | generic)
//! ```
//!
//! The call that may hang runs in a helper *process*, not in a thread: a thread in
//! uninterruptible sleep cannot be killed and keeps its whole process from ending. SIGTERM, a panic
//! or systemd's restart would then wait for the very file system that we are to outlive.

pub mod census;
pub mod extents;
mod format_cache;
pub mod generic;
pub mod helper;
mod identity;
pub mod map_schedule;
pub mod open;
mod outbox;
mod owners;
pub mod protocol;
mod survey;
pub mod sweep;
pub mod worker;
pub mod xfs;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::discover::mounts::Mount;
use crate::model::{Bytes, ExtentCount, Features, Filesystem, FilesystemKind};
use extents::Pace;

/// What a count says of an open image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Records of the extent map.
    pub extents: ExtentCount,
    /// Extent-size hint of the file; 0: none.
    pub hint: Bytes,
    /// Extent-size hint that its directory gives to new files; 0: none.
    pub directory_hint: Bytes,
}

/// How a kind of file system is asked.
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

/// The probe for a kind of file system.
#[must_use]
pub fn for_kind(kind: FilesystemKind) -> Box<dyn Probe> {
    match kind {
        FilesystemKind::Xfs => Box::new(xfs::Xfs),
        FilesystemKind::Other => Box::new(generic::Generic::new(Pace::QUICK)),
    }
}

/// What is known of a mounted file system. Features and UUID stay unknown when its mount point may
/// not be opened.
///
/// # Errors
/// When not even its size can be asked, or something else is mounted there now.
pub fn filesystem(probe: &mut dyn Probe, mount: &Mount) -> io::Result<Filesystem> {
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
        .and_then(|file| identity::uuid(file, mount.kind()).ok()?);
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

/// `0fc63daf-8483-4772-8e79-3d69d8477de4`
fn hyphenated(uuid: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// An I/O error in words for an operator: without Rust's `(os error 2)`.
#[must_use]
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The place of a fault: see [`protocol::Fault`].
fn fault(path: &Path, error: &io::Error) -> protocol::Fault {
    protocol::Fault {
        path: path.to_owned(),
        error: reason(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_everywhere() {
        let uuid = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();
        assert_eq!(hyphenated(uuid), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn an_error_is_given_in_words() {
        assert_eq!(
            reason(&io::Error::from_raw_os_error(libc::ENOENT)),
            "No such file or directory"
        );
        assert_eq!(reason(&io::Error::other("the way out")), "the way out");
    }
}
