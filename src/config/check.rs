//! Checks that serde cannot do: ranges and contradictions. Only keys that are set can be invalid;
//! defaults [adapt] to them.

use std::fmt::Display;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use globset::GlobBuilder;
use toml::de::DeTable;

use super::globs::{compile_globs, is_glob};
use super::read;
use super::report::{Finding, Place};
use super::settings::Settings;
use super::text::{grouped, quoted};
use super::units::{Rate, Unit};
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{Bytes, ExtentCount, Share};

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
/// The shortest interval: a sweep over a thousand images needs time, the stall detector checks once
/// a second, and a shorter gap between two kernel messages does not end an incident.
const SECOND: Duration = Duration::from_secs(1);
/// A disk that spins up or a loaded host causes normal delays of more than a few milliseconds.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Maximum number of actions per hour: one a second. The rescue stores as many times.
pub(super) const MAX_ACTIONS_PER_HOUR: u32 = 3600;
/// With less, one call of the online engine would move nothing.
const MIN_TARGET: Duration = Duration::from_millis(1);
/// At a lower rate, a run would take days for an image.
const MIN_BANDWIDTH: Rate = Rate(Bytes(1 << 20));
/// Above this, no run would ever start.
const MAX_FREE: Share = Share::percent(90);
/// A longer window would overlap its own repetition a week later.
const MAX_WINDOW: Duration = Duration::from_secs(7 * 86_400);
/// More file systems than any host has.
const MAX_PARALLEL: u32 = 64;
/// The longest path of a socket (`sun_path`, unix(7), without the final NUL).
const MAX_SOCKET: usize = 107;

/// A value in TOML syntax.
pub(super) trait Toml {
    fn toml(&self) -> String;
}

impl<T: Unit> Toml for T {
    fn toml(&self) -> String {
        quoted(&self.write())
    }
}

impl Toml for ExtentCount {
    fn toml(&self) -> String {
        grouped(self.0)
    }
}

impl Toml for u32 {
    fn toml(&self) -> String {
        grouped(u64::from(*self))
    }
}

pub(super) struct Check<'s> {
    /// The keys that are set.
    table: &'s DeTable<'s>,
    pub(super) settings: &'s Settings,
    findings: Vec<Finding>,
}

impl<'s> Check<'s> {
    pub(super) fn new(table: &'s DeTable<'s>, settings: &'s Settings) -> Check<'s> {
        Check {
            table,
            settings,
            findings: Vec::new(),
        }
    }

    /// Checks each value by itself.
    pub(super) fn values(mut self) -> Vec<Finding> {
        self.images();
        self.sampling_and_history();
        self.threshold_values();
        self.klog_and_rescue();
        self.maintenance();
        self.defrag();
        self.metrics_and_control();
        self.findings
    }

    /// Checks for contradictions. Only for settings without invalid values: the default in the
    /// place of an invalid value would contradict valid ones.
    pub(super) fn contradictions(mut self) -> Vec<Finding> {
        self.intervals();
        self.threshold_order();
        self.empty_lists();
        self.rescue_trigger();
        self.windows();
        self.findings
    }

    /// The place of a key, by its path, which contains the numbers of list items.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        read::place(self.table, path)
    }

    /// `problem` is appended to the name of the key; `write` is the suggestion.
    pub(super) fn refuse(&mut self, path: &str, problem: impl Display, write: impl Display) {
        if let Some(place) = self.place(path) {
            let message = format!("{}{problem}", name(path));
            self.add(Finding::new(place, message, &write.to_string()));
        }
    }

    fn add(&mut self, finding: Finding) {
        // An invalid value is found again in each override.
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Refuses a value outside `allowed`.
    pub(super) fn range<T: Toml + PartialOrd>(
        &mut self,
        path: &str,
        value: T,
        allowed: impl RangeBounds<T>,
    ) {
        let (bound, is, or) = match (allowed.start_bound(), allowed.end_bound()) {
            (Bound::Included(least), _) if value < *least => (least, "is below", "or more"),
            (_, Bound::Included(most)) if value > *most => (most, "is above", "or less"),
            _ => return,
        };
        let (value, bound) = (value.toml(), bound.toml());
        let key = path.rsplit('.').next().unwrap_or(path);
        self.refuse(
            path,
            format!(": {value} {is} {bound}"),
            format!("{key} = {bound} {or}"),
        );
    }

    /// Reports that `one` contradicts `other`, each a path and a value.
    pub(super) fn contradiction(
        &mut self,
        one: (&str, &dyn Toml),
        relation: &str,
        other: (&str, &dyn Toml),
        write: String,
    ) {
        let (Some(place), Some(second)) = (self.place(one.0), self.place(other.0)) else {
            return;
        };
        let shown = |(path, value): (&str, &dyn Toml)| format!("{} = {}", name(path), value.toml());
        let message = format!("{} {relation} {}", shown(one), shown(other));
        let mut finding = Finding::new(place, message, &write);
        finding.other = Some((second, format!("{} is set here", name(other.0))));
        self.add(finding);
    }

    fn images(&mut self) {
        let images = &self.settings.images;
        for (i, path) in images.paths.iter().enumerate() {
            let key = format!("images.paths.{i}");
            if self.absolute(&key, path) && is_glob(path) {
                self.glob(&key, path, compile_globs([path.as_str()]).err());
            }
        }
        self.globs("images.include", &images.include);
        self.globs("images.exclude", &images.exclude);
        self.range("images.limit", images.limit, 1..);
    }

    fn sampling_and_history(&mut self) {
        let Settings {
            sampling, history, ..
        } = self.settings;
        self.range("sampling.interval", sampling.interval, SECOND..);
        self.range(
            "sampling.probe_timeout",
            sampling.probe_timeout,
            MIN_TIMEOUT..,
        );
        let extents = ExtentCount(1)..=EXTENT_LIMIT_64;
        self.range(
            "sampling.map_max_extents",
            sampling.map_max_extents,
            extents,
        );
        if let Some(maps) = sampling.map_interval {
            self.range("sampling.map_interval", maps, SECOND..);
        }
        let path = history.path.to_string_lossy();
        // As a path, `/a/` equals `/a`, and a path that ends in `..` has no file name.
        let has_name = history.path.file_name().is_some() && !path.ends_with(['/', '.']);
        if self.absolute("history.path", &path) && !has_name {
            let write = "path = \"/var/lib/fragwatch/history.db\"";
            let problem = format!(": {} names no file", quoted(&path));
            self.refuse("history.path", problem, write);
        }
        self.range("history.retention", history.retention, DAY..);
    }

    fn klog_and_rescue(&mut self) {
        let Settings { klog, rescue, .. } = self.settings;
        for (i, path) in klog.files.iter().enumerate() {
            let (key, path) = (format!("klog.files.{i}"), path.to_string_lossy());
            // A glob would be followed as a literal, missing file. `[` and `{` do occur in names.
            if self.absolute(&key, &path) && path.contains(['*', '?']) {
                let problem = format!(": {} is a glob", quoted(&path));
                self.refuse(&key, problem, "the path of each file");
            }
        }
        self.range("rescue.quiet_after", rescue.quiet_after, SECOND..);
        let actions = 1..=MAX_ACTIONS_PER_HOUR;
        self.range(
            "rescue.max_actions_per_hour",
            rescue.max_actions_per_hour,
            actions,
        );
        if let Some(stall) = rescue.stall_after {
            self.range("rescue.stall_after", stall, SECOND..);
        }
        self.hook("rescue.hook", &rescue.hook);
    }

    fn maintenance(&mut self) {
        let maintenance = &self.settings.maintenance;
        self.range("maintenance.jitter", maintenance.jitter, ..=DAY);
        for (i, window) in maintenance.windows.iter().enumerate() {
            let key = format!("maintenance.window.{i}.duration");
            self.range(&key, window.duration, MINUTE..=MAX_WINDOW);
        }
    }

    fn defrag(&mut self) {
        let defrag = &self.settings.defrag;
        self.range("defrag.keep_free", defrag.keep_free, ..=MAX_FREE);
        self.range("defrag.bandwidth", Rate(defrag.bandwidth), MIN_BANDWIDTH..);
        self.range("defrag.max_io_pressure", defrag.max_io_pressure, 1..=100);
        self.range("defrag.stall_target", defrag.stall_target, MIN_TARGET..);
        self.range("defrag.parallel", defrag.parallel, 1..=MAX_PARALLEL);
        for (i, release) in defrag.trusted_kernels.iter().enumerate() {
            // No patterns: one would vouch for kernels that were not examined.
            let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
            let is_release = release.starts_with(|c: char| c.is_ascii_digit());
            if !(is_release && release.contains('.') && release.chars().all(usual)) {
                let problem = format!(": {} is no release of a kernel", quoted(release));
                let write = "the output of `uname -r`, e.g. \"5.14.0-611.el9.x86_64\"";
                self.refuse(&format!("defrag.trusted_kernels.{i}"), problem, write);
            }
        }
        self.hook("defrag.hook_before", &defrag.hook_before);
        self.hook("defrag.hook_after", &defrag.hook_after);
    }

    fn metrics_and_control(&mut self) {
        let Settings {
            metrics, control, ..
        } = self.settings;
        if let Some(path) = metrics.textfile.as_ref().map(|path| path.to_string_lossy()) {
            let key = "metrics.textfile";
            // The collector reads no other files (node_exporter, collector/textfile.go).
            if self.absolute(key, &path) && !path.ends_with(".prom") {
                let problem = format!(": {} does not end in .prom", quoted(&path));
                let write = "a file in node_exporter's textfile directory, such as \
                             \"/var/lib/prometheus/node-exporter/fragwatch.prom\"";
                self.refuse(key, problem, write);
            }
        }
        let (key, path) = ("control.socket", control.socket.to_string_lossy());
        if self.absolute(key, &path) && path.len() > MAX_SOCKET {
            let (quoted, length) = (quoted(&path), path.len());
            let problem = format!(": {quoted} is {length} bytes long, more than a socket can have");
            self.refuse(
                key,
                problem,
                format!("a path of at most {MAX_SOCKET} bytes"),
            );
        }
        if control.group.is_empty() {
            self.refuse(
                "control.group",
                " is empty",
                "group = \"root\" for root alone",
            );
        }
    }

    /// Whether a path is absolute and valid; refuses it if not.
    fn absolute(&mut self, key: &str, path: &str) -> bool {
        let (problem, write) = match path {
            _ if !path.starts_with('/') => ("is not absolute", "\"/…\", the path from the root on"),
            _ if path.contains('\0') => ("holds a NUL, as no path can", "the path without it"),
            _ => return true,
        };
        self.refuse(key, format!(": {} {problem}", quoted(path)), write);
        false
    }

    pub(super) fn hook(&mut self, key: &str, command: &[String]) {
        let Some((program, arguments)) = command.split_first() else {
            return;
        };
        let nul = arguments
            .iter()
            .position(|argument| argument.contains('\0'));
        if self.absolute(&format!("{key}.0"), program)
            && let Some(i) = nul
        {
            let argument = quoted(&arguments[i]);
            let problem = format!(": {argument} holds a NUL, as no argument can");
            self.refuse(
                &format!("{key}.{}", i + 1),
                problem,
                "the argument without it",
            );
        }
    }

    /// Checks globs one by one and all together.
    pub(super) fn globs(&mut self, key: &str, globs: &[String]) {
        let before = self.findings.len();
        for (i, glob) in globs.iter().enumerate() {
            let key = format!("{key}.{i}");
            // Only the syntax: compiling is slow, and the list is compiled below.
            if self.glob(&key, glob, GlobBuilder::new(glob).build().err()) {
                self.anchor(&key, glob);
            }
        }
        if self.findings.len() == before
            && let Err(error) = compile_globs(globs.iter().map(String::as_str))
        {
            let problem = format!(": all globs together: {}", error.kind());
            self.refuse(key, problem, "fewer or shorter globs");
        }
    }

    fn glob(&mut self, key: &str, glob: &str, error: Option<globset::Error>) -> bool {
        if let Some(error) = &error {
            let problem = format!(": {} is not a glob: {}", quoted(glob), error.kind());
            let literal = quoted(&globset::escape(glob));
            self.refuse(
                key,
                problem,
                format!("{literal} if every character is meant as it is"),
            );
        }
        error.is_none()
    }

    /// A glob with a slash is matched against the whole path, so it must be able to begin with one.
    fn anchor(&mut self, key: &str, glob: &str) {
        if glob.is_empty() {
            self.refuse(key, ": \"\" matches nothing", "\"*\" for every file");
        }
        // A class or an alternative may begin with a slash.
        let may_match = glob.starts_with(['/', '{', '[', '\\']) || glob.starts_with("**");
        if glob.contains('/') && !may_match {
            let problem = format!(
                ": {} matches nothing: with a slash in it, it is held against the whole path",
                quoted(glob)
            );
            let rest = glob.strip_prefix("./").unwrap_or(glob);
            self.refuse(key, problem, quoted(&format!("**/{rest}")));
        }
    }

    fn intervals(&mut self) {
        let Settings {
            sampling, rescue, ..
        } = self.settings;
        let maps = ("sampling.map_interval", &sampling.map_interval as &dyn Toml);
        // A default interval never exceeds that of the maps.
        let interval = match self.place("sampling.interval") {
            Some(_) => ("sampling.interval", &sampling.interval as &dyn Toml),
            None => maps,
        };
        let least = sampling.interval.toml();
        if sampling.probe_timeout > sampling.interval {
            let timeout = (
                "sampling.probe_timeout",
                &sampling.probe_timeout as &dyn Toml,
            );
            let write = format!("probe_timeout = {least} or less");
            self.contradiction(timeout, "is longer than", interval, write);
        }
        if sampling
            .map_interval
            .is_some_and(|maps| maps < sampling.interval)
        {
            let write = format!("map_interval = {least} or more");
            self.contradiction(maps, "is shorter than", interval, write);
        }
        if rescue.min_interval > rescue.quiet_after {
            self.contradiction(
                ("rescue.min_interval", &rescue.min_interval),
                "is longer than",
                ("rescue.quiet_after", &rescue.quiet_after),
                format!("min_interval = {} or less", rescue.quiet_after.toml()),
            );
        }
    }

    fn empty_lists(&mut self) {
        if self.settings.rescue.steps.is_empty() {
            let write = "steps = [\"drop_slab\"], or enabled = false if there is to be no rescue";
            self.refuse("rescue.steps", ": there is no step", write);
        }
        if self.settings.defrag.engines.is_empty() {
            let write = "engines = [\"xfs_fsr\"]; nothing runs unless a maintenance window is \
                         configured";
            self.refuse("defrag.engines", ": there is no engine", write);
        }
        for (i, window) in self.settings.maintenance.windows.iter().enumerate() {
            if window.days.is_empty() {
                let key = format!("maintenance.window.{i}.days");
                let write = "days = [\"Sat\", \"Sun\"], or no window at all";
                self.refuse(&key, ": there is no day", write);
            }
        }
    }

    /// Refuses a rescue that nothing can start; it can be disabled instead.
    fn rescue_trigger(&mut self) {
        let Settings { klog, rescue, .. } = self.settings;
        let by_file = klog.files_may_rescue && !klog.files.is_empty();
        if !rescue.enabled || klog.kmsg || by_file || rescue.stall_after.is_some() {
            return;
        }
        // Neither value is the default, so both keys are set.
        let places = (self.place("klog.kmsg"), self.place("rescue.stall_after"));
        if let (Some(kmsg), Some(stall)) = places {
            let message = "klog.kmsg = false, and rescue.stall_after = \"never\", and no log file \
                           may rescue: nothing could start the rescue";
            let write = "kmsg = true, or enabled = false in [rescue] if there is to be none";
            let mut finding = Finding::new(kmsg, message.to_owned(), write);
            finding.other = Some((stall, "rescue.stall_after is set here".to_owned()));
            self.add(finding);
        }
    }

    fn windows(&mut self) {
        let maintenance = &self.settings.maintenance;
        let windows = maintenance.windows.iter().map(|window| window.duration);
        if let Some((i, shortest)) = windows.enumerate().min_by_key(|(_, duration)| *duration)
            && maintenance.jitter > shortest / 2
        {
            self.contradiction(
                ("maintenance.jitter", &maintenance.jitter),
                "is longer than half of",
                (&format!("maintenance.window.{i}.duration"), &shortest),
                format!("jitter = {} or less", (shortest / 2).toml()),
            );
        }
        for (i, blackout) in maintenance.blackouts.iter().enumerate() {
            if blackout.to < blackout.from {
                let key = |end| format!("maintenance.blackout.{i}.{end}");
                self.contradiction(
                    (&key("to"), &blackout.to),
                    "is before",
                    (&key("from"), &blackout.from),
                    format!("to = {}, the last day, or a later one", blackout.from),
                );
            }
        }
    }
}

impl Toml for jiff::civil::Date {
    fn toml(&self) -> String {
        self.to_string()
    }
}

/// The name of a key: its path without item numbers.
fn name(path: &str) -> String {
    let is_name = |part: &&str| !part.starts_with(|c: char| c.is_ascii_digit());
    path.split('.')
        .filter(is_name)
        .collect::<Vec<_>>()
        .join(".")
}

/// Adapts the defaults to the keys that are set in `table`.
pub(super) fn adapt(settings: &mut Settings, table: &DeTable<'_>) {
    let written = |path: &str| read::place(table, path).is_some();
    let (sampling, rescue) = (&mut settings.sampling, &mut settings.rescue);
    if !written("sampling.interval") {
        if written("sampling.probe_timeout") {
            sampling.interval = sampling.interval.max(sampling.probe_timeout);
        }
        if let (true, Some(maps)) = (written("sampling.map_interval"), sampling.map_interval) {
            sampling.interval = sampling.interval.min(maps);
        }
    }
    if !written("sampling.probe_timeout") {
        sampling.probe_timeout = sampling.probe_timeout.min(sampling.interval);
    }
    if !written("sampling.map_interval") {
        sampling.map_interval = sampling.map_interval.max(Some(sampling.interval));
    }
    if !written("rescue.quiet_after") {
        rescue.quiet_after = rescue.quiet_after.max(rescue.min_interval);
    }
    if !written("rescue.min_interval") {
        rescue.min_interval = rescue.min_interval.min(rescue.quiet_after);
    }
}
