//! Where state is kept: one directory, found here and nowhere else.
//!
//! It is the directory of `history.path`. Where that is the default, the directory that systemd
//! gives ([`systemd.exec(5)`, `StateDirectory=`]) takes its place. So the daemon and a
//! `fragwatch defrag` that is started by hand find the same one.
//!
//! | file | what |
//! |---|---|
//! | `history.db` | the history; its name is that of `history.path` |
//! | `fragwatch.lock` | one daemon a directory |
//! | `paused` | defragmentation is paused |
//! | `running-*.json` | runs under way |
//! | `defrag/*.hint` | extent-size hints to be restored |
//! | `incidents/*.json` | incidents |
//! | `last-good.toml` | the last configuration that could be read; see [`given`] |
//!
//! [`systemd.exec(5)`, `StateDirectory=`]: https://www.freedesktop.org/software/systemd/man/systemd.exec.html

use std::path::{Path, PathBuf};

use crate::config::settings::History;

/// Where it is if neither systemd nor the configuration names one.
pub const DEFAULT: &str = "/var/lib/fragwatch";

/// The state directory of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    database: PathBuf,
}

impl StateDir {
    /// The one that these settings name.
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

    /// The database of the history.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// The file that is there while defragmentation is paused.
    pub fn pause_file(&self) -> PathBuf {
        self.path().join("paused")
    }

    /// The directory of the [hints](crate::defrag::hint) to be restored.
    pub fn hints(&self) -> PathBuf {
        self.path().join("defrag")
    }

    /// The directory of the incident files.
    pub fn incidents(&self) -> PathBuf {
        self.path().join("incidents")
    }
}

/// The directory that systemd gives, or [`DEFAULT`]: known before any configuration is read.
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
