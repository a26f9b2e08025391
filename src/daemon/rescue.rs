//! The slow side of the rescue: starts the fast side, hands it new settings, and reports what it did
//! to the log, the metrics and the recorder. Nothing here is needed for a rescue to happen.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::history::HistoryHandle;
use super::klog_files::{FileMatch, LogFiles};
use super::witness::Witness;
use crate::config::Settings;
use crate::klog::kmsg::Kmsg;
use crate::klog::{DRILL_MARKER, Rules};
use crate::model::{Bytes, Monotonic, Outcome, RuleAction, RuleDefinition, Trigger, UnixTime};
use crate::rescue::clock::now;
use crate::rescue::entry::{Line, Notice, Report};
use crate::rescue::proof::{Counters, Files};
use crate::rescue::settings::Settings as FastSettings;
use crate::rescue::thread::{Armament, FastSide, Setup};
use crate::rescue::{LadderSettings, Limit};
use crate::serve::board::Board;
use crate::serve::metrics;
use crate::serve::parts::{Part, State};
use crate::sys::realtime::{Urgency, lock_no_more};

/// The kernel's log.
const KMSG: &str = "/dev/kmsg";
/// How often the path from the kernel's log to the actor is tried out.
const DRILL_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// After one that failed it is tried again soon.
const DRILL_AGAIN: Duration = Duration::from_secs(60);
/// A drill that takes longer has failed.
const DRILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often the early warnings are read, and the counters of the fast side.
const TICK: Duration = Duration::from_secs(10);
/// An action that takes longer hangs. A drop of a large cache takes seconds.
const ACTION_HANGS: Duration = Duration::from_secs(30);

/// How far back the kernel's log is read at the start, so that a restart in mid-storm loses
/// nothing. When it is opened later, old lines must not act.
const LOOK_BACK: Duration = Duration::from_secs(10);

/// The fast side and what it was made of, so that a reload makes anew only what has changed.
#[derive(Default)]
pub(super) struct Armed {
    /// Nothing until it was wanted and could be started; then for as long as the daemon runs.
    fast: Option<FastSide>,
    /// Whether it is to act.
    armed: bool,
    /// Of the settings, and compiled.
    rules: Arc<Rules>,
    patterns: Option<Vec<RuleDefinition>>,
    kmsg: Option<Arc<Kmsg>>,
    /// How both do.
    rescue_state: Option<State>,
    kmsg_state: Option<State>,
}

/// Starts the fast side as the settings want it, and logs how well it is armed. Whatever goes wrong
/// with it, the daemon counts extents all the same.
pub(super) fn start(settings: &Settings) -> Armed {
    let mut armed = Armed::default();
    armed.apply(settings, LOOK_BACK);
    armed
}

impl Armed {
    fn apply(&mut self, settings: &Settings, look_back: Duration) {
        self.open_kmsg(settings, look_back);
        let state = self.try_apply(settings).unwrap_or_else(|reason| {
            error!("there will be no rescue: {reason:#}");
            State::Down(format!("{reason:#}"))
        });
        self.armed = state == State::Up;
        self.rescue_state = Some(state);
    }

    fn try_apply(&mut self, settings: &Settings) -> anyhow::Result<State> {
        let enabled = settings.rescue.enabled;
        if enabled && self.patterns.as_ref() != Some(&settings.klog.rules) {
            self.rules = Arc::new(Rules::compile(&settings.klog.rules).context("klog.rule")?);
            self.patterns = Some(settings.klog.rules.clone());
        }
        let new = fast_settings(settings, Arc::clone(&self.rules), self.kmsg.clone());
        match &mut self.fast {
            Some(fast) => {
                keep_in_memory(fast);
                fast.change(new)?;
            }
            None if enabled => {
                self.fast = Some(FastSide::start(Setup {
                    settings: new,
                    proc: PathBuf::from("/proc"),
                    watchdog: watchdog(),
                })?);
            }
            None => {}
        }
        if !enabled {
            warn!("the rescue is off (rescue.enabled = false)");
            return Ok(State::Off("rescue.enabled = false".to_owned()));
        }
        match &self.fast {
            Some(fast) if !self.armed => log_armament(&fast.armament),
            _ => info!("the rescue goes on with the new settings"),
        }
        Ok(State::Up)
    }

    /// Keeps it open if it is.
    fn open_kmsg(&mut self, settings: &Settings, look_back: Duration) {
        if !settings.rescue.enabled || !settings.klog.kmsg {
            self.kmsg = None;
            let off = settings.rescue.enabled;
            self.kmsg_state = off.then(|| State::Off("klog.kmsg = false".to_owned()));
            return;
        }
        if self.kmsg.is_some() {
            return;
        }
        let state = match Kmsg::open(Path::new(KMSG), look_back) {
            Ok(kmsg) => {
                self.kmsg = Some(Arc::new(kmsg));
                State::Up
            }
            Err(error) => {
                error!(
                    "the kernel's log cannot be read: {KMSG}: {error}; nothing it says can start a rescue"
                );
                State::Down(format!("cannot open {KMSG}: {error}"))
            }
        };
        self.kmsg_state = Some(state);
    }

    /// Whether it is not as the settings want it, and a reload could mend that.
    fn is_wanting(&self) -> bool {
        let down = |state: &Option<State>| matches!(state, Some(State::Down(_)));
        down(&self.rescue_state) || (down(&self.kmsg_state) && self.kmsg.is_none())
    }

    /// A stream that becomes readable when the fast side has something to report.
    fn events(&self) -> Option<UnixStream> {
        let stream = self.fast.as_ref()?.exchange.slow_side().try_clone();
        stream
            .and_then(UnixStream::from_std)
            .inspect_err(|reason| {
                warn!("the rescue is only listened to every {TICK:?}: {reason}");
            })
            .ok()
    }
}

/// Locks what the process has now, if it could lock memory at the start.
fn keep_in_memory(fast: &FastSide) {
    if fast.armament.memory.is_ok()
        && let Err(error) = lock_no_more()
    {
        debug!("memory is not locked anew: {error}");
    }
}

/// What the settings make of those of the fast side.
pub(crate) fn fast_settings(
    settings: &Settings,
    rules: Arc<Rules>,
    kmsg: Option<Arc<Kmsg>>,
) -> FastSettings {
    let rescue = &settings.rescue;
    FastSettings {
        enabled: rescue.enabled,
        dry_run: rescue.dry_run,
        kmsg,
        rules,
        ladder: Arc::new(LadderSettings {
            steps: rescue.steps.clone(),
            min_interval: rescue.min_interval,
            quiet_after: rescue.quiet_after,
            max_actions_per_hour: rescue.max_actions_per_hour,
        }),
    }
}

fn log_armament(armament: &Armament) {
    if let Err(error) = &armament.memory {
        warn!(
            "memory is not locked ({error}): the rescue may have to wait for a page from disk; CAP_IPC_LOCK or a larger LimitMEMLOCK= helps"
        );
    }
    match armament.urgency {
        Urgency::RealTime => info!("the rescue is armed"),
        Urgency::Raised => info!("the rescue is armed, at raised but not real-time priority"),
        Urgency::Ordinary => warn!(
            "the rescue is armed, at ordinary priority: on a busy host it may be late; CAP_SYS_NICE helps"
        ),
    }
}

/// See the module.
pub(super) struct Rescue {
    settings: Arc<Settings>,
    taken_on: watch::Sender<Arc<Settings>>,
    armed: Armed,
    events: Option<UnixStream>,
    listener: Listener,
    files: LogFiles,
    witness: Witness,
    memory: io::Result<Files>,
    /// When the next drill is due; nothing if there is nothing to try out.
    drill_due: Option<Instant>,
    board: Arc<Board>,
}

impl Rescue {
    /// Goes on with what [`start`] has started. Incident files go to `incidents`.
    pub(super) fn new(
        armed: Armed,
        settings: Arc<Settings>,
        board: Arc<Board>,
        history: HistoryHandle,
        incidents: PathBuf,
    ) -> Self {
        let mut rescue = Rescue {
            taken_on: watch::Sender::new(Arc::clone(&settings)),
            settings,
            armed,
            events: None,
            listener: Listener::new(Arc::clone(&board)),
            files: LogFiles::new(),
            witness: Witness::new(Arc::clone(&board), history, incidents),
            memory: Files::open(Path::new("/proc")),
            drill_due: None,
            board,
        };
        rescue.follow_settings();
        rescue
    }

    /// The settings that it goes by.
    pub(super) fn settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.taken_on.subscribe()
    }

    /// Runs until `end`; then what the fast side and the log files have found until then is
    /// recorded.
    pub(super) async fn run(
        mut self,
        mut settings: watch::Receiver<Arc<Settings>>,
        mut end: watch::Receiver<bool>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            let due = self.drill_due;
            tokio::select! {
                _ = end.wait_for(|end| *end) => break,
                changed = settings.changed() => match changed {
                    Ok(()) => {
                        let new = Arc::clone(&settings.borrow_and_update());
                        self.reload(new);
                    }
                    Err(_) => break,
                },
                () = readable(self.events.as_ref()) => {}
                found = self.files.next() => self.file_match(&found),
                _ = ticks.tick() => self.tick(),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.begin_drill();
                }
                () = feed_watchdog(), if self.armed.fast.is_none() => {}
            }
            self.take_reports();
        }
        for found in self.files.drain() {
            self.file_match(&found);
        }
        self.take_reports();
        self.witness.stop();
    }

    fn reload(&mut self, new: Arc<Settings>) {
        let changed = new.klog != self.settings.klog || new.rescue != self.settings.rescue;
        self.settings = new;
        if changed || self.armed.is_wanting() {
            // What was found under the former settings is reported as such.
            self.take_reports();
            self.armed.apply(&self.settings, Duration::ZERO);
            self.follow_settings();
        }
        self.taken_on.send_replace(Arc::clone(&self.settings));
    }

    /// Has all that belongs to the slow side follow what the fast side does now.
    fn follow_settings(&mut self) {
        let settings = Arc::clone(&self.settings);
        let armed = self.armed.armed;
        self.board.update_rescue(|rescue| {
            rescue.armed = armed;
            rescue.dry_run = settings.rescue.dry_run;
        });
        let files: &[_] = if armed { &settings.klog.files } else { &[] };
        self.files.follow(files, &self.armed.rules, &self.board);
        if self.events.is_none() {
            self.events = self.armed.events();
        }
        if let Some(fast) = &self.armed.fast {
            let names = self.armed.rules.iter().map(|(_, name, _)| name.to_owned());
            metrics::rescue_begins(&names.collect::<Vec<_>>());
            self.witness.apply(&settings.rescue, &fast.exchange);
            // The stall detector has its memory too.
            keep_in_memory(fast);
        }
        match self.armed.kmsg.is_some() && armed {
            true => self.drill_due = self.drill_due.or_else(|| Some(Instant::now())),
            false => {
                self.drill_due = None;
                self.listener.forget_drills();
            }
        }
        self.update_states();
    }

    fn tick(&mut self) {
        self.update_states();
        if let Ok(memory) = &self.memory {
            let memory = metrics::render_memory(&memory.read(&mut [0; 4096]));
            self.board.post_memory(memory);
        }
    }

    /// Puts up how each part does.
    fn update_states(&self) {
        let rescue = self.armed.rescue_state.clone().unwrap_or(State::Up);
        self.board.set_part(Part::Rescue, self.rescue_state(rescue));
        let runs = self.armed.armed;
        let kmsg = self.listener.kmsg_error.as_ref();
        match kmsg.or(self.armed.kmsg_state.as_ref()) {
            Some(state) if runs => self.board.set_part(Part::KernelLog, state.clone()),
            _ => self.board.retain_parts(|part| *part != Part::KernelLog),
        }
        self.files.update_states(&self.board);
        self.witness.update_states(runs);
    }

    /// What is wrong with a fast side that was armed.
    fn rescue_state(&self, state: State) -> State {
        let (Some(fast), State::Up) = (&self.armed.fast, &state) else {
            return state;
        };
        if !fast.is_alive() {
            let reason = "one of its threads has ended; restart fragwatch";
            return State::Down(reason.to_owned());
        }
        match fast.exchange.acting_for(now()) {
            Some(since) if since > ACTION_HANGS => State::Impaired(format!(
                "its write to /proc/sys/vm has not returned for {} s",
                since.as_secs()
            )),
            _ if self.listener.limited => {
                let reason = "rescue.max_actions_per_hour is reached; nothing is done until the hour allows it";
                State::Impaired(reason.to_owned())
            }
            _ => state,
        }
    }

    fn file_match(&mut self, found: &FileMatch) {
        self.listener.matched("log file", &found.rule, &found.line);
        self.witness.file_line(found);
        if found.action == RuleAction::Rescue
            && self.settings.klog.files_may_rescue
            && let Some(fast) = &self.armed.fast
        {
            fast.exchange.trigger(Trigger::File);
        }
    }

    /// Takes what the fast side has reported.
    fn take_reports(&mut self) {
        let Some(fast) = &mut self.armed.fast else {
            return;
        };
        let (limited, kmsg_error) = (self.listener.limited, self.listener.kmsg_error.clone());
        let in_use = fast.oldest_in_use();
        while let Some(notice) = fast.notices.pop() {
            let mut rule = "";
            if let Notice::Matched {
                edition,
                rule: id,
                line,
                at,
                ..
            } = &notice
            {
                self.files.kernel_matched(line, *at);
                rule = fast.rule_name(*edition, *id).unwrap_or("unknown");
                self.listener.matched("kernel log", rule, line);
            }
            self.witness.notice(&notice, rule);
            self.listener.notice(&notice);
        }
        fast.forget(in_use);
        while let Some(report) = fast.reports.pop() {
            self.witness.report(&report);
            self.listener.report(&report);
        }
        metrics::klog_read(fast.exchange.records(), fast.exchange.lost());
        metrics::rescue_news_lost(fast.notices.lost().saturating_add(fast.reports.lost()));
        if self.listener.drill_has_failed() {
            self.drill_due = Some(Instant::now() + DRILL_AGAIN);
        }
        if (limited, kmsg_error) != (self.listener.limited, self.listener.kmsg_error.clone()) {
            self.update_states();
        }
    }

    fn begin_drill(&mut self) {
        if let Some(fast) = &self.armed.fast {
            self.listener.begin_drill(fast);
        }
        self.drill_due = Some(Instant::now() + DRILL_INTERVAL);
    }
}

/// Until there is something to be read; for ever without a stream.
async fn readable(events: Option<&UnixStream>) {
    match events {
        Some(events) if events.readable().await.is_ok() => {
            while events.try_read(&mut [0; 64]).is_ok() {}
        }
        _ => std::future::pending().await,
    }
}

/// Feeds systemd's watchdog for as long as there is no fast side to do it.
async fn feed_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        super::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(interval / 3).await;
    }
}

struct Listener {
    drill: Option<Drill>,
    /// Whether there is an incident.
    incident: bool,
    /// Whether the hourly limit is reached.
    limited: bool,
    /// Why the kernel's log cannot be read any more.
    kmsg_error: Option<State>,
    board: Arc<Board>,
}

/// A drill under way.
struct Drill {
    nonce: u64,
    began: Monotonic,
    seen: bool,
}

impl Listener {
    fn new(board: Arc<Board>) -> Self {
        Listener {
            drill: None,
            incident: false,
            limited: false,
            kmsg_error: None,
            board,
        }
    }

    fn set_incident(&mut self, incident: bool) {
        self.incident = incident;
        self.board
            .update_rescue(|rescue| rescue.incident = incident);
    }

    /// Tells how a drill went: how long it took, or nothing if it failed.
    fn tell_roundtrip(&self, took: Option<Duration>) {
        self.board.update_rescue(|rescue| {
            rescue.drilled = Some(UnixTime::from_seconds(super::now()));
            rescue.roundtrip_seconds = took.map(|took| took.as_secs_f64());
        });
    }

    /// The kernel's log is not read any more: there is nothing to try out, and no error.
    fn forget_drills(&mut self) {
        self.drill = None;
        self.kmsg_error = None;
        self.board.update_rescue(|rescue| {
            rescue.drilled = None;
            rescue.roundtrip_seconds = None;
        });
    }

    fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Matched { .. } => {}
            Notice::Began(began, _) => {
                self.set_incident(true);
                metrics::incident_began(began.trigger);
                error!(
                    "incident {} begins: XFS waits for memory ({})",
                    began.incident, began.trigger
                );
            }
            Notice::Ended(ended, at) => {
                self.set_incident(false);
                metrics::incident_ended();
                warn!(
                    "incident {} is over after {} s: {} signs ({} of them held back by rescue.max_actions_per_hour), {} actions, {} of them failed",
                    ended.incident,
                    at.since(ended.began).as_secs(),
                    ended.matches,
                    ended.held_back,
                    ended.actions,
                    ended.failed
                );
            }
            Notice::Limit(Limit::Reached, _) => {
                self.limited = true;
                error!(
                    "a rescue is due but rescue.max_actions_per_hour is reached; XFS still waits for memory"
                );
            }
            Notice::Limit(Limit::Over { held_back }, _) => {
                self.limited = false;
                warn!(
                    "rescue.max_actions_per_hour allows actions again; {held_back} signs were left without one"
                );
            }
            Notice::DrillSeen { nonce, at } => {
                if let Some(drill) = self.drill.as_mut().filter(|drill| drill.nonce == *nonce) {
                    drill.seen = true;
                    let took = at.since(drill.began);
                    self.tell_roundtrip(Some(took));
                }
            }
            Notice::Source(0) => {
                self.kmsg_error = None;
                info!("the kernel's log can be read again");
            }
            Notice::Source(number) => {
                let reason = io::Error::from_raw_os_error(number.cast_signed());
                error!("the kernel's log cannot be read any more: {reason}");
                self.kmsg_error = Some(State::Down(format!("cannot read {KMSG}: {reason}")));
            }
        }
    }

    fn matched(&self, source: &str, rule: &str, line: &Line) {
        metrics::klog_matched(rule);
        warn!(
            "{source}, {rule}: {}",
            String::from_utf8_lossy(line.bytes())
        );
    }

    fn report(&mut self, report: &Report) {
        if report.drill {
            return self.end_drill(report);
        }
        let step = report.order.step;
        metrics::rescue_acted(step, report.outcome, report.began.since(report.read));
        let effect = effect(&report.before, &report.after);
        let took = report.ended.since(report.began).as_millis();
        match report.outcome {
            Outcome::Done => warn!("rescue {step} done in {took} ms: {effect}"),
            Outcome::DryRun => warn!("rescue {step} not done: rescue.dry_run = true"),
            Outcome::Failed if report.error != 0 => {
                let reason = io::Error::from_raw_os_error(report.error.cast_signed());
                error!("rescue {step} failed: {reason}");
            }
            Outcome::Failed => {
                error!("rescue {step} failed: the kernel's own counter did not move; {effect}");
            }
        }
    }

    fn begin_drill(&mut self, fast: &FastSide) {
        let began = now();
        let nonce = began.0.max(1);
        fast.exchange.expect_drill(nonce, false);
        let written = write_drill(Path::new(KMSG), nonce).inspect_err(|reason| {
            error!("cannot write to {KMSG}: {reason}");
        });
        // One that was not written fails when its time is over, as one that was lost.
        drop(written);
        self.drill = Some(Drill {
            nonce,
            began,
            seen: false,
        });
    }

    fn end_drill(&mut self, report: &Report) {
        let Some(drill) = self.drill.take_if(|drill| drill.seen) else {
            return;
        };
        let took = report.ended.since(drill.began);
        self.tell_roundtrip(Some(took));
        info!(
            "drill: from the kernel's log to the actor in {} µs",
            took.as_micros()
        );
    }

    /// A drill that has not come to its end in time has failed; unless there is an incident, which
    /// keeps the actor for itself and proves the rest better than any drill.
    fn drill_has_failed(&mut self) -> bool {
        let late = |drill: &mut Drill| now().since(drill.began) >= DRILL_PATIENCE;
        let Some(drill) = self.drill.take_if(late) else {
            return false;
        };
        if drill.seen && self.incident {
            return false;
        }
        self.tell_roundtrip(None);
        let where_to = if drill.seen {
            "was not carried out"
        } else {
            "did not come back"
        };
        error!("drill failed: its record {where_to}; try `fragwatch drill`");
        true
    }
}

/// Writes the record of a drill to the kernel's log: level 6, and not of the kernel's own facility,
/// which only the kernel can write.
///
/// # Errors
/// Those of opening and writing.
pub(crate) fn write_drill(kmsg: &Path, nonce: u64) -> io::Result<()> {
    let mut record = b"<6>".to_vec();
    record.extend(DRILL_MARKER);
    record.extend(nonce.to_string().bytes());
    record.push(b'\n');
    OpenOptions::new()
        .write(true)
        .open(kmsg)?
        .write_all(&record)
}

/// What an action brought, in words.
#[must_use]
pub(crate) fn effect(before: &Counters, after: &Counters) -> String {
    let kib = |kib: u64| Bytes(kib.saturating_mul(1024));
    // Blocks of 64 KiB and more: what the older kernels' extent lists need (order 4).
    let large = |counters: &Counters| counters.free_blocks.iter().skip(4).sum::<u64>();
    format!(
        "reclaimable slab {} to {}, free blocks of 64 KiB and more {} to {}",
        kib(before.slab_reclaimable),
        kib(after.slab_reclaimable),
        large(before),
        large(after)
    )
}

/// systemd's watchdog, if it is on (sd_watchdog_enabled(3)): a socket that is connected now, for in
/// an emergency nothing is opened.
fn watchdog() -> Option<crate::rescue::Watchdog> {
    let interval = sd_notify::watchdog_enabled()? / 3;
    let socket = notify_socket()?;
    Some(crate::rescue::Watchdog {
        socket,
        interval,
        fed: Monotonic::default(),
    })
}

fn notify_socket() -> Option<OwnedFd> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let name = std::env::var_os("NOTIFY_SOCKET")?;
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address.ok()?).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket.into())
}
