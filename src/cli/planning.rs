//! `fragwatch plan`: finds out by itself what the planner must know, without the daemon, so that a
//! configuration can be tried before it runs. And what the planner would say of an image that is
//! defragmented by hand.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::plan::{render, render_json};
use super::scan::{Found, Image};
use super::{INCOMPLETE, SUCCESS, client, load_config, scan, terminal};
use crate::config::Settings;
use crate::daemon::{database, is_recent, read_last_incident, read_runs};
use crate::defrag::{self, guard, pressure};
use crate::maintenance::estimate::Paces;
use crate::maintenance::facts::{Active, FilesystemFacts, ImageFacts, Obstacle, ideal};
use crate::maintenance::gather::{self, ImageNow, Runs};
use crate::maintenance::{Allowed, Calendar, Facts, Host, Policy, Verdict, plan};
use crate::model::path::shown;
use crate::model::{Bytes, Engine, ExtentsPerDay, Filesystem, FilesystemKind, Owner, Severity};
use crate::serve::control::pause_file;
use crate::serve::status::{Row, Status};

pub(super) fn run(json: bool, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let mut found = scan::configured(&settings)?;
    // Shared blocks and holes are seen only in the map. An engine would read it too.
    scan::with_maps(&settings, &mut found, |image, filesystem| {
        is_candidate(image, filesystem, &settings)
    })?;
    let calendar = calendar(&settings);
    let now = Timestamp::now();
    let facts = facts(&settings, &found, &calendar, now);
    let plan = plan(&facts, &Policy::from(&settings.defrag));
    if json {
        terminal::print(&render_json(&plan, &calendar, now)?)?;
    } else {
        terminal::print(&render(&plan, &calendar, now, terminal::width()))?;
        for fault in &found.errors {
            terminal::complain(&format!("{}: {}", shown(&fault.path), fault.error));
        }
    }
    Ok(if found.errors.is_empty() {
        SUCCESS
    } else {
        INCOMPLETE
    })
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
    let database = database(&settings.history);
    // There may be none yet, or we may not read it: then estimates are assumed, and say so.
    let runs = Runs::new(read_runs(&database).unwrap_or_default());
    let paces = runs.paces();
    // The daemon knows how fast images grow and whether there is an incident; it need not run.
    let status: Option<Status> = client::get(settings, "/v1/status").ok();
    let growth: HashMap<_, _> = status
        .iter()
        .flat_map(|status| &status.worst)
        .map(|row| (row.path.as_str(), row.growth_per_day))
        .collect();
    let stalled = |mount: &str| found.errors.iter().any(|fault| shown(&fault.path) == mount);
    let filesystems = found.filesystems.values().map(|filesystem| {
        let stalled = stalled(&shown(&filesystem.mount));
        let active = status.as_ref().and_then(|it| active(it, found, filesystem));
        gather::filesystem(filesystem, stalled, active, &paces)
    });
    let images = found.images.iter().filter_map(|image| {
        let filesystem = found.filesystem(image)?;
        let growth = growth.get(shown(&image.sample.path).as_str()).copied();
        let mut facts = image_facts(image, filesystem, growth.flatten(), &runs);
        if is_candidate(image, filesystem, settings) {
            facts.obstacles.extend(obstacle(image, settings));
        }
        if !settings.defrag.hook_before.is_empty() {
            facts.user = None;
        }
        Some(facts)
    });
    let works = status.as_ref().is_some_and(|it| !it.runs.is_empty());
    let seen = |path: &Path| found.images.iter().any(|it| it.sample.path == path);
    let mut unseen = status.as_ref().map(unseen).unwrap_or_default();
    unseen.retain(|(image, _)| !seen(&image.path));
    Facts {
        now,
        zone: calendar.zone().clone(),
        allowed: Allowed::by(calendar, now),
        io_pressure: pressure::before_a_run(Path::new("/proc"), works).map(|it| f64::from(it.0)),
        incident: status.as_ref().is_some_and(|status| status.rescue.incident),
        recent_incident: is_recent(read_last_incident(&database), now),
        paused: status
            .as_ref()
            .map_or_else(|| pause_file(&database).exists(), |status| status.paused),
        images: images.chain(unseen.iter().map(|it| it.0.clone())).collect(),
        filesystems: filesystems
            .chain(unseen.iter().map(|it| it.1.clone()))
            .collect(),
    }
}

/// Images on file systems that do not answer, which only the daemon has seen.
fn unseen(status: &Status) -> Vec<(ImageFacts, FilesystemFacts)> {
    let stalled = |row: &Row| {
        let mut mounts = status.stalled.iter().map(|it| Path::new(&it.mount));
        mounts.find(|mount| Path::new(&row.path).starts_with(mount))
    };
    let facts = |row: &Row| {
        let mount = stalled(row)?;
        let image = ImageFacts {
            path: PathBuf::from(&row.path),
            filesystem: shown(mount),
            severity: row.severity,
            extents: row.extents,
            ideal: ideal(row.size, 0),
            outlook: None,
            growth: row.growth_per_day,
            size: row.size,
            allocated: row.size,
            user: None,
            shares_blocks: false,
            obstacles: Vec::new(),
            last_run: None,
        };
        let filesystem = FilesystemFacts {
            id: shown(mount),
            mount: mount.to_owned(),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            features: None,
            size: Bytes(0),
            free: Bytes(0),
            stalled: true,
            active: None,
            paces: Paces::default(),
        };
        Some((image, filesystem))
    };
    status.worst.iter().filter_map(facts).collect()
}

fn image_facts(
    image: &Image,
    filesystem: &Filesystem,
    growth: Option<ExtentsPerDay>,
    runs: &Runs,
) -> ImageFacts {
    let nobody = Owner::default();
    let now = ImageNow {
        sample: &image.sample,
        key: &image.sample.key(&filesystem.lasting_name()),
        owner: image.owner.as_ref().unwrap_or(&nobody),
        severity: image.severity,
        growth,
        map: image.map.as_ref(),
        outlook: image.outlook,
    };
    gather::image(&now, runs)
}

/// The run that the daemon has under way on a file system.
fn active(status: &Status, found: &Found, filesystem: &Filesystem) -> Option<Active> {
    let lies_there = |path: &str| {
        let mut there = found.images.iter();
        let there = there.find(|image| shown(&image.sample.path) == path)?;
        let is_it = found.filesystem(there)?.mount == filesystem.mount;
        is_it.then(|| there.sample.path.clone())
    };
    status.runs.iter().find_map(|run| {
        Some(Active {
            path: lies_there(&run.path)?,
            ends: Timestamp::from_second(run.ends.0).ok()?,
        })
    })
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
    let found = scan::one(settings, image).ok()?;
    let runs = Runs::new(read_runs(&database(&settings.history)).unwrap_or_default());
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
        io_pressure: None,
        incident: false,
        recent_incident: false,
        paused: false,
        images: vec![ImageFacts {
            last_run: None,
            ..image_facts(seen, filesystem, None, &runs)
        }],
        filesystems: vec![gather::filesystem(filesystem, false, None, &runs.paces())],
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
    let host = defrag::Host::default();
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
