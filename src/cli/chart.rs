//! A terminal chart of counts over time, with thresholds as dotted lines and marks below. Pure.

use crate::model::{ExtentCount, Roughly, UnixTime};

const HEIGHT: usize = 12;
/// Columns of the scale on the left, including its line.
const SCALE: usize = 8;
/// Minimum columns of the plot; a narrower one shows nothing useful.
const LEAST_WIDTH: usize = 20;
/// A column filled by 0 to 8 eighths.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[derive(Debug, Clone)]
pub(super) struct Chart<'c> {
    /// Counts, oldest first: time, and the maximum since the previous count.
    pub(super) points: &'c [(UnixTime, ExtentCount)],
    /// Start and end of the chart.
    pub(super) span: (UnixTime, UnixTime),
    /// Thresholds, with a letter for the scale.
    pub(super) thresholds: &'c [(char, ExtentCount)],
    /// Times of events to mark.
    pub(super) marks: &'c [UnixTime],
}

impl Chart<'_> {
    /// The chart, `width` columns wide, but at least `SCALE + LEAST_WIDTH`; empty without counts.
    pub(super) fn render(&self, width: usize) -> String {
        let columns = self.columns(width.saturating_sub(SCALE).max(LEAST_WIDTH));
        let Some(most) = columns.iter().flatten().max().copied() else {
            return String::new();
        };
        let top = self.top(most);
        let mut text = String::new();
        for row in (0..HEIGHT).rev() {
            text.push_str(&self.scale(row, top));
            let line: String = columns
                .iter()
                .map(|count| self.cell(*count, row, top))
                .collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push_str(&" ".repeat(SCALE - 1));
        text.push('└');
        text.push_str(&"─".repeat(columns.len()));
        text.push('\n');
        text.push_str(&self.marks_line(columns.len()));
        text.push_str(&self.time_line(columns.len()));
        text
    }

    /// The maximum count in the time of each column; `None` where nothing was counted.
    fn columns(&self, width: usize) -> Vec<Option<u64>> {
        let mut columns = vec![None; width];
        for (number, (at, extents)) in self.points.iter().enumerate() {
            let Some(column) = self.column(*at, width) else {
                continue;
            };
            // A count is the maximum since the previous one.
            let before = number.checked_sub(1).filter(|_| !self.is_gap(number));
            let before = before.and_then(|before| self.column(self.points[before].0, width));
            let first = before.map_or(column, |before| column.min(before + 1));
            for filled in &mut columns[first..=column] {
                *filled = (*filled).max(Some(extents.0));
            }
        }
        columns
    }

    /// Whether counting paused before this point: far longer than just before or after it. An
    /// absolute limit would not do, because older counts are kept at longer intervals.
    fn is_gap(&self, number: usize) -> bool {
        let length = |number: usize| {
            let (before, at) = (
                self.points.get(number.checked_sub(1)?)?,
                self.points.get(number)?,
            );
            Some(i128::from(at.0.0) - i128::from(before.0.0))
        };
        let around = length(number.saturating_sub(1)).max(length(number + 1));
        match (length(number), around) {
            (Some(length), Some(around)) => length > 3 * around.max(1),
            _ => false,
        }
    }

    /// `3 h ago … now`, below the ends of the axis.
    fn time_line(&self, width: usize) -> String {
        let from = format!("{} ago", Roughly(self.span.1.since(self.span.0)));
        let Some(gap) = width.checked_sub(from.len() + 3).filter(|gap| *gap > 0) else {
            return String::new();
        };
        format!("{}{from}{:gap$}now\n", " ".repeat(SCALE), "")
    }

    fn column(&self, at: UnixTime, width: usize) -> Option<usize> {
        let (from, to) = self.span;
        if at < from || at > to {
            return None;
        }
        let after = i128::from(at.0) - i128::from(from.0);
        let span = (i128::from(to.0) - i128::from(from.0)).max(1);
        let column = after * width as i128 / span;
        Some(usize::try_from(column).ok()?.min(width - 1))
    }

    /// The upper end of the scale: includes a threshold unless it would flatten everything else.
    fn top(&self, most: u64) -> u64 {
        let near = |threshold: &u64| *threshold <= most.saturating_mul(3);
        let thresholds = self.thresholds.iter().map(|(_, threshold)| threshold.0);
        let top = thresholds.filter(near).fold(most, u64::max);
        // Some headroom, so that the highest line is not the frame.
        top.saturating_add(top / 10).max(8)
    }

    fn eighths(count: u64, top: u64) -> usize {
        let height = u128::from(count) * (HEIGHT as u128 * 8) / u128::from(top);
        let eighths = usize::try_from(height)
            .unwrap_or(usize::MAX)
            .min(HEIGHT * 8);
        // A count above zero is always visible.
        eighths.max(usize::from(count > 0))
    }

    fn threshold_in(&self, row: usize, top: u64) -> Option<char> {
        let in_row = |threshold: u64| threshold < top && Self::eighths(threshold, top) / 8 == row;
        let found = self.thresholds.iter().find(|(_, count)| in_row(count.0));
        found.map(|(letter, _)| *letter)
    }

    fn cell(&self, count: Option<u64>, row: usize, top: u64) -> char {
        let filled = count.map_or(0, |count| Self::eighths(count, top));
        match filled.saturating_sub(row * 8).min(8) {
            0 if self.threshold_in(row, top).is_some() => '┈',
            eighths => EIGHTHS[eighths],
        }
    }

    /// `  1.2M │`, `     C ┤`: the value in every fourth row, the letter in rows with a threshold.
    fn scale(&self, row: usize, top: u64) -> String {
        let width = SCALE - 1;
        if let Some(letter) = self.threshold_in(row, top) {
            return format!("{letter:>w$} ┤", w = width - 1);
        }
        if row % 4 != 3 {
            return format!("{:>w$} │", "", w = width - 1);
        }
        let value = u128::from(top) * (row as u128 + 1) / HEIGHT as u128;
        let value = ExtentCount(u64::try_from(value).unwrap_or(u64::MAX));
        format!("{:>w$} ┤", value.short(), w = width - 1)
    }

    fn marks_line(&self, width: usize) -> String {
        let mut line = vec![' '; width];
        for column in self.marks.iter().filter_map(|at| self.column(*at, width)) {
            line[column] = '▲';
        }
        let line: String = line.into_iter().collect();
        if line.trim().is_empty() {
            return String::new();
        }
        format!("{}{}\n", " ".repeat(SCALE), line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr as _;

    #[test]
    fn a_rise_a_fall_and_a_threshold() {
        let count = |at: u32| {
            ExtentCount(if at < 20 {
                100 + u64::from(at) * 50
            } else {
                60
            })
        };
        let points: Vec<_> = (0..40).map(|at| (UnixTime(at.into()), count(at))).collect();
        let chart = Chart {
            points: &points,
            span: (UnixTime(0), UnixTime(39)),
            thresholds: &[('W', ExtentCount(800)), ('C', ExtentCount(1_000_000))],
            marks: &[UnixTime(20)],
        };
        let text = chart.render(48);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), HEIGHT + 3, "{text}");
        let found = lines.iter().position(|line| line.contains("W ┤")).unwrap();
        assert!(lines[found].contains("┈┈┈┈"), "{text}");
        assert!(!text.contains('C'), "a far threshold presses nothing flat");
        assert_eq!(lines[HEIGHT + 1].trim(), "▲");
        assert!(
            lines[HEIGHT + 2].starts_with("        39 s ago  "),
            "{text}"
        );
        assert!(lines[HEIGHT + 2].ends_with(" now"), "{text}");
        // Both ends stand on the ground: one low, the other lower.
        let ground: Vec<char> = lines[HEIGHT - 1].chars().collect();
        assert_eq!(ground[SCALE], '█');
        assert_eq!(ground.last(), Some(&'▄'), "{text}");
    }

    #[test]
    fn only_where_nobody_counted_is_it_empty() {
        // Fewer counts than columns; then nothing for long, then again.
        let times = (0..10).chain(60..70).map(|n| 10 * n);
        let points: Vec<_> = times.map(|at| (UnixTime(at), ExtentCount(10))).collect();
        let chart = Chart {
            points: &points,
            span: (UnixTime(0), UnixTime(690)),
            thresholds: &[],
            marks: &[],
        };
        let columns = chart.columns(69);
        let empty: Vec<_> = (0..69)
            .filter(|column| columns[*column].is_none())
            .collect();
        assert_eq!(empty, (9..59).map(|n| n + 1).collect::<Vec<_>>());
        assert!(chart.columns(500)[..60].iter().all(Option::is_some));
    }

    #[test]
    fn nothing_counted_is_nothing_drawn() {
        let chart = Chart {
            points: &[],
            span: (UnixTime(0), UnixTime(9)),
            thresholds: &[],
            marks: &[],
        };
        assert_eq!(chart.render(80), "");
    }

    proptest! {
        #[test]
        fn it_keeps_its_width_whatever_it_draws(
            points in proptest::collection::vec((any::<i64>(), any::<u64>()), 1..50),
            from: i64,
            to: i64,
            threshold: u64,
            width in 0..200usize,
        ) {
            let mut points: Vec<_> = points
                .into_iter()
                .map(|(at, count)| (UnixTime(at), ExtentCount(count)))
                .collect();
            points.sort_unstable();
            let chart = Chart {
                points: &points,
                span: (UnixTime(from.min(to)), UnixTime(from.max(to))),
                thresholds: &[('C', ExtentCount(threshold))],
                marks: &[UnixTime(from), UnixTime(to)],
            };
            for line in chart.render(width).lines() {
                prop_assert!(line.width() <= width.max(SCALE + LEAST_WIDTH), "{line}");
            }
        }
    }
}
