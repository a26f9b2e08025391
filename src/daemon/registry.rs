//! The images and file systems known to the daemon, from sweep to sweep. Pure: takes what a sweep
//! finds, and returns what has changed.

mod change;
mod image;
mod spaces;

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) use change::{Change, SeverityChange, Subject};
pub(super) use image::KnownImage;
use spaces::Spaces;

use crate::assess::{Assessor, HostJudge, Judge};
use crate::growth::Recent;
use crate::history::SampleRow;
use crate::model::memory::extent_map_memory;
use crate::model::path::shown;
use crate::model::{
    Bytes, DeviceNumber, Filesystem, FilesystemKind, FreeSpace, ImageId, ImageKey, Owner, Sample,
    Severity, UnixTime,
};
use crate::probe::protocol::Fault;
use crate::serve::snapshot::Snapshot;
use crate::serve::view::{FilesystemView, HostView, ImageView, Inventory};

/// Limits for what is kept about images that are gone, where they come and go all the time: up to
/// 1.5 KiB for the past of each, 16 bytes to know that it is not new. Beyond them all is forgotten.
const MOST_PAST: usize = 4096;
const MOST_KNOWN: usize = 1 << 20;

/// The registry, shared by sampler, mapper and maintenance. Never locked across a wait.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedRegistry(Arc<Mutex<Registry>>);

impl SharedRegistry {
    pub(super) fn lock(&self) -> MutexGuard<'_, Registry> {
        // A sample is stored as a whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inventory for SharedRegistry {
    fn lend(&self, see: &mut dyn FnMut(&[ImageView<'_>], &[FilesystemView<'_>])) {
        let registry = self.lock();
        let (images, filesystems) = registry.views();
        see(&images, &filesystems);
    }
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Boxed: half of the places in the nodes of the tree are empty.
    pub(super) images: BTreeMap<ImageId, Box<KnownImage>>,
    /// Counts and severity of images that are not in `images`, from the history or from before they
    /// vanished.
    past: BTreeMap<ImageKey, (Recent, Judge)>,
    /// Hashes of the keys of all images in the history and of those that were found, which are not new.
    known: BTreeSet<u64>,
    judge: HostJudge,
    host: HostView,
    pub(super) filesystems: BTreeMap<DeviceNumber, Filesystem>,
    met_filesystems: BTreeSet<DeviceNumber>,
    /// Free space, as far as it was read.
    spaces: Spaces,
    /// What could not be read in the last sweep, and why.
    faults: BTreeMap<PathBuf, (DeviceNumber, String)>,
    met_faults: BTreeMap<PathBuf, (DeviceNumber, String)>,
    /// Images that the current sweep has found but could not identify.
    unidentified: BTreeSet<ImageId>,
}

impl Registry {
    pub(super) fn begin(&mut self) {
        self.images.values_mut().for_each(|image| image.met = false);
        self.met_filesystems.clear();
        self.met_faults.clear();
        self.unidentified.clear();
    }

    pub(super) fn filesystem(&mut self, device: DeviceNumber, filesystem: Filesystem) {
        self.met_filesystems.insert(device);
        self.filesystems.insert(device, filesystem);
    }

    /// Begins a reading of the free space of a file system, if one is due. Returns the name for
    /// [`set_space`](Registry::set_space).
    pub(super) fn begin_space(
        &mut self,
        device: DeviceNumber,
        now: Instant,
        interval: Duration,
    ) -> Option<String> {
        let filesystem = self.filesystems.get(&device)?;
        let is_due = self.spaces.begin(device, filesystem, now, interval);
        is_due.then(|| filesystem.lasting_name())
    }

    /// Stores the free space of the file system with this [lasting name](Filesystem::lasting_name).
    pub(super) fn set_space(&mut self, device: DeviceNumber, filesystem: &str, space: FreeSpace) {
        self.spaces.finish(device, filesystem, space);
    }

    pub(super) fn space(&self, device: DeviceNumber) -> Option<&Arc<FreeSpace>> {
        self.spaces.get(device, self.filesystems.get(&device)?)
    }

    /// Has the free space of the file systems with these names read again soon.
    pub(super) fn outdate_spaces(&mut self, outdated: impl Fn(&str) -> bool) {
        self.spaces.outdate(outdated);
    }

    /// Restores the last counts and the severity of an image not yet found by a sweep. Otherwise a
    /// bad image would be reported again, and its growth be unknown for 1/24 of the growth window.
    pub(super) fn restore(&mut self, key: ImageKey, recent: Recent, severity: Severity) {
        self.known.insert(hash(&key));
        let past = (recent, Judge::remembering(severity));
        if past != Default::default() {
            self.past.insert(key, past);
        }
    }

    /// Stores and judges a counted image. If its identity could not be read, the former count
    /// stays, because the new one could be that of another file.
    pub(super) fn image(
        &mut self,
        device: DeviceNumber,
        sample: Sample,
        owner: Option<Owner>,
        assessor: &Assessor,
        now: UnixTime,
    ) -> Vec<Change> {
        let id = sample.id;
        let key = match &sample.key {
            Ok(key) => key.clone(),
            Err(why) => {
                self.unidentified.insert(id);
                let error = format!("not recorded, because it cannot be identified: {why}");
                let path = sample.path;
                return Vec::from_iter(self.fault(device, Fault { path, error }));
            }
        };
        let mut changes = Vec::new();
        // The inode of a deleted image, reused with another generation.
        let is_other = |known: &KnownImage| {
            known.sample.key.as_ref().ok().map(|key| key.generation) != Some(key.generation)
        };
        if self.images.get(&id).is_some_and(|known| is_other(known))
            && let Some(gone) = self.images.remove(&id)
        {
            changes.push(Change::Vanished(gone.sample.path));
        }
        let image = match self.images.entry(id) {
            btree_map::Entry::Occupied(known) => {
                let image = known.into_mut();
                let before = std::mem::replace(&mut image.sample, sample);
                if before.path != image.sample.path {
                    changes.push(Change::Renamed(before.path, image.sample.path.clone()));
                }
                image
            }
            btree_map::Entry::Vacant(unknown) => {
                let past = self.past.remove(&key).unwrap_or_default();
                if self.known.insert(hash(&key)) {
                    changes.push(Change::Appeared(sample.path.clone(), sample.extents));
                }
                unknown.insert(Box::new(KnownImage::new(device, sample, past)))
            }
        };
        (image.met, image.device) = (true, device);
        // Before it is judged: a change of its severity names its VM.
        changes.extend(owner.and_then(|owner| image.set_owner(owner)));
        changes.extend(image.assess(assessor, now));
        changes
    }

    /// Judges the host, whose memory is `ram`, by the memory of all extent maps.
    pub(super) fn host(&mut self, assessor: &Assessor, ram: Bytes) -> Option<Change> {
        let memory = self.memory();
        let thresholds = assessor.thresholds();
        let (limits, hysteresis) = (&thresholds.host, thresholds.hysteresis);
        let from = self.judge.severity();
        let reason = self.judge.judge(limits, hysteresis, memory, ram);
        let to = self.judge.severity();
        self.host = HostView {
            memory,
            severity: to,
            reason: Some(reason),
        };
        SeverityChange::between((from, to), reason, || Subject::Host { memory })
    }

    /// Stores a failed read. Reported once, not each sweep.
    pub(super) fn fault(&mut self, device: DeviceNumber, fault: Fault) -> Option<Change> {
        let before = self.faults.get(&fault.path);
        let known = before.is_some_and(|(_, error)| *error == fault.error);
        self.met_faults
            .insert(fault.path.clone(), (device, fault.error.clone()));
        (!known).then_some(Change::Fault(fault))
    }

    /// Ends a sweep: forgets images that were not found, unless they could not be identified or
    /// their file system is `unanswering`.
    pub(super) fn end(&mut self, unanswering: &BTreeSet<DeviceNumber>) -> Vec<Change> {
        let mut changes = Vec::new();
        self.images.retain(|_, image| {
            let stays = image.met
                || unanswering.contains(&image.device)
                || self.unidentified.contains(&image.sample.id);
            if !stays {
                changes.push(Change::Vanished(image.sample.path.clone()));
                if let Ok(key) = &image.sample.key {
                    self.past.insert(key.clone(), image.take_past());
                }
            }
            stays
        });
        if self.past.len() > MOST_PAST {
            self.past.clear();
        }
        if self.known.len() > MOST_KNOWN {
            self.known.clear();
        }
        let met = &self.met_filesystems;
        self.filesystems
            .retain(|device, _| met.contains(device) || unanswering.contains(device));
        self.spaces.retain(&self.filesystems);
        let faults = std::mem::take(&mut self.met_faults);
        for (path, fault) in std::mem::replace(&mut self.faults, faults) {
            if unanswering.contains(&fault.0) {
                self.faults.entry(path).or_insert(fault);
            } else if !self.faults.contains_key(&path) {
                changes.push(Change::Mended(path));
            }
        }
        changes
    }

    pub(super) fn counted_rows(&self) -> Vec<SampleRow> {
        let met = self.images.values().filter(|image| image.met);
        met.filter_map(|image| image.row()).collect()
    }

    pub(super) fn is_xfs(&self, device: DeviceNumber) -> bool {
        let filesystem = self.filesystems.get(&device);
        filesystem.is_some_and(|it| it.kind == FilesystemKind::Xfs)
    }

    /// One line for `systemctl status`: `12 images, worst 1.2M extents in db-1.qcow2`.
    pub(super) fn summary(&self) -> String {
        let plural = if self.images.len() == 1 { "" } else { "s" };
        let count = format!("{} image{plural}", self.images.len());
        let Some(worst) = self
            .images
            .values()
            .max_by_key(|image| image.sample.extents)
        else {
            return count;
        };
        let name = worst.sample.path.file_name().unwrap_or_default();
        format!(
            "{count}, worst {} extents in {}",
            worst.sample.extents.short(),
            shown(name.as_ref())
        )
    }

    /// The current state for the servers; `swept` in seconds since 1970.
    pub(super) fn snapshot(&self, swept: Option<f64>) -> Snapshot {
        let (images, filesystems) = self.views();
        let host = HostView {
            memory: self.memory(),
            ..self.host
        };
        Snapshot::new(&images, &filesystems, host, swept)
    }

    fn views(&self) -> (Vec<ImageView<'_>>, Vec<FilesystemView<'_>>) {
        let mut images: Vec<_> = self.images.values().collect();
        // Of two images at the same path, the one that the sweep found comes last.
        images.sort_by_key(|image| image.met);
        let images = images.into_iter();
        let images = images.map(|image| image.view(self.filesystems.get(&image.device)));
        let filesystem = |(device, filesystem): (&DeviceNumber, _)| {
            let on = self.images.values().filter(|image| image.device == *device);
            FilesystemView {
                filesystem,
                extents: on.map(|image| image.sample.extents).sum(),
                space: self.space(*device).map(Arc::as_ref),
            }
        };
        let filesystems = self.filesystems.iter().map(filesystem);
        (images.collect(), filesystems.collect())
    }

    /// Memory of the loaded extent maps of all images on XFS.
    fn memory(&self) -> Bytes {
        let on_xfs = self
            .images
            .values()
            .filter(|image| self.is_xfs(image.device));
        on_xfs
            .map(|image| extent_map_memory(image.sample.extents))
            .sum()
    }
}

fn hash(key: &ImageKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
