//! Charts as SVG: extents over time, a week in small, times of windows and runs. Pure; nothing in
//! them is a style, so that a strict content security policy allows them.

use std::fmt::{Display, Write as _};

use serde::Serialize;

use super::rows::when;
use crate::growth::float;
use crate::model::{ExtentCount, Forecast, Growth, Pace, Point, UnixTime};

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 260.0;
/// Room for the scales.
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 24.0;
/// A sparkline shows at least this part of its maximum, so that noise does not look like growth.
const LEAST_RANGE: u64 = 20;
/// Points of a forecast.
const BAND: i64 = 12;

/// What is known of an image over time. Serialized for the chart of the page, which can be zoomed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ChartData {
    pub from: UnixTime,
    pub now: UnixTime,
    /// Times of the counts, oldest first.
    pub at: Vec<i64>,
    pub extents: Vec<u64>,
    /// Thresholds.
    pub warning: ExtentCount,
    pub critical: ExtentCount,
    pub band: Vec<Ahead>,
    pub marks: Vec<Mark>,
}

/// The forecast for a time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ahead {
    pub at: i64,
    pub low: u64,
    pub likely: u64,
    pub high: u64,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    pub at: UnixTime,
    /// `run`, `map`, `incident`, `severity`.
    pub kind: &'static str,
    pub text: String,
}

/// The forecast as a band from the last count on: as far as the counts reach back, and not further than
/// a forecast may. Empty if the image does not grow steadily.
pub fn band(growth: &Growth, forecast: Forecast, last: Point, span: i64) -> Vec<Ahead> {
    let Ok(trend) = growth.trend else {
        return Vec::new();
    };
    if matches!(trend.pace, Pace::Silent | Pace::Shrinking) {
        return Vec::new();
    }
    let reach = i64::try_from(growth.reach.as_secs()).unwrap_or(i64::MAX);
    // To the threshold, if that is to be reached.
    let to = forecast
        .time_left()
        .map(|left| left.as_secs().saturating_mul(5) / 4);
    let to = to
        .and_then(|to| i64::try_from(to).ok())
        .filter(|to| *to > 0);
    let reach = reach.min(to.unwrap_or(i64::MAX).max(span / 3)).min(span);
    let most = match trend.pace {
        Pace::Tapering { level } => level.0.max(last.extents.0),
        _ => u64::MAX,
    };
    let ahead = |step: i64| {
        let after = reach * step / BAND;
        #[allow(clippy::cast_precision_loss, reason = "seconds are far below 2^53")]
        let days = after as f64 / 86_400.0;
        let at = |rate: f64| {
            let gained = crate::growth::unsigned(rate.max(0.0) * days);
            last.extents.0.saturating_add(gained).min(most)
        };
        Ahead {
            at: last.at.0.saturating_add(after),
            low: at(trend.low.0),
            likely: at(trend.rate.0),
            high: at(trend.high.0),
        }
    };
    (0..=BAND).map(ahead).collect()
}

/// A scale: seconds to columns, counts to rows.
struct Scale {
    from: i64,
    to: i64,
    top: u64,
}

impl Scale {
    fn x(&self, at: i64) -> f64 {
        let share =
            float(at.abs_diff(self.from.min(at))) / float(self.to.abs_diff(self.from).max(1));
        LEFT + share.min(1.0) * (WIDTH - LEFT)
    }

    fn y(&self, count: u64) -> f64 {
        let share = float(count) / float(self.top.max(1));
        (1.0 - share.min(1.0)) * (HEIGHT - BOTTOM)
    }
}

impl ChartData {
    /// The chart as an `svg` element; empty without counts.
    pub fn svg(&self) -> String {
        let Some(most) = self.extents.iter().max() else {
            return String::new();
        };
        let most = self.band.iter().map(|it| it.likely).fold(*most, u64::max);
        let near = [self.warning.0, self.critical.0].into_iter();
        let near = near.filter(|threshold| *threshold <= most.saturating_mul(3));
        let top = near.fold(most, u64::max);
        let scale = Scale {
            from: self.from.0,
            to: self
                .band
                .last()
                .map_or(self.now.0, |it| it.at.max(self.now.0)),
            top: top.saturating_add(top / 12).max(8),
        };
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Extents over time\">",
            HEIGHT + 2.0
        );
        svg.push_str(&axes(&scale));
        for (class, threshold) in [("warning", self.warning), ("critical", self.critical)] {
            if threshold.0 <= scale.top {
                let y = scale.y(threshold.0);
                // Writing to a String cannot fail, here and below.
                let _ = write!(
                    svg,
                    "<path class=\"threshold {class}\" d=\"M{LEFT} {y:.1}H{WIDTH}\"/>\
                     <text class=\"{class}\" x=\"{}\" y=\"{:.1}\">{class} {threshold}</text>",
                    LEFT + 6.0,
                    y - 4.0
                );
            }
        }
        svg.push_str(&self.forecast(&scale));
        let points = self.at.iter().zip(&self.extents);
        let line = path(points.map(|(at, count)| (scale.x(*at), scale.y(*count))));
        let _ = write!(svg, "<path class=\"line\" d=\"{line}\"/>");
        for mark in &self.marks {
            let (x, kind, at) = (scale.x(mark.at.0), mark.kind, when(mark.at));
            let _ = write!(
                svg,
                "<path class=\"mark {kind}\" d=\"M{x:.1} 0V{:.1}\"><title>{at}: {}</title></path>",
                HEIGHT - BOTTOM,
                escaped(&mark.text)
            );
        }
        svg + "</svg>"
    }

    fn forecast(&self, scale: &Scale) -> String {
        if self.band.is_empty() {
            return String::new();
        }
        let edge = |count: fn(&Ahead) -> u64| {
            let count = move |it: &Ahead| (scale.x(it.at), scale.y(count(it)));
            self.band.iter().map(count)
        };
        let area = path(edge(|it| it.high).chain(edge(|it| it.low).rev()));
        let likely = path(edge(|it| it.likely));
        format!("<path class=\"band\" d=\"{area}Z\"/><path class=\"likely\" d=\"{likely}\"/>")
    }
}

fn axes(scale: &Scale) -> String {
    let mut svg = String::new();
    for step in 0..=4_u64 {
        let count = scale.top / 4 * step;
        let (y, text) = (scale.y(count), ExtentCount(count).short());
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{WIDTH}\"/>\
             <text class=\"scale\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0,
            (y + 4.0).max(10.0)
        );
    }
    let span = scale.to.saturating_sub(scale.from);
    for step in 0..=4_i64 {
        let at = scale.from.saturating_add(span / 4 * step);
        let anchor = ["start", "middle", "middle", "middle", "end"];
        let anchor = usize::try_from(step).ok().and_then(|step| anchor.get(step));
        let text = when(UnixTime(at));
        // Hours only where days would be the same.
        let text = match span {
            0..432_000 => text.get(5..16),
            _ => text.get(..10),
        };
        let _ = write!(
            svg,
            "<text class=\"scale\" x=\"{:.1}\" y=\"{}\" text-anchor=\"{}\">{}</text>",
            scale.x(at),
            HEIGHT - 6.0,
            anchor.unwrap_or(&"middle"),
            text.unwrap_or_default()
        );
    }
    svg
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    path
}

/// A small line of counts, 100 by 20; empty with fewer than two.
pub fn sparkline(points: &[Point]) -> String {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let counts = || points.iter().map(|point| point.extents.0);
    let (low, high) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
    let range = (high - low).max(high / LEAST_RANGE).max(1);
    let time = last.at.0.saturating_sub(first.at.0);
    if time <= 0 {
        return String::new();
    }
    let place = |point: &Point| {
        let x = i128::from(point.at.0.saturating_sub(first.at.0)) * 100 / i128::from(time);
        let y = 19 - u128::from(point.extents.0 - low) * 18 / u128::from(range);
        format!("{x} {y}")
    };
    let mut path: Vec<String> = points.iter().map(place).collect();
    path.dedup();
    format!(
        "<svg class=\"spark\" viewBox=\"0 0 100 20\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"from {} to {} extents\"><path d=\"M{}\"/></svg>",
        first.extents,
        last.extents,
        path.join("L")
    )
}

/// A piece of time in a [`strip`].
#[derive(Debug, Clone)]
pub struct Bar {
    pub from: i64,
    pub to: i64,
    pub lane: usize,
    /// A class of the style sheet.
    pub class: &'static str,
    pub text: String,
}

/// Bars in lanes below a scale with these times and their texts.
pub fn strip(span: (i64, i64), ticks: &[(i64, String)], bars: &[Bar]) -> String {
    const LANE: usize = 24;
    let lanes = bars.iter().map(|bar| bar.lane + 1).max().unwrap_or(1);
    let height = 20 + lanes * LANE;
    let x = |at: i64| {
        let after = float(at.clamp(span.0, span.1).abs_diff(span.0));
        after / float(span.1.abs_diff(span.0).max(1)) * WIDTH
    };
    let mut svg = format!(
        "<svg class=\"strip\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Calendar\">"
    );
    for (at, text) in ticks {
        let (x, text) = (x(*at), escaped(text));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{x:.1} 0V{height}\"/>\
             <text class=\"scale\" x=\"{:.1}\" y=\"12\">{text}</text>",
            x + 3.0
        );
    }
    for bar in bars {
        let (from, to) = (x(bar.from), x(bar.to));
        let (y, class, text) = (20 + bar.lane * LANE, bar.class, escaped(&bar.text));
        let width = (to - from).max(2.0);
        let _ = write!(
            svg,
            "<rect class=\"bar {class}\" x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" rx=\"2\">\
             <title>{text}</title></rect>"
        );
        if width > 60.0 || to < WIDTH * 0.6 {
            let at = if width > 60.0 { from + 4.0 } else { to + 4.0 };
            let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{}\">{text}</text>", y + 13);
        }
    }
    svg + "</svg>"
}

/// Text for an element or an attribute.
fn escaped(text: &str) -> impl Display {
    askama::filters::escape(text, askama::filters::Html)
        .map(|text| text.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ExtentsPerDay, Trend, Unknown};
    use std::time::Duration;

    fn point(at: i64, extents: u64) -> Point {
        Point {
            at: UnixTime(at),
            extents: ExtentCount(extents),
        }
    }

    #[test]
    fn a_week_in_small_runs_from_the_ground_to_the_top() {
        let week = [point(0, 100), point(50, 150), point(100, 200)];
        assert!(
            sparkline(&week).contains("d=\"M0 19L50 10L100 1\""),
            "{}",
            sparkline(&week)
        );
        // One extent more among many is no growth.
        assert!(sparkline(&[point(0, 1000), point(9, 1001)]).contains("M0 19L100 19"));
        assert_eq!(sparkline(&week[..1]), "");
    }

    #[test]
    fn names_in_a_chart_are_no_markup() {
        let mark = Mark {
            at: UnixTime(5),
            kind: "run",
            text: "<b>\"&".to_owned(),
        };
        let chart = ChartData {
            now: UnixTime(10),
            at: vec![0, 10],
            extents: vec![5, 9],
            marks: vec![mark],
            ..ChartData::default()
        };
        let svg = chart.svg();
        assert!(
            svg.contains("&#60;b&#62;&#34;&#38;") && !svg.contains("<b>"),
            "{svg}"
        );
        assert_eq!(ChartData::default().svg(), "");
    }

    #[test]
    fn a_forecast_widens_and_ends_at_its_reach() {
        let rate = |rate| ExtentsPerDay(rate);
        let trend = |pace| Trend {
            rate: rate(86_400.0),
            low: rate(43_200.0),
            high: rate(172_800.0),
            pace,
        };
        let growth = |trend| Growth {
            trend,
            at_most: None,
            samples: 9,
            since: UnixTime(0),
            watched: Duration::from_secs(100),
            reach: Duration::from_secs(600),
        };
        let of = |trend| band(&growth(trend), Forecast::Never, point(50, 1000), 1200);
        let ahead = of(Ok(trend(Pace::Steady)));
        let last = ahead.last().unwrap();
        assert_eq!(
            (last.at, last.low, last.likely, last.high),
            (650, 1300, 1600, 2200)
        );
        assert_eq!((ahead[0].at, ahead[0].high), (50, 1000));
        let level = ExtentCount(1100);
        assert_eq!(
            of(Ok(trend(Pace::Tapering { level }))).last().unwrap().high,
            1100
        );
        assert!(of(Ok(trend(Pace::Silent))).is_empty());
        assert!(of(Err(Unknown::Unsettled)).is_empty());
    }
}
