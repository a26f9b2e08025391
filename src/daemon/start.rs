//! The settings that the daemon starts with. A wrong configuration prevents defragmentation only:
//! the rescue of the host does not depend on it.
//!
//! | configuration | in force | maintenance windows |
//! |---|---|---|
//! | right | it | as configured |
//! | wrong in `[maintenance]` alone | the rest of it | none |
//! | cannot be read, or wrong elsewhere | the last one that was right | none |
//! | the same, and there is no such copy | the defaults | none |
//! | empty, and the copy is of one that was not | the last one that was right | none |
//!
//! A configuration that arrives only later, because a disk is slow at boot, is then taken as by a reload.
//!
//! The copy is in the [state directory](crate::state_dir). Reading it and reading the configuration
//! take at most [`READ_TIMEOUT`] each: their disks may hang.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::blocking::on_thread;
use crate::background::{Background, Jobs, STACK};
use crate::config::{self, ConfigError, Loaded, Settings};
use crate::durable;
use crate::model::path::shown;
use crate::serve::status::InForce;
use crate::state_dir;

const READ_TIMEOUT: Duration = Duration::from_secs(2);
const COPY: &str = "last-good.toml";
/// The text of a copy whose main file was empty.
const BLANK: &str = "# Its main file was empty.\n";
/// For root only: it may hold the commands of hooks.
const MODE: u32 = 0o600;

pub(crate) struct Start {
    /// With the settings in force.
    pub(crate) loaded: Loaded,
    pub(super) in_force: InForce,
    /// What is wrong with the configuration.
    pub(crate) error: Option<String>,
    /// Whether the configuration could not be read in time.
    pub(super) is_late: bool,
}

impl Start {
    /// Reads the configuration; never fails or hangs.
    pub(super) fn read(config: Option<&Path>) -> Start {
        let path = config.map(Path::to_owned);
        let read = within(READ_TIMEOUT, move || {
            config::load_to_start(path.as_deref()).map_err(|error| error.to_string())
        });
        let is_late = read.is_none();
        let read = read.unwrap_or_else(|| Err(no_answer(config)));
        let copy = copy_of(config);
        let copy = || within(READ_TIMEOUT, move || copy.read()).flatten();
        Start {
            is_late,
            ..Start::from(config, read, copy)
        }
    }

    /// As [`Start::read`], for a client command, which may wait for a disk.
    pub(crate) fn read_patiently(config: Option<&Path>) -> Start {
        let read = config::load_to_start(config).map_err(|error| error.to_string());
        Start::from(config, read, || copy_of(config).read())
    }

    fn from(
        config: Option<&Path>,
        read: Result<(Loaded, Option<ConfigError>), String>,
        copy: impl FnOnce() -> Option<Loaded>,
    ) -> Start {
        let kept = match &read {
            Ok((loaded, _)) if !loaded.is_blank => None,
            _ => copy(),
        };
        let read = match (read, &kept) {
            (Ok(_), Some(kept)) if !kept.is_blank => {
                Err(config::blank_file(main_file(config)).to_string())
            }
            (read, _) => read,
        };
        let (mut loaded, in_force, error) = match (read, kept) {
            (Ok((loaded, None)), _) => (loaded, InForce::Configured, None),
            (Ok((loaded, Some(error))), _) => {
                (loaded, InForce::WithoutMaintenance, Some(error.to_string()))
            }
            (Err(error), Some(kept)) => (kept, InForce::LastGood, Some(error)),
            (Err(error), None) => {
                let defaults = Loaded {
                    settings: Settings::default(),
                    files: Vec::new(),
                    is_blank: true,
                };
                (defaults, InForce::Defaults, Some(error))
            }
        };
        if error.is_some() {
            // The operator may have changed the windows since.
            loaded.settings.maintenance.windows.clear();
        }
        Start {
            loaded,
            in_force,
            error,
            is_late: false,
        }
    }
}

fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    on_thread("configuration", work)
        .ok()?
        .recv_timeout(time)
        .ok()
}

/// The configuration file, if `config` is what was given on the command line.
pub(super) fn main_file(config: Option<&Path>) -> &Path {
    config.unwrap_or(Path::new(config::DEFAULT_PATH))
}

fn no_answer(config: Option<&Path>) -> String {
    format!(
        "{}: could not be read within {} s, its disk may hang; it is taken as soon as it is read",
        shown(main_file(config)),
        READ_TIMEOUT.as_secs()
    )
}

#[derive(Debug, Clone)]
struct Copy {
    path: PathBuf,
    head: String,
}

fn copy_of(config: Option<&Path>) -> Copy {
    // The name distinguishes the copies of two configurations.
    let head = format!(
        "# Written by fragwatch after each configuration that was right, and read by it at a start \
         with one that is wrong.\n# The configuration: {}\n",
        shown(main_file(config))
    );
    Copy {
        path: state_dir::given().join(COPY),
        head,
    }
}

impl Copy {
    fn read(&self) -> Option<Loaded> {
        let (settings, text) = config::load_copy(&self.path, &self.head)?;
        Some(Loaded {
            settings,
            files: Vec::new(),
            is_blank: text[self.head.len()..].starts_with(BLANK),
        })
    }

    fn write(&self, settings: &Settings, is_blank: bool) {
        let blank = if is_blank { BLANK } else { "" };
        let text = format!("{}{blank}\n{}", self.head, settings.to_toml());
        match durable::replace(&self.path, text.as_bytes(), MODE) {
            Ok(()) => info!(
                "a copy of the configuration is kept in {}",
                shown(&self.path)
            ),
            Err(error) => warn!(
                "{}: the copy of the configuration cannot be written: {error}; with a wrong \
                 configuration the next start would be with an older one, or with the defaults",
                shown(&self.path)
            ),
        }
    }
}

/// Writes the copy on a separate thread, because its disk may hang.
pub(super) struct LastGood(Option<Background<(Settings, bool)>>);

impl LastGood {
    pub(super) fn start(config: Option<&Path>) -> LastGood {
        let copy = copy_of(config);
        let keep = move |jobs: &mut Jobs<(Settings, bool)>| {
            jobs.for_each(|(settings, is_blank)| copy.write(&settings, is_blank));
        };
        LastGood(Background::start("last-good", 1, STACK, keep).ok())
    }

    /// Writes a copy of the settings; `is_blank` if the main file is empty.
    pub(super) fn keep(&self, settings: &Settings, is_blank: bool) {
        if let Some(queue) = &self.0 {
            queue.push_with(|jobs| {
                // Only the newest counts.
                jobs.clear();
                jobs.push_back((settings.clone(), is_blank));
                true
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong() -> Result<(Loaded, Option<ConfigError>), String> {
        Err("f.toml:1:1: no".to_owned())
    }

    #[test]
    fn a_copy_is_of_one_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let copy = |config: &str| Copy {
            path: directory.path().join(COPY),
            ..copy_of(Some(Path::new(config)))
        };
        assert_eq!(copy("/etc/a.toml").read(), None);
        let mut settings = Settings::default();
        settings.rescue.enabled = false;
        settings.images.paths = vec!["/srv/\"a\"".to_owned()];
        for is_blank in [true, false] {
            copy("/etc/a.toml").write(&settings, is_blank);
            let read = copy("/etc/a.toml").read().unwrap();
            assert_eq!((read.settings, read.is_blank), (settings.clone(), is_blank));
        }
        assert_eq!(copy("/etc/b.toml").read(), None);
    }

    #[test]
    fn without_a_copy_the_defaults_count_and_rescue() {
        let start = Start::from(None, wrong(), || None);
        assert_eq!(start.in_force, InForce::Defaults);
        assert!(start.loaded.settings.rescue.enabled && !start.loaded.settings.rescue.dry_run);
        assert!(start.loaded.settings.maintenance.windows.is_empty());
    }

    #[test]
    fn a_disk_that_hangs_is_not_waited_for() {
        let (_never, forever) = std::sync::mpsc::channel::<()>();
        let hangs = move || forever.recv().is_ok();
        assert_eq!(within(Duration::from_millis(20), hangs), None);
        assert_eq!(within(Duration::from_secs(60), || 5), Some(5));
    }
}
