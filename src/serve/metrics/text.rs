//! Prometheus's text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>),
//! written line by line.

use std::fmt::Write as _;

use super::table::Metric;

/// Metrics as text.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// One metric and its series; without a series it is omitted from the text.
pub(super) struct Family<'t> {
    text: &'t mut String,
    metric: Metric,
    has_series: bool,
}

impl Text {
    pub(super) fn family(&mut self, metric: Metric) -> Family<'_> {
        Family {
            text: &mut self.0,
            metric,
            has_series: false,
        }
    }

    /// Adds a metric with one series and no label.
    pub(super) fn single(&mut self, metric: Metric, value: f64) {
        self.family(metric).set(&[], value);
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a series; the values of its labels must be [escaped](label).
    pub(super) fn set(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.part("", labels, value)
    }

    /// Adds a series of a histogram: `_bucket`, `_sum`, `_count`.
    pub(super) fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) -> &mut Self {
        if !std::mem::replace(&mut self.has_series, true) {
            append_header(self.text, self.metric);
        }
        self.text.push_str(self.metric.name);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (label, value) in labels {
            self.text.push(separator);
            // Writing to a String cannot fail, here and below.
            let _ = write!(self.text, "{label}=\"{value}\"");
            separator = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        append_value(self.text, value);
        self
    }
}

/// Appends the lines before the first series.
pub(super) fn append_header(text: &mut String, metric: Metric) {
    let Metric { kind, name, help } = metric;
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// Appends the value of a series and ends its line. Whole numbers, which are nearly all, are faster
/// to write as integers.
pub(super) fn append_value(text: &mut String, value: f64) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "other values are not equal"
    )]
    let whole = value as i64;
    let _ = match float(whole.unsigned_abs()) == value {
        true => writeln!(text, " {whole}"),
        false => writeln!(text, " {value}"),
    };
}

/// Escapes a label value.
pub(super) fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Numbers above 2^53 lose precision: Prometheus values are floating-point.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_without_series_is_not_there() {
        let mut text = Text::default();
        let [kind, help] = ["counter", "B."];
        text.family(Metric {
            kind,
            name: "a",
            help,
        });
        text.family(Metric {
            kind,
            name: "b",
            help,
        })
        .set(&[], 1.0)
        .set(&[("x", &label("\"\\\n"))], 0.5);
        assert_eq!(
            text.into_string(),
            "# HELP b B.\n# TYPE b counter\nb 1\nb{x=\"\\\"\\\\\\n\"} 0.5\n"
        );
    }
}
