//! How bad it is, by the configured thresholds. Pure.

use crate::config::settings::Thresholds;
use crate::model::{ExtentCount, Severity};

/// Severity of an image with so many extents. A threshold itself counts as reached.
#[must_use]
pub fn severity(extents: ExtentCount, thresholds: &Thresholds) -> Severity {
    if extents >= thresholds.critical.extents {
        Severity::Critical
    } else if extents >= thresholds.warning.extents {
        Severity::Warning
    } else {
        Severity::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_itself_is_reached() {
        let thresholds = Thresholds::default();
        let of = |extents| severity(ExtentCount(extents), &thresholds);
        assert_eq!(of(0), Severity::Ok);
        assert_eq!(of(499_999), Severity::Ok);
        assert_eq!(of(500_000), Severity::Warning);
        assert_eq!(of(4_999_999), Severity::Warning);
        assert_eq!(of(5_000_000), Severity::Critical);
    }
}
