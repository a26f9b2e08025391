//! Charts as SVG: extents over time, a week in small, times of windows and runs. Pure; nothing in
//! them is a style, so that a strict content security policy allows them.

use std::fmt::{Display, Write as _};

use serde::Serialize;

use super::rows::when;
use crate::growth::float;
use crate::model::{Bytes, ExtentCount, Forecast, Growth, Pace, Point, UnixTime};

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

/// A small line of counts, 110 by 22 pixels; empty with fewer than two. A table has a thousand of them:
/// the path is relative, and has no points that lie on a straight line.
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
        let x = i128::from(point.at.0.saturating_sub(first.at.0)) * 110 / i128::from(time);
        let y = 21 - i128::from(point.extents.0 - low) * 20 / i128::from(range);
        (x, y)
    };
    let mut places: Vec<(i128, i128)> = Vec::new();
    for place in points.iter().map(place) {
        while let [.., a, b] = places[..]
            && is_straight(a, b, place)
        {
            places.pop();
        }
        places.push(place);
    }
    let mut svg = format!(
        "<svg class=\"spark\" role=\"img\" aria-label=\"from {} to {} extents\"><path d=\"",
        first.extents, last.extents
    );
    let mut before = None;
    for (x, y) in places {
        // Writing to a String cannot fail. A number may follow another without a blank if it has a sign.
        let _ = match before {
            None => write!(svg, "M{x} {y}l"),
            Some((from_x, from_y)) => match y - from_y {
                up @ ..0 => write!(svg, "{}{up} ", x - from_x),
                down => write!(svg, "{} {down} ", x - from_x),
            },
        };
        before = Some((x, y));
    }
    format!("{}\"/></svg>", svg.trim_end())
}

/// Whether the second of three places, from left to right, is on the line between the others.
fn is_straight(a: (i128, i128), b: (i128, i128), c: (i128, i128)) -> bool {
    a.0 < c.0 && (b.0 - a.0) * (c.1 - a.1) == (c.0 - a.0) * (b.1 - a.1)
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
    let mut svg = timed(span, ticks, 20 + lanes * LANE, "Calendar");
    for bar in bars {
        let (from, to) = (along(span, bar.from), along(span, bar.to));
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

/// The column of a time, across the whole width.
fn along(span: (i64, i64), at: i64) -> f64 {
    let after = float(at.clamp(span.0, span.1).abs_diff(span.0));
    after / float(span.1.abs_diff(span.0).max(1)) * WIDTH
}

/// The begin of a picture across a span, with these times and their texts at its top.
fn timed(span: (i64, i64), ticks: &[(i64, String)], height: usize, label: &str) -> String {
    let mut svg = format!(
        "<svg class=\"strip\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{label}\">"
    );
    for (at, text) in ticks {
        let (x, text) = (along(span, *at), escaped(text));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{x:.1} 0V{height}\"/>\
             <text class=\"scale\" x=\"{:.1}\" y=\"12\">{text}</text>",
            x + 3.0
        );
    }
    svg
}

/// A size over time, of its own class of the style sheet.
#[derive(Debug, Clone)]
pub struct Line {
    pub class: &'static str,
    /// In the order of time.
    pub points: Vec<(i64, Bytes)>,
}

/// Lines below a scale with these times and their texts. Each has a scale of its own, from 0 to its
/// largest size, which stands beside it.
pub fn lines(span: (i64, i64), ticks: &[(i64, String)], lines: &[Line]) -> String {
    const TOP: f64 = 34.0;
    const BASE: f64 = 150.0;
    let mut svg = timed(span, ticks, 156, "Memory over time");
    let mut aside = 3.0;
    for Line { class, points } in lines.iter().filter(|line| !line.points.is_empty()) {
        let most = points
            .iter()
            .map(|(_, size)| *size)
            .max()
            .unwrap_or_default();
        let y = |size: Bytes| BASE - (BASE - TOP) * float(size.0) / float(most.0.max(1));
        let places = || points.iter().map(|(at, size)| (along(span, *at), y(*size)));
        let _ = write!(
            svg,
            "<text class=\"{class}\" x=\"{aside}\" y=\"28\">{class}, up to {most}</text>\
             <path class=\"line {class}\" d=\"{}\"/>",
            path(places())
        );
        for ((x, y), (_, size)) in places().zip(points) {
            let _ = write!(
                svg,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{class} {size}</title></circle>"
            );
        }
        aside += WIDTH / 4.0;
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
        let line = |counts: &[(i64, u64)]| {
            let week: Vec<_> = counts
                .iter()
                .map(|(at, count)| point(*at, *count))
                .collect();
            let svg = sparkline(&week);
            let path = svg.split("d=\"").nth(1).and_then(|it| it.split('"').next());
            path.unwrap_or_default().to_owned()
        };
        // What lies on a line between its neighbours is left out.
        assert_eq!(line(&[(0, 100), (50, 150), (100, 200)]), "M0 21l110-20");
        let turns = [(0, 100), (25, 200), (50, 200), (75, 200), (100, 150)];
        assert_eq!(line(&turns), "M0 21l27-20 55 0 28 10");
        // A step up and down between two pixels stays.
        let step = [(0, 100), (1000, 100), (1001, 200), (1002, 100), (2000, 100)];
        assert_eq!(line(&step), "M0 21l55 0 0-20 0 20 55 0");
        // One extent more among many is no growth.
        assert_eq!(line(&[(0, 1000), (9, 1001)]), "M0 21l110 0");
        assert_eq!(line(&[(0, 100)]), "");
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
