//! Durations in at most two units.

use std::fmt;
use std::time::Duration;

/// Prints a duration, rounded down: `45 s`, `12 min`, `3 h 20 min`, `5 d 4 h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roughly(pub Duration);

impl fmt::Display for Roughly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        let text = match (days, hours, minutes) {
            (0, 0, 0) => format!("{seconds} s"),
            (0, 0, _) => format!("{minutes} min"),
            (0, _, _) => two(hours, "h", minutes % 60, "min"),
            _ => two(days, "d", hours % 24, "h"),
        };
        f.pad(&text)
    }
}

fn two(large: u64, unit: &str, small: u64, smaller: &str) -> String {
    if small == 0 {
        format!("{large} {unit}")
    } else {
        format!("{large} {unit} {small} {smaller}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_are_enough() {
        let shown = |seconds| Roughly(Duration::from_secs(seconds)).to_string();
        assert_eq!(Roughly(Duration::from_millis(999)).to_string(), "0 s");
        assert_eq!(shown(59), "59 s");
        assert_eq!(shown(3599), "59 min");
        assert_eq!(shown(3600), "1 h");
        assert_eq!(shown(12_000), "3 h 20 min");
        assert_eq!(shown(86_399), "23 h 59 min");
        assert_eq!(shown(86_400), "1 d");
        assert_eq!(shown(5 * 86_400 + 4 * 3600 + 1), "5 d 4 h");
    }
}
