//! `fragwatch protect`: how many extents images can still gain, and the hints that limit it.

use std::path::Path;

use anyhow::bail;

use super::args::ProtectArguments;
use super::command::load_config;
use super::output::{self, INCOMPLETE, SUCCESS};
use super::protect_audit::{Audit, AuditedPlace};
use super::{protect_rewrite, protect_view as view};
use crate::config::Settings;
use crate::defrag::HostInterfaces;
use crate::protect::apply::{self, Applied, Undone};
use crate::protect::journal::Journal;
use crate::protect::plan::Change;
use crate::state_dir::StateDir;

pub(super) fn run(arguments: &ProtectArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    if arguments.rewrite.is_some() || arguments.rewrite_finish.is_some() {
        return protect_rewrite::run(arguments, settings);
    }
    let is_root = rustix::process::geteuid().is_root();
    if (arguments.apply || arguments.undo) && !is_root {
        bail!("setting and restoring hints needs root");
    }
    if arguments.undo {
        return undo(&settings, arguments.json);
    }
    let mut audit = Audit::new(&settings, &arguments.paths, arguments.force)?;
    if !arguments.apply {
        match arguments.json {
            true => output::print_json(&view::document(&audit))?,
            false => output::print(&view::audit(&audit, output::width()))?,
        }
        audit.found.print_errors();
        return Ok(audit.found.exit_code());
    }
    if !arguments.json {
        output::print(&view::plans(&audit, output::width()))?;
    }
    let done = apply_all(&mut audit, &settings);
    match arguments.json {
        true => output::print_json(&view::document(&audit))?,
        false => output::print(&view::applied(&audit))?,
    }
    // What was set before it failed is reported first.
    done?;
    audit.found.print_errors();
    Ok(exit_code(&audit))
}

fn apply_all(audit: &mut Audit, settings: &Settings) -> anyhow::Result<()> {
    let state = StateDir::of(&settings.history);
    let host = HostInterfaces::new(state.hints());
    let mut journal = Journal::open(&state.protection())?;
    for place in &mut audit.places {
        if place.plan.obstacle.is_none() {
            let applied = &mut place.applied;
            let report = |change: &Change, done| applied.push((change.clone(), done));
            apply::apply(&place.plan.changes, &mut journal, &host, report)?;
        }
    }
    Ok(())
}

fn exit_code(audit: &Audit) -> u8 {
    let refused = |(_, done): &(Change, Applied)| matches!(done, Applied::Refused(_));
    let mut places = audit.places.iter();
    let is_incomplete =
        |place: &AuditedPlace| place.plan.obstacle.is_some() || place.applied.iter().any(refused);
    match places.any(is_incomplete) || !audit.found.errors.is_empty() {
        true => INCOMPLETE,
        false => SUCCESS,
    }
}

fn undo(settings: &Settings, json: bool) -> anyhow::Result<u8> {
    let state = StateDir::of(&settings.history);
    let host = HostInterfaces::new(state.hints());
    let mut journal = Journal::open(&state.protection())?;
    let mut undone = Vec::new();
    apply::undo(&mut journal, &host, |entry, done| {
        undone.push((entry.clone(), done))
    })?;
    match json {
        true => output::print_json(&view::undone_document(&undone))?,
        false => output::print(&view::undone(&undone))?,
    }
    let failed = undone
        .iter()
        .any(|(_, done)| matches!(done, Undone::Failed(_)));
    Ok(if failed { INCOMPLETE } else { SUCCESS })
}
