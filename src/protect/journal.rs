//! What `fragwatch protect --apply` has changed and what was there before: a file in the state
//! directory, written before each change.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::model::path::shown;
use crate::probe::located::Located;
use crate::sys::fsxattr::Hint;
use crate::sys::locks;

const NAME: &str = "hints.json";
const SCHEMA: u32 = 1;

/// A hint that was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file or directory.
    #[serde(flatten)]
    pub at: Located,
    /// Which of its hints.
    pub hint: Hint,
    /// The former hint in bytes; `None` if none was in force.
    pub before: Option<u32>,
    /// What was set, in bytes.
    pub set: u32,
    /// What earlier calls have set. One of these is in force if the last change was not made.
    #[serde(default)]
    pub earlier: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    schema: u32,
    entries: Vec<Entry>,
}

/// The entries, locked against other processes.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    _lock: File,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal in a directory, which is created.
    ///
    /// # Errors
    /// If another process has it open, or the file was damaged: then what was there is not known.
    pub fn open(directory: &Path) -> anyhow::Result<Journal> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot create {}", shown(directory)))?;
        let lock = File::open(directory).with_context(|| shown(directory))?;
        let is_locked = locks::lock(&lock);
        if !is_locked.with_context(|| format!("cannot lock {}", shown(directory)))? {
            return Err(anyhow!("another `fragwatch protect` is at work"));
        }
        remove_left_over(directory);
        let file = directory.join(NAME);
        let entries = read(&file).with_context(|| {
            let file = shown(&file);
            format!("{file}: what hints were there before cannot be read; restore the file or move it away")
        })?;
        Ok(Journal {
            file,
            _lock: lock,
            entries,
        })
    }

    /// All entries, the oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Notes a change to be made. If the hint is one that was set before, what was there at first
    /// counts, else others have changed it since; the former entry is returned.
    pub fn note(&mut self, mut entry: Entry) -> Option<Entry> {
        let former = self.entries.iter().find(|it| it.is_about(&entry)).cloned();
        if let Some(former) = &former {
            if entry.before.is_some_and(|is| former.has_set(is)) {
                entry.before = former.before;
                entry.earlier.clone_from(&former.earlier);
                entry.earlier.push(former.set);
            }
            self.forget(&entry);
        }
        self.entries.push(entry);
        former
    }

    /// Forgets a change that was not made or is undone.
    pub fn forget(&mut self, entry: &Entry) {
        self.entries.retain(|it| !it.is_about(entry));
    }

    /// Replaces the file.
    pub fn save(&self) -> io::Result<()> {
        let document = Document {
            schema: SCHEMA,
            entries: self.entries.clone(),
        };
        let text = serde_json::to_vec_pretty(&document)?;
        durable::replace(&self.file, &text, 0o600)
    }
}

/// Removes what a crash has left of a replacement. If it cannot be removed, it only takes up space.
fn remove_left_over(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if durable::is_left_over(&entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Entry {
    /// Whether a hint is one that this change or an earlier one has set.
    pub fn has_set(&self, hint: u32) -> bool {
        hint == self.set || self.earlier.contains(&hint)
    }

    fn is_about(&self, other: &Entry) -> bool {
        self.hint == other.hint && self.at.is_same(&other.at)
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<Entry>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: File = match open(file, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other?.into(),
    };
    let document: Document = serde_json::from_reader(io::BufReader::new(file))?;
    if document.schema != SCHEMA {
        return Err(anyhow!("its schema is {}, not {SCHEMA}", document.schema));
    }
    Ok(document.entries)
}
