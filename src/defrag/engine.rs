//! What all engines share: the request, its events, and the checks between two steps of a run.
//!
//! # How an engine is added
//!
//! 1. A value of [`Engine`]; the compiler then names the places that decide by engine, such as
//!    [`Outlook::gain`](crate::model::Outlook::gain) and the planner's estimate.
//! 2. A file with one function, `run(&mut Controls, &mut RunReport)`, called by
//!    [`job::run`](super::job::run). The image is open and not checked. The function
//!    - locks the file system ([`lock_filesystem`]) and checks the [guards](super::guard), whose
//!      refusal is its error;
//!    - returns [`RunOutcome::WouldRun`] if the request is a dry run;
//!    - sends [`Event::Cleared`], then works in steps, and passes [`Controls::inputs`] to a
//!      [`Machine`](super::run::Machine) between two of them;
//!    - fills in the report, from its own [`count`] of the extents.
//! 3. Rows of the [defects](super::kernels::table) that endanger it.
//!
//! What it changes until its end is written down before, and undone by the next run of any engine,
//! as [`hint`](super::hint) does.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::HostInterfaces;
use super::gate::Gate;
use super::guard::{self, Target};
use super::meter::Meter;
use super::pressure::{Asked, Gauge};
use super::run::{Hold, Input};
use crate::config::settings::Defrag;
use crate::model::{Bytes, Engine, ExtentCount, ReasonCode, Refusal, RunOutcome, Stop};
use crate::probe::{open, reason};
use crate::sys::{fsxattr, locks};

/// Interval for reading the I/O pressure, which is a ten-second average.
const PRESSURE_INTERVAL: Duration = Duration::from_secs(1);
const GONE_INTERVAL: Duration = Duration::from_secs(1);

/// A request to defragment an image.
pub struct Request<'a> {
    /// The image.
    pub path: &'a Path,
    /// All limits. With `dry_run` all guards are checked, and nothing is changed.
    pub limits: &'a Defrag,
    /// The interfaces of the host.
    pub host: &'a HostInterfaces,
    /// Called before each step and repeatedly while waiting; returns the reason to stop.
    pub orders: &'a mut dyn FnMut() -> Option<Stop>,
    /// Receives the events.
    pub watch: &'a mut dyn FnMut(Event),
}

/// An event of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A message for the operator.
    Notice(String),
    /// The guards passed.
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
    /// Done of `total`: bytes for `xfs_fsr`, before its final swap; removed extents for `online`; bytes for
    /// `blockcopy`, of which the total grows with what the guest writes.
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

/// The outcome of a run that failed because of an error.
pub(crate) fn failed(what: &str, error: &io::Error) -> RunOutcome {
    let reason = format!("{what}: {}", reason(error));
    RunOutcome::Failed { reason }
}

/// The outcome of a run that cannot go on.
pub(crate) fn cannot<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> RunOutcome {
    move |error| {
        let error = error.into();
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => RunOutcome::NoSpace,
            _ => failed(what, &error),
        }
    }
}

/// Locks the root directory of the image's file system, so that only one run at a time works on it,
/// whichever process starts it. Refused while another run holds the lock.
pub(crate) fn lock_filesystem(target: &Target) -> Result<File, Refusal> {
    let root = open::mount_point(&target.mount.point)?;
    match locks::lock(&root)? {
        true => Ok(root),
        false => Err(ReasonCode::OtherRun.into()),
    }
}

/// Raises the gate of the image. Refused where openers cannot be held.
pub(crate) fn raise_gate(file: &File, host: &HostInterfaces) -> Result<Gate, Refusal> {
    Gate::raise(file, &host.proc).map_err(|error| {
        let text = format!(
            "who opens it could not be held meanwhile (fanotify: {}): run as root, with \
             CAP_SYS_ADMIN",
            reason(&error)
        );
        Refusal::new(ReasonCode::NoGate, text)
    })
}

/// Counts the extents of the image, by FS_IOC_FSGETXATTR.
pub(crate) fn count(target: &Target) -> io::Result<ExtentCount> {
    let attributes = fsxattr::attributes(&target.file)?;
    Ok(ExtentCount(attributes.extents.into()))
}

/// CLOCK_MONOTONIC, for a [`Machine`](super::run::Machine).
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

/// A run in progress, and the checks between its steps: orders, bandwidth, I/O pressure, and
/// presence of the image.
pub(crate) struct Controls<'t, 'r> {
    pub(crate) request: Request<'r>,
    pub(crate) target: &'t Target,
    began: Instant,
    present_at: Instant,
    meter: Meter,
    gauge: Gauge,
    pressure_at: Option<Instant>,
    is_pressed: bool,
    held: Duration,
    held_since: Option<Instant>,
}

impl<'t, 'r> Controls<'t, 'r> {
    pub(crate) fn new(request: Request<'r>, target: &'t Target) -> Controls<'t, 'r> {
        let began = Instant::now();
        Controls {
            meter: Meter::new(Bytes(request.limits.bandwidth.0)),
            gauge: Gauge::new(target.mount.device),
            request,
            target,
            began,
            present_at: began,
            pressure_at: None,
            is_pressed: false,
            held: Duration::ZERO,
            held_since: None,
        }
    }

    /// The guard for the I/O pressure. If the pressure seems too high, it is read again a second
    /// later, unless `again`: then processes may wait at the gate.
    pub(crate) fn check_pressure(&mut self, again: bool) -> Result<(), Refusal> {
        let (host, most) = (self.request.host, self.request.limits.max_io_pressure);
        guard::check_pressure(&mut self.gauge, most, host, again)
    }

    /// Sends an event.
    pub(crate) fn send(&mut self, event: Event) {
        (self.request.watch)(event);
    }

    /// The reason to stop: an order, or that the image was removed or its file system unmounted.
    pub(crate) fn stop(&mut self) -> Option<Stop> {
        if let Some(stop) = (self.request.orders)() {
            return Some(stop);
        }
        if self.present_at.elapsed() < GONE_INTERVAL {
            return None;
        }
        self.present_at = Instant::now();
        let is_gone = self.target.is_gone(self.request.host);
        is_gone.then_some(Stop::Gone)
    }

    /// The inputs for the machine of a run that has moved `moved` bytes in total.
    pub(crate) fn inputs(&mut self, moved: Bytes) -> Vec<Input> {
        let mut inputs = Vec::from_iter(self.stop().map(Input::Stop));
        let is_over = self.meter.is_over(self.began.elapsed(), moved);
        inputs.push(Input::Held(Hold::Bandwidth, is_over));
        inputs.extend(self.pressure());
        inputs
    }

    /// Adds up the time during which the run is held.
    pub(crate) fn note_held(&mut self, is_held: bool) {
        let now = Instant::now();
        if let Some(since) = std::mem::replace(&mut self.held_since, is_held.then_some(now)) {
            self.held += now - since;
        }
    }

    /// The total time during which the run was held.
    pub(crate) fn held(&self) -> Duration {
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
        let found = self.gauge.look(self.request.host, asked, held)?;
        let limit = self.request.limits.max_io_pressure;
        if let Some(news) = self.gauge.news(Some(found), limit) {
            self.send(Event::Notice(news));
        }
        let limit = if held { limit / 4 * 3 } else { limit };
        self.is_pressed = found.counts > f64::from(limit);
        Some(Input::Held(Hold::Pressure, self.is_pressed))
    }
}
