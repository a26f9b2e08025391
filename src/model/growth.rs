//! Types for the growth of images and for forecasts, computed by [`growth`](crate::growth).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::{ExtentsPerDay, UnixTime};
use super::units::{ExtentCount, roughly};
use super::words::words;

/// Maximum reach of a forecast, as a multiple of the growth window.
pub const REACH_OF_WINDOW: u32 = 60;

/// Recent growth of an image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// The trend, or why it is unknown.
    pub trend: Result<Trend, Unknown>,
    /// The fastest rise that the counts allow for; `None` if they are too few. Known before the
    /// trend: an image that hardly changes is near no limit, even if its trend is lost in noise.
    pub at_most: Option<ExtentsPerDay>,
    /// Number of counts used.
    pub samples: usize,
    /// Time of the first of them.
    pub since: UnixTime,
    /// How long the image was watched since its last defragmentation, at most `growth_window`.
    pub watched: Duration,
    /// How far ahead a forecast may reach.
    pub reach: Duration,
}

/// The trend of an image's extent counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// The present rate.
    pub rate: ExtentsPerDay,
    /// Lower bound of the rate, in 99 of 100 cases if the counts were independent.
    pub low: ExtentsPerDay,
    /// Upper bound, likewise.
    pub high: ExtentsPerDay,
    /// How the rate changes.
    pub pace: Pace,
}

/// How a rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// All counts were the same.
    Silent,
    /// The rate is constant.
    Steady,
    /// The rate falls; if it goes on like this, the image never has more than `level` extents.
    Tapering {
        /// Where it would level off.
        level: ExtentCount,
    },
    /// The rate rises.
    Accelerating,
    /// The image loses extents.
    Shrinking,
}

words! {
    /// Why something is unknown.
    pub enum Unknown: Display {
        /// Since the image appeared or was defragmented:
        TooFewSamples = "too_few_samples" => "too few samples",
        TooShort = "too_short" => "watched for too short a time",
        /// The counts go up and down, or up once: the rate cannot be distinguished from zero.
        Unsettled = "unsettled" => "no steady growth",
        /// Apparently below the limit:
        TapersOff = "tapers_off" => "growth tapers off",
    }
}

/// When an image will have too many extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forecast {
    /// It has too many now.
    Reached,
    /// After this time, at the present pace.
    In(Duration),
    /// Not within this time; the counts cover too short a time to look further ahead.
    NotWithin(Duration),
    /// It does not grow.
    Never,
    /// Unknown.
    Unknown(Unknown),
}

impl Growth {
    /// The rate, if known.
    pub fn rate(&self) -> Option<ExtentsPerDay> {
        self.trend.ok().map(|trend| trend.rate)
    }
}

impl Forecast {
    /// The time left, if known; zero if the threshold is reached.
    pub fn time_left(self) -> Option<Duration> {
        match self {
            Forecast::Reached => Some(Duration::ZERO),
            Forecast::In(time) => Some(time),
            Forecast::NotWithin(_) | Forecast::Never | Forecast::Unknown(_) => None,
        }
    }
}

impl fmt::Display for Forecast {
    /// As an answer to "when?": `in 3 days`, `unknown: too few samples`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Forecast::Reached => "reached".to_owned(),
            Forecast::In(time) => format!("in {}", roughly(*time)),
            Forecast::NotWithin(time) => format!("not within {}", roughly(*time)),
            Forecast::Never => "never".to_owned(),
            Forecast::Unknown(why) => format!("unknown: {why}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_reads_as_an_answer() {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        assert_eq!(Forecast::In(days(3)).to_string(), "in 3 days");
        assert_eq!(
            Forecast::NotWithin(days(60)).to_string(),
            "not within 60 days"
        );
        let unknown = Forecast::Unknown(Unknown::TooFewSamples);
        assert_eq!(unknown.to_string(), "unknown: too few samples");
        assert_eq!(Forecast::Reached.time_left(), Some(Duration::ZERO));
        assert_eq!(unknown.time_left(), None);
    }
}
