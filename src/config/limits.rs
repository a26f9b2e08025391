//! The limits of `[thresholds]`: ranges, order, and the adaptation of defaults.

use std::time::Duration;

use toml::de::DeTable;

use super::check::Check;
use super::checks::{Invalid, SECOND, Toml, set, within};
use super::read::place;
use super::settings::{HostLimits, LimitChanges, Limits, Thresholds};
use crate::model::growth::REACH_OF_WINDOW;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// Ratios of critical to warning, as by default, if only one is set: for counts, and for the host.
const TIMES_WARNING: u64 = 10;
const HOST_TIMES_WARNING: u32 = 5;

/// Which limits are set, in the order of declaration.
type Set = [bool; 3];

impl Check<'_> {
    /// Checks the limits of both severities one by one, also those of overrides.
    pub(super) fn limit_ranges(&mut self) {
        let it = &self.settings.thresholds;
        let (warning, critical) = (it.warning.clone().into(), it.critical.clone().into());
        self.limits("thresholds", &warning, &critical);
        for (i, over) in it.overrides.iter().enumerate() {
            let section = format!("thresholds.override.{i}");
            self.limits(&section, &over.warning, &over.critical);
        }
    }

    fn limits(&mut self, section: &str, warning: &LimitChanges, critical: &LimitChanges) {
        // Leaves room for the limit of the other severity.
        let below = ExtentCount(1)..=ExtentCount(EXTENT_LIMIT_64.0 - 1);
        let above = ExtentCount(2)..=EXTENT_LIMIT_64;
        for (severity, limits, extents) in
            [("warning", warning, below), ("critical", critical, above)]
        {
            let mut invalid = Invalid::new();
            set(within(extents))(&limits.extents, "extents", &mut invalid);
            let rate = limits.growth_per_day.flatten().map(ExtentsPerDay::count);
            let rates = set(within(ExtentCount(1)..=EXTENT_LIMIT_64));
            rates(&rate, "growth_per_day", &mut invalid);
            let time = limits.time_to_critical.flatten();
            set(within(SECOND..))(&time, "time_to_critical", &mut invalid);
            self.section(&format!("{section}.{severity}"), invalid);
        }
    }

    /// Checks that critical limits are beyond warning limits, also with each override.
    pub(super) fn limit_order(&mut self) {
        let thresholds = &self.settings.thresholds;
        self.order("thresholds", &thresholds.warning, &thresholds.critical);
        for (i, over) in thresholds.overrides.iter().enumerate() {
            let (warning, critical) = with(thresholds, &over.warning, &over.critical);
            self.order(&format!("thresholds.override.{i}"), &warning, &critical);
        }
        let HostLimits { warning, critical } = &thresholds.host;
        if critical <= warning {
            let (above, below) = (warning.toml(), critical.toml());
            self.contradiction(
                ("thresholds.host.critical", critical),
                "is not above",
                ("thresholds.host.warning", warning),
                format!("a critical above {above}, or a warning below {below}"),
            );
        }
    }

    /// `section` is an override, or `thresholds` itself.
    fn order(&mut self, section: &str, warning: &Limits, critical: &Limits) {
        let rate = |limits: &Limits| limits.growth_per_day.map(ExtentsPerDay::count);
        for (name, critical, warning) in [
            ("extents", Some(critical.extents), Some(warning.extents)),
            ("growth_per_day", rate(critical), rate(warning)),
        ] {
            if let (Some(critical), Some(warning)) = (critical, warning)
                && critical <= warning
            {
                let least = ExtentCount(warning.0.saturating_add(1)).toml();
                self.contradiction(
                    (&self.key(section, "critical", name), &critical),
                    "is not above",
                    (&self.key(section, "warning", name), &warning),
                    format!("critical = {{ {name} = {least} }} or more"),
                );
            }
        }
        let keys = ["warning", "critical"].map(|it| self.key(section, it, "time_to_critical"));
        let (far, near) = (warning.time_to_critical, critical.time_to_critical);
        if let (Some(near), Some(far)) = (near, far)
            && near >= far
        {
            let half = (far / 2).toml();
            let write = format!("critical = {{ time_to_critical = {half} }}, or \"never\"");
            self.contradiction((&keys[1], &near), "is not below", (&keys[0], &far), write);
        }
        self.reach(&keys[0], far);
        // A critical time not below that of the warning was already reported.
        if far.is_none() || near < far {
            self.reach(&keys[1], near);
        }
    }

    /// A time beyond the reach of the forecast would never be reported.
    fn reach(&mut self, key: &str, time: Option<Duration>) {
        let window = self.settings.thresholds.growth_window;
        if let Some(time) = time.filter(|time| *time > window.saturating_mul(REACH_OF_WINDOW)) {
            let relation = format!("is further than a forecast reaches, {REACH_OF_WINDOW} times");
            let other = ("thresholds.growth_window", &window as _);
            let write = format!("growth_window = {} or more", window_for(time).toml());
            self.contradiction((key, &time), &relation, other, write);
        }
    }

    /// The path of a limit: in the override if it is set there.
    fn key(&self, section: &str, severity: &str, name: &str) -> String {
        let own = format!("{section}.{severity}.{name}");
        match self.place(&own) {
            Some(_) => own,
            None => format!("thresholds.{severity}.{name}"),
        }
    }
}

/// The limits of an image to which these changes apply.
fn with(base: &Thresholds, warning: &LimitChanges, critical: &LimitChanges) -> (Limits, Limits) {
    let mut limits = (base.warning.clone(), base.critical.clone());
    warning.apply(&mut limits.0);
    critical.apply(&mut limits.1);
    limits
}

/// Adapts the defaults to the keys that are set in `table`.
pub(super) fn adapt(thresholds: &mut Thresholds, table: &DeTable<'_>) {
    let is_written = |path: &str| place(table, path).is_some();
    let written = |severity: &str| {
        let keys = ["extents", "growth_per_day", "time_to_critical"];
        keys.map(|key| is_written(&format!("thresholds.{severity}.{key}")))
    };
    let base = (written("warning"), written("critical"));
    if !is_written("thresholds.growth_window") {
        let limits = [
            (&thresholds.warning, base.0),
            (&thresholds.critical, base.1),
        ];
        let own = limits
            .into_iter()
            .filter_map(|(it, set)| it.time_to_critical.filter(|_| set[2]));
        let overrides = thresholds.overrides.iter();
        let changes = overrides.flat_map(|over| [&over.warning, &over.critical]);
        let furthest = changes
            .filter_map(|it| it.time_to_critical?)
            .chain(own)
            .max();
        let needed = furthest.map_or(Duration::ZERO, window_for);
        thresholds.growth_window = thresholds.growth_window.max(needed);
    }
    let reach = thresholds.growth_window.saturating_mul(REACH_OF_WINDOW);
    adapt_limits(
        &mut thresholds.warning,
        &mut thresholds.critical,
        base,
        reach,
    );
    for i in 0..thresholds.overrides.len() {
        let mut over = thresholds.overrides[i].clone();
        let before = with(thresholds, &over.warning, &over.critical);
        let (mut warning, mut critical) = before.clone();
        let set = (is_set(&over.warning), is_set(&over.critical));
        let written = (either(set.0, base.0), either(set.1, base.1));
        adapt_limits(&mut warning, &mut critical, written, reach);
        over.warning = only(&warning, either(set.0, differences(&before.0, &warning)));
        over.critical = only(&critical, either(set.1, differences(&before.1, &critical)));
        thresholds.overrides[i] = over;
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
fn adapt_limits(warning: &mut Limits, critical: &mut Limits, set: (Set, Set), reach: Duration) {
    let ([extents, growth, time], [extents_of_critical, ..]) = set;
    let part = |critical: ExtentCount| ExtentCount((critical.0 / TIMES_WARNING).max(1));
    if critical.extents <= warning.extents {
        if extents && !extents_of_critical {
            let times = ExtentCount(warning.extents.0.saturating_mul(TIMES_WARNING));
            critical.extents = times.min(EXTENT_LIMIT_64);
        } else if extents_of_critical && !extents {
            warning.extents = part(critical.extents);
        }
    }
    if let (Some(least), Some(most)) = (warning.growth_per_day, critical.growth_per_day)
        && most <= least
        && !growth
    {
        let part = Some(part(most.count())).filter(|part| *part < most.count());
        warning.growth_per_day = part.map(ExtentsPerDay::from_count);
    }
    if let (Some(far), false) = (warning.time_to_critical, time) {
        // As far as the forecast reaches and beyond the critical time; otherwise never.
        let least = critical.time_to_critical.unwrap_or_default();
        let far = if far <= least {
            least.saturating_mul(2)
        } else {
            far
        };
        warning.time_to_critical = Some(far.min(reach)).filter(|time| *time > least);
    }
}

/// The smallest window, in whole minutes or hours, for which a forecast reaches `time`.
fn window_for(time: Duration) -> Duration {
    let reach = u128::from(REACH_OF_WINDOW) * 1000;
    // Times are at most a hundred years.
    let needed = u64::try_from(time.as_millis().div_ceil(reach)).unwrap_or(u64::MAX / 2);
    Duration::from_secs(needed.next_multiple_of(if needed > 3600 { 3600 } else { 60 }))
}

fn is_set(changes: &LimitChanges) -> Set {
    let LimitChanges {
        extents,
        growth_per_day,
        time_to_critical,
    } = changes;
    [
        extents.is_some(),
        growth_per_day.is_some(),
        time_to_critical.is_some(),
    ]
}

fn differences(before: &Limits, after: &Limits) -> Set {
    [
        before.extents != after.extents,
        before.growth_per_day != after.growth_per_day,
        before.time_to_critical != after.time_to_critical,
    ]
}

fn either(one: Set, other: Set) -> Set {
    [0, 1, 2].map(|i| one[i] || other[i])
}

/// The limits selected by `set`.
fn only(limits: &Limits, set: Set) -> LimitChanges {
    LimitChanges {
        extents: set[0].then_some(limits.extents),
        growth_per_day: set[1].then_some(limits.growth_per_day),
        time_to_critical: set[2].then_some(limits.time_to_critical),
    }
}
