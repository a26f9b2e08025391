//! What `fragwatch history` is told of one image, as JSON. Keys are only ever added.
//!
//! Reads the database, so it may wait for a disk; only [`control`](super::control) calls it, where
//! that hurts nobody.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::history::{ImageInfo, ReadError, Reader};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, UnixTime};

use super::status::SCHEMA;

/// Readings that are told at most; more than any terminal has columns.
const MOST_READINGS: usize = 2000;
/// Runs and changes of severity that are told at most.
const MOST_EVENTS: u32 = 100;

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    /// The path of an image as it is shown, or the end of it from a slash on, if that is the end of
    /// one image only.
    pub image: String,
    /// Nothing from before is wanted, in seconds since 1970.
    pub since: UnixTime,
}

/// What is known of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Past {
    /// The version of this form.
    pub schema: u32,
    /// Its path, on one line.
    pub path: String,
    /// The name of the VM that has it open now.
    pub vm: Option<String>,
    /// Its file system's UUID, or what stands for it.
    pub filesystem: String,
    /// Its inode.
    pub inode: u64,
    /// When it was seen for the first time.
    pub first_seen: UnixTime,
    /// Its length and what it occupies, when it was counted last.
    pub size_bytes: Option<Bytes>,
    /// See there.
    pub allocated_bytes: Option<Bytes>,
    /// Its counts, oldest first.
    pub readings: Vec<Reading>,
    /// Its defragmentations, newest first.
    pub runs: Vec<Run>,
    /// Changes of its severity, newest first.
    pub severities: Vec<Change>,
}

/// A count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// When.
    pub at: UnixTime,
    /// How many.
    pub extents: ExtentCount,
    /// The most since the reading before.
    pub peak: ExtentCount,
}

/// A defragmentation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// When it began.
    pub at: UnixTime,
    /// How long it took.
    pub seconds: f64,
    /// What did it.
    pub engine: String,
    /// Extents before.
    pub from: ExtentCount,
    /// Extents after.
    pub to: ExtentCount,
    /// How it came out.
    pub outcome: String,
    /// Why, for a person.
    pub reason: String,
}

/// A change of severity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// When.
    pub at: UnixTime,
    /// How bad it was before.
    pub from: String,
    /// How bad it was from then on.
    pub to: String,
    /// Its extents then.
    pub extents: ExtentCount,
    /// Which threshold decided.
    pub reason: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// The database cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// No image is called so.
    #[error(
        "the history knows no image {0}; `fragwatch status` lists the worst, `fragwatch scan` all"
    )]
    Unknown(String),
    /// Several are.
    #[error("several images are called {name}: {}", paths.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What they are called in full.
        paths: Vec<String>,
    },
}

/// Reads what is asked from the database, which knows of no VMs.
///
/// # Errors
/// If it cannot be read, or knows no such image, or several.
pub fn read(database: &Path, asked: &Question) -> Result<Past, PastError> {
    let reader = Reader::open(database)?;
    let image = find(reader.images()?, &asked.image)?;
    let readings = reader.readings(image.id, asked.since, MOST_READINGS)?;
    let runs = reader.runs(Some(image.id), MOST_EVENTS)?;
    let severities = reader.severities(Some(image.id), MOST_EVENTS)?;
    Ok(Past {
        schema: SCHEMA,
        path: shown(&image.path),
        vm: None,
        filesystem: image.key.filesystem,
        inode: image.key.inode,
        first_seen: image.first_seen,
        size_bytes: image.last.map(|last| last.size),
        allocated_bytes: image.last.map(|last| last.allocated),
        readings: readings
            .into_iter()
            .map(|reading| Reading {
                at: reading.point.at,
                extents: reading.point.extents,
                peak: reading.peak,
            })
            .collect(),
        runs: runs
            .into_iter()
            .filter(|run| run.at >= asked.since)
            .map(|run| Run {
                at: run.at,
                seconds: run.took.as_secs_f64(),
                engine: run.engine.as_str().to_owned(),
                from: run.from,
                to: run.to,
                outcome: run.outcome.as_str().to_owned(),
                reason: run.reason,
            })
            .collect(),
        severities: severities
            .into_iter()
            .filter(|change| change.at >= asked.since)
            .map(|change| Change {
                at: change.at,
                from: change.from,
                to: change.to,
                extents: change.extents,
                reason: change.reason,
            })
            .collect(),
    })
}

/// The image of that path, or of that end of a path. Of several that followed one another at a
/// path, the one that was counted last.
fn find(images: Vec<ImageInfo>, name: &str) -> Result<ImageInfo, PastError> {
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
        (_, None) => Err(PastError::Unknown(name.to_owned())),
        _ => Err(PastError::Ambiguous {
            name: name.to_owned(),
            paths: paths.iter().map(|path| shown(path)).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::reader::LastSample;
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
            format: None,
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
        assert!(matches!(found("db.img"), Err(PastError::Ambiguous { .. })));
        assert!(matches!(found("eb.img"), Err(PastError::Unknown(_))));
        assert!(matches!(found("/db.img"), Err(PastError::Unknown(_))));
    }
}
