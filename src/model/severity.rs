//! The severity of an image or the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Severity by the configured thresholds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Below every threshold.
    #[default]
    Ok,
    /// At or above a warning threshold.
    Warning,
    /// At or above a critical threshold.
    Critical,
}

impl Severity {
    /// The severity with this name; `Ok` for any other word.
    pub fn named(name: &str) -> Severity {
        match name {
            "warning" => Severity::Warning,
            "critical" => Severity::Critical,
            _ => Severity::Ok,
        }
    }

    /// The value of the metric `fragwatch_image_severity`: 0, 1 or 2.
    pub fn as_number(self) -> u8 {
        match self {
            Severity::Ok => 0,
            Severity::Warning => 1,
            Severity::Critical => 2,
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        })
    }
}
