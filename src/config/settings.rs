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

pub use super::globs::{Globs, compile_globs, is_glob};
pub use super::zone::Zone;
pub use doctor::{Doctor, Silence};
pub use thresholds::{HostLimits, LimitChanges, Limits, Thresholds};

use super::checks::{
    DAY, SECOND, command, each, globs, is_database, is_followed, is_release, is_searched,
    is_socket, is_textfile, one, set, within,
};
use super::formats::{date, sections, text, texts};
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{
    Bytes, BytesPerSecond, Engine, ExtentCount, RescueStep, RuleDefinition, Severity, Share,
};

/// Maximum number of actions per hour: one a second. The rescue stores as many times.
pub(super) const MAX_ACTIONS_PER_HOUR: u32 = 3600;
/// The default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/fragwatch/control.sock";

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which files are watched.
    pub images: Images,
    /// How often the images are counted.
    pub sampling: Sampling,
    /// Where measurements are stored, and for how long.
    pub history: History,
    /// The limits of each severity.
    pub thresholds: Thresholds,
    /// Sources and rules of kernel messages.
    pub klog: Klog,
    /// Emergency actions.
    pub rescue: Rescue,
    /// When images may be defragmented.
    pub maintenance: Maintenance,
    /// How images are defragmented.
    pub defrag: Defrag,
    /// The checks of the host.
    pub doctor: Doctor,
    /// Where the metrics are exported.
    pub metrics: Metrics,
    /// The control socket.
    pub control: Control,
}

sections! {
    /// Which files are watched.
    pub struct Images {
        /// Absolute paths of files or directories (recursive), or globs ([`is_glob`]). May be empty.
        pub paths: Vec<String> = vec!["/var/lib/libvirt/images".to_owned()], check each(is_searched, "an absolute path, or a glob of one");
        /// Globs of the image files; if empty, every file that looks like a disk image. A glob without
        /// `/` is matched against the file name, any other against the whole path.
        pub include: Vec<String> = Vec::new(), check globs;
        /// Globs of files to ignore, in the same form. They take precedence over `include`.
        pub exclude: Vec<String> = vec!["*.iso".to_owned()], check globs;
        /// Smaller files are not images.
        #[serde(with = "text")]
        pub min_size: Bytes = Bytes(256 << 20);
        /// Maximum number of files and directories visited per entry of `paths`; at least 1.
        // Ten times the number on the largest hosts; an unintended path (`/`, a mail store) ends
        // here, before a sweep takes minutes.
        pub limit: u32 = 100_000, check within(1..);
    }

    /// How often images are counted.
    pub struct Sampling {
        /// Time between two counts of the extents of all images. At least 1 s.
        #[serde(with = "text")]
        pub interval: Duration = Duration::from_secs(60), check within(SECOND..);
        /// Time between two readings of the whole extent maps, at least `interval`. `None`: never.
        #[serde(with = "text")]
        pub map_interval: Option<Duration> = Some(Duration::from_secs(12 * 3600)),
            check set(within(SECOND..));
        /// Maps with more extents are not read: the kernel would hold them in memory. At least 1.
        pub map_max_extents: ExtentCount = ExtentCount(1_000_000),
            check within(ExtentCount(1)..=EXTENT_LIMIT_64);
        /// Time limit of a call on an image, then its file system is stalled. 100 ms to `interval`.
        #[serde(with = "text")]
        pub probe_timeout: Duration = Duration::from_secs(10), check within(SECOND / 10..);
    }

    /// Where measurements are stored, and for how long.
    pub struct History {
        /// Absolute path of the database, with a directory and a file name.
        pub path: PathBuf = PathBuf::from("/var/lib/fragwatch/history.db"), check one(is_database, "the absolute path of a file");
        /// Older records are removed. At least one day.
        #[serde(with = "text")]
        pub retention: Duration = Duration::from_secs(90 * 86_400), check within(DAY..);
    }

    /// Sources and rules of kernel messages.
    pub struct Klog {
        /// Whether /dev/kmsg is read.
        pub kmsg: bool = true;
        /// Absolute paths of additional log files to follow.
        pub files: Vec<PathBuf> = Vec::new(), check each(is_followed, "the absolute path of one file");
        /// Whether a line of one of these files may start the rescue.
        pub files_may_rescue: bool = false;
        /// Rules in addition to the built-in ones. All rules compile together.
        #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
        pub rules: Vec<RuleDefinition> = Vec::new();
    }

    /// Emergency actions.
    pub struct Rescue {
        /// Whether the rescue is active.
        pub enabled: bool = true;
        /// Do everything except the writes that take effect.
        pub dry_run: bool = false;
        /// The steps of an incident, at least one; the last one is repeated.
        pub steps: Vec<RescueStep> = vec![
            RescueStep::DropSlab,
            RescueStep::DropSlab,
            RescueStep::CompactMemory,
            RescueStep::DropAll,
        ];
        /// Minimum time between two actions: from zero to `quiet_after`.
        #[serde(with = "text")]
        pub min_interval: Duration = Duration::from_secs(2);
        /// An incident ends after this time without message and action. At least 1 s.
        #[serde(with = "text")]
        pub quiet_after: Duration = Duration::from_secs(60), check within(SECOND..);
        /// Maximum number of actions in any hour: 1 to 3600.
        pub max_actions_per_hour: u32 = 120, check within(1..=MAX_ACTIONS_PER_HOUR);
        /// Tasks stuck this long in the allocator below XFS start the rescue. From 1 s; `None`: never.
        #[serde(with = "text")]
        pub stall_after: Option<Duration> = Some(Duration::from_secs(10)),
            check set(within(SECOND..));
        /// Command (absolute path) and arguments, run after an incident begins and ends. May be empty.
        pub hook: Vec<String> = Vec::new(), check command;
    }

    /// When images may be defragmented: never if there is no window.
    pub struct Maintenance {
        /// The time zone of days and times.
        #[serde(with = "text")]
        pub timezone: Zone = Zone::default();
        /// Spread of window starts over the hosts; at most half of the shortest window and one day.
        #[serde(with = "text")]
        pub jitter: Duration = Duration::ZERO, check within(..=DAY);
        /// When defragmentation is allowed. Windows may touch and overlap.
        #[serde(rename = "window", skip_serializing_if = "Vec::is_empty")]
        pub windows: Vec<Window> = Vec::new();
        /// When it is forbidden, regardless of the windows.
        #[serde(rename = "blackout", skip_serializing_if = "Vec::is_empty")]
        pub blackouts: Vec<Blackout> = Vec::new();
    }

    /// How images are defragmented.
    pub struct Defrag {
        /// The lowest severity at which an image is a candidate.
        pub from: Severity = Severity::Warning;
        /// The engines, in order of preference; the first that can handle an image runs. At least one.
        pub engines: Vec<Engine> = vec![Engine::XfsFsr, Engine::Online];
        /// Do everything except the runs themselves.
        pub dry_run: bool = false;
        /// The part of a file system that stays free during a run; at most 90 %, or none would start.
        #[serde(with = "text")]
        pub keep_free: Share = Share::percent(5), check within(..=Share::percent(90));
        /// Minimum time from the end of a run to the next run on the same image.
        #[serde(with = "text")]
        pub cooldown: Duration = Duration::from_secs(7 * 86_400);
        /// Limit for reads and writes together; at least 1 MiB per second, or runs would take days.
        #[serde(with = "text")]
        pub bandwidth: BytesPerSecond = BytesPerSecond(200 << 20),
            check within(BytesPerSecond(1 << 20)..);
        /// I/O pressure of other processes, in percent, above which a run waits: 1 to 100.
        pub max_io_pressure: u32 = 40, check within(1..=100);
        /// xfs_fsr: the longest predicted stall of the final swap.
        #[serde(with = "text")]
        pub max_swap_stall: Duration = Duration::from_secs(2);
        /// online: the target duration of one kernel call; at least 1 ms, or nothing would be moved.
        #[serde(with = "text")]
        pub stall_target: Duration = Duration::from_millis(20), check within(SECOND / 1000..);
        /// Maximum number of concurrent runs, each on a different file system: 1 to 64.
        pub parallel: u32 = 2, check within(1..=64);
        /// Kernel releases (`uname -r`) that the operator vouches for.
        pub trusted_kernels: Vec<String> = Vec::new(), check each(is_release, "the output of `uname -r`");
        /// A command and its arguments, run before a run; it may release the image. Empty: none.
        pub hook_before: Vec<String> = Vec::new(), check command;
        /// Likewise, after the run.
        pub hook_after: Vec<String> = Vec::new(), check command;
    }

    /// Where the metrics are exported.
    pub struct Metrics {
        /// Address and port of the HTTP server. With port 0 the kernel chooses one.
        pub listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9843));
        /// Absolute path of a textfile for node_exporter, which ends in `.prom`. `None`: not written.
        #[serde(with = "text")]
        pub textfile: Option<PathBuf> = None, check set(one(is_textfile, "an absolute path that ends in .prom"));
    }

    /// The socket for commands such as `fragwatch status`.
    pub struct Control {
        /// Absolute path of the Unix socket.
        pub socket: PathBuf = PathBuf::from(DEFAULT_SOCKET), check one(is_socket, "an absolute path of at most 107 bytes");
        /// The group that may use it, in addition to root.
        pub group: String = "root".to_owned(), check one(|group| !group.is_empty(), "the name of a group");
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

impl Settings {
    /// All settings as TOML, which reads back unchanged.
    pub fn to_toml(&self) -> String {
        // Cannot fail: the keys are text, the numbers are below 2^63.
        toml::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
pub use thresholds::Override;
