//! The state for answering requests, in memory: a scrape never waits for a disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use super::metrics::{self, Lifetime};
use super::parts::{Part, Parts, State};
use super::snapshot::Snapshot;
use super::status::{self, Status};
use crate::model::UnixTime;
use crate::probe::worker::StallFlag;

/// The last snapshot and what is newer than it.
#[derive(Debug)]
pub struct SharedStatus {
    lifetime: Lifetime,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    started: UnixTime,
    snapshot: Arc<Snapshot>,
    stalls: Vec<(String, StallFlag)>,
    /// Metrics of the host's memory, as text for Prometheus.
    memory: String,
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

/// Whether defragmentation is paused. `None`, which counts as paused, until the file in the state
/// directory is read or a command is given.
#[derive(Debug, Default)]
struct Pause(Option<bool>);

impl Pause {
    fn is_on(&self) -> bool {
        self.0.unwrap_or(true)
    }

    /// Keeps a command that came first: the file may have been read before that command changed it.
    fn restore(&mut self, recorded: bool) {
        self.0.get_or_insert(recorded);
    }
}

impl SharedStatus {
    /// For a daemon started at `started`, whose first sweep must end within `sweep_timeout`.
    pub fn new(lifetime: Lifetime, started: UnixTime, sweep_timeout: Duration) -> Self {
        let now = Now {
            started,
            snapshot: Arc::default(),
            stalls: Vec::new(),
            memory: String::new(),
            sweep_due: Instant::now() + sweep_timeout,
            rescue: status::Rescue::default(),
            parts: Parts::default(),
            config_refused: None,
            config_in_force: status::InForce::Configured,
            listen_error: None,
            pause: Pause::default(),
            runs: Vec::new(),
            engines: Vec::new(),
        };
        SharedStatus {
            lifetime,
            now: Mutex::new(now),
        }
    }

    /// Replaces the snapshot.
    pub fn set_snapshot(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        // Dropped after the lock is released.
        let _former = std::mem::replace(&mut self.lock().snapshot, snapshot);
    }

    /// Sets the mount points of file systems that can hang, and their flags.
    pub fn set_stalls(&self, stalls: Vec<(String, StallFlag)>) {
        self.lock().stalls = stalls;
    }

    /// Sets the metrics of the host's memory.
    pub fn post_memory(&self, text: String) {
        self.lock().memory = text;
    }

    /// Records that a sweep has ended; the next one must end within `timeout`.
    pub fn swept(&self, timeout: Duration) {
        self.lock().sweep_due = Instant::now() + timeout;
    }

    /// The snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().snapshot)
    }

    /// Mount points whose file systems hang, and for how long.
    pub fn stalled(&self) -> Vec<(String, Duration)> {
        self.lock().stalled().collect()
    }

    /// How long a sweep is overdue; `None` if none is.
    pub fn overdue(&self) -> Option<Duration> {
        self.lock().overdue()
    }

    /// Changes the state of the rescue.
    pub fn update_rescue(&self, change: impl FnOnce(&mut status::Rescue)) {
        change(&mut self.lock().rescue);
    }

    /// The state of the rescue.
    pub fn rescue(&self) -> status::Rescue {
        self.lock().rescue.clone()
    }

    /// Sets the state of a part.
    pub fn set_part(&self, part: Part, state: State) {
        self.lock().parts.set(part, state);
    }

    /// Keeps only the parts for which this holds.
    pub fn retain_parts(&self, keep: impl Fn(&Part) -> bool) {
        self.lock().parts.retain(keep);
    }

    /// Whether the operator has paused defragmentation.
    pub fn paused(&self) -> bool {
        self.lock().pause.is_on()
    }

    /// Pauses or resumes defragmentation by an operator's command.
    pub fn pause(&self, paused: bool) {
        self.lock().pause = Pause(Some(paused));
    }

    /// Sets what an earlier daemon recorded, unless there was a command since.
    pub fn restore_pause(&self, recorded: bool) {
        self.lock().pause.restore(recorded);
    }

    /// Sets the current defragmentations.
    pub fn post_runs(&self, runs: Vec<status::Run>) {
        self.lock().runs = runs;
    }

    /// Sets which engines can be used.
    pub fn post_engines(&self, engines: Vec<status::EngineState>) {
        self.lock().engines = engines;
    }

    /// Sets why a new configuration was refused; `None` if it was accepted.
    pub fn config(&self, refused: Option<String>) {
        let mut now = self.lock();
        if refused.is_none() {
            now.config_in_force = status::InForce::Configured;
        }
        now.config_refused = refused;
    }

    /// Sets the settings' origin at the start, and the error in the configuration.
    pub fn config_at_start(&self, in_force: status::InForce, error: Option<String>) {
        let mut now = self.lock();
        (now.config_in_force, now.config_refused) = (in_force, error);
    }

    /// Sets why `metrics.listen` is not served; `None` if it is.
    pub fn listening(&self, error: Option<String>) {
        metrics::listening(error.is_none());
        let mut now = self.lock();
        let reason = error.as_ref();
        let reason = reason.map(|error| format!("no metrics are served: {error}"));
        now.parts.set(Part::Http, State::down(reason));
        now.listen_error = error;
    }

    /// The answer to `fragwatch status`.
    pub fn status(&self) -> Status {
        let now = self.lock();
        let stalled = now.stalled().map(|(mount, since)| status::Stalled {
            mount,
            seconds: since.as_secs(),
        });
        Status {
            schema: status::SCHEMA,
            daemon: status::Daemon {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started: now.started,
                swept: now.snapshot.swept,
                sweep_overdue_seconds: now.overdue().map(|overdue| overdue.as_secs()),
                config_refused: now.config_refused.clone(),
                config_in_force: now.config_in_force,
                listen_error: now.listen_error.clone(),
            },
            images: now.snapshot.images,
            host: now.snapshot.host.clone(),
            worst: now.snapshot.worst.clone(),
            stalled: stalled.collect(),
            rescue: now.rescue.clone(),
            parts: now.parts().status(),
            paused: now.pause.is_on(),
            runs: now.runs.clone(),
            engines: now.engines.clone(),
        }
    }

    /// All metrics, as text for Prometheus in two parts. The second, by far the larger, is shared.
    pub fn metrics(&self) -> [Bytes; 2] {
        let mut text = self.lifetime.render();
        let now = self.lock();
        let stalls = now.stalls.iter();
        let stalls = stalls.map(|(mount, flag)| (mount.as_str(), flag.stalled_for().is_some()));
        text.push_str(&metrics::render_stalls(stalls));
        text.push_str(&metrics::render_engines(&now.engines));
        text.push_str(&now.memory);
        text.push_str(&metrics::render_parts(&now.parts(), &now.rescue));
        [text.into(), now.snapshot.text.clone()]
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Every field is replaced as a whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    fn stalled(&self) -> impl Iterator<Item = (String, Duration)> {
        let stalls = self.stalls.iter();
        stalls.filter_map(|(mount, flag)| Some((mount.clone(), flag.stalled_for()?)))
    }

    fn overdue(&self) -> Option<Duration> {
        Instant::now().checked_duration_since(self.sweep_due)
    }

    /// All parts. The sampler is down while a sweep is overdue.
    fn parts(&self) -> Parts {
        let reason = |late: Duration| format!("its sweep is overdue by {} s", late.as_secs());
        let mut parts = self.parts.clone();
        parts.set(Part::Sampler, State::down(self.overdue().map(reason)));
        parts
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

    #[test]
    fn a_sweep_that_does_not_end_is_seen_everywhere() {
        let hour = Duration::from_secs(3600);
        let status = SharedStatus::new(Lifetime::detached(), UnixTime(0), hour);
        let seen = || {
            let [text, _] = status.metrics();
            let text = String::from_utf8(text.to_vec()).unwrap();
            let line = text.lines().find(|line| line.contains("part=\"sampler\""));
            let (line, status) = (line.map(str::to_owned), status.status());
            let is_late = status.daemon.sweep_overdue_seconds.is_some();
            let parts: Vec<_> = status.parts.iter().map(ToString::to_string).collect();
            (line.unwrap(), is_late, parts.join("\n"))
        };
        let line = |value| format!("fragwatch_part_severity{{part=\"sampler\"}} {value}");
        assert_eq!(seen(), (line(0), false, "sampler up".to_owned()));
        status.swept(Duration::ZERO);
        let down = "sampler down: its sweep is overdue by 0 s".to_owned();
        assert_eq!(seen(), (line(1), true, down));
        status.swept(hour);
        assert_eq!(seen(), (line(0), false, "sampler up".to_owned()));
    }
}
