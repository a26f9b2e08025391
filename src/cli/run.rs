//! `fragwatch run`: the daemon.

use std::path::Path;

use super::SUCCESS;

pub(super) fn run(config: Option<&Path>) -> anyhow::Result<u8> {
    crate::daemon::run(config)?;
    Ok(SUCCESS)
}
