//! Severities from sweep to sweep.

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
        let facts = Observed {
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
        let facts = Observed {
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
