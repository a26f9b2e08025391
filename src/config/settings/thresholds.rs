//! `[thresholds]`: what is too much.

use std::time::Duration;

use super::{
    Side, at_least, at_most, check_globs, check_hook, contradiction, given, given_list,
    out_of_range, value_or, values_or,
};
use crate::config::diagnose::Finding;
use crate::config::raw::{Key, RawHost, RawLimits, RawOverride, RawThresholds};
use crate::config::reader::Located;
use crate::config::values::{CountOrNever, Factor, OrNever, Value as _};
use crate::model::growth::REACH_OF_WINDOW;
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{ExtentCount, ExtentsPerDay, Share};

/// The shortest window of growth.
const SHORTEST_WINDOW: Duration = Duration::from_secs(60);
/// The shortest time to critical.
const SHORTEST_TIME: Duration = Duration::from_secs(1);
/// How many times the warning's a critical limit is, if only one of the two was written: as by
/// default, of counts and of the host's memory.
const TIMES_WARNING: u64 = 10;
const HOST_TIMES_WARNING: u32 = 5;
/// What a severity falls to at least before it is left.
const LEAST_HYSTERESIS: Factor = Factor(Share::percent(50));
/// The same at most: as soon as it is below.
const MOST_HYSTERESIS: Factor = Factor(Share::WHOLE);

/// What is too much.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Growth is that of this time. A minute at least.
    pub growth_window: Duration,
    /// A severity that was reached is left below this part of its threshold. 50 to 100 %.
    pub hysteresis: Share,
    /// A command and its arguments, run when a severity changes. The command is an absolute path.
    /// Empty: there is none.
    pub hook: Vec<String>,
    /// From here on an image wants attention.
    pub warning: Limits,
    /// From here on it endangers the host. Each limit is beyond that of the warning.
    pub critical: Limits,
    /// What all extent maps together may take.
    pub host: HostLimits,
    /// Other limits for some images. Of those that match an image the last one that sets a limit
    /// wins, limit by limit.
    pub overrides: Vec<Override>,
}

/// The thresholds of one severity. An image has it that reaches one of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// An image with this many extents or more. One at least.
    pub extents: ExtentCount,
    /// One that gains as many or more. Nothing: however many it gains.
    pub growth_per_day: Option<ExtentsPerDay>,
    /// One that has the extents of `critical` in this time or sooner. Nothing: however soon.
    pub time_to_critical: Option<Duration>,
}

/// Parts of the host's memory that the extent maps of all images take, as far as they are loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct HostLimits {
    /// From here on it wants attention.
    pub warning: Share,
    /// From here on it is a danger. Above `warning`.
    pub critical: Share,
}

/// Other limits for some images.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// Globs of the images: with a `/` held against the whole path, without against the name.
    pub images: Vec<String>,
    /// What is different for a warning.
    pub warning: LimitChanges,
    /// What is different for critical.
    pub critical: LimitChanges,
}

/// What an override sets, and nothing for what it leaves as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LimitChanges {
    /// See [`Limits::extents`].
    pub extents: Option<ExtentCount>,
    /// See [`Limits::growth_per_day`].
    pub growth_per_day: Option<Option<ExtentsPerDay>>,
    /// See [`Limits::time_to_critical`].
    pub time_to_critical: Option<Option<Duration>>,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            growth_window: Duration::from_secs(86_400),
            hysteresis: Share::percent(90),
            hook: Vec::new(),
            warning: Limits {
                extents: ExtentCount(500_000),
                growth_per_day: Some(ExtentsPerDay(250_000.0)),
                time_to_critical: Some(Duration::from_secs(14 * 86_400)),
            },
            critical: Limits {
                extents: ExtentCount(5_000_000),
                growth_per_day: None,
                time_to_critical: None,
            },
            host: HostLimits {
                warning: Share::percent(1),
                critical: Share::percent(5),
            },
            overrides: Vec::new(),
        }
    }
}

impl LimitChanges {
    /// These changes, and where there are none the `others`.
    fn or(&self, others: &LimitChanges) -> LimitChanges {
        LimitChanges {
            extents: self.extents.or(others.extents),
            growth_per_day: self.growth_per_day.or(others.growth_per_day),
            time_to_critical: self.time_to_critical.or(others.time_to_critical),
        }
    }

    /// Sets what is different in `after`.
    fn add_differences(&mut self, before: &Limits, after: &Limits) {
        if before.extents != after.extents {
            self.extents = Some(after.extents);
        }
        if before.growth_per_day != after.growth_per_day {
            self.growth_per_day = Some(after.growth_per_day);
        }
        if before.time_to_critical != after.time_to_critical {
            self.time_to_critical = Some(after.time_to_critical);
        }
    }

    /// These limits with what is different.
    pub fn apply(&self, limits: &mut Limits) {
        limits.extents = self.extents.unwrap_or(limits.extents);
        limits.growth_per_day = self.growth_per_day.unwrap_or(limits.growth_per_day);
        limits.time_to_critical = self.time_to_critical.unwrap_or(limits.time_to_critical);
    }
}

impl Thresholds {
    pub(super) fn from_raw(raw: &RawThresholds, findings: &mut Vec<Finding>) -> Thresholds {
        let default = Thresholds::default();
        let (window, hysteresis) = ("thresholds.growth_window", "thresholds.hysteresis");
        findings.extend(at_least(window, &raw.growth_window, SHORTEST_WINDOW));
        findings.extend(at_least(hysteresis, &raw.hysteresis, LEAST_HYSTERESIS));
        findings.extend(at_most(hysteresis, &raw.hysteresis, MOST_HYSTERESIS));
        findings.extend(check_hook("thresholds.hook", &raw.hook));
        for (severity, limits) in [("warning", &raw.warning), ("critical", &raw.critical)] {
            check_limits(&format!("thresholds.{severity}"), limits, findings);
        }
        for item in &raw.overrides {
            check_override(item, findings);
        }
        let (warning, critical) = ("thresholds.host.warning", "thresholds.host.critical");
        let below_all = Share(Share::WHOLE.0 - 1);
        findings.extend(at_most(warning, &raw.host.warning, below_all));
        findings.extend(at_least(critical, &raw.host.critical, Share(1)));
        let mut thresholds = Thresholds {
            growth_window: value_or(&raw.growth_window, default.growth_window),
            hysteresis: value_or(&raw.hysteresis, Factor(default.hysteresis)).0,
            hook: values_or(&raw.hook, default.hook),
            warning: changed(default.warning, &raw.warning),
            critical: changed(default.critical, &raw.critical),
            host: HostLimits {
                warning: value_or(&raw.host.warning, default.host.warning),
                critical: value_or(&raw.host.critical, default.host.critical),
            },
            overrides: raw
                .overrides
                .iter()
                .map(|item| item.value.to_override())
                .collect(),
        };
        thresholds.adapt(raw);
        thresholds
    }

    /// Makes the defaults fit what was written.
    fn adapt(&mut self, raw: &RawThresholds) {
        let both = |warning: &RawLimits, critical: &RawLimits| {
            let time = |raw: &RawLimits| raw.time_to_critical.as_ref()?.value.0;
            time(warning).max(time(critical))
        };
        let overrides = raw.overrides.iter().map(|item| &item.value);
        let times = overrides.map(|over| both(&over.warning, &over.critical));
        let furthest = times.fold(both(&raw.warning, &raw.critical), Option::max);
        if let (None, Some(time)) = (&raw.growth_window, furthest) {
            self.growth_window = self.growth_window.max(window_for(time));
        }
        let reach = self.growth_window.saturating_mul(REACH_OF_WINDOW);
        let written = (raw.warning.changes(), raw.critical.changes());
        adapt_limits(&mut self.warning, &mut self.critical, &written, reach);
        for over in &mut self.overrides {
            let (mut warning, mut critical) = (self.warning.clone(), self.critical.clone());
            over.warning.apply(&mut warning);
            over.critical.apply(&mut critical);
            let before = (warning.clone(), critical.clone());
            let written = (over.warning.or(&written.0), over.critical.or(&written.1));
            adapt_limits(&mut warning, &mut critical, &written, reach);
            over.warning.add_differences(&before.0, &warning);
            over.critical.add_differences(&before.1, &critical);
        }
        let HostLimits { warning, critical } = &mut self.host;
        match (&raw.host.warning, &raw.host.critical) {
            _ if *warning < *critical => {}
            (_, None) => {
                let times = warning.0.saturating_mul(HOST_TIMES_WARNING);
                *critical = Share(times).min(Share::WHOLE);
            }
            (None, Some(_)) => *warning = Share(critical.0 / HOST_TIMES_WARNING),
            (Some(_), Some(_)) => {}
        }
    }

    pub(super) fn contradictions(&self, raw: &RawThresholds, findings: &mut Vec<Finding>) {
        let none = RawOverride::default();
        let base = Order {
            thresholds: self,
            raw,
            over: &none,
        };
        base.check(&self.warning, &self.critical, findings);
        for (item, over) in raw.overrides.iter().zip(&self.overrides) {
            let (mut warning, mut critical) = (self.warning.clone(), self.critical.clone());
            over.warning.apply(&mut warning);
            over.critical.apply(&mut critical);
            let order = Order {
                thresholds: self,
                raw,
                over: &item.value,
            };
            let mut found = Vec::new();
            order.check(&warning, &critical, &mut found);
            // What is wrong without it was found already.
            found.retain(|finding| !findings.contains(finding));
            findings.extend(found);
        }
        let HostLimits { warning, critical } = &self.host;
        if critical <= warning {
            findings.extend(contradiction(
                Side::new("thresholds.host.critical", critical, &raw.host.critical),
                "is not above",
                Side::new("thresholds.host.warning", warning, &raw.host.warning),
                &format!(
                    "a critical above {}, or a warning below {}",
                    warning.write(),
                    critical.write()
                ),
            ));
        }
    }
}

/// Makes limits that were not `written` fit those that were, of warning and critical.
fn adapt_limits(
    warning: &mut Limits,
    critical: &mut Limits,
    written: &(LimitChanges, LimitChanges),
    reach: Duration,
) {
    let (w, c) = written;
    if critical.extents <= warning.extents {
        match (w.extents, c.extents) {
            (Some(least), None) => critical.extents = times_warning(least),
            (None, Some(most)) => warning.extents = part_of_critical(most),
            _ => {}
        }
    }
    if let (Some(least), Some(most)) = (warning.growth_per_day, critical.growth_per_day)
        && most <= least
        && w.growth_per_day.is_none()
    {
        let part = part_of_critical(most.count());
        warning.growth_per_day = (part < most.count()).then(|| ExtentsPerDay::from_count(part));
    }
    if let Some(time) = warning.time_to_critical
        && w.time_to_critical.is_none()
    {
        let least = critical.time_to_critical.unwrap_or_default();
        // As far ahead as a forecast reaches, and further than what is critical; or never.
        let time = if time <= least {
            least.saturating_mul(2)
        } else {
            time
        };
        warning.time_to_critical = Some(time.min(reach)).filter(|time| *time > least);
    }
}

fn times_warning(warning: ExtentCount) -> ExtentCount {
    ExtentCount(warning.0.saturating_mul(TIMES_WARNING)).min(EXTENT_LIMIT_64)
}

fn part_of_critical(critical: ExtentCount) -> ExtentCount {
    ExtentCount((critical.0 / TIMES_WARNING).max(1))
}

/// The window of growth from which on a forecast reaches as far as `time`.
fn window_for(time: Duration) -> Duration {
    let needed = time
        .as_millis()
        .div_ceil(1000 * u128::from(REACH_OF_WINDOW));
    let needed = u64::try_from(needed).unwrap_or(u64::MAX / 3600);
    let unit = if needed > 3600 { 3600 } else { 60 };
    Duration::from_secs(needed.div_ceil(unit).saturating_mul(unit))
}

fn changed(mut limits: Limits, raw: &RawLimits) -> Limits {
    raw.changes().apply(&mut limits);
    limits
}

fn check_limits(section: &str, raw: &RawLimits, findings: &mut Vec<Finding>) {
    let name = format!("{section}.extents");
    // There is room for the other severity below and above.
    let (least, most) = match section.ends_with("critical") {
        true => (ExtentCount(2), EXTENT_LIMIT_64),
        false => (ExtentCount(1), ExtentCount(EXTENT_LIMIT_64.0 - 1)),
    };
    findings.extend(at_least(&name, &raw.extents, least));
    findings.extend(at_most(&name, &raw.extents, most));
    let name = format!("{section}.growth_per_day");
    if let Some(located) = &raw.growth_per_day
        && let Some(count) = located.value.0
    {
        let bound = |count| CountOrNever(Some(count));
        let (least, most) = (ExtentCount(1), EXTENT_LIMIT_64);
        findings.extend(
            (count < least)
                .then(|| out_of_range(&name, located, "is below", &bound(least), "or more")),
        );
        findings.extend(
            (count > most)
                .then(|| out_of_range(&name, located, "is above", &bound(most), "or less")),
        );
    }
    let name = format!("{section}.time_to_critical");
    if let Some(located) = &raw.time_to_critical
        && located.value.0.is_some_and(|time| time < SHORTEST_TIME)
    {
        let least = OrNever(Some(SHORTEST_TIME));
        findings.push(out_of_range(&name, located, "is below", &least, "or more"));
    }
}

fn check_override(item: &Located<RawOverride>, findings: &mut Vec<Finding>) {
    const NAME: &str = "thresholds.override";
    let over = &item.value;
    if let Some(images) = &over.images {
        let name = format!("{NAME}.images");
        if images.value.is_empty() {
            let message = format!("{name}: without a glob it is for no image");
            let write = "images = [\"*\"] for every image";
            findings.push(Finding::new(images.place.clone(), message, write));
        }
        findings.extend(check_globs(&name, images));
    }
    for (severity, limits) in [("warning", &over.warning), ("critical", &over.critical)] {
        check_limits(&format!("{NAME}.{severity}"), limits, findings);
    }
}

/// Whether the limits of `critical` lie beyond those of `warning`, with what an override sets.
struct Order<'r> {
    thresholds: &'r Thresholds,
    raw: &'r RawThresholds,
    over: &'r RawOverride,
}

/// A key of limits.
type Pick<T> = fn(&RawLimits) -> &Key<T>;

impl<'r> Order<'r> {
    fn check(&self, warning: &Limits, critical: &Limits, findings: &mut Vec<Finding>) {
        let (w, c) = (warning.extents, critical.extents);
        if c <= w {
            let above = ExtentCount(w.0.saturating_add(1)).write();
            let write = format!("critical = {{ extents = {above} }} or more");
            let pick: Pick<ExtentCount> = |raw| &raw.extents;
            let sides = self.sides("extents", &c, &w, pick);
            findings.extend(contradiction(sides.0, "is not above", sides.1, &write));
        }
        if let (Some(w), Some(c)) = (warning.growth_per_day, critical.growth_per_day)
            && c <= w
        {
            let count = |rate: ExtentsPerDay| CountOrNever(Some(rate.count()));
            let above = ExtentCount(w.count().0.saturating_add(1)).write();
            let write = format!("critical = {{ growth_per_day = {above} }} or more");
            let pick: Pick<CountOrNever> = |raw| &raw.growth_per_day;
            let sides = self.sides("growth_per_day", &count(c), &count(w), pick);
            findings.extend(contradiction(sides.0, "is not above", sides.1, &write));
        }
        let (w, c) = (warning.time_to_critical, critical.time_to_critical);
        let pick: Pick<OrNever> = |raw| &raw.time_to_critical;
        if let (Some(warning), Some(critical)) = (w, c)
            && critical >= warning
        {
            let half = OrNever(Some(warning / 2)).write();
            let write = format!("critical = {{ time_to_critical = {half} }}, or \"never\"");
            let sides = self.sides("time_to_critical", &OrNever(c), &OrNever(w), pick);
            findings.extend(contradiction(sides.0, "is not below", sides.1, &write));
        }
        self.check_reach("warning", w, findings);
        // One that is not even nearer than the warning was found already.
        if w.is_none() || c < w {
            self.check_reach("critical", c, findings);
        }
    }

    /// A time that no forecast reaches would never be told.
    fn check_reach(
        &self,
        severity: &'static str,
        time: Option<Duration>,
        findings: &mut Vec<Finding>,
    ) {
        let window = &self.thresholds.growth_window;
        let Some(time) = time.filter(|time| *time > window.saturating_mul(REACH_OF_WINDOW)) else {
            return;
        };
        let pick: Pick<OrNever> = |raw| &raw.time_to_critical;
        let write = format!("growth_window = {} or more", window_for(time).write());
        findings.extend(contradiction(
            self.side(severity, "time_to_critical", &OrNever(Some(time)), pick),
            &format!("is further than a forecast reaches, {REACH_OF_WINDOW} times"),
            Side::new("thresholds.growth_window", window, &self.raw.growth_window),
            &write,
        ));
    }

    /// Critical and warning.
    fn sides<T: super::Value + 'r>(
        &self,
        key: &str,
        critical: &T,
        warning: &T,
        pick: Pick<T>,
    ) -> (Side<'r>, Side<'r>) {
        (
            self.side("critical", key, critical, pick),
            self.side("warning", key, warning, pick),
        )
    }

    fn side<T: super::Value + 'r>(
        &self,
        severity: &'static str,
        key: &str,
        value: &T,
        pick: Pick<T>,
    ) -> Side<'r> {
        let (over, base) = match severity {
            "warning" => (&self.over.warning, &self.raw.warning),
            _ => (&self.over.critical, &self.raw.critical),
        };
        if pick(over).is_some() {
            let name = format!("thresholds.override.{severity}.{key}");
            return Side::new(name, value, pick(over));
        }
        Side::new(format!("thresholds.{severity}.{key}"), value, pick(base))
    }
}

impl RawOverride {
    fn to_override(&self) -> Override {
        Override {
            images: values_or(&self.images, Vec::new()),
            warning: self.warning.changes(),
            critical: self.critical.changes(),
        }
    }
}

impl RawLimits {
    fn changes(&self) -> LimitChanges {
        let rate = |count: &Located<CountOrNever>| count.value.0.map(ExtentsPerDay::from_count);
        LimitChanges {
            extents: self.extents.as_ref().map(|located| located.value),
            growth_per_day: self.growth_per_day.as_ref().map(rate),
            time_to_critical: self
                .time_to_critical
                .as_ref()
                .map(|located| located.value.0),
        }
    }
}

impl From<&LimitChanges> for RawLimits {
    fn from(changes: &LimitChanges) -> RawLimits {
        let count = |rate: Option<ExtentsPerDay>| CountOrNever(rate.map(ExtentsPerDay::count));
        RawLimits {
            extents: changes.extents.and_then(given),
            growth_per_day: changes.growth_per_day.map(count).and_then(given),
            time_to_critical: changes.time_to_critical.map(OrNever).and_then(given),
        }
    }
}

impl From<&Limits> for RawLimits {
    fn from(limits: &Limits) -> RawLimits {
        RawLimits::from(&LimitChanges {
            extents: Some(limits.extents),
            growth_per_day: Some(limits.growth_per_day),
            time_to_critical: Some(limits.time_to_critical),
        })
    }
}

impl From<&Thresholds> for RawThresholds {
    fn from(thresholds: &Thresholds) -> RawThresholds {
        let over = |over: &Override| {
            Located::nowhere(RawOverride {
                images: given_list(over.images.iter().cloned()),
                warning: RawLimits::from(&over.warning),
                critical: RawLimits::from(&over.critical),
            })
        };
        RawThresholds {
            growth_window: given(thresholds.growth_window),
            hysteresis: given(Factor(thresholds.hysteresis)),
            hook: given_list(thresholds.hook.iter().cloned()),
            warning: RawLimits::from(&thresholds.warning),
            critical: RawLimits::from(&thresholds.critical),
            host: RawHost {
                warning: given(thresholds.host.warning),
                critical: given(thresholds.host.critical),
            },
            overrides: thresholds.overrides.iter().map(over).collect(),
        }
    }
}
