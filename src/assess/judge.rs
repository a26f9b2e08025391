//! Severities from sweep to sweep, and their reasons.

use std::time::Duration;

use super::limits::ImageLimits;
use crate::config::settings::{HostLimits, Limits};
use crate::model::units::roughly;
use crate::model::{Bytes, ExtentCount, ExtentsPerDay, Forecast, Growth, Severity, Share, Unknown};

/// The measured values of an image.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Its extents.
    pub extents: ExtentCount,
    /// How fast it gains extents.
    pub growth: &'a Growth,
    /// The time until the critical number of extents.
    pub forecast: Forecast,
}

/// The reason of a severity. Its text ends a log line.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Reason {
    #[error("below all thresholds")]
    BelowAll,
    /// The extents reach the threshold, or are slightly below after having reached it.
    #[error("the threshold is {0} extents")]
    Extents(ExtentCount),
    /// The growth rate, and the threshold.
    #[error("it gains {0}, the threshold is {1}")]
    Growth(ExtentsPerDay, ExtentsPerDay),
    /// The time until the image is critical, and the threshold.
    #[error("{}", time_text(*.0, *.1))]
    TimeToCritical(Duration, Duration),
    /// Growth or time held the severity before, and is unknown now.
    #[error("as before, its growth is not known now ({0})")]
    Unknown(Unknown),
    /// The memory of the extent maps, the host's memory, and the threshold.
    #[error("extent maps take {0} of {1}, the threshold is {2}")]
    Memory(Bytes, Bytes, Share),
}

fn time_text(left: Duration, limit: Duration) -> String {
    match left {
        Duration::ZERO => "it is critical now".to_owned(),
        _ => format!(
            "critical in {}, the threshold is {}",
            roughly(left),
            roughly(limit)
        ),
    }
}

/// The severity of an image from sweep to sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judge {
    severity: Severity,
    warning: Held,
    critical: Held,
}

/// The thresholds of a severity that were reached and not left since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    extents: bool,
    growth: bool,
    time: bool,
}

impl Judge {
    /// Continues with a known severity, whose thresholds hold until their values are well below.
    pub fn remembering(severity: Severity) -> Judge {
        let held = |held| Held {
            extents: held,
            growth: held,
            time: held,
        };
        Judge {
            severity,
            warning: held(severity >= Severity::Warning),
            critical: held(severity >= Severity::Critical),
        }
    }

    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Updates the severity and returns its reason.
    pub fn judge(
        &mut self,
        limits: &ImageLimits,
        hysteresis: Share,
        observed: &Observed<'_>,
    ) -> Reason {
        let critical = self.critical.update(&limits.critical, hysteresis, observed);
        let warning = self.warning.update(&limits.warning, hysteresis, observed);
        let (severity, reason) = match (critical, warning) {
            (Some(reason), _) => (Severity::Critical, reason),
            (None, Some(reason)) => (Severity::Warning, reason),
            (None, None) => (Severity::Ok, Reason::BelowAll),
        };
        self.severity = severity;
        reason
    }
}

/// The position of a value relative to its threshold.
enum Standing {
    Reached,
    /// Below it, but not well below.
    Near,
    Left,
    Open(Unknown),
}

impl Standing {
    fn of(reached: bool, near: bool) -> Standing {
        match (reached, near) {
            (true, _) => Standing::Reached,
            (false, true) => Standing::Near,
            (false, false) => Standing::Left,
        }
    }

    /// A value that is unknown *yet* counts as left.
    fn unknown(unknown: Unknown) -> Standing {
        match unknown {
            Unknown::Unsettled | Unknown::TapersOff => Standing::Open(unknown),
            Unknown::TooFewSamples | Unknown::TooShort => Standing::Left,
        }
    }

    /// Whether the threshold still holds; if only because a value is unknown, with that reason.
    fn settle(self, held: &mut bool) -> Option<Option<Unknown>> {
        let (holds, why) = match self {
            Standing::Reached => (true, None),
            Standing::Near => (*held, None),
            Standing::Left => (false, None),
            Standing::Open(unknown) => (*held, Some(unknown)),
        };
        *held = holds;
        holds.then_some(why)
    }
}

impl Held {
    /// The first reason that holds: extents are exact, and a forecast is more relevant than a rate.
    fn update(
        &mut self,
        limits: &Limits,
        hysteresis: Share,
        observed: &Observed<'_>,
    ) -> Option<Reason> {
        let limit = limits.extents;
        let extents = extents(observed.extents, limit, hysteresis).settle(&mut self.extents);
        let time = |limit| time_left(observed.forecast, limit, hysteresis);
        let time = limits.time_to_critical.map_or(Standing::Left, time);
        let time = time.settle(&mut self.time);
        let growth = |limit| rate(observed.growth, limit, hysteresis);
        let growth = limits.growth_per_day.map_or(Standing::Left, growth);
        let growth = growth.settle(&mut self.growth);
        if extents.is_some() {
            return Some(Reason::Extents(limit));
        }
        if let (Some(unknown), Some(limit)) = (time, limits.time_to_critical) {
            let left = observed.forecast.time_left().unwrap_or_default();
            let known = Reason::TimeToCritical(left, limit);
            return Some(unknown.map_or(known, Reason::Unknown));
        }
        let (unknown, limit) = (growth?, limits.growth_per_day?);
        let known = Reason::Growth(observed.growth.rate().unwrap_or_default(), limit);
        Some(unknown.map_or(known, Reason::Unknown))
    }
}

fn extents(extents: ExtentCount, limit: ExtentCount, hysteresis: Share) -> Standing {
    let near = u128::from(extents.0) * u128::from(Share::WHOLE.0)
        >= u128::from(limit.0) * u128::from(hysteresis.0);
    Standing::of(extents >= limit, near)
}

fn rate(growth: &Growth, limit: ExtentsPerDay, hysteresis: Share) -> Standing {
    match growth.trend {
        Ok(trend) => Standing::of(
            trend.rate >= limit,
            trend.rate.0 >= limit.0 * hysteresis.factor(),
        ),
        Err(unknown) => Standing::unknown(unknown),
    }
}

fn time_left(forecast: Forecast, limit: Duration, hysteresis: Share) -> Standing {
    match forecast {
        Forecast::Reached => Standing::Reached,
        Forecast::In(left) => Standing::of(
            left <= limit,
            left.as_secs_f64() * hysteresis.factor() <= limit.as_secs_f64(),
        ),
        // If the forecast reaches less far than the limit, the result is open.
        Forecast::NotWithin(time) if time < limit => Standing::Open(Unknown::TooShort),
        Forecast::NotWithin(_) | Forecast::Never => Standing::Left,
        Forecast::Unknown(unknown) => Standing::unknown(unknown),
    }
}

/// The severity of the host from sweep to sweep, by the memory of all extent maps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostJudge {
    severity: Severity,
}

impl HostJudge {
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Updates the severity by the share of the extent maps in `ram`, and returns its reason.
    pub fn judge(
        &mut self,
        limits: &HostLimits,
        hysteresis: Share,
        maps: Bytes,
        ram: Bytes,
    ) -> Reason {
        let levels = [
            (Severity::Critical, limits.critical),
            (Severity::Warning, limits.warning),
        ];
        let before = self.severity;
        let holds = |(level, limit): &(Severity, Share)| {
            let left_at = if before >= *level {
                hysteresis.of(*limit)
            } else {
                *limit
            };
            ram.0 > 0 && left_at.is_reached_by(maps, ram)
        };
        let reached = levels.into_iter().find(holds);
        self.severity = reached.map_or(Severity::Ok, |(level, _)| level);
        reached.map_or(Reason::BelowAll, |(_, limit)| {
            Reason::Memory(maps, ram, limit)
        })
    }
}

#[cfg(test)]
mod tests;
