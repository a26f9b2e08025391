//! `[thresholds]`: the limits of each severity.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::checks::{SECOND, command, within};
use crate::config::formats::{factor, per_day, sections, text};
use crate::model::{ExtentCount, ExtentsPerDay, Share};

sections! {
    /// The limits of each severity.
    pub struct Thresholds {
        /// The time over which growth is measured. At least one minute.
        #[serde(with = "text")]
        pub growth_window: Duration = Duration::from_secs(86_400), check within(SECOND * 60..);
        /// A severity ends when the value falls below this part of the threshold: 50 to 100 %.
        #[serde(with = "factor")]
        pub hysteresis: Share = Share::percent(90);
        /// A command (absolute path) and its arguments, run when a severity changes. Empty: none.
        pub hook: Vec<String> = Vec::new(), check command;
        /// At these limits an image needs attention.
        #[serde(deserialize_with = "warning")]
        pub warning: Limits = Limits {
            extents: ExtentCount(500_000),
            growth_per_day: Some(ExtentsPerDay(250_000.0)),
            time_to_critical: Some(Duration::from_secs(14 * 86_400)),
        };
        /// At these limits it endangers the host. Each one is beyond that of `warning`.
        #[serde(deserialize_with = "critical")]
        pub critical: Limits = Limits {
            extents: ExtentCount(5_000_000),
            growth_per_day: None,
            time_to_critical: None,
        };
        /// Limits for all extent maps together.
        pub host: HostLimits = HostLimits::default();
        /// Limits for some images. For each limit, the last matching override that sets it applies.
        #[serde(rename = "override", skip_serializing_if = "Vec::is_empty")]
        pub overrides: Vec<Override> = Vec::new();
    }

    /// Limits for the share of the host's memory taken by the loaded extent maps of all images.
    pub struct HostLimits {
        /// At this share the host needs attention.
        #[serde(with = "text")]
        pub warning: Share = Share::percent(1), check within(..=Share(Share::WHOLE.0 - 1));
        /// At this share it is in danger. Above `warning`.
        #[serde(with = "text")]
        pub critical: Share = Share::percent(5), check within(Share(1)..);
    }
}

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

/// The limits that are set in `[thresholds.warning]`, completed by the defaults.
fn warning<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
    changed(from, Thresholds::default().warning)
}

fn critical<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
    changed(from, Thresholds::default().critical)
}

fn changed<'de, D: Deserializer<'de>>(from: D, mut limits: Limits) -> Result<Limits, D::Error> {
    LimitChanges::deserialize(from)?.apply(&mut limits);
    Ok(limits)
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
