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

/// Delay after an incomplete map; four times as long after each further failure.
const MAP_RETRY: Duration = Duration::from_secs(5);
/// Maximum of that delay.
pub(super) const LONGEST_MAP_RETRY: Duration = Duration::from_secs(12 * 3600);

/// An image that a sweep has counted.
#[derive(Debug)]
pub(in crate::daemon) struct KnownImage {
    pub(in crate::daemon) device: DeviceNumber,
    pub(in crate::daemon) sample: Sample,
    /// Openers at the last count.
    pub(in crate::daemon) owner: Owner,
    pub(super) recent: Recent,
    pub(in crate::daemon) growth: Growth,
    pub(in crate::daemon) forecast: Forecast,
    judge: Judge,
    reason: Reason,
    pub(in crate::daemon) map: Option<ExtentMap>,
    /// The possible gain, when the map was last read or sampled.
    pub(in crate::daemon) outlook: Option<Outlook>,
    /// When the map was last read, sampled or refused.
    pub(in crate::daemon) map_read: Option<Instant>,
    /// Consecutive incomplete readings of the map.
    map_failures: u32,
    /// Until when the map is not read after such a failure.
    map_retry: Option<Instant>,
    /// Whether the current sweep has found it.
    pub(super) met: bool,
}

impl KnownImage {
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

    /// What is kept of it for its return.
    pub(super) fn take_past(&mut self) -> (Recent, Judge) {
        (std::mem::take(&mut self.recent), self.judge)
    }

    pub(in crate::daemon) fn severity(&self) -> Severity {
        self.judge.severity()
    }

    /// The identity in the history; `None` if it could not be read.
    pub(in crate::daemon) fn reference(&self) -> Option<ImageRef> {
        Some(ImageRef {
            key: self.sample.key.clone().ok()?,
            path: self.sample.path.clone(),
        })
    }

    pub(super) fn row(&self) -> Option<SampleRow> {
        Some(SampleRow {
            image: self.reference()?,
            format: self.sample.format,
            extents: self.sample.extents,
            size: self.sample.size,
            allocated: self.sample.allocated,
        })
    }

    pub(super) fn view<'a>(&'a self, filesystem: Option<&'a Filesystem>) -> ImageView<'a> {
        ImageView {
            sample: &self.sample,
            owner: &self.owner,
            map: self.map.as_ref(),
            growth: &self.growth,
            forecast: self.forecast,
            severity: self.severity(),
            reason: self.reason,
            filesystem,
        }
    }

    /// Replaces the owner. Openers that have become mixed are reported once, not each sweep.
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
        let image = self.reference()?;
        SeverityChange::between((from, self.severity()), self.reason, || Subject::Image {
            image,
            vm: self.vm(),
            extents,
            growth: self.growth,
            forecast: self.forecast,
        })
    }

    /// On one line.
    fn vm(&self) -> Option<String> {
        let name = self.owner.vm()?.name.as_deref()?;
        Some(shown(Path::new(name)))
    }

    /// Restarts the growth and discards the map after a defragmentation.
    pub(in crate::daemon) fn defragmented(&mut self) {
        self.recent.clear();
        self.map = None;
        self.outlook = None;
        self.map_read = None;
    }

    pub(in crate::daemon) fn set_map(&mut self, map: ExtentMap, now: Instant) {
        self.set_outlook(Outlook::of_map(&map.borders), now);
        self.map = Some(map);
    }

    pub(in crate::daemon) fn set_outlook(&mut self, outlook: Outlook, now: Instant) {
        self.outlook = Some(outlook);
        self.map_refused(now);
    }

    /// Postpones a refused map to its next turn. The former map stays.
    pub(in crate::daemon) fn map_refused(&mut self, now: Instant) {
        self.map_read = Some(now);
        (self.map_failures, self.map_retry) = (0, None);
    }

    /// Postpones an incomplete map, longer after each failure: the file system may hang at it.
    pub(in crate::daemon) fn map_failed(&mut self, now: Instant) {
        let rest = MAP_RETRY.saturating_mul(4_u32.saturating_pow(self.map_failures));
        self.map_failures = self.map_failures.saturating_add(1);
        self.map_retry = Some(now + rest.min(LONGEST_MAP_RETRY));
    }

    /// Whether reading its map failed a short time ago.
    pub(in crate::daemon) fn waits_for_map_retry(&self, now: Instant) -> bool {
        self.map_retry.is_some_and(|until| now < until)
    }
}
