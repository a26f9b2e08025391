//! What the daemon knows of images and file systems, from sweep to sweep. Pure: it is told what was
//! met and says what has changed.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::assess::{Assessor, Facts, HostJudge, Judge, Reason};
use crate::growth::{Recent, forecast};
use crate::history::{ImageRef, SampleRow};
use crate::model::memory::extent_map_memory;
use crate::model::path::shown;
use crate::model::{
    Bytes, DeviceNumber, ExtentCount, ExtentMap, Filesystem, FilesystemKind, Forecast, Growth,
    ImageId, ImageKey, Outlook, Owner, Point, Sample, Severity, UnixTime,
};
use crate::probe::protocol::Fault;
use crate::serve::board::Snapshot;
use crate::serve::metrics::{FilesystemNow, HostNow, ImageNow, render_now};
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
    /// Its last counts.
    recent: Recent,
    /// What they say.
    pub(super) growth: Growth,
    /// When it will be critical.
    pub(super) forecast: Forecast,
    judge: Judge,
    /// Why it has the severity that it has.
    reason: Reason,
    pub(super) map: Option<ExtentMap>,
    /// What could be gained, when its map was read or sampled.
    pub(super) outlook: Option<Outlook>,
    /// When its map was last read, or refused to be.
    pub(super) map_read: Option<Instant>,
    /// How often in a row reading its map came to no end, and until when it is left alone.
    put_off: (u32, Option<Instant>),
    /// Met in the sweep under way.
    met: bool,
}

impl Entry {
    /// How bad it is.
    pub(super) fn severity(&self) -> Severity {
        self.judge.severity()
    }

    /// The name of the VM that has it open, in one line.
    fn vm(&self) -> Option<String> {
        let name = self.owner.vm()?.name.as_deref()?;
        Some(shown(Path::new(name)))
    }

    /// Takes in its count of `now`.
    fn assess(&mut self, assessor: &Assessor, now: UnixTime) -> Option<Change> {
        let extents = self.sample.extents;
        self.recent
            .push(Point { at: now, extents }, assessor.window());
        self.growth = self.recent.growth(assessor.window(), now);
        let limits = assessor.limits(&self.sample.path);
        self.forecast = forecast(&self.growth, extents, limits.critical.extents);
        let facts = Facts {
            extents,
            growth: &self.growth,
            forecast: self.forecast,
        };
        let from = self.judge.severity();
        let hysteresis = assessor.thresholds().hysteresis;
        let reason = self.judge.judge(&limits, hysteresis, &facts);
        self.reason = reason;
        let to = self.judge.severity();
        let change = || SeverityChange {
            subject: Subject::Image {
                id: self.sample.id,
                path: self.sample.path.clone(),
                vm: self.vm(),
                extents,
                growth: self.growth,
                forecast: self.forecast,
            },
            from,
            to,
            reason,
        };
        (from != to).then(|| Change::Severity(Box::new(change())))
    }

    /// Whether reading its map has failed a short time ago.
    pub(super) fn map_is_put_off(&self, now: Instant) -> bool {
        self.put_off.1.is_some_and(|until| now < until)
    }
}

/// A severity that is another one now.
#[derive(Debug, PartialEq)]
pub(super) struct SeverityChange {
    pub(super) subject: Subject,
    pub(super) from: Severity,
    pub(super) to: Severity,
    /// Why it is what it is.
    pub(super) reason: Reason,
}

impl SeverityChange {
    /// The image that has it, unless it is that of the host.
    pub(super) fn image(&self) -> Option<ImageId> {
        match self.subject {
            Subject::Image { id, .. } => Some(id),
            Subject::Host { .. } => None,
        }
    }
}

/// What has a severity.
#[derive(Debug, PartialEq)]
pub(super) enum Subject {
    Image {
        id: ImageId,
        path: PathBuf,
        /// The name of the VM that has it open.
        vm: Option<String>,
        extents: ExtentCount,
        growth: Growth,
        forecast: Forecast,
    },
    /// All extent maps together take so much.
    Host { memory: Bytes },
}

/// Something that changed and is worth a line in the log.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    Appeared(PathBuf, ExtentCount),
    Renamed(PathBuf, PathBuf),
    Vanished(PathBuf),
    Severity(Box<SeverityChange>),
    /// It is written to while some read it through the page cache and some past it.
    Mixed(PathBuf, Owner),
    Fault(Fault),
    Mended(PathBuf),
}

/// All images and file systems.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    images: BTreeMap<ImageId, Entry>,
    /// What was known before the daemon began of images that it has not met yet.
    restored: BTreeMap<ImageKey, (Recent, Judge)>,
    host: HostJudge,
    /// Why the host has the severity that it has.
    host_reason: Option<Reason>,
    filesystems: BTreeMap<DeviceNumber, Filesystem>,
    met_filesystems: BTreeSet<DeviceNumber>,
    /// What could not be read in the last sweep, and why.
    faults: BTreeMap<PathBuf, (DeviceNumber, String)>,
    met_faults: BTreeMap<PathBuf, (DeviceNumber, String)>,
    /// Images met in the sweep under way of which it could not be read who they are.
    unidentified: BTreeSet<ImageId>,
}

impl Inventory {
    /// Begins a sweep.
    pub(super) fn begin(&mut self) {
        self.images.values_mut().for_each(|entry| entry.met = false);
        self.met_filesystems.clear();
        self.met_faults.clear();
        self.unidentified.clear();
    }

    /// A file system was met.
    pub(super) fn filesystem(&mut self, device: DeviceNumber, filesystem: Filesystem) {
        self.met_filesystems.insert(device);
        self.filesystems.insert(device, filesystem);
    }

    /// Takes the last counts of an image and its severity from the history, before it is first met.
    pub(super) fn restore(&mut self, key: ImageKey, recent: Recent, severity: Severity) {
        let past = (recent, Judge::remembering(severity));
        self.restored.insert(key, past);
    }

    /// An image was counted. One of which it could not be read who it is stays as it was: the count
    /// could be that of another file.
    pub(super) fn image(
        &mut self,
        device: DeviceNumber,
        sample: Sample,
        owner: Option<Owner>,
        assessor: &Assessor,
        now: UnixTime,
    ) -> Vec<Change> {
        let id = sample.id;
        if let Err(why) = &sample.key {
            self.unidentified.insert(id);
            let error = format!("not recorded, because it cannot be identified: {why}");
            let path = sample.path;
            return Vec::from_iter(self.fault(device, Fault { path, error }));
        }
        let mut changes = Vec::new();
        changes.extend(self.replaced(&sample));
        changes.extend(self.counted(device, sample, assessor, now));
        // Before it is judged: who hears of it is told whose it is.
        changes.extend(owner.and_then(|owner| self.owned(id, owner)));
        let entry = self.images.get_mut(&id);
        changes.extend(entry.and_then(|entry| entry.assess(assessor, now)));
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
        let generation = |sample: &Sample| sample.key.as_ref().ok().map(|key| key.generation);
        if generation(&before.sample) == generation(sample) {
            return None;
        }
        let before = self.images.remove(&sample.id)?;
        Some(Change::Vanished(before.sample.path))
    }

    fn counted(
        &mut self,
        device: DeviceNumber,
        sample: Sample,
        assessor: &Assessor,
        now: UnixTime,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let entry = match self.images.entry(sample.id) {
            btree_map::Entry::Occupied(known) => {
                let entry = known.into_mut();
                let before = std::mem::replace(&mut entry.sample, sample);
                if before.path != entry.sample.path {
                    changes.push(Change::Renamed(before.path, entry.sample.path.clone()));
                }
                entry
            }
            btree_map::Entry::Vacant(unknown) => {
                changes.push(Change::Appeared(sample.path.clone(), sample.extents));
                let key = sample.key.as_ref().ok();
                let past = key.and_then(|key| self.restored.remove(key));
                let (recent, judge) = past.unwrap_or_default();
                unknown.insert(Entry {
                    device,
                    sample,
                    owner: Owner::default(),
                    growth: recent.growth(assessor.window(), now),
                    recent,
                    forecast: Forecast::Never,
                    judge,
                    reason: Reason::BelowAll,
                    map: None,
                    outlook: None,
                    map_read: None,
                    put_off: (0, None),
                    met: true,
                })
            }
        };
        entry.met = true;
        entry.device = device;
        changes
    }

    /// Judges the host, which has so much memory, by what all extent maps take.
    pub(super) fn host(&mut self, assessor: &Assessor, ram: Bytes) -> Option<Change> {
        let memory = self.memory();
        let from = self.host.severity();
        let thresholds = assessor.thresholds();
        let (limits, hysteresis) = (&thresholds.host, thresholds.hysteresis);
        let reason = self.host.judge(limits, hysteresis, memory, ram);
        let to = self.host.severity();
        self.host_reason = Some(reason);
        let subject = Subject::Host { memory };
        let change = SeverityChange {
            subject,
            from,
            to,
            reason,
        };
        (from != to).then(|| Change::Severity(Box::new(change)))
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
            let stays = entry.met
                || unanswering.contains(&entry.device)
                || self.unidentified.contains(&entry.sample.id);
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

    /// An image as the history knows it; nothing if it is not met any more.
    pub(super) fn reference(&self, id: ImageId) -> Option<ImageRef> {
        let entry = self.images.get(&id)?;
        Some(ImageRef {
            key: entry.sample.key.clone().ok()?,
            path: entry.sample.path.clone(),
        })
    }

    /// All images that the sweep has counted, as the history notes them.
    pub(super) fn counted_rows(&self) -> Vec<SampleRow> {
        let row = |entry: &Entry| {
            let sample = &entry.sample;
            Some(SampleRow {
                image: self.reference(sample.id)?,
                format: sample.format,
                extents: sample.extents,
                size: sample.size,
                allocated: sample.allocated,
            })
        };
        let met = self.images.values().filter(|entry| entry.met);
        met.filter_map(row).collect()
    }

    /// The images of each file system.
    pub(super) fn images(&self) -> impl Iterator<Item = &Entry> {
        self.images.values()
    }

    /// All file systems.
    pub(super) fn filesystems(&self) -> impl Iterator<Item = &Filesystem> {
        self.filesystems.values()
    }

    /// An image was defragmented: its growth begins anew, and its map is another one.
    pub(super) fn defragmented(&mut self, id: ImageId) {
        if let Some(entry) = self.images.get_mut(&id) {
            entry.recent.clear();
            entry.map = None;
            entry.outlook = None;
            entry.map_read = None;
        }
    }

    /// One image.
    pub(super) fn get(&self, id: ImageId) -> Option<&Entry> {
        self.images.get(&id)
    }

    /// The map of an image was read.
    pub(super) fn map_read(&mut self, id: ImageId, map: ExtentMap, now: Instant) {
        self.map_refused(id, now);
        if let Some(entry) = self.images.get_mut(&id) {
            entry.outlook = Some(Outlook::of_map(&map.borders));
            entry.map = Some(map);
        }
    }

    /// The map of an image was sampled.
    pub(super) fn map_sampled(&mut self, id: ImageId, outlook: Outlook, now: Instant) {
        self.map_refused(id, now);
        if let Some(entry) = self.images.get_mut(&id) {
            entry.outlook = Some(outlook);
        }
    }

    /// Whether a file system is an XFS.
    pub(super) fn is_xfs(&self, device: DeviceNumber) -> bool {
        let filesystem = self.filesystems.get(&device);
        filesystem.is_some_and(|it| it.kind == FilesystemKind::Xfs)
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
                growth: entry.growth.rate(),
                time_left: entry.forecast.time_left(),
                severity: entry.severity(),
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
        let host = HostNow {
            memory: self.memory(),
            severity: self.host.severity(),
        };
        Snapshot {
            text: render_now(&images, &filesystems, host, swept),
            images: self.totals(),
            worst: self.worst(),
            host: status::Host {
                severity: self.host.severity(),
                reason: Self::why(self.host.severity(), self.host_reason),
            },
            vms: self.vms(),
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
            let with = |entry: &&Entry| entry.severity() == severity;
            self.images.values().filter(with).count()
        };
        status::Images {
            total: self.images.len(),
            ok: of(Severity::Ok),
            warning: of(Severity::Warning),
            critical: of(Severity::Critical),
            extents: self.images.values().map(|entry| entry.sample.extents).sum(),
            most_extents: self
                .images
                .values()
                .map(|entry| entry.sample.extents)
                .max()
                .unwrap_or_default(),
            extent_map_memory: self.memory(),
        }
    }

    /// What is told of a reason: nothing while all is well.
    fn why(severity: Severity, reason: Option<Reason>) -> Option<String> {
        let reason = reason.filter(|_| severity > Severity::Ok)?;
        Some(reason.to_string())
    }

    /// The VMs that have images open, by the paths of the images.
    fn vms(&self) -> BTreeMap<String, String> {
        let vm = |entry: &Entry| Some((shown(&entry.sample.path), entry.vm()?));
        self.images.values().filter_map(vm).collect()
    }

    fn worst(&self) -> Vec<Row> {
        let mut entries: Vec<_> = self.images.values().collect();
        // One that is bad only for its growth is not hidden behind those that are ok.
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.severity(), entry.sample.extents)));
        let row = |entry: &Entry| Row {
            path: shown(&entry.sample.path),
            size: entry.sample.size,
            extents: entry.sample.extents,
            severity: entry.severity(),
            reason: Self::why(entry.severity(), Some(entry.reason)),
            vm: entry.vm(),
            growth_per_day: entry.growth.rate(),
            seconds_to_critical: entry.forecast.time_left().map(|left| left.as_secs()),
        };
        entries.into_iter().take(WORST).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Thresholds;
    use crate::model::{Format, Opener, Unknown};

    const DEVICE: DeviceNumber = DeviceNumber { major: 7, minor: 0 };

    fn sample(inode: u64, path: &str, extents: u64) -> Sample {
        Sample {
            id: ImageId { device: 1, inode },
            key: Ok(ImageKey {
                filesystem: "1234".to_owned(),
                inode,
                generation: 1,
            }),
            path: PathBuf::from(path),
            format: Format::Raw,
            extents: ExtentCount(extents),
            size: Bytes(1),
            allocated: Bytes(1),
            extent_size_hint: Bytes(0),
            directory_hint: Bytes(0),
        }
    }

    fn assessor() -> Assessor {
        Assessor::new(&Thresholds::default())
    }

    /// One sweep a minute.
    #[derive(Default)]
    struct Sweeps(Inventory, i64);

    fn filesystem() -> Filesystem {
        Filesystem {
            mount: "/srv".into(),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            uuid: Some("1234".to_owned()),
            features: None,
            size: Bytes(1 << 40),
            free: Bytes(1 << 39),
            block_size: Bytes(4096),
        }
    }

    fn key(sample: &Sample) -> ImageKey {
        sample.key.clone().unwrap()
    }

    impl Sweeps {
        fn sweep(&mut self, samples: &[Sample], answers: bool) -> Vec<Change> {
            self.0.begin();
            self.0.filesystem(DEVICE, filesystem());
            self.1 += 60;
            let (now, assessor) = (UnixTime(self.1), assessor());
            let met: Vec<_> = samples
                .iter()
                .flat_map(|sample| self.0.image(DEVICE, sample.clone(), None, &assessor, now))
                .collect();
            let unanswering = BTreeSet::from_iter((!answers).then_some(DEVICE));
            met.into_iter().chain(self.0.end(&unanswering)).collect()
        }
    }

    #[test]
    fn images_come_rename_and_go() {
        let mut sweeps = Sweeps::default();
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
        let mut sweeps = Sweeps::default();
        sweeps.sweep(&[sample(1, "/a", 500_000)], true);
        let id = sample(1, "/a", 0).id;
        sweeps.0.map_read(id, ExtentMap::default(), Instant::now());
        let mut restored = sample(1, "/a", 5);
        restored.key.as_mut().unwrap().generation = 2;
        let changes = sweeps.sweep(&[restored], true);
        let vanished = Change::Vanished("/a".into());
        assert_eq!(
            changes,
            [vanished, Change::Appeared("/a".into(), ExtentCount(5))]
        );
        let entry = sweeps.0.get(id).unwrap();
        assert!(entry.map.is_none(), "it was the other one's");
        assert_eq!(entry.severity(), Severity::Ok);
    }

    #[test]
    fn an_image_that_cannot_be_identified_stays_as_it_was() {
        let mut sweeps = Sweeps::default();
        let known = sample(1, "/a", 500_000);
        sweeps
            .0
            .restore(key(&known), Recent::default(), Severity::Warning);
        let unidentified = || Sample {
            key: Err("EIO".to_owned()),
            ..sample(1, "/a", 7)
        };
        // Not met before: nothing is known of it but that.
        let changes = sweeps.sweep(&[unidentified()], true);
        assert!(matches!(&changes[..], [Change::Fault(_)]), "{changes:?}");
        assert_eq!(sweeps.0.images().count(), 0);
        // A sweep later it is who it was.
        let changes = sweeps.sweep(std::slice::from_ref(&known), true);
        let appeared = Change::Appeared("/a".into(), ExtentCount(500_000));
        assert_eq!(changes, [appeared, Change::Mended("/a".into())]);
        assert_eq!(sweeps.0.counted_rows().len(), 1);

        sweeps.sweep(&[unidentified()], true);
        assert_eq!(sweeps.0.get(known.id).unwrap().sample, known);
        assert_eq!(sweeps.0.counted_rows(), []);
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
            let changes = inventory.image(DEVICE, sample.clone(), owner, &assessor(), UnixTime(0));
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
        let mut sweeps = Sweeps::default();
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
        inventory.image(DEVICE, sample, None, &assessor(), UnixTime(0));
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

    /// From which severity to which, and why.
    fn severities(changes: &[Change]) -> Vec<(Severity, Severity, String)> {
        let severity = |change: &Change| match change {
            Change::Severity(change) => Some((change.from, change.to, change.reason.to_string())),
            _ => None,
        };
        changes.iter().filter_map(severity).collect()
    }

    #[test]
    fn a_severity_is_told_when_it_changes() {
        let mut sweeps = Sweeps::default();
        sweeps.sweep(&[sample(1, "/a", 5)], true);
        let worse = [sample(1, "/a", 500_000)];
        let reason = "the threshold is 500,000 extents".to_owned();
        let change = [(Severity::Ok, Severity::Warning, reason)];
        assert_eq!(severities(&sweeps.sweep(&worse, true)), change);
        assert_eq!(sweeps.sweep(&worse, true), []);
        assert_eq!(sweeps.sweep(&[sample(1, "/a", 450_000)], true), []);
        assert_eq!(sweeps.0.status(), "1 image, worst 450k extents in a");
        // Under a new name, and ok again: both are told.
        let changes = sweeps.sweep(&[sample(1, "/b", 4)], true);
        assert_eq!(changes[0], Change::Renamed("/a".into(), "/b".into()));
        let reason = "below all thresholds".to_owned();
        let change = [(Severity::Warning, Severity::Ok, reason)];
        assert_eq!(severities(&changes), change);
    }

    #[test]
    fn an_image_that_appears_bad_is_told_once() {
        let mut sweeps = Sweeps::default();
        let bad = [sample(1, "/a", 6_000_000)];
        assert_eq!(severities(&sweeps.sweep(&bad, true)).len(), 1);
        assert_eq!(sweeps.sweep(&bad, true), []);
        // And not at all if it was bad before we began.
        let mut sweeps = Sweeps::default();
        let id = bad[0].id;
        sweeps
            .0
            .restore(key(&bad[0]), Recent::default(), Severity::Critical);
        assert_eq!(severities(&sweeps.sweep(&bad, true)), []);
        assert_eq!(sweeps.0.get(id).unwrap().severity(), Severity::Critical);
    }

    #[test]
    fn growth_is_known_after_an_hour_or_at_once_from_the_history() {
        let gains = |sweeps: &mut Sweeps, minute: u64| {
            sweeps.sweep(&[sample(1, "/a", 100_000 + 1000 * minute)], true)
        };
        let mut sweeps = Sweeps::default();
        for minute in 0..60 {
            assert_eq!(severities(&gains(&mut sweeps, minute)), []);
            assert!(!sweeps.0.snapshot(None).text.contains("growth_per_second{"));
        }
        let changes = severities(&gains(&mut sweeps, 60));
        let [(Severity::Ok, Severity::Warning, reason)] = changes.as_slice() else {
            panic!("{changes:?}");
        };
        // 1,440,000 a day; the forecast does not reach so far as to say when it is critical.
        assert_eq!(reason, "it gains +1,440,000/d, the threshold is +250,000/d");
        let text = sweeps.0.snapshot(None).text;
        let gains_now = "fragwatch_image_extents_growth_per_second{image=\"/a\"} 16.666";
        assert!(text.contains(gains_now), "{text}");
        assert!(!text.contains("seconds_to_critical{"), "{text}");

        let mut restored = Sweeps(Inventory::default(), 3600);
        let entry = sweeps.0.get(sample(1, "/a", 0).id).unwrap();
        restored
            .0
            .restore(key(&entry.sample), entry.recent.clone(), Severity::Warning);
        assert_eq!(severities(&gains(&mut restored, 61)), []);
        let entry = restored.0.get(entry.sample.id).unwrap();
        assert_eq!(entry.severity(), Severity::Warning);
        assert_eq!(entry.growth.rate().unwrap().count(), ExtentCount(1_440_000));
        // Then it is defragmented: nothing is known of it, and nothing holds it.
        let changes = restored.sweep(&[sample(1, "/a", 10)], true);
        assert_eq!(severities(&changes).len(), 1);
        let entry = restored.0.get(sample(1, "/a", 0).id).unwrap();
        assert_eq!(entry.growth.trend, Err(Unknown::TooFewSamples));
    }

    #[test]
    fn a_thousand_images_fit_into_memory() {
        let mut sweeps = Sweeps::default();
        let samples = |minute| -> Vec<_> {
            let extents = |inode| inode * 100 + minute;
            (0..2)
                .map(|inode| sample(inode, &format!("/{inode}"), extents(inode)))
                .collect()
        };
        for minute in 0..250 {
            sweeps.sweep(&samples(minute), true);
        }
        let bytes = |entry: &Entry| {
            std::mem::size_of::<Entry>() + std::mem::size_of_val(entry.recent.points())
        };
        let total: usize = sweeps.0.images().map(bytes).sum();
        // Of two; a thousand take less than 2.5 MiB.
        assert!(total * 500 < 5 << 19, "{total}");
    }

    #[test]
    fn the_host_is_told_when_its_maps_grow() {
        let mut sweeps = Sweeps::default();
        let filesystem = Filesystem {
            mount: PathBuf::from("/"),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            uuid: None,
            features: None,
            size: Bytes(1),
            free: Bytes(1),
            block_size: Bytes(4096),
        };
        sweeps.sweep(&[sample(1, "/a", 1_000_000)], true);
        sweeps.0.filesystem(DEVICE, filesystem);
        let told = |sweeps: &mut Sweeps, ram| {
            let change = sweeps.0.host(&assessor(), Bytes(ram));
            severities(&Vec::from_iter(change))
                .first()
                .map(|change| change.1)
        };
        assert_eq!(told(&mut sweeps, 1 << 40), None);
        assert_eq!(told(&mut sweeps, 1 << 30), Some(Severity::Warning));
        assert_eq!(told(&mut sweeps, 1 << 30), None);
        assert_eq!(told(&mut sweeps, 1 << 27), Some(Severity::Critical));
        assert!(sweeps.0.snapshot(None).text.contains("host_severity 2\n"));
        assert_eq!(told(&mut sweeps, 1 << 40), Some(Severity::Ok));
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
