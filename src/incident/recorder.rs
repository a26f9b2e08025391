//! Records incidents: collects events and evidence, writes the files and runs the hooks.
//!
//! ```text
//! slow side ─► queue ─► recorder ─┬─► writer ─► directory
//!                          ▲      ├─► evidence
//!                          │      └─► hooks
//!                          └── their results
//! ```
//!
//! Callers only put commands into a bounded queue. The recorder accesses no file: it keeps
//! incidents in memory ([`entry`](super::entry)) and queues their states for the
//! [`writer`](super::writer). A hanging directory, a full disk or a hook that never ends thus
//! delays neither metrics nor the log; what is lost is counted ([`Recorder::health`]).
//!
//! The file is written when the incident begins, when evidence arrives, periodically, and at the
//! end. The hooks run once the evidence is there, at most [`super::gatherer::DEADLINE`] later.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use super::archive::file_name;
use super::entry::{Entry, to_json};
use super::format::{Action, EventKind, Incident, IncidentState, TakenEvidence, millis};
use super::gatherer::{DEADLINE, Findings, Gatherer, Images};
use super::hook::{self, HookOutcome, HookReport, Hooks, Moment};
use super::writer::{Writer, WriterHealth};
use crate::background::{Background, STACK};
use crate::hook::Call;
use crate::model::path::{printable, shown};
use crate::model::{IncidentId, Monotonic, StuckTask, Trigger};
use crate::rescue::entry::{LINE_MAX, Notice, Report};
use crate::rescue::{Began, Ended, Limit};

/// Number of files kept.
const KEEP: usize = 100;
const QUEUE: usize = 4096;
/// Earlier lines and stalls that are recorded with an incident.
const PRELUDE: usize = 50;
const PRELUDE_AGE: Duration = Duration::from_secs(60);
/// Minimum interval between periodic writes of an incident.
const FLUSH: Duration = Duration::from_secs(5);
/// Incidents kept in memory: those that ended may still get evidence and the result of a hook.
const AFTERMATH: usize = 4;
/// An operation that takes longer is reported as a hanging directory.
pub const HANGS: Duration = Duration::from_secs(5);

/// Settings of the recorder.
#[derive(Clone)]
pub struct RecorderSettings {
    /// Directory of the incident files.
    pub directory: PathBuf,
    /// Mount point of procfs.
    pub proc: PathBuf,
    /// The operator's command and its arguments; empty for none.
    pub hook: Vec<String>,
    /// Time limit of a hook.
    pub hook_timeout: Duration,
    /// Returns the most fragmented images.
    pub images: Images,
    /// Returns what the doctor finds.
    pub findings: Findings,
    /// Called with an incident and its start time whenever its state is queued. Must not block.
    pub on_change: Listener,
}

/// Type of [`RecorderSettings::on_change`].
pub type Listener = Arc<dyn Fn(&Incident, SystemTime) + Send + Sync>;

impl Default for RecorderSettings {
    fn default() -> Self {
        RecorderSettings {
            directory: PathBuf::from("/var/lib/fragwatch/incidents"),
            proc: PathBuf::from("/proc"),
            hook: Vec::new(),
            hook_timeout: hook::TIMEOUT,
            images: Arc::new(Vec::new),
            findings: Arc::new(Vec::new),
            on_change: Arc::new(|_, _| {}),
        }
    }
}

/// State of the recorder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecorderHealth {
    /// The files of incidents.
    pub files: WriterHealth,
    /// Commands lost because the queue was full.
    pub lost: u64,
    /// Hook runs dropped because the queue was full.
    pub hooks_dropped: u64,
}

/// Records incidents. Recording never blocks.
#[derive(Debug)]
pub struct Recorder {
    commands: SyncSender<Command>,
    lost: AtomicU64,
    hooks_dropped: Arc<AtomicU64>,
    writer: Writer,
    hook_timeout: Duration,
}

/// What the thread is to do.
type Command = Box<dyn FnOnce(&mut RecorderThread) + Send>;

impl Recorder {
    /// Starts the threads; the directory is recovered in the background.
    pub fn start(settings: RecorderSettings) -> io::Result<Recorder> {
        let (commands, queue) = mpsc::sync_channel(QUEUE);
        let writer = Writer::start(settings.directory.clone(), KEEP)?;
        let hooks_dropped = Arc::new(AtomicU64::new(0));
        let recorder = RecorderThread {
            evidence: start_gathering(&settings, commands.clone())?,
            hooks: start_hooks(&settings.hook, settings.hook_timeout, &commands)?,
            hooks_dropped: Arc::clone(&hooks_dropped),
            on_change: settings.on_change,
            directory: settings.directory,
            writer: writer.clone(),
            entries: VecDeque::new(),
            prelude: VecDeque::new(),
            hangs: false,
            stopped: false,
        };
        thread::Builder::new()
            .name("incidents".to_owned())
            .spawn(move || recorder.run(&queue))?;
        Ok(Recorder {
            commands,
            lost: AtomicU64::new(0),
            hooks_dropped,
            writer,
            hook_timeout: settings.hook_timeout,
        })
    }

    /// Replaces the hook; an empty `command` disables it. Queued runs still use the former hook.
    ///
    /// # Errors
    /// If threads cannot be started or the queue is full; the former hook then stays.
    pub fn set_hook(&self, command: &[String]) -> io::Result<()> {
        let hooks = start_hooks(command, self.hook_timeout, &self.commands)?;
        let sent = self
            .commands
            .try_send(Box::new(|thread| thread.hooks = hooks));
        sent.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// Records a notice of the reader; `rule` is the name of the rule that matched.
    pub fn notice(&self, notice: &Notice, rule: &str) {
        match *notice {
            Notice::Began(Began { incident, trigger }, at) => {
                self.send(move |thread| thread.begin(incident, Some(trigger), at));
            }
            Notice::Ended(ended, at) => self.send(move |thread| thread.end(&ended, at)),
            Notice::Limit(limit, at) => {
                let times = match limit {
                    Limit::Reached => 1,
                    Limit::Over { held_back } => held_back,
                };
                self.event(at, EventKind::Limited { times });
            }
            Notice::Matched { time, at, line, .. } => {
                let line = EventKind::Line {
                    rule: rule.to_owned(),
                    text: printable(line.bytes()),
                    kernel_us: Some(time.0),
                    file: None,
                };
                self.event(at, line);
            }
            Notice::DrillSeen { .. } | Notice::Source(_) => {}
        }
    }

    /// Records a report of the actor; drills are ignored.
    pub fn report(&self, report: &Report) {
        if report.drill {
            return;
        }
        let (number, at) = (report.order.incident, report.began);
        let action = Box::new(Action::from(report));
        self.send(move |thread| {
            // The notice of its start may have been lost.
            if find(&mut thread.entries, number).is_none() {
                thread.begin(number, None, at);
            }
            if let Some(entry) = find(&mut thread.entries, number) {
                entry.act(at, action);
            }
        });
    }

    /// Records a line of a log file that matched a rule.
    pub fn file_line(&self, at: Monotonic, rule: &str, file: &Path, line: &[u8]) {
        let kind = EventKind::Line {
            rule: rule.to_owned(),
            text: printable(line.get(..LINE_MAX).unwrap_or(line)),
            kernel_us: None,
            file: Some(shown(file)),
        };
        self.event(at, kind);
    }

    /// Records a stuck task.
    pub fn stall(&self, at: Monotonic, stuck: &StuckTask) {
        let kind = EventKind::Stall {
            tid: stuck.tid,
            comm: stuck.comm.clone(),
            for_ms: millis(stuck.lasted),
            stack: stuck.stack.clone(),
        };
        self.event(at, kind);
    }

    /// Returns the state of the recorder.
    pub fn health(&self) -> RecorderHealth {
        RecorderHealth {
            files: self.writer.health(),
            lost: self.lost.load(Ordering::Relaxed),
            hooks_dropped: self.hooks_dropped.load(Ordering::Relaxed),
        }
    }

    /// Processes queued commands, writes the files and stops; the next start marks an open incident
    /// as interrupted. Returns false after `within`, or if files are left or dropped meanwhile.
    pub fn stop(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let dropped = self.writer.health().dropped;
        let (done, is_done) = mpsc::sync_channel(1);
        let mut stop: Command = Box::new(move |thread| {
            for entry in thread.entries.drain(..) {
                entry.let_go(&thread.writer, &*thread.on_change);
            }
            thread.stopped = true;
            let _ = done.try_send(());
        });
        // After all queued commands, as soon as the queue has room.
        while let Err(TrySendError::Full(full)) = self.commands.try_send(stop) {
            if Instant::now() >= deadline {
                return false;
            }
            stop = full;
            thread::sleep(Duration::from_millis(1));
        }
        let left = || deadline.saturating_duration_since(Instant::now());
        let _ = is_done.recv_timeout(left());
        let in_time = self.writer.stop(left());
        let files = self.writer.health();
        in_time && files.waiting == 0 && files.dropped == dropped
    }

    fn event(&self, at: Monotonic, kind: EventKind) {
        self.send(move |thread| thread.event(at, kind));
    }

    fn send(&self, command: impl FnOnce(&mut RecorderThread) + Send + 'static) {
        if self.commands.try_send(Box::new(command)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn start_hooks(
    command: &[String],
    timeout: Duration,
    commands: &SyncSender<Command>,
) -> io::Result<Option<Hooks>> {
    if command.is_empty() {
        return Ok(None);
    }
    let commands = commands.clone();
    let on_report = move |incident, report| {
        let ended: Command = Box::new(move |thread| thread.hook_ended(incident, report));
        drop(commands.send(ended));
    };
    Hooks::start(command, timeout, on_report).map(Some)
}

fn start_gathering(
    settings: &RecorderSettings,
    commands: SyncSender<Command>,
) -> io::Result<Background<(IncidentId, Moment)>> {
    let images = Arc::clone(&settings.images);
    let findings = Arc::clone(&settings.findings);
    let gatherer = Gatherer::new(settings.proc.clone(), images, findings, DEADLINE);
    Background::start("evidence", AFTERMATH, STACK, move |requests| {
        for (incident, moment) in requests {
            let evidence = gatherer.gather();
            let evidence = TakenEvidence { moment, evidence };
            let _ = commands.send(Box::new(move |thread| thread.gathered(incident, evidence)));
        }
    })
}

struct RecorderThread {
    directory: PathBuf,
    writer: Writer,
    evidence: Background<(IncidentId, Moment)>,
    hooks: Option<Hooks>,
    hooks_dropped: Arc<AtomicU64>,
    /// Only the last one can be open.
    entries: VecDeque<Entry>,
    on_change: Listener,
    prelude: VecDeque<(Monotonic, EventKind)>,
    hangs: bool,
    stopped: bool,
}

impl RecorderThread {
    fn run(mut self, queue: &Receiver<Command>) {
        while !self.stopped {
            match queue.recv_timeout(self.poll_interval()) {
                Ok(command) => command(&mut self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.flush();
            self.check_writer();
        }
    }

    fn poll_interval(&self) -> Duration {
        let files = self.writer.health();
        let changed = self.entries.iter().any(|entry| entry.stale);
        let is_busy = changed || self.hangs || files.waiting > 0 || files.hung_for.is_some();
        Duration::from_secs(if is_busy { 1 } else { 3600 })
    }

    fn begin(&mut self, number: IncidentId, trigger: Option<Trigger>, at: Monotonic) {
        // The notice of the previous incident's end may have been lost.
        if let Some(before) = open(&mut self.entries) {
            before.incident.state = IncidentState::Ended;
            before.put(&self.writer, &*self.on_change);
        }
        let mut entry = Entry::new(number, trigger, at);
        for (earlier, what) in self.prelude.drain(..) {
            if at.since(earlier) <= PRELUDE_AGE {
                entry.add(earlier, what);
            }
        }
        entry.put(&self.writer, &*self.on_change);
        self.entries.push_back(entry);
        if self.entries.len() > AFTERMATH
            && let Some(oldest) = self.entries.pop_front()
        {
            oldest.let_go(&self.writer, &*self.on_change);
        }
        self.gather_evidence(number, Moment::Begin);
    }

    fn end(&mut self, ended: &Ended, at: Monotonic) {
        if find(&mut self.entries, ended.incident).is_none() {
            self.begin(ended.incident, Some(ended.trigger), ended.began);
        }
        if let Some(entry) = find(&mut self.entries, ended.incident) {
            entry.end(ended, at);
            entry.put(&self.writer, &*self.on_change);
        }
        self.gather_evidence(ended.incident, Moment::End);
    }

    fn event(&mut self, at: Monotonic, kind: EventKind) {
        if let Some(entry) = open(&mut self.entries) {
            entry.add(at, kind);
        } else if !matches!(kind, EventKind::Limited { .. }) {
            self.prelude.push_back((at, kind));
            if self.prelude.len() > PRELUDE {
                self.prelude.pop_front();
            }
        }
    }

    fn gathered(&mut self, number: IncidentId, evidence: TakenEvidence) {
        if let Some(entry) = find(&mut self.entries, number) {
            let moment = evidence.moment;
            entry.incident.evidence.push(evidence);
            entry.put(&self.writer, &*self.on_change);
            self.call_hook(number, moment);
        }
    }

    fn hook_ended(&mut self, number: IncidentId, report: HookReport) {
        let (moment, outcome) = (report.moment.as_str(), &report.outcome);
        match outcome {
            HookOutcome::Exited(0) => {
                info!("rescue.hook ({moment} of incident {number}) {outcome}")
            }
            _ => warn!("rescue.hook ({moment} of incident {number}) {outcome}"),
        }
        if let Some(entry) = find(&mut self.entries, number) {
            entry.incident.hooks.push(report);
            entry.stale = true;
        }
    }

    /// Requests evidence; the hook runs when it arrives, or at once if the queue is full.
    fn gather_evidence(&mut self, number: IncidentId, moment: Moment) {
        if !self.evidence.push((number, moment)) {
            self.call_hook(number, moment);
        }
    }

    fn call_hook(&mut self, number: IncidentId, moment: Moment) {
        let Some(hooks) = &self.hooks else { return };
        let incident = find(&mut self.entries, number).map(|entry| entry.document());
        let Some((json, incident)) = incident.and_then(|it| Some((to_json(&it)?, it))) else {
            return;
        };
        let variables = variables(&incident, moment, &self.directory);
        if !hooks.call(moment, number, Call { variables, json }) {
            self.hooks_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues changed incidents for writing, each at most once per [`FLUSH`].
    fn flush(&mut self) {
        for entry in &mut self.entries {
            if entry.stale && entry.put_at.is_none_or(|put| put.elapsed() >= FLUSH) {
                entry.put(&self.writer, &*self.on_change);
            }
        }
    }

    /// Logs when the directory begins to hang and when it recovers; the blocked writer cannot.
    fn check_writer(&mut self) {
        let health = self.writer.health();
        let hangs = health.hung_for.is_some_and(|since| since > HANGS);
        if hangs == self.hangs {
            return;
        }
        self.hangs = hangs;
        let directory = shown(&self.directory);
        if hangs {
            error!(
                "{directory} does not answer; incidents are kept in memory and written when it does"
            );
        } else {
            info!(
                "{directory} answers again; {} incidents were discarded meanwhile",
                health.dropped
            );
        }
    }
}

/// Newest first: a restarted fast side numbers incidents from 1 again.
fn find(entries: &mut VecDeque<Entry>, number: IncidentId) -> Option<&mut Entry> {
    entries
        .iter_mut()
        .rev()
        .find(|entry| entry.number == number)
}

fn open(entries: &mut VecDeque<Entry>) -> Option<&mut Entry> {
    let last = entries.back_mut();
    last.filter(|entry| entry.incident.state == IncidentState::Open)
}

fn variables(incident: &Incident, moment: Moment, directory: &Path) -> Vec<(&'static str, String)> {
    let trigger = incident.trigger.map_or("unknown", Trigger::as_str);
    let file = directory.join(file_name(&incident.id));
    let duration = incident.duration_ms.unwrap_or(0) / 1000;
    let freed = incident.slab_freed_kib.saturating_mul(1024);
    vec![
        ("FRAGWATCH_EVENT", moment.as_str().to_owned()),
        ("FRAGWATCH_INCIDENT", incident.id.clone()),
        ("FRAGWATCH_FILE", shown(&file)),
        ("FRAGWATCH_STATE", incident.state.as_str().to_owned()),
        ("FRAGWATCH_TRIGGER", trigger.to_owned()),
        ("FRAGWATCH_BEGAN", incident.began.clone()),
        (
            "FRAGWATCH_ENDED",
            incident.ended.clone().unwrap_or_default(),
        ),
        ("FRAGWATCH_DURATION_SECONDS", duration.to_string()),
        ("FRAGWATCH_MATCHES", incident.matches.to_string()),
        ("FRAGWATCH_ACTIONS", incident.actions.to_string()),
        ("FRAGWATCH_FAILED", incident.failed.to_string()),
        ("FRAGWATCH_SLAB_FREED_BYTES", freed.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_dropped_before_do_not_fail_the_stop() {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::start(RecorderSettings {
            directory: directory.path().to_owned(),
            proc: PathBuf::from("/nowhere"),
            ..RecorderSettings::default()
        })
        .unwrap();
        recorder.writer.give_up();
        assert_eq!(recorder.health().files.dropped, 1);
        assert!(recorder.stop(Duration::from_secs(10)));
    }
}
