//! How an image grows and when it reaches a threshold: the types. [`growth`](crate::growth) computes
//! them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::{ExtentsPerDay, UnixTime};
use super::units::{ExtentCount, roughly};

/// How many times as long as the window of growth a forecast may reach.
pub const REACH_OF_WINDOW: u32 = 60;

/// How an image has grown lately.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// What the counts say, or why they say nothing.
    pub trend: Result<Trend, Unknown>,
    /// The fastest rise that the counts allow for. Known sooner than the trend: of an image that
    /// hardly changes it can be said that nothing is near although its trend is lost in noise.
    /// `None` if they are too few for that, too.
    pub at_most: Option<ExtentsPerDay>,
    /// Counts that this was taken from.
    pub samples: usize,
    /// When the first of them was taken.
    pub since: UnixTime,
    /// For how long the image has been watched since it was last defragmented, `growth_window` at
    /// most.
    pub watched: Duration,
    /// How far ahead anything can be said.
    pub reach: Duration,
}

/// What the counts of an image say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// What it gains now.
    pub rate: ExtentsPerDay,
    /// It gains this at least, in 99 of 100 cases if the counts were independent of each other.
    pub low: ExtentsPerDay,
    /// It gains this at most, likewise.
    pub high: ExtentsPerDay,
    /// How the rate itself has changed.
    pub pace: Pace,
}

/// How a rate has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Every count was the same.
    Silent,
    /// It gains extents as fast as before.
    Steady,
    /// It gains fewer and fewer; at this pace never more than `level` in all.
    Tapering {
        /// Where it would level off.
        level: ExtentCount,
    },
    /// It gains more and more.
    Accelerating,
    /// It loses extents.
    Shrinking,
}

/// Why something is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// There are too few counts since the image appeared or was defragmented.
    TooFewSamples,
    /// There are enough, but from too short a time.
    TooShort,
    /// They go up and down, or up once: no rate can be distinguished from none.
    Unsettled,
    /// The rise tapers off, below the limit as it seems.
    TapersOff,
}

/// When an image will have too many extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forecast {
    /// It has.
    Reached,
    /// After this time, if it goes on like this.
    In(Duration),
    /// Not in this time; what comes later nobody can tell from so short a past.
    NotWithin(Duration),
    /// It does not grow.
    Never,
    /// Unknown.
    Unknown(Unknown),
}

impl Growth {
    /// What the image gains, if that is known.
    pub fn rate(&self) -> Option<ExtentsPerDay> {
        self.trend.ok().map(|trend| trend.rate)
    }
}

impl Forecast {
    /// The time that is left, if it is known: none when it is over.
    pub fn time_left(self) -> Option<Duration> {
        match self {
            Forecast::Reached => Some(Duration::ZERO),
            Forecast::In(time) => Some(time),
            Forecast::NotWithin(_) | Forecast::Never | Forecast::Unknown(_) => None,
        }
    }
}

impl fmt::Display for Unknown {
    /// As a reason: `too few samples`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Unknown::TooFewSamples => "too few samples",
            Unknown::TooShort => "watched for too short a time",
            Unknown::Unsettled => "no steady growth",
            Unknown::TapersOff => "growth tapers off",
        })
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
