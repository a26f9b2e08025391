//! The limits of `[thresholds]`: ranges, order, and the adaptation of defaults.

use std::array::from_fn;
use std::time::Duration;

use toml::de::DeTable;

use super::check::Check;
use super::checks::{Invalid, SECOND, within};
use super::read::place;
use super::settings::{HostLimits, LimitChanges, Thresholds};
use super::units::Toml as _;
use crate::model::growth::REACH_OF_WINDOW;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// Ratios of critical to warning, as by default, if only one is set: for counts, and for the host.
const TIMES_WARNING: u64 = 10;
const HOST_TIMES_WARNING: u32 = 5;

const KEYS: [&str; 6] = [
    "warning.extents",
    "warning.growth_per_day",
    "warning.time_to_critical",
    "critical.extents",
    "critical.growth_per_day",
    "critical.time_to_critical",
];
/// The numbers of the keys of a warning; those of critical are by [`CRITICAL`] higher.
const EXTENTS: usize = 0;
const GROWTH: usize = 1;
const TIME: usize = 2;
const CRITICAL: usize = 3;

/// The limit of each key in extents, extents a day, or milliseconds; `None` is never.
type Numbers = [Option<u64>; 6];
/// As [`Numbers`], with `None` for what is not set.
type Changes = [Option<Option<u64>>; 6];

fn numbers_of(warning: &LimitChanges, critical: &LimitChanges) -> Changes {
    // Times are at most a hundred years.
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let numbers = |limits: &LimitChanges| {
        let extents = limits.extents.map(|extents| Some(extents.0));
        let growth = limits.growth_per_day.map(|rate| Some(rate?.count().0));
        (
            extents,
            growth,
            limits.time_to_critical.map(|time| Some(millis(time?))),
        )
    };
    let ((a, b, c), (d, e, f)) = (numbers(warning), numbers(critical));
    [a, b, c, d, e, f]
}

/// The limits of both severities.
fn limits_of(numbers: Changes) -> [LimitChanges; 2] {
    let rate = |count| ExtentsPerDay::from_count(ExtentCount(count));
    [0, CRITICAL].map(|severity| LimitChanges {
        extents: numbers[severity + EXTENTS].flatten().map(ExtentCount),
        growth_per_day: numbers[severity + GROWTH].map(|count| count.map(rate)),
        time_to_critical: numbers[severity + TIME].map(|time| time.map(Duration::from_millis)),
    })
}

fn base_of(it: &Thresholds) -> Numbers {
    let (warning, critical) = (it.warning.clone().into(), it.critical.clone().into());
    numbers_of(&warning, &critical).map(Option::flatten)
}

/// The limits of an image to which these changes apply.
fn with(base: Numbers, changes: Changes) -> Numbers {
    from_fn(|key| changes[key].unwrap_or(base[key]))
}

/// The limits that are set in `[thresholds]` and in each override, with the path of the section.
fn sections(it: &Thresholds) -> Vec<(String, Changes)> {
    let base = ("thresholds".to_owned(), base_of(it).map(Some));
    let overrides = it.overrides.iter().enumerate().map(|(i, over)| {
        let path = format!("thresholds.override.{i}");
        (path, numbers_of(&over.warning, &over.critical))
    });
    std::iter::once(base).chain(overrides).collect()
}

/// Checks the limits one by one, also those of overrides.
pub(super) fn ranges(check: &mut Check<'_>, it: &Thresholds) {
    for (section, changes) in sections(it) {
        let mut invalid = Invalid::new();
        for (i, key) in KEYS.iter().enumerate() {
            let Some(number) = changes[i].flatten() else {
                continue;
            };
            if i % CRITICAL == TIME {
                within(SECOND..)(&Duration::from_millis(number), key, &mut invalid);
                continue;
            }
            // Leaves room for the limit of the other severity.
            let least = ExtentCount(if i == CRITICAL + EXTENTS { 2 } else { 1 });
            let most = ExtentCount(EXTENT_LIMIT_64.0 - u64::from(i == EXTENTS));
            within(least..=most)(&ExtentCount(number), key, &mut invalid);
        }
        check.section(&section, invalid);
    }
}

/// Checks that critical limits are beyond warning limits, also with each override.
pub(super) fn order(check: &mut Check<'_>, it: &Thresholds) {
    for (section, changes) in sections(it) {
        order_of(
            check,
            &section,
            with(base_of(it), changes),
            it.growth_window,
        );
    }
    let HostLimits { warning, critical } = &it.host;
    if critical <= warning {
        let one = ("thresholds.host.critical", critical.toml());
        let other = ("thresholds.host.warning", warning.toml());
        check.contradiction(one, "is not above", other);
    }
}

/// `section` is an override, or `thresholds` itself.
fn order_of(check: &mut Check<'_>, section: &str, limits: Numbers, window: Duration) {
    // In the override, if it is set there.
    let paths = KEYS.map(|key| {
        let own = format!("{section}.{key}");
        let is_own = check.place(&own).is_some();
        if is_own {
            own
        } else {
            format!("thresholds.{key}")
        }
    });
    let time = |milliseconds| Duration::from_millis(milliseconds);
    let mut times = [limits[TIME], limits[CRITICAL + TIME]];
    for key in [EXTENTS, GROWTH, TIME] {
        let (Some(low), Some(high)) = (limits[key], limits[CRITICAL + key]) else {
            continue;
        };
        let (one, other) = (paths[CRITICAL + key].as_str(), paths[key].as_str());
        if key != TIME && high <= low {
            let (high, low) = (high.to_string(), low.to_string());
            check.contradiction((one, high), "is not above", (other, low));
        } else if key == TIME && high >= low {
            let (near, far) = (time(high).toml(), time(low).toml());
            check.contradiction((one, near), "is not below", (other, far));
            // It is reported once.
            times[1] = None;
        }
    }
    // A time beyond the reach of the forecast would never be reported.
    for (path, limit) in [&paths[TIME], &paths[CRITICAL + TIME]]
        .into_iter()
        .zip(times)
    {
        let limit = limit.map(time);
        if let Some(limit) = limit.filter(|it| *it > window.saturating_mul(REACH_OF_WINDOW)) {
            let relation = format!("is further than a forecast reaches, {REACH_OF_WINDOW} times");
            let window = ("thresholds.growth_window", window.toml());
            check.contradiction((path, limit.toml()), &relation, window);
        }
    }
}

/// Adapts the defaults to the keys that are set in `table`.
pub(super) fn adapt(it: &mut Thresholds, table: &DeTable<'_>) {
    let is_set = |key: &str| place(table, &format!("thresholds.{key}")).is_some();
    let set = KEYS.map(is_set);
    let base = base_of(it);
    if !is_set("growth_window") {
        let own: Changes = from_fn(|key| Some(base[key]).filter(|_| set[key]));
        let overrides = sections(it).into_iter().skip(1);
        let all = overrides.map(|(_, changes)| changes).chain([own]);
        let times = all.flat_map(|it| [it[TIME].flatten(), it[CRITICAL + TIME].flatten()]);
        let furthest = times.flatten().max().unwrap_or(0);
        let needed = window_for(Duration::from_millis(furthest));
        it.growth_window = it.growth_window.max(needed);
    }
    let reach = it.growth_window.saturating_mul(REACH_OF_WINDOW).as_millis();
    let reach = u64::try_from(reach).unwrap_or(u64::MAX);
    let base = adapted(base, set, reach);
    let [warning, critical] = limits_of(base.map(Some));
    warning.apply(&mut it.warning);
    critical.apply(&mut it.critical);
    for over in &mut it.overrides {
        let own = numbers_of(&over.warning, &over.critical);
        let before = with(base, own);
        let after = adapted(before, from_fn(|i| own[i].is_some() || set[i]), reach);
        let changes = from_fn(|i| {
            let is_changed = own[i].is_some() || before[i] != after[i];
            is_changed.then_some(after[i])
        });
        [over.warning, over.critical] = limits_of(changes);
    }
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

/// Adapts the limits that are not `set` to those that are; `reach` is that of the forecast.
fn adapted(mut limits: Numbers, set: [bool; 6], reach: u64) -> Numbers {
    let part = |critical: u64| (critical / TIMES_WARNING).max(1);
    let is_inverse = |key: usize| limits[CRITICAL + key] <= limits[key];
    let (is_extents, is_growth) = (is_inverse(EXTENTS), is_inverse(GROWTH));
    if let (true, Some(low), Some(high)) = (is_extents, limits[EXTENTS], limits[CRITICAL]) {
        match (set[EXTENTS], set[CRITICAL]) {
            (true, false) => {
                let times = low.saturating_mul(TIMES_WARNING);
                limits[CRITICAL] = Some(times.min(EXTENT_LIMIT_64.0));
            }
            (false, true) => limits[EXTENTS] = Some(part(high)),
            _ => {}
        }
    }
    if let (true, Some(high), false) = (is_growth, limits[CRITICAL + GROWTH], set[GROWTH]) {
        limits[GROWTH] = Some(part(high)).filter(|part| *part < high);
    }
    if let (Some(far), false) = (limits[TIME], set[TIME]) {
        // As far as the forecast reaches and beyond the critical time; otherwise never.
        let least = limits[CRITICAL + TIME].unwrap_or_default();
        let far = if far <= least {
            least.saturating_mul(2)
        } else {
            far
        };
        limits[TIME] = Some(far.min(reach)).filter(|time| *time > least);
    }
    limits
}

/// The smallest window, in whole minutes or hours, for which a forecast reaches `time`.
fn window_for(time: Duration) -> Duration {
    let reach = u128::from(REACH_OF_WINDOW) * 1000;
    // Times are at most a hundred years.
    let needed = u64::try_from(time.as_millis().div_ceil(reach)).unwrap_or(u64::MAX / 2);
    Duration::from_secs(needed.next_multiple_of(if needed > 3600 { 3600 } else { 60 }))
}
