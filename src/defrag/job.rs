//! A defragmentation as a document: the task, with the settings in force, and its result.
//! `fragwatch defrag` runs a [`DefragJob`] itself; the daemon writes it to the standard input of a
//! child process, which answers on its standard output with [`JobMessage`]s, one per line. The
//! child is started from `/proc/self/exe`, which remains the running program when a package
//! replaces its file (proc_pid_exe(5)). Even so, a job of another build is refused.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::engine::{Controls, Event, Request};
use super::{HostInterfaces, blockcopy, fsr, guard, hint, online};
use crate::config::settings::Defrag;
use crate::model::path::wire;
use crate::model::{Engine, RunForecast, RunOutcome, RunReport, Stop};
use crate::sys::proc::ProcessId;

/// The hidden subcommand that runs a job.
pub const COMMAND: &str = "defrag-job";
/// Maximum length of a job, in bytes: a path and the section `[defrag]`.
const LONGEST_JOB: u64 = 1 << 20;

/// The task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DefragJob {
    build: String,
    /// The image.
    #[serde(with = "wire")]
    pub image: PathBuf,
    /// The engine that is tried first.
    pub engine: Engine,
    /// The engines tried after it, in this order, if it cannot work on the image.
    pub then: Vec<Engine>,
    /// The limits in force. With `dry_run` all guards are checked, and nothing is changed.
    pub limits: Defrag,
    /// Where extent-size hints are recorded while they are changed.
    #[serde(with = "wire")]
    pub hints: PathBuf,
    /// The history.
    #[serde(with = "wire")]
    pub database: PathBuf,
    /// The process that has made the job; see [`HostInterfaces::holder`].
    holder: Option<ProcessId>,
}

/// An engine that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// The engine.
    pub engine: Engine,
    /// The reason, as text.
    pub reason: String,
}

/// The result of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// The run of the last engine.
    pub run: RunReport,
    /// The engines tried before it.
    pub passed_over: Vec<PassedOver>,
}

/// The progress of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// The part of `total` that is done.
    pub done: u64,
    /// The total to be done.
    pub total: u64,
}

impl JobProgress {
    /// The share done, from 0 to 1; `None` if there is nothing to do.
    // A displayed share needs no more digits than a float has.
    #[allow(clippy::cast_precision_loss)]
    pub fn share(self) -> Option<f64> {
        (self.total > 0).then(|| self.done as f64 / self.total as f64)
    }
}

/// A line that the child writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobMessage {
    /// The current progress.
    Progress(JobProgress),
    /// The result.
    Report(Box<JobReport>),
}

impl DefragJob {
    /// A job for this build.
    pub fn new(
        image: PathBuf,
        engine: Engine,
        then: Vec<Engine>,
        limits: Defrag,
        hints: PathBuf,
        database: PathBuf,
    ) -> DefragJob {
        DefragJob {
            build: env!("CARGO_PKG_VERSION").to_owned(),
            image,
            engine,
            then,
            limits,
            hints,
            database,
            holder: ProcessId::of(std::process::id()),
        }
    }

    /// Reads a job. Fails with InvalidData if it is no job, or that of another build.
    pub fn read(from: impl Read) -> io::Result<DefragJob> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let job: DefragJob = serde_json::from_reader(from.take(LONGEST_JOB))
            .map_err(|error| invalid(format!("not a job: {error}")))?;
        if job.build != env!("CARGO_PKG_VERSION") {
            let ours = env!("CARGO_PKG_VERSION");
            let why = format!("a job of fragwatch {}, this is {ours}", job.build);
            return Err(invalid(why));
        }
        Ok(job)
    }

    /// Runs the engines in turn until one can work on the image. `orders` is called repeatedly and
    /// returns the reason to stop; `watch` receives the events. If the calling thread ends, the
    /// kernel kills xfs_fsr.
    pub fn run(
        &self,
        orders: &mut dyn FnMut() -> Option<Stop>,
        watch: &mut dyn FnMut(Event),
    ) -> JobReport {
        let host = HostInterfaces {
            database: self.database.clone(),
            holder: self.holder,
            ..HostInterfaces::new(self.hints.clone())
        };
        let mut passed_over = Vec::new();
        let mut engine = self.engine;
        let mut then = self.then.iter();
        loop {
            let request = Request {
                path: &self.image,
                limits: &self.limits,
                host: &host,
                orders,
                watch,
            };
            let run = run(engine, request);
            let left = run.outcome.left_to_another().filter(|_| orders().is_none());
            let Some((reason, next)) = left.zip(then.next().copied()) else {
                return JobReport { run, passed_over };
            };
            watch(Event::PassedOver {
                engine,
                reason: reason.clone(),
                next,
            });
            passed_over.push(PassedOver { engine, reason });
            engine = next;
        }
    }
}

/// Runs one engine.
pub fn run(engine: Engine, request: Request<'_>) -> RunReport {
    let (began, dry_run) = (Instant::now(), request.limits.dry_run);
    let mut report = RunReport::of(engine, RunOutcome::Unchanged { message: None });
    let (Ok(outcome) | Err(outcome)) = attempt(engine, request, &mut report);
    report.outcome = outcome;
    if !dry_run {
        report.took = began.elapsed();
    }
    report
}

/// The error is the outcome of a run that ends before its engine starts.
fn attempt(
    engine: Engine,
    request: Request<'_>,
    report: &mut RunReport,
) -> Result<RunOutcome, RunOutcome> {
    if !request.limits.dry_run {
        hint::restore_all(&request.host.hints, |text| {
            (request.watch)(Event::Notice(text));
        });
        blockcopy::recover::recover_all(&request.host.hints, |text| {
            (request.watch)(Event::Notice(text));
        });
    }
    let target = match engine {
        Engine::BlockCopy => guard::open_anywhere(request.path, request.host)?,
        Engine::XfsFsr | Engine::Online => guard::open(request.path, request.host)?,
    };
    let mut controls = Controls::new(request, &target);
    match engine {
        Engine::XfsFsr => fsr::run(&mut controls, report),
        Engine::Online => online::run(&mut controls, report),
        Engine::BlockCopy => blockcopy::run(&mut controls, report),
    }
}

impl JobReport {
    /// The public form of `fragwatch defrag --json`, also passed to the operator's commands.
    pub fn to_json(&self) -> Value {
        let mut json = run_json(&self.run);
        json["passed_over"] = json!(self.passed_over);
        json
    }
}

fn run_json(report: &RunReport) -> Value {
    let mut json = json!({
        "outcome": report.outcome.as_str(),
        "engine": report.engine,
        "from": report.from,
    });
    if let RunOutcome::WouldRun { forecast } = &report.outcome {
        match forecast {
            RunForecast::Copy { copies, stall } => {
                json["copies_bytes"] = json!(copies);
                json["stall_seconds"] = json!(stall.as_secs_f64());
            }
            RunForecast::Segments { gain, shared } => {
                json["gain"] = json!(gain);
                json["shared_bytes"] = json!(shared);
            }
        }
        return json;
    }
    json["to"] = json!(report.to);
    json["read_bytes"] = json!(report.read);
    json["written_bytes"] = json!(report.written);
    json["seconds"] = json!(report.took.as_secs_f64());
    json["held_seconds"] = json!(report.held.as_secs_f64());
    json["account"] = json!(report.account);
    if let Some(reason) = report.reason() {
        json["reason"] = json!(reason);
    }
    match &report.outcome {
        RunOutcome::Busy { by } => json["by"] = json!(by),
        RunOutcome::Refused { guard, .. } => json["guard"] = json!(guard),
        RunOutcome::Stopped { why } => json["reason"] = json!(why),
        _ => {}
    }
    if let Some(stalls) = &report.stalls {
        json["calls"] = json!(stalls.calls);
        json["worst_call_seconds"] = json!(stalls.longest.as_secs_f64());
        json["calls_seconds"] = json!(stalls.total.as_secs_f64());
    }
    if let Some(writes) = &report.guest_writes {
        json["guest_write_seconds"] = json!(writes.meanwhile.as_secs_f64());
        json["guest_write_seconds_before"] = json!(writes.before.as_secs_f64());
    }
    if let Some(work) = &report.segments {
        json["segments"] = json!(work.segments);
        json["busy_seconds"] = json!(work.busy.as_secs_f64());
        json["median_call_seconds"] = json!(work.median_call.as_secs_f64());
        json["shared_bytes"] = json!(work.shared);
    }
    json
}
