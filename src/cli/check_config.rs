//! `fragwatch check-config`: checks the configuration; an error states place and remedy.

use std::path::Path;

use super::args::CheckConfigArguments;
use super::command::load_config;
use super::output::{self, SUCCESS};

pub(super) fn run(arguments: &CheckConfigArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let loaded = load_config(arguments.file.as_deref().or(config))?;
    if arguments.show {
        output::print(&loaded.settings.to_toml())?;
        return Ok(SUCCESS);
    }
    let files = loaded.files.iter().map(|file| file.display().to_string());
    let files: Vec<_> = files.collect();
    let read = if files.is_empty() {
        "no file; the built-in defaults are in force".to_owned()
    } else {
        files.join(", ")
    };
    output::print(&format!("configuration is right: {read}\n"))?;
    Ok(SUCCESS)
}
