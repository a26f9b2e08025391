//! One image from sweep to sweep: its counts, its severity, its extent map.

use std::path::Path;
use std::time::{Duration, Instant};

use super::change::{Change, SeverityChange, Subject};
use crate::assess::{Assessor, Judge, Observed, Reason};
use crate::growth::{Recent, forecast};
use crate::history::SampleRow;
use crate::model::path::shown;
use crate::model::{
    DeviceNumber, ExtentMap, Filesystem, Forecast, Growth, ImageRef, Outlook, Owner, Point, Sample,
    Severity, UnixTime,
};
use crate::serve::view::ImageView;

/// Rest after a map that could not be read to its end; four times as long each further time.
const MAP_RETRY: Duration = Duration::from_secs(5);
/// The rest does not grow beyond this.
pub(super) const LONGEST_MAP_RETRY: Duration = Duration::from_secs(12 * 3600);

/// An image that a sweep has counted.
#[derive(Debug)]
pub(in crate::daemon) struct KnownImage {
    pub(in crate::daemon) device: DeviceNumber,
    pub(in crate::daemon) sample: Sample,
    /// The processes that had it open when it was counted last.
    pub(in crate::daemon) owner: Owner,
    /// Its last counts.
    pub(super) recent: Recent,
    /// How it grows by its last counts.
    pub(in crate::daemon) growth: Growth,
    /// When it will be critical.
    pub(in crate::daemon) forecast: Forecast,
    judge: Judge,
    /// Why it has its severity.
    reason: Reason,
    pub(in crate::daemon) map: Option<ExtentMap>,
    /// What could be gained, when its map was read or sampled.
    pub(in crate::daemon) outlook: Option<Outlook>,
    /// When its map was last read, or reading it was refused.
    pub(in crate::daemon) map_read: Option<Instant>,
    /// How often in a row reading its map came to no end.
    map_failures: u32,
    /// Until when its map is left alone for that.
    map_retry: Option<Instant>,
    /// Whether the sweep under way has met it.
    pub(super) met: bool,
}

impl KnownImage {
    /// One with a past: its last counts and its severity then.
    pub(super) fn new(
        device: DeviceNumber,
        sample: Sample,
        (recent, judge): (Recent, Judge),
    ) -> Self {
        KnownImage {
            device,
            sample,
            owner: Owner::default(),
            growth: recent.growth(Duration::ZERO, UnixTime(0)),
            recent,
            forecast: Forecast::Never,
            judge,
            reason: Reason::BelowAll,
            map: None,
            outlook: None,
            map_read: None,
            map_failures: 0,
            map_retry: None,
            met: true,
        }
    }

    /// How bad it is.
    pub(in crate::daemon) fn severity(&self) -> Severity {
        self.judge.severity()
    }

    /// That of its inode.
    pub(super) fn generation(&self) -> Option<u32> {
        self.sample.key.as_ref().ok().map(|key| key.generation)
    }

    /// As the history identifies it; `None` if its identity could not be read.
    pub(in crate::daemon) fn reference(&self) -> Option<ImageRef> {
        Some(ImageRef {
            key: self.sample.key.clone().ok()?,
            path: self.sample.path.clone(),
        })
    }

    /// As the history records it.
    pub(super) fn row(&self) -> Option<SampleRow> {
        Some(SampleRow {
            image: self.reference()?,
            format: self.sample.format,
            extents: self.sample.extents,
            size: self.sample.size,
            allocated: self.sample.allocated,
        })
    }

    /// As it is served.
    pub(super) fn view<'a>(&'a self, filesystem: Option<&'a Filesystem>) -> ImageView<'a> {
        ImageView {
            sample: &self.sample,
            owner: &self.owner,
            map: self.map.as_ref(),
            growth: self.growth.rate(),
            time_left: self.forecast.time_left(),
            severity: self.severity(),
            reason: self.reason,
            filesystem,
        }
    }

    /// Replaces its owner. Openers that have become mixed are reported once, not each sweep.
    pub(super) fn set_owner(&mut self, owner: Owner) -> Option<Change> {
        let before = std::mem::replace(&mut self.owner, owner);
        let changed = self.owner.is_mixed() && !before.is_mixed();
        changed.then(|| Change::MixedOpeners(self.sample.path.clone(), self.owner.clone()))
    }

    /// Judges it by its count of `now`.
    pub(super) fn assess(&mut self, assessor: &Assessor, now: UnixTime) -> Option<Change> {
        let (extents, window) = (self.sample.extents, assessor.window());
        self.recent.push(Point { at: now, extents }, window);
        self.growth = self.recent.growth(window, now);
        let limits = assessor.limits(&self.sample.path);
        self.forecast = forecast(&self.growth, extents, limits.critical.extents);
        let observed = Observed {
            extents,
            growth: &self.growth,
            forecast: self.forecast,
        };
        let from = self.severity();
        let hysteresis = assessor.thresholds().hysteresis;
        self.reason = self.judge.judge(&limits, hysteresis, &observed);
        SeverityChange::between((from, self.severity()), self.reason, || Subject::Image {
            id: self.sample.id,
            path: self.sample.path.clone(),
            vm: self.vm(),
            extents,
            growth: self.growth,
            forecast: self.forecast,
        })
    }

    /// The name of the VM that has it open, in one line.
    fn vm(&self) -> Option<String> {
        let name = self.owner.vm()?.name.as_deref()?;
        Some(shown(Path::new(name)))
    }

    /// It was defragmented: its growth begins anew, and its map is another one.
    pub(super) fn defragmented(&mut self) {
        self.recent.clear();
        self.map = None;
        self.outlook = None;
        self.map_read = None;
    }

    /// Its map was read.
    pub(in crate::daemon) fn set_map(&mut self, map: ExtentMap, now: Instant) {
        self.set_outlook(Outlook::of_map(&map.borders), now);
        self.map = Some(map);
    }

    /// Its map was sampled.
    pub(in crate::daemon) fn set_outlook(&mut self, outlook: Outlook, now: Instant) {
        self.outlook = Some(outlook);
        self.map_refused(now);
    }

    /// Its map cannot be read before its next turn. The former one stays.
    pub(in crate::daemon) fn map_refused(&mut self, now: Instant) {
        self.map_read = Some(now);
        (self.map_failures, self.map_retry) = (0, None);
    }

    /// Reading its map came to no end. It is tried again soon; if that fails too, later and later,
    /// because its file system may hang at this image.
    pub(in crate::daemon) fn map_failed(&mut self, now: Instant) {
        let rest = MAP_RETRY.saturating_mul(4_u32.saturating_pow(self.map_failures));
        self.map_failures = self.map_failures.saturating_add(1);
        self.map_retry = Some(now + rest.min(LONGEST_MAP_RETRY));
    }

    /// Whether reading its map has failed a short time ago.
    pub(in crate::daemon) fn waits_for_map_retry(&self, now: Instant) -> bool {
        self.map_retry.is_some_and(|until| now < until)
    }
}
