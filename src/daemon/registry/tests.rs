use super::*;
use crate::config::settings::Thresholds;
use crate::model::{ExtentCount, ExtentMap, Format, Opener, Unknown};
use image::LONGEST_MAP_RETRY;
use std::time::{Duration, Instant};

pub(super) const DEVICE: DeviceNumber = DeviceNumber { major: 7, minor: 0 };

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
        cow_hint: Bytes(0),
        qcow2: None,
    }
}

fn assessor() -> Assessor {
    Assessor::new(&Thresholds::default())
}

/// One sweep a minute.
#[derive(Default)]
struct Sweeps(Registry, i64);

pub(super) fn filesystem() -> Filesystem {
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

fn image_mut(registry: &mut Registry, id: ImageId) -> &mut KnownImage {
    registry.images.get_mut(&id).unwrap()
}

/// The metrics.
fn text(registry: &Registry) -> String {
    let (snapshot, mut place) = (registry.snapshot(None), 0);
    let images = std::iter::from_fn(|| snapshot.metrics.chunk(&mut place));
    images.collect::<String>() + &snapshot.text
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
    assert!(!text(&sweeps.0).contains("image="));
    // Back again, as when its file system was unmounted, and still bad: neither is reported.
    let bad = [sample(1, "/b", 500_000)];
    assert_eq!(severities(&sweeps.sweep(&bad, true)).len(), 1);
    sweeps.sweep(&[], true);
    assert_eq!(sweeps.sweep(&bad, true), []);
}

#[test]
fn little_is_kept_of_images_that_are_gone() {
    let mut sweeps = Sweeps::default();
    for inode in 0..10 {
        let old = key(&sample(inode, "/", 1));
        sweeps.0.restore(old, Recent::default(), Severity::Ok);
    }
    // Only that they are not new.
    assert!(sweeps.0.past.is_empty());
    assert_eq!(sweeps.sweep(&[sample(9, "/9", 1)], true), []);
    for inode in 0..=MOST_PAST as u64 {
        sweeps.sweep(&[sample(inode, "/a", 1)], true);
        assert!(sweeps.0.past.len() <= MOST_PAST);
    }
}

#[test]
fn a_file_that_took_the_inode_of_an_image_is_another_image() {
    let mut sweeps = Sweeps::default();
    sweeps.sweep(&[sample(1, "/a", 500_000)], true);
    let id = sample(1, "/a", 0).id;
    image_mut(&mut sweeps.0, id).set_map(ExtentMap::default(), Instant::now());
    let mut restored = sample(1, "/a", 5);
    restored.key.as_mut().unwrap().generation = 2;
    let changes = sweeps.sweep(&[restored], true);
    let vanished = Change::Vanished("/a".into());
    assert_eq!(
        changes,
        [vanished, Change::Appeared("/a".into(), ExtentCount(5))]
    );
    let image = sweeps.0.images.get(&id).unwrap();
    assert!(image.map.is_none(), "it was the other one's");
    assert_eq!(image.severity(), Severity::Ok);
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
    assert_eq!(sweeps.0.images.values().count(), 0);
    // A sweep later it is identified again. It is not new: the history knows it.
    let changes = sweeps.sweep(std::slice::from_ref(&known), true);
    assert_eq!(changes, [Change::Mended("/a".into())]);
    assert_eq!(sweeps.0.counted_rows().len(), 1);

    sweeps.sweep(&[unidentified()], true);
    assert_eq!(sweeps.0.images.get(&known.id).unwrap().sample, known);
    assert_eq!(sweeps.0.counted_rows(), []);
}

#[test]
fn mixed_openers_are_reported_once_and_the_owner_stays_while_it_is_not_known() {
    let mut registry = Registry::default();
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
        let changes = registry.image(DEVICE, sample.clone(), owner, &assessor(), UnixTime(0));
        let in_use = registry.images.get(&sample.id).unwrap().owner.in_use();
        (changes, in_use)
    };
    let appeared = Change::Appeared("/a".into(), ExtentCount(5));
    let change = || Change::MixedOpeners("/a".into(), mixed.clone());
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
    // One of them was counted before it hung.
    assert_eq!(sweeps.sweep(&[sample(1, "/a", 6)], false), []);
    assert_eq!(sweeps.0.images.values().count(), 2);
    assert_eq!(
        sweeps.sweep(&[sample(1, "/a", 6)], true),
        [Change::Vanished("/b".into())]
    );
}

#[test]
fn a_map_that_does_not_come_is_put_off_longer_and_longer() {
    let mut registry = Registry::default();
    let sample = sample(1, "/a", 5);
    let id = sample.id;
    registry.image(DEVICE, sample, None, &assessor(), UnixTime(0));
    let is_put_off = |registry: &Registry, now| {
        let image = registry.images.get(&id).unwrap();
        assert!(image.map.is_some(), "what was known stays");
        image.waits_for_map_retry(now)
    };
    let mut now = Instant::now();
    image_mut(&mut registry, id).set_map(ExtentMap::default(), now);
    for rest in [5, 20, 80] {
        image_mut(&mut registry, id).map_failed(now);
        let before = now + Duration::from_secs(rest - 1);
        assert!(is_put_off(&registry, before));
        now += Duration::from_secs(rest);
        assert!(!is_put_off(&registry, now));
    }
    for _ in 0..100 {
        image_mut(&mut registry, id).map_failed(now);
    }
    assert!(!is_put_off(&registry, now + LONGEST_MAP_RETRY));
    image_mut(&mut registry, id).map_refused(now);
    assert!(!is_put_off(&registry, now));
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
fn a_severity_is_reported_when_it_changes() {
    let mut sweeps = Sweeps::default();
    sweeps.sweep(&[sample(1, "/a", 5)], true);
    let worse = [sample(1, "/a", 500_000)];
    let reason = "the threshold is 500,000 extents".to_owned();
    let change = [(Severity::Ok, Severity::Warning, reason)];
    assert_eq!(severities(&sweeps.sweep(&worse, true)), change);
    assert_eq!(sweeps.sweep(&worse, true), []);
    assert_eq!(sweeps.sweep(&[sample(1, "/a", 450_000)], true), []);
    assert_eq!(sweeps.0.summary(), "1 image, worst 450k extents in a");
    // Under a new name, and ok again: both are reported.
    let changes = sweeps.sweep(&[sample(1, "/b", 4)], true);
    assert_eq!(changes[0], Change::Renamed("/a".into(), "/b".into()));
    let reason = "below all thresholds".to_owned();
    let change = [(Severity::Warning, Severity::Ok, reason)];
    assert_eq!(severities(&changes), change);
}

#[test]
fn an_image_that_appears_bad_is_reported_once() {
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
    assert_eq!(
        sweeps.0.images.get(&id).unwrap().severity(),
        Severity::Critical
    );
}

#[test]
fn growth_is_known_after_an_hour_or_at_once_from_the_history() {
    let gains = |sweeps: &mut Sweeps, minute: u64| {
        sweeps.sweep(&[sample(1, "/a", 100_000 + 1000 * minute)], true)
    };
    let mut sweeps = Sweeps::default();
    for minute in 0..60 {
        assert_eq!(severities(&gains(&mut sweeps, minute)), []);
        assert!(!text(&sweeps.0).contains("growth_per_second{"));
    }
    let changes = severities(&gains(&mut sweeps, 60));
    let [(Severity::Ok, Severity::Warning, reason)] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    // 1,440,000 a day; the forecast does not reach so far as to say when it is critical.
    assert_eq!(reason, "it gains +1,440,000/d, the threshold is +250,000/d");
    let text = text(&sweeps.0);
    let gains_now = "fragwatch_image_extents_growth_per_second{image=\"/a\"} 16.666";
    assert!(text.contains(gains_now), "{text}");
    assert!(!text.contains("seconds_to_critical{"), "{text}");

    let mut restored = Sweeps(Registry::default(), 3600);
    let image = sweeps.0.images.get(&sample(1, "/a", 0).id).unwrap();
    restored
        .0
        .restore(key(&image.sample), image.recent.clone(), Severity::Warning);
    assert_eq!(severities(&gains(&mut restored, 61)), []);
    let image = restored.0.images.get(&image.sample.id).unwrap();
    assert_eq!(image.severity(), Severity::Warning);
    assert_eq!(image.growth.rate().unwrap().count(), ExtentCount(1_440_000));
    // Then it is defragmented: nothing is known of it, and nothing holds it.
    let changes = restored.sweep(&[sample(1, "/a", 10)], true);
    assert_eq!(severities(&changes).len(), 1);
    let image = restored.0.images.get(&sample(1, "/a", 0).id).unwrap();
    assert_eq!(image.growth.trend, Err(Unknown::TooFewSamples));
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
    let bytes = |image: &KnownImage| {
        std::mem::size_of::<KnownImage>() + std::mem::size_of_val(image.recent.points())
    };
    let total: usize = sweeps.0.images.values().map(|image| bytes(image)).sum();
    // Of two; a thousand take less than 2.5 MiB.
    assert!(total * 500 < 5 << 19, "{total}");
}

#[test]
fn the_host_is_reported_when_its_maps_grow() {
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
    assert!(text(&sweeps.0).contains("host_severity 2\n"));
    assert_eq!(told(&mut sweeps, 1 << 40), Some(Severity::Ok));
}

#[test]
fn a_fault_is_reported_once_and_so_is_its_end() {
    let mut registry = Registry::default();
    let fault = || Fault {
        path: "/x".into(),
        error: "no".to_owned(),
    };
    let none = BTreeSet::new();
    registry.begin();
    assert_eq!(
        registry.fault(DEVICE, fault()),
        Some(Change::Fault(fault()))
    );
    assert_eq!(registry.end(&none), []);
    registry.begin();
    assert_eq!(registry.fault(DEVICE, fault()), None);
    assert_eq!(registry.end(&none), []);
    registry.begin();
    assert_eq!(
        registry.end(&BTreeSet::from([DEVICE])),
        [],
        "nothing is known of it"
    );
    registry.begin();
    assert_eq!(registry.end(&none), [Change::Mended("/x".into())]);
}
