//! When an image reaches a number of extents.
//!
//! **A forecast does not reach far beyond its counts** ([`Growth::reach`]): four times the time
//! observed, or sixty times once that is a whole window, with its nights and days. The steep rise
//! after a defragmentation therefore raises no alarm before it tapers off.

use std::time::Duration;

use super::trend::float;
use crate::model::{ExtentCount, ExtentsPerDay, Forecast, Growth, Pace, Unknown};

/// When an image with this number of extents and this growth has `critical` extents.
pub fn forecast(growth: &Growth, extents: ExtentCount, critical: ExtentCount) -> Forecast {
    if extents >= critical {
        return Forecast::Reached;
    }
    let reach = growth.reach;
    let needed = float(critical.0 - extents.0);
    let within = |seconds: f64| {
        let time = Duration::try_from_secs_f64(seconds).ok();
        time.filter(|time| *time <= reach)
    };
    let at_rate = |rate: ExtentsPerDay| within(needed / rate.per_second());
    let trend = match (growth.trend, growth.at_most) {
        (Ok(trend), _) => trend,
        (Err(_), Some(at_most)) if at_rate(at_most).is_none() => {
            return Forecast::NotWithin(reach);
        }
        (Err(unknown), _) => return Forecast::Unknown(unknown),
    };
    let time = match trend.pace {
        Pace::Silent | Pace::Shrinking => return Forecast::Never,
        Pace::Steady | Pace::Accelerating => at_rate(trend.rate),
        // The rate only decreases, so what the present rate does not reach is not reached.
        Pace::Tapering { .. } if at_rate(trend.high).is_none() => None,
        Pace::Tapering { level } if level <= critical => {
            return Forecast::Unknown(Unknown::TapersOff);
        }
        Pace::Tapering { level } => {
            // The rate halves in equal times: an exponential approach to `level`.
            let left = float(level.0.saturating_sub(extents.0)).max(1.0);
            let constant = left / trend.rate.per_second();
            within(-constant * (1.0 - needed / left).ln())
        }
    };
    time.map_or(Forecast::NotWithin(reach), Forecast::In)
}
