//! What the daemon knows of images and file systems, from sweep to sweep. Pure: it is told what was
//! met and says what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::assess;
use crate::config::settings::Thresholds;
use crate::model::memory::extent_map_memory;
use crate::model::path::shown;
use crate::model::{
    Bytes, DeviceNumber, ExtentCount, ExtentMap, Filesystem, FilesystemKind, ImageId, Owner,
    Sample, Severity, UnixTime,
};
use crate::probe::protocol::Fault;
use crate::serve::board::Snapshot;
use crate::serve::metrics::{FilesystemNow, ImageNow, render_now};
use crate::serve::status::{self, Row};

/// Images on the landing page.
const WORST: usize = 20;

/// Rest after a map that could not be read to its end; four times as long each further time.
const PUT_OFF: Duration = Duration::from_secs(5);
/// The rest does not grow beyond this.
const PUT_OFF_AT_MOST: Duration = Duration::from_secs(12 * 3600);

/// One image.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) device: DeviceNumber,
    pub(super) sample: Sample,
    /// Who had it open when it was counted last.
    pub(super) owner: Owner,
    pub(super) severity: Severity,
    pub(super) map: Option<ExtentMap>,
    /// When its map was last read, or refused to be.
    pub(super) map_read: Option<Instant>,
    /// How often in a row reading its map came to no end, and until when it is left alone.
    put_off: (u32, Option<Instant>),
    /// Met in the sweep under way.
    met: bool,
}

impl Entry {
    /// Whether reading its map has failed a short time ago.
    pub(super) fn map_is_put_off(&self, now: Instant) -> bool {
        self.put_off.1.is_some_and(|until| now < until)
    }
}

/// Something that changed and is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Appeared(PathBuf, ExtentCount),
    Renamed(PathBuf, PathBuf),
    Vanished(PathBuf),
    Severity(PathBuf, Severity, ExtentCount),
    /// It is written to while some read it through the page cache and some past it.
    Mixed(PathBuf, Owner),
    Fault(Fault),
    Mended(PathBuf),
}

/// All images and file systems.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    images: BTreeMap<ImageId, Entry>,
    filesystems: BTreeMap<DeviceNumber, Filesystem>,
    met_filesystems: BTreeSet<DeviceNumber>,
    /// What could not be read in the last sweep, and why.
    faults: BTreeMap<PathBuf, (DeviceNumber, String)>,
    met_faults: BTreeMap<PathBuf, (DeviceNumber, String)>,
}

impl Inventory {
    /// Begins a sweep.
    pub(super) fn begin(&mut self) {
        self.images.values_mut().for_each(|entry| entry.met = false);
        self.met_filesystems.clear();
        self.met_faults.clear();
    }

    /// A file system was met.
    pub(super) fn filesystem(&mut self, device: DeviceNumber, filesystem: Filesystem) {
        self.met_filesystems.insert(device);
        self.filesystems.insert(device, filesystem);
    }

    /// An image was counted.
    pub(super) fn image(
        &mut self,
        device: DeviceNumber,
        sample: Sample,
        owner: Option<Owner>,
        thresholds: &Thresholds,
    ) -> Vec<Change> {
        let id = sample.id;
        let mut changes = Vec::new();
        changes.extend(self.replaced(&sample));
        changes.extend(self.counted(device, sample, thresholds));
        changes.extend(owner.and_then(|owner| self.owned(id, owner)));
        changes
    }

    /// Who has an image open was found out.
    fn owned(&mut self, id: ImageId, owner: Owner) -> Option<Change> {
        let entry = self.images.get_mut(&id)?;
        let before = std::mem::replace(&mut entry.owner, owner);
        // Once, not each sweep.
        let news = entry.owner.is_mixed() && !before.is_mixed();
        news.then(|| Change::Mixed(entry.sample.path.clone(), entry.owner.clone()))
    }

    /// Forgets the image whose inode a new file has: same number, another generation.
    fn replaced(&mut self, sample: &Sample) -> Option<Change> {
        let before = self.images.get(&sample.id)?;
        if before.sample.generation == sample.generation {
            return None;
        }
        let before = self.images.remove(&sample.id)?;
        Some(Change::Vanished(before.sample.path))
    }

    fn counted(
        &mut self,
        device: DeviceNumber,
        sample: Sample,
        thresholds: &Thresholds,
    ) -> Option<Change> {
        let severity = assess::severity(sample.extents, thresholds);
        let path = sample.path.clone();
        let Some(entry) = self.images.get_mut(&sample.id) else {
            let change = Change::Appeared(path, sample.extents);
            let entry = Entry {
                device,
                owner: Owner::default(),
                severity,
                map: None,
                map_read: None,
                put_off: (0, None),
                met: true,
                sample,
            };
            self.images.insert(entry.sample.id, entry);
            return Some(change);
        };
        entry.met = true;
        entry.device = device;
        let before = std::mem::replace(&mut entry.sample, sample);
        let severity_before = std::mem::replace(&mut entry.severity, severity);
        if before.path != path {
            return Some(Change::Renamed(before.path, path));
        }
        let changed = severity_before != severity;
        changed.then_some(Change::Severity(path, severity, entry.sample.extents))
    }

    /// Something could not be read. Says so once, not each sweep.
    pub(super) fn fault(&mut self, device: DeviceNumber, fault: Fault) -> Option<Change> {
        let before = self.faults.get(&fault.path);
        let known = before.is_some_and(|(_, error)| *error == fault.error);
        self.met_faults
            .insert(fault.path.clone(), (device, fault.error.clone()));
        (!known).then_some(Change::Fault(fault))
    }

    /// Ends a sweep: forgets images that were not met, but for those on `unanswering` file systems,
    /// of which nothing is known.
    pub(super) fn end(&mut self, unanswering: &BTreeSet<DeviceNumber>) -> Vec<Change> {
        let mut changes = Vec::new();
        self.images.retain(|_, entry| {
            let stays = entry.met || unanswering.contains(&entry.device);
            if !stays {
                changes.push(Change::Vanished(entry.sample.path.clone()));
            }
            stays
        });
        let met = &self.met_filesystems;
        self.filesystems
            .retain(|device, _| met.contains(device) || unanswering.contains(device));
        let mut faults = std::mem::take(&mut self.met_faults);
        for (path, fault) in &self.faults {
            if unanswering.contains(&fault.0) {
                faults.entry(path.clone()).or_insert_with(|| fault.clone());
            }
        }
        let mended = self
            .faults
            .keys()
            .filter(|path| !faults.contains_key(*path));
        changes.extend(mended.cloned().map(Change::Mended));
        self.faults = faults;
        changes
    }

    /// The images of each file system.
    pub(super) fn images(&self) -> impl Iterator<Item = &Entry> {
        self.images.values()
    }

    /// One image.
    pub(super) fn get(&self, id: ImageId) -> Option<&Entry> {
        self.images.get(&id)
    }

    /// The map of an image was read.
    pub(super) fn map_read(&mut self, id: ImageId, map: ExtentMap, now: Instant) {
        self.map_refused(id, now);
        if let Some(entry) = self.images.get_mut(&id) {
            entry.map = Some(map);
        }
    }

    /// The map of an image cannot be read: not before its next turn. The former one stays.
    pub(super) fn map_refused(&mut self, id: ImageId, now: Instant) {
        if let Some(entry) = self.images.get_mut(&id) {
            entry.map_read = Some(now);
            entry.put_off = (0, None);
        }
    }

    /// Reading the map of an image came to no end. It is tried again soon; if that fails too, later
    /// and later, for then the image may be what its file system hangs on.
    pub(super) fn map_put_off(&mut self, id: ImageId, now: Instant) {
        if let Some(entry) = self.images.get_mut(&id) {
            let failures = entry.put_off.0;
            let rest = PUT_OFF.saturating_mul(4_u32.saturating_pow(failures));
            let until = now + rest.min(PUT_OFF_AT_MOST);
            entry.put_off = (failures.saturating_add(1), Some(until));
        }
    }

    /// In one line, for `systemctl status`: `12 images, worst 1.2M extents in db-1.qcow2`.
    pub(super) fn status(&self) -> String {
        let plural = if self.images.len() == 1 { "" } else { "s" };
        let count = format!("{} image{plural}", self.images.len());
        let worst = self
            .images
            .values()
            .max_by_key(|entry| entry.sample.extents);
        let Some(worst) = worst else { return count };
        let name = worst.sample.path.file_name().unwrap_or_default();
        format!(
            "{count}, worst {} extents in {}",
            worst.sample.extents.short(),
            shown(name.as_ref())
        )
    }

    /// What is known now, for the board; `swept` in seconds since 1970.
    pub(super) fn snapshot(&self, swept: Option<f64>) -> Snapshot {
        let mount = |entry: &Entry| {
            let filesystem = self.filesystems.get(&entry.device);
            filesystem.map(|fs| shown(&fs.mount)).unwrap_or_default()
        };
        let mounts: Vec<_> = self.images.values().map(mount).collect();
        let images: Vec<_> = self
            .images
            .values()
            .zip(&mounts)
            .map(|(entry, filesystem)| ImageNow {
                sample: &entry.sample,
                owner: &entry.owner,
                map: entry.map.as_ref(),
                severity: entry.severity,
                filesystem,
            })
            .collect();
        let filesystems: Vec<_> = self
            .filesystems
            .iter()
            .map(|(device, filesystem)| FilesystemNow {
                filesystem,
                extents: self.on(*device).map(|entry| entry.sample.extents).sum(),
            })
            .collect();
        Snapshot {
            text: render_now(&images, &filesystems, self.memory(), swept),
            images: self.totals(),
            worst: self.worst(),
            swept: swept.map(UnixTime::from_seconds),
        }
    }

    fn on(&self, device: DeviceNumber) -> impl Iterator<Item = &Entry> {
        self.images
            .values()
            .filter(move |entry| entry.device == device)
    }

    /// What the maps of all images on XFS take when they are loaded.
    fn memory(&self) -> Bytes {
        let xfs = self
            .filesystems
            .iter()
            .filter(|(_, fs)| fs.kind == FilesystemKind::Xfs);
        xfs.flat_map(|(device, _)| self.on(*device))
            .map(|entry| extent_map_memory(entry.sample.extents))
            .sum()
    }

    fn totals(&self) -> status::Images {
        let of = |severity| {
            let with = |entry: &&Entry| entry.severity == severity;
            self.images.values().filter(with).count()
        };
        status::Images {
            total: self.images.len(),
            ok: of(Severity::Ok),
            warning: of(Severity::Warning),
            critical: of(Severity::Critical),
            extents: self.images.values().map(|entry| entry.sample.extents).sum(),
            extent_map_memory: self.memory(),
        }
    }

    fn worst(&self) -> Vec<Row> {
        let mut entries: Vec<_> = self.images.values().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.sample.extents));
        let row = |entry: &Entry| Row {
            path: shown(&entry.sample.path),
            size: entry.sample.size,
            extents: entry.sample.extents,
            severity: entry.severity,
            vm: entry.owner.vm().and_then(|vm| vm.name.clone()),
            ..Row::default()
        };
        entries.into_iter().take(WORST).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Format, Opener};

    const DEVICE: DeviceNumber = DeviceNumber { major: 7, minor: 0 };

    fn sample(inode: u64, path: &str, extents: u64) -> Sample {
        Sample {
            id: ImageId { device: 1, inode },
            generation: 1,
            path: PathBuf::from(path),
            format: Format::Raw,
            extents: ExtentCount(extents),
            size: Bytes(1),
            allocated: Bytes(1),
            extent_size_hint: Bytes(0),
            directory_hint: Bytes(0),
        }
    }

    struct Sweeps(Inventory);

    impl Sweeps {
        fn sweep(&mut self, samples: &[Sample], answers: bool) -> Vec<Change> {
            self.0.begin();
            let thresholds = Thresholds::default();
            let met: Vec<_> = samples
                .iter()
                .flat_map(|sample| self.0.image(DEVICE, sample.clone(), None, &thresholds))
                .collect();
            let unanswering = BTreeSet::from_iter((!answers).then_some(DEVICE));
            met.into_iter().chain(self.0.end(&unanswering)).collect()
        }
    }

    #[test]
    fn images_come_rename_and_go() {
        let mut sweeps = Sweeps(Inventory::default());
        let (a, b) = (PathBuf::from("/a"), PathBuf::from("/b"));
        let changes = sweeps.sweep(&[sample(1, "/a", 5)], true);
        assert_eq!(changes, [Change::Appeared(a.clone(), ExtentCount(5))]);
        assert_eq!(sweeps.sweep(&[sample(1, "/a", 6)], true), []);
        let changes = sweeps.sweep(&[sample(1, "/b", 6)], true);
        assert_eq!(changes, [Change::Renamed(a, b.clone())]);
        assert_eq!(sweeps.sweep(&[], true), [Change::Vanished(b)]);
        assert!(!sweeps.0.snapshot(None).text.contains("image="));
    }

    #[test]
    fn a_file_that_took_the_inode_of_an_image_is_another_image() {
        let mut sweeps = Sweeps(Inventory::default());
        sweeps.sweep(&[sample(1, "/a", 500_000)], true);
        let id = sample(1, "/a", 0).id;
        sweeps.0.map_read(id, ExtentMap::default(), Instant::now());
        let restored = Sample {
            generation: 2,
            ..sample(1, "/a", 5)
        };
        let changes = sweeps.sweep(&[restored], true);
        let vanished = Change::Vanished("/a".into());
        assert_eq!(
            changes,
            [vanished, Change::Appeared("/a".into(), ExtentCount(5))]
        );
        let entry = sweeps.0.get(id).unwrap();
        assert!(entry.map.is_none(), "it was the other one's");
        assert_eq!(entry.severity, Severity::Ok);
    }

    #[test]
    fn mixed_openers_are_told_once_and_the_owner_stays_while_it_is_not_known() {
        let mut inventory = Inventory::default();
        let sample = sample(1, "/a", 5);
        let opener = |pid, direct| Opener {
            pid,
            writes: true,
            direct,
            buffered: !direct,
            ..Opener::default()
        };
        let mixed = Owner {
            openers: vec![opener(1, true), opener(2, false)],
        };
        let mut look = |owner: Option<&Owner>| {
            let owner = owner.cloned();
            let thresholds = Thresholds::default();
            let changes = inventory.image(DEVICE, sample.clone(), owner, &thresholds);
            let in_use = inventory.get(sample.id).unwrap().owner.in_use();
            (changes, in_use)
        };
        let appeared = Change::Appeared("/a".into(), ExtentCount(5));
        let change = || Change::Mixed("/a".into(), mixed.clone());
        assert_eq!(look(Some(&mixed)), (vec![appeared, change()], true));
        assert_eq!(look(Some(&mixed)), (vec![], true));
        assert_eq!(look(None), (vec![], true));
        assert_eq!(look(Some(&Owner::default())), (vec![], false));
        assert_eq!(look(Some(&mixed)), (vec![change()], true));
    }

    #[test]
    fn images_of_a_file_system_that_does_not_answer_stay() {
        let mut sweeps = Sweeps(Inventory::default());
        sweeps.sweep(&[sample(1, "/a", 5), sample(2, "/b", 5)], true);
        // Before it hung it told of one of them.
        assert_eq!(sweeps.sweep(&[sample(1, "/a", 6)], false), []);
        assert_eq!(sweeps.0.images().count(), 2);
        assert_eq!(
            sweeps.sweep(&[sample(1, "/a", 6)], true),
            [Change::Vanished("/b".into())]
        );
    }

    #[test]
    fn a_map_that_does_not_come_is_put_off_longer_and_longer() {
        let mut inventory = Inventory::default();
        let sample = sample(1, "/a", 5);
        let id = sample.id;
        inventory.image(DEVICE, sample, None, &Thresholds::default());
        let is_put_off = |inventory: &Inventory, now| {
            let entry = inventory.get(id).unwrap();
            assert!(entry.map.is_some(), "what was known stays");
            entry.map_is_put_off(now)
        };
        let mut now = Instant::now();
        inventory.map_read(id, ExtentMap::default(), now);
        for rest in [5, 20, 80] {
            inventory.map_put_off(id, now);
            let before = now + Duration::from_secs(rest - 1);
            assert!(is_put_off(&inventory, before));
            now += Duration::from_secs(rest);
            assert!(!is_put_off(&inventory, now));
        }
        for _ in 0..100 {
            inventory.map_put_off(id, now);
        }
        assert!(!is_put_off(&inventory, now + PUT_OFF_AT_MOST));
        inventory.map_refused(id, now);
        assert!(!is_put_off(&inventory, now));
    }

    #[test]
    fn a_severity_is_told_when_it_changes() {
        let mut sweeps = Sweeps(Inventory::default());
        sweeps.sweep(&[sample(1, "/a", 5)], true);
        let worse = [sample(1, "/a", 500_000)];
        let change = Change::Severity("/a".into(), Severity::Warning, ExtentCount(500_000));
        assert_eq!(sweeps.sweep(&worse, true), [change]);
        assert_eq!(sweeps.sweep(&worse, true), []);
        assert_eq!(sweeps.0.status(), "1 image, worst 500k extents in a");
    }

    #[test]
    fn a_fault_is_told_once_and_so_is_its_end() {
        let mut inventory = Inventory::default();
        let fault = || Fault {
            path: "/x".into(),
            error: "no".to_owned(),
        };
        let none = BTreeSet::new();
        inventory.begin();
        assert_eq!(
            inventory.fault(DEVICE, fault()),
            Some(Change::Fault(fault()))
        );
        assert_eq!(inventory.end(&none), []);
        inventory.begin();
        assert_eq!(inventory.fault(DEVICE, fault()), None);
        assert_eq!(inventory.end(&none), []);
        inventory.begin();
        assert_eq!(
            inventory.end(&BTreeSet::from([DEVICE])),
            [],
            "nothing is known of it"
        );
        inventory.begin();
        assert_eq!(inventory.end(&none), [Change::Mended("/x".into())]);
    }
}
