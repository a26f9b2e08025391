//! The pages as compiled templates, which escape every text.

use askama::Template;

use super::detail::Detail;
use super::filter::{Filter, Heading};
use super::rows::{Disk, Row, RunRow, Verdict};
use super::story::{Brief, Story};
use crate::model::{Finding, Severity, UnixTime};
use crate::serve::status::{EngineState, Status};
use crate::table::counted;

/// Images in a group that is shown open.
const SHORT: usize = 10;

/// What every page has.
#[derive(Debug, Default)]
pub struct Frame {
    /// Title, and place in the navigation.
    pub title: &'static str,
    pub host: String,
    pub now: UnixTime,
    /// What could not be read for this page.
    pub gaps: Vec<String>,
}

impl Frame {
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

/// The first screen.
#[derive(Debug, Template)]
#[template(path = "overview.html")]
pub struct Overview {
    pub frame: Frame,
    pub verdict: Verdict,
    pub status: Status,
    /// The worst, and how many further ones are not ok.
    pub rows: Vec<Row>,
    pub further: usize,
    /// What is wrong beside images.
    pub problems: Vec<(Severity, String)>,
    pub rescue: String,
    pub kernel: String,
    pub window: String,
    pub last_run: Option<RunRow>,
    pub disks: Vec<Disk>,
}

impl Overview {
    fn findings(&self) -> Vec<&Finding> {
        self.status.doctor.diagnosis.open().collect()
    }

    fn total(&self) -> String {
        counted(self.status.images.total as u64, "image")
    }

    fn engines(&self) -> &[EngineState] {
        &self.status.engines
    }
}

/// All images.
#[derive(Debug, Template)]
#[template(path = "images.html")]
pub struct Images {
    pub frame: Frame,
    pub filter: Filter,
    pub headings: Vec<Heading>,
    pub mounts: Vec<String>,
    pub rows: Vec<Row>,
    pub total: usize,
}

/// One image.
#[derive(Debug, Template)]
#[template(path = "image.html")]
pub struct Image {
    pub frame: Frame,
    pub detail: Detail,
    /// The texts of `since` and their links.
    pub spans: Vec<(&'static str, String)>,
    pub since: String,
    /// Where the script reads the chart's data.
    pub data: String,
}

/// What will run when, and what will not.
#[derive(Debug, Default, Template)]
#[template(path = "plan.html")]
pub struct Plan {
    pub frame: Frame,
    pub calendar: String,
    pub window: String,
    pub strip: String,
    pub runs: Vec<PlanRow>,
    /// Images left alone for the same reason, and those that have one of their own.
    pub groups: Vec<PlanGroup>,
    pub alone: Vec<PlanRow>,
    pub fine: usize,
    pub paused: bool,
}

/// Images left alone for one reason.
#[derive(Debug)]
pub struct PlanGroup {
    pub reason: String,
    pub rows: Vec<PlanRow>,
}

impl PlanGroup {
    fn images(&self) -> String {
        counted(self.rows.len() as u64, "image")
    }

    /// Whether it is shown open. A browser finds a text in a closed one too, and opens it (HTML,
    /// "ancestor revealing algorithm").
    fn is_short(&self) -> bool {
        self.rows.len() <= SHORT
    }
}

/// An image in the plan.
#[derive(Debug)]
pub struct PlanRow {
    pub path: String,
    pub link: String,
    pub extents: String,
    pub severity: Severity,
    /// When and how, or why not; empty in a group.
    pub text: String,
    pub gain: String,
}

/// Past runs.
#[derive(Debug, Template)]
#[template(path = "runs.html")]
pub struct Runs {
    pub frame: Frame,
    pub runs: Vec<RunRow>,
}

/// Incidents.
#[derive(Debug, Template)]
#[template(path = "incidents.html")]
pub struct Incidents {
    pub frame: Frame,
    pub incidents: Vec<Brief>,
}

/// One incident.
#[derive(Debug, Template)]
#[template(path = "incident.html")]
pub struct OneIncident {
    pub frame: Frame,
    pub story: Story,
}

/// Instead of a page that there is not.
#[derive(Debug, Template)]
#[template(path = "missing.html")]
pub struct Missing {
    pub frame: Frame,
}

/// One file with all of it.
#[derive(Debug, Template)]
#[template(path = "report.html")]
pub struct Report {
    pub frame: Frame,
    pub since: String,
    pub verdict: Verdict,
    pub rows: Vec<Row>,
    pub details: Vec<Detail>,
    pub runs: Vec<RunRow>,
    pub incidents: Vec<Brief>,
    pub stories: Vec<Story>,
    pub style: &'static str,
}

/// Filters of the templates.
mod filters {
    use crate::model::{Bytes, Point, Roughly, UnixTime};

    /// A time, to the minute.
    #[askama::filter_fn]
    pub fn when(at: &UnixTime, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(super::super::rows::when(*at))
    }

    /// How long ago a time is.
    #[askama::filter_fn]
    pub fn ago(at: &UnixTime, _: &dyn askama::Values, now: &UnixTime) -> askama::Result<Roughly> {
        Ok(Roughly(now.since(*at)))
    }

    /// A size, or a dash.
    #[askama::filter_fn]
    pub fn size(size: &Option<Bytes>, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(crate::table::or_dash(*size))
    }

    /// The line of a week.
    #[askama::filter_fn]
    pub fn spark(points: &[Point], _: &dyn askama::Values) -> askama::Result<String> {
        Ok(super::super::chart::sparkline(points))
    }
}
