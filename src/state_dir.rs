//! The state directory, which is determined only here.
//!
//! It is the directory of `history.path`, or by default the directory set by systemd
//! ([`systemd.exec(5)`, `StateDirectory=`]). A `fragwatch defrag` started by hand uses the same.
//!
//! | file | what |
//! |---|---|
//! | `history.db` | the history; its name is that of `history.path` |
//! | `fragwatch.lock` | allows one daemon per directory |
//! | `paused` | defragmentation is paused |
//! | `running-*.json` | runs in progress |
//! | `fleet-lock.json` | the lock of `maintenance.lock`, to be released |
//! | `defrag/*.hint` | extent-size hints to be restored |
//! | `defrag/*.fleet-lock` | the locks of `fragwatch defrag` by hand, to be released |
//! | `defrag/*.blockcopy` | copies under running VMs that have not ended |
//! | `protect/hints.json` | extent-size hints set by `fragwatch protect --apply`, and the former ones |
//! | `incidents/*.json` | incidents |
//! | `last-good.toml` | the last configuration that could be read; see [`given`] |
//!
//! [`systemd.exec(5)`, `StateDirectory=`]: https://www.freedesktop.org/software/systemd/man/systemd.exec.html

use std::path::{Path, PathBuf};

use crate::config::settings::History;

/// The directory if neither systemd nor the configuration sets one.
pub const DEFAULT: &str = "/var/lib/fragwatch";

/// The state directory of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    database: PathBuf,
}

impl StateDir {
    /// The directory for these settings.
    pub fn of(history: &History) -> StateDir {
        let name = history.path.file_name().unwrap_or_default();
        let database = match history.path == History::default().path {
            true => given().join(name),
            false => history.path.clone(),
        };
        StateDir { database }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("/"))
    }

    /// Path of the history database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Path of the file that exists while defragmentation is paused.
    pub fn pause_file(&self) -> PathBuf {
        self.path().join("paused")
    }

    /// Directory of the extent-size [hints](crate::defrag::hint) to be restored.
    pub fn hints(&self) -> PathBuf {
        self.path().join("defrag")
    }

    /// Directory of the [journal](crate::protect::journal) of hints that were set for good.
    pub fn protection(&self) -> PathBuf {
        self.path().join("protect")
    }

    /// Directory of the incident files.
    pub fn incidents(&self) -> PathBuf {
        self.path().join("incidents")
    }
}

/// The directory set by systemd, or [`DEFAULT`]; known before any configuration is read.
pub fn given() -> PathBuf {
    let given = std::env::var_os("STATE_DIRECTORY").filter(|given| !given.is_empty());
    given.map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_state_lies_beside_a_database_that_is_elsewhere() {
        let state = StateDir::of(&History {
            path: PathBuf::from("/srv/fw/past.sqlite"),
            ..History::default()
        });
        assert_eq!(state.path(), Path::new("/srv/fw"));
        assert_eq!(state.database(), Path::new("/srv/fw/past.sqlite"));
        assert_eq!(state.hints(), Path::new("/srv/fw/defrag"));
        assert_eq!(state.pause_file(), Path::new("/srv/fw/paused"));
    }
}
