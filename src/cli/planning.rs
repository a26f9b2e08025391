//! `fragwatch plan`: asks the daemon for its plan. Without a daemon, or for another configuration, it
//! judges by the counts of this moment alone, so that a configuration can be tried before it runs.
//! And what the planner would say of an image that is defragmented by hand.

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;

use super::client;
use super::command::load_config;
use super::images::{self, Found, Image};
use super::output::{self, SUCCESS};
use crate::config::Settings;
use crate::daemon::{is_recent, read_last_incident, read_runs};
use crate::defrag::pressure::{Asked, Gauge, before_runs};
use crate::defrag::{self, guard, usable};
use crate::discover::mounts::MountTable;
use crate::maintenance::facts::{ImageFacts, Obstacle};
use crate::maintenance::gather::{self, ImageNow, Runs};
use crate::maintenance::{Allowed, Calendar, Facts, Host, Policy, Verdict, plan};
use crate::model::path::shown;
use crate::model::{Engine, Filesystem, FilesystemKind, Owner, Severity};
use crate::serve::plan::{JudgedBy, render, render_json};
use crate::state_dir::StateDir;
use crate::sys;

pub(super) fn run(json: bool, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    if config.is_none() {
        match of_the_daemon(&settings, json) {
            Ok(text) => {
                output::print(&text)?;
                return Ok(SUCCESS);
            }
            Err(error) if error.is::<client::NotRunning>() => {}
            Err(error) => return Err(error),
        }
    }
    output::eprint_error(match config {
        Some(_) => "judged by the counts of this moment alone: a plan with --config",
        None => "judged by the counts of this moment alone: no daemon answers",
    });
    by_counts(&settings, json)
}

/// The plan in force.
fn of_the_daemon(settings: &Settings, json: bool) -> anyhow::Result<String> {
    let path = match json {
        true => "/v1/plan".to_owned(),
        false => format!("/v1/plan?width={}", output::width().unwrap_or(0)),
    };
    client::get_text(settings, &path)
}

fn by_counts(settings: &Settings, json: bool) -> anyhow::Result<u8> {
    let mut found = images::configured(settings)?;
    // Shared blocks and holes are seen only in the map. An engine would read it too.
    images::read_wanted_maps(settings, &mut found, |image, filesystem| {
        is_candidate(image, filesystem, settings)
    })?;
    let calendar = calendar(settings);
    let now = Timestamp::now();
    let facts = facts(settings, &found, &calendar, now);
    let plan = plan(&facts, &Policy::from(&settings.defrag));
    if json {
        let text = render_json(&plan, &facts.engines, &calendar, now, JudgedBy::Counts)?;
        output::print(&text)?;
    } else {
        let text = render(&plan, &facts.engines, &calendar, now, output::width());
        output::print(&text)?;
        found.print_errors();
    }
    Ok(found.exit_code())
}

/// The windows of this host.
pub(super) fn calendar(settings: &Settings) -> Calendar {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Calendar::new(&settings.maintenance, Host::from_machine_id(&machine))
}

fn is_candidate(image: &Image, filesystem: &Filesystem, settings: &Settings) -> bool {
    image.severity >= settings.defrag.from && filesystem.kind == FilesystemKind::Xfs
}

fn facts(settings: &Settings, found: &Found, calendar: &Calendar, now: Timestamp) -> Facts {
    let state = StateDir::of(&settings.history);
    // There may be none yet, or we may not read it: then estimates are assumed, and marked so.
    let runs = Runs::new(read_runs(state.database()).unwrap_or_default());
    let paces = runs.paces();
    let stalled = |mount: &str| found.errors.iter().any(|fault| shown(&fault.path) == mount);
    let pressures = io_pressures(settings, found);
    let filesystems = found.filesystems.values().map(|filesystem| {
        let stalled = stalled(&shown(&filesystem.mount));
        let pressure = pressures.get(filesystem.mount.as_path()).copied();
        gather::filesystem(filesystem, stalled, None, pressure, &paces)
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
    Facts {
        now,
        zone: calendar.zone().clone(),
        allowed: Allowed::by(calendar, now),
        incident: false,
        recent_incident: is_recent(read_last_incident(state.database()), now),
        paused: state.pause_file().exists(),
        not_ready: None,
        engines: usable::engines(&settings.defrag, &defrag::Host::to_look_at()),
        images: images.collect(),
        filesystems: filesystems.collect(),
    }
}

/// The I/O pressure that counts on each file system that is mounted.
fn io_pressures<'f>(settings: &Settings, found: &'f Found) -> HashMap<&'f Path, f64> {
    let host = defrag::Host::to_look_at();
    let mounts = MountTable::new(sys::mounts::read(&host.proc).unwrap_or_default());
    let gauged = found.filesystems.values().filter_map(|filesystem| {
        let mount = filesystem.mount.as_path();
        Some((mount, Gauge::new(mounts.of(mount)?.device)))
    });
    let (places, mut gauges): (Vec<_>, Vec<_>) = gauged.unzip();
    let mut gauges: Vec<_> = gauges.iter_mut().collect();
    let asked = Asked::while_a_run(false);
    let pressures = before_runs(&mut gauges, &host, asked, settings.defrag.max_io_pressure);
    let counts = pressures.into_iter().map(|it| Some(it?.counts.0.into()));
    let by_place = places.into_iter().zip(counts);
    by_place
        .filter_map(|(place, counts)| Some((place, counts?)))
        .collect()
}

/// Nothing of an image that cannot be identified: the daemon does not plan it either.
fn image_facts(image: &Image, runs: &Runs) -> Option<ImageFacts> {
    let nobody = Owner::default();
    let now = ImageNow {
        sample: &image.sample,
        key: image.sample.key.as_ref().ok()?,
        owner: image.owner.as_ref().unwrap_or(&nobody),
        severity: image.severity,
        growth: None,
        map: image.map.as_ref(),
        outlook: image.outlook,
    };
    Some(gather::image(&now, runs))
}

/// What the planner would say of an image that is defragmented by hand.
pub(super) struct Advice {
    facts: Facts,
    policy: Policy,
}

/// Finds that out. Nothing if the image cannot be seen: the guards say what is wrong with it.
pub(super) fn advise(settings: &Settings, image: &Path, always: bool) -> Option<Advice> {
    // A directory would be searched.
    if !std::fs::symlink_metadata(image).ok()?.is_file() {
        return None;
    }
    let found = images::one(settings, image).ok()?;
    let state = StateDir::of(&settings.history);
    let runs = Runs::new(read_runs(state.database()).unwrap_or_default());
    let mut seen = found.images.iter();
    let seen = seen.find(|seen| seen.sample.path == image)?;
    let filesystem = found.filesystem(seen)?;
    let (calendar, now) = (calendar(settings), Timestamp::now());
    let facts = Facts {
        now,
        zone: calendar.zone().clone(),
        allowed: match always {
            true => Allowed::Always,
            false => Allowed::by(&calendar, now),
        },
        incident: false,
        recent_incident: false,
        paused: false,
        not_ready: None,
        engines: usable::engines(&settings.defrag, &defrag::Host::to_look_at()),
        images: vec![ImageFacts {
            last_run: None,
            ..image_facts(seen, &runs)?
        }],
        filesystems: vec![gather::filesystem(
            filesystem,
            false,
            None,
            None,
            &runs.paces(),
        )],
    };
    let policy = Policy {
        from: Severity::Ok,
        ..Policy::from(&settings.defrag)
    };
    Some(Advice { facts, policy })
}

impl Advice {
    /// Why the planner would not use this engine, if that lies with the engine.
    pub(super) fn against(&self, engine: Engine) -> Option<String> {
        let policy = Policy {
            engines: vec![engine],
            ..self.policy.clone()
        };
        let plan = plan(&self.facts, &policy);
        let verdict = plan.images.into_iter().next()?.verdict;
        let Verdict::Not(reason) = verdict else {
            return None;
        };
        reason.lies_with_engine().then(|| reason.to_string())
    }
}

/// What the guards would have against the image for good, as far as a look at the file tells.
fn obstacle(image: &Image, settings: &Settings) -> Option<Obstacle> {
    let host = defrag::Host::new(StateDir::of(&settings.history).hints());
    let target = guard::open(&image.sample.path, &host).ok()?;
    let refusal = guard::check_quick(&target, &settings.defrag, &host).err()?;
    let guard::Refusal::Flag(flag) = refusal else {
        return matches!(refusal, guard::Refusal::Swap).then_some(Obstacle::SwapFile);
    };
    match flag {
        "immutable" => Some(Obstacle::Immutable),
        "append-only" => Some(Obstacle::AppendOnly),
        "realtime" => Some(Obstacle::Realtime),
        "dax" => Some(Obstacle::Dax),
        _ => Some(Obstacle::NoDefrag),
    }
}
