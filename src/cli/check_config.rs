//! `fragwatch check-config`: is the configuration right, and if not, where and what instead.

use std::path::Path;

use super::args::CheckConfigArguments;
use super::{SUCCESS, load_config, terminal};

pub(super) fn run(arguments: &CheckConfigArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let loaded = load_config(arguments.file.as_deref().or(config))?;
    if arguments.show {
        terminal::print(&loaded.settings.to_toml())?;
        return Ok(SUCCESS);
    }
    let files: Vec<_> = loaded
        .files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let read = if files.is_empty() {
        "no file; the built-in defaults are in force".to_owned()
    } else {
        files.join(", ")
    };
    terminal::print(&format!("configuration is right: {read}\n"))?;
    Ok(SUCCESS)
}
