//! The settings: every key, its type and its default. What they are read and printed by is derived.
//!
//! Pure: nothing here opens a file. What cannot work is refused by [`check`](super::check), so that
//! no other room has to think of an interval of zero or a glob that does not compile.

mod thresholds;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use serde::{Deserialize, Serialize};

pub use super::globs::{GlobLists, Globs, compile_globs, is_glob};
pub use super::zone::Zone;
pub use thresholds::{HostLimits, LimitChanges, Limits, Thresholds};

use super::formats::{date, rate, text, texts};
use super::text::document;
use crate::model::{Bytes, Engine, ExtentCount, RescueStep, RuleDefinition, Severity, Share};

/// The control socket, unless another is configured.
pub const DEFAULT_SOCKET: &str = "/run/fragwatch/control.sock";

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    #[serde(with = "text")]
    pub min_size: Bytes,
    /// Files and directories that the search of one of `paths` meets at most; the rest is not looked
    /// at. One at least.
    pub limit: u32,
}

/// How often images are looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// From one count of the extents of all images to the next. A second at least.
    #[serde(with = "text")]
    pub interval: Duration,
    /// From one reading of the whole extent maps to the next, `interval` at least. None: they
    /// are never read.
    #[serde(with = "text")]
    pub map_interval: Option<Duration>,
    /// An extent map with more extents than this is not read: the kernel would have to hold it in
    /// memory. One at least.
    pub map_max_extents: ExtentCount,
    /// How long a call on an image may take before its file system counts as stalled. 100 ms at
    /// least, `interval` at most.
    #[serde(with = "text")]
    pub probe_timeout: Duration,
}

/// Where the past is kept, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// Absolute path of the database. It has a directory and a name.
    pub path: PathBuf,
    /// What is older than this is removed. A day at least.
    #[serde(with = "text")]
    pub retention: Duration,
}

/// Where the kernel's messages are read, and which of them matter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Klog {
    /// Whether /dev/kmsg is read.
    pub kmsg: bool,
    /// Absolute paths of log files that are followed as well.
    pub files: Vec<PathBuf>,
    /// Whether a line of one of these files may start the rescue.
    pub files_may_rescue: bool,
    /// Rules beside the built-in ones. All together compile.
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleDefinition>,
}

/// What is done in an emergency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rescue {
    /// Whether anything is.
    pub enabled: bool,
    /// Everything but the writes that have an effect.
    pub dry_run: bool,
    /// The steps of an incident, one at least; the last one is repeated.
    pub steps: Vec<RescueStep>,
    /// From one action to the next. May be zero; `quiet_after` at most.
    #[serde(with = "text")]
    pub min_interval: Duration,
    /// Without message and action for this long, an incident is over. A second at least.
    #[serde(with = "text")]
    pub quiet_after: Duration,
    /// Most actions in any hour: 1 to 3600.
    pub max_actions_per_hour: u32,
    /// A task that is stuck for this long in the allocator underneath XFS starts the rescue. A
    /// second at least. None: no task does.
    #[serde(with = "text")]
    pub stall_after: Option<Duration>,
    /// A command and its arguments, run after an incident begins and after it ends. The command is
    /// an absolute path. Empty: there is none.
    pub hook: Vec<String>,
}

/// When images may be defragmented: never, unless there is a window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Maintenance {
    /// Where the clock hangs that days and times are read from.
    pub timezone: Zone,
    /// By how much the beginnings of windows are spread over the hosts, half of the shortest window
    /// at most.
    #[serde(with = "text")]
    pub jitter: Duration,
    /// When it is allowed. They may touch and overlap.
    #[serde(rename = "window", skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// When it is forbidden, whatever the windows say.
    #[serde(rename = "blackout", skip_serializing_if = "Vec::is_empty")]
    pub blackouts: Vec<Blackout>,
}

/// A time of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The days on which it opens; one at least.
    #[serde(with = "texts")]
    pub days: Vec<Weekday>,
    /// When it opens on these days, to the minute.
    #[serde(with = "text")]
    pub start: Time,
    /// For how long it stays open, in real time: from a minute to a week.
    #[serde(with = "text")]
    pub duration: Duration,
}

/// Dates on which nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// The first day.
    #[serde(with = "date")]
    pub from: Date,
    /// The last day, not before the first.
    #[serde(with = "date")]
    pub to: Date,
}

/// How images are defragmented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defrag {
    /// The severity from which an image is a candidate.
    pub from: Severity,
    /// What may be used, the first that can work on an image first; one at least.
    pub engines: Vec<Engine>,
    /// Everything but the runs themselves.
    pub dry_run: bool,
    /// What is to stay free of a file system during a run; 90 % at most.
    #[serde(with = "text")]
    pub keep_free: Share,
    /// From the end of a run to the next one of the same image at least.
    #[serde(with = "text")]
    pub cooldown: Duration,
    /// What a run reads and writes together, in bytes a second; 1 MiB at least.
    #[serde(with = "rate")]
    pub bandwidth: Bytes,
    /// Pressure of others, in hundredths, above which a run waits: 1 to 100.
    pub max_io_pressure: u32,
    /// xfs_fsr: the longest predicted stall of the final swap.
    #[serde(with = "text")]
    pub max_swap_stall: Duration,
    /// online: the aim of one kernel call; a millisecond at least.
    #[serde(with = "text")]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Address and port of the HTTP server. Port 0 is one that the kernel chooses.
    #[serde(with = "text")]
    pub listen: SocketAddr,
    /// A file that the metrics are written to as well, for node_exporter: absolute, and its name
    /// ends in `.prom`. None: there is no such file.
    #[serde(with = "text")]
    pub textfile: Option<PathBuf>,
}

/// Where commands such as `fragwatch status` ask the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    pub fn to_toml(&self) -> String {
        // Written and read, because a table has no dates of its own. Neither fails: the keys are
        // text, the numbers below 2^63.
        let written = toml::to_string(self).unwrap_or_default();
        document(&written.parse().unwrap_or_default())
    }
}

#[cfg(test)]
pub use thresholds::Override;
