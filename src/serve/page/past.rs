//! What the pages and the report read from the history and the incident files. Every call may take
//! as long as the disk.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::rows::Week;
use crate::history::{HistoryReader, ImageInfo, PastSeverity, ReadError, Reading};
use crate::incident::archive;
use crate::incident::format::Incident;
use crate::model::{ImageKey, Point, RunRecord, UnixTime};

const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// One point of a sparkline, in seconds.
const STEP: i64 = 6 * 3600;
/// As many as a chart has columns.
const MOST_READINGS: usize = 800;
const MOST_EVENTS: u32 = 200;
/// Incidents that are listed.
const MOST_INCIDENTS: usize = 50;

/// The last week of every image.
pub fn weeks(reader: &HistoryReader, now: UnixTime) -> Result<HashMap<ImageKey, Week>, ReadError> {
    let mut changes = reader.last_changes()?;
    let mut points: HashMap<i64, Vec<Point>> = HashMap::new();
    reader.count_each(now.before(WEEK)..=now, STEP, |image, point| {
        points.entry(image).or_default().push(point);
    })?;
    let weeks = reader.images()?.into_iter().map(|image| {
        let week = Week {
            since: changes.remove(&image.id),
            points: points.remove(&image.id).unwrap_or_default(),
        };
        (image.key, week)
    });
    Ok(weeks.collect())
}

/// What is recorded of an image.
#[derive(Debug)]
pub struct ImagePast {
    pub image: ImageInfo,
    /// Oldest first.
    pub readings: Vec<Reading>,
    /// Newest first, as the next ones.
    pub runs: Vec<RunRecord>,
    pub severities: Vec<PastSeverity>,
    /// The last change of severity, also if it was before that time.
    pub last_change: Option<PastSeverity>,
    /// When its map was read, and the fragments then.
    pub maps: Vec<(UnixTime, u64)>,
    /// Those of the host.
    pub incidents: Vec<(String, UnixTime)>,
}

/// The past of an image since a time.
pub fn image(
    reader: &HistoryReader,
    image: ImageInfo,
    since: UnixTime,
) -> Result<ImagePast, ReadError> {
    let id = image.id;
    let mut runs = reader.runs(Some(id), MOST_EVENTS)?;
    runs.retain(|run| run.at >= since);
    let mut severities = reader.severities(Some(id), MOST_EVENTS)?;
    let last_change = severities.first().cloned();
    severities.retain(|change| change.at >= since);
    Ok(ImagePast {
        readings: reader.readings(id, since, MOST_READINGS)?,
        maps: reader.maps(id, since)?,
        incidents: reader.incidents(since)?,
        image,
        runs,
        severities,
        last_change,
    })
}

/// The image with this identity; `None` if nothing is recorded of it.
pub fn find(reader: &HistoryReader, key: &ImageKey) -> Result<Option<ImageInfo>, ReadError> {
    let mut images = reader.images()?.into_iter();
    Ok(images.find(|image| image.key == *key))
}

/// The last runs of all images since a time, newest first.
pub fn runs(reader: &HistoryReader, since: UnixTime) -> Result<Vec<RunRecord>, ReadError> {
    let mut runs = reader.runs(None, MOST_EVENTS)?;
    runs.retain(|run| run.at >= since);
    Ok(runs)
}

/// The newest incidents, without their evidence, and what could not be read. A missing directory
/// holds none.
pub fn incidents(directory: &Path) -> (Vec<Incident>, Vec<String>) {
    let files = match archive::list(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return (Vec::new(), vec![format!("the incident files: {error}")]);
        }
        files => files.unwrap_or_default(),
    };
    let (mut incidents, mut errors) = (Vec::new(), Vec::new());
    for file in files.iter().take(MOST_INCIDENTS) {
        match read_incident(file) {
            Ok(incident) => incidents.push(Incident {
                evidence: Vec::new(),
                ..incident
            }),
            Err(error) => errors.push(error),
        }
    }
    (incidents, errors)
}

/// The incident with this name; `None` if there is no such file.
pub fn incident(directory: &Path, id: &str) -> Result<Option<Incident>, String> {
    let files = match archive::list(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        files => files.map_err(|error| error.to_string())?,
    };
    // Only a name that is in the list: the text comes from outside.
    let file = files
        .iter()
        .find(|file| file.file_stem().is_some_and(|name| name == id));
    file.map(|file| read_incident(file)).transpose()
}

fn read_incident(file: &Path) -> Result<Incident, String> {
    let read =
        || -> std::io::Result<Incident> { Ok(serde_json::from_slice(&archive::read(file)?)?) };
    read().map_err(|error| format!("{}: {error}", crate::model::path::shown(file)))
}
