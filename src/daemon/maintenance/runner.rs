//! Carries out one run on a separate thread: the phases of [`phase`](super::phase), each written to
//! disk before it begins. The thread may hang with the file system of the image.
//!
//! The job's process is killed with this thread, and xfs_fsr with that process: neither outlives
//! the daemon. QEMU does: a copy that the process has not ended goes on until the next start ends it.
//! The operator's commands get time to end; see [`Control`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::child;
use super::control::Control;
use super::note::{Note, NoteFile};
use super::phase::{Hooks, Phase, PhaseEnd};
use crate::defrag::job::{DefragJob, JobReport};
use crate::hook::{self, Call, HookOutcome};
use crate::model::path::shown;
use crate::model::{OutcomeKind, ReasonCode, RunOutcome, RunReport};
use crate::sys::proc::ProcessId;

/// Limit for an operator's command, which may shut a VM down.
const HOOK_TIMEOUT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Task {
    pub(super) note: Note,
    /// The file of the note, once it is written.
    pub(super) file: Option<NoteFile>,
    /// `None` for a run that an earlier daemon left: its `hook_after` remains to be run.
    pub(super) job: Option<DefragJob>,
    pub(super) state: PathBuf,
}

pub(super) struct Ended {
    pub(super) note: Note,
    /// To be removed when the history has the run.
    pub(super) file: Option<NoteFile>,
    pub(super) took: Duration,
    pub(super) end: End,
    /// Why `hook_after` failed.
    pub(super) hook_after: Option<String>,
}

pub(super) enum End {
    /// The run was cut off by the end of an earlier daemon.
    CutOff,
    /// This daemon ends first: the next one finishes the run.
    Cancelled,
    /// It did nothing, and its image is not the cause: the state directory is not writable, or no
    /// process can be started.
    NotReady(String),
    Report(Box<JobReport>),
}

impl Task {
    /// Carries it out on a thread, which sends its end to `ended`. A run of an earlier daemon is
    /// finished: its command that still runs is waited for, then `hook_after` is run.
    pub(super) fn start(self, ended: mpsc::UnboundedSender<Ended>) -> io::Result<Arc<Control>> {
        let control = Arc::new(Control::default());
        let at_work = AtWork {
            task: self,
            control: Arc::clone(&control),
            end: End::CutOff,
            ending: OutcomeKind::Interrupted.as_str().to_owned(),
            hook_after: None,
        };
        // Sending fails only when the daemon ends.
        let work = move || drop(ended.send(at_work.go()));
        thread::Builder::new()
            .name("defrag".to_owned())
            .spawn(work)?;
        Ok(control)
    }

    fn hooks(&self) -> Hooks {
        let before = |job: &DefragJob| !job.limits.hook_before.is_empty();
        Hooks {
            before: self.job.as_ref().is_some_and(before),
            after: !self.note.hook_after.is_empty(),
        }
    }

    /// The data of the run for an operator's command. `outcome` is given after the run: in one
    /// word, and in full if there is a report.
    fn call(
        &self,
        moment: &str,
        ending: &str,
        outcome: Option<(&str, Option<&JobReport>)>,
    ) -> Call {
        let note = &self.note;
        let mut variables = vec![
            ("FRAGWATCH_EVENT", format!("defrag-{moment}")),
            ("FRAGWATCH_IMAGE", shown(&note.image.path)),
            ("FRAGWATCH_ENGINE", note.engine.to_string()),
            ("FRAGWATCH_EXTENTS", note.extents.0.to_string()),
        ];
        if let Some(vm) = &note.vm {
            variables.push(("FRAGWATCH_VM", vm.name.clone().unwrap_or_default()));
            variables.push(("FRAGWATCH_VM_UUID", vm.uuid.clone().unwrap_or_default()));
            variables.push(("FRAGWATCH_VM_PID", vm.pid.to_string()));
        }
        if !ending.is_empty() {
            variables.push(("FRAGWATCH_ENDING", ending.to_owned()));
        }
        let mut json = serde_json::json!({ "schema": 1 });
        for (name, value) in &variables {
            json[name.trim_start_matches("FRAGWATCH_").to_ascii_lowercase()] = value.clone().into();
        }
        if let Some((outcome, report)) = outcome {
            variables.push(("FRAGWATCH_OUTCOME", outcome.to_owned()));
            if let Some(report) = report {
                json["run"] = report.to_json();
            }
        }
        Call {
            variables,
            json: json.to_string().into_bytes(),
        }
    }
}

/// A run on its thread.
struct AtWork {
    task: Task,
    control: Arc<Control>,
    end: End,
    /// The value of `FRAGWATCH_ENDING`: why the run was stopped, or its outcome.
    ending: String,
    hook_after: Option<String>,
}

impl AtWork {
    fn go(mut self) -> Ended {
        let clock = Instant::now();
        let hooks = self.task.hooks();
        let mut phase = match self.task.job {
            Some(_) => Some(Phase::first(hooks)),
            None => {
                self.wait_for_former_command();
                self.task.note.phase.after_a_crash(hooks)
            }
        };
        while let Some(now) = phase.filter(|_| !self.control.is_cancelled()) {
            let end = match self.write_down(now) {
                Ok(()) => self.carry_out(now),
                Err(end) => end,
            };
            phase = now.next(end, hooks);
        }
        if self.control.is_cancelled() {
            self.end = End::Cancelled;
        }
        Ended {
            note: self.task.note,
            file: self.task.file,
            took: clock.elapsed(),
            end: self.end,
            hook_after: self.hook_after,
        }
    }

    fn wait_for_former_command(&self) {
        let deadline = Instant::now() + HOOK_TIMEOUT;
        while self.task.note.process.is_some_and(ProcessId::runs)
            && Instant::now() < deadline
            && !self.control.is_cancelled()
        {
            thread::sleep(INTERVAL);
        }
    }

    /// Writes the phase to disk. Without that it does not begin, except for `hook_after`, which the
    /// next start also runs if the note has an earlier phase.
    fn write_down(&mut self, phase: Phase) -> Result<(), PhaseEnd> {
        let Task {
            note, file, state, ..
        } = &mut self.task;
        note.phase = phase;
        note.process = None;
        match note.write(state) {
            Ok(written) => *file = Some(written),
            Err(error) if phase == Phase::HookAfter => warn!("{}: {error}", shown(state)),
            Err(error) => {
                let state = shown(state);
                let why = format!("the run cannot be written down in {state}: {error}");
                self.end = End::NotReady(why);
                self.ending = "failed".to_owned();
                return Err(match file {
                    Some(_) => PhaseEnd::Ended,
                    None => PhaseEnd::NotStarted,
                });
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, phase: Phase) -> PhaseEnd {
        match (phase, &self.task.job) {
            (Phase::HookBefore, Some(job)) => {
                let command = job.limits.hook_before.clone();
                return self.hook_before(command);
            }
            (Phase::Job, Some(job)) => {
                let result = child::run(job, &self.control);
                self.take_in(result);
            }
            _ => self.hook_after(),
        }
        PhaseEnd::Done
    }

    fn hook_before(&mut self, command: Vec<String>) -> PhaseEnd {
        let call = self.task.call("before", "", None);
        let outcome = self.run_hook(command, &call);
        match outcome {
            HookOutcome::Exited(0) if self.control.stopped().is_none() => {
                info!("defrag.hook_before succeeded");
                PhaseEnd::Done
            }
            HookOutcome::Exited(0) => {
                self.not_begun("stopped while defrag.hook_before ran".to_owned());
                PhaseEnd::Ended
            }
            outcome => {
                self.not_begun(format!("defrag.hook_before {outcome}"));
                self.ending = "hook_before_failed".to_owned();
                match outcome {
                    HookOutcome::Failed(_) => PhaseEnd::NotStarted,
                    _ => PhaseEnd::Ended,
                }
            }
        }
    }

    /// Puts off a run that `hook_before` prevented, like one that the guards refuse: the image is
    /// unchanged, and the command may succeed the next time.
    fn not_begun(&mut self, reason: String) {
        let outcome = RunOutcome::Refused {
            guard: ReasonCode::Hook,
            reason,
        };
        let outcome = match self.control.stopped() {
            Some(why) => RunOutcome::Stopped { why },
            None => outcome,
        };
        self.take_in(Ok(JobReport {
            run: RunReport::of(self.task.note.engine, outcome),
            passed_over: Vec::new(),
        }));
    }

    fn take_in(&mut self, result: io::Result<JobReport>) {
        let mut report = match result {
            Ok(report) => report,
            Err(error) => {
                self.end = End::NotReady(format!("no process can be started: {error}"));
                self.ending = "failed".to_owned();
                return;
            }
        };
        let outcome = &mut report.run.outcome;
        if let RunOutcome::Stopped { why } = outcome {
            // The report of the child lacks the reason.
            *why = self.control.stopped().unwrap_or(*why);
            self.ending = why.as_str().to_owned();
        } else {
            self.ending = outcome.as_str().to_owned();
        }
        self.end = End::Report(Box::new(report));
    }

    fn hook_after(&mut self) {
        let (outcome, report) = match &self.end {
            End::Report(report) => (report.run.outcome.as_str(), Some(&**report)),
            End::NotReady(_) => ("failed", None),
            End::CutOff | End::Cancelled => (OutcomeKind::Interrupted.as_str(), None),
        };
        let call = self
            .task
            .call("after", &self.ending, Some((outcome, report)));
        let cut_off = match self.task.job {
            Some(_) => "",
            None => " for a run that was cut off",
        };
        let image = shown(&self.task.note.image.path);
        let command = self.task.note.hook_after.clone();
        match self.run_hook(command, &call) {
            HookOutcome::Exited(0) => info!("{image}: defrag.hook_after succeeded{cut_off}"),
            HookOutcome::Cancelled => {}
            outcome => {
                error!("{image}: defrag.hook_after {outcome}{cut_off}: see whether its VM runs");
                self.hook_after = Some(format!("defrag.hook_after {outcome}"));
            }
        }
    }

    fn run_hook(&mut self, command: Vec<String>, call: &Call) -> HookOutcome {
        let Task { note, state, .. } = &mut self.task;
        let started = |pid| {
            note.process = ProcessId::of(pid);
            if let Err(error) = note.write(state) {
                warn!("{}: {error}", shown(state));
            }
        };
        let is_cancelled = || self.control.is_cancelled();
        hook::run_once(command, HOOK_TIMEOUT, call, started, is_cancelled)
    }
}
