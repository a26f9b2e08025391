//! Checks the values that are set, and whether they contradict each other. Only keys that are set can
//! be invalid; defaults [adapt] to them.

use std::fmt::Display;

use toml::de::DeTable;

use super::checks::{DAY, Invalid, SECOND, Toml, globs, within};
use super::read::place;
use super::report::{Finding, Place};
use super::settings::Settings;
use super::text::key_of;

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
        let it = self.settings;
        self.section("images", it.images.invalid());
        self.section("sampling", it.sampling.invalid());
        self.section("history", it.history.invalid());
        self.section("thresholds", it.thresholds.invalid());
        self.section("thresholds.host", it.thresholds.host.invalid());
        self.section("klog", it.klog.invalid());
        self.section("rescue", it.rescue.invalid());
        self.section("maintenance", it.maintenance.invalid());
        self.section("defrag", it.defrag.invalid());
        self.section("metrics", it.metrics.invalid());
        self.section("control", it.control.invalid());
        for (i, window) in it.maintenance.windows.iter().enumerate() {
            let mut invalid = Invalid::new();
            // A longer window would overlap its own repetition a week later.
            within(SECOND * 60..=7 * DAY)(&window.duration, "duration", &mut invalid);
            self.section(&format!("maintenance.window.{i}"), invalid);
        }
        for (i, over) in it.thresholds.overrides.iter().enumerate() {
            let section = format!("thresholds.override.{i}");
            let mut invalid = Invalid::new();
            globs(&over.images, "images", &mut invalid);
            if over.images.is_empty() {
                let write = "images = [\"*\"] for every image";
                let problem = ": without a glob it is for no image";
                self.refuse(&format!("{section}.images"), problem, write);
            }
            self.section(&section, invalid);
        }
        self.limit_ranges();
        self.findings
    }

    /// Refuses these values of a section.
    pub(super) fn section(&mut self, section: &str, invalid: Invalid) {
        for (key, problem, write) in invalid {
            self.refuse(&format!("{section}.{key}"), problem, write);
        }
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
