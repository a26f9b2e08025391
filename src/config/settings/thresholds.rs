//! The limits of a severity, and the changes of an override.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::checks::{Invalid, SECOND, globs, set, within};
use crate::config::formats::{per_day, text};
use crate::config::text::join;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay};

/// The limits of a severity, which applies to an image that reaches any of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "LimitChanges")]
pub struct Limits {
    /// Minimum number of extents. At least 1.
    pub extents: ExtentCount,
    /// Minimum growth. `None`: growth is ignored.
    pub growth_per_day: Option<ExtentsPerDay>,
    /// Maximum time until the image has the extents of `critical`. `None`: that time is ignored.
    pub time_to_critical: Option<Duration>,
}

/// Different limits for some images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Globs of the images; those with `/` match the whole path, others the file name.
    pub images: Vec<String>,
    /// Changes for a warning.
    #[serde(default)]
    pub warning: LimitChanges,
    /// Changes for critical.
    #[serde(default)]
    pub critical: LimitChanges,
}

/// The limits that an override sets; `None` for those that it does not change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitChanges {
    /// See [`Limits::extents`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extents: Option<ExtentCount>,
    /// See [`Limits::growth_per_day`].
    #[serde(skip_serializing_if = "Option::is_none", with = "per_day")]
    pub growth_per_day: Option<Option<ExtentsPerDay>>,
    /// See [`Limits::time_to_critical`].
    #[serde(skip_serializing_if = "Option::is_none", with = "text")]
    pub time_to_critical: Option<Option<Duration>>,
}

impl Limits {
    pub(super) const WARNING: Limits = Limits {
        extents: ExtentCount(500_000),
        growth_per_day: Some(ExtentsPerDay(250_000.0)),
        time_to_critical: Some(Duration::from_secs(14 * 86_400)),
    };
    pub(super) const CRITICAL: Limits = Limits {
        extents: ExtentCount(5_000_000),
        growth_per_day: None,
        time_to_critical: None,
    };

    /// Those that are set in `[thresholds.warning]`, completed by the defaults.
    pub(super) fn warning<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
        Limits::WARNING.completed_by(from)
    }

    /// Those of `[thresholds.critical]`, likewise.
    pub(super) fn critical<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
        Limits::CRITICAL.completed_by(from)
    }

    fn completed_by<'de, D: Deserializer<'de>>(mut self, from: D) -> Result<Limits, D::Error> {
        LimitChanges::deserialize(from)?.apply(&mut self);
        Ok(self)
    }
}

/// Numbers of extents that leave room for the limit of the other severity.
pub(super) const WARNING_EXTENTS: [ExtentCount; 2] =
    [ExtentCount(1), ExtentCount(EXTENT_LIMIT_64.0 - 1)];
pub(super) const CRITICAL_EXTENTS: [ExtentCount; 2] = [ExtentCount(2), EXTENT_LIMIT_64];

/// The check of limits, with the range of `extents`.
pub(super) fn limits<T: Clone + Into<LimitChanges>>(
    [least, most]: [ExtentCount; 2],
) -> impl Fn(&T, &str, &mut Invalid) {
    move |limits, path, invalid| {
        let limits: LimitChanges = limits.clone().into();
        let rate = limits.growth_per_day.flatten().map(ExtentsPerDay::count);
        let time = limits.time_to_critical.flatten();
        set(within(least..=most))(&limits.extents, &join(path, "extents"), invalid);
        let rates = within(ExtentCount(1)..=EXTENT_LIMIT_64);
        set(rates)(&rate, &join(path, "growth_per_day"), invalid);
        set(within(SECOND..))(&time, &join(path, "time_to_critical"), invalid);
    }
}

impl Override {
    pub(super) fn invalid(&self, path: &str, invalid: &mut Invalid) {
        let images = join(path, "images");
        globs(&self.images, &images, invalid);
        if self.images.is_empty() {
            invalid.push((images, "there is no glob".to_owned()));
        }
        limits(WARNING_EXTENTS)(&self.warning, &join(path, "warning"), invalid);
        limits(CRITICAL_EXTENTS)(&self.critical, &join(path, "critical"), invalid);
    }
}

impl LimitChanges {
    /// Sets the limits that differ.
    pub fn apply(&self, limits: &mut Limits) {
        limits.extents = self.extents.unwrap_or(limits.extents);
        limits.growth_per_day = self.growth_per_day.unwrap_or(limits.growth_per_day);
        limits.time_to_critical = self.time_to_critical.unwrap_or(limits.time_to_critical);
    }
}

impl From<Limits> for LimitChanges {
    fn from(limits: Limits) -> LimitChanges {
        LimitChanges {
            extents: Some(limits.extents),
            growth_per_day: Some(limits.growth_per_day),
            time_to_critical: Some(limits.time_to_critical),
        }
    }
}
