//! Adapts the limits of `[thresholds]` that are not set, and checks the order of those that are.

use std::time::Duration;

use super::check::Check;
use super::settings::{HostLimits, LimitChanges, Limits, Thresholds};
use super::text::Toml as _;
use crate::model::growth::REACH_OF_WINDOW;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// Ratios of critical to warning, as by default, if only one is set: for counts, and for the host.
const TIMES_WARNING: u64 = 10;
const HOST_TIMES_WARNING: u32 = 5;

/// Adapts the limits and the growth window that are not set, then checks that critical limits are
/// beyond warning limits, also with each override.
pub(super) fn check(check: &mut Check<'_>, it: &mut Thresholds) {
    if !check.is_set("thresholds.growth_window") {
        it.growth_window = it.growth_window.max(window_for(furthest(check, it)));
    }
    let window = it.growth_window;
    let mut none = [LimitChanges::default(), LimitChanges::default()];
    let base = [&it.warning, &it.critical];
    [it.warning, it.critical] = section(check, "thresholds", base, none.each_mut(), window);
    for (i, over) in it.overrides.iter_mut().enumerate() {
        let path = format!("thresholds.override.{i}");
        let changes = [&mut over.warning, &mut over.critical];
        section(check, &path, [&it.warning, &it.critical], changes, window);
    }
    host(check, &mut it.host);
}

/// The longest `time_to_critical` that is set.
fn furthest(check: &Check<'_>, it: &Thresholds) -> Duration {
    let own = [("warning", &it.warning), ("critical", &it.critical)].into_iter();
    let own = own.map(|(severity, limits)| {
        let is_set = check.is_set(&format!("thresholds.{severity}.time_to_critical"));
        limits.time_to_critical.filter(|_| is_set)
    });
    let overrides = it.overrides.iter();
    let changes = overrides.flat_map(|over| [&over.warning, &over.critical]);
    let changes = changes.map(|limits| limits.time_to_critical.flatten());
    own.chain(changes).flatten().max().unwrap_or_default()
}

/// The smallest window, in whole minutes or hours, for which a forecast reaches `time`.
fn window_for(time: Duration) -> Duration {
    let reach = u128::from(REACH_OF_WINDOW) * 1000;
    // Times are at most a hundred years.
    let needed = u64::try_from(time.as_millis().div_ceil(reach)).unwrap_or(u64::MAX / 2);
    Duration::from_secs(needed.next_multiple_of(if needed > 3600 { 3600 } else { 60 }))
}

/// Adapts and checks the limits of a section, which is `thresholds`, or an override that changes
/// those of `thresholds`. Returns the limits that apply.
fn section(
    check: &mut Check<'_>,
    section: &str,
    base: [&Limits; 2],
    mut changes: [&mut LimitChanges; 2],
    window: Duration,
) -> [Limits; 2] {
    let reach = window.saturating_mul(REACH_OF_WINDOW);
    let is_set = |key: &str| check.is_set(&path(check, section, key));
    adapt(&changed(base, &changes), &mut changes, is_set, reach);
    let limits = changed(base, &changes);
    order(check, section, &limits);
    let [far, near] = [&limits[0], &limits[1]].map(|limits| limits.time_to_critical);
    // If it is not below the time of a warning, that is reported.
    let near = near.filter(|near| far.is_none_or(|far| *near < far));
    for (key, time) in [("warning", far), ("critical", near)] {
        // It would never be reported.
        if let Some(time) = time.filter(|time| *time > reach) {
            let path = path(check, section, &format!("{key}.time_to_critical"));
            let relation = format!("is further than a forecast reaches, {REACH_OF_WINDOW} times");
            let window = ("thresholds.growth_window", window.toml());
            check.contradiction((&path, time.toml()), &relation, window);
        }
    }
    limits
}

fn changed(base: [&Limits; 2], changes: &[&mut LimitChanges; 2]) -> [Limits; 2] {
    std::array::from_fn(|severity| {
        let mut limits = base[severity].clone();
        changes[severity].apply(&mut limits);
        limits
    })
}

/// The path of a limit: in the section, if it is set there.
fn path(check: &Check<'_>, section: &str, key: &str) -> String {
    match format!("{section}.{key}") {
        own if check.is_set(&own) => own,
        _ => format!("thresholds.{key}"),
    }
}

/// Changes limits that are not set and do not fit to those that are. `reach` is that of the forecast.
fn adapt(
    [warning, critical]: &[Limits; 2],
    changes: &mut [&mut LimitChanges; 2],
    is_set: impl Fn(&str) -> bool,
    reach: Duration,
) {
    let part = |critical: ExtentCount| ExtentCount((critical.0 / TIMES_WARNING).max(1));
    if critical.extents <= warning.extents {
        match (is_set("warning.extents"), is_set("critical.extents")) {
            (true, false) => {
                let times = ExtentCount(warning.extents.0.saturating_mul(TIMES_WARNING));
                changes[1].extents = Some(times.min(EXTENT_LIMIT_64));
            }
            (false, true) => changes[0].extents = Some(part(critical.extents)),
            _ => {}
        }
    }
    let rates = warning.growth_per_day.zip(critical.growth_per_day);
    let inverse = rates.filter(|(low, high)| high <= low);
    if let (Some((_, high)), false) = (inverse, is_set("warning.growth_per_day")) {
        let part = ExtentsPerDay::from_count(part(high.count()));
        changes[0].growth_per_day = Some(Some(part).filter(|part| *part < high));
    }
    let far = warning.time_to_critical;
    if let (Some(far), false) = (far, is_set("warning.time_to_critical")) {
        // As far as the forecast reaches and beyond the critical time; otherwise never.
        let least = critical.time_to_critical.unwrap_or_default();
        let double = least.saturating_mul(2);
        let beyond = if far > least { far } else { double };
        let adapted = Some(beyond.min(reach)).filter(|time| *time > least);
        if adapted != Some(far) {
            changes[0].time_to_critical = Some(adapted);
        }
    }
}

fn order(check: &mut Check<'_>, section: &str, [warning, critical]: &[Limits; 2]) {
    let mut refuse = |key: &str, high: String, relation: &str, low: String| {
        let [one, other] =
            ["critical", "warning"].map(|it| path(check, section, &format!("{it}.{key}")));
        check.contradiction((&one, high), relation, (&other, low));
    };
    let rates = warning.growth_per_day.zip(critical.growth_per_day);
    let rates = rates.map(|(low, high)| (low.count(), high.count()));
    let extents = Some((warning.extents, critical.extents));
    for (key, counts) in [("extents", extents), ("growth_per_day", rates)] {
        if let Some((low, high)) = counts.filter(|(low, high)| high <= low) {
            refuse(key, high.toml(), "is not above", low.toml());
        }
    }
    let times = warning.time_to_critical.zip(critical.time_to_critical);
    if let Some((far, near)) = times.filter(|(far, near)| near >= far) {
        refuse("time_to_critical", near.toml(), "is not below", far.toml());
    }
}

/// Adapts one limit of the share of memory if only the other is set, and checks their order.
fn host(check: &mut Check<'_>, HostLimits { warning, critical }: &mut HostLimits) {
    let (one, other) = ("thresholds.host.critical", "thresholds.host.warning");
    if *critical <= *warning {
        let times = Share(warning.0.saturating_mul(HOST_TIMES_WARNING));
        match [one, other].map(|key| check.is_set(key)) {
            [false, _] => *critical = times.min(Share::WHOLE),
            [_, false] => *warning = Share(critical.0 / HOST_TIMES_WARNING),
            _ => {
                let (one, other) = ((one, critical.toml()), (other, warning.toml()));
                check.contradiction(one, "is not above", other);
            }
        }
    }
}
