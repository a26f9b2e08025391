//! Answers the requests for pages.

use std::collections::HashMap;
use std::path::PathBuf;

use askama::Template;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::SignedDuration;
use rustix::system::uname;
use serde::Deserialize;

use super::chart::{Bar, ChartData, strip};
use super::detail::{self, Detail, chart, reach};
use super::filter::Filter;
use super::gather::{HostNow, Pages};
use super::html::{
    Frame, Image, Images, Incidents, Missing, OneIncident, Overview, Plan, PlanGroup, PlanRow, Runs,
};
use super::past;
use super::rows::{RunRow, complete, link, unix, verdict};
use super::story::{Brief, Story};
use crate::assess::Assessor;
use crate::maintenance::{Decision, Planned, PlannedRun};
use crate::model::path::shown;
use crate::model::{ImageKey, Roughly, Severity, UnixTime};
use crate::serve::plan::{PlanInForce, begins, left_alone, span};
use crate::serve::status::{Rescue, Status};
use crate::table::counted;

/// Images on the first screen.
const FIRST: usize = 15;
/// Runs in their table.
const RUNS_SINCE: UnixTime = UnixTime(0);
const DAY: i64 = 86_400;
/// Windows in the calendar: several on each of its days.
const MOST_WINDOWS: usize = 64;
/// Days in the calendar.
const DAYS: i64 = 14;
/// Nothing is loaded from elsewhere, nothing inline runs, and nothing frames the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

fn answer(status: StatusCode, page: &impl Template) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    match page.render() {
        Ok(text) => (status, headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn missing() -> Response {
    answer(
        StatusCode::NOT_FOUND,
        &Missing {
            frame: Frame::new("Not found"),
        },
    )
}

pub async fn overview(State(pages): State<Pages>) -> Response {
    let mut frame = Frame::new("Host");
    let HostNow {
        mut rows,
        disks,
        plan,
        last_run,
    } = pages.host(&mut frame).await;
    let status = pages.sources.status.status();
    let verdict = verdict(&status, &rows, frame.now);
    rows.retain(|row| row.severity > Severity::Ok);
    let further = rows.len().saturating_sub(FIRST);
    rows.truncate(FIRST);
    answer(
        StatusCode::OK,
        &Overview {
            verdict,
            further,
            rows,
            problems: problems(&status),
            rescue: rescue(&status.rescue, frame.now),
            kernel: uname().release().to_string_lossy().into_owned(),
            window: plan.as_ref().map(next_window).unwrap_or_default(),
            last_run,
            disks,
            status,
            frame,
        },
    )
}

/// What is wrong with host and daemon.
fn problems(status: &Status) -> Vec<(Severity, String)> {
    let mut problems = Vec::new();
    for stalled in &status.stalled {
        let text = format!(
            "The file system {} has not answered for {} s; its counts are old.",
            stalled.mount, stalled.seconds
        );
        problems.push((Severity::Critical, text));
    }
    if let Some(refused) = &status.daemon.config_refused {
        let text = format!("{}: {refused}", status.daemon.config_in_force.text());
        problems.push((Severity::Warning, text));
    }
    let parts = status.parts.iter().filter(|it| it.severity > Severity::Ok);
    problems.extend(parts.map(|part| (part.severity, part.to_string())));
    if !status.rescue.armed {
        let text = "The rescue is not armed: nothing would be done in an emergency.".to_owned();
        problems.push((Severity::Warning, text));
    }
    if let Some(reason) = &status.host.reason {
        problems.push((status.host.severity, format!("Kernel memory: {reason}.")));
    }
    if status.images.unprotected > 0 {
        let images = counted(status.images.unprotected as u64, "image");
        let text = format!("{images} can shatter: `fragwatch protect` names them.");
        problems.push((Severity::Warning, text));
    }
    problems
}

fn rescue(rescue: &Rescue, now: UnixTime) -> String {
    let state = match (rescue.armed, rescue.dry_run, rescue.incident) {
        (false, ..) => return "Not armed: nothing would be done in an emergency.".to_owned(),
        (_, true, true) => "Armed for a dry run only, and logs now what it would do.",
        (_, _, true) => "Armed, and acting now.",
        (_, true, _) => "Armed for a dry run only.",
        _ => "Armed.",
    };
    let ago = rescue.drilled.map(|at| Roughly(now.since(at)));
    let drill = match (ago, rescue.roundtrip_seconds) {
        (Some(ago), Some(took)) => {
            format!(
                "Proven {ago} ago, from the kernel log to the actor in {:.0} µs.",
                took * 1e6
            )
        }
        (Some(ago), None) => format!("The last drill, {ago} ago, failed: `fragwatch drill`."),
        (None, _) => "Not tried out yet: `fragwatch drill`.".to_owned(),
    };
    format!("{state} {drill} Trigger: {}.", rescue.trigger)
}

fn next_window(plan: &PlanInForce) -> String {
    match plan.windows().first() {
        None if plan.calendar.has_windows() => "None within a year: blackouts.".to_owned(),
        None => "None is configured, so nothing is defragmented by itself.".to_owned(),
        Some(opening) => {
            let now = if opening.is_open(plan.now) {
                "open now: "
            } else {
                ""
            };
            let runs = plan.plan.images.iter();
            let runs = runs
                .filter(|it| matches!(it.decision, Decision::Runs(_)))
                .count();
            let span = span(*opening, plan.calendar.zone());
            format!(
                "{now}{span}, {} to defragment",
                counted(runs as u64, "image")
            )
        }
    }
}

pub async fn images(State(pages): State<Pages>, Query(filter): Query<Filter>) -> Response {
    let mut frame = Frame::new("Images");
    let HostNow {
        mut rows, disks, ..
    } = pages.host(&mut frame).await;
    let total = rows.len();
    filter.apply(&mut rows);
    answer(
        StatusCode::OK,
        &Images {
            frame,
            headings: filter.headings(),
            filter,
            mounts: disks.into_iter().map(|disk| disk.mount).collect(),
            rows,
            total,
        },
    )
}

/// Which image, and how far back.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageQuery {
    fs: String,
    ino: u64,
    #[serde(rename = "gen")]
    generation: u32,
    #[serde(default)]
    since: String,
}

impl ImageQuery {
    fn key(&self) -> ImageKey {
        ImageKey {
            filesystem: self.fs.clone(),
            inode: self.ino,
            generation: self.generation,
        }
    }

    /// The last week, if the query has no valid time.
    fn since(&self, now: UnixTime) -> UnixTime {
        now.before(reach(&self.since).unwrap_or(std::time::Duration::from_secs(7 * 86_400)))
    }
}

/// The image as daemon and history know it; `None` if neither does.
async fn known(pages: &Pages, query: &ImageQuery, frame: &mut Frame) -> Option<Detail> {
    let (key, since) = (query.key(), query.since(frame.now));
    let past = pages.read(move |reader| {
        let found = past::find(reader, &key)?;
        found
            .map(|image| past::image(reader, image, since))
            .transpose()
    });
    let past = frame.or_gap(past.await);
    let assessor = Assessor::new(&pages.sources.settings.borrow().thresholds);
    let (mut known, key) = (None, query.key());
    pages.sources.inventory.lend(&mut |images, _| {
        let mut images = images.iter();
        if let Some(view) = images.find(|it| it.sample.key.as_ref() == Ok(&key)) {
            known = Some((detail::of_view(view), *view.growth, view.forecast));
        }
    });
    let from_past = || Some(detail::of_past(past.as_ref()?, &assessor, frame.now));
    let (mut detail, growth, forecast) = known.or_else(from_past)?;
    if let Some(past) = &past {
        let limits = assessor.limits(&past.image.path);
        detail.chart = chart(past, &limits, &growth, forecast, (since, frame.now));
        detail.row.since = past.last_change.as_ref().map(|it| it.at);
    }
    Some(detail)
}

pub async fn image(State(pages): State<Pages>, Query(query): Query<ImageQuery>) -> Response {
    let mut frame = Frame::new("Image");
    let Some(mut detail) = known(&pages, &query, &mut frame).await else {
        return missing();
    };
    let plan = pages.plan(&mut frame).await;
    // Severity and past may be older than what is shown; only the plan is wanted here.
    let since = detail.row.since;
    complete(
        std::slice::from_mut(&mut detail.row),
        Default::default(),
        plan.as_ref(),
    );
    detail.row.since = since;
    let base = link(&query.key());
    let spans = ["1d", "7d", "30d", "90d"].map(|span| (span, format!("{base}&since={span}")));
    let since = match query.since.as_str() {
        "" => "7d".to_owned(),
        since => since.to_owned(),
    };
    let data = [("since", &since)];
    // Texts are always encoded.
    let data = serde_urlencoded::to_string(data).unwrap_or_default();
    let data = format!("{}&{data}", base.replace("/image", "/api/history"));
    answer(
        StatusCode::OK,
        &Image {
            frame,
            detail,
            spans: spans.to_vec(),
            since,
            data,
        },
    )
}

/// The data of an image's chart, as JSON.
pub async fn history(State(pages): State<Pages>, Query(query): Query<ImageQuery>) -> Response {
    let mut frame = Frame::new("");
    let detail = known(&pages, &query, &mut frame).await;
    let chart: Option<ChartData> = detail.map(|detail| detail.chart);
    match (chart, frame.gaps.first()) {
        (Some(chart), None) => match serde_json::to_string(&chart) {
            Ok(text) => {
                let headers = [
                    (header::CONTENT_TYPE, "application/json"),
                    (header::CACHE_CONTROL, "no-store"),
                ];
                (headers, text).into_response()
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        },
        (_, Some(gap)) => (StatusCode::GATEWAY_TIMEOUT, format!("{gap}\n")).into_response(),
        (None, None) => StatusCode::NOT_FOUND.into_response(),
    }
}

pub async fn plan(State(pages): State<Pages>) -> Response {
    let mut frame = Frame::new("Plan");
    let plan = pages.plan(&mut frame).await;
    let mut links = HashMap::new();
    pages.sources.inventory.lend(&mut |images, _| {
        let named = images
            .iter()
            .filter_map(|it| Some((it.sample.path.clone(), link(it.sample.key.as_ref().ok()?))));
        links = named.collect();
    });
    let mut page = Plan {
        frame,
        paused: pages.sources.status.paused(),
        ..Plan::default()
    };
    if let Some(plan) = &plan {
        fill_in(&mut page, plan, &links);
    }
    answer(StatusCode::OK, &page)
}

/// The plan, as the page shows it; `links` are those of the images.
fn fill_in(page: &mut Plan, plan: &PlanInForce, links: &HashMap<PathBuf, String>) {
    let row = |planned: &Planned, text: String, gain: String| PlanRow {
        link: links.get(&planned.path).cloned().unwrap_or_default(),
        path: shown(&planned.path),
        extents: planned.extents.to_string(),
        severity: planned.severity,
        text,
        gain,
    };
    (page.window, page.calendar) = (next_window(plan), calendar(plan));
    let runs = runs_of(plan);
    page.strip = lanes(plan, &runs);
    let run = |(planned, run): &(&Planned, PlannedRun)| {
        let at = begins(run.begins, plan.calendar.zone(), plan.now);
        let (engine, about) = (run.engine, Roughly(run.estimate.about));
        let gain = planned
            .outlook
            .map(|outlook| outlook.gain(run.engine).to_string());
        let gain = gain.unwrap_or_else(|| "not looked at".to_owned());
        row(planned, format!("{at}, {engine}, about {about}"), gain)
    };
    page.runs = runs.iter().map(run).collect();
    let (groups, fine) = left_alone(&plan.plan);
    page.fine = fine;
    for group in groups {
        let reason = group.reason.to_string();
        if let [single] = group.images[..] {
            page.alone.push(row(single, reason, String::new()));
            continue;
        }
        let rows = group.images.iter();
        let rows = rows.map(|planned| row(planned, String::new(), String::new()));
        let rows = rows.collect();
        page.groups.push(PlanGroup { reason, rows });
    }
}

fn runs_of(plan: &PlanInForce) -> Vec<(&Planned, PlannedRun)> {
    let images = plan.plan.images.iter();
    let run = |planned: &Planned| match planned.decision {
        Decision::Runs(run) => Some(run),
        Decision::Not(_) => None,
    };
    images.filter_map(|it| Some((it, run(it)?))).collect()
}

/// The windows of two weeks.
fn calendar(plan: &PlanInForce) -> String {
    let now = unix(plan.now).0;
    let zone = plan.calendar.zone();
    let days = (0..DAYS).filter_map(|day| {
        let at = plan
            .now
            .checked_add(SignedDuration::from_hours(24 * day))
            .ok()?;
        let local = at.to_zoned(zone.clone()).start_of_day().ok()?;
        let text = local.strftime("%a %d").to_string();
        Some((local.timestamp().as_second(), text))
    });
    let openings = plan.calendar.next(plan.now, MOST_WINDOWS).into_iter();
    let bars = openings.map(|opening| Bar {
        from: unix(opening.opens).0,
        to: unix(opening.closes).0,
        lane: 0,
        class: "window",
        text: String::new(),
    });
    let bars: Vec<_> = bars.filter(|bar| bar.from < now + DAYS * DAY).collect();
    let ticks: Vec<_> = days.collect();
    let from = ticks.first().map_or(now, |(at, _)| *at);
    strip((from, from + DAYS * DAY), &ticks, &bars)
}

/// The runs of the window that is open or opens next.
fn lanes(plan: &PlanInForce, runs: &[(&Planned, PlannedRun)]) -> String {
    let windows = plan.windows();
    let (Some(opening), false) = (windows.first(), runs.is_empty()) else {
        return String::new();
    };
    let from = unix(opening.opens.max(plan.now)).0;
    let (to, zone) = (unix(opening.closes).0, plan.calendar.zone());
    let ticks = (0..=4).filter_map(|step| {
        let at = from + (to - from) / 5 * step;
        let local = jiff::Timestamp::from_second(at)
            .ok()?
            .to_zoned(zone.clone());
        Some((at, local.strftime("%H:%M").to_string()))
    });
    let bars = runs
        .iter()
        .take(20)
        .enumerate()
        .map(|(lane, (planned, run))| {
            let name = planned.path.file_name().unwrap_or_default();
            Bar {
                from: unix(run.begins).0,
                to: unix(run.ends).0,
                lane,
                class: "run",
                text: format!("{} by {}", shown(name.as_ref()), run.engine),
            }
        });
    strip(
        (from, to),
        &ticks.collect::<Vec<_>>(),
        &bars.collect::<Vec<_>>(),
    )
}

pub async fn runs(State(pages): State<Pages>) -> Response {
    let mut frame = Frame::new("Runs");
    let runs = pages.read(|reader| past::runs(reader, RUNS_SINCE)).await;
    let runs = frame.or_gap(runs).into_iter().map(RunRow::from).collect();
    answer(StatusCode::OK, &Runs { frame, runs })
}

pub async fn incidents(State(pages): State<Pages>) -> Response {
    let mut frame = Frame::new("Incidents");
    let read = pages
        .blocking(|state| past::incidents(&state.incidents()))
        .await;
    let (incidents, errors) = frame.or_gap(read);
    frame.gaps.extend(errors);
    let incidents = incidents.iter().map(Brief::from).collect();
    answer(StatusCode::OK, &Incidents { frame, incidents })
}

/// Which incident.
#[derive(Debug, Deserialize)]
pub struct IncidentQuery {
    id: String,
}

pub async fn incident(State(pages): State<Pages>, Query(query): Query<IncidentQuery>) -> Response {
    let mut frame = Frame::new("Incident");
    let read = pages
        .blocking(move |state| past::incident(&state.incidents(), &query.id))
        .await;
    match frame.or_gap(read.and_then(|read| read)) {
        Some(incident) => {
            let story = Story::from(&incident);
            answer(StatusCode::OK, &OneIncident { frame, story })
        }
        None if frame.gaps.is_empty() => missing(),
        None => answer(StatusCode::GATEWAY_TIMEOUT, &Missing { frame }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Maintenance;
    use crate::maintenance::{self, Calendar, JitterSeed};
    use crate::model::{ExtentCount, ReasonCode, Refusal};

    /// Each reason with how many images have it, which take turns.
    const REASONS: [(&str, usize); 4] = [
        ("held by \"<b>&</b>\"", 12),
        ("held by \"<b>&</b>\" (2)", 2),
        ("no turn (1 image <i>before</i> it)", 1),
        ("no turn (2 images <i>before</i> it)", 1),
    ];

    fn left_alone(path: String, code: ReasonCode, reason: &str) -> Planned {
        Planned {
            by_hand: None,
            path: path.into(),
            mount: None,
            severity: Severity::Warning,
            extents: ExtentCount(1200),
            ideal: ExtentCount(1),
            outlook: None,
            decision: Decision::Not(Refusal::new(code, reason)),
        }
    }

    fn page(images: Vec<Planned>) -> String {
        let links = images.iter().skip(1);
        let links = links.map(|it| (it.path.clone(), "/image?fs=a&ino=1".to_owned()));
        let links = links.collect();
        let plan = PlanInForce {
            plan: maintenance::Plan { images },
            engines: Vec::new(),
            calendar: Calendar::new(&Maintenance::default(), JitterSeed::default()),
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut page = Plan {
            frame: Frame::new("Plan"),
            ..Plan::default()
        };
        fill_in(&mut page, &plan, &links);
        page.render().unwrap()
    }

    fn escaped(text: &str) -> String {
        let text = text.replace('&', "&#38;").replace('"', "&#34;");
        text.replace('<', "&#60;").replace('>', "&#62;")
    }

    #[test]
    fn the_plan_names_each_image_once_and_each_reason_too() {
        let mut images = Vec::new();
        for turn in 0..12 {
            for (at, (reason, _)) in (0..).zip(REASONS).filter(|(_, (_, many))| turn < *many) {
                let path = format!("/srv/{turn}<{at}>&.img");
                images.push(left_alone(path, ReasonCode::Held, reason));
            }
        }
        let paths: Vec<_> = images.iter().map(|it| shown(&it.path)).collect();
        let (below, fine) = (ReasonCode::BelowSeverity, "/srv/fine.img");
        images.push(left_alone(fine.to_owned(), below, "severity ok"));
        let body = page(images);
        for path in paths {
            let name = format!(">{}<", escaped(&path));
            assert_eq!(body.matches(&name).count(), 1, "{path} in\n{body}");
        }
        for (many, part) in [
            (
                1,
                format!("<details><summary>12 images: {}<", escaped(REASONS[0].0)),
            ),
            (
                1,
                format!(
                    "<details open><summary>2 images: {}<",
                    escaped(REASONS[1].0)
                ),
            ),
            (1, format!("{}\n", escaped(REASONS[2].0))),
            (1, format!("{}\n", escaped(REASONS[3].0))),
            (15, "<a href=\"/image?fs=a&#38;ino=1\">".to_owned()),
            (16, "<td>1,200".to_owned()),
            (1, "<p>1 more not bad enough.".to_owned()),
            (0, "<b>".to_owned()),
            (0, "<i>".to_owned()),
            (0, fine.to_owned()),
        ] {
            assert_eq!(body.matches(&part).count(), many, "{part} in\n{body}");
        }
    }
}
