//! One image, for its page and for the report. Pure.

use std::time::Duration;

use super::chart::{ChartData, Mark, band};
use super::past::ImagePast;
use super::rows::Row;
use crate::assess::{Assessor, ImageLimits};
use crate::growth::{forecast, growth};
use crate::incident::words::clean;
use crate::model::path::shown;
use crate::model::{
    Bytes, ExtentCount, ExtentMap, Forecast, Growth, Opener, Pace, Point, Roughly, Severity,
    UnixTime,
};
use crate::protect::verdict::Verdict;
use crate::serve::view::ImageView;
use crate::table::counted;

/// One image.
#[derive(Debug, Default)]
pub struct Detail {
    pub row: Row,
    pub chart: ChartData,
    /// What is known of it, by name.
    pub facts: Vec<(&'static str, String)>,
    pub fragments: Vec<Fragments>,
}

/// Extents by length.
#[derive(Debug)]
pub struct Fragments {
    pub length: String,
    pub count: ExtentCount,
    /// Of the most, in percent.
    pub share: u64,
}

/// The image as the daemon knows it, without its past.
pub fn of_view(view: &ImageView<'_>) -> Detail {
    let mut detail = Detail {
        row: Row::of(view),
        fragments: view.map.map(fragments).unwrap_or_default(),
        ..Detail::default()
    };
    let (sample, mut fact) = (view.sample, |name, text| detail.facts.push((name, text)));
    fact("Growth", growth_text(view.growth));
    fact("Critical", view.forecast.to_string());
    fact(
        "Size",
        format!("{}, {} allocated", sample.size, sample.allocated),
    );
    fact("Format", sample.format.to_string());
    fact("Open in", openers(&view.owner.openers));
    if let Some(map) = view.map {
        let holes = counted(map.holes, "hole");
        let text = format!(
            "{} in {} extents, {holes}",
            counted(map.fragments, "fragment"),
            map.extents
        );
        fact("On disk", text);
    }
    let facts = view.facts(view.map);
    fact("Can shatter", Verdict::of(&facts).text(&facts));
    detail
}

/// The image as the history knows it, at the last time it was counted.
pub fn of_past(past: &ImagePast, assessor: &Assessor, now: UnixTime) -> (Detail, Growth, Forecast) {
    let image = &past.image;
    let points: Vec<Point> = past
        .readings
        .iter()
        .map(|it| Point {
            at: it.at,
            extents: it.extents,
        })
        .collect();
    let extents = image
        .last
        .map(|last| last.point.extents)
        .unwrap_or_default();
    let window = assessor.window();
    let recent = points
        .iter()
        .position(|it| it.at >= now.before(window))
        .unwrap_or(points.len());
    let growth = growth(&points[recent..], window, now);
    let limits = assessor.limits(&image.path);
    let forecast = forecast(&growth, extents, limits.critical.extents);
    let last = past.last_change.as_ref();
    let severity = last.and_then(|it| Severity::named(&it.to));
    let severity = severity.unwrap_or_else(|| assessor.of_count(&image.path, extents));
    let bad = last.filter(|_| severity > Severity::Ok);
    let row = Row {
        key: Some(image.key.clone()),
        path: shown(&image.path),
        severity,
        reason: bad.map(|it| it.reason.clone()),
        extents,
        size: image.last.map(|last| last.size).unwrap_or_default(),
        growth: growth.rate(),
        left: forecast.time_left(),
        since: last.map(|it| it.at),
        ..Row::default()
    };
    let mut facts = vec![
        ("Growth", growth_text(&growth)),
        ("Critical", forecast.to_string()),
    ];
    if let Some(last) = image.last {
        facts.push((
            "Size",
            format!("{}, {} allocated", last.size, last.allocated),
        ));
        facts.push(("Last counted", super::rows::when(last.point.at)));
    }
    let detail = Detail {
        row,
        facts,
        ..Detail::default()
    };
    (detail, growth, forecast)
}

/// The chart of an image since a time.
pub fn chart(
    past: &ImagePast,
    limits: &ImageLimits,
    growth: &Growth,
    forecast: Forecast,
    (since, now): (UnixTime, UnixTime),
) -> ChartData {
    let first = past.readings.first().map_or(since, |it| it.at.max(since));
    let last = past.readings.last().map(|it| Point {
        at: it.at,
        extents: it.extents,
    });
    let peaks = past.readings.iter().map(|it| it.peak.max(it.extents).0);
    let mut extents: Vec<_> = peaks.collect();
    // The last point is the count now, and the forecast begins there.
    if let (Some(end), Some(last)) = (extents.last_mut(), last) {
        *end = last.extents.0;
    }
    let ahead = |last| band(growth, forecast, last, now.0.saturating_sub(first.0));
    let mut chart = ChartData {
        from: first,
        now,
        at: past.readings.iter().map(|it| it.at.0).collect(),
        extents,
        warning: limits.warning.extents,
        critical: limits.critical.extents,
        band: last.map(ahead).unwrap_or_default(),
        marks: marks(past),
    };
    chart.marks.retain(|mark| mark.at >= first);
    chart
}

fn marks(past: &ImagePast) -> Vec<Mark> {
    let runs = past.runs.iter().map(|run| {
        let (engine, outcome, took) = (run.engine, run.outcome.as_str(), Roughly(run.took));
        let gap = if run.reason.is_empty() { "" } else { ": " };
        let reason = format!("{gap}{}", clean(&run.reason));
        let stalls = run.stalls.map(|it| format!(" ({it})")).unwrap_or_default();
        let text = format!(
            "{engine} {outcome}, {} to {} extents in {took}{stalls}{reason}",
            run.from, run.to
        );
        Mark {
            at: run.at,
            kind: "run",
            text,
        }
    });
    let severities = past.severities.iter().map(|change| {
        let (to, from, extents, reason) =
            (&change.to, &change.from, change.extents, &change.reason);
        let text = format!("{to} (was {from}) with {extents} extents: {reason}");
        Mark {
            at: change.at,
            kind: "severity",
            text,
        }
    });
    let maps = past.maps.iter().map(|(at, fragments)| {
        let text = format!("map read: {}", counted(*fragments, "fragment"));
        Mark {
            at: *at,
            kind: "map",
            text,
        }
    });
    let incidents = past.incidents.iter().map(|(name, at)| Mark {
        at: *at,
        kind: "incident",
        text: format!("incident {name}"),
    });
    let mut marks: Vec<Mark> = runs
        .chain(severities)
        .chain(maps)
        .chain(incidents)
        .collect();
    marks.sort_by_key(|mark| mark.at);
    marks
}

fn growth_text(growth: &Growth) -> String {
    let trend = match growth.trend {
        Ok(trend) => trend,
        Err(unknown) => return format!("unknown: {unknown}"),
    };
    let (rate, low, high) = (trend.rate, trend.low, trend.high);
    match trend.pace {
        Pace::Silent => "none".to_owned(),
        Pace::Shrinking => format!("{rate}, it loses extents"),
        Pace::Steady => format!("{rate} (between {low} and {high})"),
        Pace::Tapering { level } => format!("{rate}, slowing down towards {level} extents"),
        Pace::Accelerating => format!("{rate} and rising (between {low} and {high})"),
    }
}

fn openers(openers: &[Opener]) -> String {
    let opener = |it: &Opener| {
        let name = it.vm.as_ref().and_then(|vm| vm.name.as_ref());
        let vm = name.map(|name| format!("VM {name}, "));
        let writes = if it.writes { "" } else { ", read-only" };
        let text = format!(
            "{}{} (pid {}{writes})",
            vm.unwrap_or_default(),
            it.name,
            it.pid
        );
        shown(text.as_ref())
    };
    match openers {
        [] => "no process".to_owned(),
        all => all.iter().map(opener).collect::<Vec<_>>().join("; "),
    }
}

fn fragments(map: &ExtentMap) -> Vec<Fragments> {
    let most = map.histogram.iter().max().copied().unwrap_or(0).max(1);
    let classes = (0_u32..)
        .zip(&map.histogram)
        .filter(|(_, count)| **count > 0);
    let class = |(power, count): (u32, &u64)| Fragments {
        length: format!(
            "from {}",
            Bytes(1_u64.checked_shl(power).unwrap_or(u64::MAX))
        ),
        count: ExtentCount(*count),
        share: (count.saturating_mul(100) / most).max(1),
    };
    classes.map(class).collect()
}

/// How far back a page or report looks: `7d`, at most the longest that is sensible.
pub fn reach(text: &str) -> Result<Duration, String> {
    use crate::model::notation::Unit as _;
    const MOST: Duration = Duration::from_secs(3650 * 86_400);
    let time = Duration::parse(text).map_err(|error| error.to_string())?;
    Ok(time.clamp(Duration::from_secs(60), MOST))
}
