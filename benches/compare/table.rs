//! The table: what was measured, against what, and whether it is enough.

use std::fmt;

use super::samples::Samples;

pub const HEAD: &str = "\
| work | fragwatch | against | ratio | to reach | reached |
|---|---|---|---|---|---|";

/// One line of it.
#[derive(Debug)]
pub struct Row {
    work: String,
    ours: String,
    against: String,
    ratio: String,
    to_reach: String,
    reached: Option<bool>,
}

impl Row {
    /// What fragwatch takes as a share of what `other` takes, which must be `at_most` so much.
    pub fn ratio(
        work: impl fmt::Display,
        ours: &Samples,
        other: &str,
        theirs: &Samples,
        at_most: f64,
    ) -> Row {
        let ratio = ours.median() / theirs.median();
        Row {
            to_reach: format!("at most {}", share(at_most)),
            reached: Some(ratio <= at_most),
            ..Row::for_information(work, ours, other, theirs)
        }
    }

    /// As [`Row::ratio`], for something that nobody has set a bound to.
    pub fn for_information(
        work: impl fmt::Display,
        ours: &Samples,
        other: &str,
        theirs: &Samples,
    ) -> Row {
        Row {
            work: work.to_string(),
            ours: ours.to_string(),
            against: format!("`{other}` {theirs}"),
            ratio: share(ours.median() / theirs.median()),
            to_reach: "–".to_owned(),
            reached: None,
        }
    }

    /// Adds to what it is measured against something that is told for comparison.
    pub fn beside(mut self, what: impl fmt::Display) -> Row {
        self.against = format!("{}; {what}", self.against);
        self
    }

    /// Something whose bound does not depend on what others take.
    pub fn plain(
        work: impl fmt::Display,
        ours: impl fmt::Display,
        against: impl fmt::Display,
        to_reach: impl fmt::Display,
        reached: bool,
    ) -> Row {
        Row {
            work: work.to_string(),
            ours: ours.to_string(),
            against: against.to_string(),
            ratio: "–".to_owned(),
            to_reach: to_reach.to_string(),
            reached: Some(reached),
        }
    }
}

impl Row {
    /// As [`Row::plain`], for something that nobody has set a bound to.
    pub fn told(
        work: impl fmt::Display,
        ours: impl fmt::Display,
        against: impl fmt::Display,
    ) -> Row {
        Row {
            reached: None,
            ..Row::plain(work, ours, against, "–", false)
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = match self.reached {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        let Row {
            work,
            ours,
            against,
            ratio,
            to_reach,
            ..
        } = self;
        write!(
            f,
            "| {work} | {ours} | {against} | {ratio} | {to_reach} | {reached} |"
        )
    }
}

/// `1/1000`, `0.83`, `1.20`.
fn share(ratio: f64) -> String {
    if ratio > 0.0 && ratio <= 0.5 {
        let inverse = 1.0 / ratio;
        let digits = usize::from(inverse < 10.0 && inverse.fract() > 0.05);
        format!("1/{inverse:.digits$}")
    } else {
        format!("{ratio:.2}")
    }
}
