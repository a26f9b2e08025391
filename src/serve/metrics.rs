//! Every metric by name, in this file and in [`now`]. Counts over the daemon's life (errors,
//! durations, reloads) are in the global recorder; the metrics of the current state of images and
//! file systems are rendered from that state.

mod now;
mod text;

use std::time::Duration;

use metrics::{
    Counter, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use now::{render_engines, render_memory, render_parts, render_stalls, render_sweep};

use text::float;

use crate::history::Health;
use crate::model::{Engine, ExtentCount, Outcome, RescueStep, Trigger};

type Described = (&'static str, &'static str);

const PROBE_DURATION: Described = (
    "fragwatch_probe_duration_seconds",
    "Time that one probe of one image took.",
);
const PROBE_ERRORS: Described = (
    "fragwatch_probe_errors_total",
    "Probes that failed, and file systems that did not answer.",
);
const RELOAD_SUCCESS: Described = (
    "fragwatch_config_reload_success",
    "Whether the last reading of the configuration succeeded (1) or the former one stays in force (0).",
);
const RELOAD_TIMESTAMP: Described = (
    "fragwatch_config_reload_timestamp_seconds",
    "When the configuration in force was read.",
);
const LISTENING: Described = (
    "fragwatch_metrics_listening",
    "Whether metrics.listen is served; 0 is seen in the textfile only.",
);
const BUILD_INFO: Described = ("fragwatch_build_info", "Version of fragwatch; always 1.");
const KLOG_RECORDS: Described = (
    "fragwatch_klog_records_total",
    "Records read from the kernel's log.",
);
const KLOG_LOST: Described = (
    "fragwatch_klog_lost_total",
    "Records overwritten before they were read.",
);
const KLOG_MATCHES: Described = (
    "fragwatch_klog_matches_total",
    "Records that matched a rule.",
);
const KLOG_LINES: Described = (
    "fragwatch_klog_lines_total",
    "Lines read from a log file, by what they are.",
);
const RESCUE_ACTIONS: Described = (
    "fragwatch_rescue_actions_total",
    "Actions of the rescue, by step and outcome.",
);
const RESCUE_INCIDENTS: Described = (
    "fragwatch_rescue_incidents_total",
    "Incidents, by what they began with.",
);
const RESCUE_ACTIVE: Described = (
    "fragwatch_rescue_active",
    "Whether there is an incident now.",
);
const RESCUE_REACTION: Described = (
    "fragwatch_rescue_reaction_seconds",
    "Time from reading the reason for an action to its begin.",
);
const INCIDENT_FILES: Described = (
    "fragwatch_rescue_incident_files_total",
    "Writes of incident files, by outcome.",
);
const RESCUE_NEWS_LOST: Described = (
    "fragwatch_rescue_news_lost_total",
    "News of the rescue that were overwritten before they were read; the actions were done.",
);
const DEFRAG_RUNS: Described = (
    "fragwatch_defrag_runs_total",
    "Defragmentations by engine and outcome.",
);
const DEFRAG_EXTENTS_REMOVED: Described = (
    "fragwatch_defrag_extents_removed_total",
    "Extents that defragmentations have taken away.",
);
const DEFRAG_ACTIVE: Described = ("fragwatch_defrag_active", "Defragmentations under way.");
const DEFRAG_QUEUE: Described = (
    "fragwatch_defrag_queue",
    "Images that are to be defragmented in the window that is open.",
);
const WINDOW_OPEN: Described = (
    "fragwatch_maintenance_window_open",
    "Whether a maintenance window is open (1).",
);
const NEXT_WINDOW: Described = (
    "fragwatch_maintenance_next_window_timestamp_seconds",
    "When the next maintenance window opens; absent if there is none.",
);
const HISTORY_WRITTEN: Described = (
    "fragwatch_history_records_total",
    "Records written to the history.",
);
const HISTORY_LOST: Described = (
    "fragwatch_history_lost_total",
    "Records that the history lost, because its disk hangs, is full or fails.",
);
const HISTORY_MOVED_ASIDE: Described = (
    "fragwatch_history_moved_aside_total",
    "Damaged databases that were moved aside; a new one was begun.",
);
const HISTORY_UP: Described = (
    "fragwatch_history_up",
    "Whether the history's database is open and was last written without trouble.",
);

const COUNTERS: [Described; 14] = [
    PROBE_ERRORS,
    KLOG_RECORDS,
    KLOG_LOST,
    KLOG_MATCHES,
    KLOG_LINES,
    RESCUE_ACTIONS,
    RESCUE_INCIDENTS,
    INCIDENT_FILES,
    RESCUE_NEWS_LOST,
    DEFRAG_RUNS,
    DEFRAG_EXTENTS_REMOVED,
    HISTORY_WRITTEN,
    HISTORY_LOST,
    HISTORY_MOVED_ASIDE,
];
const GAUGES: [Described; 10] = [
    RELOAD_SUCCESS,
    RELOAD_TIMESTAMP,
    LISTENING,
    BUILD_INFO,
    RESCUE_ACTIVE,
    DEFRAG_ACTIVE,
    DEFRAG_QUEUE,
    WINDOW_OPEN,
    NEXT_WINDOW,
    HISTORY_UP,
];
/// With buckets in seconds: a count on XFS takes microseconds, a map seconds, and a deadline is
/// ten; from reading a record to writing drop_caches it is tens of microseconds on an idle host.
const HISTOGRAMS: [(Described, [f64; 8]); 2] = [
    (
        PROBE_DURATION,
        [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0],
    ),
    (
        RESCUE_REACTION,
        [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0],
    ),
];

/// The label `method`: what a probe read.
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

/// The counts over the daemon's life.
#[derive(Debug, Clone)]
pub struct Lifetime(PrometheusHandle);

impl Lifetime {
    /// The interval for [`upkeep`](Lifetime::upkeep).
    pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

    /// Installs the global recorder; once per process.
    pub fn install() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for ((name, _), buckets) in &HISTOGRAMS {
            let matcher = Matcher::Full((*name).to_owned());
            builder = builder.set_buckets_for_metric(matcher, buckets)?;
        }
        let handle = builder.install_recorder()?;
        for ((name, help), _) in HISTOGRAMS {
            describe_histogram!(name, help);
        }
        for (name, help) in COUNTERS {
            describe_counter!(name, help);
        }
        for (name, help) in GAUGES {
            describe_gauge!(name, help);
        }
        gauge!(BUILD_INFO.0, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        // An absent counter cannot be watched for increase.
        counter!(PROBE_ERRORS.0).absolute(0);
        Ok(Lifetime(handle))
    }

    /// A recorder that receives nothing.
    #[cfg(test)]
    pub(crate) fn detached() -> Lifetime {
        Lifetime(PrometheusBuilder::new().build_recorder().handle())
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
    histogram!(PROBE_DURATION.0, "method" => method.label()).record(took);
}

/// Counts a failed probe.
pub fn probe_failed() {
    counter!(PROBE_ERRORS.0).increment(1);
}

/// Records that the configuration was read; `now` in seconds since 1970.
pub fn config_read(now: f64) {
    gauge!(RELOAD_SUCCESS.0).set(1.0);
    gauge!(RELOAD_TIMESTAMP.0).set(now);
}

/// Records that a new configuration was refused.
pub fn config_refused() {
    gauge!(RELOAD_SUCCESS.0).set(0.0);
}

/// Records whether metrics.listen is served.
pub fn listening(listening: bool) {
    gauge!(LISTENING.0).set(f64::from(listening));
}

/// Creates absent metrics of the rescue, with all `rules`, at 0, so that each increase is seen.
pub fn rescue_begins(rules: &[String]) {
    for rule in rules {
        counter!(KLOG_MATCHES.0, "rule" => rule.clone()).absolute(0);
    }
    for trigger in [Trigger::KernelLog, Trigger::Stall, Trigger::File] {
        counter!(RESCUE_INCIDENTS.0, "trigger" => trigger.as_str()).absolute(0);
    }
    for step in RescueStep::ALL {
        for outcome in Outcome::ALL {
            counter!(RESCUE_ACTIONS.0, "step" => step.as_str(), "outcome" => outcome.as_str())
                .absolute(0);
        }
    }
    gauge!(RESCUE_ACTIVE.0).increment(0.0);
}

/// Sets the records read from the kernel log so far, and those lost.
pub fn klog_read(records: u64, lost: u64) {
    counter!(KLOG_RECORDS.0).absolute(records);
    counter!(KLOG_LOST.0).absolute(lost);
}

/// Counts a record that matched this rule and was logged that many times.
pub fn klog_matched(rule: &str, times: u32) {
    counter!(KLOG_MATCHES.0, "rule" => rule.to_owned()).increment(times.into());
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
        let counter = |kind| counter!(KLOG_LINES.0, "source" => source.to_owned(), "kind" => kind);
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
    counter!(RESCUE_ACTIONS.0, "step" => step.as_str(), "outcome" => outcome.as_str()).increment(1);
    histogram!(RESCUE_REACTION.0).record(reaction);
}

/// Counts an incident that began.
pub fn incident_began(trigger: Trigger) {
    counter!(RESCUE_INCIDENTS.0, "trigger" => trigger.as_str()).increment(1);
    gauge!(RESCUE_ACTIVE.0).set(1.0);
}

/// Records the end of the incident.
pub fn incident_ended() {
    gauge!(RESCUE_ACTIVE.0).set(0.0);
}

/// Sets the incident files written and failed, and the data lost to full queues.
pub fn incident_files(written: u64, failed: u64, lost: u64) {
    for (outcome, number) in [("written", written), ("failed", failed), ("lost", lost)] {
        counter!(INCIDENT_FILES.0, "outcome" => outcome).absolute(number);
    }
}

/// Sets the news of the rescue overwritten before they were read.
pub fn rescue_news_lost(lost: u64) {
    counter!(RESCUE_NEWS_LOST.0).absolute(lost);
}

/// Creates the metrics of defragmentation at 0: an absent counter cannot be watched for increase.
pub fn defrag_begins() {
    for engine in Engine::ALL {
        for outcome in ["improved", "failed"] {
            counter!(DEFRAG_RUNS.0, "engine" => engine.as_str(), "outcome" => outcome).absolute(0);
        }
    }
    counter!(DEFRAG_EXTENTS_REMOVED.0).absolute(0);
    defrag_active(0);
    defrag_queue(0);
}

/// Sets the number of current runs.
pub fn defrag_active(runs: usize) {
    gauge!(DEFRAG_ACTIVE.0).set(float(runs as u64));
}

/// Sets the number of runs still to come in this window.
pub fn defrag_queue(runs: usize) {
    gauge!(DEFRAG_QUEUE.0).set(float(runs as u64));
}

/// Counts a finished run.
pub fn defrag_ended(engine: &str, outcome: &str, from: ExtentCount, to: ExtentCount) {
    let labels = [
        ("engine", engine.to_owned()),
        ("outcome", outcome.to_owned()),
    ];
    counter!(DEFRAG_RUNS.0, &labels).increment(1);
    counter!(DEFRAG_EXTENTS_REMOVED.0).increment(from.0.saturating_sub(to.0));
}

/// Sets whether a window is open, and when the next one opens, in seconds since 1970.
pub fn maintenance(open: bool, next: Option<i64>) {
    gauge!(WINDOW_OPEN.0).set(f64::from(open));
    if let Some(next) = next.and_then(|next| u64::try_from(next).ok()) {
        gauge!(NEXT_WINDOW.0).set(float(next));
    }
}

/// Sets the state of the history.
pub fn history(health: &Health) {
    counter!(HISTORY_WRITTEN.0).absolute(health.written);
    counter!(HISTORY_LOST.0).absolute(health.lost);
    counter!(HISTORY_MOVED_ASIDE.0).absolute(health.moved_aside);
    gauge!(HISTORY_UP.0).set(f64::from(health.healthy));
}
