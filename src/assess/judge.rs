//! Severities from sweep to sweep, and their reasons.

use std::fmt;
use std::time::Duration;

use super::limits::ImageLimits;
use crate::config::settings::{HostLimits, Limits};
use crate::model::units::roughly;
use crate::model::{Bytes, ExtentCount, ExtentsPerDay, Forecast, Growth, Severity, Share, Unknown};

/// The measured values of an image.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    pub extents: ExtentCount,
    pub growth: &'a Growth,
    /// The time until the critical number of extents.
    pub forecast: Forecast,
}

/// The reason of a severity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    BelowAll,
    /// The extents reach the threshold, or are slightly below after having reached it.
    Extents(ExtentCount),
    /// The growth rate, and the threshold.
    Growth(ExtentsPerDay, ExtentsPerDay),
    /// The time until the image is critical, and the threshold.
    TimeToCritical(Duration, Duration),
    /// Growth or time held the severity before, and is unknown now.
    Unknown(Unknown),
    /// The memory of the extent maps, the host's memory, and the threshold.
    Memory(Bytes, Bytes, Share),
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
        let held = |level: Severity| {
            let held = severity >= level;
            Held {
                extents: held,
                growth: held,
                time: held,
            }
        };
        Judge {
            severity,
            warning: held(Severity::Warning),
            critical: held(Severity::Critical),
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
        let why = match self {
            Standing::Open(unknown) => Some(unknown),
            Standing::Reached | Standing::Near | Standing::Left => None,
        };
        *held = match self {
            Standing::Reached => true,
            Standing::Near | Standing::Open(_) => *held,
            Standing::Left => false,
        };
        held.then_some(why)
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
        let time = limits.time_to_critical;
        let time = time.map_or(Standing::Left, |limit| {
            time_left(observed.forecast, limit, hysteresis)
        });
        let time = time.settle(&mut self.time);
        let growth = limits.growth_per_day;
        let growth = growth.map_or(Standing::Left, |limit| {
            rate(observed.growth, limit, hysteresis)
        });
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
        match levels.into_iter().find(holds) {
            Some((level, limit)) => {
                self.severity = level;
                Reason::Memory(maps, ram, limit)
            }
            None => {
                self.severity = Severity::Ok;
                Reason::BelowAll
            }
        }
    }
}

impl fmt::Display for Reason {
    /// For the end of a log line: `the threshold is 500,000 extents`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::BelowAll => f.write_str("below all thresholds"),
            Reason::Extents(limit) => write!(f, "the threshold is {limit} extents"),
            Reason::Growth(rate, limit) => {
                write!(f, "it gains {rate}, the threshold is {limit}")
            }
            Reason::TimeToCritical(Duration::ZERO, _) => f.write_str("it is critical now"),
            Reason::TimeToCritical(left, limit) => {
                let (left, limit) = (roughly(*left), roughly(*limit));
                write!(f, "critical in {left}, the threshold is {limit}")
            }
            Reason::Unknown(why) => write!(f, "as before, its growth is not known now ({why})"),
            Reason::Memory(maps, ram, limit) => {
                write!(
                    f,
                    "extent maps take {maps} of {ram}, the threshold is {limit}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
