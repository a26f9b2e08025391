//! `fragwatch check-config`: checks the configuration; an error states place and remedy.

use std::path::Path;

use super::args::CheckConfigArguments;
use super::command::load_config;
use super::output::{self, SUCCESS};
use crate::klog::file::last_lines;
use crate::klog::head::{self, Reading};
use crate::model::path::printable;

pub(super) fn run(arguments: &CheckConfigArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let loaded = load_config(arguments.file.as_deref().or(config))?;
    if arguments.show {
        // A name in it could control the terminal.
        let text = loaded.settings.to_toml();
        let lines = text.lines().map(|line| printable(line.as_bytes()) + "\n");
        output::print(&lines.collect::<String>())?;
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
    for file in &loaded.settings.klog.files {
        if let Some(fault) = fault_of(file) {
            output::print(&format!("klog.files: {}: {fault}\n", file.display()))?;
        }
    }
    Ok(SUCCESS)
}

/// Why the last lines of a log file cannot be followed. No fault is that they are another program's.
fn fault_of(file: &Path) -> Option<String> {
    let lines = match last_lines(file) {
        Ok(lines) => lines,
        Err(down) => return Some(down.to_string()),
    };
    let last = lines.get(lines.len().saturating_sub(100)..)?;
    let is_unknown = |line: &Vec<u8>| head::read(&head::without_colours(line)) == Reading::Unknown;
    (!last.is_empty() && last.iter().all(is_unknown)).then(|| {
        format!(
            "the form of its last {} lines is not known; see klog.files in fragwatch.toml(5)",
            last.len()
        )
    })
}
