//! Checks the values that are set, and whether they contradict each other. Only keys that are set can
//! be invalid; defaults [adapt] to them.

use std::time::Duration;

use toml::de::DeTable;

use super::checks::{DAY, Invalid, SECOND, globs, within};
use super::examples::write;
use super::read::place;
use super::report::{Finding, Place};
use super::settings::Settings;
use super::units::Toml as _;

pub(super) struct Check<'s> {
    /// The keys that are set.
    table: &'s DeTable<'s>,
    pub(super) findings: Vec<Finding>,
}

impl<'s> Check<'s> {
    pub(super) fn new(table: &'s DeTable<'s>) -> Check<'s> {
        let findings = Vec::new();
        Check { table, findings }
    }

    /// Checks each value by itself, except limits.
    pub(super) fn values(&mut self, it: &Settings) {
        for (section, invalid) in [
            ("images", it.images.invalid()),
            ("sampling", it.sampling.invalid()),
            ("history", it.history.invalid()),
            ("thresholds", it.thresholds.invalid()),
            ("thresholds.host", it.thresholds.host.invalid()),
            ("klog", it.klog.invalid()),
            ("rescue", it.rescue.invalid()),
            ("maintenance", it.maintenance.invalid()),
            ("defrag", it.defrag.invalid()),
            ("doctor", it.doctor.invalid()),
            ("metrics", it.metrics.invalid()),
            ("control", it.control.invalid()),
        ] {
            self.section(section, invalid);
        }
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
                invalid.push(("images".to_owned(), "there is no glob".to_owned()));
            }
            self.section(&section, invalid);
        }
    }

    /// Checks for contradictions. Only for settings without invalid values: the default in the place
    /// of an invalid value would contradict valid ones.
    pub(super) fn contradictions(&mut self, settings: &Settings) {
        self.intervals(settings);
        self.empty_lists(settings);
        self.rescue_trigger(settings);
        self.windows(settings);
    }

    /// Refuses these values of a section.
    pub(super) fn section(&mut self, section: &str, invalid: Invalid) {
        for (key, problem) in invalid {
            self.refuse(&format!("{section}.{key}"), &format!(": {problem}"));
        }
    }

    /// The place of a key, by its path, which contains the numbers of list items.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        place(self.table, path)
    }

    /// `problem` is appended to the name of the key.
    fn refuse(&mut self, path: &str, problem: &str) {
        let help = write(&key_of(path));
        self.findings.extend(self.finding(path, problem, help));
    }

    fn finding(&self, path: &str, problem: &str, help: String) -> Option<Finding> {
        let message = format!("{}{problem}", key_of(path));
        Some(Finding::new(self.place(path)?, message, help))
    }

    /// Reports that `one` contradicts `other`, each a path and its value. If one of them is not set,
    /// it has adapted.
    pub(super) fn contradiction(
        &mut self,
        (one, value): (&str, String),
        relation: &str,
        (other, its): (&str, String),
    ) {
        let key = key_of(other);
        let problem = format!(" = {value} {relation} {key} = {its}");
        let help = format!("write: another value, or another {key}");
        let finding = self.finding(one, &problem, help);
        // It is found again in each override.
        let is_new = |it: &Finding| self.place(other).is_some() && !self.findings.contains(it);
        let finding = finding.filter(is_new);
        self.findings.extend(finding);
    }

    fn intervals(
        &mut self,
        Settings {
            sampling, rescue, ..
        }: &Settings,
    ) {
        let maps = sampling.map_interval.unwrap_or(Duration::MAX);
        let timeout = ("sampling.probe_timeout", sampling.probe_timeout);
        let interval = ("sampling.interval", sampling.interval);
        let maps = ("sampling.map_interval", maps);
        let gap = ("rescue.min_interval", rescue.min_interval);
        let quiet = ("rescue.quiet_after", rescue.quiet_after);
        // A default interval lies between the other two, if it can.
        for (one, other) in [
            (timeout, interval),
            (interval, maps),
            (timeout, maps),
            (gap, quiet),
        ] {
            if one.1 > other.1 {
                let [one, other] = [one, other].map(|(key, time)| (key, time.toml()));
                self.contradiction(one, "is longer than", other);
            }
        }
    }

    fn empty_lists(&mut self, settings: &Settings) {
        if settings.rescue.steps.is_empty() {
            self.refuse("rescue.steps", ": there is no step");
        }
        if settings.defrag.engines.is_empty() {
            self.refuse("defrag.engines", ": there is no engine");
        }
        for (i, window) in settings.maintenance.windows.iter().enumerate() {
            if window.days.is_empty() {
                self.refuse(&format!("maintenance.window.{i}.days"), ": there is no day");
            }
        }
    }

    /// Refuses a rescue that nothing can start; it can be disabled instead.
    fn rescue_trigger(&mut self, Settings { klog, rescue, .. }: &Settings) {
        let by_file = klog.files_may_rescue && !klog.files.is_empty();
        if rescue.enabled && !klog.kmsg && !by_file && rescue.stall_after.is_none() {
            // Neither value is the default, so both keys are set.
            let problem = " = false, and rescue.stall_after = \"never\", and no log file may \
                           rescue: nothing could start the rescue";
            self.refuse("klog.kmsg", problem);
        }
    }

    fn windows(&mut self, Settings { maintenance, .. }: &Settings) {
        let windows = maintenance.windows.iter().map(|window| window.duration);
        if let Some((i, shortest)) = windows.enumerate().min_by_key(|(_, duration)| *duration)
            && maintenance.jitter > shortest / 2
        {
            let jitter = ("maintenance.jitter", maintenance.jitter.toml());
            let window = format!("maintenance.window.{i}.duration");
            self.contradiction(jitter, "is longer than half of", (&window, shortest.toml()));
        }
        for (i, blackout) in maintenance.blackouts.iter().enumerate() {
            if blackout.to < blackout.from {
                let key = |end| format!("maintenance.blackout.{i}.{end}");
                let [to, from] = [blackout.to, blackout.from].map(|date| date.to_string());
                self.contradiction((&key("to"), to), "is before", (&key("from"), from));
            }
        }
    }
}

/// The name of a key: its path without item numbers.
fn key_of(path: &str) -> String {
    let is_name = |part: &&str| !part.starts_with(|c: char| c.is_ascii_digit());
    let names = path.split('.').filter(is_name);
    names.collect::<Vec<_>>().join(".")
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
