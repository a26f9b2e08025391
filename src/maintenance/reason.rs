//! The reasons why an image is not defragmented, and their texts.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::estimate::Basis;
use super::facts::User;
use crate::model::{
    Bytes, BytesPerSecond, ExtentCount, Obstacle, ReasonCode, Roughly, Severity, Share, Unusable,
    UnusableReason,
};

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

/// Why an image is not defragmented.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// It is being defragmented.
    RunningNow,
    /// Its severity is too low.
    BelowSeverity {
        /// Its severity.
        severity: Severity,
        /// The minimum severity.
        from: Severity,
    },
    /// Hardly any extents can be removed.
    NearIdeal {
        /// The present number of extents.
        extents: ExtentCount,
        /// The number after defragmentation.
        ideal: ExtentCount,
        /// What keeps its extents apart, if known, and what would help.
        kept: Option<String>,
    },
    /// There is little to gain: holes, sharing or unwritten parts keep its extents apart.
    LittleGain {
        /// Which of them, and what would help.
        why: String,
    },
    /// Something forbids touching it.
    Forbidden(Obstacle),
    /// No engine supports its file system.
    NotXfs {
        /// The kernel's name of the file system type.
        type_name: String,
    },
    /// Its file system was not examined yet.
    NothingKnown,
    /// The operator has paused defragmentation.
    Paused,
    /// A rescue is in progress.
    Incident,
    /// fragwatch cannot start a run.
    NotReady {
        /// Why.
        why: String,
    },
    /// No window is configured.
    NoWindow,
    /// Blackouts cover all windows of the next year.
    NoWindowInSight,
    /// Its file system does not respond.
    Stalled,
    /// Its file system is too full for any run.
    AlmostFull {
        /// The used share.
        used: Share,
    },
    /// Its last run was too recent.
    CoolingDown {
        /// End of the cooldown.
        until: Moment,
        /// Number of consecutive runs without improvement.
        in_vain: u32,
    },
    /// A recent run could not access it.
    PutOff {
        /// Time of the next attempt.
        until: Moment,
        /// Why it was not accessible.
        why: String,
    },
    /// No engine is configured.
    NoEngine,
    /// The engine is unusable on this host.
    Unusable(Unusable),
    /// It is open, which `xfs_fsr` does not allow.
    InUse {
        /// The process that has it open.
        user: User,
        /// Why `online`, which allows that, is not used; `None` if it is not configured.
        online: Option<Box<Reason>>,
    },
    /// It has shared blocks, which `xfs_fsr` would copy.
    SharesBlocks,
    /// It would take too much of the free space.
    NoSpace {
        /// The space that the run needs.
        needs: Bytes,
        /// The free space.
        has: Bytes,
        /// The space that must stay free.
        keeps: Bytes,
    },
    /// The final swap of `xfs_fsr` would block readers for too long.
    SwapStall {
        /// The expected duration.
        stall: Duration,
        /// The limit.
        limit: Duration,
    },
    /// `online` needs reflink.
    NoReflink,
    /// The disks are busy.
    Pressure {
        /// The I/O pressure in percent.
        avg10: f64,
        /// The limit in percent.
        limit: f64,
    },
    /// It would take longer than the window is open.
    WouldNotFinish {
        /// When the window closes.
        closes: Moment,
        /// The estimated duration.
        about: Duration,
        /// The estimated copying speed.
        speed: BytesPerSecond,
        /// What the speed is based on.
        basis: Basis,
    },
    /// The window is full.
    NoTurn {
        /// When the window closes.
        closes: Moment,
        /// The number of images before it.
        ahead: usize,
    },
}

impl Reason {
    /// The reason as a code, for programs.
    pub fn code(&self) -> ReasonCode {
        match self {
            Reason::RunningNow => ReasonCode::RunningNow,
            Reason::BelowSeverity { .. } => ReasonCode::BelowSeverity,
            Reason::NearIdeal { .. } => ReasonCode::NearIdeal,
            Reason::LittleGain { .. } => ReasonCode::LittleGain,
            Reason::Forbidden(obstacle) => obstacle.code(),
            Reason::NotXfs { .. } => ReasonCode::NotXfs,
            Reason::NothingKnown => ReasonCode::NothingKnown,
            Reason::Paused => ReasonCode::Paused,
            Reason::Incident => ReasonCode::Incident,
            Reason::NotReady { .. } => ReasonCode::NotReady,
            Reason::NoWindow => ReasonCode::NoWindow,
            Reason::NoWindowInSight => ReasonCode::NoWindowInSight,
            Reason::Stalled => ReasonCode::Stalled,
            Reason::AlmostFull { .. } => ReasonCode::AlmostFull,
            Reason::CoolingDown { .. } => ReasonCode::CoolingDown,
            Reason::PutOff { .. } => ReasonCode::PutOff,
            Reason::NoEngine => ReasonCode::NoEngine,
            Reason::Unusable(unusable) => match unusable.reason {
                UnusableReason::KernelKnownBad | UnusableReason::KernelUnknown => {
                    ReasonCode::Kernel
                }
                UnusableReason::NoXfsFsr => ReasonCode::NoXfsFsr,
                UnusableReason::NotConfigured => ReasonCode::NoEngine,
            },
            Reason::InUse { .. } => ReasonCode::InUse,
            Reason::SharesBlocks => ReasonCode::SharesBlocks,
            Reason::NoSpace { .. } => ReasonCode::NoSpace,
            Reason::SwapStall { .. } => ReasonCode::SwapStall,
            Reason::NoReflink => ReasonCode::NoReflink,
            Reason::Pressure { .. } => ReasonCode::IoPressure,
            Reason::WouldNotFinish { .. } => ReasonCode::WouldNotFinish,
            Reason::NoTurn { .. } => ReasonCode::NoTurn,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::RunningNow => write!(f, "is being defragmented now"),
            Reason::BelowSeverity { severity, from } => {
                write!(f, "severity {severity}, below {from}")
            }
            Reason::NearIdeal {
                extents,
                ideal,
                kept,
            } => {
                write!(
                    f,
                    "already near its ideal ({extents} extents, {ideal} at best)"
                )?;
                kept.iter().try_for_each(|kept| write!(f, ": {kept}"))
            }
            Reason::LittleGain { why } => f.write_str(why),
            Reason::Forbidden(obstacle) => obstacle.fmt(f),
            Reason::NotXfs { type_name } => write!(f, "on {type_name}; only XFS is defragmented"),
            Reason::NothingKnown => write!(f, "nothing is known of its file system yet"),
            Reason::Paused => write!(f, "defragmentation paused (fragwatch resume)"),
            Reason::Incident => write!(f, "rescue incident active"),
            Reason::NotReady { why } => write!(f, "no run can begin: {why}"),
            Reason::NoWindow => write!(f, "no window configured ([[maintenance.window]])"),
            Reason::NoWindowInSight => write!(f, "no window opens within a year: blackouts"),
            Reason::Stalled => write!(f, "file-system worker stalled"),
            Reason::AlmostFull { used } => write!(
                f,
                "the file system is {used} full; above 95% a run would fragment what is left"
            ),
            Reason::CoolingDown { until, in_vain } => cooling(f, until, *in_vain),
            Reason::PutOff { until, why } => write!(f, "put off until {until}: {why}"),
            Reason::NoEngine => write!(f, "no engine configured (engines in [defrag])"),
            Reason::Unusable(unusable) => f.write_str(&unusable.brief),
            Reason::InUse { user, online: None } => write!(f, "in use by {user}"),
            Reason::InUse {
                user,
                online: Some(why),
            } => write!(f, "in use by {user}, and not online: {why}"),
            Reason::SharesBlocks => write!(f, "shares blocks with a reflink copy"),
            Reason::NoSpace { needs, has, keeps } => write!(
                f,
                "not enough free space (needs {needs}, has {has}, keeps {keeps})"
            ),
            Reason::SwapStall { stall, limit } => write!(
                f,
                "the final swap would stall readers for about {} (max_swap_stall is {})",
                Seconds(*stall),
                Seconds(*limit)
            ),
            Reason::NoReflink => write!(f, "the file system has no reflink"),
            Reason::Pressure { avg10, limit } => write!(
                f,
                "I/O pressure too high ({avg10:.0}% of the time some task waits, limit {limit:.0}%)"
            ),
            Reason::WouldNotFinish {
                closes,
                about,
                speed,
                basis,
            } => write!(
                f,
                "would not finish before the window closes at {closes} (about {} at {speed}, {basis})",
                Roughly(*about)
            ),
            Reason::NoTurn { closes, ahead } => {
                let others = if *ahead == 1 { "image" } else { "images" };
                write!(
                    f,
                    "the window closes at {closes} before its turn ({ahead} {others} before it)"
                )
            }
        }
    }
}

fn cooling(f: &mut fmt::Formatter<'_>, until: &Moment, in_vain: u32) -> fmt::Result {
    write!(f, "cooling down until {until}")?;
    match in_vain {
        0 => Ok(()),
        1 => write!(f, " (the last run brought nothing)"),
        runs => write!(f, " (the last {runs} runs brought nothing)"),
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Basis::Measured { .. } => "measured on this file system",
            Basis::Assumed => "assumed, nothing measured on this file system yet",
        })
    }
}

/// A short duration with adaptive precision: `9 s`, `0.4 s`, `3 min`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if self.0.as_secs() >= 60 {
            Roughly(self.0).fmt(f)
        } else if seconds < 5.0 && self.0.subsec_millis() != 0 {
            write!(f, "{seconds:.1} s")
        } else {
            write!(f, "{seconds:.0} s")
        }
    }
}
