//! Defragments images automatically as the planner decides. A tick checks the window, the pause and
//! the rescue, every second while a window is open or a run works, else every few seconds; a plan
//! every few seconds starts the runs that are due.
//!
//! ```text
//! calendar, inventory, history ─► facts ─► plan ─► runner (a thread) ─► child (a process) ─► history
//!         window closes, pause, incident, the end of the daemon ──► stop
//! ```
//!
//! Runs left by an earlier daemon are finished first ([`note`]); until then none begins.

mod child;
mod control;
mod engines;
mod hold;
mod lock;
mod note;
mod phase;
mod request;
mod runner;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use super::blocking::within;
use super::history::{HistoryHandle, READ_TIMEOUT, is_paused, past_events};
use super::registry::SharedRegistry;
use crate::config::Settings;
use crate::config::settings::Defrag;
use crate::defrag;
use crate::defrag::job::{DefragJob, JobProgress, JobReport, PassedOver};
use crate::defrag::pressure::{Asked, Gauge};
use crate::discover::mounts::MountTable;
use crate::maintenance::gather::{self, PastRuns};
use crate::maintenance::{
    Active, Allowed, Calendar, Decision, ImageFacts, JitterSeed, PlanFacts, Planned, PlannedRun,
    plan,
};
use crate::model::path::shown;
use crate::model::{Engine, ImageId, OutcomeKind, ReasonCode, Refusal, RunRecord, Stop, UnixTime};
use crate::serve::plan::PlanInForce;
use crate::serve::shared_status::SharedStatus;
use crate::serve::{metrics, status};
use crate::state_dir::StateDir;
use crate::sys;
use control::Control;
use engines::Engines;
use hold::Hold;
use lock::Lock;
use note::{Note, NoteFile, left_behind};
use phase::Phase;
use runner::{End, Ended, Task};

const TICK: Duration = Duration::from_secs(1);
/// While nothing runs and no window is open.
const IDLE_TICK: Duration = Duration::from_secs(5);
const PLANNING: Duration = Duration::from_secs(5);
const PRESSURE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after an incident during which the worst images come first.
const AFTER_INCIDENT: Duration = Duration::from_secs(24 * 3600);
/// Limit for the runs to end at shutdown.
pub(super) const LAST_RUNS: Duration = Duration::from_millis(1200);
/// Limit for libvirt to abort a copy at shutdown: QEMU would go on with it.
const LAST_COPIES: Duration = Duration::from_secs(10);
/// Limit for the operator's commands at shutdown; the next start reruns a cancelled one.
const LAST_HOOKS: Duration = Duration::from_secs(60);
/// Limit for a cancelled command to end, see `hook::run_once`.
const LAST_KILL: Duration = Duration::from_secs(5);
/// Delay after a failed start that is no fault of an image.
const NOT_READY_PAUSE: Duration = Duration::from_secs(60);

/// The scheduler of defragmentations.
pub(super) struct Maintenance {
    settings: watch::Receiver<Arc<Settings>>,
    inventory: SharedRegistry,
    board: Arc<SharedStatus>,
    history: HistoryHandle,
    runs: PastRuns,
    state: StateDir,
    seed: JitterSeed,
    calendar: Calendar,
    active: BTreeMap<String, Running>,
    ended: mpsc::UnboundedReceiver<Ended>,
    on_end: mpsc::UnboundedSender<Ended>,
    /// Runs left by an earlier daemon whose `hook_after` runs now. Until they end, none is active.
    unfinished: Vec<Arc<Control>>,
    /// Why no run can start, and until when no start is tried.
    not_ready: Option<(Instant, String)>,
    queries: mpsc::Receiver<oneshot::Sender<PlanInForce>>,
    planned: Option<Instant>,
    /// Whether a window was open at the last tick.
    was_open: bool,
    engines: Engines,
    lock: Lock,
    hold: Hold,
    incident: Option<UnixTime>,
    dry_runs: Vec<PathBuf>,
    /// The pressure gauge of each file system, by mount point, while a window is open.
    gauges: BTreeMap<PathBuf, Gauge>,
    /// Their last readings, in percent.
    pressures: BTreeMap<PathBuf, f64>,
}

struct Running {
    image: ImageId,
    engine: Engine,
    began: UnixTime,
    active: Active,
    /// Whether operator's commands are configured for it.
    has_hooks: bool,
    /// Whether it may be a copy by QEMU, which does not end with this process.
    may_copy: bool,
    control: Arc<Control>,
}

impl Maintenance {
    /// `queries` are requests for the plan.
    pub(super) fn new(
        settings: watch::Receiver<Arc<Settings>>,
        inventory: SharedRegistry,
        board: Arc<SharedStatus>,
        history: HistoryHandle,
        state: &StateDir,
        queries: mpsc::Receiver<oneshot::Sender<PlanInForce>>,
    ) -> Self {
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let seed = JitterSeed::from_machine_id(&machine);
        let calendar = Calendar::new(&settings.borrow().maintenance, seed);
        let (on_end, ended) = mpsc::unbounded_channel();
        metrics::defrag_begins();
        Maintenance {
            settings,
            inventory,
            board,
            history,
            runs: PastRuns::default(),
            state: state.clone(),
            seed,
            calendar,
            active: BTreeMap::new(),
            ended,
            on_end,
            unfinished: Vec::new(),
            not_ready: None,
            queries,
            planned: None,
            was_open: false,
            engines: Engines::default(),
            lock: Lock::new(state, &machine),
            hold: Hold::default(),
            incident: None,
            dry_runs: Vec::new(),
            gauges: BTreeMap::new(),
            pressures: BTreeMap::new(),
        }
    }

    /// Runs until `end`, then ends the current runs.
    pub(super) async fn run(mut self, mut end: watch::Receiver<bool>) {
        self.engines.judge(&self.settings.borrow().defrag);
        tokio::select! {
            () = self.look_back() => {}
            _ = end.changed() => return self.end_all().await,
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.tick().await;
                    ticks.reset_after(self.pause());
                }
                Ok(()) = self.settings.changed() => {
                    self.settings.mark_changed();
                    self.tick().await;
                    ticks.reset_after(self.pause());
                }
                Some(ended) = self.ended.recv() => self.take_in(ended),
                Some(query) = self.queries.recv() => self.answer(query),
                () = self.engines.judged() => self.post_engines(),
                () = self.lock.answered() => self.planned = None,
                () = self.hold.answered() => self.planned = None,
                _ = end.changed() => return self.end_all().await,
            }
        }
    }

    /// Reads the pause, the past runs and the unfinished runs of an earlier daemon.
    async fn look_back(&mut self) {
        if let Err(error) = child::restore_hints(self.state.hints()) {
            warn!("extent-size hints of runs that were killed are not restored: {error}");
        }
        self.board.restore_pause(is_paused(&self.state).await);
        (self.runs, self.incident) = past_events(self.state.database()).await;
        for (note, file) in notes(self.state.path()).await {
            // Either the daemon was killed before it removed the note, or the row is of another run
            // that began in the same second. So `hook_after` runs in any case.
            if note.hook_after.is_empty() && self.is_recorded(&note) {
                file.remove();
                continue;
            }
            let path = shown(&note.image.path);
            warn!("{path}: a run by {} was cut off", note.engine);
            let task = Task {
                note,
                file: Some(file),
                job: None,
                state: self.state.path().to_owned(),
            };
            match task.start(self.on_end.clone()) {
                Ok(control) => self.unfinished.push(control),
                Err(error) => warn!("{path}: defrag.hook_after cannot be run: {error}"),
            }
        }
    }

    /// Ends the runs and waits for them, longer if they have commands. A second signal ends the
    /// process at once ([`signals`](super::signals)). The next start finishes what is cut off.
    async fn end_all(mut self) {
        self.end_runs().await;
        // Until the next start aborts a copy that goes on, the host keeps the lock.
        if !self.may_copy() {
            self.lock.end().await;
        }
    }

    fn may_copy(&self) -> bool {
        self.active.values().any(|running| running.may_copy)
    }

    async fn end_runs(&mut self) {
        self.stop_all(Stop::Shutdown);
        let began = Instant::now();
        let mut cancelled = None;
        while !self.active.is_empty() || !self.unfinished.is_empty() {
            let runs_hooks = |running: &Running| running.has_hooks;
            let has_hooks = !self.unfinished.is_empty() || self.active.values().any(runs_hooks);
            let deadline = match cancelled {
                Some(at) => at + LAST_KILL,
                None if has_hooks => began + LAST_HOOKS,
                None if self.may_copy() => began + LAST_COPIES,
                None => began + LAST_RUNS,
            };
            if Instant::now() >= deadline {
                if cancelled.is_some() || !has_hooks {
                    // The kernel kills them with this process, and the next start ends what QEMU copies;
                    // an image is then unchanged.
                    return warn!(
                        "{} runs did not end in time and are killed",
                        self.active.len()
                    );
                }
                cancelled = Some(self.cancel_hooks());
                continue;
            }
            if has_hooks || self.may_copy() {
                extend_stop();
            }
            tokio::select! {
                Some(ended) = self.ended.recv() => self.take_in(ended),
                () = tokio::time::sleep_until(deadline.min(Instant::now() + TICK)) => {}
            }
        }
    }

    fn cancel_hooks(&self) -> Instant {
        warn!("commands around defragmentations are ended; the next start runs hook_after");
        let active = self.active.values().map(|running| &running.control);
        active
            .chain(&self.unfinished)
            .for_each(|control| control.cancel_hooks());
        Instant::now()
    }

    /// How long until the next tick: each one wakes the process. None may miss an incident.
    fn pause(&self) -> Duration {
        let is_open = || self.calendar.open_until(Timestamp::now()).is_some();
        if !self.active.is_empty() || is_open() {
            return TICK;
        }
        self.settings
            .borrow()
            .rescue
            .quiet_after
            .clamp(TICK, IDLE_TICK)
    }

    async fn tick(&mut self) {
        if self.settings.has_changed().unwrap_or(false) {
            let settings = Arc::clone(&self.settings.borrow_and_update());
            self.calendar = Calendar::new(&settings.maintenance, self.seed);
            self.dry_runs.clear();
            self.hold.forget();
            self.lock.forget();
            self.engines.judge(&settings.defrag);
        }
        if self.engines.is_due() {
            self.engines.judge(&self.settings.borrow().defrag);
        }
        let now = Timestamp::now();
        let open = self.calendar.open_until(now).is_some();
        if open && !self.was_open {
            // The last reading may be hours old. A run that begins before the next one reads by itself.
            self.inventory.lock().outdate_spaces(|_| true);
        }
        self.was_open = open;
        let incident = self.board.incident();
        if incident {
            self.incident = Some(UnixTime(now.as_second()));
        }
        let paused = self.board.paused();
        match open && !incident && !paused {
            true => self.hold.ask(&self.settings.borrow().maintenance.hold),
            false => self.hold.forget(),
        }
        let stop = match () {
            () if incident => Some(Stop::Incident),
            () if paused => Some(Stop::Paused),
            () if !open => Some(Stop::WindowClosed),
            () if self.hold.stops() => Some(Stop::Held),
            () => None,
        };
        match stop {
            Some(stop) => {
                self.stop_all(stop);
                self.unlock();
                self.dry_runs.clear();
                self.gauges.clear();
                self.pressures.clear();
            }
            None => self.start_what_is_due(now).await,
        }
        let next = self.calendar.next_opening(now);
        if !self.active.is_empty() {
            self.post_runs();
        }
        metrics::maintenance(open, next.map(|next| next.opens.as_second()));
        metrics::defrag_active(self.active.len());
    }

    fn stop_all(&mut self, why: Stop) {
        for running in self.active.values_mut() {
            running.control.stop(why);
        }
    }

    async fn start_what_is_due(&mut self, now: Timestamp) {
        let early = |planned: Instant| planned.elapsed() < PLANNING;
        // No run starts before the kernel is judged.
        if self.planned.is_some_and(early) || self.engines.states().is_none() {
            return;
        }
        self.planned = Some(Instant::now());
        let settings = Arc::clone(&self.settings.borrow());
        self.read_pressures(settings.defrag.max_io_pressure).await;
        let plan = plan(&self.facts(&settings.defrag, now), &settings.defrag);
        let runs = |planned: &&Planned| matches!(planned.decision, Decision::Runs(_));
        metrics::defrag_queue(plan.images.iter().filter(runs).count());
        let due: Vec<_> = plan
            .due(now)
            .map(|(planned, run)| (planned.path.clone(), run))
            .collect();
        if due.is_empty() {
            return self.unlock();
        }
        if !settings.defrag.dry_run && !self.lock.take(&settings.maintenance.lock) {
            return self.unlock();
        }
        for (path, run) in due {
            self.start(&settings.defrag, &path, run);
        }
        self.unlock();
    }

    /// Gives the lock back, unless a run works.
    fn unlock(&mut self) {
        if self.active.is_empty() {
            self.lock.release();
        }
    }

    /// Reads the I/O pressure of each file system; on another thread, because procfs, sysfs and
    /// cgroupfs may wait for kernel locks.
    async fn read_pressures(&mut self, most: u32) {
        let mounts: Vec<PathBuf> = {
            let inventory = self.inventory.lock();
            let filesystems = inventory.filesystems.values();
            filesystems.map(|it| it.mount.clone()).collect()
        };
        let gauges = std::mem::take(&mut self.gauges);
        let asked = match self.active.is_empty() {
            true => Asked::OrHost,
            false => Asked::Others,
        };
        let read = move || pressures(mounts, gauges, asked, most);
        if let Some(read) = within(PRESSURE_TIMEOUT, read).await {
            (self.gauges, self.pressures) = read;
        }
    }

    fn facts(&self, defrag: &Defrag, now: Timestamp) -> PlanFacts {
        let inventory = self.inventory.lock();
        let stalled = self.board.stalled();
        let speeds = self.runs.speeds();
        let filesystems = inventory.filesystems.iter().map(|(device, filesystem)| {
            let mount = shown(&filesystem.mount);
            let stalled = stalled.iter().any(|stalled| stalled.mount == mount);
            let active = self.active.get(&filesystem.lasting_name());
            let active = active.map(|running| running.active.clone());
            let pressure = self.pressures.get(&filesystem.mount).copied();
            let space = inventory.space(*device).cloned();
            gather::filesystem(filesystem, stalled, active, pressure, &speeds, space)
        });
        let images = inventory.images.values().filter_map(|entry| {
            let (map, outlook) = (entry.map.as_ref(), entry.outlook);
            let facts = gather::image(&entry.sample, &entry.owner, map, outlook, &self.runs)?;
            Some(ImageFacts {
                severity: entry.severity(),
                growth: entry.growth.rate(),
                // `hook_before` may free the image; the guards check that.
                user: facts.user.filter(|_| defrag.hook_before.is_empty()),
                ..facts
            })
        });
        PlanFacts {
            now,
            zone: self.calendar.zone().clone(),
            allowed: Allowed::by(&self.calendar, now),
            incident: self.board.incident(),
            recent_incident: is_recent(self.incident, now),
            paused: self.board.paused(),
            not_ready: self.why_not_ready(),
            engines: self.engines.states().unwrap_or_default().to_vec(),
            images: images.collect(),
            filesystems: filesystems.collect(),
        }
    }

    fn start(&mut self, defrag: &Defrag, path: &Path, run: PlannedRun) {
        let engine = run.engine;
        if defrag.dry_run {
            if !self.dry_runs.iter().any(|known| known == path) {
                info!(
                    "would defragment {} by {engine}: defrag.dry_run = true",
                    shown(path)
                );
                self.dry_runs.push(path.to_owned());
            }
            return;
        }
        let inventory = self.inventory.lock();
        let Some(entry) = inventory
            .images
            .values()
            .find(|entry| entry.sample.path == path)
        else {
            return;
        };
        let Some(image) = entry.reference() else {
            return;
        };
        let (id, extents, vm) = (
            entry.sample.id,
            entry.sample.extents,
            entry.owner.vm().cloned(),
        );
        drop(inventory);
        let (filesystem, began) = (image.key.filesystem.clone(), super::clock::wall());
        let then = after(engine, &defrag.engines);
        let may_copy = engine == Engine::BlockCopy || then.contains(&Engine::BlockCopy);
        let task = Task {
            note: Note {
                image,
                engine,
                extents,
                began,
                vm,
                hook_after: defrag.hook_after.clone(),
                phase: Phase::Job,
                process: None,
            },
            file: None,
            job: Some(DefragJob::new(
                path.to_owned(),
                engine,
                then,
                defrag.clone(),
                self.state.hints(),
                self.state.database().to_owned(),
            )),
            state: self.state.path().to_owned(),
        };
        match task.start(self.on_end.clone()) {
            Ok(control) => {
                let path = path.to_owned();
                info!(
                    "defragmenting {} by {engine}: {extents} extents",
                    shown(&path)
                );
                let running = Running {
                    image: id,
                    engine,
                    began,
                    active: Active {
                        path,
                        ends: run.ends,
                    },
                    has_hooks: !defrag.hook_before.is_empty() || !defrag.hook_after.is_empty(),
                    may_copy,
                    control,
                };
                self.active.insert(filesystem, running);
                self.post_runs();
            }
            Err(error) => self.is_not_ready(format!("no thread can be had: {error}")),
        }
    }

    fn why_not_ready(&self) -> Option<Refusal> {
        let not_ready = || {
            if !self.unfinished.is_empty() {
                return Some("defrag.hook_after of a run that was cut off is running");
            }
            let (until, why) = self.not_ready.as_ref()?;
            (Instant::now() < *until).then_some(why.as_str())
        };
        let refusal = |why| Refusal::new(ReasonCode::NotReady, format!("no run can begin: {why}"));
        let lock = &self.settings.borrow().maintenance.lock;
        not_ready()
            .map(refusal)
            .or_else(|| self.hold.why_not())
            .or_else(|| self.lock.why_not(lock))
    }

    fn answer(&self, query: oneshot::Sender<PlanInForce>) {
        let settings = Arc::clone(&self.settings.borrow());
        let now = Timestamp::now();
        let facts = self.facts(&settings.defrag, now);
        // The client may have disconnected.
        let _ = query.send(PlanInForce {
            plan: plan(&facts, &settings.defrag),
            engines: facts.engines,
            calendar: self.calendar.clone(),
            now,
        });
    }

    /// Delays further starts for a reason that is no fault of an image. Logged once.
    fn is_not_ready(&mut self, why: String) {
        let known = self.not_ready.as_ref();
        if known.is_none_or(|(_, known)| *known != why) {
            error!("no defragmentation can begin: {why}");
        }
        self.not_ready = Some((Instant::now() + NOT_READY_PAUSE, why));
    }

    fn post_engines(&mut self) {
        let states = self.engines.states().unwrap_or_default();
        let engines = states.iter().map(status::EngineState::from).collect();
        self.board.update(|status| status.engines = engines);
        self.planned = None;
    }

    fn post_runs(&self) {
        let run = |running: &Running| status::Run {
            path: shown(&running.active.path),
            engine: running.engine,
            began: running.began,
            ends: UnixTime(running.active.ends.as_second()),
            progress: running.control.progress.load().and_then(JobProgress::share),
        };
        let runs = self.active.values().map(run).collect();
        self.board.update(|status| status.runs = runs);
    }

    fn take_in(&mut self, ended: Ended) {
        let Ended { note, file, .. } = ended;
        let filesystem = &note.image.key.filesystem;
        let running = self.active.remove(filesystem);
        // Read again, because the run has changed it, or was refused because of it.
        self.inventory.lock().outdate_spaces(|it| it == filesystem);
        if running.is_none() {
            self.unfinished.pop();
        }
        self.post_runs();
        self.planned = None;
        metrics::defrag_active(self.active.len());
        self.unlock();
        let report = match ended.end {
            // The next daemon finishes it.
            End::Cancelled => return,
            End::NotReady(why) => {
                file.into_iter().for_each(NoteFile::remove);
                return self.is_not_ready(why);
            }
            End::CutOff if self.is_recorded(&note) => {
                return file.into_iter().for_each(NoteFile::remove);
            }
            End::CutOff => return self.record(note.interrupted(), file),
            End::Report(report) => report,
        };
        self.not_ready = None;
        let path = shown(&note.image.path);
        let mut row = row(note, &report);
        row.reason = join([row.reason, ended.hook_after.unwrap_or_default()]);
        if row.took.is_zero() {
            row.took = ended.took;
        }
        let (engine, outcome) = (row.engine.as_str(), row.outcome.as_str());
        metrics::defrag_ended(engine, outcome, row.from, row.to);
        if row.outcome == OutcomeKind::Improved {
            info!(
                "{path}: {} → {} extents by {engine} in {:.1} s{}",
                row.from,
                row.to,
                row.took.as_secs_f64(),
                match row.reason.as_str() {
                    "" => String::new(),
                    reason => format!(" ({reason})"),
                }
            );
            let mut inventory = self.inventory.lock();
            if let Some(image) = running.and_then(|it| inventory.images.get_mut(&it.image)) {
                image.defragmented();
            }
        } else {
            warn!("{path}: {engine} {outcome}: {}", row.reason);
        }
        self.record(row, file);
    }

    fn is_recorded(&self, note: &Note) -> bool {
        self.runs.contains(&note.image.key, note.began)
    }

    fn record(&mut self, row: RunRecord, note: Option<NoteFile>) {
        self.runs.push(row.clone());
        self.history.run(row, note.map(|file| file.0));
    }
}

/// Extends systemd's stop timeout: a command that restarts a VM must not be killed by
/// TimeoutStopSec= (sd_notify(3), EXTEND_TIMEOUT_USEC).
fn extend_stop() {
    let more = u32::try_from((TICK * 15).as_micros()).unwrap_or(u32::MAX);
    super::systemd::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(more)]);
}

/// The notes of an earlier daemon; none if the disk does not answer.
async fn notes(state: &Path) -> Vec<(Note, NoteFile)> {
    let state = state.to_owned();
    within(READ_TIMEOUT, move || left_behind(&state))
        .await
        .unwrap_or_else(|| {
            error!("the state directory does not answer: runs that were cut off are not finished");
            Vec::new()
        })
}

fn row(note: Note, report: &JobReport) -> RunRecord {
    let run = &report.run;
    let from = run.from.unwrap_or(note.extents);
    let passed = report.passed_over.iter();
    let passed = passed.map(|PassedOver { engine, reason }| format!("not by {engine}: {reason}"));
    RunRecord {
        image: note.image,
        at: note.began,
        engine: run.engine,
        from,
        to: run.to.unwrap_or(from),
        bytes: run.written,
        took: run.took,
        stalls: run.stalls.filter(|it| it.calls > 0),
        outcome: run.outcome.kind(),
        reason: join(run.reason().into_iter().chain(passed)),
    }
}

fn join(reasons: impl IntoIterator<Item = String>) -> String {
    let reasons = reasons.into_iter().filter(|reason| !reason.is_empty());
    reasons.collect::<Vec<_>>().join("; ")
}

fn pressures(
    mounts: Vec<PathBuf>,
    mut gauges: BTreeMap<PathBuf, Gauge>,
    asked: Asked,
    most: u32,
) -> (BTreeMap<PathBuf, Gauge>, BTreeMap<PathBuf, f64>) {
    let host = defrag::HostInterfaces::to_look_at();
    let table = MountTable::new(sys::mounts::read(&host.proc).unwrap_or_default());
    gauges.retain(|mount, _| mounts.contains(mount));
    let mut pressures = BTreeMap::new();
    for mount in mounts {
        let Some(on) = table.of(&mount) else { continue };
        let gauge = gauges.entry(mount.clone());
        let gauge = gauge.or_insert_with(|| Gauge::new(on.device));
        let found = gauge.look(&host, asked, true);
        if let Some(pressure) = gauge.news(found, most) {
            info!("{}: {pressure}", shown(&mount));
        }
        if let Some(found) = found {
            pressures.insert(mount, found.counts);
        }
    }
    (gauges, pressures)
}

/// Whether the last incident is recent enough that the worst images come first.
pub(crate) fn is_recent(incident: Option<UnixTime>, now: Timestamp) -> bool {
    let now = UnixTime(now.as_second());
    incident.is_some_and(|at| now.since(at) < AFTER_INCIDENT)
}

/// The engines to try if the guards find what the planner does not see, such as a loop device.
fn after(chosen: Engine, configured: &[Engine]) -> Vec<Engine> {
    let others = configured.iter().copied();
    let others = others.skip_while(|engine| *engine != chosen);
    others.filter(|engine| *engine != chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_engine_is_one_that_comes_later() {
        let both = [Engine::XfsFsr, Engine::Online];
        assert_eq!(after(Engine::XfsFsr, &both), [Engine::Online]);
        assert_eq!(after(Engine::Online, &both), []);
        // The configuration may have changed since.
        assert_eq!(after(Engine::Online, &[Engine::XfsFsr]), []);
    }
}
