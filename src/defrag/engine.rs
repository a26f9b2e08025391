//! Common to all engines: the request, the lock of the file system, and the checks between steps.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};

use super::Host;
use super::guard::{self, Target};
use super::meter::Meter;
use super::pressure::{Asked, Gauge, WithoutIo};
use super::refusal::{Halt, Refusal};
use super::run::{Hold, Input};
use crate::config::settings::Defrag;
use crate::model::{Bytes, Engine, ExtentCount, RunOutcome, RunReport, Stop};
use crate::probe::{open, reason};
use crate::sys::fsxattr;

/// Interval for reading the I/O pressure, which is a ten-second average.
const PRESSURE_INTERVAL: Duration = Duration::from_secs(1);
const GONE_INTERVAL: Duration = Duration::from_secs(1);

/// A request to defragment an image.
#[derive(Debug)]
pub struct Request<'a> {
    /// The image.
    pub path: &'a Path,
    /// All limits.
    pub limits: &'a Defrag,
}

/// An event of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A message for the operator.
    Notice(String),
    /// The guards passed; from here on only `done` of the progress changes.
    Cleared(Progress),
    /// The current progress.
    Progress(Progress),
    /// An engine passed the image on to the next one.
    PassedOver {
        /// The engine that passed it on.
        engine: Engine,
        /// The reason, as text.
        reason: String,
        /// The engine that is tried next.
        next: Engine,
    },
}

/// The progress of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The active engine.
    pub engine: Engine,
    /// Done of `total`: bytes for `xfs_fsr`, before its final swap; removed extents for `online`.
    pub done: u64,
    /// The total to be done.
    pub total: u64,
    /// Extents of the image before the run.
    pub extents: ExtentCount,
    /// The reason if the run is held.
    pub held: Option<Hold>,
    /// For `online`: segments so far, the longest call that locked the image, and the median.
    pub calls: (u64, Duration, Duration),
}

impl Progress {
    /// The progress at the beginning of a run.
    pub fn new(engine: Engine, total: u64, extents: ExtentCount) -> Progress {
        Progress {
            engine,
            done: 0,
            total,
            extents,
            held: None,
            calls: (0, Duration::ZERO, Duration::ZERO),
        }
    }
}

/// Runs an attempt and reports its outcome and duration.
pub(super) fn report(
    engine: Engine,
    attempt: impl FnOnce(&mut RunReport) -> Result<RunOutcome, Halt>,
) -> RunReport {
    let began = Instant::now();
    let mut report = RunReport::of(engine, RunOutcome::Unchanged { message: None });
    report.outcome = attempt(&mut report).unwrap_or_else(RunOutcome::from);
    report.took = began.elapsed();
    report
}

/// The outcome of a run that failed because of an error.
pub(super) fn failed(what: &str, error: &io::Error) -> RunOutcome {
    let reason = format!("{what}: {}", reason(error));
    RunOutcome::Failed { reason }
}

/// Locks the root directory of the image's file system, so that only one run at a time works on it,
/// whichever process starts it. Fails with [`Refusal::OtherRun`] while another run holds the lock.
pub(super) fn lock_filesystem(target: &Target) -> Result<File, Refusal> {
    let root = open::mount_point(&target.mount.point)?;
    match flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(root),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::OtherRun),
        Err(error) => Err(error.into()),
    }
}

/// Counts the extents of the image, by FS_IOC_FSGETXATTR.
pub(super) fn count(target: &Target) -> io::Result<ExtentCount> {
    let attributes = fsxattr::attributes(&target.file)?;
    Ok(ExtentCount(attributes.extents.into()))
}

/// The pressure gauge of the image's file system; [`Refusal::Pressure`] if above the limit now.
pub(super) fn gauge(target: &Target, request: &Request<'_>, host: &Host) -> Result<Gauge, Refusal> {
    let mut gauge = Gauge::new(target.mount.device);
    guard::check_pressure(&mut gauge, request.limits.max_io_pressure, host)?;
    Ok(gauge)
}

/// CLOCK_MONOTONIC, for a [`Machine`](super::run::Machine).
pub(super) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

pub(super) struct Presence<'a> {
    target: &'a Target,
    host: &'a Host,
    at: Instant,
}

impl<'a> Presence<'a> {
    pub(super) fn new(target: &'a Target, host: &'a Host) -> Presence<'a> {
        let at = Instant::now();
        Presence { target, host, at }
    }

    /// Whether the image was removed or its file system unmounted.
    pub(super) fn is_gone(&mut self) -> bool {
        if self.at.elapsed() < GONE_INTERVAL {
            return false;
        }
        self.at = Instant::now();
        self.target.is_gone(self.host)
    }
}

/// The checks between two steps: orders, bandwidth, I/O pressure, and presence of the image.
pub(super) struct Controls<'a> {
    request: &'a Request<'a>,
    host: &'a Host,
    orders: &'a mut dyn FnMut() -> Option<Stop>,
    presence: Presence<'a>,
    began: Instant,
    meter: Meter,
    gauge: Gauge,
    pressure_at: Option<Instant>,
    is_pressed: bool,
    unreported: Option<WithoutIo>,
    held: Duration,
    held_since: Option<Instant>,
}

impl<'a> Controls<'a> {
    /// `gauge` was read by the guards. `orders` returns the reason if the run is to stop.
    pub(super) fn new(
        request: &'a Request<'a>,
        host: &'a Host,
        target: &'a Target,
        gauge: Gauge,
        orders: &'a mut dyn FnMut() -> Option<Stop>,
    ) -> Controls<'a> {
        Controls {
            request,
            host,
            orders,
            presence: Presence::new(target, host),
            began: Instant::now(),
            meter: Meter::new(Bytes(request.limits.bandwidth.0)),
            gauge,
            pressure_at: None,
            is_pressed: false,
            unreported: None,
            held: Duration::ZERO,
            held_since: None,
        }
    }

    /// The reasons to stop.
    pub(super) fn stops(&mut self) -> Vec<Stop> {
        let ordered = (self.orders)();
        let gone = self.presence.is_gone().then_some(Stop::Gone);
        ordered.into_iter().chain(gone).collect()
    }

    /// The inputs for the machine of a run that has moved `moved` bytes in total.
    pub(super) fn inputs(&mut self, moved: Bytes) -> Vec<Input> {
        let mut inputs: Vec<_> = self.stops().into_iter().map(Input::Stop).collect();
        let is_over = self.meter.is_over(self.began.elapsed(), moved);
        inputs.push(switch(Hold::Bandwidth, is_over));
        inputs.extend(self.pressure());
        inputs
    }

    /// Reports, once, I/O pressure that does not hold the run.
    pub(super) fn notice(&mut self) -> Option<Event> {
        let pressure = self.unreported.take()?;
        Some(Event::Notice(pressure.to_string()))
    }

    /// Adds up the time during which the run is held.
    pub(super) fn note_held(&mut self, is_held: bool) {
        let now = Instant::now();
        if let Some(since) = std::mem::replace(&mut self.held_since, is_held.then_some(now)) {
            self.held += now - since;
        }
    }

    /// The total time during which the run was held.
    pub(super) fn held(&self) -> Duration {
        self.held
    }

    /// A held run continues only when the pressure is at most about three quarters of the limit.
    fn pressure(&mut self) -> Option<Input> {
        let is_recent = |at: Instant| at.elapsed() < PRESSURE_INTERVAL;
        if self.pressure_at.is_some_and(is_recent) {
            return None;
        }
        self.pressure_at = Some(Instant::now());
        // A run held since the last reading or longer causes no pressure itself, so the host's
        // value is valid, and the run does not keep the disks busy.
        let held = self.is_pressed;
        let asked = if held { Asked::OrHost } else { Asked::Others };
        let found = self.gauge.look(self.host, asked, held)?;
        let limit = self.request.limits.max_io_pressure;
        self.unreported = self.unreported.or(self.gauge.news(Some(found), limit));
        let limit = if held { limit / 4 * 3 } else { limit };
        self.is_pressed = found.counts.is_above(limit);
        Some(switch(Hold::Pressure, self.is_pressed))
    }
}

fn switch(hold: Hold, is_held: bool) -> Input {
    match is_held {
        true => Input::Held(hold),
        false => Input::Freed(hold),
    }
}
