//! The one shared snapshot that everybody who asks is answered from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::{self, Lifetime};
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
    config_refused: Option<String>,
    paused: bool,
    runs: Vec<status::Run>,
    engines: Vec<status::EngineState>,
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
            config_refused: None,
            paused: false,
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

    /// Whether the operator has paused defragmentation.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.lock().paused
    }

    /// Pauses defragmentation, or lets it go on.
    pub fn pause(&self, paused: bool) {
        self.lock().paused = paused;
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
        self.lock().config_refused = refused;
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
            },
            images: now.snapshot.images,
            host: now.snapshot.host.clone(),
            worst: now.snapshot.worst.clone(),
            stalled: stalled.collect(),
            rescue: now.rescue.clone(),
            paused: now.paused,
            runs: now.runs.clone(),
            engines: now.engines.clone(),
        }
    }

    /// All metrics, as text for Prometheus.
    #[must_use]
    pub fn metrics(&self) -> String {
        let (snapshot, stalls, memory, engines) = {
            let now = self.lock();
            let flag =
                |(mount, flag): &(String, StallFlag)| (mount.clone(), flag.stalled_for().is_some());
            let stalls: Vec<_> = now.stalls.iter().map(flag).collect();
            let engines = now.engines.clone();
            (
                Arc::clone(&now.snapshot),
                stalls,
                now.memory.clone(),
                engines,
            )
        };
        let mut text = self.lifetime.render();
        text.reserve(snapshot.text.len());
        text.push_str(&snapshot.text);
        text.push_str(&metrics::render_stalls(&stalls));
        text.push_str(&metrics::render_engines(&engines));
        text.push_str(&memory);
        text
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Every field is replaced as a whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
