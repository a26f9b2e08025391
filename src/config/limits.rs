//! Adapts the limits of `[thresholds]` that are not set, and checks the order of those that are.

use std::time::Duration;

use super::check::Check;
use super::settings::{HostLimits, LimitChanges, Limits, Override, Thresholds};
use super::units::Toml as _;
use crate::model::growth::REACH_OF_WINDOW;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// Ratios of critical to warning, as by default, if only one is set: for counts, and for the host.
const TIMES_WARNING: u64 = 10;
const HOST_TIMES_WARNING: u32 = 5;

/// Adapts the limits and the growth window that are not set, then checks that critical limits are
/// beyond warning limits, also with each override.
pub(super) fn check(check: &mut Check<'_>, it: &mut Thresholds) {
    adapt(check, it);
    let window = it.growth_window;
    order(check, "thresholds", (&it.warning, &it.critical), window);
    for (i, over) in it.overrides.iter().enumerate() {
        let (warning, critical) = overridden(it, over);
        let section = format!("thresholds.override.{i}");
        order(check, &section, (&warning, &critical), window);
    }
    let HostLimits { warning, critical } = &it.host;
    if critical <= warning {
        let one = ("thresholds.host.critical", critical.toml());
        let other = ("thresholds.host.warning", warning.toml());
        check.contradiction(one, "is not above", other);
    }
}

/// The limits of images to which only this override applies.
fn overridden(base: &Thresholds, over: &Override) -> (Limits, Limits) {
    let (mut warning, mut critical) = (base.warning.clone(), base.critical.clone());
    over.warning.apply(&mut warning);
    over.critical.apply(&mut critical);
    (warning, critical)
}

/// `section` is an override, or `thresholds` itself.
fn order(
    check: &mut Check<'_>,
    section: &str,
    (warning, critical): (&Limits, &Limits),
    window: Duration,
) {
    // In the override, if it is set there.
    let paths = |check: &Check<'_>, key: &str| {
        ["warning", "critical"].map(|severity| {
            let own = format!("{section}.{severity}.{key}");
            let is_own = check.is_set(&own);
            if is_own {
                own
            } else {
                format!("thresholds.{severity}.{key}")
            }
        })
    };
    let rate = |limits: &Limits| limits.growth_per_day.map(ExtentsPerDay::count);
    for (key, low, high) in [
        ("extents", Some(warning.extents), Some(critical.extents)),
        ("growth_per_day", rate(warning), rate(critical)),
    ] {
        if let (Some(low), Some(high)) = (low, high)
            && high <= low
        {
            let [other, one] = paths(check, key);
            check.contradiction((&one, high.toml()), "is not above", (&other, low.toml()));
        }
    }
    let (far, mut near) = (warning.time_to_critical, critical.time_to_critical);
    let [far_path, near_path] = paths(check, "time_to_critical");
    if let (Some(low), Some(high)) = (far, near)
        && high >= low
    {
        let (one, other) = ((&*near_path, high.toml()), (&*far_path, low.toml()));
        check.contradiction(one, "is not below", other);
        // It is reported once.
        near = None;
    }
    for (path, limit) in [(far_path, far), (near_path, near)] {
        // It would never be reported.
        if let Some(limit) = limit.filter(|it| *it > window.saturating_mul(REACH_OF_WINDOW)) {
            let relation = format!("is further than a forecast reaches, {REACH_OF_WINDOW} times");
            let window = ("thresholds.growth_window", window.toml());
            check.contradiction((&path, limit.toml()), &relation, window);
        }
    }
}

fn adapt(check: &Check<'_>, it: &mut Thresholds) {
    let is_set = |key: &str| check.is_set(&format!("thresholds.{key}"));
    if !is_set("growth_window") {
        it.growth_window = it.growth_window.max(window_for(furthest(check, it)));
    }
    let reach = it.growth_window.saturating_mul(REACH_OF_WINDOW);
    let [mut warning, mut critical] = [LimitChanges::default(), LimitChanges::default()];
    let limits = (&it.warning, &it.critical);
    adapt_limits(limits, (&mut warning, &mut critical), is_set, reach);
    warning.apply(&mut it.warning);
    critical.apply(&mut it.critical);
    let mut overrides = std::mem::take(&mut it.overrides);
    for (i, over) in overrides.iter_mut().enumerate() {
        let (warning, critical) = overridden(it, over);
        let is_set = |key: &str| is_set(key) || is_set(&format!("override.{i}.{key}"));
        let changes = (&mut over.warning, &mut over.critical);
        adapt_limits((&warning, &critical), changes, is_set, reach);
    }
    it.overrides = overrides;
    let HostLimits { warning, critical } = &mut it.host;
    if *critical <= *warning {
        if !is_set("host.critical") {
            let times = warning.0.saturating_mul(HOST_TIMES_WARNING);
            *critical = Share(times).min(Share::WHOLE);
        } else if !is_set("host.warning") {
            *warning = Share(critical.0 / HOST_TIMES_WARNING);
        }
    }
}

/// Changes limits that are not set and do not fit to those that are. `reach` is that of the forecast.
fn adapt_limits(
    (warning, critical): (&Limits, &Limits),
    (warning_changes, critical_changes): (&mut LimitChanges, &mut LimitChanges),
    is_set: impl Fn(&str) -> bool,
    reach: Duration,
) {
    let part = |critical: ExtentCount| ExtentCount((critical.0 / TIMES_WARNING).max(1));
    if critical.extents <= warning.extents {
        match (is_set("warning.extents"), is_set("critical.extents")) {
            (true, false) => {
                let times = ExtentCount(warning.extents.0.saturating_mul(TIMES_WARNING));
                critical_changes.extents = Some(times.min(EXTENT_LIMIT_64));
            }
            (false, true) => warning_changes.extents = Some(part(critical.extents)),
            _ => {}
        }
    }
    if let (Some(low), Some(high)) = (warning.growth_per_day, critical.growth_per_day)
        && high <= low
        && !is_set("warning.growth_per_day")
    {
        let part = ExtentsPerDay::from_count(part(high.count()));
        warning_changes.growth_per_day = Some(Some(part).filter(|part| *part < high));
    }
    if let Some(far) = warning.time_to_critical
        && !is_set("warning.time_to_critical")
    {
        // As far as the forecast reaches and beyond the critical time; otherwise never.
        let least = critical.time_to_critical.unwrap_or_default();
        let beyond = if far <= least {
            least.saturating_mul(2)
        } else {
            far
        };
        let adapted = Some(beyond.min(reach)).filter(|time| *time > least);
        if adapted != Some(far) {
            warning_changes.time_to_critical = Some(adapted);
        }
    }
}

/// The longest `time_to_critical` that is set.
fn furthest(check: &Check<'_>, it: &Thresholds) -> Duration {
    let own = [("warning", &it.warning), ("critical", &it.critical)].into_iter();
    let own = own.map(|(severity, limits)| {
        let is_set = check.is_set(&format!("thresholds.{severity}.time_to_critical"));
        limits.time_to_critical.filter(|_| is_set)
    });
    let overrides = it
        .overrides
        .iter()
        .flat_map(|over| [&over.warning, &over.critical]);
    let overrides = overrides.map(|limits| limits.time_to_critical.flatten());
    own.chain(overrides).flatten().max().unwrap_or_default()
}

/// The smallest window, in whole minutes or hours, for which a forecast reaches `time`.
fn window_for(time: Duration) -> Duration {
    let reach = u128::from(REACH_OF_WINDOW) * 1000;
    // Times are at most a hundred years.
    let needed = u64::try_from(time.as_millis().div_ceil(reach)).unwrap_or(u64::MAX / 2);
    Duration::from_secs(needed.next_multiple_of(if needed > 3600 { 3600 } else { 60 }))
}
