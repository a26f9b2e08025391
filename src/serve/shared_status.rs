//! The state for answering requests, in memory: a scrape never waits for a disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use super::metrics::{self, Lifetime};
use super::parts::{Part, Parts, State};
use super::snapshot::Snapshot;
use super::status::{self, Status};
use crate::model::UnixTime;
use crate::model::path::shown;
use crate::probe::worker::StallFlag;

/// The last snapshot and what is newer than it.
#[derive(Debug)]
pub struct SharedStatus {
    lifetime: Lifetime,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    /// What [`SharedStatus::update`] has set; the rest is added when it is read.
    status: Status,
    snapshot: Arc<Snapshot>,
    /// The file systems that can hang, by mount point.
    stalls: Vec<(PathBuf, StallFlag)>,
    /// Metrics of the host's memory, as text for Prometheus.
    memory: String,
    sweep_due: Instant,
    parts: Parts,
    /// `None`, which counts as paused, until the file in the state directory is read or a command
    /// is given.
    paused: Option<bool>,
}

impl SharedStatus {
    /// For a daemon started at `started`, whose first sweep must end within `sweep_timeout`.
    pub fn new(lifetime: Lifetime, started: UnixTime, sweep_timeout: Duration) -> Self {
        let daemon = status::Daemon {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started,
            ..status::Daemon::default()
        };
        let now = Now {
            status: Status {
                schema: status::SCHEMA,
                daemon,
                ..Status::default()
            },
            snapshot: Arc::default(),
            stalls: Vec::new(),
            memory: String::new(),
            sweep_due: Instant::now() + sweep_timeout,
            parts: Parts::default(),
            paused: None,
        };
        SharedStatus {
            lifetime,
            now: Mutex::new(now),
        }
    }

    /// Changes what `fragwatch status` prints. The keys that other functions set, and those of the
    /// snapshot, are overwritten when it is read.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock().status);
    }

    /// Replaces the snapshot.
    pub fn set_snapshot(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        // Dropped after the lock is released.
        let _former = std::mem::replace(&mut self.lock().snapshot, snapshot);
    }

    /// Sets the mount points of file systems that can hang, and their flags.
    pub fn set_stalls(&self, stalls: Vec<(PathBuf, StallFlag)>) {
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

    /// The file systems that hang.
    pub fn stalled(&self) -> Vec<status::Stalled> {
        self.lock().stalled()
    }

    /// Whether there is an incident now.
    pub fn incident(&self) -> bool {
        self.lock().status.rescue.incident
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
        self.lock().is_paused()
    }

    /// Pauses or resumes defragmentation by an operator's command.
    pub fn pause(&self, paused: bool) {
        self.lock().paused = Some(paused);
    }

    /// Sets what an earlier daemon recorded. A command that came first stays in force: the file may
    /// have been read before that command changed it.
    pub fn restore_pause(&self, recorded: bool) {
        self.lock().paused.get_or_insert(recorded);
    }

    /// Sets why a new configuration was refused; `None` if it was accepted.
    pub fn config(&self, refused: Option<String>) {
        let daemon = &mut self.lock().status.daemon;
        if refused.is_none() {
            daemon.config_in_force = status::InForce::Configured;
        }
        daemon.config_refused = refused;
    }

    /// Sets why `metrics.listen` is not served; `None` if it is.
    pub fn listening(&self, error: Option<String>) {
        metrics::listening(error.is_none());
        let mut now = self.lock();
        let reason = error.as_ref();
        let reason = reason.map(|error| format!("no metrics are served: {error}"));
        now.parts.set(Part::Http, State::down(reason));
        now.status.daemon.listen_error = error;
    }

    /// The answer to `fragwatch status`.
    pub fn status(&self) -> Status {
        let now = self.lock();
        let snapshot = &now.snapshot;
        Status {
            daemon: status::Daemon {
                swept: snapshot.swept,
                sweep_overdue_seconds: now.overdue().map(|overdue| overdue.as_secs()),
                ..now.status.daemon.clone()
            },
            images: snapshot.images,
            host: snapshot.host.clone(),
            worst: snapshot.worst.clone(),
            stalled: now.stalled(),
            parts: now.parts().status(),
            paused: now.is_paused(),
            ..now.status.clone()
        }
    }

    /// All metrics, as text for Prometheus.
    pub fn metrics(&self) -> Page {
        let mut text = self.lifetime.render();
        let now = self.lock();
        let stalls = now.stalls.iter();
        let stalls = stalls.map(|(mount, flag)| (mount.as_path(), flag.stalled_for().is_some()));
        text.push_str(&metrics::render_stalls(stalls));
        text.push_str(&metrics::render_engines(&now.status.engines));
        text.push_str(&metrics::render_doctor(&now.status.doctor.diagnosis));
        text.push_str(&now.memory);
        text.push_str(&metrics::render_parts(&now.parts(), &now.status.rescue));
        text.push_str(&now.snapshot.text);
        Page {
            head: Some(text),
            snapshot: Arc::clone(&now.snapshot),
            place: 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Every field is replaced as a whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of all metrics, in parts.
#[derive(Debug)]
pub struct Page {
    head: Option<String>,
    snapshot: Arc<Snapshot>,
    place: usize,
}

impl Iterator for Page {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let metrics = &self.snapshot.metrics;
        let part = self.head.take().or_else(|| metrics.chunk(&mut self.place));
        part.map(Bytes::from)
    }
}

impl Now {
    fn is_paused(&self) -> bool {
        self.paused.unwrap_or(true)
    }

    fn stalled(&self) -> Vec<status::Stalled> {
        let stalled = |(mount, flag): &(PathBuf, StallFlag)| {
            Some(status::Stalled {
                mount: shown(mount),
                seconds: flag.stalled_for()?.as_secs(),
            })
        };
        self.stalls.iter().filter_map(stalled).collect()
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

    fn shared() -> SharedStatus {
        SharedStatus::new(Lifetime::detached(), UnixTime(0), Duration::from_secs(3600))
    }

    #[test]
    fn a_command_is_not_undone_by_a_file_that_was_read_before_it() {
        for (command, recorded) in [(true, false), (false, true)] {
            let status = shared();
            status.pause(command);
            status.restore_pause(recorded);
            assert_eq!(status.paused(), command);
        }
    }

    #[test]
    fn what_was_recorded_is_restored() {
        assert!(shared().paused(), "until the file is read");
        for recorded in [true, false] {
            let status = shared();
            status.restore_pause(recorded);
            assert_eq!(status.paused(), recorded);
        }
    }

    /// The planner compares the mount points of the status with those of file systems as shown.
    #[test]
    fn a_mount_point_is_as_shown_in_the_status_and_distinct_in_a_label() {
        let status = shared();
        let mounts = ["/srv/a\nb", "/srv/a\\x0ab"].map(PathBuf::from);
        let stalls = mounts.map(|mount| (mount, StallFlag::hanging()));
        status.set_stalls(stalls.into());
        for stalled in status.stalled() {
            assert_eq!(stalled.mount, "/srv/a\\x0ab");
        }
        let text = status.metrics().collect::<Vec<_>>().concat();
        let text = String::from_utf8(text).unwrap();
        let series = text
            .lines()
            .filter(|line| line.starts_with("fragwatch_probe_stalled{"));
        assert_eq!((status.stalled().len(), series.count()), (2, 2), "{text}");
    }

    #[test]
    fn a_sweep_that_does_not_end_is_seen_everywhere() {
        let hour = Duration::from_secs(3600);
        let status = shared();
        let seen = || {
            let text = status.metrics().collect::<Vec<_>>().concat();
            let text = String::from_utf8(text).unwrap();
            let line = text.lines().find(|line| line.contains("part=\"sampler\""));
            let (line, status) = (line.map(str::to_owned), status.status());
            let is_late = status.daemon.sweep_overdue_seconds.is_some();
            let parts: Vec<_> = status.parts.iter().map(ToString::to_string).collect();
            (line.unwrap(), is_late, parts.join("\n"))
        };
        let line = |value| format!("fragwatch_part_severity{{part=\"sampler\"}} {value}");
        assert_eq!(seen(), (line(0), false, "sampler up".to_owned()));
        status.swept(Duration::ZERO);
        let (severity, is_late, parts) = seen();
        assert_eq!((severity, is_late), (line(1), true));
        let down = "sampler down: its sweep is overdue by ";
        assert!(parts.starts_with(down), "{parts}");
        status.swept(hour);
        assert_eq!(seen(), (line(0), false, "sampler up".to_owned()));
    }
}
