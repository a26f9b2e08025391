//! The settings as the rest of the program sees them: complete, in their own types, checked.
//!
//! Pure: nothing here opens a file. What cannot work is refused here, so that no other room has to
//! think of an interval of zero or a glob that does not compile.

mod thresholds;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

pub use super::globs::{GlobLists, Globs, compile_globs, is_glob};
pub use thresholds::{HostLimits, Limits, Thresholds};
#[cfg(test)]
pub use thresholds::{LimitChanges, Override};

use super::diagnose::{Finding, Place};
use super::raw::{
    Key, Raw, RawBlackout, RawControl, RawDefrag, RawHistory, RawImages, RawKlog, RawMaintenance,
    RawMetrics, RawRescue, RawRule, RawSampling, RawThresholds, RawWindow,
};
use super::reader::Located;
use super::values::{OrNever, Rate, Value, quoted};
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{Bytes, Engine, ExtentCount, RescueStep, RuleDefinition, Severity, Share};

/// The shortest interval. Counting is cheap, but a sweep over a thousand images takes its time.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest timeout. A disk that spins up or a loaded host takes longer than a few
/// milliseconds without anything being wrong.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

/// The shortest retention: what is older than it goes day by day.
const SHORTEST_RETENTION: Duration = Duration::from_secs(86_400);
/// The shortest time that ends an incident. There is silence between any two messages of the
/// kernel; shorter than this and every message is an incident.
const SHORTEST_QUIET: Duration = Duration::from_secs(1);
/// The shortest stall: the detector looks once a second.
const SHORTEST_STALL: Duration = Duration::from_secs(1);
/// Most actions that may be allowed in an hour: one a second. The rescue keeps as many times.
pub(super) const MAX_ACTIONS_PER_HOUR: u32 = 3600;

/// The shortest window: images do not defragment themselves in less.
const SHORTEST_WINDOW: Duration = Duration::from_secs(60);
/// The longest window: from then on it meets itself of the week before.
pub(crate) const LONGEST_WINDOW: Duration = Duration::from_secs(7 * 86_400);
/// The longest jitter.
pub(crate) const LONGEST_JITTER: Duration = Duration::from_secs(86_400);
/// The slowest bandwidth: slower, and a run holds its image for days.
const SLOWEST: Rate = Rate(Bytes(1 << 20));
/// The shortest aim of one call of the online engine: below, it would move nothing.
const SHORTEST_TARGET: Duration = Duration::from_millis(1);
/// The most that is to stay free: beyond, nothing ever runs.
const MOST_FREE: Share = Share::percent(90);
/// Most runs side by side: more file systems than a host has.
const MOST_PARALLEL: u32 = 64;

/// The control socket, unless another is configured.
pub const DEFAULT_SOCKET: &str = "/run/fragwatch/control.sock";
/// The longest path that a socket can have (`sun_path`, unix(7), without the final NUL).
const LONGEST_SOCKET: usize = 107;

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Which files are watched.
    pub images: Images,
    /// How often they are looked at.
    pub sampling: Sampling,
    /// Where the past is kept, and for how long.
    pub history: History,
    /// What is too much.
    pub thresholds: Thresholds,
    /// Where the kernel's messages are read, and which of them matter.
    pub klog: Klog,
    /// What is done in an emergency.
    pub rescue: Rescue,
    /// When images may be defragmented.
    pub maintenance: Maintenance,
    /// How images are defragmented.
    pub defrag: Defrag,
    /// Where the metrics are served.
    pub metrics: Metrics,
    /// Where commands ask the daemon.
    pub control: Control,
}

/// Which files are watched.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// Absolute paths of files and of directories, which are searched in depth, or globs
    /// ([`is_glob`]). May be empty: then nothing is watched.
    pub paths: Vec<String>,
    /// Globs of the files that are images; if there are none, every file that looks like a disk
    /// image. A glob without `/` is meant for the name of a file, any other for its whole path.
    pub include: Vec<String>,
    /// Globs, likewise, of the files that are none. They win over `include`.
    pub exclude: Vec<String>,
    /// Files of fewer bytes than this are none.
    pub min_size: Bytes,
    /// Files and directories that the search of one of `paths` meets at most; the rest is not looked
    /// at. One at least.
    pub limit: u32,
}

/// How often images are looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// From one count of the extents of all images to the next. A second at least.
    pub interval: Duration,
    /// From one reading of the whole extent maps to the next, `interval` at least. Nothing: they
    /// are never read.
    pub map_interval: Option<Duration>,
    /// An extent map with more extents than this is not read: the kernel would have to hold it in
    /// memory. One at least.
    pub map_max_extents: ExtentCount,
    /// How long a call on an image may take before its file system counts as stalled. 100 ms at
    /// least, `interval` at most.
    pub probe_timeout: Duration,
}

/// Where the past is kept, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// Absolute path of the database. It has a directory and a name.
    pub path: PathBuf,
    /// What is older than this is removed. A day at least.
    pub retention: Duration,
}

/// Where the kernel's messages are read, and which of them matter.
#[derive(Debug, Clone, PartialEq)]
pub struct Klog {
    /// Whether /dev/kmsg is read.
    pub kmsg: bool,
    /// Absolute paths of log files that are followed as well.
    pub files: Vec<PathBuf>,
    /// Whether a line of one of these files may start the rescue.
    pub files_may_rescue: bool,
    /// Rules beside the built-in ones. All together compile.
    pub rules: Vec<RuleDefinition>,
}

/// What is done in an emergency.
#[derive(Debug, Clone, PartialEq)]
pub struct Rescue {
    /// Whether anything is.
    pub enabled: bool,
    /// Everything but the writes that have an effect.
    pub dry_run: bool,
    /// The steps of an incident, one at least; the last one is repeated.
    pub steps: Vec<RescueStep>,
    /// From one action to the next. May be zero; `quiet_after` at most.
    pub min_interval: Duration,
    /// Without message and action for this long, an incident is over. A second at least.
    pub quiet_after: Duration,
    /// Most actions in any hour: 1 to 3600.
    pub max_actions_per_hour: u32,
    /// A task that is stuck for this long in the allocator underneath XFS starts the rescue. A
    /// second at least. Nothing: no task does.
    pub stall_after: Option<Duration>,
    /// A command and its arguments, run after an incident begins and after it ends. The command is
    /// an absolute path. Empty: there is none.
    pub hook: Vec<String>,
}

/// When images may be defragmented: never, unless there is a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Maintenance {
    /// Where the clock hangs that days and times are read from.
    pub timezone: Zone,
    /// By how much the beginnings of windows are spread over the hosts, half of the shortest window
    /// at most.
    pub jitter: Duration,
    /// When it is allowed. They may touch and overlap.
    pub windows: Vec<Window>,
    /// When it is forbidden, whatever the windows say.
    pub blackouts: Vec<Blackout>,
}

/// A time of the week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The days on which it opens; one at least.
    pub days: Vec<Weekday>,
    /// When it opens on these days, to the minute.
    pub start: Time,
    /// For how long it stays open, in real time: from a minute to a week.
    pub duration: Duration,
}

/// Dates on which nothing is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blackout {
    /// The first day.
    pub from: Date,
    /// The last day, not before the first.
    pub to: Date,
}

/// A time zone, by the name that it was configured with.
#[derive(Debug, Clone)]
pub struct Zone {
    name: String,
    zone: TimeZone,
}

/// How images are defragmented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defrag {
    /// The severity from which an image is a candidate.
    pub from: Severity,
    /// What may be used, the first that can work on an image first; one at least.
    pub engines: Vec<Engine>,
    /// Everything but the runs themselves.
    pub dry_run: bool,
    /// What is to stay free of a file system during a run; 90 % at most.
    pub keep_free: Share,
    /// From the end of a run to the next one of the same image at least.
    pub cooldown: Duration,
    /// What a run reads and writes together, in bytes a second; 1 MiB at least.
    pub bandwidth: Bytes,
    /// Pressure of others, in hundredths, above which a run waits: 1 to 100.
    pub max_io_pressure: u32,
    /// xfs_fsr: the longest predicted stall of the final swap.
    pub max_swap_stall: Duration,
    /// online: the aim of one kernel call; a millisecond at least.
    pub stall_target: Duration,
    /// Runs at a time, each on another file system: 1 to 64.
    pub parallel: u32,
    /// Releases of kernels (`uname -r`) that the operator vouches for.
    pub trusted_kernels: Vec<String>,
    /// A command and its arguments, run before a run; it may make the image free. Empty: none.
    pub hook_before: Vec<String>,
    /// Likewise, run after it.
    pub hook_after: Vec<String>,
}

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Address and port of the HTTP server. Port 0 is one that the kernel chooses.
    pub listen: SocketAddr,
    /// A file that the metrics are written to as well, for node_exporter: absolute, and its name
    /// ends in `.prom`. Nothing: there is none.
    pub textfile: Option<PathBuf>,
}

/// Where commands such as `fragwatch status` ask the daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// Absolute path of the Unix socket.
    pub socket: PathBuf,
    /// The group that may use it, beside root.
    pub group: String,
}

impl Default for Images {
    fn default() -> Images {
        Images {
            paths: vec!["/var/lib/libvirt/images".to_owned()],
            include: Vec::new(),
            exclude: vec!["*.iso".to_owned()],
            min_size: Bytes(256 << 20),
            // Ten times what the largest hosts have. A path that was not meant so (`/`, a mail
            // store) ends here, before a sweep takes minutes.
            limit: 100_000,
        }
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            interval: Duration::from_secs(60),
            map_interval: Some(Duration::from_secs(12 * 3600)),
            map_max_extents: ExtentCount(1_000_000),
            probe_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for History {
    fn default() -> History {
        History {
            path: PathBuf::from("/var/lib/fragwatch/history.db"),
            retention: Duration::from_secs(90 * 86_400),
        }
    }
}

impl Default for Klog {
    fn default() -> Klog {
        Klog {
            kmsg: true,
            files: Vec::new(),
            files_may_rescue: false,
            rules: Vec::new(),
        }
    }
}

impl Default for Rescue {
    fn default() -> Rescue {
        Rescue {
            enabled: true,
            dry_run: false,
            steps: vec![
                RescueStep::DropSlab,
                RescueStep::DropSlab,
                RescueStep::CompactMemory,
                RescueStep::DropAll,
            ],
            min_interval: Duration::from_secs(2),
            quiet_after: Duration::from_secs(60),
            max_actions_per_hour: 120,
            stall_after: Some(Duration::from_secs(10)),
            hook: Vec::new(),
        }
    }
}

impl Zone {
    /// The name of the host's own time zone.
    const LOCAL: &'static str = "local";

    /// The time zone of that name: `local`, or an IANA name, in small letters or large.
    #[must_use]
    pub fn named(name: &str) -> Option<Zone> {
        if name == Zone::LOCAL {
            return Some(Zone::default());
        }
        // jiff asks its own database only where there is no zoneinfo directory at all. Debian 13 and
        // Ubuntu 24.04 moved names such as US/Central to the package tzdata-legacy: an upgrade
        // must not invalidate a configuration.
        let own = || TimeZoneDatabase::bundled().get(name);
        let zone = TimeZone::get(name).or_else(|_| own()).ok()?;
        let name = zone.iana_name()?.to_owned();
        Some(Zone { name, zone })
    }

    /// The zone that /etc/localtime names, if the link leads nowhere (localtime(5)): its file went
    /// to tzdata-legacy.
    fn linked() -> Option<TimeZone> {
        let target = std::fs::read_link("/etc/localtime").ok()?;
        let (_, name) = target.to_str()?.rsplit_once("zoneinfo/")?;
        TimeZoneDatabase::bundled().get(name).ok()
    }

    /// Its name, `local` for the host's own.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its rules, as they were when the settings were read: a host that is given another time zone,
    /// or newer rules, is to read them anew.
    #[must_use]
    pub fn rules(&self) -> &TimeZone {
        &self.zone
    }
}

impl Default for Zone {
    /// The host's own, which is UTC if it has none.
    fn default() -> Zone {
        let zone = TimeZone::try_system().ok().or_else(Zone::linked);
        Zone {
            name: Zone::LOCAL.to_owned(),
            zone: zone.unwrap_or(TimeZone::UTC),
        }
    }
}

impl Default for Defrag {
    fn default() -> Defrag {
        Defrag {
            from: Severity::Warning,
            engines: vec![Engine::XfsFsr, Engine::Online],
            dry_run: false,
            keep_free: Share::percent(5),
            cooldown: Duration::from_secs(7 * 86_400),
            bandwidth: Bytes(200 << 20),
            max_io_pressure: 40,
            max_swap_stall: Duration::from_secs(2),
            stall_target: Duration::from_millis(20),
            parallel: 2,
            trusted_kernels: Vec::new(),
            hook_before: Vec::new(),
            hook_after: Vec::new(),
        }
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Zone) -> bool {
        self.name == other.name
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9843)),
            textfile: None,
        }
    }
}

impl Default for Control {
    fn default() -> Control {
        Control {
            socket: PathBuf::from(DEFAULT_SOCKET),
            group: "root".to_owned(),
        }
    }
}

impl Settings {
    /// Every setting as TOML that reads back as these settings. Holds no control characters, so
    /// that it can be printed to a terminal.
    #[must_use]
    pub fn to_toml(&self) -> String {
        Raw::from(self).to_toml()
    }

    /// What `raw` sets, and the defaults for the rest. Adds to `findings` what cannot be.
    pub(super) fn from_raw(raw: &Raw, findings: &mut Vec<Finding>) -> Settings {
        Settings {
            images: Images::from_raw(&raw.images, findings),
            sampling: Sampling::from_raw(&raw.sampling, findings),
            history: History::from_raw(&raw.history, findings),
            thresholds: Thresholds::from_raw(&raw.thresholds, findings),
            klog: Klog::from_raw(&raw.klog, findings),
            rescue: Rescue::from_raw(&raw.rescue, findings),
            maintenance: Maintenance::from_raw(&raw.maintenance, findings),
            defrag: Defrag::from_raw(&raw.defrag, findings),
            metrics: Metrics::from_raw(&raw.metrics, findings),
            control: Control::from_raw(&raw.control, findings),
        }
    }

    /// Where values contradict each other. To be asked only of settings that came from `raw`
    /// without a finding: a default in the place of a value that could not be read would contradict
    /// values that are right.
    pub(super) fn contradictions(&self, raw: &Raw) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.sampling.contradictions(&raw.sampling, &mut findings);
        self.thresholds
            .contradictions(&raw.thresholds, &mut findings);
        self.rescue.contradictions(&raw.rescue, &mut findings);
        self.maintenance
            .contradictions(&raw.maintenance, &mut findings);
        findings.extend(no_engine(&raw.defrag));
        findings.extend(self.no_trigger(raw));
        findings
    }

    /// A rescue that nothing can start. Whoever wants that turns it off.
    fn no_trigger(&self, raw: &Raw) -> Option<Finding> {
        let Settings { klog, rescue, .. } = self;
        let by_file = klog.files_may_rescue && !klog.files.is_empty();
        if !rescue.enabled || klog.kmsg || by_file || rescue.stall_after.is_some() {
            return None;
        }
        // Neither is the default, so both are set.
        let (kmsg, stall) = (raw.klog.kmsg.as_ref()?, raw.rescue.stall_after.as_ref()?);
        let message = "klog.kmsg = false, and rescue.stall_after = \"never\", and no log file may \
                       rescue: nothing could start the rescue";
        let write = "kmsg = true, or enabled = false in [rescue] if there is to be none";
        let mut finding = Finding::new(kmsg.place.clone(), message.to_owned(), write);
        finding.other = Some((
            stall.place.clone(),
            "rescue.stall_after is set here".to_owned(),
        ));
        Some(finding)
    }
}

impl Images {
    fn from_raw(raw: &RawImages, findings: &mut Vec<Finding>) -> Images {
        let default = Images::default();
        for path in raw.paths.iter().flat_map(|paths| &paths.value) {
            findings.extend(check_path(path));
        }
        for (name, globs) in [
            ("images.include", &raw.include),
            ("images.exclude", &raw.exclude),
        ] {
            findings.extend(globs.iter().flat_map(|globs| check_globs(name, globs)));
        }
        findings.extend(at_least("images.limit", &raw.limit, 1));
        Images {
            paths: values_or(&raw.paths, default.paths),
            include: values_or(&raw.include, default.include),
            exclude: values_or(&raw.exclude, default.exclude),
            min_size: value_or(&raw.min_size, default.min_size),
            limit: value_or(&raw.limit, default.limit),
        }
    }
}

impl Sampling {
    fn from_raw(raw: &RawSampling, findings: &mut Vec<Finding>) -> Sampling {
        let default = Sampling::default();
        let count = "sampling.map_max_extents";
        findings.extend(at_least(
            "sampling.interval",
            &raw.interval,
            SHORTEST_INTERVAL,
        ));
        findings.extend(at_least(
            "sampling.probe_timeout",
            &raw.probe_timeout,
            SHORTEST_TIMEOUT,
        ));
        findings.extend(at_least(count, &raw.map_max_extents, ExtentCount(1)));
        findings.extend(at_most(count, &raw.map_max_extents, EXTENT_LIMIT_64));
        let maps = "sampling.map_interval";
        findings.extend(raw.map_interval.as_ref().and_then(|located| {
            let least = OrNever(Some(SHORTEST_INTERVAL));
            (located.value.0? < SHORTEST_INTERVAL)
                .then(|| out_of_range(maps, located, "is below", &least, "or more"))
        }));
        let mut sampling = Sampling {
            interval: value_or(&raw.interval, default.interval),
            map_interval: value_or(&raw.map_interval, OrNever(default.map_interval)).0,
            map_max_extents: value_or(&raw.map_max_extents, default.map_max_extents),
            probe_timeout: value_or(&raw.probe_timeout, default.probe_timeout),
        };
        sampling.adapt(raw);
        sampling
    }

    /// Makes the defaults fit what was written.
    fn adapt(&mut self, raw: &RawSampling) {
        if raw.interval.is_none() {
            if raw.probe_timeout.is_some() {
                self.interval = self.interval.max(self.probe_timeout);
            }
            if let (Some(_), Some(maps)) = (&raw.map_interval, self.map_interval) {
                self.interval = self.interval.min(maps);
            }
        }
        if raw.probe_timeout.is_none() {
            self.probe_timeout = self.probe_timeout.min(self.interval);
        }
        if raw.map_interval.is_none() {
            self.map_interval = self.map_interval.max(Some(self.interval));
        }
    }

    fn contradictions(&self, raw: &RawSampling, findings: &mut Vec<Finding>) {
        let map_interval = OrNever(self.map_interval);
        let maps = || Side::new("sampling.map_interval", &map_interval, &raw.map_interval);
        // An interval that was not written is no longer than that of the maps.
        let interval = || match raw.interval {
            Some(_) => Side::new("sampling.interval", &self.interval, &raw.interval),
            None => maps(),
        };
        if self.probe_timeout > self.interval {
            let timeout = Side::new(
                "sampling.probe_timeout",
                &self.probe_timeout,
                &raw.probe_timeout,
            );
            let write = format!("probe_timeout = {} or less", self.interval.write());
            findings.extend(contradiction(timeout, "is longer than", interval(), &write));
        }
        if self
            .map_interval
            .is_some_and(|map_interval| map_interval < self.interval)
        {
            let write = format!("map_interval = {} or more", self.interval.write());
            findings.extend(contradiction(maps(), "is shorter than", interval(), &write));
        }
    }
}

impl History {
    fn from_raw(raw: &RawHistory, findings: &mut Vec<Finding>) -> History {
        let default = History::default();
        findings.extend(raw.path.as_ref().and_then(check_database));
        findings.extend(at_least(
            "history.retention",
            &raw.retention,
            SHORTEST_RETENTION,
        ));
        History {
            path: raw
                .path
                .as_ref()
                .map_or(default.path, |path| PathBuf::from(&path.value)),
            retention: value_or(&raw.retention, default.retention),
        }
    }
}

impl Klog {
    fn from_raw(raw: &RawKlog, findings: &mut Vec<Finding>) -> Klog {
        let default = Klog::default();
        let files = raw.files.iter().flat_map(|files| &files.value);
        findings.extend(files.clone().filter_map(check_log_file));
        Klog {
            kmsg: value_or(&raw.kmsg, default.kmsg),
            files: match raw.files {
                Some(_) => files.map(|file| PathBuf::from(&file.value)).collect(),
                None => default.files,
            },
            files_may_rescue: value_or(&raw.files_may_rescue, default.files_may_rescue),
            rules: raw
                .rule
                .iter()
                .filter_map(|rule| rule.value.definition())
                .collect(),
        }
    }
}

impl RawRule {
    /// The rule, if it has all that it needs. If not, that was found when it was read.
    pub(super) fn definition(&self) -> Option<RuleDefinition> {
        Some(RuleDefinition {
            name: self.name.as_ref()?.value.clone(),
            pattern: self.pattern.as_ref()?.value.clone(),
            action: value_or(&self.action, Default::default()),
        })
    }
}

impl Rescue {
    fn from_raw(raw: &RawRescue, findings: &mut Vec<Finding>) -> Rescue {
        let default = Rescue::default();
        let actions = "rescue.max_actions_per_hour";
        findings.extend(at_least(
            "rescue.quiet_after",
            &raw.quiet_after,
            SHORTEST_QUIET,
        ));
        findings.extend(at_least(actions, &raw.max_actions_per_hour, 1));
        findings.extend(at_most(
            actions,
            &raw.max_actions_per_hour,
            MAX_ACTIONS_PER_HOUR,
        ));
        if let Some(located) = &raw.stall_after
            && located
                .value
                .0
                .is_some_and(|stall_after| stall_after < SHORTEST_STALL)
        {
            let least = OrNever(Some(SHORTEST_STALL));
            findings.push(out_of_range(
                "rescue.stall_after",
                located,
                "is below",
                &least,
                "or more",
            ));
        }
        findings.extend(check_hook("rescue.hook", &raw.hook));
        let mut rescue = Rescue {
            enabled: value_or(&raw.enabled, default.enabled),
            dry_run: value_or(&raw.dry_run, default.dry_run),
            steps: values_or(&raw.steps, default.steps),
            min_interval: value_or(&raw.min_interval, default.min_interval),
            quiet_after: value_or(&raw.quiet_after, default.quiet_after),
            max_actions_per_hour: value_or(&raw.max_actions_per_hour, default.max_actions_per_hour),
            stall_after: value_or(&raw.stall_after, OrNever(default.stall_after)).0,
            hook: values_or(&raw.hook, default.hook),
        };
        // The defaults fit what was written.
        if raw.quiet_after.is_none() {
            rescue.quiet_after = rescue.quiet_after.max(rescue.min_interval);
        }
        if raw.min_interval.is_none() {
            rescue.min_interval = rescue.min_interval.min(rescue.quiet_after);
        }
        rescue
    }

    fn contradictions(&self, raw: &RawRescue, findings: &mut Vec<Finding>) {
        // Here, because a list whose only item could not be read is empty as well.
        if let Some(steps) = raw.steps.as_ref().filter(|steps| steps.value.is_empty()) {
            findings.push(Finding::new(
                steps.place.clone(),
                "rescue.steps: there is no step".to_owned(),
                "steps = [\"drop_slab\"], or enabled = false if there is to be no rescue",
            ));
        }
        if self.min_interval > self.quiet_after {
            let write = format!("min_interval = {} or less", self.quiet_after.write());
            findings.extend(contradiction(
                Side::new("rescue.min_interval", &self.min_interval, &raw.min_interval),
                "is longer than",
                Side::new("rescue.quiet_after", &self.quiet_after, &raw.quiet_after),
                &write,
            ));
        }
    }
}

impl Maintenance {
    fn from_raw(raw: &RawMaintenance, findings: &mut Vec<Finding>) -> Maintenance {
        findings.extend(at_most("maintenance.jitter", &raw.jitter, LONGEST_JITTER));
        for window in &raw.window {
            window.value.check(findings);
        }
        let windows = raw.window.iter().filter_map(|window| window.value.window());
        let blackouts = raw.blackout.iter().filter_map(|raw| raw.value.blackout());
        Maintenance {
            timezone: value_or(&raw.timezone, Zone::default()),
            jitter: value_or(&raw.jitter, Duration::ZERO),
            windows: windows.collect(),
            blackouts: blackouts.collect(),
        }
    }

    fn contradictions(&self, raw: &RawMaintenance, findings: &mut Vec<Finding>) {
        findings.extend(raw.window.iter().filter_map(|raw| raw.value.no_day()));
        findings.extend(raw.blackout.iter().filter_map(|raw| raw.value.backwards()));
        let shortest = std::iter::zip(&self.windows, &raw.window)
            .min_by_key(|(window, _)| window.duration)
            .filter(|(window, _)| self.jitter > window.duration / 2);
        if let Some((window, located)) = shortest {
            let write = format!("jitter = {} or less", (window.duration / 2).write());
            findings.extend(contradiction(
                Side::new("maintenance.jitter", &self.jitter, &raw.jitter),
                "is longer than half of",
                Side::new(
                    "maintenance.window.duration",
                    &window.duration,
                    &located.value.duration,
                ),
                &write,
            ));
        }
    }
}

impl Defrag {
    fn from_raw(raw: &RawDefrag, findings: &mut Vec<Finding>) -> Defrag {
        let default = Defrag::default();
        findings.extend(at_most("defrag.keep_free", &raw.keep_free, MOST_FREE));
        findings.extend(at_least("defrag.bandwidth", &raw.bandwidth, SLOWEST));
        let pressure = "defrag.max_io_pressure";
        findings.extend(at_least(pressure, &raw.max_io_pressure, 1));
        findings.extend(at_most(pressure, &raw.max_io_pressure, 100));
        let target = "defrag.stall_target";
        findings.extend(at_least(target, &raw.stall_target, SHORTEST_TARGET));
        findings.extend(at_least("defrag.parallel", &raw.parallel, 1));
        findings.extend(at_most("defrag.parallel", &raw.parallel, MOST_PARALLEL));
        let kernels = raw.trusted_kernels.iter().flat_map(|list| &list.value);
        findings.extend(kernels.filter_map(check_kernel_release));
        let hooks = [
            ("defrag.hook_before", &raw.hook_before),
            ("defrag.hook_after", &raw.hook_after),
        ];
        for (name, hook) in hooks {
            findings.extend(check_hook(name, hook));
        }
        Defrag {
            from: value_or(&raw.from, default.from),
            engines: values_or(&raw.engines, default.engines),
            dry_run: value_or(&raw.dry_run, default.dry_run),
            keep_free: value_or(&raw.keep_free, default.keep_free),
            cooldown: value_or(&raw.cooldown, default.cooldown),
            bandwidth: value_or(&raw.bandwidth, Rate(default.bandwidth)).0,
            max_io_pressure: value_or(&raw.max_io_pressure, default.max_io_pressure),
            max_swap_stall: value_or(&raw.max_swap_stall, default.max_swap_stall),
            stall_target: value_or(&raw.stall_target, default.stall_target),
            parallel: value_or(&raw.parallel, default.parallel),
            trusted_kernels: values_or(&raw.trusted_kernels, default.trusted_kernels),
            hook_before: values_or(&raw.hook_before, default.hook_before),
            hook_after: values_or(&raw.hook_after, default.hook_after),
        }
    }
}

impl RawWindow {
    fn check(&self, findings: &mut Vec<Finding>) {
        const DURATION: &str = "maintenance.window.duration";
        findings.extend(at_least(DURATION, &self.duration, SHORTEST_WINDOW));
        findings.extend(at_most(DURATION, &self.duration, LONGEST_WINDOW));
    }

    /// The window, if it has all that it needs. If not, that was found when it was read.
    fn window(&self) -> Option<Window> {
        Some(Window {
            days: values_or(&Some(self.days.clone()?), Vec::new()),
            start: self.start.as_ref()?.value,
            duration: self.duration.as_ref()?.value,
        })
    }

    /// A window that never opens. Asked late, because a list whose only item could not be read is
    /// empty as well.
    fn no_day(&self) -> Option<Finding> {
        let days = self.days.as_ref().filter(|days| days.value.is_empty())?;
        let message = "maintenance.window.days: there is no day".to_owned();
        let write = "days = [\"Sat\", \"Sun\"], or no window at all";
        Some(Finding::new(days.place.clone(), message, write))
    }
}

impl RawBlackout {
    /// The blackout, if it has both of its ends.
    fn blackout(&self) -> Option<Blackout> {
        Some(Blackout {
            from: self.from.as_ref()?.value,
            to: self.to.as_ref()?.value,
        })
    }

    /// A blackout that ends before it begins.
    fn backwards(&self) -> Option<Finding> {
        let Blackout { from, to } = self.blackout().filter(|it| it.to < it.from)?;
        contradiction(
            Side::new("maintenance.blackout.to", &to, &self.to),
            "is before",
            Side::new("maintenance.blackout.from", &from, &self.from),
            &format!("to = {}, the last day, or a later one", from.write()),
        )
    }
}

/// A list of engines without any. To be asked late, because a list whose only item could not be
/// read is empty as well.
fn no_engine(raw: &RawDefrag) -> Option<Finding> {
    let engines = raw.engines.as_ref().filter(|list| list.value.is_empty())?;
    Some(Finding::new(
        engines.place.clone(),
        "defrag.engines: there is no engine".to_owned(),
        "engines = [\"xfs_fsr\"]; nothing runs unless a maintenance window is configured",
    ))
}

impl Metrics {
    fn from_raw(raw: &RawMetrics, findings: &mut Vec<Finding>) -> Metrics {
        // An empty text says that there is none.
        let file = raw.textfile.as_ref().filter(|file| !file.value.is_empty());
        findings.extend(file.and_then(check_textfile));
        Metrics {
            listen: value_or(&raw.listen, Metrics::default().listen),
            textfile: file.map(|file| PathBuf::from(&file.value)),
        }
    }
}

impl Control {
    fn from_raw(raw: &RawControl, findings: &mut Vec<Finding>) -> Control {
        let default = Control::default();
        findings.extend(raw.socket.as_ref().and_then(check_socket));
        if let Some(group) = raw.group.as_ref().filter(|group| group.value.is_empty()) {
            findings.push(Finding::new(
                group.place.clone(),
                "control.group is empty".to_owned(),
                "group = \"root\" for root alone",
            ));
        }
        Control {
            socket: raw
                .socket
                .as_ref()
                .map_or(default.socket, |socket| PathBuf::from(&socket.value)),
            group: value_or(&raw.group, default.group),
        }
    }
}

impl From<&Settings> for Raw {
    /// The settings as a file that sets every key.
    fn from(settings: &Settings) -> Raw {
        let Settings {
            images,
            sampling,
            history,
            thresholds,
            klog,
            rescue,
            maintenance,
            defrag,
            metrics,
            control,
        } = settings;
        Raw {
            images: RawImages {
                paths: given_list(images.paths.iter().cloned()),
                include: given_list(images.include.iter().cloned()),
                exclude: given_list(images.exclude.iter().cloned()),
                min_size: given(images.min_size),
                limit: given(images.limit),
            },
            sampling: RawSampling {
                interval: given(sampling.interval),
                map_interval: given(OrNever(sampling.map_interval)),
                map_max_extents: given(sampling.map_max_extents),
                probe_timeout: given(sampling.probe_timeout),
            },
            history: RawHistory {
                path: given(history.path.to_string_lossy().into()),
                retention: given(history.retention),
            },
            thresholds: RawThresholds::from(thresholds),
            klog: RawKlog {
                kmsg: given(klog.kmsg),
                files: given_list(klog.files.iter().map(|file| file.to_string_lossy().into())),
                files_may_rescue: given(klog.files_may_rescue),
                rule: klog.rules.iter().map(given_rule).collect(),
            },
            rescue: RawRescue {
                enabled: given(rescue.enabled),
                dry_run: given(rescue.dry_run),
                steps: given_list(rescue.steps.iter().copied()),
                min_interval: given(rescue.min_interval),
                quiet_after: given(rescue.quiet_after),
                max_actions_per_hour: given(rescue.max_actions_per_hour),
                stall_after: given(OrNever(rescue.stall_after)),
                hook: given_list(rescue.hook.iter().cloned()),
            },
            maintenance: RawMaintenance {
                timezone: given(maintenance.timezone.clone()),
                jitter: given(maintenance.jitter),
                window: maintenance.windows.iter().map(given_window).collect(),
                blackout: maintenance.blackouts.iter().map(given_blackout).collect(),
            },
            defrag: RawDefrag::from(defrag),
            metrics: RawMetrics {
                listen: given(metrics.listen),
                textfile: given(match &metrics.textfile {
                    Some(file) => file.to_string_lossy().into(),
                    None => String::new(),
                }),
            },
            control: RawControl {
                socket: given(control.socket.to_string_lossy().into()),
                group: given(control.group.clone()),
            },
        }
    }
}

impl From<&Defrag> for RawDefrag {
    fn from(defrag: &Defrag) -> RawDefrag {
        RawDefrag {
            from: given(defrag.from),
            engines: given_list(defrag.engines.iter().copied()),
            dry_run: given(defrag.dry_run),
            keep_free: given(defrag.keep_free),
            cooldown: given(defrag.cooldown),
            bandwidth: given(Rate(defrag.bandwidth)),
            max_io_pressure: given(defrag.max_io_pressure),
            max_swap_stall: given(defrag.max_swap_stall),
            stall_target: given(defrag.stall_target),
            parallel: given(defrag.parallel),
            trusted_kernels: given_list(defrag.trusted_kernels.iter().cloned()),
            hook_before: given_list(defrag.hook_before.iter().cloned()),
            hook_after: given_list(defrag.hook_after.iter().cloned()),
        }
    }
}

fn value_or<T: Clone>(key: &Key<T>, default: T) -> T {
    key.as_ref()
        .map_or(default, |located| located.value.clone())
}

fn values_or<T: Clone>(key: &Key<Vec<Located<T>>>, default: Vec<T>) -> Vec<T> {
    let Some(list) = key else { return default };
    list.value.iter().map(|item| item.value.clone()).collect()
}

fn given<T>(value: T) -> Key<T> {
    Some(Located::nowhere(value))
}

fn given_list<T>(list: impl Iterator<Item = T>) -> Key<Vec<Located<T>>> {
    given(list.map(Located::nowhere).collect())
}

fn given_rule(rule: &RuleDefinition) -> Located<RawRule> {
    Located::nowhere(RawRule {
        name: given(rule.name.clone()),
        pattern: given(rule.pattern.clone()),
        action: given(rule.action),
    })
}

fn given_window(window: &Window) -> Located<RawWindow> {
    Located::nowhere(RawWindow {
        days: given_list(window.days.iter().copied()),
        start: given(window.start),
        duration: given(window.duration),
    })
}

fn given_blackout(blackout: &Blackout) -> Located<RawBlackout> {
    Located::nowhere(RawBlackout {
        from: given(blackout.from),
        to: given(blackout.to),
    })
}

fn at_least<T: Value + PartialOrd>(name: &str, key: &Key<T>, least: T) -> Option<Finding> {
    let located = key.as_ref().filter(|located| located.value < least)?;
    Some(out_of_range(name, located, "is below", &least, "or more"))
}

fn at_most<T: Value + PartialOrd>(name: &str, key: &Key<T>, most: T) -> Option<Finding> {
    let located = key.as_ref().filter(|located| located.value > most)?;
    Some(out_of_range(name, located, "is above", &most, "or less"))
}

fn out_of_range<T: Value>(
    name: &str,
    located: &Located<T>,
    is: &str,
    bound: &T,
    or: &str,
) -> Finding {
    let last = name.rsplit('.').next().unwrap_or(name);
    let bound = bound.write();
    let message = format!("{name}: {} {is} {bound}", located.value.write());
    Finding::new(
        located.place.clone(),
        message,
        &format!("{last} = {bound} {or}"),
    )
}

/// One of two values that contradict each other.
struct Side<'r> {
    name: String,
    written: String,
    /// Where it was written; nowhere if it is a default.
    place: Option<&'r Place>,
}

impl<'r> Side<'r> {
    fn new<T: Value>(name: impl Into<String>, value: &T, key: &'r Key<T>) -> Side<'r> {
        Side {
            name: name.into(),
            written: value.write(),
            place: key.as_ref().map(|located| &located.place),
        }
    }

    fn shown(&self) -> String {
        format!("{} = {}", self.name, self.written)
    }
}

/// `one` contradicts `other`. Nothing unless both were written: a default adapts.
fn contradiction(one: Side<'_>, relation: &str, other: Side<'_>, write: &str) -> Option<Finding> {
    let message = format!("{} {relation} {}", one.shown(), other.shown());
    let mut finding = Finding::new(one.place?.clone(), message, write);
    finding.other = Some((other.place?.clone(), format!("{} is set here", other.name)));
    Some(finding)
}

/// What is wrong with a path of `images.paths`.
fn check_path(path: &Located<String>) -> Option<Finding> {
    const NAME: &str = "images.paths";
    check_absolute(NAME, path).or_else(|| {
        let is_glob = is_glob(&path.value);
        is_glob.then(|| check_glob(NAME, path)).flatten()
    })
}

/// What is wrong with a path of `klog.files`.
fn check_log_file(path: &Located<String>) -> Option<Finding> {
    const NAME: &str = "klog.files";
    check_absolute(NAME, path).or_else(|| {
        // Would be followed as a file of that name, which never comes. `[` and `{` do occur.
        let is_glob = path.value.contains(['*', '?']);
        is_glob.then(|| {
            let message = format!("{NAME}: {} is a glob", quoted(&path.value));
            Finding::new(path.place.clone(), message, "the path of each file")
        })
    })
}

/// What is wrong with `history.path`.
fn check_database(path: &Located<String>) -> Option<Finding> {
    const NAME: &str = "history.path";
    check_absolute(NAME, path).or_else(|| {
        let text = &path.value;
        // As a path, `/a/` is `/a`, and what ends in `..` has no name.
        let has_name = Path::new(text).file_name().is_some() && !text.ends_with(['/', '.']);
        (!has_name).then(|| {
            let message = format!("{NAME}: {} names no file", quoted(text));
            let write = "path = \"/var/lib/fragwatch/history.db\"";
            Finding::new(path.place.clone(), message, write)
        })
    })
}

/// What is wrong with `metrics.textfile`.
fn check_textfile(path: &Located<String>) -> Option<Finding> {
    const NAME: &str = "metrics.textfile";
    check_absolute(NAME, path).or_else(|| {
        // The collector reads no other files (node_exporter, collector/textfile.go).
        (!path.value.ends_with(".prom")).then(|| {
            let message = format!("{NAME}: {} does not end in .prom", quoted(&path.value));
            let write = "a file in node_exporter's textfile directory, such as \
                         \"/var/lib/prometheus/node-exporter/fragwatch.prom\"";
            Finding::new(path.place.clone(), message, write)
        })
    })
}

/// What is wrong with `control.socket`.
fn check_socket(path: &Located<String>) -> Option<Finding> {
    const NAME: &str = "control.socket";
    check_absolute(NAME, path).or_else(|| {
        (path.value.len() > LONGEST_SOCKET).then(|| {
            let message = format!(
                "{NAME}: {} is {} bytes long, more than a socket can have",
                quoted(&path.value),
                path.value.len()
            );
            let write = format!("a path of at most {LONGEST_SOCKET} bytes");
            Finding::new(path.place.clone(), message, &write)
        })
    })
}

/// What is wrong with a path.
fn check_absolute(name: &str, path: &Located<String>) -> Option<Finding> {
    let text = &path.value;
    let finding = |message: &str, write: &str| {
        let message = format!("{name}: {} {message}", quoted(text));
        Some(Finding::new(path.place.clone(), message, write))
    };
    if !text.starts_with('/') {
        return finding("is not absolute", "\"/…\", the path from the root on");
    }
    if text.contains('\0') {
        return finding("holds a NUL, as no path can", "the path without it");
    }
    None
}

/// What is wrong with a command.
fn check_hook(name: &str, command: &Key<Vec<Located<String>>>) -> Option<Finding> {
    let (program, arguments) = command.as_ref()?.value.split_first()?;
    check_absolute(name, program).or_else(|| {
        let argument = arguments
            .iter()
            .find(|argument| argument.value.contains('\0'))?;
        let message = format!(
            "{name}: {} holds a NUL, as no argument can",
            quoted(&argument.value)
        );
        Some(Finding::new(
            argument.place.clone(),
            message,
            "the argument without it",
        ))
    })
}

/// What is wrong with the release of a kernel. There are no patterns: one would vouch for kernels
/// that nobody has looked at.
fn check_kernel_release(release: &Located<String>) -> Option<Finding> {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let text = &release.value;
    let is_release = text.starts_with(|c: char| c.is_ascii_digit()) && text.contains('.');
    if is_release && text.chars().all(usual) {
        return None;
    }
    Some(Finding::new(
        release.place.clone(),
        format!(
            "defrag.trusted_kernels: {} is no release of a kernel",
            quoted(text)
        ),
        "what `uname -r` says, e.g. \"5.14.0-611.el9.x86_64\"",
    ))
}

/// What is wrong with the globs of a list, each for itself and all together.
fn check_globs(name: &str, globs: &Located<Vec<Located<String>>>) -> Vec<Finding> {
    let findings: Vec<Finding> = globs
        .value
        .iter()
        .filter_map(|glob| check_glob(name, glob).or_else(|| check_anchor(name, glob)))
        .collect();
    let all = globs.value.iter().map(|glob| glob.value.as_str());
    if findings.is_empty()
        && let Err(error) = compile_globs(all)
    {
        let message = format!("{name}: all globs together: {}", error.kind());
        return vec![Finding::new(
            globs.place.clone(),
            message,
            "fewer or shorter globs",
        )];
    }
    findings
}

fn check_glob(name: &str, glob: &Located<String>) -> Option<Finding> {
    let text = &glob.value;
    let error = compile_globs([text.as_str()]).err()?;
    let message = format!("{name}: {} is not a glob: {}", quoted(text), error.kind());
    let literal = quoted(&globset::escape(text));
    let write = format!("{literal} if every character is meant as it is");
    Some(Finding::new(glob.place.clone(), message, &write))
}

/// A glob with a slash is held against the whole path, so it can only match if it may begin with a
/// slash.
fn check_anchor(name: &str, glob: &Located<String>) -> Option<Finding> {
    let text = &glob.value;
    if text.is_empty() {
        let message = format!("{name}: \"\" matches nothing");
        return Some(Finding::new(
            glob.place.clone(),
            message,
            "\"*\" for every file",
        ));
    }
    if !text.contains('/') || text.starts_with('/') || text.starts_with("**") {
        return None;
    }
    if text.starts_with(['{', '[', '\\']) {
        // May begin with a slash; whoever writes this knows.
        return None;
    }
    let message = format!(
        "{name}: {} matches nothing: with a slash in it, it is held against the whole path",
        quoted(text)
    );
    let rest = text.strip_prefix("./").unwrap_or(text);
    let write = quoted(&format!("**/{rest}"));
    Some(Finding::new(glob.place.clone(), message, &write))
}
