//! Every metric by name, in this file and in [`now`].
//!
//! Two kinds. What the daemon counts over its life (errors, durations, reloads) lies in the global
//! recorder. What is true of an image or a file system *now* is rendered from the state.

mod now;
mod text;

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use now::{render_engines, render_memory, render_parts, render_stalls, render_sweep};

use crate::history::Health;
use crate::model::{Engine, ExtentCount, Outcome, RescueStep, Trigger};

const PROBE_DURATION: &str = "fragwatch_probe_duration_seconds";
const PROBE_ERRORS: &str = "fragwatch_probe_errors_total";
const RELOAD_SUCCESS: &str = "fragwatch_config_reload_success";
const RELOAD_TIMESTAMP: &str = "fragwatch_config_reload_timestamp_seconds";
const LISTENING: &str = "fragwatch_metrics_listening";
const BUILD_INFO: &str = "fragwatch_build_info";
const KLOG_RECORDS: &str = "fragwatch_klog_records_total";
const KLOG_LOST: &str = "fragwatch_klog_lost_total";
const KLOG_MATCHES: &str = "fragwatch_klog_matches_total";
const RESCUE_ACTIONS: &str = "fragwatch_rescue_actions_total";
const RESCUE_INCIDENTS: &str = "fragwatch_rescue_incidents_total";
const RESCUE_ACTIVE: &str = "fragwatch_rescue_active";
const RESCUE_REACTION: &str = "fragwatch_rescue_reaction_seconds";
const INCIDENT_FILES: &str = "fragwatch_rescue_incident_files_total";
const RESCUE_NEWS_LOST: &str = "fragwatch_rescue_news_lost_total";
const DEFRAG_RUNS: &str = "fragwatch_defrag_runs_total";
const DEFRAG_EXTENTS_REMOVED: &str = "fragwatch_defrag_extents_removed_total";
const DEFRAG_ACTIVE: &str = "fragwatch_defrag_active";
const DEFRAG_QUEUE: &str = "fragwatch_defrag_queue";
const WINDOW_OPEN: &str = "fragwatch_maintenance_window_open";
const NEXT_WINDOW: &str = "fragwatch_maintenance_next_window_timestamp_seconds";
const HISTORY_WRITTEN: &str = "fragwatch_history_records_total";
const HISTORY_LOST: &str = "fragwatch_history_lost_total";
const HISTORY_MOVED_ASIDE: &str = "fragwatch_history_moved_aside_total";
const HISTORY_UP: &str = "fragwatch_history_up";

const COUNTERS: [(&str, &str); 13] = [
    (
        PROBE_ERRORS,
        "Probes that failed, and file systems that did not answer.",
    ),
    (KLOG_RECORDS, "Records read from the kernel's log."),
    (KLOG_LOST, "Records overwritten before they were read."),
    (KLOG_MATCHES, "Records that matched a rule."),
    (
        RESCUE_ACTIONS,
        "Actions of the rescue, by step and outcome.",
    ),
    (RESCUE_INCIDENTS, "Incidents, by what they began with."),
    (INCIDENT_FILES, "Writes of incident files, by outcome."),
    (
        RESCUE_NEWS_LOST,
        "News of the rescue that were overwritten before they were read; the actions were done.",
    ),
    (DEFRAG_RUNS, "Defragmentations by engine and outcome."),
    (
        DEFRAG_EXTENTS_REMOVED,
        "Extents that defragmentations have taken away.",
    ),
    (HISTORY_WRITTEN, "Records written to the history."),
    (
        HISTORY_LOST,
        "Records that the history lost, because its disk hangs, is full or fails.",
    ),
    (
        HISTORY_MOVED_ASIDE,
        "Damaged databases that were moved aside; a new one was begun.",
    ),
];

const GAUGES: [(&str, &str); 10] = [
    (
        RELOAD_SUCCESS,
        "Whether the last reading of the configuration succeeded (1) or the former one stays in force (0).",
    ),
    (
        RELOAD_TIMESTAMP,
        "When the configuration in force was read.",
    ),
    (
        LISTENING,
        "Whether metrics.listen is served; 0 is seen in the textfile only.",
    ),
    (BUILD_INFO, "Version of fragwatch; always 1."),
    (RESCUE_ACTIVE, "Whether there is an incident now."),
    (DEFRAG_ACTIVE, "Defragmentations under way."),
    (
        DEFRAG_QUEUE,
        "Images that are to be defragmented in the window that is open.",
    ),
    (WINDOW_OPEN, "Whether a maintenance window is open (1)."),
    (
        NEXT_WINDOW,
        "When the next maintenance window opens; absent if there is none.",
    ),
    (
        HISTORY_UP,
        "Whether the history's database is open and was last written without trouble.",
    ),
];

/// Name, help, and buckets in seconds: a count on XFS takes microseconds, a map seconds, and a
/// deadline is ten; from reading a record to writing drop_caches it is tens of microseconds at rest.
const HISTOGRAMS: [(&str, &str, [f64; 8]); 2] = [
    (
        PROBE_DURATION,
        "Time that one probe of one image took.",
        [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0],
    ),
    (
        RESCUE_REACTION,
        "Time from reading the reason for an action to its begin.",
        [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0],
    ),
];

/// What a probe was about (label `method`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Number of extents.
    Count,
    /// Whole extent map.
    Map,
}

impl Method {
    fn label(self) -> &'static str {
        match self {
            Method::Count => "count",
            Method::Map => "map",
        }
    }
}

/// What the daemon counts over its life.
#[derive(Debug, Clone)]
pub struct Lifetime(PrometheusHandle);

impl Lifetime {
    /// How often [`upkeep`](Lifetime::upkeep) is due.
    pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

    /// Installs the global recorder; once a process.
    ///
    /// # Errors
    /// When there is one already.
    pub fn install() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (name, _, buckets) in &HISTOGRAMS {
            let matcher = Matcher::Full((*name).to_owned());
            builder = builder.set_buckets_for_metric(matcher, buckets)?;
        }
        let handle = builder.install_recorder()?;
        for (name, help, _) in HISTOGRAMS {
            describe_histogram!(name, help);
        }
        for (name, help) in COUNTERS {
            describe_counter!(name, help);
        }
        for (name, help) in GAUGES {
            describe_gauge!(name, help);
        }
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        // A counter that is not there until something goes wrong cannot be watched for increase.
        counter!(PROBE_ERRORS).absolute(0);
        Ok(Lifetime(handle))
    }

    /// One that nothing is recorded in.
    #[cfg(test)]
    pub(crate) fn detached() -> Lifetime {
        Lifetime(PrometheusBuilder::new().build_recorder().handle())
    }

    /// Everything so far, as text for Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Sorts measured durations into buckets; without it they would pile up in memory.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Notes how long a probe took.
pub fn probed(method: Method, took: Duration) {
    histogram!(PROBE_DURATION, "method" => method.label()).record(took);
}

/// Counts a probe that failed.
pub fn probe_failed() {
    counter!(PROBE_ERRORS).increment(1);
}

/// Notes that the configuration was read; `now` in seconds since 1970.
pub fn config_read(now: f64) {
    gauge!(RELOAD_SUCCESS).set(1.0);
    gauge!(RELOAD_TIMESTAMP).set(now);
}

/// Notes that a new configuration was refused.
pub fn config_refused() {
    gauge!(RELOAD_SUCCESS).set(0.0);
}

/// Notes whether metrics.listen is served.
pub fn listening(listening: bool) {
    gauge!(LISTENING).set(f64::from(listening));
}

/// Begins the metrics of the rescue at 0 that are not there yet, so that each increase is seen.
/// `rules` are the names of all rules.
pub fn rescue_begins(rules: &[String]) {
    for rule in rules {
        counter!(KLOG_MATCHES, "rule" => rule.clone()).absolute(0);
    }
    for trigger in [Trigger::KernelLog, Trigger::Stall, Trigger::File] {
        counter!(RESCUE_INCIDENTS, "trigger" => trigger.as_str()).absolute(0);
    }
    for step in RescueStep::ALL {
        for outcome in Outcome::ALL {
            counter!(RESCUE_ACTIONS, "step" => step.as_str(), "outcome" => outcome.as_str())
                .absolute(0);
        }
    }
    gauge!(RESCUE_ACTIVE).increment(0.0);
}

/// Records read from the kernel's log so far, and lost.
pub fn klog_read(records: u64, lost: u64) {
    counter!(KLOG_RECORDS).absolute(records);
    counter!(KLOG_LOST).absolute(lost);
}

/// A record matched the rule of that name.
pub fn klog_matched(rule: &str) {
    counter!(KLOG_MATCHES, "rule" => rule.to_owned()).increment(1);
}

/// An action of the rescue came to its end, and how long after its reason it began.
pub fn rescue_acted(step: RescueStep, outcome: Outcome, reaction: Duration) {
    counter!(RESCUE_ACTIONS, "step" => step.as_str(), "outcome" => outcome.as_str()).increment(1);
    histogram!(RESCUE_REACTION).record(reaction);
}

/// An incident began.
pub fn incident_began(trigger: Trigger) {
    counter!(RESCUE_INCIDENTS, "trigger" => trigger.as_str()).increment(1);
    gauge!(RESCUE_ACTIVE).set(1.0);
}

/// The incident is over.
pub fn incident_ended() {
    gauge!(RESCUE_ACTIVE).set(0.0);
}

/// Incident files that were written and that failed, and what was lost because too much waited.
pub fn incident_files(written: u64, failed: u64, lost: u64) {
    for (outcome, number) in [("written", written), ("failed", failed), ("lost", lost)] {
        counter!(INCIDENT_FILES, "outcome" => outcome).absolute(number);
    }
}

/// News of the rescue that were overwritten before they were read.
pub fn rescue_news_lost(lost: u64) {
    counter!(RESCUE_NEWS_LOST).absolute(lost);
}

/// Makes the metrics of defragmentation known before anything is defragmented: a counter that is not
/// there cannot be watched for increase.
pub fn defrag_begins() {
    for engine in Engine::ALL {
        for outcome in ["improved", "failed"] {
            counter!(DEFRAG_RUNS, "engine" => engine.as_str(), "outcome" => outcome).absolute(0);
        }
    }
    counter!(DEFRAG_EXTENTS_REMOVED).absolute(0);
    defrag_active(0);
    defrag_queue(0);
}

/// So many runs are under way.
pub fn defrag_active(runs: usize) {
    gauge!(DEFRAG_ACTIVE).set(float(runs as u64));
}

/// So many runs are to come in this window.
pub fn defrag_queue(runs: usize) {
    gauge!(DEFRAG_QUEUE).set(float(runs as u64));
}

/// A run has ended.
pub fn defrag_ended(engine: &str, outcome: &str, from: ExtentCount, to: ExtentCount) {
    let labels = [
        ("engine", engine.to_owned()),
        ("outcome", outcome.to_owned()),
    ];
    counter!(DEFRAG_RUNS, &labels).increment(1);
    counter!(DEFRAG_EXTENTS_REMOVED).increment(from.0.saturating_sub(to.0));
}

/// Whether a window is open, and when the next one opens, in seconds since 1970.
pub fn maintenance(open: bool, next: Option<i64>) {
    gauge!(WINDOW_OPEN).set(f64::from(open));
    if let Some(next) = next.and_then(|next| u64::try_from(next).ok()) {
        gauge!(NEXT_WINDOW).set(float(next));
    }
}

/// How the history goes.
pub fn history(health: &Health) {
    counter!(HISTORY_WRITTEN).absolute(health.written);
    counter!(HISTORY_LOST).absolute(health.lost);
    counter!(HISTORY_MOVED_ASIDE).absolute(health.moved_aside);
    gauge!(HISTORY_UP).set(f64::from(health.healthy));
}

/// Numbers above 2^53 lose their last digits in Prometheus, whose values are floating-point.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}
