//! The answer to `fragwatch history`, as JSON. Keys are only ever added. Reads the database, so it
//! may wait for a disk; called only by [`control`](super::control), on a thread that may wait.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::history::{HistoryReader, ImageInfo, PastSeverity, ReadError, Reading};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, RunRecord, Stalls, UnixTime};

use super::status::SCHEMA;

const MOST_READINGS: usize = 2000;
const MOST_EVENTS: u32 = 100;

/// The query.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// The displayed path of an image, or a unique end of it that follows a slash.
    pub image: String,
    /// The earliest time, in seconds since 1970.
    pub since: UnixTime,
}

/// The history of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryResponse {
    /// The version of this format.
    pub schema: u32,
    /// On one line.
    pub path: String,
    /// The name of the VM that has the image open now.
    pub vm: Option<String>,
    /// The UUID of the file system, or its substitute.
    pub filesystem: String,
    /// Inode number.
    pub inode: u64,
    /// When it was first counted.
    pub first_seen: UnixTime,
    /// At the last count, as the next one.
    pub size_bytes: Option<Bytes>,
    /// Space on disk.
    pub allocated_bytes: Option<Bytes>,
    /// Oldest first.
    pub readings: Vec<Reading>,
    /// Newest first, as the next ones.
    pub runs: Vec<Run>,
    /// Changes of severity.
    pub severities: Vec<PastSeverity>,
}

/// A defragmentation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// When it began.
    pub at: UnixTime,
    /// How long it took.
    pub seconds: f64,
    /// The engine.
    pub engine: String,
    /// Extents before and after.
    pub from: ExtentCount,
    pub to: ExtentCount,
    /// The outcome in one word.
    pub outcome: String,
    /// The reason for the outcome, as text.
    pub reason: String,
    /// What its guest may have waited for; its keys are missing if that is unknown.
    #[serde(flatten)]
    pub stalls: Option<Stalls>,
}

/// Why the query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    #[error(
        "the history has no image {0}; `fragwatch status` lists the worst, `fragwatch scan` all"
    )]
    Unknown(String),
    #[error("several images are called {name}: {}", paths.join(", "))]
    Ambiguous { name: String, paths: Vec<String> },
}

/// Answers a query from the database, which has no VMs.
pub fn read(database: &Path, query: &HistoryQuery) -> Result<HistoryResponse, HistoryError> {
    let reader = HistoryReader::open(database)?;
    let image = find(reader.images()?, &query.image)?;
    let readings = reader.readings(image.id, query.since, MOST_READINGS)?;
    let mut runs = reader.runs(Some(image.id), MOST_EVENTS)?;
    runs.retain(|run| run.at >= query.since);
    let mut severities = reader.severities(Some(image.id), MOST_EVENTS)?;
    severities.retain(|change| change.at >= query.since);
    Ok(HistoryResponse {
        schema: SCHEMA,
        path: shown(&image.path),
        vm: None,
        filesystem: image.key.filesystem,
        inode: image.key.inode,
        first_seen: image.first_seen,
        size_bytes: image.last.map(|last| last.size),
        allocated_bytes: image.last.map(|last| last.allocated),
        readings,
        runs: runs.into_iter().map(Run::from).collect(),
        severities,
    })
}

impl From<RunRecord> for Run {
    fn from(run: RunRecord) -> Run {
        Run {
            at: run.at,
            seconds: run.took.as_secs_f64(),
            engine: run.engine.as_str().to_owned(),
            from: run.from,
            to: run.to,
            outcome: run.outcome.as_str().to_owned(),
            reason: run.reason,
            stalls: run.stalls,
        }
    }
}

/// The image with that path or end of a path; of several in succession, the one counted last.
fn find(images: Vec<ImageInfo>, name: &str) -> Result<ImageInfo, HistoryError> {
    let end = format!("/{}", name.trim_start_matches('/'));
    let matches = |image: &ImageInfo| {
        let path = shown(&image.path);
        path == name || (!name.starts_with('/') && path.ends_with(&end))
    };
    let mut found: Vec<_> = images.into_iter().filter(matches).collect();
    found.sort_by_key(|image| image.last.map(|last| last.point.at));
    let mut paths: Vec<PathBuf> = found.iter().map(|image| image.path.clone()).collect();
    paths.sort_unstable();
    paths.dedup();
    match (paths.len(), found.pop()) {
        (1, Some(image)) => Ok(image),
        (_, None) => Err(HistoryError::Unknown(name.to_owned())),
        _ => Err(HistoryError::Ambiguous {
            name: name.to_owned(),
            paths: paths.iter().map(|path| shown(path)).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::LastSample;
    use crate::model::{ImageKey, Point};

    fn image(id: i64, path: &str, counted: i64) -> ImageInfo {
        ImageInfo {
            id,
            key: ImageKey {
                filesystem: "uuid".to_owned(),
                inode: 7,
                generation: 0,
            },
            path: PathBuf::from(path),
            first_seen: UnixTime(0),
            last: Some(LastSample {
                point: Point {
                    at: UnixTime(counted),
                    extents: ExtentCount(1),
                },
                size: Bytes(0),
                allocated: Bytes(0),
            }),
        }
    }

    #[test]
    fn an_image_is_found_by_its_path_or_the_end_of_it() {
        let images = || {
            vec![
                image(1, "/srv/a/db.img", 5),
                image(2, "/srv/b/db.img", 5),
                image(3, "/srv/a/web.img", 5),
                // Followed by another in its place.
                image(4, "/srv/a/web.img", 9),
            ]
        };
        let found = |name| find(images(), name).map(|image| image.id);
        assert_eq!(found("/srv/a/db.img").unwrap(), 1);
        assert_eq!(found("b/db.img").unwrap(), 2);
        assert_eq!(found("web.img").unwrap(), 4);
        assert!(matches!(
            found("db.img"),
            Err(HistoryError::Ambiguous { .. })
        ));
        assert!(matches!(found("eb.img"), Err(HistoryError::Unknown(_))));
        assert!(matches!(found("/db.img"), Err(HistoryError::Unknown(_))));
    }
}
