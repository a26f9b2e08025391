//! The settings: every key with its type, its default and its check. Pure: nothing here opens a
//! file. Invalid values are refused, so no other module has to handle an interval of zero or a glob
//! that does not compile.

mod doctor;
mod thresholds;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use serde::{Deserialize, Serialize};

pub use doctor::Silence;
use thresholds::{CRITICAL_EXTENTS, WARNING_EXTENTS, limits};
pub use thresholds::{LimitChanges, Limits, Override};

use super::checks::{
    DAY, HOUR, Invalid, MILLISECOND, MINUTE, SECOND, command, each, form, globs, is_absolute,
    is_database, is_release, is_searched, set, within,
};
use super::formats::{date, factor, sections, settings, text, texts};
use super::text::join;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{
    Bytes, BytesPerSecond, Engine, ExtentCount, RescueStep, RuleDefinition, Severity, Share,
};
use crate::sys::zone::Zone;

/// Maximum number of actions per hour: one a second. The rescue stores as many times.
pub(super) const MAX_ACTIONS_PER_HOUR: u32 = 3600;
/// The default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/fragwatch/control.sock";

settings! {
    /// Which files are watched.
    images: Images {
        /// Absolute paths of files or directories (recursive), or globs. May be empty.
        paths: Vec<String> = vec!["/var/lib/libvirt/images".to_owned()],
            check each(form(is_searched, "an absolute path, or a glob of one"));
        /// Globs of the image files; if empty, every file that looks like a disk image. A glob without
        /// `/` is matched against the file name, any other against the whole path.
        include: Vec<String> = Vec::new(), check globs;
        /// Globs of files to ignore, in the same form. They take precedence over `include`.
        exclude: Vec<String> = vec!["*.iso".to_owned()], check globs;
        /// Smaller files are not images.
        min_size: Bytes as "text" = Bytes(256 << 20);
        /// Maximum number of files and directories visited per entry of `paths`; at least 1.
        // Ten times the number on the largest hosts; an unintended path (`/`, a mail store) ends
        // here, before a sweep takes minutes.
        limit: u32 = 100_000, check within(1..);
    }

    /// How often images are counted.
    sampling: Sampling {
        /// Time between two counts of the extents of all images. At least 1 s.
        interval: Duration as "text" = MINUTE, check within(SECOND..);
        /// Time between two readings of the whole extent maps, at least `interval`. `None`: never.
        map_interval: Option<Duration> as "text" = Some(12 * HOUR), check set(within(SECOND..));
        /// Maps with more extents are not read: the kernel would hold them in memory. At least 1.
        map_max_extents: ExtentCount = ExtentCount(1_000_000),
            check within(ExtentCount(1)..=EXTENT_LIMIT_64);
        /// Time limit of a call on an image, then its file system is stalled. 100 ms to `interval`.
        probe_timeout: Duration as "text" = 10 * SECOND, check within(100 * MILLISECOND..);
    }

    /// Where measurements are stored, and for how long.
    history: History {
        /// Absolute path of the database, with a directory and a file name.
        path: PathBuf = PathBuf::from("/var/lib/fragwatch/history.db"),
            check form(is_database, "the absolute path of a file");
        /// Older records are removed. At least one day.
        retention: Duration as "text" = 90 * DAY, check within(DAY..);
    }

    /// The limits of each severity.
    thresholds: Thresholds {
        /// The time over which growth is measured. At least one minute.
        growth_window: Duration as "text" = DAY, check within(MINUTE..);
        /// A severity ends when the value falls below this part of the threshold: 50 to 100 %.
        hysteresis: Share as "factor" = Share::percent(90);
        /// A command (absolute path) and its arguments, run when a severity changes. Empty: none.
        hook: Vec<String> = Vec::new(), check command;
        /// At these limits an image needs attention.
        #[serde(deserialize_with = "Limits::warning")]
        warning: Limits = Limits::WARNING, check limits(WARNING_EXTENTS);
        /// At these limits it endangers the host. Each one is beyond that of `warning`.
        #[serde(deserialize_with = "Limits::critical")]
        critical: Limits = Limits::CRITICAL, check limits(CRITICAL_EXTENTS);
        /// Limits for all extent maps together.
        host: HostLimits = HostLimits::default(), check HostLimits::invalid;
        /// Limits for some images. For each limit, the last matching override that sets it applies.
        overrides["override"]: Vec<Override> = Vec::new(), check each(Override::invalid);
    }

    /// Sources and rules of kernel messages.
    klog: Klog {
        /// Whether /dev/kmsg is read.
        kmsg: bool = true;
        /// Absolute paths of additional log files to follow. No globs; `[` and `{` do occur in names.
        files: Vec<PathBuf> = Vec::new(), check each(form(
            |path| is_absolute(path) && !path.contains(['*', '?']),
            "the absolute path of one file",
        ));
        /// Whether a line of one of these files may start the rescue.
        files_may_rescue: bool = false;
        /// Rules in addition to the built-in ones. All rules compile together.
        rules["rule"]: Vec<RuleDefinition> = Vec::new();
    }

    /// Emergency actions.
    rescue: Rescue {
        /// Whether the rescue is active.
        enabled: bool = true;
        /// Do everything except the writes that take effect.
        dry_run: bool = false;
        /// The steps of an incident, at least one; the last one is repeated.
        steps: Vec<RescueStep> = vec![
            RescueStep::DropSlab,
            RescueStep::DropSlab,
            RescueStep::CompactMemory,
            RescueStep::DropAll,
        ];
        /// Minimum time between two actions: from zero to `quiet_after`.
        min_interval: Duration as "text" = 2 * SECOND;
        /// An incident ends after this time without message and action. At least 1 s.
        quiet_after: Duration as "text" = MINUTE, check within(SECOND..);
        /// Maximum number of actions in any hour: 1 to 3600.
        max_actions_per_hour: u32 = 120, check within(1..=MAX_ACTIONS_PER_HOUR);
        /// Tasks stuck this long in the allocator below XFS start the rescue. From 1 s; `None`: never.
        stall_after: Option<Duration> as "text" = Some(10 * SECOND), check set(within(SECOND..));
        /// Command (absolute path) and arguments, run after an incident begins and ends. May be empty.
        hook: Vec<String> = Vec::new(), check command;
    }

    /// When images may be defragmented: never if there is no window.
    maintenance: Maintenance {
        /// The time zone of days and times.
        timezone: Zone as "text" = Zone::default();
        /// Spread of window starts over the hosts; at most half of the shortest window and one day.
        jitter: Duration as "text" = Duration::ZERO, check within(..=DAY);
        /// When defragmentation is allowed. Windows may touch and overlap.
        windows["window"]: Vec<Window> = Vec::new(), check each(Window::invalid);
        /// When it is forbidden, regardless of the windows.
        blackouts["blackout"]: Vec<Blackout> = Vec::new();
    }

    /// How images are defragmented.
    defrag: Defrag {
        /// The lowest severity at which an image is a candidate.
        from: Severity = Severity::Warning;
        /// The engines, in order of preference; the first that can handle an image runs. At least one.
        engines: Vec<Engine> = vec![Engine::XfsFsr, Engine::Online];
        /// Do everything except the runs themselves.
        dry_run: bool = false;
        /// The part of a file system that stays free during a run; at most 90 %, or none would start.
        keep_free: Share as "text" = Share::percent(5), check within(..=Share::percent(90));
        /// Minimum time from the end of a run to the next run on the same image.
        cooldown: Duration as "text" = 7 * DAY;
        /// Limit for reads and writes together; at least 1 MiB per second, or runs would take days.
        bandwidth: BytesPerSecond as "text" = BytesPerSecond(200 << 20),
            check within(BytesPerSecond(1 << 20)..);
        /// I/O pressure of other processes, in percent, above which a run waits: 1 to 100.
        max_io_pressure: u32 = 40, check within(1..=100);
        /// xfs_fsr: the longest predicted stall of the final swap.
        max_swap_stall: Duration as "text" = 2 * SECOND;
        /// online: the target duration of one kernel call; at least 1 ms, or nothing would be moved.
        stall_target: Duration as "text" = 20 * MILLISECOND, check within(MILLISECOND..);
        /// Maximum number of concurrent runs, each on a different file system: 1 to 64.
        parallel: u32 = 2, check within(1..=64);
        /// Kernel releases (`uname -r`) that the operator vouches for.
        trusted_kernels: Vec<String> = Vec::new(),
            check each(form(is_release, "the output of `uname -r`"));
        /// A command and its arguments, run before a run; it may release the image. Empty: none.
        hook_before: Vec<String> = Vec::new(), check command;
        /// Likewise, after the run.
        hook_after: Vec<String> = Vec::new(), check command;
    }

    /// The checks of the host.
    doctor: Doctor {
        /// Checks whose findings are shown, but count for nothing.
        silence["silence"]: Vec<Silence> = Vec::new(), check each(Silence::invalid);
    }

    /// Where the metrics are exported.
    metrics: Metrics {
        /// Address and port of the HTTP server. With port 0 the kernel chooses one.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9843));
        /// Absolute path of a textfile for node_exporter, which reads only files that end in `.prom`
        /// (its collector/textfile.go). `None`: not written.
        textfile: Option<PathBuf> as "text" = None, check set(form(
            |path| is_absolute(path) && path.ends_with(".prom"),
            "an absolute path that ends in .prom",
        ));
    }

    /// The socket for commands such as `fragwatch status`.
    control: Control {
        /// Absolute path of the Unix socket: `sun_path` without the final NUL (unix(7)).
        socket: PathBuf = PathBuf::from(DEFAULT_SOCKET), check form(
            |path| is_absolute(path) && path.len() <= 107,
            "an absolute path of at most 107 bytes",
        );
        /// The group that may use it, in addition to root.
        group: String = "root".to_owned(), check form(|it| !it.is_empty(), "the name of a group");
    }
}

sections! {
    /// Limits for the share of the host's memory taken by the loaded extent maps of all images.
    HostLimits {
        /// At this share the host needs attention.
        warning: Share as "text" = Share::percent(1), check within(..=Share(Share::WHOLE.0 - 1));
        /// At this share it is in danger. Above `warning`.
        critical: Share as "text" = Share::percent(5), check within(Share(1)..);
    }
}

/// A weekly maintenance window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The days on which it opens, at least one.
    #[serde(with = "texts")]
    pub days: Vec<Weekday>,
    /// When it opens on these days, to the minute.
    #[serde(with = "text")]
    pub start: Time,
    /// How long it stays open, in elapsed time: one minute to one week.
    #[serde(with = "text")]
    pub duration: Duration,
}

/// Dates without defragmentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// The first day.
    #[serde(with = "date")]
    pub from: Date,
    /// The last day, not before `from`.
    #[serde(with = "date")]
    pub to: Date,
}

impl Window {
    fn invalid(&self, path: &str, invalid: &mut Invalid) {
        // A longer window would overlap its own repetition a week later.
        within(MINUTE..=7 * DAY)(&self.duration, &join(path, "duration"), invalid);
    }
}

impl Settings {
    /// All settings as TOML, which reads back unchanged.
    pub fn to_toml(&self) -> String {
        // Cannot fail: the keys are text, the numbers are below 2^63.
        toml::to_string(self).unwrap_or_default()
    }
}
