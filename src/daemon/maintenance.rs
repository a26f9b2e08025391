//! Defragments by itself what the planner says, when it says so: a tick a second looks at the
//! window, the pause and the rescue; a plan every few seconds starts what is due.
//!
//! ```text
//! calendar, inventory, history ─► facts ─► plan ─► errand (a thread, a child process) ─► history
//!         window closes, pause, incident, the end of the daemon ──► stop
//! ```

mod errand;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::chronicle::{Teller, is_paused, last_incident, past_runs, state_directory};
use super::sampler::Shared;
use crate::config::Settings;
use crate::config::settings::Defrag;
use crate::defrag::pressure;
use crate::history::{ImageRef, RunRow};
use crate::maintenance::gather::{self, ImageNow, KnownRun, Runs};
use crate::maintenance::{Active, Allowed, Calendar, Facts, Host, Plan, Policy, Run, plan};
use crate::model::path::shown;
use crate::model::{Bytes, Engine, ExtentCount, ImageId, Stop, UnixTime};
use crate::serve::board::Board;
use crate::serve::{metrics, status};
pub(super) use errand::interrupted_before;
use errand::{Ended, Errand, Task};

const TICK: Duration = Duration::from_secs(1);
/// From one plan to the next while a window is open.
const PLANNING: Duration = Duration::from_secs(5);
/// For so long after an incident the worst images come first.
const AFTER_INCIDENT: Duration = Duration::from_secs(24 * 3600);
/// What the runs may take to end when the daemon does.
pub(super) const LAST_RUNS: Duration = Duration::from_millis(1200);

/// See the module.
pub(super) struct Maintenance {
    settings: watch::Receiver<Arc<Settings>>,
    inventory: Shared,
    board: Arc<Board>,
    teller: Teller,
    runs: Runs,
    state: PathBuf,
    database: PathBuf,
    config: Option<PathBuf>,
    host: Host,
    calendar: Calendar,
    active: BTreeMap<String, Running>,
    ended: mpsc::UnboundedReceiver<Ended>,
    tell_end: mpsc::UnboundedSender<Ended>,
    planned: Option<Instant>,
    /// When the last incident was.
    incident: Option<UnixTime>,
    /// Told in the log already, while it lasts: what a dry run would do.
    rehearsed: Vec<PathBuf>,
}

/// A run under way on a file system.
struct Running {
    image: ImageId,
    reference: ImageRef,
    engine: Engine,
    began: Timestamp,
    active: Active,
    errand: Errand,
}

impl Maintenance {
    /// `database` is that of the history, beside which all state lies; `config` is the daemon's
    /// configuration if one was named.
    pub(super) fn new(
        settings: watch::Receiver<Arc<Settings>>,
        inventory: Shared,
        board: Arc<Board>,
        teller: Teller,
        database: &Path,
        config: Option<&Path>,
    ) -> Self {
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let host = Host::from_machine_id(&machine);
        let calendar = Calendar::new(&settings.borrow().maintenance, host);
        let (tell_end, ended) = mpsc::unbounded_channel();
        metrics::defrag_begins();
        Maintenance {
            settings,
            inventory,
            board,
            teller,
            runs: Runs::default(),
            state: state_directory(database),
            database: database.to_owned(),
            config: config.map(Path::to_owned),
            host,
            calendar,
            active: BTreeMap::new(),
            ended,
            tell_end,
            planned: None,
            incident: None,
            rehearsed: Vec::new(),
        }
    }

    /// Runs until `end` says so, then ends what is under way.
    pub(super) async fn run(mut self, mut end: watch::Receiver<bool>) {
        // Paused until it is known whether it is: the disk that knows may hang.
        self.board.pause(true);
        tokio::select! {
            () = self.look_back() => {}
            _ = end.changed() => return,
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                Some(ended) = self.ended.recv() => self.take_in(ended),
                _ = end.changed() => return self.end_all().await,
            }
        }
    }

    /// Finds out what an earlier daemon was told and has done.
    async fn look_back(&mut self) {
        if let Err(error) = errand::restore_hints(&self.state) {
            warn!("extent-size hints of runs that were killed are not restored: {error}");
        }
        self.board.pause(is_paused(&self.database).await);
        self.runs = past_runs(&self.database, &self.teller).await;
        self.incident = last_incident(&self.database).await;
    }

    async fn end_all(mut self) {
        self.stop_all(Stop::Shutdown);
        let deadline = Instant::now() + LAST_RUNS;
        while !self.active.is_empty() {
            match tokio::time::timeout_at(deadline, self.ended.recv()).await {
                Ok(Some(ended)) => self.take_in(ended),
                // The kernel kills them with us; an image is then as it was.
                _ => return warn!("{} runs are killed, not ended", self.active.len()),
            }
        }
    }

    fn tick(&mut self) {
        if self.settings.has_changed().unwrap_or(false) {
            let settings = Arc::clone(&self.settings.borrow_and_update());
            self.calendar = Calendar::new(&settings.maintenance, self.host);
            self.rehearsed.clear();
        }
        let now = Timestamp::now();
        let open = self.calendar.open_until(now).is_some();
        let incident = self.board.rescue().incident;
        if incident {
            self.incident = Some(UnixTime(now.as_second()));
        }
        let paused = self.board.paused();
        let stop = match () {
            () if incident => Some(Stop::Incident),
            () if paused => Some(Stop::Paused),
            () if !open => Some(Stop::WindowClosed),
            () => None,
        };
        match stop {
            Some(stop) => {
                self.stop_all(stop);
                self.rehearsed.clear();
            }
            None => self.start_what_is_due(now),
        }
        let next = self.calendar.next_opening(now);
        metrics::maintenance(open, next.map(|next| next.opens.as_second()));
        metrics::defrag_active(self.active.len());
    }

    fn stop_all(&mut self, why: Stop) {
        for running in self.active.values_mut() {
            running.errand.stop(why);
        }
    }

    fn start_what_is_due(&mut self, now: Timestamp) {
        let early = |planned: Instant| planned.elapsed() < PLANNING;
        if self.planned.is_some_and(early) {
            return;
        }
        self.planned = Some(Instant::now());
        let settings = Arc::clone(&self.settings.borrow());
        let policy = Policy::from(&settings.defrag);
        let plan = plan(&self.facts(&settings.defrag, now), &policy);
        metrics::defrag_queue(queue(&plan));
        let due: Vec<_> = plan
            .due(now)
            .map(|(planned, run)| (planned.path.clone(), run))
            .collect();
        for (path, run) in due {
            self.start(&settings.defrag, &path, run);
        }
    }

    /// What the planner is to know.
    fn facts(&self, defrag: &Defrag, now: Timestamp) -> Facts {
        let inventory = self.inventory.lock();
        let stalled = self.board.stalled();
        let paces = self.runs.paces();
        let filesystems = inventory.filesystems().map(|filesystem| {
            let mount = shown(&filesystem.mount);
            let stalled = stalled.iter().any(|(stalled, _)| *stalled == mount);
            let active = self.active.get(&filesystem.lasting_name());
            let active = active.map(|running| running.active.clone());
            gather::filesystem(filesystem, stalled, active, &paces)
        });
        let images = inventory.images().filter_map(|entry| {
            let key = inventory.reference(entry.sample.id)?.key;
            let mut facts = gather::image(
                &ImageNow {
                    sample: &entry.sample,
                    key: &key,
                    owner: &entry.owner,
                    severity: entry.severity(),
                    growth: entry.growth.rate(),
                    map: entry.map.as_ref(),
                    outlook: entry.outlook,
                },
                &self.runs,
            );
            // The operator's command may make it free; the guards ask after it.
            if !defrag.hook_before.is_empty() {
                facts.user = None;
            }
            Some(facts)
        });
        Facts {
            now,
            zone: self.calendar.zone().clone(),
            allowed: Allowed::by(&self.calendar, now),
            io_pressure: pressure::before_a_run(Path::new("/proc"), !self.active.is_empty())
                .map(|pressure| f64::from(pressure.0)),
            incident: false,
            recent_incident: is_recent(self.incident, now),
            paused: false,
            images: images.collect(),
            filesystems: filesystems.collect(),
        }
    }

    fn start(&mut self, defrag: &Defrag, path: &Path, run: Run) {
        let engine = run.engine;
        if defrag.dry_run {
            if !self.rehearsed.iter().any(|known| known == path) {
                info!(
                    "would defragment {} by {engine}: defrag.dry_run = true",
                    shown(path)
                );
                self.rehearsed.push(path.to_owned());
            }
            return;
        }
        let (image, reference, owner, extents) = {
            let inventory = self.inventory.lock();
            let Some(entry) = inventory.images().find(|entry| entry.sample.path == path) else {
                return;
            };
            let Some(reference) = inventory.reference(entry.sample.id) else {
                return;
            };
            (
                entry.sample.id,
                reference,
                entry.owner.clone(),
                entry.sample.extents,
            )
        };
        let filesystem = reference.key.filesystem.clone();
        let task = Task {
            reference: reference.clone(),
            engines: from_on(engine, &defrag.engines),
            vm: owner.vm().cloned(),
            extents,
            hook_before: defrag.hook_before.clone(),
            hook_after: defrag.hook_after.clone(),
            config: self.config.clone(),
            state: self.state.clone(),
        };
        match Errand::start(task, self.tell_end.clone()) {
            Ok(errand) => {
                info!(
                    "defragmenting {} by {engine}: {extents} extents",
                    shown(path)
                );
                let active = Active {
                    path: path.to_owned(),
                    ends: run.ends,
                };
                let running = Running {
                    image,
                    reference,
                    engine,
                    began: Timestamp::now(),
                    active,
                    errand,
                };
                self.active.insert(filesystem, running);
                self.post_runs();
            }
            Err(error) => warn!("{} is not defragmented: {error}", shown(path)),
        }
    }

    /// Puts up what is under way, for whoever asks.
    fn post_runs(&self) {
        let run = |running: &Running| status::Run {
            path: shown(&running.reference.path),
            engine: running.engine,
            began: UnixTime(running.began.as_second()),
            ends: UnixTime(running.active.ends.as_second()),
        };
        self.board
            .post_runs(self.active.values().map(run).collect());
    }

    /// A run has ended.
    fn take_in(&mut self, ended: Ended) {
        let Some(running) = self.active.remove(&ended.filesystem) else {
            return;
        };
        self.post_runs();
        self.planned = None;
        let path = &running.reference.path;
        let row = ended.row(running.reference.clone(), running.errand.stopped());
        let engine = row.engine.as_str();
        metrics::defrag_ended(engine, &row.outcome, row.from, row.to);
        if row.outcome == "improved" {
            info!(
                "{}: {} → {} extents by {engine} in {:.1} s{}",
                shown(path),
                row.from,
                row.to,
                row.took.as_secs_f64(),
                match row.reason.as_str() {
                    "" => String::new(),
                    reason => format!(" ({reason})"),
                }
            );
            self.inventory.lock().defragmented(running.image);
        } else {
            warn!("{}: {engine} {}: {}", shown(path), row.outcome, row.reason);
        }
        self.runs.push(known(&row));
        self.teller.run(row);
        metrics::defrag_active(self.active.len());
    }
}

/// Whether the last incident was so short a time ago that the worst images come first.
pub(crate) fn is_recent(incident: Option<UnixTime>, now: Timestamp) -> bool {
    let now = UnixTime(now.as_second());
    incident.is_some_and(|at| now.since(at) < AFTER_INCIDENT)
}

/// The engines of a run: the planner's choice, and those that come after it. What the planner does
/// not see, a loop device for instance, the guards do; then the next one has its turn.
fn from_on(chosen: Engine, configured: &[Engine]) -> Vec<Engine> {
    let others = configured.iter().copied();
    let others = others.skip_while(|engine| *engine != chosen);
    let others = others.filter(|engine| *engine != chosen);
    std::iter::once(chosen).chain(others).collect()
}

/// Runs that the plan has for this window.
fn queue(plan: &Plan) -> usize {
    let runs = |planned: &&crate::maintenance::Planned| {
        matches!(planned.verdict, crate::maintenance::Verdict::Runs(_))
    };
    plan.images.iter().filter(runs).count()
}

/// A row of the history as the planner knows it.
pub(crate) fn known(row: &RunRow) -> KnownRun {
    let seconds = i64::try_from(row.took.as_secs()).unwrap_or(i64::MAX);
    KnownRun {
        key: row.image.key.clone(),
        ended: UnixTime(row.at.0.saturating_add(seconds)),
        took: row.took,
        engine: engine(&row.engine),
        from: row.from,
        copied: row.bytes,
        outcome: row.outcome.clone(),
        reason: row.reason.clone(),
    }
}

/// The engine of that name.
pub(crate) fn engine(name: &str) -> Option<Engine> {
    Engine::ALL
        .into_iter()
        .find(|engine| engine.as_str() == name)
}

/// Nothing is known of a run but that it began.
pub(super) fn interrupted(
    reference: ImageRef,
    at: UnixTime,
    engine: &str,
    from: ExtentCount,
) -> RunRow {
    RunRow {
        image: reference,
        at,
        engine: engine.to_owned(),
        from,
        to: from,
        bytes: Bytes(0),
        took: Duration::ZERO,
        outcome: "interrupted".to_owned(),
        reason: "the daemon was killed while it worked; the image is as before, or defragmented"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_engine_is_one_that_comes_later() {
        let both = [Engine::XfsFsr, Engine::Online];
        assert_eq!(from_on(Engine::XfsFsr, &both), both);
        assert_eq!(from_on(Engine::Online, &both), [Engine::Online]);
        // The configuration may have changed since.
        assert_eq!(from_on(Engine::Online, &[Engine::XfsFsr]), [Engine::Online]);
    }
}
