//! `fragwatch plan`: prints the daemon's plan. Without a daemon, or for another configuration, it
//! plans by the current counts alone, so that a configuration can be tried before use. Also
//! determines the engines that the planner passes over for an image defragmented by hand.

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;

use super::client;
use super::command::load_config;
use super::images::{self, Found, Image};
use super::output::{self, SUCCESS};
use crate::config::Settings;
use crate::config::settings::Defrag;
use crate::daemon::{is_recent, read_last_incident, read_runs};
use crate::defrag::job::PassedOver;
use crate::defrag::pressure::{Gauge, before_runs};
use crate::defrag::{self, guard, usable};
use crate::discover::mounts::MountTable;
use crate::maintenance::gather::{self, PastRuns};
use crate::maintenance::{self, Allowed, Calendar, ImageFacts, JitterSeed, PlanFacts, plan};
use crate::model::path::shown;
use crate::model::{Engine, Filesystem, FilesystemKind, Owner, ReasonCode, Refusal, Severity};
use crate::serve::plan::{JudgedBy, render, render_json};
use crate::state_dir::StateDir;
use crate::sys;

pub(super) fn run(json: bool, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    if config.is_none() {
        let path = match json {
            true => "/v1/plan".to_owned(),
            false => format!("/v1/plan?width={}", output::width().unwrap_or(0)),
        };
        match client::get_text(&settings, &path) {
            Err(error) if error.is::<client::NotRunning>() => {}
            text => return Ok(output::print(&text?).map(|()| SUCCESS)?),
        }
    }
    let why = config.map_or("no daemon answers", |_| "a plan with --config");
    output::eprint_error(&format!("judged by the counts of this moment alone: {why}"));
    by_counts(&settings, json)
}

fn by_counts(settings: &Settings, json: bool) -> anyhow::Result<u8> {
    let mut found = images::configured(settings)?;
    let is_candidate = |image: &Image, on: &Filesystem| is_candidate(image, on, settings);
    // Shared blocks and holes show only in the map, which an engine would read too.
    images::read_wanted_maps(settings, &mut found, is_candidate)?;
    images::read_wanted_spaces(settings, &mut found, is_candidate)?;
    let (calendar, now) = (calendar(settings), Timestamp::now());
    let facts = facts(settings, &found, &calendar, now);
    let plan = plan(&facts, &settings.defrag);
    let engines = &facts.engines;
    output::print(&match json {
        true => render_json(&plan, engines, &calendar, now, JudgedBy::Counts),
        false => render(&plan, engines, &calendar, now, output::width()),
    })?;
    if !json {
        found.print_errors();
    }
    Ok(found.exit_code())
}

/// The maintenance windows of this host.
pub(super) fn calendar(settings: &Settings) -> Calendar {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Calendar::new(&settings.maintenance, JitterSeed::from_machine_id(&machine))
}

fn is_candidate(image: &Image, filesystem: &Filesystem, settings: &Settings) -> bool {
    image.severity >= settings.defrag.from && filesystem.kind == FilesystemKind::Xfs
}

fn host_facts(settings: &Settings, calendar: &Calendar, now: Timestamp) -> PlanFacts {
    PlanFacts {
        now,
        zone: calendar.zone().clone(),
        allowed: Allowed::by(calendar, now),
        incident: false,
        recent_incident: false,
        paused: false,
        not_ready: None,
        engines: usable::engines(&settings.defrag, &defrag::HostInterfaces::to_look_at()),
        images: Vec::new(),
        filesystems: Vec::new(),
    }
}

/// The runs in the history; none (estimates are then assumed, and marked) if it is unreadable.
fn past_runs(settings: &Settings) -> PastRuns {
    let state = StateDir::of(&settings.history);
    PastRuns::new(read_runs(state.database()).unwrap_or_default())
}

fn facts(settings: &Settings, found: &Found, calendar: &Calendar, now: Timestamp) -> PlanFacts {
    let state = StateDir::of(&settings.history);
    let runs = past_runs(settings);
    let speeds = runs.speeds();
    let stalled = |mount: &str| found.errors.iter().any(|fault| shown(&fault.path) == mount);
    let pressures = io_pressures(settings, found);
    let filesystems = found.filesystems.iter().map(|(device, filesystem)| {
        let stalled = stalled(&shown(&filesystem.mount));
        let pressure = pressures.get(filesystem.mount.as_path()).copied();
        let space = found.spaces.get(device).cloned();
        gather::filesystem(filesystem, stalled, None, pressure, &speeds, space)
    });
    let images = found.images.iter().filter_map(|image| {
        let filesystem = found.filesystem(image)?;
        let mut facts = image_facts(image, &runs)?;
        if is_candidate(image, filesystem, settings) {
            facts.obstacles.extend(obstacle(image, settings));
        }
        if !settings.defrag.hook_before.is_empty() {
            facts.user = None;
        }
        Some(facts)
    });
    PlanFacts {
        recent_incident: is_recent(read_last_incident(state.database()), now),
        paused: state.pause_file().exists(),
        images: images.collect(),
        filesystems: filesystems.collect(),
        ..host_facts(settings, calendar, now)
    }
}

/// The relevant I/O pressure on each mounted file system.
fn io_pressures<'f>(settings: &Settings, found: &'f Found) -> HashMap<&'f Path, f64> {
    let host = defrag::HostInterfaces::to_look_at();
    let mounts = MountTable::new(sys::mounts::read(&host.proc).unwrap_or_default());
    let gauged = found.filesystems.values().filter_map(|filesystem| {
        let mount = filesystem.mount.as_path();
        Some((mount, Gauge::new(mounts.of(mount)?.device)))
    });
    let (places, mut gauges): (Vec<_>, Vec<_>) = gauged.unzip();
    let mut gauges: Vec<_> = gauges.iter_mut().collect();
    let pressures = before_runs(&mut gauges, &host, settings.defrag.max_io_pressure);
    let known = places.into_iter().zip(pressures);
    known
        .filter_map(|(place, pressure)| Some((place, pressure?.counts)))
        .collect()
}

/// `None` if the image cannot be identified; the daemon does not plan it either.
fn image_facts(image: &Image, runs: &PastRuns) -> Option<ImageFacts> {
    let nobody = Owner::default();
    let owner = image.owner.as_ref().unwrap_or(&nobody);
    let facts = gather::image(
        &image.sample,
        owner,
        image.map.as_ref(),
        image.outlook,
        runs,
    )?;
    Some(ImageFacts {
        severity: image.severity,
        ..facts
    })
}

/// The engines that the planner passes over for an image defragmented by hand, by its current
/// state; see [`maintenance::passed_over`]. Empty if the image cannot be examined.
pub(super) fn passed_over(settings: &Settings, image: &Path, always: bool) -> Vec<PassedOver> {
    let policy = Defrag {
        from: Severity::Ok,
        ..settings.defrag.clone()
    };
    if policy.engines.len() < 2 {
        return Vec::new();
    }
    let facts = by_hand(settings, image, always);
    let passed_over = facts.map(|facts| maintenance::passed_over(&facts, &policy));
    let named = |(engine, reason): (Engine, Refusal)| {
        let reason = reason.to_string();
        PassedOver { engine, reason }
    };
    let passed_over = passed_over.unwrap_or_default().into_iter();
    passed_over.map(named).collect()
}

/// The facts of one image, without those that delay only the daemon.
fn by_hand(settings: &Settings, image: &Path, always: bool) -> Option<PlanFacts> {
    // A directory would be searched.
    if !std::fs::symlink_metadata(image).ok()?.is_file() {
        return None;
    }
    let found = images::one(settings, image).ok()?;
    let runs = past_runs(settings);
    let mut seen = found.images.iter();
    let seen = seen.find(|seen| seen.sample.path == image)?;
    let filesystem = found.filesystem(seen)?;
    let speeds = runs.speeds();
    let mut facts = PlanFacts {
        images: vec![ImageFacts {
            last_run: None,
            ..image_facts(seen, &runs)?
        }],
        filesystems: vec![gather::filesystem(
            filesystem, false, None, None, &speeds, None,
        )],
        ..host_facts(settings, &calendar(settings), Timestamp::now())
    };
    if always {
        facts.allowed = Allowed::Always;
    }
    Some(facts)
}

/// The guards' permanent objection to the image, as far as a look at the file shows.
fn obstacle(image: &Image, settings: &Settings) -> Option<ReasonCode> {
    let host = defrag::HostInterfaces::to_look_at();
    let target = guard::open(&image.sample.path, &host).ok()?;
    match guard::check_quick(&target, &settings.defrag, &host) {
        Err(refusal) => Some(refusal.code).filter(|code| code.is_obstacle()),
        Ok(_) => None,
    }
}
