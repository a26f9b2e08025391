//! Durations for people: in at most two units, or with a tenth.

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

/// Prints a short duration with a tenth: `0.4 ms`, `12.3 ms`, `3.4 s`; from a minute on as [`Roughly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Briefly(pub Duration);

impl fmt::Display for Briefly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        match self.0.as_secs() {
            0 => write!(f, "{:.1} ms", seconds * 1e3),
            1..60 => write!(f, "{seconds:.1} s"),
            _ => Roughly(self.0).fmt(f),
        }
    }
}

/// Serde module: a duration as a number of seconds.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
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
    fn a_short_time_has_a_tenth() {
        let shown = |micros| Briefly(Duration::from_micros(micros)).to_string();
        assert_eq!(shown(449), "0.4 ms");
        assert_eq!(shown(12_340), "12.3 ms");
        assert_eq!(shown(3_440_000), "3.4 s");
        assert_eq!(shown(130_000_000), "2 min");
    }

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
