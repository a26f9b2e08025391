//! `[thresholds]`: what is too much.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::formats::{factor, per_day, text};
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// What is too much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Growth is that of this time. A minute at least.
    #[serde(with = "text")]
    pub growth_window: Duration,
    /// A severity that was reached is left below this part of its threshold. 50 to 100 %.
    #[serde(with = "factor")]
    pub hysteresis: Share,
    /// A command and its arguments, run when a severity changes. The command is an absolute path.
    /// Empty: there is none.
    pub hook: Vec<String>,
    /// From here on an image wants attention.
    #[serde(deserialize_with = "warning")]
    pub warning: Limits,
    /// From here on it endangers the host. Each limit is beyond that of the warning.
    #[serde(deserialize_with = "critical")]
    pub critical: Limits,
    /// What all extent maps together may take.
    pub host: HostLimits,
    /// Other limits for some images. Of those that match an image the last one that sets a limit
    /// wins, limit by limit.
    #[serde(rename = "override", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// The thresholds of one severity. An image has it that reaches one of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limits {
    /// An image with this many extents or more. One at least.
    pub extents: ExtentCount,
    /// One that gains as many or more. None: however many it gains.
    #[serde(with = "per_day")]
    pub growth_per_day: Option<ExtentsPerDay>,
    /// One that has the extents of `critical` in this time or sooner. None: however soon.
    #[serde(with = "text")]
    pub time_to_critical: Option<Duration>,
}

/// Parts of the host's memory that the extent maps of all images take, as far as they are loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostLimits {
    /// From here on it wants attention.
    #[serde(with = "text")]
    pub warning: Share,
    /// From here on it is a danger. Above `warning`.
    #[serde(with = "text")]
    pub critical: Share,
}

/// Other limits for some images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Globs of the images: with a `/` held against the whole path, without against the name.
    pub images: Vec<String>,
    /// What is different for a warning.
    #[serde(default)]
    pub warning: LimitChanges,
    /// What is different for critical.
    #[serde(default)]
    pub critical: LimitChanges,
}

/// What an override sets, and None for what it leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitChanges {
    /// See [`Limits::extents`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extents: Option<ExtentCount>,
    /// See [`Limits::growth_per_day`].
    #[serde(skip_serializing_if = "Option::is_none", with = "per_day::changed")]
    pub growth_per_day: Option<Option<ExtentsPerDay>>,
    /// See [`Limits::time_to_critical`].
    #[serde(skip_serializing_if = "Option::is_none", with = "text")]
    pub time_to_critical: Option<Option<Duration>>,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            growth_window: Duration::from_secs(86_400),
            hysteresis: Share::percent(90),
            hook: Vec::new(),
            warning: Limits {
                extents: ExtentCount(500_000),
                growth_per_day: Some(ExtentsPerDay(250_000.0)),
                time_to_critical: Some(Duration::from_secs(14 * 86_400)),
            },
            critical: Limits {
                extents: ExtentCount(5_000_000),
                growth_per_day: None,
                time_to_critical: None,
            },
            host: HostLimits::default(),
            overrides: Vec::new(),
        }
    }
}

impl Default for HostLimits {
    fn default() -> HostLimits {
        HostLimits {
            warning: Share::percent(1),
            critical: Share::percent(5),
        }
    }
}

/// What is written of `[thresholds.warning]`, and the defaults for the rest.
fn warning<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
    changed(from, Thresholds::default().warning)
}

/// The same of `[thresholds.critical]`.
fn critical<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
    changed(from, Thresholds::default().critical)
}

fn changed<'de, D: Deserializer<'de>>(from: D, mut limits: Limits) -> Result<Limits, D::Error> {
    LimitChanges::deserialize(from)?.apply(&mut limits);
    Ok(limits)
}

impl LimitChanges {
    /// Sets what is different.
    pub fn apply(&self, limits: &mut Limits) {
        limits.extents = self.extents.unwrap_or(limits.extents);
        limits.growth_per_day = self.growth_per_day.unwrap_or(limits.growth_per_day);
        limits.time_to_critical = self.time_to_critical.unwrap_or(limits.time_to_critical);
    }
}
