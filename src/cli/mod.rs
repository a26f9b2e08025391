//! The command line: one file a subcommand.

pub mod args;
mod census;
mod chart;
mod check;
mod check_config;
mod client;
mod defrag;
mod drill;
mod generate;
mod history;
mod image_table;
pub mod incidents;
mod map_view;
mod planning;
mod progress;
mod run;
mod scan;
mod scan_json;
mod status;
mod terminal;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::config::{self, Settings};
use crate::state_dir::StateDir;
use args::{Arguments, Command};

/// The hidden subcommand that puts back extent-size hints.
pub(crate) const RESTORE_HINTS: &str = "restore-hints";
/// Everything could be done.
const SUCCESS: u8 = 0;
/// Something could not be read.
const INCOMPLETE: u8 = 1;
/// Wrong usage, a wrong configuration, or nothing could be done.
const FAILURE: u8 = 2;

/// Carries out a command line.
#[must_use]
pub fn main(arguments: &Arguments) -> ExitCode {
    let config = arguments.config.as_deref();
    let result = match &arguments.command {
        Command::Scan(scan) => match &scan.census {
            Some(path) => census::run(path, scan, config),
            None => scan::run(scan, config),
        },
        Command::Run => run::run(config),
        Command::Status { json } => status::run(*json, config),
        Command::Plan { json } => planning::run(*json, config),
        Command::Pause => pause("/v1/pause", config),
        Command::Resume => pause("/v1/resume", config),
        Command::History(arguments) => history::run(arguments, config),
        Command::Check { json } => check::run(*json, config),
        Command::Incidents { n, json, directory } => match directory {
            Some(directory) => incidents::run(*n, *json, directory),
            None => {
                let state = StateDir::of(&load_to_ask(config).history);
                incidents::run(*n, *json, &state.incidents())
            }
        },
        Command::Drill { act } => drill::run(*act, config),
        Command::Defrag(defrag) => defrag::run(defrag, config),
        Command::CheckConfig(check) => check_config::run(check, config),
        Command::Completions { shell } => generate::completions(*shell),
        Command::Man { directory } => generate::man(directory),
        Command::RestoreHints { hints } => Ok(defrag::restore_hints(hints)),
        Command::DefragJob => defrag::job(),
        Command::KeepAwake => {
            crate::defrag::awake::keep_parent_awake();
            Ok(SUCCESS)
        }
        Command::ProbeHelper => helper(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        // Whoever read our output has seen enough.
        Err(error) if terminal::is_broken_pipe(&error) => ExitCode::from(SUCCESS),
        Err(error) => {
            terminal::complain(&format!("{error:#}"));
            ExitCode::from(FAILURE)
        }
    }
}

fn helper() -> anyhow::Result<u8> {
    crate::probe::helper::serve()
        .context("the probe helper is started by fragwatch itself, on a socket")?;
    Ok(SUCCESS)
}

/// Pauses defragmentation, or lets it go on.
fn pause(path: &str, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_to_ask(config);
    let verb: String = client::post(&settings, path)?;
    terminal::print(&format!("Defragmentation is {verb}.\n"))?;
    Ok(SUCCESS)
}

/// The settings by which the daemon is found and asked. With a wrong configuration they are those
/// with which it was started then, as far as they can be read.
fn load_to_ask(path: Option<&Path>) -> Settings {
    let start = crate::daemon::Start::read_patiently(path);
    if let Some(error) = start.error {
        let first = error.lines().next().unwrap_or_default();
        terminal::complain(&format!("{first}; `fragwatch check-config` shows all"));
    }
    start.settings
}

/// The configuration of a command: the given file, or the default one if there is one.
fn load_config(path: Option<&Path>) -> Result<config::Loaded, config::ConfigError> {
    match path {
        Some(path) => config::load(path),
        None => config::load_default(),
    }
}
