//! Reads the configuration files without blocking on any of them.

use std::ffi::OsStr;
use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::report::{Source, problem_at, problem_of};

/// Maximum size of a file in bytes. Real ones have a few thousand; a larger one is a mistake.
const LARGEST: u64 = 1 << 20;
/// The byte order mark that some editors write. Neither TOML nor a column.
const MARK: &[u8] = "\u{feff}".as_bytes();

const HELP: &str = "repair or remove it, or name another configuration with --config FILE";

/// The main file, its fragments, and the problems of those that cannot be read.
pub(super) fn read_all(main: &Path, may_be_missing: bool) -> (Vec<Source>, Vec<String>) {
    let (mut sources, mut problems) = (Vec::new(), Vec::new());
    let fragments = fragments(main).unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    for path in std::iter::once(main.to_owned()).chain(fragments) {
        match read(&path) {
            Ok(Some(source)) => sources.push(source),
            Ok(None) if path == main && may_be_missing => {}
            // A fragment may be a dangling link, or removed since the directory was read.
            Ok(None) => problems.push(problem_of(&path, "there is no such file", HELP)),
            Err(problem) => problems.push(problem),
        }
    }
    (sources, problems)
}

/// The fragments beside the main file, sorted by name; empty if there is no directory.
fn fragments(main: &Path) -> Result<Vec<PathBuf>, String> {
    let directory = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let paths = entries.and_then(|list| list.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = paths.map_err(|error: io::Error| {
        let message = format!("the directory cannot be read: {error}");
        let help = "make it a directory that can be read, or remove it";
        problem_of(&directory, &message, help)
    })?;
    let is_hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    paths.retain(|path| {
        path.extension() == Some(OsStr::new("toml")) && !path.file_name().is_some_and(is_hidden)
    });
    paths.sort();
    Ok(paths)
}

/// The file at `path`; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Source>, String> {
    let refused = |message: &str| Err(problem_of(path, message, HELP));
    match read_bytes(path) {
        Ok((kind, _)) if kind.is_dir() => refused("is a directory, not a file"),
        Ok((kind, _)) if kind.is_fifo() => refused("is a pipe, not a file"),
        Ok((kind, _)) if !kind.is_file() => refused("is a device, not a file"),
        Ok((_, bytes)) if bytes.len() as u64 > LARGEST => {
            refused("is larger than 1 MiB, no configuration is")
        }
        Ok((_, bytes)) => decode(path, bytes.strip_prefix(MARK).unwrap_or(&bytes)).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The error of opening a socket does not name the cause.
        Err(_) if fs::metadata(path).is_ok_and(|it| it.file_type().is_socket()) => {
            refused("is a socket, not a file")
        }
        Err(error) => refused(&format!("cannot be read: {error}")),
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Source, String> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let end = at + error.error_len().unwrap_or(1);
        let help = "help: save the file as UTF-8";
        problem_at(path, bytes, at..end, "this is not UTF-8", help)
    })?;
    let (path, text) = (path.to_owned(), text.to_owned());
    Ok(Source { path, text })
}

/// The kind of the file, and the content of a regular file, up to one byte more than is allowed.
fn read_bytes(path: &Path) -> io::Result<(FileType, Vec<u8>)> {
    // `O_NONBLOCK`: do not wait for the writer of a FIFO. `O_NOCTTY`: do not acquire a terminal.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    let mut bytes = Vec::new();
    if kind.is_file() {
        // The length is not sufficient: the file may grow, and in /proc every file has length 0.
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    }
    Ok((kind, bytes))
}
