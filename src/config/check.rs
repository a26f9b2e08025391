//! Adapts the defaults to the keys that are set, and finds keys that contradict each other. Only keys
//! that are set can be wrong.

use std::time::Duration;

use toml::de::DeTable;

use super::examples::write;
use super::read::place;
use super::report::Finding;
use super::settings::{Klog, Maintenance, Rescue, Settings};
use super::text::Toml as _;

const TIMEOUT: &str = "sampling.probe_timeout";
const INTERVAL: &str = "sampling.interval";
const MAP_INTERVAL: &str = "sampling.map_interval";

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

    /// Whether a key is set, by its path, which contains the numbers of list items.
    pub(super) fn is_set(&self, path: &str) -> bool {
        place(self.table, path).is_some()
    }

    /// Refuses the value of a key, if it is set.
    pub(super) fn refuse(&mut self, path: &str, problem: &str) {
        let key = key_of(path);
        let finding = |place| Finding::new(place, format!("{key}: {problem}"), write(&key));
        self.findings.extend(place(self.table, path).map(finding));
    }

    /// Reports that `one` contradicts `other`, each a path and its value. If one of them is not set,
    /// it has adapted.
    pub(super) fn contradiction(
        &mut self,
        (one, value): (&str, String),
        relation: &str,
        (other, its): (&str, String),
    ) {
        let Some(place) = place(self.table, one).filter(|_| self.is_set(other)) else {
            return;
        };
        let (one, other) = (key_of(one), key_of(other));
        let message = format!("{one} = {value} {relation} {other} = {its}");
        let help = format!("write: another value, or another {other}");
        let finding = Finding::new(place, message, help);
        // It is found again in each override.
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Adapts and checks all settings but the limits of images.
    pub(super) fn all(&mut self, settings: &mut Settings) {
        self.intervals(settings);
        self.empty_lists(settings);
        self.rescue_trigger(&settings.klog, &settings.rescue);
        self.windows(&settings.maintenance);
    }

    fn intervals(&mut self, settings: &mut Settings) {
        let (sampling, rescue) = (&mut settings.sampling, &mut settings.rescue);
        let (timeout, interval) = (&mut sampling.probe_timeout, &mut sampling.interval);
        let mut maps = sampling.map_interval.unwrap_or(Duration::MAX);
        self.not_longer([TIMEOUT, INTERVAL], timeout, interval);
        self.not_longer([TIMEOUT, MAP_INTERVAL], timeout, &mut maps);
        self.not_longer([INTERVAL, MAP_INTERVAL], interval, &mut maps);
        sampling.map_interval = sampling.map_interval.and(Some(maps));
        let (gap, quiet) = (&mut rescue.min_interval, &mut rescue.quiet_after);
        self.not_longer(["rescue.min_interval", "rescue.quiet_after"], gap, quiet);
    }

    /// Checks that the first of two keys is not longer than the second. If only one of them is set,
    /// the other adapts.
    fn not_longer(&mut self, keys: [&str; 2], short: &mut Duration, long: &mut Duration) {
        match keys.map(|key| self.is_set(key)) {
            [true, false] => *long = (*long).max(*short),
            [false, true] => *short = (*short).min(*long),
            _ if short > long => {
                let (one, other) = ((keys[0], short.toml()), (keys[1], long.toml()));
                self.contradiction(one, "is longer than", other);
            }
            _ => {}
        }
    }

    fn empty_lists(&mut self, settings: &Settings) {
        if settings.rescue.steps.is_empty() {
            self.refuse("rescue.steps", "there is no step");
        }
        if settings.defrag.engines.is_empty() {
            self.refuse("defrag.engines", "there is no engine");
        }
        for (i, window) in settings.maintenance.windows.iter().enumerate() {
            if window.days.is_empty() {
                self.refuse(&format!("maintenance.window.{i}.days"), "there is no day");
            }
        }
    }

    /// Refuses a rescue that nothing can start; it can be disabled instead.
    fn rescue_trigger(&mut self, klog: &Klog, rescue: &Rescue) {
        let by_file = klog.files_may_rescue && !klog.files.is_empty();
        if rescue.enabled && !klog.kmsg && !by_file && rescue.stall_after.is_none() {
            // Neither value is the default, so both keys are set.
            let message = "klog.kmsg = false, and rescue.stall_after = \"never\", and no log file \
                           may rescue: nothing could start the rescue";
            let finding = |place| Finding::new(place, message.to_owned(), write("klog.kmsg"));
            self.findings
                .extend(place(self.table, "klog.kmsg").map(finding));
        }
    }

    fn windows(&mut self, maintenance: &Maintenance) {
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
                let [to, from] =
                    ["to", "from"].map(|end| format!("maintenance.blackout.{i}.{end}"));
                let [last, first] = [blackout.to, blackout.from].map(|date| date.to_string());
                self.contradiction((&to, last), "is before", (&from, first));
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
