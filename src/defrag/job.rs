//! One defragmentation as a document: what is to be done with the settings in force, and what came of
//! it. The daemon writes a [`DefragJob`] to the standard input of a child process, which answers on
//! its standard output with [`JobMessage`]s, one a line.
//!
//! Both are the same program: the child is started from `/proc/self/exe`, which stays the running
//! program when a package replaces its file (proc_pid_exe(5)). A job of another build is refused all
//! the same.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::engine::Request;
use super::fsr;
use super::guard::leaves_to_another;
use super::{Host, online};
use crate::config::settings::Defrag;
use crate::model::path::wire;
use crate::model::{Engine, RunOutcome, RunReport, Stop};

/// The hidden subcommand that carries out a job.
pub const COMMAND: &str = "defrag-job";
/// No job is longer: a path and the section `[defrag]`.
const LONGEST_JOB: u64 = 1 << 20;
/// From one report of progress to the next at least.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DefragJob {
    /// The version of the program that wrote it.
    build: String,
    /// The image.
    #[serde(with = "wire")]
    pub image: PathBuf,
    /// The engine that is tried first.
    pub engine: Engine,
    /// The engines that are tried after it, in this order, where it cannot work on the image.
    pub then: Vec<Engine>,
    /// The limits in force.
    pub limits: Defrag,
    /// Where extent-size hints are noted while they are changed.
    #[serde(with = "wire")]
    pub hints: PathBuf,
}

/// An engine that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Which.
    pub engine: Engine,
    /// Why, in words.
    pub reason: String,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// What the last engine did.
    pub run: RunReport,
    /// The engines that were tried before it.
    pub passed_over: Vec<PassedOver>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// What works.
    pub engine: Engine,
    /// What is done of `total`: bytes for `xfs_fsr`, extents for `online`.
    pub done: u64,
    /// All that is to be done.
    pub total: u64,
}

impl JobProgress {
    /// What is done, from 0 to 1; `None` if there is nothing to do.
    #[must_use]
    // A share that is shown needs no more digits than a float has.
    #[allow(clippy::cast_precision_loss)]
    pub fn share(self) -> Option<f64> {
        (self.total > 0).then(|| self.done as f64 / self.total as f64)
    }
}

/// A line that the child writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobMessage {
    /// How far it is.
    Progress(JobProgress),
    /// Its end.
    Report(Box<JobReport>),
}

impl DefragJob {
    /// A job for this build.
    #[must_use]
    pub fn new(
        image: PathBuf,
        engine: Engine,
        then: Vec<Engine>,
        limits: Defrag,
        hints: PathBuf,
    ) -> DefragJob {
        DefragJob {
            build: env!("CARGO_PKG_VERSION").to_owned(),
            image,
            engine,
            then,
            limits,
            hints,
        }
    }

    /// Reads a job.
    ///
    /// # Errors
    /// Those of reading; InvalidData for what is no job, or the job of another build.
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

    /// Carries it out: one engine after the other until one can work on the image. `orders` is asked
    /// again and again whether to stop; `report` gets the progress.
    ///
    /// To be called on a thread that lives as long as the job: see [`fsr::run`].
    pub fn run(
        &self,
        orders: &mut dyn FnMut() -> Option<Stop>,
        report: &mut dyn FnMut(JobProgress),
    ) -> JobReport {
        let host = Host::new(self.hints.clone());
        let mut passed_over = Vec::new();
        let mut engine = self.engine;
        for next in &self.then {
            let run = self.run_by(engine, &host, orders, report);
            match another_may(&run.outcome) {
                Some(reason) if orders().is_none() => {
                    passed_over.push(PassedOver { engine, reason });
                }
                _ => return JobReport { run, passed_over },
            }
            engine = *next;
        }
        let run = self.run_by(engine, &host, orders, report);
        JobReport { run, passed_over }
    }

    fn run_by(
        &self,
        engine: Engine,
        host: &Host,
        orders: &mut dyn FnMut() -> Option<Stop>,
        report: &mut dyn FnMut(JobProgress),
    ) -> RunReport {
        let request = Request {
            path: &self.image,
            limits: &self.limits,
            until: None,
        };
        let mut progress = Throttle::new(engine, report);
        match engine {
            Engine::XfsFsr => fsr::run(&request, host, orders, &mut |event| match event {
                fsr::Event::Cleared(facts) => progress.total = facts.allocated.0,
                fsr::Event::Progress { written, .. } => progress.at(written.0),
                _ => {}
            }),
            Engine::Online => {
                let mut watch = |event| match event {
                    online::Event::Cleared(summary) => progress.total = summary.gain.0,
                    online::Event::Progress { done, .. } => progress.at(done.0),
                    _ => {}
                };
                online::run(&request, host, orders, &mut watch).run
            }
        }
    }
}

impl JobReport {
    /// The public form of `fragwatch defrag --json`, which the operator's commands get too.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = run_json(&self.run);
        json["passed_over"] = json!(self.passed_over);
        json
    }
}

/// Why another engine may work on the image, if one may.
fn another_may(outcome: &RunOutcome) -> Option<String> {
    match outcome {
        RunOutcome::Refused { guard, .. } if leaves_to_another(guard) => outcome.reason(),
        // Somebody opened the image, or changed it: an engine for images in use can have it.
        RunOutcome::Busy { .. } => outcome.reason(),
        _ => None,
    }
}

/// Reports progress now and then.
struct Throttle<'a> {
    engine: Engine,
    total: u64,
    last: Option<Instant>,
    report: &'a mut dyn FnMut(JobProgress),
}

impl<'a> Throttle<'a> {
    fn new(engine: Engine, report: &'a mut dyn FnMut(JobProgress)) -> Throttle<'a> {
        Throttle {
            engine,
            total: 0,
            last: None,
            report,
        }
    }

    fn at(&mut self, done: u64) {
        if self
            .last
            .is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL)
        {
            return;
        }
        self.last = Some(Instant::now());
        (self.report)(JobProgress {
            engine: self.engine,
            done: done.min(self.total),
            total: self.total,
        });
    }
}

/// A run in the public form of `fragwatch defrag --json`.
#[must_use]
pub fn run_json(report: &RunReport) -> Value {
    let mut json = json!({
        "outcome": report.outcome.as_str(),
        "engine": report.engine,
        "from": report.from,
        "to": report.to,
        "read_bytes": report.read,
        "written_bytes": report.written,
        "seconds": report.took.as_secs_f64(),
        "held_seconds": report.held.as_secs_f64(),
        "account": report.account,
    });
    if let Some(reason) = report.reason() {
        json["reason"] = json!(reason);
    }
    match &report.outcome {
        RunOutcome::Busy { by } => json["by"] = json!(by),
        RunOutcome::Refused { guard, .. } => json["guard"] = json!(guard),
        RunOutcome::Stopped { why } => json["reason"] = json!(why),
        _ => {}
    }
    json
}
