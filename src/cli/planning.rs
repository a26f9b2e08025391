//! `fragwatch plan`: finds out by itself what the planner must know, without the daemon, so that a
//! configuration can be tried before it runs.

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;

use super::plan::{render, render_json};
use super::scan::{Found, Image};
use super::{INCOMPLETE, SUCCESS, client, load_config, scan, terminal};
use crate::config::Settings;
use crate::daemon::{database, read_runs};
use crate::defrag::{self, guard, pressure};
use crate::maintenance::facts::Obstacle;
use crate::maintenance::gather::{self, ImageNow, Runs};
use crate::maintenance::{Allowed, Calendar, Facts, Host, Policy, plan};
use crate::model::path::shown;
use crate::model::{FilesystemKind, Owner, Severity};
use crate::serve::control::pause_file;
use crate::serve::status::Status;

pub(super) fn run(json: bool, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let found = scan::configured(&settings)?;
    let calendar = calendar(&settings);
    let now = Timestamp::now();
    let facts = facts(&settings, &found, &calendar, now);
    let plan = plan(&facts, &Policy::from(&settings.defrag));
    if json {
        terminal::print(&render_json(&plan, &calendar, now)?)?;
    } else {
        terminal::print(&render(&plan, &calendar, now))?;
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
        gather::filesystem(filesystem, stalled, None, &paces)
    });
    let nobody = Owner::default();
    let images = found.images.iter().filter_map(|image| {
        let filesystem = found.filesystem(image)?;
        let key = image.sample.key(&filesystem.lasting_name());
        let path = shown(&image.sample.path);
        let mut facts = gather::image(
            &ImageNow {
                sample: &image.sample,
                key: &key,
                owner: image.owner.as_ref().unwrap_or(&nobody),
                severity: image.severity,
                growth: growth.get(path.as_str()).copied().flatten(),
                map: None,
            },
            &runs,
        );
        let is_candidate = image.severity >= settings.defrag.from.max(Severity::Ok)
            && filesystem.kind == FilesystemKind::Xfs;
        if is_candidate {
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
        io_pressure: pressure::of_others(Path::new("/proc")).map(|it| f64::from(it.0)),
        incident: status.as_ref().is_some_and(|status| status.rescue.incident),
        recent_incident: false,
        paused: status
            .as_ref()
            .map_or_else(|| pause_file(&database).exists(), |status| status.paused),
        images: images.collect(),
        filesystems: filesystems.collect(),
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
