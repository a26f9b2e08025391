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
        let Metric { kind, name, help } = self.metric;
        // Writing to a String cannot fail, here and below.
        if !std::mem::replace(&mut self.has_series, true) {
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        self.text.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            self.text.push(separator);
            let _ = write!(self.text, "{label}=\"{value}\"");
            separator = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
        self
    }
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
