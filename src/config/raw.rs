//! The sections and keys that a file may have. A new key is declared here, and the compiler then
//! asks for it in [`settings`](super::settings).

use std::net::SocketAddr;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};

use super::reader::{Field as _, Item, Line, Located, key_name, sections};
use super::settings::Zone;
use super::values::{CountOrNever, Factor, OrNever, Rate};
use crate::model::{Bytes, Engine, ExtentCount, RescueStep, RuleAction, Severity, Share};

/// A key that may be absent.
pub(super) type Key<T> = Option<Located<T>>;

/// A section that may be there several times.
pub(super) type List<S> = Vec<Located<S>>;

sections! {
    /// All that one file sets, or several together.
    Raw {
        images: RawImages,
        sampling: RawSampling,
        history: RawHistory,
        thresholds: RawThresholds,
        klog: RawKlog,
        rescue: RawRescue,
        maintenance: RawMaintenance,
        defrag: RawDefrag,
        metrics: RawMetrics,
        control: RawControl,
    }

    /// Which files are watched.
    RawImages {
        paths: Key<Vec<Located<String>>>,
        include: Key<Vec<Located<String>>>,
        exclude: Key<Vec<Located<String>>>,
        min_size: Key<Bytes>,
        limit: Key<u32>,
    }

    /// How often they are looked at.
    RawSampling {
        interval: Key<Duration>,
        map_interval: Key<OrNever>,
        map_max_extents: Key<ExtentCount>,
        probe_timeout: Key<Duration>,
    }

    /// Where the past is kept, and for how long.
    RawHistory {
        path: Key<String>,
        retention: Key<Duration>,
    }

    /// What is too much.
    RawThresholds {
        growth_window: Key<Duration>,
        hysteresis: Key<Factor>,
        hook: Key<Vec<Located<String>>>,
        warning: RawLimits,
        critical: RawLimits,
        host: RawHost,
        overrides as "override": List<RawOverride>,
    }

    /// The thresholds of one severity.
    RawLimits {
        extents: Key<ExtentCount>,
        growth_per_day: Key<CountOrNever>,
        time_to_critical: Key<OrNever>,
    }

    /// How much of the host's memory extent maps may take.
    RawHost {
        warning: Key<Share>,
        critical: Key<Share>,
    }

    /// Other thresholds for some images.
    RawOverride {
        images: Key<Vec<Located<String>>>,
        warning: RawLimits,
        critical: RawLimits,
    }

    /// Where the kernel's messages are read, and which of them matter.
    RawKlog {
        kmsg: Key<bool>,
        files: Key<Vec<Located<String>>>,
        files_may_rescue: Key<bool>,
        rule: List<RawRule>,
    }

    /// A rule of the operator.
    RawRule {
        name: Key<String>,
        pattern: Key<String>,
        action: Key<RuleAction>,
    }

    /// What is done in an emergency.
    RawRescue {
        enabled: Key<bool>,
        dry_run: Key<bool>,
        steps: Key<Vec<Located<RescueStep>>>,
        min_interval: Key<Duration>,
        quiet_after: Key<Duration>,
        max_actions_per_hour: Key<u32>,
        stall_after: Key<OrNever>,
        hook: Key<Vec<Located<String>>>,
    }

    /// When images may be defragmented.
    RawMaintenance {
        timezone: Key<Zone>,
        jitter: Key<Duration>,
        window: List<RawWindow>,
        blackout: List<RawBlackout>,
    }

    /// A time of the week.
    RawWindow {
        days: Key<Vec<Located<Weekday>>>,
        start: Key<Time>,
        duration: Key<Duration>,
    }

    /// Dates on which nothing is done.
    RawBlackout {
        from: Key<Date>,
        to: Key<Date>,
    }

    /// How images are defragmented.
    RawDefrag {
        from: Key<Severity>,
        engines: Key<Vec<Located<Engine>>>,
        dry_run: Key<bool>,
        keep_free: Key<Share>,
        cooldown: Key<Duration>,
        bandwidth: Key<Rate>,
        max_io_pressure: Key<u32>,
        max_swap_stall: Key<Duration>,
        stall_target: Key<Duration>,
        parallel: Key<u32>,
        trusted_kernels: Key<Vec<Located<String>>>,
        hook_before: Key<Vec<Located<String>>>,
        hook_after: Key<Vec<Located<String>>>,
    }

    /// Where the metrics are served.
    RawMetrics {
        listen: Key<SocketAddr>,
        textfile: Key<String>,
    }

    /// Where commands ask the daemon.
    RawControl {
        socket: Key<String>,
        group: Key<String>,
    }
}

impl Item for RawRule {
    const REQUIRED: &'static [(&'static str, &'static str)] = &[
        ("name", "name = \"disk_failed\""),
        ("pattern", "pattern = 'md/raid.*Disk failure on'"),
    ];
}

impl Item for RawOverride {
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("images", "images = [\"/srv/db-*\"]")];
}

impl Item for RawWindow {
    const REQUIRED: &'static [(&'static str, &'static str)] = &[
        ("days", "days = [\"Sat\", \"Sun\"]"),
        ("start", "start = \"01:00\""),
        ("duration", "duration = \"4h\""),
    ];
}

impl Item for RawBlackout {
    const REQUIRED: &'static [(&'static str, &'static str)] = &[
        ("from", "from = 2026-12-20, the first day"),
        ("to", "to = 2027-01-06, the last day"),
    ];
}

impl Raw {
    /// The keys that are set as TOML, in the order of their declaration.
    pub(super) fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        self.lines("", "", &mut lines);
        let mut text = String::new();
        let mut open = "";
        for line in &lines {
            let header = match line {
                Line::Item { section } => Some((section, format!("[[{section}]]"))),
                Line::Key { section, .. } if section != open => {
                    Some((section, format!("[{section}]")))
                }
                Line::Key { .. } => None,
            };
            if let Some((section, header)) = header {
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}{header}\n"));
                open = section;
            }
            if let Line::Key { name, value, .. } = line {
                text.push_str(&format!("{name} = {value}\n"));
            }
        }
        text
    }
}
