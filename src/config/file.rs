//! Reads the configuration files without blocking on any of them.

use std::ffi::OsStr;
use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::report::{Problem, Source};

/// Maximum size of a file in bytes. Real ones have a few thousand; a larger one is a mistake.
const LARGEST: u64 = 1 << 20;

const MAIN_HELP: &str = "repair the file, or name another one with --config FILE";
const FRAGMENT_HELP: &str = "repair the file, or move it out of the directory";

/// The main file, its fragments, and the problems of those that cannot be read.
pub(super) fn read_all(path: &Path, may_be_missing: bool) -> (Vec<Source>, Vec<Problem>) {
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    let mut take = |read: Result<Option<Source>, Problem>| match read {
        Ok(source) => sources.extend(source),
        Err(problem) => problems.push(problem),
    };
    take(read(path, MAIN_HELP).and_then(|source| match source {
        None if !may_be_missing => Err(Problem::of_file(
            path,
            "there is no such file",
            "create it, or name another one with --config FILE",
        )),
        source => Ok(source),
    }));
    match fragments(path) {
        Err(problem) => take(Err(problem)),
        Ok(paths) => paths.iter().for_each(|path| {
            // A dangling link, or a file removed since the directory was read.
            let message = "the file, or what it links to, does not exist";
            let missing = || Problem::of_file(path, message, FRAGMENT_HELP);
            let source = read(path, FRAGMENT_HELP);
            take(source.and_then(|source| source.map(Some).ok_or_else(missing)));
        }),
    }
    (sources, problems)
}

/// The file at `path` alone; `None` if it cannot be read.
pub(super) fn read_one(path: &Path) -> Option<Source> {
    read(path, MAIN_HELP).ok()?
}

/// The fragments beside the main file, sorted by name; empty if there is no directory.
fn fragments(main: &Path) -> Result<Vec<PathBuf>, Problem> {
    let directory = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let paths = entries.and_then(|list| list.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = paths.map_err(|error: io::Error| {
        let message = format!("the directory cannot be read: {error}");
        let help = "make it a directory that can be read, or remove it";
        Problem::of_file(&directory, &message, help)
    })?;
    let is_hidden = |name: &OsStr| name.as_bytes().starts_with(b".");
    paths.retain(|path| {
        path.extension() == Some(OsStr::new("toml")) && !path.file_name().is_some_and(is_hidden)
    });
    paths.sort();
    Ok(paths)
}

/// The file at `path`; `None` if it does not exist. `help` is the hint if it is unusable.
fn read(path: &Path, help: &str) -> Result<Option<Source>, Problem> {
    let refused = |message: &str, help: &str| Err(Problem::of_file(path, message, help));
    match read_bytes(path) {
        Ok((kind, _)) if !kind.is_file() => refused(&not_a_file(kind), help),
        Ok((_, bytes)) if bytes.len() as u64 > LARGEST => {
            refused("is larger than 1 MiB, no configuration is", help)
        }
        Ok((_, bytes)) => decode(path, bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let kind = fs::metadata(path).map(|metadata| metadata.file_type());
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            match kind {
                // The error of opening a socket does not name the cause.
                Ok(kind) if kind.is_socket() => refused(&not_a_file(kind), help),
                _ if denied => refused(
                    &format!("cannot be read: {error}"),
                    "run as root, or let this user read it",
                ),
                _ => refused(&format!("cannot be read: {error}"), help),
            }
        }
    }
}

fn decode(path: &Path, bytes: Vec<u8>) -> Result<Source, Problem> {
    let path = path.to_owned();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { path, text }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let end = at + error.utf8_error().error_len().unwrap_or(1);
            let help = "help: save the file as UTF-8";
            let message = "this is not UTF-8";
            Err(Problem::at(&path, error.as_bytes(), at..end, message, help))
        }
    }
}

/// The kind of the file, and the content of a regular file, up to one byte more than is allowed.
fn read_bytes(path: &Path) -> io::Result<(FileType, Vec<u8>)> {
    // `O_NONBLOCK`: do not wait for the writer of a FIFO. `O_NOCTTY`: do not acquire a terminal.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    let mut bytes = Vec::new();
    if kind.is_file() {
        // The length is not sufficient: the file may grow, and in /proc every file has length 0.
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    }
    Ok((kind, bytes))
}

fn not_a_file(kind: FileType) -> String {
    let name = match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    format!("is {name}, not a file")
}
