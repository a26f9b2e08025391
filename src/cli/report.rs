//! `fragwatch report`: one HTML file about the images of this host, from the history alone.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use askama::Template as _;

use super::args::ReportArguments;
use super::client;
use super::command::load_to_ask;
use super::output::{self, INCOMPLETE, SUCCESS};
use super::redact::Redactor;
use crate::assess::Assessor;
use crate::config::Settings;
use crate::history::{HistoryReader, ImageInfo};
use crate::model::path::shown;
use crate::model::{Severity, UnixTime};
use crate::serve::page::STYLE;
use crate::serve::page::detail::{self, Detail, reach};
use crate::serve::page::html::{Frame, Report};
use crate::serve::page::past;
use crate::serve::page::rows::{RunRow, complete, verdict};
use crate::serve::page::story::{Brief, Story};
use crate::serve::status::Status;
use crate::state_dir::StateDir;

/// Images with a chart, unless they are named.
const MOST_DETAILS: usize = 50;
/// Incidents with a time line.
const MOST_STORIES: usize = 10;

pub(super) fn run(arguments: &ReportArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_to_ask(config);
    let time = reach(&arguments.since).map_err(|error| anyhow::anyhow!("--since: {error}"))?;
    let mut frame = Frame::new("Report");
    let since = frame.now.before(time);
    let state = StateDir::of(&settings.history);
    let reader = HistoryReader::open(state.database())?;
    let mut details = details(&reader, arguments, &settings, (since, frame.now))?;
    name_vms(&mut details, &settings);
    let runs = past::runs(&reader, since)?;
    let wanted: Vec<_> = details.iter().map(|it| it.row.path.clone()).collect();
    let runs = runs.into_iter().map(RunRow::from);
    let runs: Vec<_> = runs.filter(|run| wanted.contains(&run.path)).collect();
    let (mut incidents, errors) = past::incidents(&state.incidents());
    let oldest = crate::model::utc::rfc3339_seconds(since);
    incidents.retain(|incident| incident.began.as_str() >= oldest.as_str());
    frame.gaps.extend(errors);
    let mut stories = Vec::new();
    for incident in incidents.iter().take(MOST_STORIES) {
        match past::incident(&state.incidents(), &incident.id) {
            Ok(incident) => stories.extend(incident.as_ref().map(Story::from)),
            Err(error) => frame.gaps.push(error),
        }
    }
    let incidents = incidents.iter().map(Brief::from).collect();
    let mut report = assemble(frame, arguments, details, runs);
    (report.incidents, report.stories) = (incidents, stories);
    if arguments.redact {
        Redactor::of(&report, &images(&reader)?).redact(&mut report);
    }
    finish(&mut report);
    let incomplete = !report.frame.gaps.is_empty();
    write(&report.render()?, arguments.html.as_deref())?;
    Ok(if incomplete { INCOMPLETE } else { SUCCESS })
}

fn images(reader: &HistoryReader) -> anyhow::Result<Vec<PathBuf>> {
    Ok(reader
        .images()?
        .into_iter()
        .map(|image| image.path)
        .collect())
}

/// The images that are wanted, the worst first.
fn details(
    reader: &HistoryReader,
    arguments: &ReportArguments,
    settings: &Settings,
    (since, now): (UnixTime, UnixTime),
) -> anyhow::Result<Vec<Detail>> {
    let assessor = Assessor::new(&settings.thresholds);
    let counted = |image: &ImageInfo| image.last.is_some_and(|last| last.point.at >= since);
    let images: Vec<_> = reader.images()?.into_iter().filter(counted).collect();
    let names: Vec<_> = arguments.images.iter().map(|image| shown(image)).collect();
    for name in &names {
        if !images.iter().any(|image| is_named(image, name)) {
            bail!(
                "the history has no image {name} that was counted since then; --since reaches further back"
            );
        }
    }
    let is_wanted =
        |image: &ImageInfo| names.is_empty() || names.iter().any(|name| is_named(image, name));
    let mut details = Vec::new();
    for image in images.into_iter().filter(is_wanted) {
        let past = past::image(reader, image, since)?;
        let (mut detail, growth, forecast) = detail::of_past(&past, &assessor, now);
        let limits = assessor.limits(&past.image.path);
        detail.chart = detail::chart(&past, &limits, &growth, forecast, (since, now));
        details.push(detail);
    }
    let mut rows: Vec<_> = details.iter().map(|detail| detail.row.clone()).collect();
    complete(&mut rows, past::weeks(reader, now)?, None);
    let place: HashMap<_, _> = rows
        .iter()
        .enumerate()
        .map(|(n, row)| (row.key.clone(), n))
        .collect();
    details.sort_by_key(|detail| place.get(&detail.row.key).copied());
    for (detail, row) in details.iter_mut().zip(rows) {
        detail.row = row;
    }
    Ok(details)
}

/// By its path, or an end of it that follows a slash.
fn is_named(image: &ImageInfo, name: &str) -> bool {
    let path = shown(&image.path);
    path == name
        || path
            .strip_suffix(name)
            .is_some_and(|rest| rest.ends_with('/'))
}

/// The history has no VMs: a daemon that answers knows those of the worst images.
fn name_vms(details: &mut [Detail], settings: &Settings) {
    let Ok(status) = client::get::<Status>(settings, "/v1/status") else {
        return;
    };
    let vms = status
        .worst
        .into_iter()
        .filter_map(|row| Some((row.path, row.vm?)));
    let vms: HashMap<String, String> = vms.collect();
    for detail in details {
        detail.row.vm = vms.get(&detail.row.path).cloned();
    }
}

fn assemble(
    frame: Frame,
    arguments: &ReportArguments,
    mut details: Vec<Detail>,
    runs: Vec<RunRow>,
) -> Report {
    let rows: Vec<_> = details.iter().map(|detail| detail.row.clone()).collect();
    let mut status = Status::default();
    let with = |severity| rows.iter().filter(|row| row.severity == severity).count();
    // Of the daemon nothing is known; its parts are not judged.
    status.daemon.swept = Some(frame.now);
    status.rescue.armed = true;
    status.images.total = rows.len();
    status.images.warning = with(Severity::Warning);
    status.images.critical = with(Severity::Critical);
    let verdict = verdict(&status, &rows, frame.now);
    if arguments.images.is_empty() {
        details.retain(|detail| detail.row.severity > Severity::Ok);
        details.truncate(MOST_DETAILS);
    }
    Report {
        frame,
        since: arguments.since.clone(),
        verdict,
        rows,
        details,
        runs,
        incidents: Vec::new(),
        stories: Vec::new(),
        style: STYLE,
    }
}

/// Leads names to the sections of this file, and all others nowhere.
fn finish(report: &mut Report) {
    let sections = report.details.iter().zip(1..);
    let sections: HashMap<_, _> = sections
        .map(|(it, n)| (it.row.path.clone(), format!("#image-{n}")))
        .collect();
    let section = |path: &String| sections.get(path).cloned().unwrap_or_default();
    report
        .rows
        .iter_mut()
        .for_each(|row| row.link = section(&row.path));
    report
        .runs
        .iter_mut()
        .for_each(|run| run.link = section(&run.path));
    report.incidents.iter_mut().for_each(|one| one.link.clear());
}

/// To a new file that replaces `file`, or to standard output.
fn write(text: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let Some(file) = file else {
        return Ok(output::print(text)?);
    };
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let write = || {
        let mut draft = tempfile::NamedTempFile::new_in(directory)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(file)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("cannot write {}", shown(file)))
}
