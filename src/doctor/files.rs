//! The small files that the checks use, read once.
//!
//! A name is a path below the root of the host; a component of it may be `*`, which stands for every
//! entry of that directory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::outcome::NotChecked;
use crate::model::path::shown;
use crate::sys::proc;

/// What was read, or why it could not be.
pub type Reading<T> = Result<T, NotChecked>;

/// No file of the kernel that is read here is longer; a longer one is cut.
const LONGEST: u64 = 4 << 20;
/// Entries of a directory that are read.
const MOST_ENTRIES: usize = 1000;

/// The host: its root directory, or that of a made-up tree.
#[derive(Debug, Clone)]
pub struct Host(pub PathBuf);

impl Host {
    /// Where a name lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The contents of a file; `None` if this kernel does not have it, or has it switched off.
    pub fn read(&self, name: &str) -> Reading<Option<Vec<u8>>> {
        match read(&self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(NotChecked::because(format!("/{name}: {error}"))),
        }
    }

    /// The names that a pattern stands for, with what each `*` stands for.
    fn names(&self, pattern: &str) -> Reading<Vec<(String, String)>> {
        let Some((directory, rest)) = pattern.split_once("/*") else {
            return Ok(vec![(pattern.to_owned(), String::new())]);
        };
        let entries = match fs::read_dir(self.path(directory)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(NotChecked::because(format!("/{directory}: {error}"))),
        };
        let entries = entries.flatten().take(MOST_ENTRIES);
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names
            .map(|name| (format!("{directory}/{name}{rest}"), name))
            .collect();
        names.sort();
        Ok(names)
    }
}

/// Missing, or without PSI: its files exist, but cannot be opened (psi_io_open, kernel/sched/psi.c).
fn is_absent(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::NotFound,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::Unsupported,
    ];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// Reads a file from its beginning, without waiting for a writer.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A named pipe in the place of a file must not be waited for.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// A file that a pattern stands for.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name below the root.
    pub name: String,
    /// What `*` stands for.
    pub star: String,
    /// `None` if it has vanished or is not there.
    pub text: Option<Vec<u8>>,
}

/// Files by the pattern that they were asked for by.
#[derive(Debug, Clone, Default)]
pub struct Files(BTreeMap<&'static str, Reading<Vec<Entry>>>);

impl Files {
    /// Reads what a pattern stands for.
    pub fn read(&mut self, host: &Host, pattern: &'static str) {
        // Directories beside the files that are meant.
        let is_file = |name: &str| !pattern.ends_with("/*") || host.path(name).is_file();
        let entries = host.names(pattern).and_then(|names| {
            let names = names.into_iter().filter(|(name, _)| is_file(name));
            let entries = names.map(|(name, star)| {
                let text = host.read(&name)?;
                Ok(Entry { name, star, text })
            });
            entries.collect()
        });
        self.0.insert(pattern, entries);
    }

    /// Takes over what others have read.
    pub fn extend(&mut self, other: Files) {
        self.0.extend(other.0);
    }

    /// All files of a pattern.
    pub fn all(&self, pattern: &str) -> Reading<&[Entry]> {
        match self.0.get(pattern) {
            Some(Ok(entries)) => Ok(entries),
            Some(Err(why)) => Err(why.clone()),
            None => Err(NotChecked::because(format!(
                "/{pattern} was not read in time"
            ))),
        }
    }

    /// The contents of a file; `None` if the host does not have it.
    pub fn bytes(&self, name: &str) -> Reading<Option<&[u8]>> {
        let entry = self.all(name)?.first();
        Ok(entry.and_then(|entry| entry.text.as_deref()))
    }

    /// The number in a file of one number, which may be negative.
    pub fn number(&self, name: &str) -> Reading<Option<i64>> {
        let Some(text) = self.bytes(name)? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(text.trim_ascii());
        let number = text.ok().and_then(|text| text.parse().ok());
        let unknown = || NotChecked::because(format!("/{name} is no number"));
        number.map(Some).ok_or_else(unknown)
    }

    /// A line of a name and a number: of /proc/vmstat, /proc/meminfo.
    pub fn counter(&self, name: &str, line: &str) -> Reading<Option<u64>> {
        let Some(text) = self.bytes(name)? else {
            return Ok(None);
        };
        let mut counters = proc::counters(text);
        Ok(counters.find_map(|(name, value)| (name == line.as_bytes()).then_some(value)))
    }

    /// The words of a file as text on one line, for what was read.
    pub fn shown(&self, name: &str) -> String {
        let text = self.bytes(name).ok().flatten().unwrap_or_default();
        let text = crate::model::path::printable(text.trim_ascii());
        format!("{} = {text}", shown(&Path::new("/").join(name)))
    }
}
