//! `fragwatch report`: one HTML file about the images of this host, from the history alone.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use askama::Template as _;

use super::args::ReportArguments;
use super::client;
use super::command::load_to_ask;
use super::output::{self, INCOMPLETE, SUCCESS};
use super::redact::Redactor;
use crate::assess::Assessor;
use crate::config::Settings;
use crate::durable;
use crate::history::{HistoryReader, ImageInfo};
use crate::incident::format::Incident;
use crate::incident::words::clean;
use crate::model::path::shown;
use crate::model::{Severity, UnixTime};
use crate::serve::page::STYLE;
use crate::serve::page::detail::{self, Detail, reach};
use crate::serve::page::html::{Frame, Report};
use crate::serve::page::past;
use crate::serve::page::rows::{RunRow, Uncounted, complete, verdict};
use crate::serve::page::story::{Brief, Story};
use crate::serve::status::Status;
use crate::state_dir::StateDir;

/// Images with a chart, unless they are named.
const MOST_DETAILS: usize = 50;
/// Incidents with a time line.
const MOST_STORIES: usize = 10;
/// An image that was not counted for that long and for some intervals, while others were, is no longer
/// counted.
const UNCOUNTED: Duration = Duration::from_secs(3600);
const UNCOUNTED_INTERVALS: u32 = 3;
/// Names of VMs and paths are for root only, unless the file was there with another mode.
const MODE: u32 = 0o600;

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
    let mut runs: Vec<_> = runs.filter(|run| wanted.contains(&run.path)).collect();
    let (mut incidents, errors) = past::incidents(&state.incidents());
    let oldest = crate::model::utc::rfc3339_seconds(since);
    incidents.retain(|incident| incident.began.as_str() >= oldest.as_str());
    frame.gaps.extend(errors);
    let mut stories = Vec::new();
    for incident in incidents.iter().take(MOST_STORIES) {
        match past::incident(&state.incidents(), &incident.id) {
            Ok(incident) => stories.extend(incident),
            Err(error) => frame.gaps.push(error),
        }
    }
    let incidents = incidents.iter().map(Brief::from).collect();
    let stories = if arguments.redact {
        let images = images(&reader)?;
        redacted(&mut frame, &mut details, &mut runs, stories, &images)
    } else {
        stories.iter().map(Story::from).collect()
    };
    let mut report = assemble(frame, arguments, details, runs);
    (report.incidents, report.stories) = (incidents, stories);
    finish(&mut report);
    let incomplete = !report.frame.gaps.is_empty();
    write(&report.render()?, arguments.html.as_deref())?;
    Ok(if incomplete { INCOMPLETE } else { SUCCESS })
}

/// Takes the names from all parts of a report. First of all, so that the rest is made without them.
fn redacted(
    frame: &mut Frame,
    details: &mut [Detail],
    runs: &mut [RunRow],
    incidents: Vec<Incident>,
    images: &[PathBuf],
) -> Vec<Story> {
    let mut hosts = vec![frame.host.clone()];
    hosts.extend(incidents.iter().map(|incident| clean(&incident.host)));
    let rows = || details.iter().map(|detail| &detail.row);
    let vms = rows().filter_map(|row| row.vm.clone());
    let paths = images.iter().map(|path| shown(path));
    let paths = paths.chain(rows().map(|row| row.path.clone()));
    let mut names = Redactor::of(hosts, paths, vms);
    names.frame(frame);
    details.iter_mut().for_each(|it| names.row(&mut it.row));
    runs.iter_mut().for_each(|run| names.run(run));
    let incidents = incidents.into_iter();
    incidents.map(|incident| names.story(incident)).collect()
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
    let last = |image: &ImageInfo| image.last.map(|last| last.point.at);
    let newest = images.iter().filter_map(last).max().unwrap_or(now);
    let late = newest.before(UNCOUNTED.max(settings.sampling.interval * UNCOUNTED_INTERVALS));
    let recent = images.iter().filter(|it| last(it) >= Some(late));
    let answering: HashSet<_> = recent.map(|it| it.key.filesystem.clone()).collect();
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
        let uncounted = last(&image).filter(|at| *at < late).map(|since| Uncounted {
            since,
            with_filesystem: !answering.contains(&image.key.filesystem),
        });
        let mut past = past::image(reader, image, since)?;
        if arguments.redact {
            // They name VMs, snapshots and files in many ways; the outcome stays.
            past.runs.iter_mut().for_each(|run| run.reason.clear());
        }
        let (mut detail, growth, forecast) = detail::of_past(&past, &assessor, now);
        let limits = assessor.limits(&past.image.path);
        detail.chart = detail::chart(&past, &limits, &growth, forecast, (since, now));
        let row = &mut detail.row;
        row.uncounted = uncounted;
        if row.uncounted.is_some() {
            (row.growth, row.left) = (None, None);
        }
        if row.is_gone() {
            row.severity = Severity::Ok;
        }
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
    let counted = rows.iter().filter(|row| row.uncounted.is_none());
    let counted: Vec<_> = counted.cloned().collect();
    let mut status = Status::default();
    let with = |severity| {
        counted
            .iter()
            .filter(|row| row.severity == severity)
            .count()
    };
    // Of the daemon nothing is known; its parts are not judged.
    status.daemon.swept = Some(frame.now);
    status.rescue.armed = true;
    status.images.total = counted.len();
    status.images.warning = with(Severity::Warning);
    status.images.critical = with(Severity::Critical);
    let mut verdict = verdict(&status, &counted, frame.now);
    if verdict.severity == Severity::Ok {
        verdict.text = "Of the images shown, none is near a threshold.".to_owned();
    }
    // Removed with its file system, or there and not read: the history cannot tell.
    let unknown = rows
        .iter()
        .filter(|row| row.uncounted.is_some() && row.severity > Severity::Ok)
        .count();
    if unknown > 0 {
        verdict.severity = verdict.severity.max(Severity::Warning);
        let images = output::counted(unknown as u64, "image");
        verdict.text += &format!(
            " {images} at a threshold, with all of the same file system, were no longer counted: see the table."
        );
    }
    if arguments.images.is_empty() {
        // The reason stays if the image is gone.
        details.retain(|it| it.row.severity > Severity::Ok || it.row.reason.is_some());
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

/// To a new file that replaces the regular file `file`, or to standard output.
fn write(text: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let Some(file) = file else {
        return Ok(output::print(text)?);
    };
    let write = || {
        let mode = match file.symlink_metadata() {
            Ok(there) if there.is_file() => there.permissions().mode() & 0o777,
            Ok(_) => bail!(
                "it is there and no regular file; without --html, the report goes to standard output"
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => MODE,
            Err(error) => return Err(error.into()),
        };
        let file = std::path::absolute(file)?;
        Ok(durable::replace(&file, text.as_bytes(), mode)?)
    };
    write().with_context(|| format!("cannot write {}", shown(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        std::os::unix::fs::symlink("old", at("link")).unwrap();
        for (name, mode) in [("new", 0o600), ("old", 0o640)] {
            if at(name).exists() {
                let mode = std::fs::Permissions::from_mode(mode);
                std::fs::set_permissions(at(name), mode).unwrap();
            }
            write("text", Some(&at(name))).unwrap();
            assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "text");
            let written = at(name).metadata().unwrap().permissions().mode();
            assert_eq!(written & 0o777, mode);
        }
        for other in [at("link"), at(".")] {
            let error = write("other", Some(&other)).unwrap_err();
            assert!(format!("{error:#}").contains("without --html"), "{error:#}");
        }
        assert!(at("link").is_symlink());
        assert_eq!(std::fs::read_to_string(at("old")).unwrap(), "text");
    }
}
