//! Replacing a file so that it is there as a whole, the old one or the new one, also after a power
//! failure.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const PREFIX: &str = ".fragwatch-";
const SUFFIX: &str = ".tmp";

/// Replaces the file at `path`: a temporary file beside it, fsync, rename, fsync of the directory,
/// because a rename alone can be lost. A link at `path` is replaced, not followed. For the name of
/// the temporary file see [`is_temporary`].
///
/// # Errors
/// Those of each step. The old file is still there then, unless it was the last step that failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(PREFIX)
        .suffix(SUFFIX)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Whether a file of this name is what a [`replace`] left behind that was killed.
#[must_use]
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes())
}
