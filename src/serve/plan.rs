//! Formats a plan for `fragwatch plan` and for `/v1/plan`: what is defragmented next, why
//! everything else is left alone, and when the windows are.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{of_file, status};
use crate::maintenance::{Calendar, Decision, Opening, Plan, Planned, PlannedRun};
use crate::model::path::shown;
use crate::model::{Engine, EngineState, ReasonCode, Refusal, Roughly, UnusableReason};
use crate::table::TextTable;

const WINDOWS: usize = 7;

/// The plan in force, and what it was made with.
#[derive(Debug)]
pub struct PlanInForce {
    pub plan: Plan,
    pub engines: Vec<EngineState>,
    pub calendar: Calendar,
    pub now: Timestamp,
}

impl PlanInForce {
    /// As [`render`].
    pub fn text(&self, width: Option<u16>) -> String {
        render(&self.plan, &self.engines, &self.calendar, self.now, width)
    }

    /// As [`render_json`].
    pub fn json(&self) -> String {
        let (by, now) = (JudgedBy::Daemon, self.now);
        render_json(&self.plan, &self.engines, &self.calendar, now, by)
    }

    /// The next windows, at most [`WINDOWS`].
    pub fn windows(&self) -> Vec<Opening> {
        self.calendar.next(self.now, WINDOWS)
    }
}

/// Asks for the plan in force.
#[derive(Debug, Clone)]
pub struct PlanRequests(pub mpsc::Sender<oneshot::Sender<PlanInForce>>);

impl PlanRequests {
    /// The plan; `None` if it does not come within `time`, or the daemon is shutting down.
    pub async fn ask(&self, time: Duration) -> Option<PlanInForce> {
        let (answer, plan) = oneshot::channel();
        let asked = async {
            self.0.send(answer).await.ok()?;
            plan.await.ok()
        };
        tokio::time::timeout(time, asked).await.ok()?
    }
}

/// The plan as text for people; `width` is that of their terminal.
pub fn render(
    plan: &Plan,
    engines: &[EngineState],
    calendar: &Calendar,
    now: Timestamp,
    width: Option<u16>,
) -> String {
    let mut text = runs(plan, calendar, now, width);
    text.push_str(&left_alone_text(plan, width));
    text.push_str(&by_hand(plan));
    text.push('\n');
    text.push_str(&windows(calendar, now));
    text.push_str(&unusable_engines(engines));
    text
}

/// The engines that cannot be used on this host, and what to do; empty if all can.
fn unusable_engines(engines: &[EngineState]) -> String {
    let line = |state: &EngineState| {
        let (engine, why) = (state.engine, state.unusable.as_ref()?);
        // Off by default.
        let is_off = engine == Engine::BlockCopy && why.reason == UnusableReason::NotConfigured;
        (!is_off).then(|| format!("\n! {engine} is not used: {}.\n", why.text))
    };
    engines.iter().filter_map(line).collect()
}

fn runs(plan: &Plan, calendar: &Calendar, now: Timestamp, width: Option<u16>) -> String {
    let run = |planned: &Planned| match &planned.decision {
        Decision::Runs(run) => Some(*run),
        Decision::Not(_) => None,
    };
    let runs = plan.images.iter();
    let runs: Vec<_> = runs.filter_map(|it| Some((it, run(it)?))).collect();
    if runs.is_empty() {
        return "Nothing is to be defragmented.\n".to_owned();
    }
    let when = match calendar.open_until(now) {
        Some(_) => "In the window that is open",
        None if calendar.has_windows() => "In the window that opens next",
        None => "Without a window",
    };
    let mut table =
        TextTable::headed("IMAGE|>EXTENTS|?>GAIN|ENGINE|BEGINS|>ABOUT|?>NEEDS").wrapped(width);
    let mut note = "";
    for (planned, run) in runs {
        let (gain, estimate) = (planned.outlook.map(|it| it.gain(run.engine)), &run.estimate);
        let mut mark = "";
        if estimate.measured_runs == 0 {
            mark = "*";
            note = "* assumed: nothing was measured on its file system yet\n";
        }
        table.row([
            shown(&planned.path),
            planned.extents.to_string(),
            gain.map_or_else(|| "not looked at".to_owned(), |gain| gain.to_string()),
            run.engine.to_string(),
            begins(run.begins, calendar.zone(), now),
            format!("{}{mark}", Roughly(estimate.about)),
            estimate.needs.to_string(),
        ]);
    }
    format!("{when}:\n{}{note}", table.render())
}

/// When something begins, as short as it is clear.
pub fn begins(begins: Timestamp, zone: &TimeZone, now: Timestamp) -> String {
    let (local, today) = (zone.to_datetime(begins), zone.to_datetime(now).date());
    let form = match begins.duration_since(now) {
        left if left <= SignedDuration::ZERO => return "now".to_owned(),
        _ if local.date() == today => "%H:%M",
        left if left < SignedDuration::from_hours(6 * 24) => "%a %H:%M",
        _ => "%a %F %H:%M",
    };
    local.strftime(form).to_string()
}

/// The images that are left alone for one reason, worst first.
pub struct LeftAlone<'p> {
    pub reason: &'p Refusal,
    pub images: Vec<&'p Planned>,
}

/// The images left alone, together if the texts of their reasons are equal, in the order of the
/// worst of each; and how many are not bad enough, which are only counted.
pub fn left_alone(plan: &Plan) -> (Vec<LeftAlone<'_>>, usize) {
    let mut fine = 0_usize;
    let mut groups: Vec<LeftAlone> = Vec::new();
    let mut places = HashMap::new();
    for planned in &plan.images {
        match &planned.decision {
            Decision::Runs(_) => {}
            Decision::Not(reason) if reason.code == ReasonCode::BelowSeverity => fine += 1,
            Decision::Not(reason) => {
                let place = *places.entry(&reason.text).or_insert(groups.len());
                match groups.get_mut(place) {
                    Some(group) => group.images.push(planned),
                    None => groups.push(LeftAlone {
                        reason,
                        images: vec![planned],
                    }),
                }
            }
        }
    }
    (groups, fine)
}

/// The images left alone, and why. On a terminal, whose lines are wrapped, a reason stands once;
/// elsewhere each line has it, for `grep`.
fn left_alone_text(plan: &Plan, width: Option<u16>) -> String {
    let (groups, fine) = left_alone(plan);
    let mut table = TextTable::new(&["IMAGE", ">EXTENTS", "WHY NOT"]).wrapped(width);
    for group in &groups {
        for (place, planned) in group.images.iter().enumerate() {
            let why = match place > 0 && width.is_some() {
                true => "as above".to_owned(),
                false => group.reason.to_string(),
            };
            table.row([shown(&planned.path), planned.extents.to_string(), why]);
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    if !table.is_empty() {
        let _ = write!(text, "\nLeft alone:\n{}", table.render());
    }
    if fine > 0 {
        let plural = if fine == 1 { " is" } else { "s are" };
        let _ = writeln!(text, "\n{fine} image{plural} not bad enough.");
    }
    text
}

/// What operators can do themselves under VMs that no engine copies.
fn by_hand(plan: &Plan) -> String {
    let mut text = String::new();
    for planned in &plan.images {
        if let Some(by_hand) = &planned.by_hand {
            let _ = writeln!(text, "\nBy hand, {}:", shown(&planned.path));
            for command in &by_hand.commands {
                let _ = writeln!(text, "    {command}");
            }
            let _ = writeln!(text, "  {}", by_hand.lacks);
        }
    }
    text
}

fn windows(calendar: &Calendar, now: Timestamp) -> String {
    if !calendar.has_windows() {
        return "No window is configured, so nothing is defragmented by itself: see \
                [[maintenance.window]] in the configuration.\n"
            .to_owned();
    }
    let openings = calendar.next(now, WINDOWS);
    if openings.is_empty() {
        return "No window opens within a year: blackouts.\n".to_owned();
    }
    let mut text = "Windows:\n".to_owned();
    for opening in openings {
        let length = Roughly(opening.length());
        let span = span(opening, calendar.zone());
        let open = if opening.is_open(now) {
            ", open now"
        } else {
            ""
        };
        let _ = writeln!(text, "{span}  {length}{open}");
    }
    text
}

/// `Sat 2026-11-28 01:00 – 05:00 CET`
pub fn span(opening: Opening, zone: &TimeZone) -> String {
    let local = |at: Timestamp| at.to_zoned(zone.clone());
    let (opens, closes) = (local(opening.opens), local(opening.closes));
    // Both zone abbreviations are shown on the night of a clock change.
    let first = match opens.offset() == closes.offset() {
        true => "%a %F %H:%M",
        false => "%a %F %H:%M %Z",
    };
    let second = match closes.date().duration_since(opens.date()).as_hours() {
        0 => "%H:%M %Z",
        // A week later the weekday alone would be ambiguous.
        hours if hours < 7 * 24 => "%a %H:%M %Z",
        _ => "%a %F %H:%M %Z",
    };
    format!("{} – {}", opens.strftime(first), closes.strftime(second))
}

/// The plan as JSON. Keys are only ever added. Times are in seconds since 1970; local times are
/// beside them.
pub fn render_json(
    plan: &Plan,
    engines: &[EngineState],
    calendar: &Calendar,
    now: Timestamp,
    judged_by: JudgedBy,
) -> String {
    let windows = calendar.next(now, WINDOWS).into_iter();
    let windows = windows.map(|opening| window(opening, calendar.zone()));
    let engines = engines.iter().map(status::EngineState::from);
    let document = json!({
        "schema": status::SCHEMA,
        "judged_by": judged_by,
        "now": now.as_second(),
        "open_until": calendar.open_until(now).map(Timestamp::as_second),
        "windows": windows.collect::<Vec<_>>(),
        "engines": engines.collect::<Vec<_>>(),
        "images": plan.images.iter().map(image).collect::<Vec<_>>(),
    });
    format!("{document}\n")
}

/// The basis of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgedBy {
    /// All data of the daemon: counts, growth, forecasts and past severities.
    Daemon,
    /// The current counts alone.
    Counts,
}

fn window(opening: Opening, zone: &TimeZone) -> Value {
    // RFC 3339, which has an offset but no zone name.
    let local = |at: Timestamp| at.to_zoned(zone.clone()).strftime("%FT%T%:z").to_string();
    json!({
        "opens": opening.opens.as_second(),
        "closes": opening.closes.as_second(),
        "seconds": opening.length().as_secs(),
        "opens_local": local(opening.opens),
        "closes_local": local(opening.closes),
    })
}

/// `outlook` and `gain_extents` are `null` if the map was not read.
fn image(planned: &Planned) -> Value {
    let (run, why_not) = match &planned.decision {
        Decision::Runs(run) => (Some(run_object(planned, run)), None),
        Decision::Not(reason) => (None, Some(why_not(reason))),
    };
    let keys = json!({
        "filesystem": planned.mount.as_deref().map(shown),
        "severity": planned.severity,
        "extents": planned.extents,
        "ideal_extents": planned.ideal,
        "outlook": planned.outlook,
        "run": run,
        "why_not": why_not,
        "by_hand": planned.by_hand,
    });
    of_file(&planned.path, keys)
}

fn run_object(planned: &Planned, run: &PlannedRun) -> Value {
    let estimate = &run.estimate;
    json!({
        "engine": run.engine,
        "order": run.order,
        "begins": run.begins.as_second(),
        "ends": run.ends.as_second(),
        "about_seconds": estimate.about.as_secs(),
        "needs_bytes": estimate.needs,
        "bytes_per_second": estimate.speed,
        "measured_runs": estimate.measured_runs,
        "stall_seconds": estimate.stall.as_secs_f64(),
        "gain_extents": planned.outlook.map(|outlook| outlook.gain(run.engine)),
    })
}

/// For an image in use, also why the engines leave it alone that allow that.
fn why_not(reason: &Refusal) -> Value {
    let mut object = json!({ "code": reason.code, "text": reason.text });
    for (engine, why) in [("online", &reason.online), ("blockcopy", &reason.blockcopy)] {
        if let Some(why) = why {
            object[engine] = why_not(why);
        }
    }
    object
}

#[cfg(test)]
mod tests;
