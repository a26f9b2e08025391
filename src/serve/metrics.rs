//! Every metric by name, in one place, and how they are rendered.
//!
//! Two kinds. What the daemon counts over its life (errors, durations, reloads) lies in the global
//! recorder. What is true of an image or a file system *now* is rendered anew from the state, by a
//! recorder that lives as long as that takes: the recorder cannot forget a single label set, and a
//! series must vanish with its image.

use std::path::Path;
use std::time::Duration;

use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::status;
use crate::history::Health;
use crate::model::path::shown;
use crate::model::{
    Bytes, Engine, ExtentCount, ExtentMap, ExtentsPerDay, Filesystem, Outcome, Owner, RescueStep,
    Sample, Severity, Trigger,
};
use crate::rescue::proof::Counters;

const IMAGE_EXTENTS: &str = "fragwatch_image_extents";
const IMAGE_FRAGMENTS: &str = "fragwatch_image_fragments";
const IMAGE_SIZE: &str = "fragwatch_image_size_bytes";
const IMAGE_ALLOCATED: &str = "fragwatch_image_allocated_bytes";
const IMAGE_GROWTH: &str = "fragwatch_image_extents_growth_per_second";
const IMAGE_SECONDS_TO_CRITICAL: &str = "fragwatch_image_seconds_to_critical";
const IMAGE_SEVERITY: &str = "fragwatch_image_severity";
const IMAGE_IN_USE: &str = "fragwatch_image_in_use";
const IMAGE_INFO: &str = "fragwatch_image_info";
const FILESYSTEM_EXTENTS: &str = "fragwatch_filesystem_extents";
const FILESYSTEM_FREE: &str = "fragwatch_filesystem_free_bytes";
const FILESYSTEM_SIZE: &str = "fragwatch_filesystem_size_bytes";
const PROBE_STALLED: &str = "fragwatch_probe_stalled";
const EXTENT_MAP_MEMORY: &str = "fragwatch_extent_map_memory_bytes";
const HOST_SEVERITY: &str = "fragwatch_host_severity";
const PROBE_DURATION: &str = "fragwatch_probe_duration_seconds";
const PROBE_ERRORS: &str = "fragwatch_probe_errors_total";
const SWEEP_TIMESTAMP: &str = "fragwatch_sweep_timestamp_seconds";
const RELOAD_SUCCESS: &str = "fragwatch_config_reload_success";
const RELOAD_TIMESTAMP: &str = "fragwatch_config_reload_timestamp_seconds";
const BUILD_INFO: &str = "fragwatch_build_info";

const KLOG_RECORDS: &str = "fragwatch_klog_records_total";
const KLOG_LOST: &str = "fragwatch_klog_lost_total";
const KLOG_MATCHES: &str = "fragwatch_klog_matches_total";
const KLOG_SOURCE_UP: &str = "fragwatch_klog_source_up";
const KLOG_ROUNDTRIP: &str = "fragwatch_klog_roundtrip_seconds";
const KLOG_ROUNDTRIP_SUCCESS: &str = "fragwatch_klog_roundtrip_success";
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
const ENGINE_USABLE: &str = "fragwatch_engine_usable";
const WINDOW_OPEN: &str = "fragwatch_maintenance_window_open";
const NEXT_WINDOW: &str = "fragwatch_maintenance_next_window_timestamp_seconds";
const HISTORY_WRITTEN: &str = "fragwatch_history_records_total";
const HISTORY_LOST: &str = "fragwatch_history_lost_total";
const HISTORY_MOVED_ASIDE: &str = "fragwatch_history_moved_aside_total";
const HISTORY_UP: &str = "fragwatch_history_up";
const MEMORY_FREE_BLOCKS: &str = "fragwatch_memory_free_blocks";
const MEMORY_COMPACTION_FAILURES: &str = "fragwatch_memory_compaction_failures_total";
const MEMORY_ALLOCATION_STALLS: &str = "fragwatch_memory_allocation_stalls_total";

/// Seconds from reading a record to writing drop_caches: tens of microseconds at rest.
const REACTION_BUCKETS: [f64; 8] = [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0];

/// Seconds: a count on XFS takes microseconds, a map seconds, and a deadline is ten.
const DURATION_BUCKETS: [f64; 8] = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0];

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
pub struct Lifetime {
    handle: PrometheusHandle,
    buckets: Duration,
}

impl Lifetime {
    /// Installs the global recorder; once a process.
    ///
    /// # Errors
    /// When there is one already.
    pub fn install() -> Result<Self, BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(PROBE_DURATION.to_owned()), &DURATION_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(RESCUE_REACTION.to_owned()), &REACTION_BUCKETS)?
            .install_recorder()?;
        describe_histogram!(
            PROBE_DURATION,
            Unit::Seconds,
            "Time that one probe of one image took."
        );
        describe_counter!(
            PROBE_ERRORS,
            "Probes that failed, and file systems that did not answer."
        );
        describe_gauge!(
            RELOAD_SUCCESS,
            "Whether the last reading of the configuration succeeded (1) or the former one stays in force (0)."
        );
        describe_gauge!(
            RELOAD_TIMESTAMP,
            Unit::Seconds,
            "When the configuration in force was read."
        );
        describe_gauge!(BUILD_INFO, "Version of fragwatch; always 1.");
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        // A counter that is not there until something goes wrong cannot be watched for increase.
        counter!(PROBE_ERRORS).absolute(0);
        Ok(Lifetime {
            handle,
            buckets: Duration::from_secs(60),
        })
    }

    /// Everything so far, as text for Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Sorts measured durations into buckets; without it they would pile up in memory.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// How often [`upkeep`](Lifetime::upkeep) is due.
    #[must_use]
    pub fn upkeep_interval(&self) -> Duration {
        self.buckets
    }
}

/// Notes how long a probe took.
pub fn probed(method: Method, took: Duration) {
    metrics::histogram!(PROBE_DURATION, "method" => method.label()).record(took);
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

/// Describes the metrics of the rescue and begins them at 0, so that each increase is seen. `rules`
/// are the names of all rules.
pub fn rescue_begins(rules: &[String]) {
    describe_counter!(KLOG_RECORDS, "Records read from the kernel's log.");
    describe_counter!(KLOG_LOST, "Records overwritten before they were read.");
    describe_counter!(KLOG_MATCHES, "Records that matched a rule.");
    describe_gauge!(
        KLOG_SOURCE_UP,
        "Whether a source of kernel messages can be read."
    );
    describe_gauge!(
        KLOG_ROUNDTRIP,
        Unit::Seconds,
        "Time of the last drill from writing its record to the kernel's log to the actor's report."
    );
    describe_gauge!(
        KLOG_ROUNDTRIP_SUCCESS,
        "Whether the last drill came through."
    );
    describe_counter!(
        RESCUE_ACTIONS,
        "Actions of the rescue, by step and outcome."
    );
    describe_counter!(RESCUE_INCIDENTS, "Incidents, by what they began with.");
    describe_gauge!(RESCUE_ACTIVE, "Whether there is an incident now.");
    describe_histogram!(
        RESCUE_REACTION,
        Unit::Seconds,
        "Time from reading the reason for an action to its begin."
    );
    describe_counter!(INCIDENT_FILES, "Writes of incident files, by outcome.");
    describe_counter!(
        RESCUE_NEWS_LOST,
        "News of the rescue that were overwritten before they were heard; the actions were done."
    );
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
    gauge!(RESCUE_ACTIVE).set(0.0);
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

/// Whether a source of kernel messages can be read.
pub fn klog_source(source: &str, up: bool) {
    gauge!(KLOG_SOURCE_UP, "source" => source.to_owned()).set(f64::from(u8::from(up)));
}

/// How long a drill took; nothing if it failed.
pub fn klog_roundtrip(took: Option<Duration>) {
    if let Some(took) = took {
        gauge!(KLOG_ROUNDTRIP).set(took.as_secs_f64());
    }
    gauge!(KLOG_ROUNDTRIP_SUCCESS).set(f64::from(u8::from(took.is_some())));
}

/// An action of the rescue came to its end, and how long after its reason it began.
pub fn rescue_acted(step: RescueStep, outcome: Outcome, reaction: Duration) {
    counter!(RESCUE_ACTIONS, "step" => step.as_str(), "outcome" => outcome.as_str()).increment(1);
    metrics::histogram!(RESCUE_REACTION).record(reaction);
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
    let set = |outcome: &'static str, number| {
        counter!(INCIDENT_FILES, "outcome" => outcome).absolute(number);
    };
    set("written", written);
    set("failed", failed);
    set("lost", lost);
}

/// News of the rescue that were overwritten before they were heard.
pub fn rescue_news_lost(lost: u64) {
    counter!(RESCUE_NEWS_LOST).absolute(lost);
}

/// Makes the metrics of defragmentation known before anything is defragmented: a counter that is not
/// there cannot be watched for increase.
pub fn defrag_begins() {
    describe_counter!(DEFRAG_RUNS, "Defragmentations by engine and outcome.");
    describe_counter!(
        DEFRAG_EXTENTS_REMOVED,
        "Extents that defragmentations have taken away."
    );
    describe_gauge!(DEFRAG_ACTIVE, "Defragmentations under way.");
    describe_gauge!(
        DEFRAG_QUEUE,
        "Images that are to be defragmented in the window that is open."
    );
    describe_gauge!(WINDOW_OPEN, "Whether a maintenance window is open (1).");
    describe_gauge!(
        NEXT_WINDOW,
        Unit::Seconds,
        "When the next maintenance window opens; absent if there is none."
    );
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
    gauge!(WINDOW_OPEN).set(if open { 1.0 } else { 0.0 });
    if let Some(next) = next.and_then(|next| u64::try_from(next).ok()) {
        gauge!(NEXT_WINDOW).set(float(next));
    }
}

/// How the history goes.
pub fn history(health: &Health) {
    describe_counter!(HISTORY_WRITTEN, "Records written to the history.");
    describe_counter!(
        HISTORY_LOST,
        "Records that the history lost, because its disk hangs, is full or fails."
    );
    describe_counter!(
        HISTORY_MOVED_ASIDE,
        "Damaged databases that were moved aside; a new one was begun."
    );
    describe_gauge!(
        HISTORY_UP,
        "Whether the history's database is open and was last written without trouble."
    );
    counter!(HISTORY_WRITTEN).absolute(health.written);
    counter!(HISTORY_LOST).absolute(health.lost);
    counter!(HISTORY_MOVED_ASIDE).absolute(health.moved_aside);
    gauge!(HISTORY_UP).set(if health.healthy { 1.0 } else { 0.0 });
}

/// Renders which engines can be used. Anew each time, because the reason is a label.
#[must_use]
pub fn render_engines(engines: &[status::EngineState]) -> String {
    render_once(|| {
        describe_gauge!(
            ENGINE_USABLE,
            "Whether an engine can be used on this host (1), or why not (reason)."
        );
        for state in engines {
            gauge!(
                ENGINE_USABLE,
                "engine" => state.engine.as_str(),
                "reason" => state.reason.clone().unwrap_or_default()
            )
            .set(f64::from(u8::from(state.usable)));
        }
    })
}

/// Renders the early warnings: free blocks of memory by order, and how often the kernel failed to
/// make larger ones.
#[must_use]
pub fn render_memory(counters: &Counters) -> String {
    render_once(|| {
        describe_gauge!(
            MEMORY_FREE_BLOCKS,
            "Free blocks of 2^order pages, in all zones. None left of order 4 and more is when the XFS of old kernels begins to wait."
        );
        describe_counter!(
            MEMORY_COMPACTION_FAILURES,
            "Compactions that made no block."
        );
        describe_counter!(
            MEMORY_ALLOCATION_STALLS,
            "Allocations that had to wait until their own task had reclaimed memory."
        );
        for (order, blocks) in counters.free_blocks.iter().enumerate() {
            gauge!(MEMORY_FREE_BLOCKS, "order" => order.to_string()).set(float(*blocks));
        }
        counter!(MEMORY_COMPACTION_FAILURES).absolute(counters.compact_fail);
        counter!(MEMORY_ALLOCATION_STALLS).absolute(counters.allocation_stalls);
    })
}

/// One image as it is told.
#[derive(Debug)]
pub struct ImageNow<'a> {
    /// Its last count.
    pub sample: &'a Sample,
    /// Who has it open.
    pub owner: &'a Owner,
    /// Its last map, if one was read.
    pub map: Option<&'a ExtentMap>,
    /// What it gains, if that is known.
    pub growth: Option<ExtentsPerDay>,
    /// How long until it is critical, if that is known.
    pub time_left: Option<Duration>,
    /// How bad it is.
    pub severity: Severity,
    /// Where its file system is mounted.
    pub filesystem: &'a str,
}

/// One file system as it is told.
#[derive(Debug)]
pub struct FilesystemNow<'a> {
    /// How full it is.
    pub filesystem: &'a Filesystem,
    /// Extents of all images on it.
    pub extents: ExtentCount,
}

/// The host as it is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostNow {
    /// What all extent maps take.
    pub memory: Bytes,
    /// How bad that is.
    pub severity: Severity,
}

/// Gauges of each image: name, help, value.
type ImageGauge = (&'static str, &'static str, fn(&ImageNow<'_>) -> Option<f64>);
const IMAGE_GAUGES: [ImageGauge; 8] = [
    (IMAGE_EXTENTS, "Records of the image's extent map.", |now| {
        Some(float(now.sample.extents.0))
    }),
    (
        IMAGE_FRAGMENTS,
        "Physically contiguous runs of the image, when its map was last read.",
        |now| Some(float(now.map?.fragments)),
    ),
    (IMAGE_SIZE, "Length of the image file.", |now| {
        Some(float(now.sample.size.0))
    }),
    (IMAGE_ALLOCATED, "What the image occupies on disk.", |now| {
        Some(float(now.sample.allocated.0))
    }),
    (
        IMAGE_GROWTH,
        "Extents that the image gains in a second, over the growth window; absent while unknown.",
        |now| Some(now.growth?.per_second()),
    ),
    (
        IMAGE_SECONDS_TO_CRITICAL,
        "Seconds until the image has as many extents as is critical; absent while unknown or far.",
        |now| Some(now.time_left?.as_secs_f64()),
    ),
    (
        IMAGE_SEVERITY,
        "How bad it is by the configured thresholds: 0 ok, 1 warning, 2 critical.",
        |now| Some(now.severity.as_number().into()),
    ),
    (
        IMAGE_IN_USE,
        "Whether a process of this host has the image open: 1 or 0.",
        |now| Some(now.owner.in_use().into()),
    ),
];

/// Renders what is true of images and file systems at the end of a sweep, at `swept` seconds since
/// 1970.
///
/// One gauge after the other: while it renders, a recorder has all its series in memory several
/// times over.
#[must_use]
pub fn render_now(
    images: &[ImageNow<'_>],
    filesystems: &[FilesystemNow<'_>],
    host: HostNow,
    swept: Option<f64>,
) -> String {
    let names: Vec<_> = images
        .iter()
        .map(|now| shared_label(&shown(&now.sample.path)))
        .collect();
    let mut text = String::new();
    for (gauge, help, value) in IMAGE_GAUGES {
        text.push_str(&render_once(|| {
            describe_gauge!(gauge, help);
            for (now, name) in images.iter().zip(&names) {
                if let Some(value) = value(now) {
                    gauge!(gauge, "image" => name.clone()).set(value);
                }
            }
        }));
    }
    text.push_str(&render_once(|| {
        describe_gauge!(IMAGE_INFO, "What the image is; always 1.");
        for (now, name) in images.iter().zip(&names) {
            set_info(now, name);
        }
    }));
    text.push_str(&render_once(|| {
        describe_filesystems();
        for now in filesystems {
            let label = shared_label(&shown(&now.filesystem.mount));
            gauge!(FILESYSTEM_EXTENTS, "filesystem" => label.clone()).set(float(now.extents.0));
            gauge!(FILESYSTEM_FREE, "filesystem" => label.clone())
                .set(float(now.filesystem.free.0));
            gauge!(FILESYSTEM_SIZE, "filesystem" => label).set(float(now.filesystem.size.0));
        }
        gauge!(EXTENT_MAP_MEMORY).set(float(host.memory.0));
        gauge!(HOST_SEVERITY).set(f64::from(host.severity.as_number()));
        if let Some(swept) = swept {
            gauge!(SWEEP_TIMESTAMP).set(swept);
        }
    }));
    text
}

/// Renders for each mount point whether its file system hangs.
#[must_use]
pub fn render_stalls(stalls: &[(String, bool)]) -> String {
    render_once(|| {
        describe_gauge!(
            PROBE_STALLED,
            "Whether a probe of this file system hangs (1); its counts are then old."
        );
        for (mount, stalled) in stalls {
            gauge!(PROBE_STALLED, "filesystem" => label(mount)).set(f64::from(u8::from(*stalled)));
        }
    })
}

fn describe_filesystems() {
    describe_gauge!(
        FILESYSTEM_EXTENTS,
        "Extents of all images on the file system."
    );
    describe_gauge!(
        FILESYSTEM_FREE,
        Unit::Bytes,
        "Free space of the file system."
    );
    describe_gauge!(FILESYSTEM_SIZE, Unit::Bytes, "Size of the file system.");
    describe_gauge!(
        EXTENT_MAP_MEMORY,
        Unit::Bytes,
        "Kernel memory that the extent maps of all images on XFS take when they are loaded (estimate)."
    );
    describe_gauge!(
        HOST_SEVERITY,
        "How bad it is what these maps take of the host's memory: 0 ok, 1 warning, 2 critical."
    );
    describe_gauge!(
        SWEEP_TIMESTAMP,
        Unit::Seconds,
        "When the last pass over all images ended."
    );
}

fn set_info(now: &ImageNow<'_>, name: &SharedString) {
    let vm = now.owner.vm().and_then(|vm| vm.name.as_deref());
    gauge!(
        IMAGE_INFO,
        "image" => name.clone(),
        "vm" => label(&shown(Path::new(vm.unwrap_or_default()))),
        "filesystem" => label(now.filesystem),
        "format" => now.sample.format.name()
    )
    .set(1.0);
}

/// Numbers above 2^53 lose their last digits in Prometheus, whose values are floating-point.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

/// Text as the exporter needs it for a label value: it would take a single backslash for half of
/// an escape and drop it (metrics-exporter-prometheus 0.18, sanitize_label_value).
fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
}

/// A label value that many series share.
fn shared_label(text: &str) -> SharedString {
    SharedString::from_shared(label(text).into())
}

fn render_once(set: impl FnOnce()) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, set);
    recorder.handle().render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FilesystemKind, Format, ImageId, ImageKey, Opener, Vm};
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::PathBuf;

    fn sample(path: &[u8]) -> Sample {
        Sample {
            id: ImageId {
                device: 1,
                inode: 2,
            },
            key: Ok(ImageKey {
                filesystem: "1234".to_owned(),
                inode: 2,
                generation: 0,
            }),
            path: PathBuf::from(OsStr::from_bytes(path)),
            format: Format::Qcow2,
            extents: ExtentCount(34_694_398),
            size: Bytes(1 << 40),
            allocated: Bytes(4096),
            extent_size_hint: Bytes(0),
            directory_hint: Bytes(0),
        }
    }

    fn lines(text: &str, name: &str) -> Vec<String> {
        let is = |line: &&str| line.split(['{', ' ']).next() == Some(name);
        text.lines().filter(is).map(str::to_owned).collect()
    }

    #[test]
    fn an_image_is_told_by_its_path() {
        let sample = sample(b"/srv/a.qcow2");
        let opener = Opener {
            vm: Some(Vm {
                name: Some("db\n1".to_owned()),
                ..Vm::default()
            }),
            ..Opener::default()
        };
        let owner = Owner {
            openers: vec![opener],
        };
        let now = ImageNow {
            sample: &sample,
            owner: &owner,
            map: None,
            growth: Some(ExtentsPerDay(86_400.0)),
            time_left: None,
            severity: Severity::Critical,
            filesystem: "/srv",
        };
        let filesystem = Filesystem {
            mount: PathBuf::from("/srv"),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            uuid: None,
            features: None,
            size: Bytes(10),
            free: Bytes(5),
            block_size: Bytes(4096),
        };
        let filesystem = FilesystemNow {
            filesystem: &filesystem,
            extents: ExtentCount(7),
        };
        let text = render_now(&[now], &[filesystem], HostNow::default(), Some(12.5));
        assert_eq!(
            lines(&text, IMAGE_EXTENTS),
            ["fragwatch_image_extents{image=\"/srv/a.qcow2\"} 34694398"]
        );
        assert_eq!(
            lines(&text, IMAGE_SEVERITY),
            ["fragwatch_image_severity{image=\"/srv/a.qcow2\"} 2"]
        );
        assert_eq!(
            lines(&text, IMAGE_IN_USE),
            ["fragwatch_image_in_use{image=\"/srv/a.qcow2\"} 1"]
        );
        assert_eq!(lines(&text, IMAGE_FRAGMENTS), [""; 0]);
        assert_eq!(
            lines(&text, IMAGE_GROWTH),
            ["fragwatch_image_extents_growth_per_second{image=\"/srv/a.qcow2\"} 1"]
        );
        assert_eq!(lines(&text, IMAGE_SECONDS_TO_CRITICAL), [""; 0]);
        assert_eq!(lines(&text, HOST_SEVERITY), ["fragwatch_host_severity 0"]);
        assert_eq!(
            lines(&text, IMAGE_INFO),
            [
                "fragwatch_image_info{image=\"/srv/a.qcow2\",vm=\"db\\\\x0a1\",filesystem=\"/srv\",format=\"qcow2\"} 1"
            ]
        );
        assert_eq!(
            lines(&text, FILESYSTEM_EXTENTS),
            ["fragwatch_filesystem_extents{filesystem=\"/srv\"} 7"]
        );
        assert_eq!(
            lines(&text, SWEEP_TIMESTAMP),
            ["fragwatch_sweep_timestamp_seconds 12.5"]
        );
    }

    #[test]
    fn an_engine_has_its_reason_as_a_label() {
        let state = |engine, reason: Option<&str>| status::EngineState {
            engine,
            usable: reason.is_none(),
            reason: reason.map(str::to_owned),
            text: reason.map(str::to_owned),
        };
        let text = render_engines(&[
            state(Engine::XfsFsr, None),
            state(Engine::Online, Some("kernel_known_bad")),
        ]);
        let mut lines = lines(&text, ENGINE_USABLE);
        lines.sort();
        assert_eq!(
            lines,
            [
                "fragwatch_engine_usable{engine=\"online\",reason=\"kernel_known_bad\"} 0",
                "fragwatch_engine_usable{engine=\"xfs_fsr\",reason=\"\"} 1",
            ]
        );
    }

    #[test]
    fn any_name_gives_a_right_label() {
        // What Prometheus must read back: one backslash before each escape of ours.
        for (path, expected) in [
            (&b"/a\"b"[..], r#"/a\"b"#),
            (b"/a\\b", r"/a\\b"),
            (b"/a\\\\\"", r#"/a\\\\\""#),
            (b"/a\nb\xff", r"/a\\x0ab\\xff"),
            (b"/a\\", r"/a\\"),
        ] {
            let sample = sample(path);
            let now = ImageNow {
                sample: &sample,
                owner: &Owner::default(),
                map: None,
                growth: None,
                time_left: None,
                severity: Severity::Ok,
                filesystem: "/",
            };
            let text = render_now(&[now], &[], HostNow::default(), None);
            let line = format!("fragwatch_image_extents{{image=\"{expected}\"}} 34694398");
            assert_eq!(lines(&text, IMAGE_EXTENTS), [line]);
        }
    }
}
