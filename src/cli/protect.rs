//! `fragwatch protect`: how many extents images can still gain, and the hints that limit it.

use std::path::Path;

use anyhow::bail;

use super::args::ProtectArguments;
use super::command::{block_on, load_config};
use super::images::{Found, Image, Probes, scope};
use super::output::{self, INCOMPLETE, SUCCESS};
use super::protect_view as view;
use crate::config::Settings;
use crate::defrag::HostInterfaces;
use crate::model::{DeviceNumber, Filesystem, FilesystemKind};
use crate::probe::sweep::Scope;
use crate::protect::apply::{self, Applied, Undone};
use crate::protect::facts::Facts;
use crate::protect::journal::Journal;
use crate::protect::plan::{Bare, Change, Place, Plan};
use crate::protect::thin::{Provisioning, provisioning};
use crate::protect::{kernel, verdict::Verdict};
use crate::state_dir::StateDir;

/// What was found, and what would be done about it.
pub(super) struct Audit {
    pub(super) found: Found,
    pub(super) places: Vec<AuditedPlace>,
}

/// A file system.
pub(super) struct AuditedPlace {
    pub(super) filesystem: Filesystem,
    pub(super) provisioning: Provisioning,
    pub(super) plan: Plan,
    /// What became of the changes, with `--apply`.
    pub(super) applied: Vec<(Change, Applied)>,
}

pub(super) fn run(arguments: &ProtectArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let is_root = rustix::process::geteuid().is_root();
    if (arguments.apply || arguments.undo) && !is_root {
        bail!("setting and restoring hints needs root");
    }
    if arguments.undo {
        return undo(&settings, arguments.json);
    }
    let scope = scope(&settings, &arguments.paths)?;
    let (found, bare) = block_on(read(&settings, &scope))?;
    let mut audit = Audit {
        places: places(&found, &bare, &settings, arguments.force),
        found,
    };
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
    apply_all(&mut audit, &settings)?;
    match arguments.json {
        true => output::print_json(&view::document(&audit))?,
        false => output::print(&view::applied(&audit))?,
    }
    audit.found.print_errors();
    Ok(exit_code(&audit))
}

/// Counts the images and reads the maps of those on XFS, as far as they are not too long; and the
/// hints of the named directories that no image lies in.
async fn read(
    settings: &Settings,
    scope: &Scope,
) -> anyhow::Result<(Found, Vec<(DeviceNumber, Bare)>)> {
    let mut probes = Probes::new(settings)?;
    let mut found = probes.count(scope, settings).await?;
    let is_xfs = |it: &Filesystem| it.kind == FilesystemKind::Xfs;
    for image in &mut found.images {
        let filesystem = found.filesystems.get(&image.device);
        if filesystem.is_some_and(is_xfs) {
            let cap = settings.sampling.map_max_extents;
            found.errors.extend(probes.read_map(image, cap).await.err());
        }
    }
    let mut bare = Vec::new();
    for root in scope.roots.iter().filter(|root| !root.glob) {
        // A file, or what the search has reported.
        let Ok((device, path, hint)) = probes.directory(&root.path).await else {
            continue;
        };
        let mut images = found.images.iter();
        if !images.any(|image| image.sample.path.starts_with(&path)) {
            bare.push((device, Bare { path, hint }));
        }
    }
    Ok((found, bare))
}

pub(super) fn facts<'a>(found: &'a Found, image: &'a Image) -> Facts<'a> {
    Facts {
        sample: &image.sample,
        filesystem: found.filesystem(image),
        map: image.map.as_ref(),
        owner: image.owner.as_ref(),
    }
}

/// The images with their verdicts, those that can gain the most extents first.
pub(super) fn judged(found: &Found) -> Vec<(&Image, Facts<'_>, Verdict)> {
    let judged = found.images.iter().map(|image| {
        let facts = facts(found, image);
        (image, facts, Verdict::of(&facts))
    });
    let mut judged: Vec<_> = judged.collect();
    judged.sort_by(|(a, _, left), (b, _, right)| {
        let order = |it: &Verdict| (it.risk, it.at_worst);
        let paths = a.sample.path.cmp(&b.sample.path);
        order(right).cmp(&order(left)).then(paths)
    });
    judged
}

fn places(
    found: &Found,
    bare: &[(DeviceNumber, Bare)],
    settings: &Settings,
    forced: bool,
) -> Vec<AuditedPlace> {
    let kernel = kernel::obstacle(Path::new("/proc"), &settings.defrag.trusted_kernels);
    let place = |(device, filesystem): (&DeviceNumber, &Filesystem)| {
        let images = found.images.iter().filter(|image| image.device == *device);
        let images: Vec<_> = images.map(|image| facts(found, image)).collect();
        let bare = bare.iter().filter(|(its, _)| its == device);
        let bare: Vec<_> = bare.map(|(_, directory)| directory.clone()).collect();
        let provisioning = provisioning(Path::new("/sys"), *device);
        let place = Place {
            filesystem,
            keeps: settings.defrag.keep_free.of_bytes(filesystem.size),
            provisioning,
            kernel: kernel.as_deref(),
        };
        AuditedPlace {
            filesystem: filesystem.clone(),
            provisioning,
            plan: Plan::new(&place, &images, &bare, forced),
            applied: Vec::new(),
        }
    };
    found.filesystems.iter().map(place).collect()
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
    apply::undo(&mut journal, &host, |entry, done| undone.push((entry.clone(), done)))?;
    match json {
        true => output::print_json(&view::undone_document(&undone))?,
        false => output::print(&view::undone(&undone))?,
    }
    let failed = undone.iter().any(|(_, done)| matches!(done, Undone::Failed(_)));
    Ok(if failed { INCOMPLETE } else { SUCCESS })
}
