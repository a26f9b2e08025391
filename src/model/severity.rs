//! The severity of an image or the host.

use super::words::words;

words! {
    /// Severity by the configured thresholds.
    #[derive(Default)]
    pub enum Severity: Display {
        /// Below every threshold.
        #[default]
        Ok = "ok",
        /// At or above a warning threshold.
        Warning = "warning",
        /// At or above a critical threshold.
        Critical = "critical",
    }
}

impl Severity {
    /// The value of the metric `fragwatch_image_severity`: 0, 1 or 2.
    pub fn as_number(self) -> u8 {
        self as u8
    }
}
