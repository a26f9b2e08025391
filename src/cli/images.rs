//! Counts images once and reads their extent maps, for `scan`, `plan` and `defrag`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::command::block_on;
use super::output::{self, INCOMPLETE, SUCCESS};
use super::progress::Progress;
use crate::assess::Assessor;
use crate::config::Settings;
use crate::discover::mounts::{FilesystemScope, Mount, MountTable};
use crate::model::memory::{extent_limit, extent_map_memory};
use crate::model::path::shown;
use crate::model::{
    Bytes, DeviceNumber, ExtentCount, ExtentMap, Filesystem, FilesystemKind, FreeSpace, MapBuilder,
    Outlook, Owner, Sample, Severity,
};
use crate::probe::protocol::{DirectoryRequest, Fault, MapPart, PassedOver, Reply, Request, Root};
use crate::probe::sweep::{Event, Scope, WorkerPool};

/// Time for one part of a map: short enough for a smooth progress bar.
const MAP_PART: Duration = Duration::from_millis(250);
/// Maximum number of links between file systems to follow.
pub(super) const MAX_CROSSINGS: u32 = 40;
const NO_MOUNTS: &str = "cannot read /proc/self/mountinfo";

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) filesystems: BTreeMap<DeviceNumber, Filesystem>,
    /// Free space, where it was read.
    pub(super) spaces: BTreeMap<DeviceNumber, Arc<FreeSpace>>,
    pub(super) images: Vec<Image>,
    pub(super) errors: Vec<Fault>,
    pub(super) passed_over: PassedOver,
}

/// One image of a scan.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) device: DeviceNumber,
    pub(super) sample: Sample,
    /// The processes that have it open; `None` if that could not be determined.
    pub(super) owner: Option<Owner>,
    pub(super) severity: Severity,
    pub(super) map: Option<ExtentMap>,
    /// The gain to be expected, if its map was read or sampled.
    pub(super) outlook: Option<Outlook>,
}

impl Found {
    pub(super) fn filesystem(&self, image: &Image) -> Option<&Filesystem> {
        self.filesystems.get(&image.device)
    }

    /// Kernel memory of the loaded extent map; `None` if it is not on XFS.
    pub(super) fn map_memory(&self, image: &Image) -> Option<Bytes> {
        let is_xfs = self.filesystem(image)?.kind == FilesystemKind::Xfs;
        is_xfs.then(|| extent_map_memory(image.sample.extents))
    }

    /// The number of extents at which writes fail; known for XFS only.
    pub(super) fn extent_limit(&self, image: &Image) -> Option<ExtentCount> {
        Some(extent_limit(self.filesystem(image)?.features?.nrext64))
    }

    /// Prints what could not be read.
    pub(super) fn print_errors(&self) {
        for fault in &self.errors {
            output::eprint_error(&format!("{}: {}", shown(&fault.path), fault.error));
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self.errors.is_empty() {
            true => SUCCESS,
            false => INCOMPLETE,
        }
    }

    fn take(&mut self, device: DeviceNumber, event: Event, assessor: &Assessor) {
        match event {
            Event::Filesystem(filesystem) => drop(self.filesystems.insert(device, filesystem)),
            Event::Image(counted) => self.images.push(Image {
                device,
                severity: assessor.of_count(&counted.sample.path, counted.sample.extents),
                sample: counted.sample,
                owner: counted.owner,
                map: None,
                outlook: None,
            }),
            Event::Fault(fault) => self.errors.push(fault),
            Event::PassedOver(passed_over) => self.passed_over.add(passed_over),
            // A single pass watches nothing.
            Event::Watched(_) => {}
            Event::Surveyed { mount, result, .. } => {
                let error = result.err().map(|error| error.to_string());
                self.errors
                    .extend(error.map(|error| Fault { path: mount, error }));
            }
        }
    }
}

/// The probe helpers, and the mounts of the host.
pub(super) struct Probes {
    pool: WorkerPool,
    pub(super) mounts: MountTable,
    deadline: Duration,
}

impl Probes {
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Probes> {
        let pool = WorkerPool::new(Path::new("/proc"));
        Ok(Probes {
            mounts: pool.mounts().context(NO_MOUNTS)?,
            pool,
            deadline: settings.sampling.probe_timeout,
        })
    }

    /// Counts the images of a scope.
    pub(super) async fn count(
        &mut self,
        scope: &Scope,
        settings: &Settings,
    ) -> anyhow::Result<Found> {
        let mut found = Found::default();
        let assessor = Assessor::new(&settings.thresholds);
        let mut progress = Progress::spinner();
        let mut on_event = |device, event| {
            found.take(device, event, &assessor);
            let images = found.images.len() as u64;
            progress.at(images, format!("{images} images counted"));
        };
        let sweep = self.pool.sweep(scope, &mut on_event).await;
        sweep.context(NO_MOUNTS)?;
        Ok(found)
    }

    /// Reads the map of an image, unless it has more than `cap` extents.
    pub(super) async fn read_map(
        &mut self,
        image: &mut Image,
        cap: ExtentCount,
    ) -> Result<(), Fault> {
        if image.sample.extents > cap {
            return Ok(());
        }
        let mut builder = MapBuilder::default();
        let mut progress = Progress::bar(image.sample.extents.0);
        loop {
            progress.at(builder.extents().0, shown(&image.sample.path));
            let part = MapPart {
                builder,
                max_extents: cap,
                budget: MAP_PART,
                quick: true,
            };
            let request = Request::Map((&image.sample).into(), Box::new(part));
            match self.ask(image, &request).await? {
                Reply::Map(map) => {
                    image.outlook = Some(Outlook::of_map(&map.borders));
                    image.map = Some(*map);
                    return Ok(());
                }
                Reply::MapPart(part) => builder = *part,
                _ => return Err(fault(&image.sample.path, "the probe helper gave no map")),
            }
        }
    }

    async fn sample_map(&mut self, image: &mut Image) -> Result<(), Fault> {
        let request = Request::Sample((&image.sample).into());
        if let Reply::Sampled(outlook) = self.ask(image, &request).await? {
            image.outlook = Some(outlook);
        }
        Ok(())
    }

    /// Reads the free space of a file system.
    pub(super) async fn free_space(&mut self, device: DeviceNumber) -> anyhow::Result<FreeSpace> {
        let mount = self.mounts.principal(device).cloned();
        let mount = mount.context("it is no longer mounted")?;
        let point = shown(&mount.point);
        let on_beat = Progress::beats(format!("reading the free space of {point}"));
        let request = Request::FreeSpace(mount.clone());
        match self.call(&mount, &request, on_beat).await? {
            Reply::FreeSpace(space) => Ok(*space),
            Reply::Fault(fault) => bail!("{}", fault.error),
            _ => bail!("the probe helper gave no free space"),
        }
    }

    /// The hint that a directory gives to new files, and its path without links. A fault if it is no
    /// directory.
    pub(super) async fn directory(
        &mut self,
        path: &Path,
    ) -> Result<(DeviceNumber, PathBuf, Bytes), Fault> {
        let mut at = path.to_owned();
        for _ in 0..MAX_CROSSINGS {
            let device = self.mounts.of(&at).map(|mount| mount.device);
            let mount = device.and_then(|device| self.mounts.principal(device));
            let Some(mount) = mount.filter(|mount| !mount.is_pseudo()).cloned() else {
                break;
            };
            let request = Request::Directory(DirectoryRequest {
                path: at,
                scope: FilesystemScope {
                    mounts: self.mounts.clone(),
                    device: mount.device,
                },
            });
            let reply = self.call(&mount, &request, || {}).await;
            match reply.map_err(|error| fault(path, &error.to_string()))? {
                Reply::Directory(path, hint) => return Ok((mount.device, path.0, hint)),
                Reply::Elsewhere(root) => at = root.path,
                Reply::Fault(fault) => return Err(fault),
                _ => return Err(fault(path, "the probe helper gave no directory")),
            }
        }
        Err(fault(path, "leads to no file system that can hold images"))
    }

    async fn ask(&mut self, image: &Image, request: &Request) -> Result<Reply, Fault> {
        let Some(mount) = self.mounts.principal(image.device).cloned() else {
            return Err(fault(
                &image.sample.path,
                "its file system is no longer mounted",
            ));
        };
        let reply = self.call(&mount, request, || {}).await;
        match reply.map_err(|error| fault(&image.sample.path, &error.to_string()))? {
            Reply::Fault(fault) => Err(fault),
            reply => Ok(reply),
        }
    }

    /// Sends a request to the helper of a file system; calls `on_beat` while it works.
    pub(super) async fn call(
        &mut self,
        mount: &Mount,
        request: &Request,
        mut on_beat: impl FnMut(),
    ) -> anyhow::Result<Reply> {
        let worker = self.pool.worker(mount);
        let mut answer = None;
        let on_reply = |reply| match reply {
            Reply::Beat => on_beat(),
            reply => answer = Some(reply),
        };
        let mut worker = worker.lock().await;
        worker.call(request, self.deadline, on_reply).await?;
        answer.context("the probe helper gave no answer")
    }
}

fn fault(path: &Path, error: &str) -> Fault {
    Fault {
        path: path.to_owned(),
        error: error.to_owned(),
    }
}

/// Counts all configured images once.
pub(super) fn configured(settings: &Settings) -> anyhow::Result<Found> {
    block_on(async {
        let mut probes = Probes::new(settings)?;
        probes.count(&Scope::configured(settings), settings).await
    })
}

/// Counts one image, wherever it lies and whatever its format.
pub(super) fn one(settings: &Settings, image: &Path) -> anyhow::Result<Found> {
    let scope = scope(settings, &[image.to_owned()])?;
    block_on(async { Probes::new(settings)?.count(&scope, settings).await })
}

/// Reads the maps of the wanted images. A map that is too long to be read is sampled if the image
/// is in use, because the kernel has then loaded it already.
pub(super) fn read_wanted_maps(
    settings: &Settings,
    found: &mut Found,
    is_wanted: impl Fn(&Image, &Filesystem) -> bool,
) -> anyhow::Result<()> {
    let cap = settings.sampling.map_max_extents;
    let filesystems = &found.filesystems;
    let images = found.images.iter_mut().filter(|image| {
        let filesystem = filesystems.get(&image.device);
        filesystem.is_some_and(|it| is_wanted(image, it))
    });
    let errors = &mut found.errors;
    block_on(async {
        let mut probes = Probes::new(settings)?;
        for image in images {
            let in_use = image.owner.as_ref().is_some_and(Owner::in_use);
            let read = match image.sample.extents > cap && in_use {
                true => probes.sample_map(image).await,
                false => probes.read_map(image, cap).await,
            };
            errors.extend(read.err());
        }
        Ok(())
    })
}

/// Reads the free space of the file systems of the wanted images, as far as it can be read.
pub(super) fn read_wanted_spaces(
    settings: &Settings,
    found: &mut Found,
    is_wanted: impl Fn(&Image, &Filesystem) -> bool,
) -> anyhow::Result<()> {
    let wanted = |image: &&Image| {
        let filesystem = found.filesystem(image);
        filesystem.is_some_and(|it| is_wanted(image, it))
    };
    let images = found.images.iter().filter(wanted);
    let devices: BTreeSet<_> = images.map(|image| image.device).collect();
    block_on(async {
        let mut probes = Probes::new(settings)?;
        for device in devices {
            if let Ok(space) = probes.free_space(device).await {
                found.spaces.insert(device, Arc::new(space));
            }
        }
        Ok(())
    })
}

/// The scope of a scan: these paths, or the configured ones if there are none.
pub(super) fn scope(settings: &Settings, paths: &[PathBuf]) -> anyhow::Result<Scope> {
    let mut scope = Scope::configured(settings);
    if !paths.is_empty() {
        let roots = paths.iter().map(|path| absolute(path).map(Root::literal));
        scope.roots = roots.collect::<Result<_, _>>()?;
    }
    Ok(scope)
}

/// The absolute form of a path, without accessing any file system.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        bail!("an empty path names nothing; `.` is the current directory");
    }
    std::path::absolute(path)
        .with_context(|| format!("cannot make {} an absolute path", shown(path)))
}
