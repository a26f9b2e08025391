//! The metrics, all in one [`table`]. Counts over the daemon's life (errors, durations, reloads) are
//! in the global recorder; the metrics of the current state of [`images`] and of the rest ([`now`])
//! are rendered from that state.

mod images;
mod now;
mod table;
mod text;

use std::time::Duration;

use metrics::{
    Counter, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use images::ImageMetrics;
pub use now::{
    render_doctor, render_engines, render_memory, render_parts, render_stalls, render_sweep,
};

use table::*;
use text::float;

use crate::history::Health;
use crate::model::words::words;
use crate::model::{Engine, ExtentCount, Outcome, RescueStep, Trigger};

/// With buckets in seconds: a count on XFS takes microseconds, a map seconds, and a deadline is
/// ten; from reading a record to writing drop_caches it is tens of microseconds on an idle host.
const HISTOGRAMS: [(Metric, [f64; 8]); 2] = [
    (
        PROBE_DURATION,
        [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0],
    ),
    (
        RESCUE_REACTION,
        [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0],
    ),
];

words! {
    /// The label `method`: what a probe read.
    pub enum Method {
        /// Number of extents.
        Count = "count",
        /// Whole extent map.
        Map = "map",
    }
}

words! {
    /// The label `request`: what is asked of another host.
    pub enum FleetRequest {
        /// To take the lock of the group.
        Lock = "lock" => "maintenance.lock",
        /// To give it back.
        Unlock = "unlock" => "maintenance.lock is not given back",
        /// Whether runs are held.
        Hold = "hold" => "maintenance.hold",
    }
}

/// The counts over the daemon's life.
#[derive(Debug, Clone)]
pub struct Lifetime(PrometheusHandle);

impl Lifetime {
    /// The interval for [`upkeep`](Lifetime::upkeep).
    pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

    /// Installs the global recorder; once per process.
    pub fn install() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (metric, buckets) in &HISTOGRAMS {
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(matcher, buckets)?;
        }
        let handle = builder.install_recorder()?;
        for Metric { kind, name, help } in ALL {
            match *kind {
                "counter" => describe_counter!(*name, *help),
                "gauge" => describe_gauge!(*name, *help),
                _ => describe_histogram!(*name, *help),
            }
        }
        gauge!(BUILD_INFO.name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        gauge!(KERNEL_INFO.name, "release" => release).set(1.0);
        // An absent counter cannot be watched for increase.
        counter!(PROBE_ERRORS.name).absolute(0);
        Ok(Lifetime(handle))
    }

    /// All recorded metrics, as text for Prometheus.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Sorts recorded durations into buckets, so that they do not accumulate in memory.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Records the duration of a probe.
pub fn probed(method: Method, took: Duration) {
    histogram!(PROBE_DURATION.name, "method" => method.as_str()).record(took);
}

/// Counts a failed probe.
pub fn probe_failed() {
    counter!(PROBE_ERRORS.name).increment(1);
}

/// Records that the configuration was read; `now` in seconds since 1970.
pub fn config_read(now: f64) {
    gauge!(RELOAD_SUCCESS.name).set(1.0);
    gauge!(RELOAD_TIMESTAMP.name).set(now);
}

/// Records that a new configuration was refused.
pub fn config_refused() {
    gauge!(RELOAD_SUCCESS.name).set(0.0);
}

/// Records whether metrics.listen is served.
pub fn listening(listening: bool) {
    gauge!(LISTENING.name).set(f64::from(listening));
}

/// Creates absent metrics of the rescue, with all `rules`, at 0, so that each increase is seen.
pub fn rescue_begins(rules: &[String]) {
    for rule in rules {
        counter!(KLOG_MATCHES.name, "rule" => rule.clone()).absolute(0);
    }
    for trigger in [Trigger::KernelLog, Trigger::Stall, Trigger::File] {
        counter!(RESCUE_INCIDENTS.name, "trigger" => trigger.as_str()).absolute(0);
    }
    for step in RescueStep::ALL {
        for outcome in Outcome::ALL {
            counter!(RESCUE_ACTIONS.name, "step" => step.as_str(), "outcome" => outcome.as_str())
                .absolute(0);
        }
    }
    gauge!(RESCUE_ACTIVE.name).increment(0.0);
}

/// Sets the records read from the kernel log so far, those lost, and the lost news of the rescue.
pub fn klog_read(records: u64, lost: u64, news_lost: u64) {
    counter!(KLOG_RECORDS.name).absolute(records);
    counter!(KLOG_LOST.name).absolute(lost);
    counter!(RESCUE_NEWS_LOST.name).absolute(news_lost);
}

/// Counts a record that matched this rule and was logged that many times.
pub fn klog_matched(rule: &str, times: u32) {
    counter!(KLOG_MATCHES.name, "rule" => rule.to_owned()).increment(times.into());
}

/// The counters of the lines of a log file.
pub struct LineCounters {
    /// Lines of the kernel.
    pub kernel: Counter,
    /// Lines of the kernel that matched a rule, from long ago.
    pub old: Counter,
    /// Lines of other programs.
    pub other: Counter,
    /// Lines of no known form.
    pub unknown: Counter,
}

impl LineCounters {
    /// Those of the file with that path.
    pub fn new(source: &str) -> LineCounters {
        let counter =
            |kind| counter!(KLOG_LINES.name, "source" => source.to_owned(), "kind" => kind);
        LineCounters {
            kernel: counter("kernel"),
            old: counter("old"),
            other: counter("other"),
            unknown: counter("unknown"),
        }
    }
}

/// Records a finished action of the rescue, and how long after its reason it began.
pub fn rescue_acted(step: RescueStep, outcome: Outcome, reaction: Duration) {
    counter!(RESCUE_ACTIONS.name, "step" => step.as_str(), "outcome" => outcome.as_str())
        .increment(1);
    histogram!(RESCUE_REACTION.name).record(reaction);
}

/// Counts an incident that began.
pub fn incident_began(trigger: Trigger) {
    counter!(RESCUE_INCIDENTS.name, "trigger" => trigger.as_str()).increment(1);
    gauge!(RESCUE_ACTIVE.name).set(1.0);
}

/// Records the end of the incident.
pub fn incident_ended() {
    gauge!(RESCUE_ACTIVE.name).set(0.0);
}

/// Sets the incident files written and failed, and the data lost to full queues.
pub fn incident_files(written: u64, failed: u64, lost: u64) {
    for (outcome, number) in [("written", written), ("failed", failed), ("lost", lost)] {
        counter!(INCIDENT_FILES.name, "outcome" => outcome).absolute(number);
    }
}

/// Creates the metrics of defragmentation at 0: an absent counter cannot be watched for increase.
pub fn defrag_begins() {
    for engine in Engine::ALL {
        for outcome in ["improved", "failed"] {
            counter!(DEFRAG_RUNS.name, "engine" => engine.as_str(), "outcome" => outcome)
                .absolute(0);
        }
    }
    for request in FleetRequest::ALL {
        for outcome in ["granted", "refused", "failed"] {
            counter!(FLEET_REQUESTS.name, "request" => request.as_str(), "outcome" => outcome)
                .absolute(0);
        }
    }
    counter!(DEFRAG_EXTENTS_REMOVED.name).absolute(0);
    defrag_active(0);
    defrag_queue(0);
}

/// Sets the number of current runs.
pub fn defrag_active(runs: usize) {
    gauge!(DEFRAG_ACTIVE.name).set(float(runs as u64));
}

/// Sets the number of runs still to come in this window.
pub fn defrag_queue(runs: usize) {
    gauge!(DEFRAG_QUEUE.name).set(float(runs as u64));
}

/// Counts a finished run.
pub fn defrag_ended(engine: &str, outcome: &str, from: ExtentCount, to: ExtentCount) {
    let labels = [
        ("engine", engine.to_owned()),
        ("outcome", outcome.to_owned()),
    ];
    counter!(DEFRAG_RUNS.name, &labels).increment(1);
    counter!(DEFRAG_EXTENTS_REMOVED.name).increment(from.0.saturating_sub(to.0));
}

/// Counts an answer to such a request: `granted`, `refused` or `failed`.
pub fn fleet_request(request: FleetRequest, outcome: &'static str) {
    counter!(FLEET_REQUESTS.name, "request" => request.as_str(), "outcome" => outcome).increment(1);
}

/// Sets whether a window is open, and when the next one opens, in seconds since 1970.
pub fn maintenance(open: bool, next: Option<i64>) {
    gauge!(WINDOW_OPEN.name).set(f64::from(open));
    if let Some(next) = next.and_then(|next| u64::try_from(next).ok()) {
        gauge!(NEXT_WINDOW.name).set(float(next));
    }
}

/// Sets the state of the history.
pub fn history(health: &Health) {
    counter!(HISTORY_WRITTEN.name).absolute(health.written);
    counter!(HISTORY_LOST.name).absolute(health.lost);
    counter!(HISTORY_MOVED_ASIDE.name).absolute(health.moved_aside);
    gauge!(HISTORY_UP.name).set(f64::from(health.healthy));
}

#[cfg(test)]
impl Lifetime {
    /// A recorder that receives nothing.
    pub(crate) fn detached() -> Lifetime {
        Lifetime(PrometheusBuilder::new().build_recorder().handle())
    }
}
