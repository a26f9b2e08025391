//! Reads the configuration files without blocking on any of them.

use std::ffi::OsStr;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::report::{Problem, Source};

/// Maximum size of a file in bytes. Real ones have a few thousand; a larger one is a mistake.
const LARGEST: u64 = 1 << 20;

/// How to handle a missing main file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It was named by the user.
    IsAnError,
    /// The default path.
    IsEmpty,
}

const MAIN_HELP: &str = "repair the file, or name another one with --config FILE";
const FRAGMENT_HELP: &str = "repair the file, or move it out of the directory";

/// The main file, its fragments, and the problems of those that cannot be read.
pub(super) fn read_all(path: &Path, missing: Missing) -> (Vec<Source>, Vec<Problem>) {
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    let mut take = |read: Result<Option<Source>, Problem>| match read {
        Ok(source) => sources.extend(source),
        Err(problem) => problems.push(problem),
    };
    take(read(path, MAIN_HELP).and_then(|source| match source {
        None if missing == Missing::IsAnError => Err(Problem::of_file(
            path,
            "there is no such file",
            "create it, or name another one with --config FILE",
        )),
        source => Ok(source),
    }));
    match fragments(path) {
        Err(problem) => take(Err(problem)),
        Ok(paths) => paths.iter().for_each(|path| take(read_fragment(path))),
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
    let list = || -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let hidden = name.as_bytes().starts_with(b".");
            let path = directory.join(&name);
            if !hidden && path.extension() == Some(OsStr::new("toml")) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    };
    list().map_err(|error| {
        let message = format!("the directory cannot be read: {error}");
        let help = "make it a directory that can be read, or remove it";
        Problem::of_file(&directory, &message, help)
    })
}

fn read_fragment(path: &Path) -> Result<Option<Source>, Problem> {
    match read(path, FRAGMENT_HELP)? {
        // A dangling link, or a file removed since the directory was read.
        None => Err(Problem::of_file(
            path,
            "the file, or what it links to, does not exist",
            FRAGMENT_HELP,
        )),
        source => Ok(source),
    }
}

/// The file at `path`; `None` if it does not exist. `help` is the hint if it is unusable.
fn read(path: &Path, help: &str) -> Result<Option<Source>, Problem> {
    let refused = |message: &str, help: &str| Err(Problem::of_file(path, message, help));
    match read_bytes(path) {
        Ok(bytes) => decode(path, bytes).map(Some),
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(Failure::Io(error)) => {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let permit = "run as root, or let this user read it";
            let message = format!("cannot be read: {error}");
            refused(&message, if denied { permit } else { help })
        }
        Err(Failure::Kind(kind)) => refused(&format!("is {}, not a file", name_of(kind)), help),
        Err(Failure::TooLarge) => refused("is larger than 1 MiB, no configuration is", help),
    }
}

fn decode(path: &Path, bytes: Vec<u8>) -> Result<Source, Problem> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source {
            path: path.to_owned(),
            text,
        }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let length = error.utf8_error().error_len().unwrap_or(1);
            Err(Problem::at(
                path,
                error.as_bytes(),
                at..at + length,
                "this is not UTF-8",
                "help: save the file as UTF-8",
            ))
        }
    }
}

enum Failure {
    Io(io::Error),
    Kind(FileType),
    TooLarge,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let file = open(path).map_err(|error| match fs::metadata(path) {
        // Opening a socket fails with an error that does not name the cause.
        Ok(metadata) if metadata.file_type().is_socket() => Failure::Kind(metadata.file_type()),
        _ => Failure::Io(error),
    })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Failure::Kind(metadata.file_type()));
    }
    // The length is not sufficient: the file may grow, and in /proc every file has length 0.
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::TooLarge);
    }
    Ok(bytes)
}

/// `O_NONBLOCK`: do not wait for the writer of a FIFO. `O_NOCTTY`: do not acquire a terminal.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}
