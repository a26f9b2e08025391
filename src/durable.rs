//! Replaces a file atomically: even after a power failure, it is either the old or the new one.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Prefix and suffix of the temporary file's name.
const PREFIX: &str = ".fragwatch-";
const SUFFIX: &str = ".tmp";

/// Replaces the file at `path`: temporary file in the same directory, fsync, rename, fsync of the
/// directory, because a rename alone can be lost. A link at `path` is replaced, not followed.
///
/// # Errors
/// Those of each step. The old file is still there then, unless the last step failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, mode, |file| file.write_all(bytes)).map(drop)
}

/// Like [`replace`], but `write` fills the new file, which is returned open for read and write.
pub fn replace_with(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<File> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(PREFIX)
        .suffix(SUFFIX)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    let file = file.persist(path)?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// Whether a file of this name is a leftover of a crash during [`replace`].
pub fn is_left_over(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes())
}
