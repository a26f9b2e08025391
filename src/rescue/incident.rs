//! What happened in an emergency, kept for later: one file an incident, and the operator's hook.
//!
//! ```text
//! slow side ─► queue ─► recorder ─┬─► writer ─► directory
//!                          ▲      ├─► evidence
//!                          │      └─► hooks
//!                          └── what these found, how those ended
//! ```
//!
//! Whoever tells the recorder something only puts it into a bounded queue. The recorder itself
//! touches no file: it keeps the incident together and hands its states to the writer
//! ([`super::archive`]). So a directory that hangs, a full disk or a hook that never ends delays
//! neither metrics nor the log; what is lost by it is counted ([`Recorder::health`]).
//!
//! The file is written when the incident begins, when the evidence is there, from time to time
//! while it goes on, and when it is over. The hooks run after the evidence is there, at most
//! [`super::evidence::DEADLINE`] later.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::archive::{Writer, WriterHealth};
use super::clock::now;
use super::entry::{Notice, Report};
use super::evidence::{self, Evidence, Gatherer, Images, text};
use super::hook::{self, HookCall, HookOutcome, HookReport, Hooks, Moment};
use super::ladder::{Began, Ended};
use super::proof::Counters;
use super::utc;
use crate::hook::Call;
use crate::model::path::shown;
use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, StuckTask, Trigger};

/// Where incidents are kept unless told otherwise.
pub const DIRECTORY: &str = "/var/lib/fragwatch/incidents";
/// Incidents that are kept unless told otherwise.
pub const KEEP: usize = 100;
/// Raised only if a key should ever have to change its meaning.
pub const SCHEMA: u32 = 1;

/// What the slow side tells that may wait for the recorder.
const QUEUE: usize = 4096;
/// Events kept from the begin of an incident, and from its end.
const FIRST_EVENTS: usize = 1000;
const LAST_EVENTS: usize = 500;
/// Lines from before an incident that are part of its story.
const PRELUDE: usize = 50;
const PRELUDE_AGE: Duration = Duration::from_secs(60);
/// An incident that goes on is written anew at most this often.
const FLUSH: Duration = Duration::from_secs(5);
/// Incidents that are over but may still get evidence and the outcome of a hook.
const AFTERMATH: usize = 4;
/// A directory that takes longer is said to hang.
const HANGS: Duration = Duration::from_secs(5);

/// An incident, as its file has it. Keys are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Names it for good: `20261120T120305.123Z-1`.
    pub id: String,
    /// Its number since the start of the daemon.
    pub number: u64,
    /// How far it is.
    pub state: State,
    /// What made it begin; nothing if that was not heard of.
    pub trigger: Option<Trigger>,
    /// When it began: RFC 3339.
    pub began: String,
    /// When its end was noticed.
    pub ended: Option<String>,
    /// From its begin to the noticing of its end.
    pub duration_ms: Option<u64>,
    /// From its begin to the last sign of XFS waiting for memory.
    pub last_match_ms: Option<u64>,
    /// The kernel's release.
    pub kernel: String,
    /// The name of the host.
    pub host: String,
    /// The version of fragwatch.
    pub version: String,
    /// Signs of XFS waiting for memory; while it goes on, all lines and stalls that were told.
    pub matches: u64,
    /// Those among them that came while an action was in flight.
    pub matches_in_flight: u64,
    /// Actions.
    pub actions: u32,
    /// Those among them that failed.
    pub failed: u32,
    /// Slab memory that drops gave back, in KiB.
    pub slab_freed_kib: u64,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Events in the middle that were too many to keep.
    pub events_left_out: u64,
    /// How the host looked, at the begin and at the end.
    pub evidence: Vec<TakenEvidence>,
    /// How the hooks came out.
    pub hooks: Vec<HookReport>,
}

/// How far an incident is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It goes on.
    #[default]
    Open,
    /// It is over.
    Ended,
    /// The daemon ended before it did.
    Interrupted,
}

impl State {
    /// The name in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Ended => "ended",
            State::Interrupted => "interrupted",
        }
    }
}

/// Something that happened in an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When: RFC 3339.
    pub at: String,
    /// The same, from the begin of the incident; below zero if before it.
    pub after_ms: i64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A line matched a rule.
    Line {
        /// The rule.
        rule: String,
        /// The line, as much of it as is kept.
        text: String,
        /// The kernel's own time of it, in microseconds since boot.
        #[serde(default)]
        kernel_us: Option<u64>,
        /// The log file it came from, if not from the kernel itself.
        #[serde(default)]
        file: Option<String>,
    },
    /// A task that is stuck in the allocator underneath XFS.
    Stall {
        /// The thread.
        tid: u32,
        /// Its name.
        comm: String,
        /// For how long.
        for_ms: u64,
        /// Its kernel stack, innermost function first.
        stack: Vec<String>,
    },
    /// An action.
    Action(Box<Action>),
    /// Actions were due, but the hourly limit was reached.
    Limited {
        /// How often in a row.
        times: u64,
    },
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// An action and what it brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What was done.
    pub step: RescueStep,
    /// Which action of the incident it was, from 1.
    pub number: u32,
    /// How it came out.
    pub outcome: Outcome,
    /// The error of the write.
    #[serde(default)]
    pub error: Option<String>,
    /// From the reading of its reason to its begin.
    pub reaction_us: u64,
    /// How long the write took.
    pub duration_us: u64,
    /// How long before the write `before` was read.
    pub before_age_ms: u64,
    /// The counters before.
    pub before: Memory,
    /// The counters after.
    pub after: Memory,
}

impl Action {
    /// Slab memory that it gave back, in KiB; nothing if it was no drop, or not done.
    #[must_use]
    pub fn slab_freed_kib(&self) -> u64 {
        let drops = matches!(self.step, RescueStep::DropSlab | RescueStep::DropAll);
        if !drops || self.outcome != Outcome::Done {
            return 0;
        }
        self.before.slab_kib().saturating_sub(self.after.slab_kib())
    }
}

/// Counters of the kernel's memory; see [`Counters`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Drops of slab objects since boot.
    pub drop_slab: u64,
    /// Drops of the page cache since boot.
    pub drop_pagecache: u64,
    /// Pages that compaction looked at.
    pub compact_scanned: u64,
    /// Compactions that failed.
    pub compact_fail: u64,
    /// Tasks that had to reclaim memory themselves.
    pub allocation_stalls: u64,
    /// Reclaimable slab memory.
    pub slab_reclaimable_kib: u64,
    /// Slab memory that cannot be reclaimed.
    pub slab_unreclaimable_kib: u64,
    /// Free blocks of 2^n pages.
    pub free_blocks: Vec<u64>,
}

impl Memory {
    /// All slab memory.
    #[must_use]
    pub fn slab_kib(&self) -> u64 {
        self.slab_reclaimable_kib
            .saturating_add(self.slab_unreclaimable_kib)
    }
}

impl From<&Counters> for Memory {
    fn from(counters: &Counters) -> Memory {
        Memory {
            drop_slab: counters.drop_slab,
            drop_pagecache: counters.drop_pagecache,
            compact_scanned: counters.compact_scanned,
            compact_fail: counters.compact_fail,
            allocation_stalls: counters.allocation_stalls,
            slab_reclaimable_kib: counters.slab_reclaimable,
            slab_unreclaimable_kib: counters.slab_unreclaimable,
            free_blocks: counters.free_blocks.to_vec(),
        }
    }
}

/// Evidence, and when it was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakenEvidence {
    /// At the begin or at the end.
    pub moment: Moment,
    /// What was found.
    #[serde(flatten)]
    pub evidence: Evidence,
}

/// What a recorder is made of.
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
    /// Who knows the most fragmented images.
    pub images: Images,
    /// Is told how an incident stands, and when it began, each time that it begins, ends or something
    /// was found out. Must not wait.
    pub told: Listener,
}

/// Is told of incidents.
pub type Listener = Arc<dyn Fn(&Incident, SystemTime) + Send + Sync>;

impl Default for RecorderSettings {
    fn default() -> Self {
        RecorderSettings {
            directory: PathBuf::from(DIRECTORY),
            keep: KEEP,
            proc: PathBuf::from("/proc"),
            hook: Vec::new(),
            hook_timeout: hook::TIMEOUT,
            evidence_deadline: evidence::DEADLINE,
            images: Arc::new(Vec::new),
            told: Arc::new(|_, _| {}),
        }
    }
}

/// How the recording goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecorderHealth {
    /// Of the files.
    pub files: WriterHealth,
    /// What was told while too much waited, and is nowhere.
    pub lost: u64,
    /// Runs of the hook that were given up because too many waited.
    pub hooks_dropped: u64,
}

/// Keeps incidents. Telling it something never waits.
#[derive(Debug)]
pub struct Recorder {
    told: SyncSender<Told>,
    lost: AtomicU64,
    writer: Writer,
    hooks: Option<Arc<Hooks>>,
}

enum Told {
    Began(Began, Monotonic),
    Ended(Ended, Monotonic),
    Event(Monotonic, What),
    Action(IncidentId, Monotonic, Box<Action>),
    Evidence(IncidentId, Moment, Box<Evidence>),
    Hook(IncidentId, HookReport),
    Stop(SyncSender<()>),
}

impl Recorder {
    /// Starts it, and puts the directory in order in the background.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn start(settings: RecorderSettings) -> io::Result<Recorder> {
        let (told, queue) = mpsc::sync_channel(QUEUE);
        let writer = Writer::start(settings.directory.clone(), settings.keep)?;
        let hooks = if settings.hook.is_empty() {
            None
        } else {
            let told = told.clone();
            let on_report = move |incident, report| drop(told.send(Told::Hook(incident, report)));
            let hooks = Hooks::start(settings.hook.clone(), settings.hook_timeout, on_report)?;
            Some(Arc::new(hooks))
        };
        let desk = Desk {
            evidence: start_gathering(&settings, told.clone())?,
            told: settings.told,
            directory: settings.directory,
            writer: writer.clone(),
            hooks: hooks.clone(),
            entries: VecDeque::new(),
            prelude: VecDeque::new(),
            hangs: false,
        };
        thread::Builder::new()
            .name("incidents".to_owned())
            .spawn(move || desk.run(&queue))?;
        Ok(Recorder {
            told,
            lost: AtomicU64::new(0),
            writer,
            hooks,
        })
    }

    /// What the reader told; `rule` is the name of the rule of a match.
    pub fn notice(&self, notice: &Notice, rule: &str) {
        match *notice {
            Notice::Began(began, at) => self.tell(Told::Began(began, at)),
            Notice::Ended(ended, at) => self.tell(Told::Ended(ended, at)),
            Notice::Limited(at) => self.tell(Told::Event(at, What::Limited { times: 1 })),
            Notice::Matched { time, at, line, .. } => {
                let what = What::Line {
                    rule: rule.to_owned(),
                    text: text(line.bytes()),
                    kernel_us: Some(time.0),
                    file: None,
                };
                self.tell(Told::Event(at, what));
            }
            Notice::DrillSeen { .. } | Notice::Source(_) => {}
        }
    }

    /// What the actor told.
    pub fn report(&self, report: &Report) {
        if report.drill {
            return;
        }
        let error = i32::try_from(report.error).unwrap_or(0);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let action = Action {
            step: report.order.step,
            number: report.order.number,
            outcome: report.outcome,
            error: (error != 0).then(|| io::Error::from_raw_os_error(error).to_string()),
            reaction_us: micros(report.began.since(report.read)),
            duration_us: micros(report.ended.since(report.began)),
            before_age_ms: millis(report.began.since(report.before_at)),
            before: Memory::from(&report.before),
            after: Memory::from(&report.after),
        };
        self.tell(Told::Action(
            report.order.incident,
            report.began,
            Box::new(action),
        ));
    }

    /// A line of a log file matched a rule.
    pub fn file_line(&self, at: Monotonic, rule: &str, file: &Path, line: &[u8]) {
        let line = line.get(..super::entry::LINE_MAX).unwrap_or(line);
        let what = What::Line {
            rule: rule.to_owned(),
            text: text(line),
            kernel_us: None,
            file: Some(shown(file)),
        };
        self.tell(Told::Event(at, what));
    }

    /// The stall detector saw a task stuck.
    pub fn stall(&self, at: Monotonic, stuck: &StuckTask) {
        let what = What::Stall {
            tid: stuck.tid,
            comm: stuck.comm.clone(),
            for_ms: millis(stuck.lasted),
            stack: stuck.stack.clone(),
        };
        self.tell(Told::Event(at, what));
    }

    /// How it goes.
    #[must_use]
    pub fn health(&self) -> RecorderHealth {
        RecorderHealth {
            files: self.writer.health(),
            lost: self.lost.load(Ordering::Relaxed),
            hooks_dropped: self.hooks.as_ref().map_or(0, |hooks| hooks.dropped()),
        }
    }

    /// Writes what is to be written and ends. An incident that goes on stays open in its file,
    /// which the next start marks as interrupted. False if not all could be written in time.
    #[must_use]
    pub fn stop(self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let (done, is_done) = mpsc::sync_channel(1);
        if self.told.try_send(Told::Stop(done)).is_ok() {
            let _ = is_done.recv_timeout(within);
        }
        let in_time = self
            .writer
            .stop(deadline.saturating_duration_since(Instant::now()));
        let files = self.writer.health();
        in_time && files.waiting == 0 && files.dropped == 0
    }

    fn tell(&self, told: Told) {
        if self.told.try_send(told).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread that gathers evidence, one after the other.
fn start_gathering(
    settings: &RecorderSettings,
    told: SyncSender<Told>,
) -> io::Result<SyncSender<(IncidentId, Moment)>> {
    let (asked, requests) = mpsc::sync_channel(AFTERMATH);
    let gatherer = Gatherer::new(
        settings.proc.clone(),
        Arc::clone(&settings.images),
        settings.evidence_deadline,
    );
    let body = move || {
        for (incident, moment) in requests {
            let evidence = Box::new(gatherer.gather());
            let _ = told.send(Told::Evidence(incident, moment, evidence));
        }
    };
    thread::Builder::new()
        .name("evidence".to_owned())
        .spawn(body)?;
    Ok(asked)
}

/// The recorder's own thread and all it knows.
struct Desk {
    directory: PathBuf,
    writer: Writer,
    evidence: SyncSender<(IncidentId, Moment)>,
    hooks: Option<Arc<Hooks>>,
    /// The last one may go on.
    entries: VecDeque<Entry>,
    told: Listener,
    prelude: VecDeque<(Monotonic, What)>,
    hangs: bool,
}

/// An incident in the making.
struct Entry {
    number: IncidentId,
    began: Monotonic,
    began_at: SystemTime,
    incident: Incident,
    first: Vec<(Monotonic, What)>,
    last: VecDeque<(Monotonic, What)>,
    /// It has changed since it was handed to the writer.
    stale: bool,
    /// When it was handed to the writer.
    put: Option<Instant>,
}

impl Desk {
    fn run(mut self, queue: &Receiver<Told>) {
        loop {
            match queue.recv_timeout(self.patience()) {
                Ok(Told::Stop(done)) => {
                    for entry in self.entries.drain(..) {
                        entry.let_go(&self.writer);
                    }
                    let _ = done.try_send(());
                    return;
                }
                Ok(told) => self.hear(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.flush(FLUSH);
            self.watch_writer();
        }
    }

    /// How long there is nothing to do but to listen.
    fn patience(&self) -> Duration {
        let files = self.writer.health();
        let changed = self.entries.iter().any(|entry| entry.stale);
        if changed || self.hangs || files.waiting > 0 || files.hung_for.is_some() {
            Duration::from_secs(1)
        } else {
            Duration::from_secs(3600)
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Began(began, at) => self.begin(began.incident, Some(began.trigger), at),
            Told::Ended(ended, at) => self.end(&ended, at),
            Told::Event(at, what) => self.event(at, what),
            Told::Action(number, at, action) => {
                // The news of its begin may have been lost.
                if self.find(number).is_none() {
                    self.begin(number, None, at);
                }
                if let Some(entry) = self.find(number) {
                    entry.act(at, action);
                }
            }
            Told::Evidence(number, moment, evidence) => {
                if let Some(entry) = self.find(number) {
                    entry.incident.evidence.push(TakenEvidence {
                        moment,
                        evidence: *evidence,
                    });
                    self.put(number);
                    self.call_hook(number, moment);
                }
            }
            Told::Hook(number, report) => {
                let moment = report.moment.as_str();
                let outcome = &report.outcome;
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
            Told::Stop(_) => {}
        }
    }

    fn begin(&mut self, number: IncidentId, trigger: Option<Trigger>, at: Monotonic) {
        // The news of the end of the one before may have been lost.
        if let Some(before) = self.open() {
            before.incident.state = State::Ended;
            let before = before.number;
            self.put(before);
        }
        let mut entry = Entry::new(number, trigger, at);
        for (at, what) in self.prelude.drain(..) {
            if entry.began.since(at) <= PRELUDE_AGE {
                entry.add(at, what);
            }
        }
        self.entries.push_back(entry);
        if self.entries.len() > AFTERMATH
            && let Some(oldest) = self.entries.pop_front()
        {
            oldest.let_go(&self.writer);
        }
        self.put(number);
        self.ask_for_evidence(number, Moment::Begin);
    }

    fn end(&mut self, ended: &Ended, at: Monotonic) {
        if self.find(ended.incident).is_none() {
            self.begin(ended.incident, Some(ended.trigger), ended.began);
        }
        if let Some(entry) = self.find(ended.incident) {
            entry.end(ended, at);
        }
        self.put(ended.incident);
        self.ask_for_evidence(ended.incident, Moment::End);
    }

    fn event(&mut self, at: Monotonic, what: What) {
        if let Some(entry) = self.open() {
            entry.add(at, what);
            return;
        }
        self.prelude.push_back((at, what));
        if self.prelude.len() > PRELUDE {
            self.prelude.pop_front();
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

    /// The hook follows when the evidence is there; if it cannot be asked for, at once.
    fn ask_for_evidence(&mut self, number: IncidentId, moment: Moment) {
        if self.evidence.try_send((number, moment)).is_err() {
            self.call_hook(number, moment);
        }
    }

    fn call_hook(&mut self, number: IncidentId, moment: Moment) {
        let Some(hooks) = self.hooks.clone() else {
            return;
        };
        let directory = self.directory.clone();
        let Some(entry) = self.find(number) else {
            return;
        };
        let document = entry.document();
        match serde_json::to_vec(&document) {
            Ok(json) => hooks.call(HookCall {
                moment,
                incident: number,
                told: Call {
                    variables: variables(&document, moment, &directory),
                    json,
                },
            }),
            Err(error) => error!("incident {number}: no JSON: {error}"),
        }
    }

    /// Hands everything to the writer that has waited for so long.
    fn flush(&mut self, after: Duration) {
        let due: Vec<IncidentId> = self
            .entries
            .iter()
            .filter(|entry| entry.stale)
            .filter(|entry| entry.put.is_none_or(|put| put.elapsed() >= after))
            .map(|entry| entry.number)
            .collect();
        for number in due {
            self.put(number);
        }
    }

    fn put(&mut self, number: IncidentId) {
        let (writer, told) = (self.writer.clone(), Arc::clone(&self.told));
        if let Some(entry) = self.find(number) {
            entry.put(&writer);
            told(&entry.document(), entry.began_at);
        }
    }

    /// The writer cannot say itself that it hangs.
    fn watch_writer(&mut self) {
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

impl Entry {
    fn new(number: IncidentId, trigger: Option<Trigger>, began: Monotonic) -> Entry {
        let began_at = SystemTime::now()
            .checked_sub(now().since(began))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let uname = rustix::system::uname();
        Entry {
            number,
            began,
            began_at,
            incident: Incident {
                schema: SCHEMA,
                id: format!("{}-{number}", utc::compact(began_at)),
                number: number.0,
                trigger,
                began: utc::rfc3339(began_at),
                kernel: text(uname.release().to_bytes()),
                host: text(uname.nodename().to_bytes()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Incident::default()
            },
            first: Vec::new(),
            last: VecDeque::new(),
            stale: false,
            put: None,
        }
    }

    /// Hands its state to the writer; if that takes no more, it remains to be done.
    fn put(&mut self, writer: &Writer) {
        self.put = Some(Instant::now());
        let document = self.document();
        let taken = match serde_json::to_vec(&document) {
            Ok(json) => writer.put(&file_name(&document.id), json),
            Err(error) => {
                error!("incident {}: no JSON: {error}", document.id);
                true
            }
        };
        self.stale = !taken;
    }

    /// Its last chance to be written.
    fn let_go(mut self, writer: &Writer) {
        if self.stale {
            self.put(writer);
        }
        if self.stale {
            writer.give_up();
        }
    }

    fn add(&mut self, at: Monotonic, what: What) {
        self.stale = true;
        if matches!(what, What::Line { .. } | What::Stall { .. }) && at >= self.began {
            self.incident.matches += 1;
        }
        let newest = self.last.back_mut().or(self.first.last_mut());
        if let (What::Limited { .. }, Some((_, What::Limited { times }))) = (&what, newest) {
            *times += 1;
            return;
        }
        if self.first.len() < FIRST_EVENTS {
            self.first.push((at, what));
            return;
        }
        self.last.push_back((at, what));
        if self.last.len() > LAST_EVENTS {
            self.last.pop_front();
            self.incident.events_left_out += 1;
        }
    }

    fn act(&mut self, at: Monotonic, action: Box<Action>) {
        self.incident.actions = self.incident.actions.max(action.number);
        self.incident.failed += u32::from(action.outcome == Outcome::Failed);
        self.incident.slab_freed_kib += action.slab_freed_kib();
        self.add(at, What::Action(action));
    }

    fn end(&mut self, ended: &Ended, at: Monotonic) {
        let incident = &mut self.incident;
        incident.state = State::Ended;
        incident.ended = Some(utc::rfc3339(self.began_at + at.since(self.began)));
        incident.duration_ms = Some(millis(at.since(self.began)));
        incident.last_match_ms = Some(millis(ended.last_match.since(self.began)));
        // The ladder has counted all of them.
        incident.matches = ended.matches;
        incident.matches_in_flight = ended.matches_in_flight;
        incident.actions = ended.actions;
        incident.failed = ended.failed;
        self.stale = true;
    }

    /// As it is written.
    fn document(&self) -> Incident {
        let mut events: Vec<&(Monotonic, What)> = self.first.iter().chain(&self.last).collect();
        // The rings of reader and actor are heard one after the other.
        events.sort_by_key(|(at, _)| *at);
        let event = |(at, what): &(Monotonic, What)| {
            let (after, before) = (at.since(self.began), self.began.since(*at));
            let time = self.began_at + after;
            Event {
                at: utc::rfc3339(time.checked_sub(before).unwrap_or(time)),
                after_ms: signed(millis(after)) - signed(millis(before)),
                what: what.clone(),
            }
        };
        Incident {
            events: events.into_iter().map(event).collect(),
            ..self.incident.clone()
        }
    }
}

/// The file of an incident.
fn file_name(id: &str) -> String {
    format!("{id}.json")
}

fn variables(incident: &Incident, moment: Moment, directory: &Path) -> Vec<(&'static str, String)> {
    let trigger = incident.trigger.map_or("unknown", Trigger::as_str);
    let file = directory.join(file_name(&incident.id));
    let duration = incident.duration_ms.unwrap_or(0) / 1000;
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
        (
            "FRAGWATCH_SLAB_FREED_BYTES",
            incident.slab_freed_kib.saturating_mul(1024).to_string(),
        ),
    ]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
