//! Rereads the configuration on a thread that may be left behind: /etc may be on a hanging file
//! system.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::config::{self, ConfigError, Loaded};

const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The reader, and the reading under way.
pub(super) struct ConfigReader {
    config: Option<PathBuf>,
    reading: Option<Reading>,
    /// A reload was requested during the reading: the files may have changed since.
    again: bool,
    /// The reading under way is of the configuration that the daemon should have started with: it is
    /// taken whenever it arrives.
    is_late: bool,
}

struct Reading {
    task: JoinHandle<Result<Loaded, ConfigError>>,
    /// `None` once the reading was given up.
    deadline: Option<Instant>,
}

impl ConfigReader {
    pub(super) fn new(config: Option<&Path>) -> Self {
        ConfigReader {
            config: config.map(Path::to_owned),
            reading: None,
            again: false,
            is_late: false,
        }
    }

    /// Begins to read the configuration again that could not be read in time for the start.
    pub(super) fn read_late(&mut self) {
        self.start();
        self.is_late = true;
        if let Some(reading) = &mut self.reading {
            reading.deadline = None;
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.config
            .as_deref()
            .unwrap_or(Path::new(config::DEFAULT_PATH))
    }

    /// Begins to read the configuration. Fails if an earlier reading was given up and still hangs.
    pub(super) fn request(&mut self) -> anyhow::Result<()> {
        match &self.reading {
            None => self.start(),
            Some(reading) if reading.deadline.is_some() => self.again = true,
            Some(_) => bail!(
                "the configuration cannot be read: the file system that it lies on does not answer"
            ),
        }
        Ok(())
    }

    fn start(&mut self) {
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
            deadline: Some(Instant::now() + READ_TIMEOUT),
        });
    }

    /// Waits until the configuration is read or the reading is given up; forever if none is under
    /// way. The result of a reading that was given up is dropped. Cancel-safe.
    pub(super) async fn read(&mut self) -> anyhow::Result<Loaded> {
        loop {
            let Some(Reading { task, deadline }) = &mut self.reading else {
                return std::future::pending().await;
            };
            let Some(until) = *deadline else {
                let read = task.await;
                self.reading = None;
                if std::mem::take(&mut self.is_late) {
                    return Ok(read??);
                }
                continue;
            };
            let Ok(read) = timeout_at(until, task).await else {
                (*deadline, self.again) = (None, false);
                bail!("reading it takes longer than {READ_TIMEOUT:?}: does its file system hang?");
            };
            self.reading = None;
            if !std::mem::take(&mut self.again) {
                return Ok(read??);
            }
            self.start();
        }
    }
}
