//! Checks that serde cannot do: ranges, paths, globs and contradictions. Only keys that are set can
//! be invalid; defaults [adapt] to them.

use std::fmt::Display;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::time::Duration;

use globset::GlobBuilder;
use jiff::civil::Date;
use toml::de::DeTable;

use super::globs::{compile_globs, is_glob};
use super::read::place;
use super::report::{Finding, Place};
use super::settings::Settings;
use super::text::{grouped, key_of, quoted};
use super::units::Unit;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{BytesPerSecond, ExtentCount, Share};

/// The shortest interval: a sweep over a thousand images needs time, the stall detector checks once
/// a second, and a shorter gap between two kernel messages does not end an incident.
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// Maximum number of actions per hour: one a second. The rescue stores as many times.
pub(super) const MAX_ACTIONS_PER_HOUR: u32 = 3600;
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

impl Toml for Date {
    fn toml(&self) -> String {
        self.to_string()
    }
}

/// What is wrong with a text, to be appended to it, and what to write.
type Verdict = Result<(), (String, String)>;

fn wrong(problem: impl Into<String>, write: impl Into<String>) -> Verdict {
    Err((problem.into(), write.into()))
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
        self.ranges();
        self.limit_ranges();
        self.texts();
        self.findings
    }

    /// Checks for contradictions. Only for settings without invalid values: the default in the
    /// place of an invalid value would contradict valid ones.
    pub(super) fn contradictions(mut self) -> Vec<Finding> {
        self.intervals();
        self.limit_order();
        self.empty_lists();
        self.rescue_trigger();
        self.windows();
        self.findings
    }

    /// The place of a key, by its path, which contains the numbers of list items.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        place(self.table, path)
    }

    /// `problem` is appended to the name of the key; `write` is the suggestion.
    fn refuse(&mut self, path: &str, problem: impl Display, write: impl Display) {
        if let Some(place) = self.place(path) {
            let message = format!("{}{problem}", key_of(path));
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
    pub(super) fn range<T>(&mut self, path: &str, value: T, allowed: impl RangeBounds<T>)
    where
        T: Toml + PartialOrd,
    {
        let (bound, is, or) = match (allowed.start_bound(), allowed.end_bound()) {
            (Bound::Included(least), _) if value < *least => (least, "is below", "or more"),
            (_, Bound::Included(most)) if value > *most => (most, "is above", "or less"),
            _ => return,
        };
        let (value, bound) = (value.toml(), bound.toml());
        let key = path.rsplit('.').next().unwrap_or(path);
        let problem = format!(": {value} {is} {bound}");
        self.refuse(path, problem, format!("{key} = {bound} {or}"));
    }

    /// As [`Check::range`], for a value that may be `"never"`.
    pub(super) fn range_or_never<T>(
        &mut self,
        path: &str,
        value: Option<T>,
        allowed: impl RangeBounds<T>,
    ) where
        T: Toml + PartialOrd,
    {
        if let Some(value) = value {
            self.range(path, value, allowed);
        }
    }

    /// Refuses a text that `judge` refuses.
    fn text(&mut self, path: &str, text: &str, judge: impl Fn(&str) -> Verdict) {
        if let Err((problem, write)) = judge(text) {
            self.refuse(path, format!(": {}{problem}", quoted(text)), write);
        }
    }

    /// Likewise each text of a list.
    fn each(&mut self, path: &str, texts: &[String], judge: impl Fn(&str) -> Verdict) {
        for (i, text) in texts.iter().enumerate() {
            self.text(&format!("{path}.{i}"), text, &judge);
        }
    }

    /// Reports that `one` contradicts `other`, each a path and its value.
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
        let shown =
            |(path, value): (&str, &dyn Toml)| format!("{} = {}", key_of(path), value.toml());
        let message = format!("{} {relation} {}", shown(one), shown(other));
        let mut finding = Finding::new(place, message, &write);
        finding.other = Some((second, format!("{} is set here", key_of(other.0))));
        self.add(finding);
    }

    fn ranges(&mut self) {
        let settings = self.settings;
        self.range("images.limit", settings.images.limit, 1..);
        let it = &settings.sampling;
        self.range("sampling.interval", it.interval, SECOND..);
        // A disk that spins up or a loaded host delays a call by more than a few milliseconds.
        self.range("sampling.probe_timeout", it.probe_timeout, SECOND / 10..);
        let extents = ExtentCount(1)..=EXTENT_LIMIT_64;
        self.range("sampling.map_max_extents", it.map_max_extents, extents);
        self.range_or_never("sampling.map_interval", it.map_interval, SECOND..);
        self.range("history.retention", settings.history.retention, DAY..);
        let it = &settings.rescue;
        self.range("rescue.quiet_after", it.quiet_after, SECOND..);
        let actions = 1..=MAX_ACTIONS_PER_HOUR;
        self.range(
            "rescue.max_actions_per_hour",
            it.max_actions_per_hour,
            actions,
        );
        self.range_or_never("rescue.stall_after", it.stall_after, SECOND..);
        let it = &settings.maintenance;
        self.range("maintenance.jitter", it.jitter, ..=DAY);
        for (i, window) in it.windows.iter().enumerate() {
            // A longer window would overlap its own repetition a week later.
            let path = format!("maintenance.window.{i}.duration");
            self.range(&path, window.duration, MINUTE..=7 * DAY);
        }
        let it = &settings.defrag;
        // Above this, no run would ever start.
        self.range("defrag.keep_free", it.keep_free, ..=Share::percent(90));
        // At a lower rate, a run would take days for an image.
        self.range("defrag.bandwidth", it.bandwidth, BytesPerSecond(1 << 20)..);
        self.range("defrag.max_io_pressure", it.max_io_pressure, 1..=100);
        // With less, one call of the online engine would move nothing.
        self.range("defrag.stall_target", it.stall_target, SECOND / 1000..);
        // More file systems than any host has.
        self.range("defrag.parallel", it.parallel, 1..=64);
    }

    fn texts(&mut self) {
        let Settings { images, klog, .. } = self.settings;
        let Settings {
            thresholds, defrag, ..
        } = self.settings;
        let Settings {
            history, control, ..
        } = self.settings;
        self.each("images.paths", &images.paths, searched);
        self.globs("images.include", &images.include);
        self.globs("images.exclude", &images.exclude);
        for (i, over) in thresholds.overrides.iter().enumerate() {
            let path = format!("thresholds.override.{i}.images");
            if over.images.is_empty() {
                let write = "images = [\"*\"] for every image";
                self.refuse(&path, ": without a glob it is for no image", write);
            }
            self.globs(&path, &over.images);
        }
        for (i, file) in klog.files.iter().enumerate() {
            self.path(&format!("klog.files.{i}"), file, followed);
        }
        self.hook("thresholds.hook", &thresholds.hook);
        self.hook("rescue.hook", &self.settings.rescue.hook);
        self.hook("defrag.hook_before", &defrag.hook_before);
        self.hook("defrag.hook_after", &defrag.hook_after);
        self.each("defrag.trusted_kernels", &defrag.trusted_kernels, release);
        self.path("history.path", &history.path, database);
        if let Some(path) = &self.settings.metrics.textfile {
            self.path("metrics.textfile", path, textfile);
        }
        self.path("control.socket", &control.socket, socket);
        if control.group.is_empty() {
            let write = "group = \"root\" for root alone";
            self.refuse("control.group", " is empty", write);
        }
    }

    fn path(&mut self, key: &str, path: &Path, judge: impl Fn(&str) -> Verdict) {
        self.text(key, &path.to_string_lossy(), judge);
    }

    fn hook(&mut self, key: &str, command: &[String]) {
        if let Some((program, arguments)) = command.split_first() {
            self.text(&format!("{key}.0"), program, absolute);
            for (i, argument) in arguments.iter().enumerate() {
                self.text(&format!("{key}.{}", i + 1), argument, without_nul);
            }
        }
    }

    /// Checks globs one by one and all together.
    fn globs(&mut self, key: &str, globs: &[String]) {
        self.each(key, globs, matched);
        let are_valid = globs.iter().all(|glob| matched(glob).is_ok());
        if let (true, Err(error)) = (are_valid, compile_globs(globs.iter().map(String::as_str))) {
            let problem = format!(": all globs together: {}", error.kind());
            self.refuse(key, problem, "fewer or shorter globs");
        }
    }

    fn intervals(&mut self) {
        let Settings {
            sampling, rescue, ..
        } = self.settings;
        let maps: (&str, &dyn Toml) = ("sampling.map_interval", &sampling.map_interval);
        // A default interval never exceeds that of the maps.
        let interval: (&str, &dyn Toml) = match self.place("sampling.interval") {
            Some(_) => ("sampling.interval", &sampling.interval),
            None => maps,
        };
        let least = sampling.interval.toml();
        if sampling.probe_timeout > sampling.interval {
            let timeout = ("sampling.probe_timeout", &sampling.probe_timeout as _);
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
            let one = ("rescue.min_interval", &rescue.min_interval as _);
            let other = ("rescue.quiet_after", &rescue.quiet_after as _);
            let write = format!("min_interval = {} or less", rescue.quiet_after.toml());
            self.contradiction(one, "is longer than", other, write);
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
                let write = "days = [\"Sat\", \"Sun\"], or no window at all";
                let key = format!("maintenance.window.{i}.days");
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
            let jitter = ("maintenance.jitter", &maintenance.jitter as _);
            let key = format!("maintenance.window.{i}.duration");
            let write = format!("jitter = {} or less", (shortest / 2).toml());
            self.contradiction(jitter, "is longer than half of", (&key, &shortest), write);
        }
        for (i, blackout) in maintenance.blackouts.iter().enumerate() {
            if blackout.to < blackout.from {
                let key = |end| format!("maintenance.blackout.{i}.{end}");
                let write = format!("to = {}, the last day, or a later one", blackout.from);
                let (to, from) = ((&*key("to"), &blackout.to as _), &*key("from"));
                self.contradiction(to, "is before", (from, &blackout.from), write);
            }
        }
    }
}

fn without_nul(argument: &str) -> Verdict {
    match argument.contains('\0') {
        true => wrong(
            " holds a NUL, as no argument can",
            "the argument without it",
        ),
        false => Ok(()),
    }
}

fn absolute(path: &str) -> Verdict {
    match path {
        _ if !path.starts_with('/') => {
            wrong(" is not absolute", "\"/…\", the path from the root on")
        }
        _ if path.contains('\0') => wrong(" holds a NUL, as no path can", "the path without it"),
        _ => Ok(()),
    }
}

/// An entry of `images.paths`.
fn searched(path: &str) -> Verdict {
    absolute(path)?;
    match is_glob(path) {
        true => glob(path, compile_globs([path]).err()),
        false => Ok(()),
    }
}

fn glob(glob: &str, error: Option<globset::Error>) -> Verdict {
    let Some(error) = error else {
        return Ok(());
    };
    let literal = quoted(&globset::escape(glob));
    let write = format!("{literal} if every character is meant as it is");
    wrong(format!(" is not a glob: {}", error.kind()), write)
}

/// A glob. With a slash it is matched against the whole path, so it must be able to begin with one.
fn matched(text: &str) -> Verdict {
    // Only the syntax: compiling is slow, and the list is compiled as a whole.
    glob(text, GlobBuilder::new(text).build().err())?;
    // A class or an alternative may begin with a slash.
    let may_match = text.starts_with(['/', '{', '[', '\\']) || text.starts_with("**");
    match text {
        "" => wrong(" matches nothing", "\"*\" for every file"),
        _ if text.contains('/') && !may_match => {
            let problem = " matches nothing: with a slash in it, it is held against the whole path";
            let rest = text.strip_prefix("./").unwrap_or(text);
            wrong(problem, quoted(&format!("**/{rest}")))
        }
        _ => Ok(()),
    }
}

fn database(path: &str) -> Verdict {
    absolute(path)?;
    // As a path, `/a/` equals `/a`, and a path that ends in `..` has no file name.
    match Path::new(path).file_name() {
        Some(_) if !path.ends_with(['/', '.']) => Ok(()),
        _ => wrong(" names no file", "path = \"/var/lib/fragwatch/history.db\""),
    }
}

/// A log file to follow.
fn followed(path: &str) -> Verdict {
    absolute(path)?;
    // A glob would be followed as a literal, missing file. `[` and `{` do occur in names.
    match path.contains(['*', '?']) {
        true => wrong(" is a glob", "the path of each file"),
        false => Ok(()),
    }
}

/// A release of a kernel. No patterns: one would vouch for kernels that were not examined.
fn release(text: &str) -> Verdict {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_digit());
    match begins && text.contains('.') && text.chars().all(usual) {
        true => Ok(()),
        false => wrong(
            " is no release of a kernel",
            "the output of `uname -r`, e.g. \"5.14.0-611.el9.x86_64\"",
        ),
    }
}

/// The collector reads no other files (node_exporter, collector/textfile.go).
fn textfile(path: &str) -> Verdict {
    absolute(path)?;
    match path.ends_with(".prom") {
        true => Ok(()),
        false => wrong(
            " does not end in .prom",
            "a file in node_exporter's textfile directory, such as \
             \"/var/lib/prometheus/node-exporter/fragwatch.prom\"",
        ),
    }
}

fn socket(path: &str) -> Verdict {
    absolute(path)?;
    match path.len() {
        ..=MAX_SOCKET => Ok(()),
        length => wrong(
            format!(" is {length} bytes long, more than a socket can have"),
            format!("a path of at most {MAX_SOCKET} bytes"),
        ),
    }
}

/// Adapts the defaults to the keys that are set in `table`.
pub(super) fn adapt(settings: &mut Settings, table: &DeTable<'_>) {
    let written = |path: &str| place(table, path).is_some();
    let Settings {
        sampling, rescue, ..
    } = settings;
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
