//! The files of the database: creation, checks, and quarantine of damaged ones.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::error::StoreError;
use crate::model::path::shown;
use crate::model::utc;

/// Mode of a directory that is created: names of VMs are confidential.
const DIRECTORY_MODE: u32 = 0o750;
/// Mode of the database, which SQLite copies to its companion files.
pub(super) const FILE_MODE: u32 = 0o640;
/// Maximum number of damaged databases kept: more indicate a failing disk, and would fill it.
const MOST_DAMAGED: usize = 8;
/// The companion files of a database: rollback journal; log and index if WAL mode was set.
const COMPANIONS: [&str; 3] = ["-journal", "-wal", "-shm"];

/// Creates a directory and those above it.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
}

/// Creates the file at `path` if it is missing, and returns its path without symbolic links. Fails
/// for anything but a regular file in a directory that is not world-writable.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, StoreError> {
    let directory = parent(path);
    // The path to the directory is trusted, but not a link in place of the file.
    let real = make_directory(directory).and_then(|()| {
        let real = fs::canonicalize(directory)?;
        let mode = fs::metadata(&real)?.mode();
        Ok((real, mode))
    });
    let (real, mode) = real.map_err(|error| {
        StoreError::File(format!("{}: cannot be used: {error}", shown(directory)))
    })?;
    if mode & 0o002 != 0 {
        return Err(StoreError::Refused(format!(
            "lies in a directory that everybody can write to, and is not trusted there; chmod o-w \
             {}, or set history.path to another place",
            shown(&real)
        )));
    }
    let file = real.join(path.file_name().unwrap_or_default());
    let mut options = OpenOptions::new();
    let made = options
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&file);
    let kind = match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::symlink_metadata(&file).map(|found| found.file_type()),
    };
    let kind = kind.map_err(|error| StoreError::File(format!("cannot be made: {error}")))?;
    let (what, instead) = if kind.is_file() {
        return Ok(file);
    } else if kind.is_symlink() {
        ("a symbolic link", "set history.path to what it leads to")
    } else if kind.is_dir() {
        ("a directory", "set history.path to a file in it")
    } else {
        ("no regular file", "move it away")
    };
    Err(StoreError::Refused(format!("is {what}: {instead}")))
}

/// The path of an existing database, with the symbolic links of its directory resolved.
pub(super) fn existing(path: &Path) -> Result<PathBuf, StoreError> {
    let found = fs::canonicalize(parent(path)).and_then(|directory| {
        let file = directory.join(path.file_name().unwrap_or_default());
        // Opening a FIFO would block.
        match fs::symlink_metadata(&file)?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("is no regular file")),
        }
    });
    found.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::File(
            "is not there: no daemon has recorded anything, or history.path is another".to_owned(),
        ),
        _ => StoreError::File(format!("cannot be opened: {error}")),
    })
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Moves a damaged database and its companion files aside, and returns the new name:
/// `history.db.damaged-2026-11-21T03-04-05Z`. Overwrites nothing; fails at `MOST_DAMAGED` files.
pub(super) fn move_aside(file: &Path, now: SystemTime) -> Result<PathBuf, StoreError> {
    let failed = |error: io::Error| {
        StoreError::File(format!("is damaged and cannot be moved aside: {error}"))
    };
    if count_damaged(file).map_err(failed)? >= MOST_DAMAGED {
        return Err(StoreError::Refused(format!(
            "is damaged, as were {MOST_DAMAGED} before it, which lie beside it: check the disk, \
             then remove them"
        )));
    }
    let time: String = utc::rfc3339(now).chars().take(19).collect();
    let stamp = format!(".damaged-{}Z", time.replace(':', "-"));
    let numbers = (2..=MOST_DAMAGED + 1).map(|number| format!("{stamp}-{number}"));
    let names = std::iter::once(stamp.clone()).chain(numbers);
    let mut aside = names.map(|suffix| with_suffix(file, &suffix));
    let is_free = |aside: &PathBuf| aside.symlink_metadata().is_err();
    let moved = aside.find(is_free).map(|aside| {
        // The database last: SQLite removes a journal without one, but could apply it to a new one.
        for companion in COMPANIONS {
            match rename(
                &with_suffix(file, companion),
                &with_suffix(&aside, companion),
            ) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        rename(file, &aside)?;
        File::open(parent(file))?.sync_all()?;
        Ok(aside)
    });
    moved
        .unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))
        .map_err(failed)
}

/// Renames without overwriting.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not support the flag.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => fs::rename(from, to),
        ended => ended.map_err(io::Error::from),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn count_damaged(file: &Path) -> io::Result<usize> {
    let mut count = 0;
    let prefix = with_suffix(file, ".damaged-");
    let prefix = prefix.file_name().unwrap_or_default().as_encoded_bytes();
    for entry in fs::read_dir(parent(file))? {
        let name = entry?.file_name();
        let name = name.as_encoded_bytes();
        let companion = COMPANIONS.iter().any(|end| name.ends_with(end.as_bytes()));
        count += usize::from(name.starts_with(prefix) && !companion);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, UNIX_EPOCH};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_made_is_for_us_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/state/history.db");
        let file = prepare(&path).unwrap();
        assert_eq!(mode(&file) & 0o027, 0, "{:o}", mode(&file));
        assert_eq!(mode(file.parent().unwrap()) & 0o027, 0);
        // And what is there stays as it is.
        fs::write(&file, "kept").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        prepare(&path).unwrap();
        assert_eq!(
            (mode(&file), fs::read(&file).unwrap()),
            (0o600, b"kept".to_vec())
        );
    }

    #[test]
    fn nothing_but_a_file_of_ours_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |path: &Path, why: &str| {
            let error = prepare(path).unwrap_err();
            assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains(why), "{error}");
        };
        let target = directory.path().join("target");
        fs::write(&target, "").unwrap();
        let link = directory.path().join("link");
        symlink(&target, &link).unwrap();
        refused(&link, "is a symbolic link: set history.path");
        symlink(
            directory.path().join("nowhere"),
            directory.path().join("dangling"),
        )
        .unwrap();
        refused(&directory.path().join("dangling"), "is a symbolic link");
        assert!(!directory.path().join("nowhere").exists());
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        refused(&open, "is a directory");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        refused(&open.join("history.db"), "everybody can write to");
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
        // The way to the directory may hold links.
        symlink(directory.path(), directory.path().join("way")).unwrap();
        let file = prepare(&directory.path().join("way/target")).unwrap();
        assert_eq!(file, fs::canonicalize(&target).unwrap());
    }

    #[test]
    fn damaged_files_are_kept_and_not_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("history.db");
        let now = UNIX_EPOCH + Duration::from_secs(1_795_230_245);
        for number in 0..MOST_DAMAGED {
            fs::write(&file, number.to_string()).unwrap();
            fs::write(with_suffix(&file, "-journal"), "log").unwrap();
            let aside = move_aside(&file, now).unwrap();
            let expected = match number {
                0 => "history.db.damaged-2026-11-21T03-04-05Z".to_owned(),
                n => format!("history.db.damaged-2026-11-21T03-04-05Z-{}", n + 1),
            };
            assert_eq!(aside, directory.path().join(expected));
            assert_eq!(fs::read_to_string(&aside).unwrap(), number.to_string());
            assert!(with_suffix(&aside, "-journal").exists());
            assert!(!with_suffix(&file, "-journal").exists());
        }
        fs::write(&file, "one more").unwrap();
        let error = move_aside(&file, now).unwrap_err();
        assert!(error.to_string().contains("check the disk"), "{error}");
        assert!(file.exists());
    }
}
