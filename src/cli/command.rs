//! Shared by the subcommands: loading the configuration, and a runtime for one future.

use std::path::Path;

use super::output;
use crate::config::{self, ConfigError, Loaded, Settings};
use crate::daemon::Start;

/// Loads the configuration in `path`, or the default one if it exists.
pub(super) fn load_config(path: Option<&Path>) -> Result<Loaded, ConfigError> {
    config::load(path)
}

/// The settings for contacting the daemon. Reports an invalid configuration, but reads what it can.
pub(super) fn load_to_ask(path: Option<&Path>) -> Settings {
    let start = Start::read_patiently(path);
    if let Some(error) = start.error {
        let first = error.lines().next().unwrap_or_default();
        output::eprint_error(&format!("{first}; `fragwatch check-config` shows all"));
    }
    start.loaded.settings
}

/// Runs a future on this thread. Fails also if the runtime cannot be created.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}
