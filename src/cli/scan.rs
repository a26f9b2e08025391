//! `fragwatch scan`: count the images once and show them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use super::args::{ScanArguments, SortKey};
use super::progress::Progress;
use super::{INCOMPLETE, SUCCESS, image_table, load_config, map_view, scan_json, terminal};
use crate::assess::Assessor;
use crate::config::{Settings, units};
use crate::discover::mounts::MountTable;
use crate::model::memory::{extent_limit, extent_map_memory};
use crate::model::path::shown;
use crate::model::{
    Bytes, DeviceNumber, ExtentCount, ExtentMap, Filesystem, FilesystemKind, MapBuilder, Outlook,
    Owner, Sample, Severity,
};
use crate::probe::protocol::{Fault, MapRequest, PassedOver, Reply, Request, Root, SampleRequest};
use crate::probe::sweep::{Event, Scope, WorkerPool};

/// How long one part of a map may take: short enough for the progress bar to move.
const MAP_PART: Duration = Duration::from_millis(250);

/// Everything that a scan found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) filesystems: BTreeMap<DeviceNumber, Filesystem>,
    pub(super) images: Vec<Image>,
    pub(super) errors: Vec<Fault>,
    pub(super) passed_over: PassedOver,
}

/// One image of a scan.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) device: DeviceNumber,
    pub(super) sample: Sample,
    /// Who has it open; nothing if that cannot be found out.
    pub(super) owner: Option<Owner>,
    pub(super) severity: Severity,
    pub(super) map: Option<ExtentMap>,
    /// What could be gained, if its map was read or sampled.
    pub(super) outlook: Option<Outlook>,
}

impl Found {
    pub(super) fn filesystem(&self, image: &Image) -> Option<&Filesystem> {
        self.filesystems.get(&image.device)
    }

    /// Kernel memory of the extent map once it is loaded; known for XFS only.
    pub(super) fn map_memory(&self, image: &Image) -> Option<Bytes> {
        let is_xfs = self.filesystem(image)?.kind == FilesystemKind::Xfs;
        is_xfs.then(|| extent_map_memory(image.sample.extents))
    }

    /// The number of extents at which writes fail; known for XFS only.
    pub(super) fn extent_limit(&self, image: &Image) -> Option<ExtentCount> {
        Some(extent_limit(self.filesystem(image)?.features?.nrext64))
    }
}

pub(super) fn run(arguments: &ScanArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let scope = scope(arguments, &settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(scan(arguments, &settings, &scope))?;

    if arguments.json {
        terminal::print(&scan_json::render(&found)?)?;
    } else {
        let mut text = image_table::render(&found, terminal::width(), terminal::colours());
        if arguments.map {
            text.push_str(&map_view::render(&found, &settings.sampling));
        }
        terminal::print(&text)?;
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

/// All configured images, counted once.
pub(super) fn configured(settings: &Settings) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let arguments = ScanArguments::default();
    runtime.block_on(scan(&arguments, settings, &Scope::configured(settings)))
}

/// The extent maps of the images that are wanted, as far as they may be read. Of longer ones a sample
/// is taken if somebody has the image open: its map is loaded then.
pub(super) fn with_maps(
    settings: &Settings,
    found: &mut Found,
    wanted: impl Fn(&Image, &Filesystem) -> bool,
) -> anyhow::Result<()> {
    let is_wanted = |image: &Image| {
        let filesystem = found.filesystems.get(&image.device);
        filesystem.is_some_and(|it| wanted(image, it))
    };
    let images = std::mem::take(&mut found.images).into_iter();
    let (chosen, others): (Vec<Image>, Vec<Image>) = images.partition(is_wanted);
    found.images = chosen;
    if !found.images.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let arguments = ScanArguments::default();
        let reading = async {
            let mut pool = WorkerPool::new(Path::new("/proc"));
            let mounts = pool.mounts().context("cannot read /proc/self/mountinfo")?;
            read_maps(&arguments, settings, &mut pool, &mounts, found).await;
            sample_maps(settings, &mut pool, &mounts, found).await;
            anyhow::Ok(())
        };
        runtime.block_on(reading)?;
    }
    found.images.extend(others);
    Ok(())
}

/// Samples the maps of images in use that are too long to be read.
async fn sample_maps(
    settings: &Settings,
    pool: &mut WorkerPool,
    mounts: &MountTable,
    found: &mut Found,
) {
    let cap = settings.sampling.map_max_extents;
    for image in &mut found.images {
        let in_use = image.owner.as_ref().is_some_and(Owner::in_use);
        if image.sample.extents <= cap || !in_use {
            continue;
        }
        let Some(mount) = mounts.principal(image.device) else {
            continue;
        };
        let request = Request::Sample(SampleRequest {
            path: image.sample.path.clone(),
            id: image.sample.id,
            expected: image.sample.extents,
        });
        let worker = pool.worker(mount);
        let mut worker = worker.lock().await;
        let mut answer = None;
        let on_reply = |reply| answer = Some(reply);
        let deadline = settings.sampling.probe_timeout;
        let called = worker.call(&request, deadline, on_reply).await;
        match (called, answer) {
            (Ok(()), Some(Reply::Sampled(outlook))) => image.outlook = Some(outlook),
            (Ok(()), Some(Reply::Fault(fault))) => found.errors.push(fault),
            (Ok(()), _) => {}
            (Err(error), _) => found.errors.push(Fault {
                path: image.sample.path.clone(),
                error: error.to_string(),
            }),
        }
    }
}

/// One image, wherever it lies and whatever it looks like.
pub(super) fn one(settings: &Settings, image: &Path) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let arguments = ScanArguments {
        paths: vec![image.to_owned()],
        ..ScanArguments::default()
    };
    let scope = scope(&arguments, settings)?;
    runtime.block_on(scan(&arguments, settings, &scope))
}

fn scope(arguments: &ScanArguments, settings: &Settings) -> anyhow::Result<Scope> {
    let mut scope = Scope::configured(settings);
    if !arguments.paths.is_empty() {
        let literal = |path: &PathBuf| absolute(path).map(Root::literal);
        scope.roots = arguments
            .paths
            .iter()
            .map(literal)
            .collect::<Result<_, _>>()?;
    }
    if let Some(text) = &arguments.min_size {
        scope.selection.min_size = units::parse_size(text).map_err(|misfit| {
            let instead = misfit.instead.map(|instead| format!("; write {instead}"));
            anyhow!(
                "--min-size {text} {}{}",
                misfit.message,
                instead.unwrap_or_default()
            )
        })?;
    }
    Ok(scope)
}

/// A path of the command line without a look at any file system.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        bail!("an empty path names nothing; `.` is the current directory");
    }
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", shown(path)))
}

async fn scan(
    arguments: &ScanArguments,
    settings: &Settings,
    scope: &Scope,
) -> anyhow::Result<Found> {
    let mut pool = WorkerPool::new(Path::new("/proc"));
    let mounts = pool.mounts().context("cannot read /proc/self/mountinfo")?;
    let mut found = Found::default();
    let assessor = Assessor::new(&settings.thresholds);
    let mut progress = Progress::spinner();
    let mut on_event = |device, event| {
        take(device, event, &mut found, &assessor);
        let images = found.images.len() as u64;
        progress.at(images, format!("{images} images counted"));
    };
    pool.sweep(scope, &mut on_event)
        .await
        .context("cannot read /proc/self/mountinfo")?;
    drop(progress);

    sort(&mut found.images, arguments.sort);
    if let Some(top) = arguments.top {
        found.images.truncate(top);
    }
    if arguments.map {
        read_maps(arguments, settings, &mut pool, &mounts, &mut found).await;
    }
    Ok(found)
}

fn take(device: DeviceNumber, event: Event, found: &mut Found, assessor: &Assessor) {
    match event {
        Event::Filesystem(filesystem) => drop(found.filesystems.insert(device, filesystem)),
        Event::Image(counted) => found.images.push(Image {
            device,
            severity: assessor.of_count(&counted.sample.path, counted.sample.extents),
            sample: counted.sample,
            owner: counted.owner,
            map: None,
            outlook: None,
        }),
        Event::Fault(fault) => found.errors.push(fault),
        Event::PassedOver(passed_over) => found.passed_over.add(passed_over),
        // A single pass watches nothing.
        Event::Watched(_) | Event::Surveyed { result: Ok(()), .. } => {}
        Event::Surveyed {
            mount,
            result: Err(error),
            ..
        } => found.errors.push(Fault {
            path: mount,
            error: error.to_string(),
        }),
    }
}

fn sort(images: &mut [Image], key: SortKey) {
    use std::cmp::Reverse;
    let none_last = |mean: Option<Bytes>| mean.unwrap_or(Bytes(u64::MAX));
    // By path among equals, so that two scans of the same images look the same.
    images.sort_by(|a, b| a.sample.path.cmp(&b.sample.path));
    match key {
        SortKey::Extents => images.sort_by_key(|image| Reverse(image.sample.extents)),
        SortKey::Mean => images.sort_by_key(|image| none_last(image.sample.mean_extent())),
        SortKey::Size => images.sort_by_key(|image| Reverse(image.sample.size)),
        SortKey::Allocated => images.sort_by_key(|image| Reverse(image.sample.allocated)),
        SortKey::Path => {}
    }
}

async fn read_maps(
    arguments: &ScanArguments,
    settings: &Settings,
    pool: &mut WorkerPool,
    mounts: &MountTable,
    found: &mut Found,
) {
    let cap = settings.sampling.map_max_extents;
    let limits = MapLimits {
        cap: if arguments.force {
            ExtentCount(u64::MAX)
        } else {
            cap
        },
        deadline: settings.sampling.probe_timeout,
    };
    let mut maps = Vec::new();
    for image in &found.images {
        if image.sample.extents > limits.cap {
            maps.push(None);
            continue;
        }
        match read_map(image, &limits, pool, mounts).await {
            Ok(map) => maps.push(Some(map)),
            Err(fault) => {
                found.errors.push(fault);
                maps.push(None);
            }
        }
    }
    for (image, map) in found.images.iter_mut().zip(maps) {
        image.outlook = map.as_ref().map(|map| Outlook::of_map(&map.borders));
        image.map = map;
    }
}

struct MapLimits {
    cap: ExtentCount,
    deadline: Duration,
}

async fn read_map(
    image: &Image,
    limits: &MapLimits,
    pool: &mut WorkerPool,
    mounts: &MountTable,
) -> Result<ExtentMap, Fault> {
    let path = &image.sample.path;
    let failed = |error: String| Fault {
        path: path.clone(),
        error,
    };
    let Some(mount) = mounts.principal(image.device) else {
        return Err(failed("its file system is no longer mounted".to_owned()));
    };
    let worker = pool.worker(mount);
    let mut worker = worker.lock().await;
    let mut builder = MapBuilder::default();
    let mut progress = Progress::bar(image.sample.extents.0);
    loop {
        progress.at(builder.extents().0, shown(path));
        let request = Request::Map(Box::new(MapRequest {
            path: path.clone(),
            id: image.sample.id,
            expected: image.sample.extents,
            builder: std::mem::take(&mut builder),
            max_extents: limits.cap,
            budget: MAP_PART,
            quick: true,
        }));
        let mut answer = None;
        let on_reply = |reply| answer = Some(reply);
        let called = worker.call(&request, limits.deadline, on_reply).await;
        called.map_err(|error| failed(error.to_string()))?;
        match answer {
            Some(Reply::Map(map)) => return Ok(*map),
            Some(Reply::MapPart(part)) => builder = *part,
            Some(Reply::Fault(fault)) => return Err(fault),
            _ => return Err(failed("the probe helper gave no map".to_owned())),
        }
    }
}
