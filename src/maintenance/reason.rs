//! The texts of the planner's reasons that need values; those of the others are in the model.

use std::fmt::{self, Write as _};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::estimate::Estimate;
use super::facts::User;
use crate::model::{ReasonCode, Refusal, Roughly, Unusable, UnusableReason};

/// A time and its text: `05:00` within 24 hours, `Sat 2026-11-28 05:00` otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The time.
    pub at: Timestamp,
    local: String,
}

impl Moment {
    /// Formats a time in a time zone, relative to `now`.
    pub fn new(at: Timestamp, now: Timestamp, zone: &TimeZone) -> Moment {
        let is_near = at.duration_since(now).abs() < SignedDuration::from_hours(24);
        let form = if is_near { "%H:%M" } else { "%a %F %H:%M" };
        let local = zone.to_datetime(at).strftime(form).to_string();
        Moment { at, local }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.local)
    }
}

/// A process has it open; `online` and `blockcopy` are why the engines of these names, which allow
/// it, are not used, if they are configured.
pub fn in_use(user: &User, online: Option<Refusal>, blockcopy: Option<Refusal>) -> Refusal {
    let mut text = format!("in use by {user}");
    if let Some(why) = &online {
        let _ = write!(text, ", and not online: {why}");
    }
    match &blockcopy {
        // Operators know what runs their VMs.
        Some(why) if why.code == ReasonCode::NotLibvirt => {}
        Some(why) => _ = write!(text, ", and not blockcopy: {why}"),
        None if online.is_some() && user.is_of_libvirt() => {
            text.push_str("; libvirt could copy it: see [defrag.blockcopy]");
        }
        None => {}
    }
    Refusal {
        online: online.map(Box::new),
        blockcopy: blockcopy.map(Box::new),
        ..Refusal::new(ReasonCode::InUse, text)
    }
}

/// An engine cannot be used on this host.
pub fn unusable(unusable: &Unusable) -> Refusal {
    let code = match unusable.reason {
        UnusableReason::KernelKnownBad | UnusableReason::KernelUnknown => ReasonCode::Kernel,
        UnusableReason::NoXfsFsr => ReasonCode::NoXfsFsr,
        UnusableReason::NoVirsh => ReasonCode::NoVirsh,
        UnusableReason::NotConfigured => ReasonCode::NoEngine,
    };
    Refusal::new(code, unusable.brief.as_str())
}

/// Its last runs, `in_vain` of them without gain, are too recent.
pub fn cooling_down(until: &Moment, in_vain: u32) -> Refusal {
    let runs = match in_vain {
        0 => String::new(),
        1 => " (the last run brought nothing)".to_owned(),
        runs => format!(" (the last {runs} runs brought nothing)"),
    };
    let text = format!("cooling down until {until}{runs}");
    Refusal::new(ReasonCode::CoolingDown, text)
}

/// It would take longer than the window, which closes at `closes`, is open.
pub fn would_not_finish(closes: &Moment, estimate: &Estimate) -> Refusal {
    let (about, speed) = (Roughly(estimate.about), estimate.speed);
    let basis = match estimate.measured_runs {
        0 => "assumed, nothing measured on this file system yet",
        _ => "measured on this file system",
    };
    let text = format!(
        "would not finish before the window closes at {closes} (about {about} at {speed}, {basis})"
    );
    Refusal::new(ReasonCode::WouldNotFinish, text)
}

/// The window is taken up by `ahead` images before it.
pub fn no_turn(closes: &Moment, ahead: usize) -> Refusal {
    let images = if ahead == 1 { "image" } else { "images" };
    let text =
        format!("the window closes at {closes} before its turn ({ahead} {images} before it)");
    Refusal::new(ReasonCode::NoTurn, text)
}
