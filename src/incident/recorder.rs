//! The recorder of incidents.
//!
//! ```text
//! slow side ─► queue ─► recorder ─┬─► writer ─► directory
//!                          ▲      ├─► evidence
//!                          │      └─► hooks
//!                          └── their results
//! ```
//!
//! Handing something to the recorder only puts it into a bounded queue. The recorder touches no file:
//! it keeps the incidents together ([`entry`](super::entry)) and hands their states to the writer
//! ([`writer`](super::writer)). So a directory that hangs, a full disk or a hook that never ends delays
//! neither metrics nor the log; what is lost by it is counted ([`Recorder::health`]).
//!
//! The file is written when the incident begins, when the evidence is there, from time to time
//! while it goes on, and when it is over. The hooks run after the evidence is there, at most
//! [`super::gatherer::DEADLINE`] later.

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
use super::entry::Entry;
use super::evidence::Evidence;
use super::format::{Action, Incident, State, TakenEvidence, What, millis};
use super::gatherer::{self, Gatherer, Images};
use super::hook::{self, HookOutcome, HookReport, Hooks, Moment};
use super::writer::{Writer, WriterHealth};
use crate::hook::Call;
use crate::model::path::{printable, shown};
use crate::model::{IncidentId, Monotonic, StuckTask, Trigger};
use crate::rescue::entry::{LINE_MAX, Notice, Report};
use crate::rescue::{Began, Ended, Limit};

/// The default directory.
pub const DIRECTORY: &str = "/var/lib/fragwatch/incidents";
/// Files that are kept by default.
pub const KEEP: usize = 100;

/// Commands that may wait for the recorder.
const QUEUE: usize = 4096;
/// Lines from before an incident that are recorded with it.
const PRELUDE: usize = 50;
const PRELUDE_AGE: Duration = Duration::from_secs(60);
/// An open incident is written again at most this often.
const FLUSH: Duration = Duration::from_secs(5);
/// Incidents that are over but may still get evidence and the outcome of a hook.
const AFTERMATH: usize = 4;
/// A directory that takes longer is reported to hang.
pub const HANGS: Duration = Duration::from_secs(5);

/// The settings of a recorder.
#[derive(Clone)]
pub struct RecorderSettings {
    /// Where the files go.
    pub directory: PathBuf,
    /// How many of them are kept.
    pub keep: usize,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// The operator's command and its arguments; empty if there is none.
    pub hook: Vec<String>,
    /// How long a hook may take.
    pub hook_timeout: Duration,
    /// How long the collecting of evidence may take.
    pub evidence_deadline: Duration,
    /// Returns the most fragmented images.
    pub images: Images,
    /// Called with the state of an incident and when it began, each time that it changes in more
    /// than its events. Must not wait.
    pub on_change: Listener,
}

/// See [`RecorderSettings::on_change`].
pub type Listener = Arc<dyn Fn(&Incident, SystemTime) + Send + Sync>;

impl Default for RecorderSettings {
    fn default() -> Self {
        RecorderSettings {
            directory: PathBuf::from(DIRECTORY),
            keep: KEEP,
            proc: PathBuf::from("/proc"),
            hook: Vec::new(),
            hook_timeout: hook::TIMEOUT,
            evidence_deadline: gatherer::DEADLINE,
            images: Arc::new(Vec::new),
            on_change: Arc::new(|_, _| {}),
        }
    }
}

/// The state of the recorder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecorderHealth {
    /// Of the files.
    pub files: WriterHealth,
    /// What came while too much waited, and is recorded nowhere.
    pub lost: u64,
    /// Runs of the hook that were given up because too many waited.
    pub hooks_dropped: u64,
}

/// Records incidents. Handing it something never waits.
#[derive(Debug)]
pub struct Recorder {
    commands: SyncSender<Command>,
    lost: AtomicU64,
    hooks_dropped: Arc<AtomicU64>,
    writer: Writer,
    hook_timeout: Duration,
}

enum Command {
    Begin(Began, Monotonic),
    End(Ended, Monotonic),
    Event(Monotonic, What),
    Action(IncidentId, Monotonic, Box<Action>),
    Evidence(IncidentId, Moment, Box<Evidence>),
    HookEnded(IncidentId, HookReport),
    SetHook(Option<Hooks>),
    Stop(SyncSender<()>),
}

impl Recorder {
    /// Starts it, and puts the directory in order in the background.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn start(settings: RecorderSettings) -> io::Result<Recorder> {
        let (commands, queue) = mpsc::sync_channel(QUEUE);
        let writer = Writer::start(settings.directory.clone(), settings.keep)?;
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

    /// Has another command run from now on; none if it is empty. Runs that were asked for before are
    /// still made with the former one.
    ///
    /// # Errors
    /// When threads cannot be started or the queue is full; then the former one stays.
    pub fn set_hook(&self, command: &[String]) -> io::Result<()> {
        let hooks = start_hooks(command, self.hook_timeout, &self.commands)?;
        let sent = self.commands.try_send(Command::SetHook(hooks));
        sent.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// An entry of the reader; `rule` is the name of the rule of a match.
    pub fn notice(&self, notice: &Notice, rule: &str) {
        match *notice {
            Notice::Began(began, at) => self.send(Command::Begin(began, at)),
            Notice::Ended(ended, at) => self.send(Command::End(ended, at)),
            Notice::Limit(limit, at) => {
                let times = match limit {
                    Limit::Reached => 1,
                    Limit::Over { held_back } => held_back,
                };
                self.send(Command::Event(at, What::Limited { times }));
            }
            Notice::Matched { time, at, line, .. } => {
                let what = What::Line {
                    rule: rule.to_owned(),
                    text: printable(line.bytes()),
                    kernel_us: Some(time.0),
                    file: None,
                };
                self.send(Command::Event(at, what));
            }
            Notice::DrillSeen { .. } | Notice::Source(_) => {}
        }
    }

    /// An entry of the actor.
    pub fn report(&self, report: &Report) {
        if !report.drill {
            let action = Box::new(Action::from(report));
            self.send(Command::Action(report.order.incident, report.began, action));
        }
    }

    /// A line of a log file matched a rule.
    pub fn file_line(&self, at: Monotonic, rule: &str, file: &Path, line: &[u8]) {
        let what = What::Line {
            rule: rule.to_owned(),
            text: printable(line.get(..LINE_MAX).unwrap_or(line)),
            kernel_us: None,
            file: Some(shown(file)),
        };
        self.send(Command::Event(at, what));
    }

    /// The stall detector found a task stuck.
    pub fn stall(&self, at: Monotonic, stuck: &StuckTask) {
        let what = What::Stall {
            tid: stuck.tid,
            comm: stuck.comm.clone(),
            for_ms: millis(stuck.lasted),
            stack: stuck.stack.clone(),
        };
        self.send(Command::Event(at, what));
    }

    /// Its state.
    pub fn health(&self) -> RecorderHealth {
        RecorderHealth {
            files: self.writer.health(),
            lost: self.lost.load(Ordering::Relaxed),
            hooks_dropped: self.hooks_dropped.load(Ordering::Relaxed),
        }
    }

    /// Writes what was handed over before, and ends. An incident that goes on stays open in its file,
    /// which the next start marks as interrupted. False if not all could be written in time.
    pub fn stop(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let (done, is_done) = mpsc::sync_channel(1);
        let mut stop = Command::Stop(done);
        // Behind all that waits, and when there is room.
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
        in_time && files.waiting == 0 && files.dropped == 0
    }

    fn send(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
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
    let on_report =
        move |incident, report| drop(commands.send(Command::HookEnded(incident, report)));
    Hooks::start(command, timeout, on_report).map(Some)
}

/// Starts the thread that gathers evidence, one request after the other.
fn start_gathering(
    settings: &RecorderSettings,
    commands: SyncSender<Command>,
) -> io::Result<SyncSender<(IncidentId, Moment)>> {
    let (sender, requests) = mpsc::sync_channel(AFTERMATH);
    let gatherer = Gatherer::new(
        settings.proc.clone(),
        Arc::clone(&settings.images),
        settings.evidence_deadline,
    );
    let body = move || {
        for (incident, moment) in requests {
            let evidence = Box::new(gatherer.gather());
            let _ = commands.send(Command::Evidence(incident, moment, evidence));
        }
    };
    thread::Builder::new()
        .name("evidence".to_owned())
        .spawn(body)?;
    Ok(sender)
}

/// The recorder's own thread.
struct RecorderThread {
    directory: PathBuf,
    writer: Writer,
    evidence: SyncSender<(IncidentId, Moment)>,
    hooks: Option<Hooks>,
    hooks_dropped: Arc<AtomicU64>,
    /// The last one may go on.
    entries: VecDeque<Entry>,
    on_change: Listener,
    prelude: VecDeque<(Monotonic, What)>,
    /// Whether the directory hangs.
    hangs: bool,
}

impl RecorderThread {
    fn run(mut self, queue: &Receiver<Command>) {
        loop {
            match queue.recv_timeout(self.poll_interval()) {
                Ok(Command::Stop(done)) => {
                    for entry in self.entries.drain(..) {
                        entry.let_go(&self.writer);
                    }
                    let _ = done.try_send(());
                    return;
                }
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.flush();
            self.check_writer();
        }
    }

    /// How long to wait for a command.
    fn poll_interval(&self) -> Duration {
        let files = self.writer.health();
        let changed = self.entries.iter().any(|entry| entry.stale);
        if changed || self.hangs || files.waiting > 0 || files.hung_for.is_some() {
            Duration::from_secs(1)
        } else {
            Duration::from_secs(3600)
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Begin(began, at) => self.begin(began.incident, Some(began.trigger), at),
            Command::End(ended, at) => self.end(&ended, at),
            Command::Event(at, what) => self.event(at, what),
            Command::Action(number, at, action) => {
                // The notice of its begin may have been lost.
                if self.find(number).is_none() {
                    self.begin(number, None, at);
                }
                if let Some(entry) = self.find(number) {
                    entry.act(at, action);
                }
            }
            Command::Evidence(number, moment, evidence) => {
                if let Some(entry) = self.find(number) {
                    entry.incident.evidence.push(TakenEvidence {
                        moment,
                        evidence: *evidence,
                    });
                    self.put(number);
                    self.call_hook(number, moment);
                }
            }
            Command::HookEnded(number, report) => self.hook_ended(number, report),
            Command::SetHook(hooks) => self.hooks = hooks,
            Command::Stop(_) => {}
        }
    }

    fn begin(&mut self, number: IncidentId, trigger: Option<Trigger>, at: Monotonic) {
        // The notice of the end of the one before may have been lost.
        if let Some(before) = self.open() {
            before.incident.state = State::Ended;
            let before = before.number;
            self.put(before);
        }
        let mut entry = Entry::new(number, trigger, at);
        for (earlier, what) in self.prelude.drain(..) {
            if at.since(earlier) <= PRELUDE_AGE {
                entry.add(earlier, what);
            }
        }
        self.entries.push_back(entry);
        if self.entries.len() > AFTERMATH
            && let Some(oldest) = self.entries.pop_front()
        {
            oldest.let_go(&self.writer);
        }
        self.put(number);
        self.gather_evidence(number, Moment::Begin);
    }

    fn end(&mut self, ended: &Ended, at: Monotonic) {
        if self.find(ended.incident).is_none() {
            self.begin(ended.incident, Some(ended.trigger), ended.began);
        }
        if let Some(entry) = self.find(ended.incident) {
            entry.end(ended, at);
        }
        self.put(ended.incident);
        self.gather_evidence(ended.incident, Moment::End);
    }

    fn event(&mut self, at: Monotonic, what: What) {
        if let Some(entry) = self.open() {
            entry.add(at, what);
        } else if !matches!(what, What::Limited { .. }) {
            self.prelude.push_back((at, what));
            if self.prelude.len() > PRELUDE {
                self.prelude.pop_front();
            }
        }
    }

    fn hook_ended(&mut self, number: IncidentId, report: HookReport) {
        let (moment, outcome) = (report.moment.as_str(), &report.outcome);
        if *outcome == HookOutcome::Exited(0) {
            info!("rescue.hook ({moment} of incident {number}) {outcome}");
        } else {
            warn!("rescue.hook ({moment} of incident {number}) {outcome}");
        }
        if let Some(entry) = self.find(number) {
            entry.incident.hooks.push(report);
            entry.stale = true;
        }
    }

    fn find(&mut self, number: IncidentId) -> Option<&mut Entry> {
        // A fast side that was started anew counts from 1 again.
        let mut entries = self.entries.iter_mut().rev();
        entries.find(|entry| entry.number == number)
    }

    fn open(&mut self) -> Option<&mut Entry> {
        let last = self.entries.back_mut();
        last.filter(|entry| entry.incident.state == State::Open)
    }

    /// The hook is run when the evidence is there; if none can be gathered, at once.
    fn gather_evidence(&mut self, number: IncidentId, moment: Moment) {
        if self.evidence.try_send((number, moment)).is_err() {
            self.call_hook(number, moment);
        }
    }

    fn call_hook(&mut self, number: IncidentId, moment: Moment) {
        let Some(document) = self.find(number).map(|entry| entry.document()) else {
            return;
        };
        let Some(hooks) = &self.hooks else { return };
        match serde_json::to_vec(&document) {
            Ok(json) => {
                let variables = variables(&document, moment, &self.directory);
                if !hooks.call(moment, number, Call { variables, json }) {
                    self.hooks_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => error!("incident {number}: cannot be written as JSON: {error}"),
        }
    }

    /// Hands the incidents that have changed to the writer, each at most every [`FLUSH`].
    fn flush(&mut self) {
        let is_due =
            |entry: &&Entry| entry.stale && entry.put_at.is_none_or(|put| put.elapsed() >= FLUSH);
        let due = self.entries.iter().filter(is_due);
        for number in due.map(|entry| entry.number).collect::<Vec<_>>() {
            self.put(number);
        }
    }

    fn put(&mut self, number: IncidentId) {
        let (writer, on_change) = (self.writer.clone(), Arc::clone(&self.on_change));
        if let Some(entry) = self.find(number) {
            entry.put(&writer);
            on_change(&entry.document(), entry.began_at);
        }
    }

    /// Logs when the directory begins to hang and when it answers again: the writer, which hangs
    /// with it, cannot.
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
                "{directory} answers again; {} incidents were given up meanwhile",
                health.dropped
            );
        }
    }
}

/// The environment of a hook.
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
