//! Reads the history, on a connection of its own.
//!
//! Every call may take as long as the disk does: a daemon calls this where it may wait. While it
//! lasts nothing is written; records wait in their queue.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, params};

use super::pack::{self, Reading};
use super::store::{StoreError, bytes, read_row, stored};
use super::{file, schema};
use crate::model::path::shown;
use crate::model::{
    Bytes, Engine, ExtentCount, ImageKey, ImageRef, OutcomeKind, Point, RunRecord, Severity,
    UnixTime,
};

/// How long a read waits for the writer.
const PATIENCE: Duration = Duration::from_secs(10);
/// From all time on.
const EVER: UnixTime = UnixTime(i64::MIN);
/// Until the end of all time.
const END: UnixTime = UnixTime(i64::MAX);

/// Why the history cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("history {}: {error}", shown(path))]
pub struct ReadError {
    /// The database.
    path: PathBuf,
    /// What is wrong.
    error: StoreError,
}

/// An image that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its number in this database.
    pub id: i64,
    /// Who it is for good.
    pub key: ImageKey,
    /// Where it was last seen.
    pub path: PathBuf,
    /// What it is, if that is known: [`Format::name`](crate::model::Format::name).
    pub format: Option<String>,
    /// When it was seen for the first time.
    pub first_seen: UnixTime,
    /// When it was counted for the last time, and what was found.
    pub last: Option<LastSample>,
}

/// The last sample of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastSample {
    /// The count.
    pub point: Point,
    /// Its length as a file.
    pub size: Bytes,
    /// What it occupied on disk.
    pub allocated: Bytes,
}

/// A change of severity. Names are those of [`SeverityRow`](super::SeverityRow).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastSeverity {
    pub image: i64,
    pub at: UnixTime,
    pub from: String,
    pub to: String,
    pub extents: ExtentCount,
    pub reason: String,
}

/// An incident. Names are those of [`IncidentRow`](super::IncidentRow).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastIncident {
    pub name: String,
    pub at: UnixTime,
    pub ended: Option<UnixTime>,
    pub trigger: Option<String>,
    pub actions: u32,
    pub outcome: Option<String>,
    pub freed: Bytes,
}

/// An extent map that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastMap {
    /// When.
    pub at: UnixTime,
    /// Its extents.
    pub extents: ExtentCount,
    /// Physically contiguous runs.
    pub fragments: u64,
    /// Gaps in the file.
    pub holes: u64,
    /// The longest extent.
    pub longest: Bytes,
}

/// A connection that only reads.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: Connection,
}

impl Reader {
    /// Opens the database at `path`.
    ///
    /// # Errors
    /// If there is none, it is not ours, or it cannot be read.
    pub fn open(path: &Path) -> Result<Reader, ReadError> {
        let opened = file::existing(path).and_then(|file| {
            // Not read-only: after the death of a writer, whoever comes first has to undo what it
            // had not finished.
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_NOFOLLOW;
            let connection = Connection::open_with_flags(file, flags)?;
            connection.busy_timeout(PATIENCE)?;
            connection.pragma_update(None, "query_only", true)?;
            match schema::check(&connection, schema::current())? {
                number if number == schema::current() => Ok(connection),
                0 => Err(StoreError::Refused("nothing was recorded yet".to_owned())),
                _ => Err(StoreError::Refused(
                    "is from an older fragwatch; its daemon brings it up to date when it starts"
                        .to_owned(),
                )),
            }
        });
        let path = path.to_owned();
        match opened {
            Ok(connection) => Ok(Reader { path, connection }),
            Err(error) => Err(ReadError { path, error }),
        }
    }

    /// Runs `read` on one state of the database.
    fn read<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, ReadError> {
        let result = self
            .connection
            .unchecked_transaction()
            .and_then(|state| read(&state));
        result.map_err(|error| ReadError {
            path: self.path.clone(),
            error: error.into(),
        })
    }

    /// All images that there is something of, by their paths.
    ///
    /// # Errors
    /// Those of SQLite, as for all that reads.
    pub fn images(&self) -> Result<Vec<ImageInfo>, ReadError> {
        self.read(|state| {
            let mut images = select_images(state, "ORDER BY path, id", params![])?;
            let mut last = state.prepare(
                "SELECT image, at, extents, size, allocated, max(sweep)
                 FROM recent JOIN sweeps ON sweeps.id = recent.sweep GROUP BY image",
            )?;
            let mut recent = HashMap::new();
            let mut rows = last.query([])?;
            while let Some(row) = rows.next()? {
                recent.insert(row.get::<_, i64>(0)?, last_sample(row, 1)?);
            }
            for image in &mut images {
                image.last = recent.get(&image.id).copied().flatten().or(image.last);
            }
            Ok(images)
        })
    }

    /// The image with this key.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn image(&self, key: &ImageKey) -> Result<Option<ImageInfo>, ReadError> {
        let clause = "WHERE filesystem = ?1 AND inode = ?2 AND generation = ?3";
        self.read(|state| {
            let key = params![key.filesystem, key.inode.cast_signed(), key.generation];
            with_last(state, select_images(state, clause, key)?)
        })
    }

    /// The image that was last seen at a path. Of several, which followed one another there, the
    /// newest.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn image_at(&self, path: &Path) -> Result<Option<ImageInfo>, ReadError> {
        let (text, bytes) = stored(path);
        let clause =
            "WHERE path = ?1 AND path_bytes IS ?2 ORDER BY last_seen DESC, id DESC LIMIT 1";
        self.read(|state| with_last(state, select_images(state, clause, params![text, bytes])?))
    }

    /// What is known of an image from `since` on, in the order of time; at most `most` readings,
    /// evenly chosen.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn readings(
        &self,
        image: i64,
        since: UnixTime,
        most: usize,
    ) -> Result<Vec<Reading>, ReadError> {
        self.read(|state| Source::new(state, since..=END)?.readings(image, most))
    }

    /// The same of all images in a time, one after another: the start of a daemon. Holds the readings
    /// of no more than one image in memory.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn each_image_between(
        &self,
        times: RangeInclusive<UnixTime>,
        most: usize,
        mut visit: impl FnMut(&ImageInfo, Vec<Reading>),
    ) -> Result<(), ReadError> {
        self.read(|state| {
            let mut source = Source::new(state, times)?;
            for image in select_images(state, "ORDER BY id", params![])? {
                let readings = source.readings(image.id, most)?;
                if !readings.is_empty() {
                    visit(&image, readings);
                }
            }
            Ok(())
        })
    }

    /// The last `most` defragmentations, newest first, of one image or of all. Left out are those
    /// whose engine or outcome this version does not have.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn runs(&self, image: Option<i64>, most: u32) -> Result<Vec<RunRecord>, ReadError> {
        const SELECT: &str = "SELECT image, at, seconds, engine, extents_before, extents_after,
            bytes, outcome, reason FROM runs";
        let clause = "WHERE ?1 IS NULL OR id = ?1";
        let images = self.read(|state| select_images(state, clause, params![image]))?;
        let images: HashMap<i64, ImageRef> = images
            .into_iter()
            .map(|ImageInfo { id, key, path, .. }| (id, ImageRef { key, path }))
            .collect();
        let runs = self.of_image(SELECT, image, EVER, most, |row| {
            let (image, seconds): (i64, f64) = (row.get(0)?, row.get(2)?);
            let (engine, outcome): (String, String) = (row.get(3)?, row.get(7)?);
            let names = Engine::named(&engine).zip(OutcomeKind::named(&outcome));
            let Some((image, (engine, outcome))) = images.get(&image).cloned().zip(names) else {
                return Ok(None);
            };
            Ok(Some(RunRecord {
                image,
                at: UnixTime(row.get(1)?),
                took: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
                engine,
                from: extents(row.get(4)?),
                to: extents(row.get(5)?),
                bytes: bytes(row.get(6)?),
                outcome,
                reason: row.get(8)?,
            }))
        })?;
        Ok(runs.into_iter().flatten().collect())
    }

    /// The last `most` changes of severity, newest first, of one image or of all.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn severities(
        &self,
        image: Option<i64>,
        most: u32,
    ) -> Result<Vec<PastSeverity>, ReadError> {
        const SELECT: &str = "SELECT image, at, before, severity, extents, reason FROM severities";
        self.of_image(SELECT, image, EVER, most, |row| {
            Ok(PastSeverity {
                image: row.get(0)?,
                at: UnixTime(row.get(1)?),
                from: row.get(2)?,
                to: row.get(3)?,
                extents: extents(row.get(4)?),
                reason: row.get(5)?,
            })
        })
    }

    /// The severity that was recorded last of each image of which one was: by the order in which they
    /// were recorded, whatever the clock was then.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn last_severities(&self) -> Result<HashMap<i64, Severity>, ReadError> {
        self.read(|state| {
            let mut select =
                state.prepare("SELECT image, severity, max(id) FROM severities GROUP BY image")?;
            let severity = |row: &rusqlite::Row<'_>| {
                let name: String = row.get(1)?;
                Ok((row.get(0)?, Severity::named(&name)))
            };
            select.query_map([], severity)?.collect()
        })
    }

    /// The extent maps of an image since then, newest first, `most` of them.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn maps(&self, image: i64, since: UnixTime, most: u32) -> Result<Vec<PastMap>, ReadError> {
        const SELECT: &str = "SELECT at, extents, fragments, holes, longest FROM maps";
        self.of_image(SELECT, Some(image), since, most, |row| {
            Ok(PastMap {
                at: UnixTime(row.get(0)?),
                extents: extents(row.get(1)?),
                fragments: bytes(row.get(2)?).0,
                holes: bytes(row.get(3)?).0,
                longest: bytes(row.get(4)?),
            })
        })
    }

    /// The last `most` incidents, newest first.
    ///
    /// # Errors
    /// See [`Reader::images`].
    pub fn incidents(&self, most: u32) -> Result<Vec<PastIncident>, ReadError> {
        self.read(|state| {
            let mut select = state.prepare(
                "SELECT name, at, ended, cause, actions, outcome, freed FROM incidents
                 ORDER BY at DESC, name DESC LIMIT ?1",
            )?;
            let rows = select.query_map([most], |row| {
                Ok(PastIncident {
                    name: row.get(0)?,
                    at: UnixTime(row.get(1)?),
                    ended: row.get::<_, Option<i64>>(2)?.map(UnixTime),
                    trigger: row.get(3)?,
                    actions: row.get(4)?,
                    outcome: row.get(5)?,
                    freed: bytes(row.get(6)?),
                })
            })?;
            rows.collect()
        })
    }

    fn of_image<T>(
        &self,
        select: &str,
        image: Option<i64>,
        since: UnixTime,
        most: u32,
        make: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, ReadError> {
        // So written that an index is used in either case.
        let which = if image.is_some() {
            "image = ?1"
        } else {
            "?1 IS NULL"
        };
        let sql =
            format!("{select} WHERE {which} AND at >= ?2 ORDER BY at DESC, rowid DESC LIMIT ?3");
        self.read(|state| {
            let mut select = state.prepare(&sql)?;
            select
                .query_map(params![image, since.0, most], make)?
                .collect()
        })
    }
}

fn extents(number: i64) -> ExtentCount {
    ExtentCount(u64::try_from(number).unwrap_or(0))
}

fn select_images(
    state: &Transaction<'_>,
    clause: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<Vec<ImageInfo>> {
    let sql = format!(
        "SELECT last_seen, extents, size, allocated, id, filesystem, inode, generation, path,
                path_bytes, format, first_seen
         FROM images {clause}"
    );
    let mut select = state.prepare(&sql)?;
    let rows = select.query_map(values, |row| {
        let exact: Option<Vec<u8>> = row.get(9)?;
        let path = match exact {
            Some(bytes) => PathBuf::from(OsStr::from_bytes(&bytes)),
            None => PathBuf::from(row.get::<_, String>(8)?),
        };
        let key = ImageKey {
            filesystem: row.get(5)?,
            inode: row.get::<_, i64>(6)?.cast_unsigned(),
            generation: row.get(7)?,
        };
        Ok(ImageInfo {
            id: row.get(4)?,
            key,
            path,
            format: row.get(10)?,
            first_seen: UnixTime(row.get(11)?),
            last: last_sample(row, 0)?,
        })
    })?;
    rows.collect()
}

/// From four columns, the time first; nothing if it was never counted.
fn last_sample(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Option<LastSample>> {
    let at = UnixTime(row.get(first)?);
    let Some(count) = row.get(first + 1)? else {
        return Ok(None);
    };
    Ok(Some(LastSample {
        point: Point {
            at,
            extents: extents(count),
        },
        size: bytes(row.get(first + 2)?),
        allocated: bytes(row.get(first + 3)?),
    }))
}

/// The only one of these images, with its last sample even if that is not packed yet.
fn with_last(
    state: &Transaction<'_>,
    images: Vec<ImageInfo>,
) -> rusqlite::Result<Option<ImageInfo>> {
    let Some(mut image) = images.into_iter().next() else {
        return Ok(None);
    };
    let last = "SELECT at, extents, size, allocated
        FROM sweeps JOIN recent ON recent.sweep = sweeps.id AND recent.image = ?1
        ORDER BY sweeps.id DESC LIMIT 1";
    let recent = state
        .query_row(last, [image.id], |row| last_sample(row, 0))
        .optional()?;
    image.last = recent.flatten().or(image.last);
    Ok(Some(image))
}

/// Where the readings of images come from, one image after another.
struct Source<'s> {
    wanted: RangeInclusive<UnixTime>,
    /// Blocks that reach beyond its begin, in the order of their recording, and their times.
    blocks: Vec<(i64, Vec<UnixTime>)>,
    sweeps: Vec<(i64, UnixTime)>,
    packed: rusqlite::Statement<'s>,
    recent: rusqlite::Statement<'s>,
}

impl<'s> Source<'s> {
    fn new(
        state: &'s Transaction<'_>,
        wanted: RangeInclusive<UnixTime>,
    ) -> rusqlite::Result<Source<'s>> {
        let since = *wanted.start();
        let mut select =
            state.prepare("SELECT id, times FROM blocks WHERE last_at >= ?1 ORDER BY id")?;
        let blocks = select.query_map([since.0], |row| {
            Ok((row.get(0)?, pack::unpack_times(&row.get::<_, String>(1)?)))
        })?;
        let blocks = blocks.collect::<Result<_, _>>()?;
        let mut select = state.prepare("SELECT id, at FROM sweeps WHERE at >= ?1 ORDER BY id")?;
        let sweeps = select.query_map([since.0], |row| Ok((row.get(0)?, UnixTime(row.get(1)?))))?;
        let sweeps = sweeps.collect::<Result<_, _>>()?;
        Ok(Source {
            wanted,
            blocks,
            sweeps,
            packed: state.prepare(
                "SELECT base, extents, peaks FROM packed WHERE block = ?1 AND image = ?2",
            )?,
            recent: state.prepare("SELECT extents FROM recent WHERE sweep = ?1 AND image = ?2")?,
        })
    }

    fn readings(&mut self, image: i64, most: usize) -> rusqlite::Result<Vec<Reading>> {
        let mut readings = Vec::new();
        for (block, times) in &self.blocks {
            let row = self
                .packed
                .query_row([*block, image], |row| read_row(row, 0))
                .optional()?;
            readings.extend(row.iter().flat_map(|row| row.unpack(times)));
        }
        for (sweep, at) in &self.sweeps {
            let count = self
                .recent
                .query_row([*sweep, image], |row| row.get(0))
                .optional()?;
            readings.extend(count.map(|count| Reading::sampled(*at, extents(count))));
        }
        readings.retain(|reading| self.wanted.contains(&reading.point.at));
        // What was recorded first stays first if the clock stood still.
        readings.sort_by_key(|reading| reading.point.at);
        Ok(pack::thin_evenly(readings, most))
    }
}
