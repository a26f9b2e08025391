//! From severity to severity, and why.

use std::fmt;
use std::time::Duration;

use super::ImageLimits;
use crate::config::settings::{HostLimits, Limits};
use crate::model::units::roughly;
use crate::model::{Bytes, ExtentCount, ExtentsPerDay, Forecast, Growth, Severity, Share, Unknown};

/// What is known of an image.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its extents.
    pub extents: ExtentCount,
    /// How it grows.
    pub growth: &'a Growth,
    /// When it has the extents of critical.
    pub forecast: Forecast,
}

/// Why something has the severity that it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// It is below every threshold.
    BelowAll,
    /// It has as many extents as this threshold, or nearly: it had more.
    Extents(ExtentCount),
    /// It gains, or gained, as many as the threshold, which comes second.
    Growth(ExtentsPerDay, ExtentsPerDay),
    /// It will be critical in this time; the threshold comes second.
    TimeToCritical(Duration, Duration),
    /// It was so near, or gained so many, and nothing is known that it is otherwise now.
    Unknown(Unknown),
    /// The extent maps take so much memory, of so much; and the threshold.
    Memory(Bytes, Bytes, Share),
}

/// The severity of an image from sweep to sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judge {
    severity: Severity,
    warning: Held,
    critical: Held,
}

/// Which thresholds of a severity were reached and not left since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    extents: bool,
    growth: bool,
    time: bool,
}

impl Judge {
    /// One of an image that had a severity when it was last seen. Whatever it had it for, it keeps
    /// until its value is well below the threshold.
    #[must_use]
    pub fn remembering(severity: Severity) -> Judge {
        let held = |level: Severity| {
            let held = severity >= level;
            Held {
                extents: held,
                growth: held,
                time: held,
            }
        };
        Judge {
            severity,
            warning: held(Severity::Warning),
            critical: held(Severity::Critical),
        }
    }

    /// The severity now.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Takes in what is known now, and says why the image has the severity that it now has.
    pub fn judge(&mut self, limits: &ImageLimits, hysteresis: Share, facts: &Facts<'_>) -> Reason {
        let critical = self.critical.update(&limits.critical, hysteresis, facts);
        let warning = self.warning.update(&limits.warning, hysteresis, facts);
        let (severity, reason) = match (critical, warning) {
            (Some(reason), _) => (Severity::Critical, reason),
            (None, Some(reason)) => (Severity::Warning, reason),
            (None, None) => (Severity::Ok, Reason::BelowAll),
        };
        self.severity = severity;
        reason
    }
}

/// What is known of a value in the light of its threshold.
enum State {
    Reached,
    /// Below it, but not well below.
    Near,
    Left,
    /// It may be or not be.
    Open(Unknown),
}

impl State {
    fn of(reached: bool, near: bool) -> State {
        match (reached, near) {
            (true, _) => State::Reached,
            (false, true) => State::Near,
            (false, false) => State::Left,
        }
    }

    /// What is not known *yet* counts as left.
    fn unknown(unknown: Unknown) -> State {
        match unknown {
            Unknown::Unsettled | Unknown::TapersOff => State::Open(unknown),
            Unknown::TooFewSamples | Unknown::TooShort => State::Left,
        }
    }

    /// Whether the threshold holds now, if it did before; and why, if that is not the value itself.
    fn settle(self, held: &mut bool) -> Option<Option<Unknown>> {
        let why = match self {
            State::Open(unknown) => Some(unknown),
            State::Reached | State::Near | State::Left => None,
        };
        *held = match self {
            State::Reached => true,
            State::Near | State::Open(_) => *held,
            State::Left => false,
        };
        held.then_some(why)
    }
}

impl Held {
    /// The first reason that holds: extents are certain, a forecast says more than a rate.
    fn update(&mut self, limits: &Limits, hysteresis: Share, facts: &Facts<'_>) -> Option<Reason> {
        let limit = limits.extents;
        let extents = extents(facts.extents, limit, hysteresis).settle(&mut self.extents);
        let time = match limits.time_to_critical {
            Some(limit) => time_left(facts.forecast, limit, hysteresis),
            None => State::Left,
        };
        let time = time.settle(&mut self.time);
        let growth = match limits.growth_per_day {
            Some(limit) => rate(facts.growth, limit, hysteresis),
            None => State::Left,
        };
        let growth = growth.settle(&mut self.growth);
        if extents.is_some() {
            return Some(Reason::Extents(limit));
        }
        if let (Some(unknown), Some(limit)) = (time, limits.time_to_critical) {
            let left = facts.forecast.time_left().unwrap_or_default();
            let known = Reason::TimeToCritical(left, limit);
            return Some(unknown.map_or(known, Reason::Unknown));
        }
        let (unknown, limit) = (growth?, limits.growth_per_day?);
        let known = Reason::Growth(facts.growth.rate().unwrap_or_default(), limit);
        Some(unknown.map_or(known, Reason::Unknown))
    }
}

fn extents(extents: ExtentCount, limit: ExtentCount, hysteresis: Share) -> State {
    let near = u128::from(extents.0) * u128::from(Share::WHOLE.0)
        >= u128::from(limit.0) * u128::from(hysteresis.0);
    State::of(extents >= limit, near)
}

fn rate(growth: &Growth, limit: ExtentsPerDay, hysteresis: Share) -> State {
    match growth.trend {
        Ok(trend) => State::of(
            trend.rate >= limit,
            trend.rate.0 >= limit.0 * hysteresis.factor(),
        ),
        Err(unknown) => State::unknown(unknown),
    }
}

fn time_left(forecast: Forecast, limit: Duration, hysteresis: Share) -> State {
    match forecast {
        Forecast::Reached => State::Reached,
        Forecast::In(left) => State::of(
            left <= limit,
            left.as_secs_f64() * hysteresis.factor() <= limit.as_secs_f64(),
        ),
        // If even that is nearer than the limit, it may be within the limit or not.
        Forecast::NotWithin(time) if time < limit => State::Open(Unknown::TooShort),
        Forecast::NotWithin(_) | Forecast::Never => State::Left,
        Forecast::Unknown(unknown) => State::unknown(unknown),
    }
}

/// The severity of the host from sweep to sweep: by the memory that all extent maps take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostJudge {
    severity: Severity,
}

impl HostJudge {
    /// The severity now.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Takes in what the extent maps take of `ram`, and says why the host has the severity that it
    /// now has.
    pub fn judge(
        &mut self,
        limits: &HostLimits,
        hysteresis: Share,
        maps: Bytes,
        ram: Bytes,
    ) -> Reason {
        let levels = [
            (Severity::Critical, limits.critical),
            (Severity::Warning, limits.warning),
        ];
        let before = self.severity;
        let holds = |(level, limit): &(Severity, Share)| {
            let left_at = if before >= *level {
                hysteresis.of(*limit)
            } else {
                *limit
            };
            ram.0 > 0 && left_at.is_reached_by(maps, ram)
        };
        match levels.into_iter().find(holds) {
            Some((level, limit)) => {
                self.severity = level;
                Reason::Memory(maps, ram, limit)
            }
            None => {
                self.severity = Severity::Ok;
                Reason::BelowAll
            }
        }
    }
}

impl fmt::Display for Reason {
    /// As the end of a line of the log: `the threshold is 500,000 extents`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::BelowAll => f.write_str("below all thresholds"),
            Reason::Extents(limit) => write!(f, "the threshold is {limit} extents"),
            Reason::Growth(rate, limit) => {
                write!(f, "it gains {rate}, the threshold is {limit}")
            }
            Reason::TimeToCritical(Duration::ZERO, _) => f.write_str("it is critical now"),
            Reason::TimeToCritical(left, limit) => {
                let (left, limit) = (roughly(*left), roughly(*limit));
                write!(f, "critical in {left}, the threshold is {limit}")
            }
            Reason::Unknown(why) => write!(f, "as before, its growth is not known now ({why})"),
            Reason::Memory(maps, ram, limit) => {
                write!(
                    f,
                    "extent maps take {maps} of {ram}, the threshold is {limit}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Thresholds;
    use crate::model::{Pace, Trend, UnixTime};
    use proptest::prelude::*;

    const HYSTERESIS: Share = Share::percent(90);
    const DAY: Duration = Duration::from_secs(86_400);

    fn limits() -> ImageLimits {
        let Thresholds {
            warning,
            mut critical,
            ..
        } = Thresholds::default();
        critical.growth_per_day = Some(ExtentsPerDay(1_000_000.0));
        critical.time_to_critical = Some(DAY);
        ImageLimits { warning, critical }
    }

    fn growth(rate: Result<f64, Unknown>) -> Growth {
        let trend = rate.map(|rate| Trend {
            rate: ExtentsPerDay(rate),
            low: ExtentsPerDay(rate),
            high: ExtentsPerDay(rate),
            pace: Pace::Steady,
        });
        Growth {
            trend,
            at_most: None,
            samples: 10,
            since: UnixTime(0),
            watched: DAY,
            reach: 60 * DAY,
        }
    }

    /// Judges one after the other: extents, rate, forecast.
    fn judged(facts: &[(u64, Result<f64, Unknown>, Forecast)]) -> Vec<(Severity, String)> {
        let mut judge = Judge::default();
        let mut one = |(extents, rate, forecast): &(u64, Result<f64, Unknown>, Forecast)| {
            let facts = Facts {
                extents: ExtentCount(*extents),
                growth: &growth(*rate),
                forecast: *forecast,
            };
            let reason = judge.judge(&limits(), HYSTERESIS, &facts);
            (judge.severity(), reason.to_string())
        };
        facts.iter().map(&mut one).collect()
    }

    #[track_caller]
    fn severities(facts: &[(u64, Result<f64, Unknown>, Forecast)], expected: &[Severity]) {
        let judged: Vec<_> = judged(facts)
            .into_iter()
            .map(|(severity, _)| severity)
            .collect();
        assert_eq!(judged, expected);
    }

    use Severity::{Critical, Ok as Fine, Warning};

    #[test]
    fn extents_are_left_well_below_the_threshold() {
        let at = |extents| (extents, Ok(0.0), Forecast::Never);
        severities(
            &[
                499_999, 500_000, 450_000, 449_999, 499_999, 5_000_000, 4_500_000, 4_499_999, 0,
            ]
            .map(at),
            &[
                Fine, Warning, Warning, Fine, Fine, Critical, Critical, Warning, Fine,
            ],
        );
    }

    #[test]
    fn growth_is_left_well_below_the_threshold() {
        let at = |rate: f64| (1, Ok(rate), Forecast::Never);
        severities(
            &[
                249_999.0, 250_000.0, 225_000.0, 224_999.0, 249_999.0, 1e6, -1e6,
            ]
            .map(at),
            &[Fine, Warning, Warning, Fine, Fine, Critical, Fine],
        );
    }

    #[test]
    fn time_is_left_well_above_the_threshold() {
        let at = |hours: u64| (1, Ok(1.0), Forecast::In(Duration::from_secs(hours * 3600)));
        // 14 days are 336 hours; divided by 0.9 they are 373.3.
        severities(
            &[337, 336, 373, 374, 337, 24, 26, 27].map(at),
            &[
                Fine, Warning, Warning, Fine, Fine, Critical, Critical, Warning,
            ],
        );
    }

    /// What holds one threshold does not hold another one that was never reached.
    #[test]
    fn each_threshold_is_left_for_itself() {
        let growth = Ok(240_000.0);
        severities(
            &[
                (1, growth, Forecast::Never),
                (500_000, growth, Forecast::Never),
                (1, growth, Forecast::Never),
            ],
            &[Fine, Warning, Fine],
        );
    }

    #[test]
    fn the_unknown_neither_raises_nor_ends() {
        let soon = Forecast::In(13 * DAY);
        let unknown = |why| (1, Err(why), Forecast::Unknown(why));
        for why in [Unknown::Unsettled, Unknown::TapersOff] {
            severities(
                &[
                    unknown(why),
                    (1, Ok(300_000.0), soon),
                    unknown(why),
                    (1, Ok(0.0), Forecast::Never),
                ],
                &[Fine, Warning, Warning, Fine],
            );
        }
        // But what is not known yet does: the image was defragmented.
        for why in [Unknown::TooFewSamples, Unknown::TooShort] {
            severities(&[(1, Ok(300_000.0), soon), unknown(why)], &[Warning, Fine]);
        }
        let short = (1, Ok(1.0), Forecast::NotWithin(4 * DAY));
        let long = (1, Ok(1.0), Forecast::NotWithin(60 * DAY));
        severities(
            &[short, (1, Ok(1.0), soon), short, long],
            &[Fine, Warning, Warning, Fine],
        );
    }

    #[test]
    fn what_it_was_is_remembered() {
        let growth = growth(Err(Unknown::TooFewSamples));
        for (extents, before, after) in [
            (450_000, Warning, Warning),
            (450_000, Fine, Fine),
            (450_000, Critical, Warning),
            (4_500_000, Critical, Critical),
            (10, Critical, Fine),
        ] {
            let mut judge = Judge::remembering(before);
            assert_eq!(judge.severity(), before);
            let facts = Facts {
                extents: ExtentCount(extents),
                growth: &growth,
                forecast: Forecast::Never,
            };
            judge.judge(&limits(), HYSTERESIS, &facts);
            assert_eq!(judge.severity(), after, "{extents} {before}");
        }
    }

    #[test]
    fn the_reason_names_the_threshold() {
        let reasons: Vec<String> = judged(&[
            (1, Ok(0.0), Forecast::Never),
            (600_000, Ok(0.0), Forecast::Never),
            (1, Ok(300_000.0), Forecast::Never),
            (1, Ok(300_000.0), Forecast::In(3 * DAY)),
            (
                1,
                Err(Unknown::Unsettled),
                Forecast::Unknown(Unknown::Unsettled),
            ),
            (6_000_000, Ok(0.0), Forecast::Reached),
        ])
        .into_iter()
        .map(|(_, reason)| reason)
        .collect();
        assert_eq!(
            reasons,
            [
                "below all thresholds",
                "the threshold is 500,000 extents",
                "it gains +300,000/d, the threshold is +250,000/d",
                "critical in 3 days, the threshold is 14 days",
                "as before, its growth is not known now (no steady growth)",
                "the threshold is 5,000,000 extents",
            ]
        );
    }

    #[test]
    fn the_host_is_judged_by_its_memory() {
        let limits = Thresholds::default().host;
        let mut judge = HostJudge::default();
        let ram = Bytes(100 << 30);
        for (gib_and_tenths, severity) in [
            (9_u64, Fine),
            (10, Warning),
            (9, Warning),
            (8, Fine),
            (50, Critical),
            (45, Critical),
            (44, Warning),
            (0, Fine),
        ] {
            let maps = Bytes((gib_and_tenths << 30_u64).div_ceil(10));
            judge.judge(&limits, HYSTERESIS, maps, ram);
            assert_eq!(judge.severity(), severity, "{gib_and_tenths}");
        }
        let reason = judge.judge(&limits, HYSTERESIS, Bytes(1 << 40), ram);
        assert_eq!(
            reason.to_string(),
            "extent maps take 1.0 TiB of 100 GiB, the threshold is 5%"
        );
        judge.judge(&limits, HYSTERESIS, Bytes(1), Bytes(0));
        assert_eq!(
            judge.severity(),
            Fine,
            "of a host whose memory is not known"
        );
    }

    proptest! {
        /// A value that stays within the hysteresis changes a severity at most once.
        #[test]
        fn no_flutter(extents in prop::collection::vec(450_000_u64..5_000_000, 1..50)) {
            let facts: Vec<_> = extents.iter().map(|n| (*n, Ok(0.0), Forecast::Never)).collect();
            let judged = judged(&facts);
            let changes = judged.windows(2).filter(|two| two[0].0 != two[1].0).count();
            prop_assert!(changes <= 1, "{:?}", judged);
        }
    }
}
