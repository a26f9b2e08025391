//! The limits of `[thresholds]`: ranges, order, and the adaptation of defaults.

use std::time::Duration;

use toml::de::DeTable;

use super::check::{Check, Toml};
use super::read;
use super::settings::{HostLimits, LimitChanges, Limits, Thresholds};
use crate::model::growth::REACH_OF_WINDOW;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay, Share};

const MIN_WINDOW: Duration = Duration::from_secs(60);
const MIN_TIME: Duration = Duration::from_secs(1);
/// Ratios of critical to warning, as by default, if only one is set: for counts, and for the host.
const TIMES_WARNING: u64 = 10;
const HOST_TIMES_WARNING: u32 = 5;

/// A share, written as a number from 0 to 1.
#[derive(PartialEq, PartialOrd)]
struct Factor(Share);

impl Toml for Factor {
    fn toml(&self) -> String {
        format!("{:?}", f64::from(self.0.0) / f64::from(Share::WHOLE.0))
    }
}

impl Check<'_> {
    /// Checks the values of `[thresholds]` one by one.
    pub(super) fn threshold_values(&mut self) {
        let thresholds = &self.settings.thresholds;
        self.range(
            "thresholds.growth_window",
            thresholds.growth_window,
            MIN_WINDOW..,
        );
        let factors = Factor(Share::percent(50))..=Factor(Share::WHOLE);
        self.range(
            "thresholds.hysteresis",
            Factor(thresholds.hysteresis),
            factors,
        );
        self.hook("thresholds.hook", &thresholds.hook);
        let host = &thresholds.host;
        let below_all = Share(Share::WHOLE.0 - 1);
        self.range("thresholds.host.warning", host.warning, ..=below_all);
        self.range("thresholds.host.critical", host.critical, Share(1)..);
        let all = |limits| only(limits, [true; 3]);
        let (warning, critical) = (all(&thresholds.warning), all(&thresholds.critical));
        self.limits("thresholds", &warning, &critical);
        for (i, over) in thresholds.overrides.iter().enumerate() {
            let path = format!("thresholds.override.{i}");
            let images = format!("{path}.images");
            if over.images.is_empty() {
                let write = "images = [\"*\"] for every image";
                self.refuse(&images, ": without a glob it is for no image", write);
            }
            self.globs(&images, &over.images);
            self.limits(&path, &over.warning, &over.critical);
        }
    }

    fn limits(&mut self, path: &str, warning: &LimitChanges, critical: &LimitChanges) {
        // Leaves room for the limit of the other severity.
        let below = ExtentCount(1)..=ExtentCount(EXTENT_LIMIT_64.0 - 1);
        let above = ExtentCount(2)..=EXTENT_LIMIT_64;
        let both = [("warning", warning, below), ("critical", critical, above)];
        for (severity, limits, extents) in both {
            let key = |name| format!("{path}.{severity}.{name}");
            if let Some(count) = limits.extents {
                self.range(&key("extents"), count, extents);
            }
            if let Some(rate) = limits.growth_per_day.flatten() {
                let counts = ExtentCount(1)..=EXTENT_LIMIT_64;
                self.range(&key("growth_per_day"), rate.count(), counts);
            }
            if let Some(time) = limits.time_to_critical.flatten() {
                self.range(&key("time_to_critical"), time, MIN_TIME..);
            }
        }
    }

    /// Checks that critical limits are beyond warning limits, also with each override.
    pub(super) fn threshold_order(&mut self) {
        let thresholds = &self.settings.thresholds;
        self.order("thresholds", &thresholds.warning, &thresholds.critical);
        for (i, over) in thresholds.overrides.iter().enumerate() {
            let (mut warning, mut critical) =
                (thresholds.warning.clone(), thresholds.critical.clone());
            over.warning.apply(&mut warning);
            over.critical.apply(&mut critical);
            self.order(&format!("thresholds.override.{i}"), &warning, &critical);
        }
        let HostLimits { warning, critical } = &thresholds.host;
        if critical <= warning {
            self.contradiction(
                ("thresholds.host.critical", critical),
                "is not above",
                ("thresholds.host.warning", warning),
                format!(
                    "a critical above {}, or a warning below {}",
                    warning.toml(),
                    critical.toml()
                ),
            );
        }
    }

    /// `section` is an override, or `thresholds` itself.
    fn order(&mut self, section: &str, warning: &Limits, critical: &Limits) {
        self.above(
            section,
            "extents",
            Some(critical.extents),
            Some(warning.extents),
        );
        let count = |limits: &Limits| limits.growth_per_day.map(ExtentsPerDay::count);
        self.above(section, "growth_per_day", count(critical), count(warning));
        let (w, c) = (warning.time_to_critical, critical.time_to_critical);
        if let (Some(near), Some(far)) = (c, w)
            && near >= far
        {
            let half = (far / 2).toml();
            self.contradiction(
                (&self.key(section, "critical.time_to_critical"), &near),
                "is not below",
                (&self.key(section, "warning.time_to_critical"), &far),
                format!("critical = {{ time_to_critical = {half} }}, or \"never\""),
            );
        }
        self.reach(&self.key(section, "warning.time_to_critical"), w);
        // A critical time not below that of the warning was already reported.
        if w.is_none() || c < w {
            self.reach(&self.key(section, "critical.time_to_critical"), c);
        }
    }

    fn above(
        &mut self,
        section: &str,
        name: &str,
        critical: Option<ExtentCount>,
        warning: Option<ExtentCount>,
    ) {
        if let (Some(critical), Some(warning)) = (critical, warning)
            && critical <= warning
        {
            let least = ExtentCount(warning.0.saturating_add(1)).toml();
            self.contradiction(
                (&self.key(section, &format!("critical.{name}")), &critical),
                "is not above",
                (&self.key(section, &format!("warning.{name}")), &warning),
                format!("critical = {{ {name} = {least} }} or more"),
            );
        }
    }

    /// A time beyond the reach of the forecast would never be reported.
    fn reach(&mut self, key: &str, time: Option<Duration>) {
        let window = self.settings.thresholds.growth_window;
        if let Some(time) = time.filter(|time| *time > window.saturating_mul(REACH_OF_WINDOW)) {
            self.contradiction(
                (key, &time),
                &format!("is further than a forecast reaches, {REACH_OF_WINDOW} times"),
                ("thresholds.growth_window", &window),
                format!("growth_window = {} or more", window_for(time).toml()),
            );
        }
    }

    /// The path of a limit: in the override if it is set there.
    fn key(&self, section: &str, name: &str) -> String {
        let own = format!("{section}.{name}");
        match self.place(&own) {
            Some(_) => own,
            None => format!("thresholds.{name}"),
        }
    }
}

/// Adapts the defaults to the keys that are set in `table`.
pub(super) fn adapt(thresholds: &mut Thresholds, table: &DeTable<'_>) {
    let is_written = |path: &str| read::place(table, path).is_some();
    let base = (
        written(table, "thresholds.warning", &thresholds.warning),
        written(table, "thresholds.critical", &thresholds.critical),
    );
    let overrides = thresholds.overrides.iter();
    let changes = overrides.flat_map(|over| [&over.warning, &over.critical]);
    let times = changes.chain([&base.0, &base.1]);
    let furthest = times.filter_map(|changes| changes.time_to_critical?).max();
    if let (false, Some(time)) = (is_written("thresholds.growth_window"), furthest) {
        thresholds.growth_window = thresholds.growth_window.max(window_for(time));
    }
    let reach = thresholds.growth_window.saturating_mul(REACH_OF_WINDOW);
    adapt_limits(
        &mut thresholds.warning,
        &mut thresholds.critical,
        &base,
        reach,
    );
    for over in &mut thresholds.overrides {
        let (mut warning, mut critical) = (thresholds.warning.clone(), thresholds.critical.clone());
        over.warning.apply(&mut warning);
        over.critical.apply(&mut critical);
        let before = (warning.clone(), critical.clone());
        let written = (
            either(&over.warning, &base.0),
            either(&over.critical, &base.1),
        );
        adapt_limits(&mut warning, &mut critical, &written, reach);
        over.warning = either(&differences(&before.0, &warning), &over.warning);
        over.critical = either(&differences(&before.1, &critical), &over.critical);
    }
    let HostLimits { warning, critical } = &mut thresholds.host;
    if *critical <= *warning {
        if !is_written("thresholds.host.critical") {
            let times = warning.0.saturating_mul(HOST_TIMES_WARNING);
            *critical = Share(times).min(Share::WHOLE);
        } else if !is_written("thresholds.host.warning") {
            *warning = Share(critical.0 / HOST_TIMES_WARNING);
        }
    }
}

/// Adapts the limits of both severities that are not set to those that are.
fn adapt_limits(
    warning: &mut Limits,
    critical: &mut Limits,
    written: &(LimitChanges, LimitChanges),
    reach: Duration,
) {
    let (w, c) = written;
    let part = |critical: ExtentCount| ExtentCount((critical.0 / TIMES_WARNING).max(1));
    if critical.extents <= warning.extents {
        match (w.extents, c.extents) {
            (Some(least), None) => {
                let times = ExtentCount(least.0.saturating_mul(TIMES_WARNING));
                critical.extents = times.min(EXTENT_LIMIT_64);
            }
            (None, Some(most)) => warning.extents = part(most),
            _ => {}
        }
    }
    if let (Some(least), Some(most)) = (warning.growth_per_day, critical.growth_per_day)
        && most <= least
        && w.growth_per_day.is_none()
    {
        let part = Some(part(most.count())).filter(|part| *part < most.count());
        warning.growth_per_day = part.map(ExtentsPerDay::from_count);
    }
    if let Some(time) = warning.time_to_critical
        && w.time_to_critical.is_none()
    {
        // As far as the forecast reaches and beyond the critical time; otherwise never.
        let least = critical.time_to_critical.unwrap_or_default();
        let time = if time <= least {
            least.saturating_mul(2)
        } else {
            time
        };
        warning.time_to_critical = Some(time.min(reach)).filter(|time| *time > least);
    }
}

/// The smallest window, in whole minutes or hours, for which a forecast reaches `time`.
fn window_for(time: Duration) -> Duration {
    let reach = u128::from(REACH_OF_WINDOW) * 1000;
    // Times are at most a hundred years.
    let needed = u64::try_from(time.as_millis().div_ceil(reach)).unwrap_or(u64::MAX / 2);
    Duration::from_secs(needed.next_multiple_of(if needed > 3600 { 3600 } else { 60 }))
}

fn written(table: &DeTable<'_>, section: &str, limits: &Limits) -> LimitChanges {
    let keys = ["extents", "growth_per_day", "time_to_critical"];
    let is_written = |key| read::place(table, &format!("{section}.{key}")).is_some();
    only(limits, keys.map(is_written))
}

/// The limits selected by `set`, in the order of declaration.
fn only(limits: &Limits, set: [bool; 3]) -> LimitChanges {
    LimitChanges {
        extents: set[0].then_some(limits.extents),
        growth_per_day: set[1].then_some(limits.growth_per_day),
        time_to_critical: set[2].then_some(limits.time_to_critical),
    }
}

fn differences(before: &Limits, after: &Limits) -> LimitChanges {
    let set = [
        before.extents != after.extents,
        before.growth_per_day != after.growth_per_day,
        before.time_to_critical != after.time_to_critical,
    ];
    only(after, set)
}

/// The changes, completed by the `others`.
fn either(changes: &LimitChanges, others: &LimitChanges) -> LimitChanges {
    LimitChanges {
        extents: changes.extents.or(others.extents),
        growth_per_day: changes.growth_per_day.or(others.growth_per_day),
        time_to_critical: changes.time_to_critical.or(others.time_to_critical),
    }
}
