//! Carries out one run on a separate thread: the phases of [`phase`](super::phase), each written to
//! disk before it begins. The thread may hang with the file system of the image.
//!
//! The job's process is killed with this thread, and xfs_fsr with that process: neither outlives
//! the daemon. The operator's commands get time to end; see [`Control`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::child;
use super::control::{Control, NotReady};
use super::note::{HookProcess, Note, NoteFile};
use super::phase::{Hooks, Phase, PhaseEnd};
use crate::defrag::job::{DefragJob, JobReport};
use crate::hook::{self, Attendant, Call, HookOutcome};
use crate::model::path::shown;
use crate::model::{
    Engine, ExtentCount, ImageRef, ReasonCode, RunOutcome, RunReport, UnixTime, Vm,
};

/// Limit for an operator's command, which may shut a VM down.
pub(super) const HOOK_TIMEOUT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_millis(200);

/// The input of a run.
pub(super) struct Task {
    pub(super) image: ImageRef,
    pub(super) vm: Option<Vm>,
    pub(super) extents: ExtentCount,
    pub(super) job: DefragJob,
    /// The state directory.
    pub(super) state: PathBuf,
}

/// How a run ended.
pub(super) struct Ended {
    /// Of the image.
    pub(super) filesystem: String,
    pub(super) began: UnixTime,
    pub(super) took: Duration,
    /// `None` if the daemon ends first: the next one finishes the run.
    pub(super) result: Option<Result<JobReport, NotReady>>,
    /// Why `hook_after` failed.
    pub(super) hook_after: Option<String>,
    /// To be removed when the history has the run.
    pub(super) note: Option<NoteFile>,
}

/// Starts a run on a thread, which sends its end to `ended`.
pub(super) fn start(task: Task, ended: mpsc::UnboundedSender<Ended>) -> io::Result<Arc<Control>> {
    let control = Arc::new(Control::default());
    let ours = Arc::clone(&control);
    let work = move || {
        // Fails only when the daemon ends.
        let _ = ended.send(Run::new(&task, ours).go());
    };
    thread::Builder::new()
        .name("defrag".to_owned())
        .spawn(work)?;
    Ok(control)
}

/// Finishes a run of an earlier daemon on a thread: waits for its command that still runs, and runs
/// `hook_after` from the note. If no thread can be started, the note stays.
pub(super) fn finish(
    note: Note,
    file: NoteFile,
    state: PathBuf,
    ended: mpsc::UnboundedSender<(Note, NoteFile)>,
) -> io::Result<Arc<Control>> {
    let control = Arc::new(Control::default());
    let ours = Arc::clone(&control);
    let work = move || {
        if let Some(file) = finish_here(note.clone(), file, &state, &ours) {
            let _ = ended.send((note, file));
        }
    };
    thread::Builder::new()
        .name("hook-after".to_owned())
        .spawn(work)?;
    Ok(control)
}

/// `None` if the daemon ends meanwhile: the note stays for the next one.
fn finish_here(
    mut note: Note,
    file: NoteFile,
    state: &Path,
    control: &Control,
) -> Option<NoteFile> {
    let deadline = Instant::now() + HOOK_TIMEOUT;
    while note.process.is_some_and(HookProcess::runs) && Instant::now() < deadline {
        if control.is_cancelled() {
            return None;
        }
        thread::sleep(INTERVAL);
    }
    let hooks = Hooks {
        before: false,
        after: !note.hook_after.is_empty(),
    };
    if note.phase.after_a_crash(hooks).is_none() {
        return Some(file);
    }
    note.phase = Phase::HookAfter;
    let (image, vm) = (note.image(), note.vm.clone());
    let subject = Subject {
        image: &image.path,
        engine: note.engine,
        extents: note.extents,
        vm: vm.as_ref(),
    };
    let call = subject.call("after", "interrupted", Some(("interrupted", None)));
    let command = note.hook_after.clone();
    let outcome = run_hook(&mut note, state, command, &call, control);
    match outcome {
        HookOutcome::Exited(0) => info!(
            "{}: defrag.hook_after succeeded for a run that was cut off",
            shown(&image.path)
        ),
        HookOutcome::Cancelled => return None,
        outcome => error!(
            "{}: defrag.hook_after {outcome}, for a run that was cut off: see whether its VM runs",
            shown(&image.path)
        ),
    }
    Some(file)
}

struct Run<'a> {
    task: &'a Task,
    control: Arc<Control>,
    note: Note,
    file: Option<NoteFile>,
    result: Option<Result<JobReport, NotReady>>,
    /// The outcome of the run for `hook_after`, in one word.
    ending: String,
    hook_after: Option<String>,
}

impl<'a> Run<'a> {
    fn new(task: &'a Task, control: Arc<Control>) -> Run<'a> {
        let phase = Phase::first(hooks(task));
        let began = unix(SystemTime::now());
        let mut note = Note::new(&task.image, task.job.engine, task.extents, began, phase);
        note.vm.clone_from(&task.vm);
        note.hook_after.clone_from(&task.job.limits.hook_after);
        Run {
            task,
            control,
            note,
            file: None,
            result: None,
            ending: String::new(),
            hook_after: None,
        }
    }

    fn go(mut self) -> Ended {
        let clock = Instant::now();
        let mut phase = Some(self.note.phase);
        while let Some(now) = phase {
            let end = match self.write_down(now) {
                Ok(()) => self.carry_out(now),
                Err(end) => end,
            };
            if self.control.is_cancelled() {
                self.result = None;
                self.file = None;
                break;
            }
            phase = now.next(end, hooks(self.task));
        }
        Ended {
            filesystem: self.task.image.key.filesystem.clone(),
            began: self.note.began,
            took: clock.elapsed(),
            result: self.result,
            hook_after: self.hook_after,
            note: self.file,
        }
    }

    /// Writes the phase to disk. Without that it does not begin, except for `hook_after`, which the
    /// next start also runs if the note has an earlier phase.
    fn write_down(&mut self, phase: Phase) -> Result<(), PhaseEnd> {
        self.note.phase = phase;
        self.note.process = None;
        match self.note.write(&self.task.state) {
            Ok(file) => self.file = Some(file),
            Err(error) if phase == Phase::HookAfter => {
                warn!("{}: {error}", shown(&self.task.state));
            }
            Err(error) => {
                let state = shown(&self.task.state);
                let why = format!("the run cannot be written down in {state}: {error}");
                self.result = Some(Err(NotReady(why)));
                self.ending = "failed".to_owned();
                let began = self.file.is_some();
                return Err(if began {
                    PhaseEnd::Ended
                } else {
                    PhaseEnd::NotStarted
                });
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, phase: Phase) -> PhaseEnd {
        match phase {
            Phase::HookBefore => self.hook_before(),
            Phase::Job => {
                self.job();
                PhaseEnd::Done
            }
            Phase::HookAfter => {
                self.hook_after();
                PhaseEnd::Done
            }
        }
    }

    fn hook_before(&mut self) -> PhaseEnd {
        let call = self.subject().call("before", "", None);
        let command = self.task.job.limits.hook_before.clone();
        let state = &self.task.state;
        let outcome = run_hook(&mut self.note, state, command, &call, &self.control);
        match outcome {
            HookOutcome::Exited(0) if !self.control.is_stopped() => {
                info!("defrag.hook_before succeeded");
                PhaseEnd::Done
            }
            HookOutcome::Exited(0) => {
                self.not_begun("stopped while defrag.hook_before ran".to_owned());
                PhaseEnd::Ended
            }
            outcome => {
                let end = match outcome {
                    HookOutcome::Failed(_) => PhaseEnd::NotStarted,
                    _ => PhaseEnd::Ended,
                };
                self.not_begun(format!("defrag.hook_before {outcome}"));
                self.ending = "hook_before_failed".to_owned();
                end
            }
        }
    }

    /// Puts off a run that `hook_before` prevented, like one that the guards refuse: the image is
    /// unchanged, and the command may succeed the next time.
    fn not_begun(&mut self, reason: String) {
        let outcome = match self.control.stopped() {
            Some(why) => RunOutcome::Stopped { why },
            None => RunOutcome::Refused {
                guard: ReasonCode::Hook,
                reason,
            },
        };
        self.ending = ending(&outcome);
        let run = RunReport::of(self.task.job.engine, outcome);
        let passed_over = Vec::new();
        self.result = Some(Ok(JobReport { run, passed_over }));
    }

    fn job(&mut self) {
        let result = child::run(&self.task.job, &self.control);
        let result = result.map(|mut report| {
            // The child knows only that it was stopped.
            if let (RunOutcome::Stopped { why }, Some(reason)) =
                (&mut report.run.outcome, self.control.stopped())
            {
                *why = reason;
            }
            report
        });
        self.ending = match &result {
            Ok(report) => ending(&report.run.outcome),
            Err(_) => "failed".to_owned(),
        };
        self.result = Some(result);
    }

    fn hook_after(&mut self) {
        let report = self.result.as_ref().and_then(|result| result.as_ref().ok());
        let outcome = report.map_or("failed", |report| report.run.outcome.as_str());
        let call = self
            .subject()
            .call("after", &self.ending, Some((outcome, report)));
        let command = self.task.job.limits.hook_after.clone();
        let state = &self.task.state;
        match run_hook(&mut self.note, state, command, &call, &self.control) {
            HookOutcome::Exited(0) => info!("defrag.hook_after succeeded"),
            HookOutcome::Cancelled => {}
            outcome => {
                error!(
                    "{}: defrag.hook_after {outcome}: see whether its VM runs",
                    shown(&self.task.image.path)
                );
                self.hook_after = Some(format!("defrag.hook_after {outcome}"));
            }
        }
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            image: &self.task.image.path,
            engine: self.task.job.engine,
            extents: self.task.extents,
            vm: self.task.vm.as_ref(),
        }
    }
}

fn hooks(task: &Task) -> Hooks {
    Hooks {
        before: !task.job.limits.hook_before.is_empty(),
        after: !task.job.limits.hook_after.is_empty(),
    }
}

/// The value of `FRAGWATCH_ENDING`: why the run was stopped, or its outcome.
fn ending(outcome: &RunOutcome) -> String {
    match outcome {
        RunOutcome::Stopped { why } => why.as_str().to_owned(),
        outcome => outcome.as_str().to_owned(),
    }
}

fn run_hook(
    note: &mut Note,
    state: &Path,
    command: Vec<String>,
    call: &Call,
    control: &Control,
) -> HookOutcome {
    let mut attendant = HookAttendant {
        note,
        state,
        control,
    };
    hook::run_once(command, HOOK_TIMEOUT, call, &mut attendant)
}

struct HookAttendant<'a> {
    note: &'a mut Note,
    state: &'a Path,
    control: &'a Control,
}

impl Attendant for HookAttendant<'_> {
    fn started(&mut self, pid: u32) {
        self.note.process = HookProcess::of(pid);
        if let Err(error) = self.note.write(self.state) {
            warn!("{}: {error}", shown(self.state));
        }
    }

    fn is_cancelled(&mut self) -> bool {
        self.control.is_cancelled()
    }
}

/// The data of a run for the operator's commands.
struct Subject<'a> {
    image: &'a Path,
    engine: Engine,
    extents: ExtentCount,
    vm: Option<&'a Vm>,
}

impl Subject<'_> {
    /// `result` is the outcome of the run, in one word and in full.
    fn call(&self, moment: &str, ending: &str, result: Option<(&str, Option<&JobReport>)>) -> Call {
        let mut variables = vec![
            ("FRAGWATCH_EVENT", format!("defrag-{moment}")),
            ("FRAGWATCH_IMAGE", shown(self.image)),
            ("FRAGWATCH_ENGINE", self.engine.to_string()),
            ("FRAGWATCH_EXTENTS", self.extents.0.to_string()),
        ];
        if let Some(vm) = self.vm {
            variables.push(("FRAGWATCH_VM", vm.name.clone().unwrap_or_default()));
            variables.push(("FRAGWATCH_VM_UUID", vm.uuid.clone().unwrap_or_default()));
            variables.push(("FRAGWATCH_VM_PID", vm.pid.to_string()));
        }
        if !ending.is_empty() {
            variables.push(("FRAGWATCH_ENDING", ending.to_owned()));
        }
        let mut json = serde_json::json!({ "schema": 1, "event": format!("defrag-{moment}") });
        for (name, value) in &variables {
            json[name.trim_start_matches("FRAGWATCH_").to_ascii_lowercase()] = value.clone().into();
        }
        if let Some((outcome, report)) = result {
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

fn unix(time: SystemTime) -> UnixTime {
    let since = time.duration_since(UNIX_EPOCH);
    UnixTime::from_seconds(since.map_or(0.0, |since| since.as_secs_f64()))
}
