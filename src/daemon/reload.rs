//! Rereads the configuration on a thread that may be left behind: /etc may be on a hanging file
//! system.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::start::main_file;
use crate::config::{self, ConfigError, Loaded};

const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The reader, and the reading under way.
pub(super) struct ConfigReader {
    config: Option<PathBuf>,
    reading: Option<Reading>,
    /// A reload was requested during the reading: the files may have changed since.
    again: bool,
}

struct Reading {
    task: JoinHandle<Result<Loaded, ConfigError>>,
    wait: Wait,
}

/// How long to wait for a reading.
#[derive(Clone, Copy)]
enum Wait {
    Until(Instant),
    /// As long as it takes: the daemon has started without this configuration.
    Forever,
    /// It was given up; its result is dropped.
    No,
}

impl ConfigReader {
    pub(super) fn new(config: Option<&Path>) -> Self {
        ConfigReader {
            config: config.map(Path::to_owned),
            reading: None,
            again: false,
        }
    }

    /// Begins to read the configuration that could not be read in time for the start.
    pub(super) fn read_late(&mut self) {
        self.start(Wait::Forever);
    }

    pub(super) fn path(&self) -> &Path {
        main_file(self.config.as_deref())
    }

    /// Begins to read the configuration. Fails if that of the start or one that was given up hangs.
    pub(super) fn request(&mut self) -> anyhow::Result<()> {
        match self.reading.as_ref().map(|reading| reading.wait) {
            None => self.start(in_time()),
            Some(Wait::Until(_)) => self.again = true,
            Some(Wait::Forever | Wait::No) => bail!(
                "the configuration cannot be read: the file system that it lies on does not answer"
            ),
        }
        Ok(())
    }

    fn start(&mut self, wait: Wait) {
        let config = self.config.clone();
        let read = move || {
            // jiff caches the rules of time zones, and the system's time zone, for five minutes
            // (jiff 0.2, DEFAULT_TTL in src/tz/db/zoneinfo/enabled.rs and src/tz/system/mod.rs).
            jiff::tz::db().reset();
            jiff::tz::reset_system_time_zone_cache();
            config::load(config.as_deref())
        };
        self.reading = Some(Reading {
            task: tokio::task::spawn_blocking(read),
            wait,
        });
    }

    /// Waits until the configuration is read or the reading is given up; forever if none is under
    /// way. The result of a reading that was given up is dropped. Cancel-safe.
    pub(super) async fn read(&mut self) -> anyhow::Result<Loaded> {
        loop {
            let Some(Reading { task, wait }) = &mut self.reading else {
                return std::future::pending().await;
            };
            let read = match *wait {
                Wait::Until(deadline) => timeout_at(deadline, task).await.ok(),
                Wait::Forever => Some(task.await),
                Wait::No => {
                    let _ = task.await;
                    self.reading = None;
                    continue;
                }
            };
            let Some(read) = read else {
                (*wait, self.again) = (Wait::No, false);
                bail!("reading it takes longer than {READ_TIMEOUT:?}: does its file system hang?");
            };
            self.reading = None;
            if !std::mem::take(&mut self.again) {
                return Ok(read??);
            }
            self.start(in_time());
        }
    }
}

fn in_time() -> Wait {
    Wait::Until(Instant::now() + READ_TIMEOUT)
}
