//! The command line: one file per subcommand.
//!
//! A new subcommand is a variant of [`args::Command`], a line in [`main`], and a file here with a
//! function `run` that returns the exit code. Its manual page, completions and `--help` follow from
//! the variant; `packaging/man/fragwatch-NAME.md`, listed in [`manual`], adds sections to the page.
//! Its requests to the daemon go through [`client`]; what it prints through [`output`].

pub mod args;
mod census;
mod chart;
mod check;
mod check_config;
mod client;
mod command;
mod defrag;
mod doctor;
mod drill;
mod fleet_lock;
mod generate;
mod history;
mod image_table;
mod images;
pub mod incidents;
mod manual;
mod map_view;
mod output;
mod planning;
mod progress;
mod protect;
mod protect_audit;
mod protect_rewrite;
mod protect_view;
mod redact;
mod report;
mod scan;
mod scan_json;
mod space;
mod status;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::state_dir::StateDir;
use args::{Arguments, Command};
use command::load_to_ask;
use output::{FAILURE, SUCCESS};

/// Carries out a command line.
pub fn main(arguments: &Arguments) -> ExitCode {
    let config = arguments.config.as_deref();
    let result = match &arguments.command {
        Command::Scan(scan) => match &scan.census {
            Some(path) => census::run(path, scan, config),
            None => scan::run(scan, config),
        },
        Command::Run => crate::daemon::run(config).map(|()| SUCCESS),
        Command::Status(arguments) => status::run(arguments, config),
        Command::Plan(form) => planning::run(form.json, config),
        Command::Space(space) => space::run(space, config),
        Command::Protect(protect) => protect::run(protect, config),
        Command::Pause => pause("/v1/pause", config),
        Command::Resume => pause("/v1/resume", config),
        Command::History(arguments) => history::run(arguments, config),
        Command::Check(form) => check::run(form.json, config),
        Command::Incidents { n, json, directory } => match directory {
            Some(directory) => incidents::run(*n, *json, directory),
            None => {
                let state = StateDir::of(&load_to_ask(config).history);
                incidents::run(*n, *json, &state.incidents())
            }
        },
        Command::Doctor(doctor) => doctor::run(doctor, config),
        Command::Drill { act } => drill::run(*act, config),
        Command::Defrag(defrag) => defrag::run(defrag, config),
        Command::Report(report) => report::run(report, config),
        Command::CheckConfig(check) => check_config::run(check, config),
        Command::Completions { shell } => generate::completions(*shell),
        Command::Man { directory } => generate::man(directory),
        Command::RestoreHints { hints, suspended } => Ok(defrag::restore_hints(hints, *suspended)),
        Command::DefragJob => defrag::job(),
        Command::BlockcopyWatchdog { note } => {
            crate::defrag::blockcopy::watchdog::watch(note);
            Ok(SUCCESS)
        }
        Command::KeepAwake => {
            crate::defrag::awake::keep_parent_awake();
            Ok(SUCCESS)
        }
        Command::ProbeHelper => helper(),
        Command::DoctorHelper => crate::doctor::xfs::serve()
            .map(|()| SUCCESS)
            .map_err(Into::into),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::from(SUCCESS),
        Err(error) => {
            output::eprint_error(&format!("{error:#}"));
            ExitCode::from(FAILURE)
        }
    }
}

fn helper() -> anyhow::Result<u8> {
    crate::probe::helper::serve()
        .context("the probe helper is started by fragwatch itself, on a socket")?;
    Ok(SUCCESS)
}

fn pause(path: &str, config: Option<&Path>) -> anyhow::Result<u8> {
    let state: String = client::post(&load_to_ask(config), path)?;
    output::print(&format!("Defragmentation is {state}.\n"))?;
    Ok(SUCCESS)
}
