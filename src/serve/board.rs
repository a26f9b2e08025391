//! The one shared snapshot that everybody who asks is answered from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::{self, Lifetime};
use super::parts::{Part, Parts, State};
use super::status::{self, Status};
use crate::model::UnixTime;
use crate::probe::worker::StallFlag;

/// What is known at the end of a sweep. Made once, read by many.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Metrics of images and file systems, as text for Prometheus.
    pub text: String,
    /// All images together.
    pub images: status::Images,
    /// The worst images: those with the worst severity, and of these the most fragmented, first.
    pub worst: Vec<status::Row>,
    /// All extent maps together.
    pub host: status::Host,
    /// The names of the VMs that have images open, by the paths of the images as they are shown.
    pub vms: BTreeMap<String, String>,
    /// When the sweep ended.
    pub swept: Option<UnixTime>,
}

/// Holds the snapshot and what is newer than it.
#[derive(Debug)]
pub struct Board {
    lifetime: Lifetime,
    started: UnixTime,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    snapshot: Arc<Snapshot>,
    stalls: Vec<(String, StallFlag)>,
    /// Metrics of the host's memory, as text for Prometheus.
    memory: String,
    /// When the next sweep must have ended, at the latest.
    sweep_due: Instant,
    rescue: status::Rescue,
    parts: Parts,
    config_refused: Option<String>,
    config_in_force: status::InForce,
    listen_error: Option<String>,
    pause: Pause,
    runs: Vec<status::Run>,
    engines: Vec<status::EngineState>,
}

/// Whether defragmentation is paused. None until the file of the state directory is read or the
/// operator commands something: paused until then.
#[derive(Debug, Default)]
struct Pause(Option<bool>);

impl Pause {
    fn is_on(&self) -> bool {
        self.0.unwrap_or(true)
    }

    /// Sets what an earlier daemon recorded. A command that came first is kept: the file may have
    /// been read before that command changed it.
    fn restore(&mut self, recorded: bool) {
        self.0.get_or_insert(recorded);
    }
}

impl Board {
    /// An empty board of a daemon that was started at `started`. The first sweep must end within
    /// `patience`.
    #[must_use]
    pub fn new(lifetime: Lifetime, started: UnixTime, patience: Duration) -> Self {
        let now = Now {
            snapshot: Arc::default(),
            stalls: Vec::new(),
            memory: String::new(),
            sweep_due: Instant::now() + patience,
            rescue: status::Rescue::default(),
            parts: Parts::default(),
            config_refused: None,
            config_in_force: status::InForce::Configured,
            listen_error: None,
            pause: Pause::default(),
            runs: Vec::new(),
            engines: Vec::new(),
        };
        Board {
            lifetime,
            started,
            now: Mutex::new(now),
        }
    }

    /// Puts up a new snapshot.
    pub fn post(&self, snapshot: Snapshot) {
        self.lock().snapshot = Arc::new(snapshot);
    }

    /// Puts up whose file systems can hang: mount points and their flags.
    pub fn watch_stalls(&self, stalls: Vec<(String, StallFlag)>) {
        self.lock().stalls = stalls;
    }

    /// Puts up the metrics of the host's memory.
    pub fn post_memory(&self, text: String) {
        self.lock().memory = text;
    }

    /// Notes that a sweep has ended; the next one must within `patience`.
    pub fn swept(&self, patience: Duration) {
        self.lock().sweep_due = Instant::now() + patience;
    }

    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().snapshot)
    }

    /// Mount points whose file systems hang, and for how long.
    #[must_use]
    pub fn stalled(&self) -> Vec<(String, Duration)> {
        let now = self.lock();
        let stalled =
            |(mount, flag): &(String, StallFlag)| Some((mount.clone(), flag.stalled_for()?));
        now.stalls.iter().filter_map(stalled).collect()
    }

    /// For how long a sweep is overdue; nothing while all is well.
    #[must_use]
    pub fn overdue(&self) -> Option<Duration> {
        Instant::now().checked_duration_since(self.lock().sweep_due)
    }

    /// Changes what is told of the rescue.
    pub fn update_rescue(&self, change: impl FnOnce(&mut status::Rescue)) {
        change(&mut self.lock().rescue);
    }

    /// What is told of the rescue.
    #[must_use]
    pub fn rescue(&self) -> status::Rescue {
        self.lock().rescue.clone()
    }

    /// Puts up how a part does.
    pub fn set_part(&self, part: Part, state: State) {
        self.lock().parts.set(part, state);
    }

    /// Leaves only those parts that there still are.
    pub fn retain_parts(&self, keep: impl Fn(&Part) -> bool) {
        self.lock().parts.retain(keep);
    }

    /// Whether the operator has paused defragmentation.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.lock().pause.is_on()
    }

    /// Pauses or resumes defragmentation, as the operator commands.
    pub fn pause(&self, paused: bool) {
        self.lock().pause = Pause(Some(paused));
    }

    /// Sets what an earlier daemon recorded, unless the operator has commanded something since.
    pub fn restore_pause(&self, recorded: bool) {
        self.lock().pause.restore(recorded);
    }

    /// Puts up the defragmentations that are under way.
    pub fn post_runs(&self, runs: Vec<status::Run>) {
        self.lock().runs = runs;
    }

    /// Puts up which engines can be used.
    pub fn post_engines(&self, engines: Vec<status::EngineState>) {
        self.lock().engines = engines;
    }

    /// Puts up why a new configuration was refused; nothing when it was taken.
    pub fn config(&self, refused: Option<String>) {
        let mut now = self.lock();
        if refused.is_none() {
            now.config_in_force = status::InForce::Configured;
        }
        now.config_refused = refused;
    }

    /// Puts up what the daemon was started with, and what is wrong with the configuration.
    pub fn config_at_start(&self, in_force: status::InForce, error: Option<String>) {
        let mut now = self.lock();
        (now.config_in_force, now.config_refused) = (in_force, error);
    }

    /// Puts up why nothing listens at `metrics.listen`; nothing when something does.
    pub fn listening(&self, error: Option<String>) {
        self.lock().listen_error = error;
    }

    /// What `fragwatch status` is told.
    #[must_use]
    pub fn status(&self) -> Status {
        let (stalled, overdue) = (self.stalled(), self.overdue());
        let now = self.lock();
        let stalled = stalled.into_iter().map(|(mount, since)| status::Stalled {
            mount,
            seconds: since.as_secs(),
        });
        Status {
            schema: status::SCHEMA,
            daemon: status::Daemon {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started: self.started,
                swept: now.snapshot.swept,
                sweep_overdue_seconds: overdue.map(|overdue| overdue.as_secs()),
                config_refused: now.config_refused.clone(),
                config_in_force: now.config_in_force,
                listen_error: now.listen_error.clone(),
            },
            images: now.snapshot.images,
            host: now.snapshot.host.clone(),
            worst: now.snapshot.worst.clone(),
            stalled: stalled.collect(),
            rescue: now.rescue.clone(),
            parts: now.parts.status(),
            paused: now.pause.is_on(),
            runs: now.runs.clone(),
            engines: now.engines.clone(),
        }
    }

    /// All metrics, as text for Prometheus.
    #[must_use]
    pub fn metrics(&self) -> String {
        let (snapshot, stalls, memory, engines, parts, rescue) = {
            let now = self.lock();
            let flag =
                |(mount, flag): &(String, StallFlag)| (mount.clone(), flag.stalled_for().is_some());
            let stalls: Vec<_> = now.stalls.iter().map(flag).collect();
            (
                Arc::clone(&now.snapshot),
                stalls,
                now.memory.clone(),
                now.engines.clone(),
                now.parts.clone(),
                now.rescue.clone(),
            )
        };
        let mut text = self.lifetime.render();
        text.reserve(snapshot.text.len());
        text.push_str(&snapshot.text);
        text.push_str(&metrics::render_stalls(&stalls));
        text.push_str(&metrics::render_engines(&engines));
        text.push_str(&memory);
        text.push_str(&metrics::render_parts(&parts, &rescue));
        text
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Every field is replaced as a whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_not_undone_by_a_file_that_was_read_before_it() {
        for (command, recorded) in [(true, false), (false, true)] {
            let mut pause = Pause(Some(command));
            pause.restore(recorded);
            assert_eq!(pause.is_on(), command);
        }
    }

    #[test]
    fn what_was_recorded_is_restored() {
        assert!(Pause::default().is_on(), "until the file is read");
        for recorded in [true, false] {
            let mut pause = Pause::default();
            pause.restore(recorded);
            assert_eq!(pause.is_on(), recorded);
        }
    }
}
