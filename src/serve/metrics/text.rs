//! Prometheus's text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>),
//! written line by line.

use std::fmt::Write as _;

/// Metrics as text.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// One metric and its series; without a series it is omitted from the text.
pub(super) struct Family<'t> {
    text: &'t mut String,
    kind: &'static str,
    name: &'static str,
    help: &'static str,
    has_series: bool,
}

impl Text {
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family("gauge", name, help)
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family("counter", name, help)
    }

    fn family(&mut self, kind: &'static str, name: &'static str, help: &'static str) -> Family<'_> {
        Family {
            text: &mut self.0,
            kind,
            name,
            help,
            has_series: false,
        }
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a series; the values of its labels must be [escaped](label).
    pub(super) fn set(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        let (kind, name, help) = (self.kind, self.name, self.help);
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
        text.gauge("a", "A.");
        text.counter("b", "B.")
            .set(&[], 1.0)
            .set(&[("x", &label("\"\\\n"))], 0.5);
        assert_eq!(
            text.into_string(),
            "# HELP b B.\n# TYPE b counter\nb 1\nb{x=\"\\\"\\\\\\n\"} 0.5\n"
        );
    }
}
