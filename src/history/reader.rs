//! Reads the history, on a separate connection. Every call may take as long as the disk; nothing is
//! written meanwhile, and records wait in the queue.

use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Params, Row, Transaction};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::store::{NOTED, connect};
use super::{file, schema};
use crate::model::path::shown;
use crate::model::{
    Bytes, Engine, ExtentCount, ImageKey, ImageRef, OutcomeKind, Point, RunRecord, Severity,
    Stalls, UnixTime,
};

/// How long a read waits for the writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the history cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("history {}: {error}", shown(path))]
pub struct ReadError {
    path: PathBuf,
    error: StoreError,
}

/// An image that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its row number.
    pub id: i64,
    /// Its permanent identity.
    pub key: ImageKey,
    /// Its last known path.
    pub path: PathBuf,
    /// When it was first seen.
    pub first_seen: UnixTime,
    /// Its last sample.
    pub last: Option<LastSample>,
}

/// The last sample of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastSample {
    /// Time and extents.
    pub point: Point,
    /// Length of the file.
    pub size: Bytes,
    /// Space on disk.
    pub allocated: Bytes,
}

/// A change of severity. Names are those of [`SeverityRow`](super::SeverityRow).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PastSeverity {
    /// Row number of the image.
    #[serde(skip)]
    pub image: i64,
    /// When it changed.
    pub at: UnixTime,
    /// The severity before.
    pub from: String,
    /// The severity after.
    pub to: String,
    /// Extents at that time.
    pub extents: ExtentCount,
    /// The threshold that was reached.
    pub reason: String,
}

/// A sample of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// When it was counted.
    pub at: UnixTime,
    /// The count.
    pub extents: ExtentCount,
    /// The largest count since the previous reading; equals `extents` unless samples were merged.
    pub peak: ExtentCount,
}

/// A read-only connection.
#[derive(Debug)]
pub struct HistoryReader {
    path: PathBuf,
    connection: Connection,
}

impl HistoryReader {
    /// Opens the database at `path`.
    ///
    /// # Errors
    /// If it does not exist, belongs to another program or version, or cannot be read.
    pub fn open(path: &Path) -> Result<HistoryReader, ReadError> {
        let opened = file::existing(path).and_then(|file| {
            // Not read-only: the next process after the death of a writer has to roll back.
            let connection = connect(&file, BUSY_TIMEOUT)?;
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
            Ok(connection) => Ok(HistoryReader { path, connection }),
            Err(error) => Err(ReadError { path, error }),
        }
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, ReadError> {
        let state = self.connection.unchecked_transaction();
        state
            .and_then(|state| read(&state))
            .map_err(|error| ReadError {
                path: self.path.clone(),
                error: error.into(),
            })
    }

    /// The rows of a query, in one transaction.
    fn rows<T, C: FromIterator<T>>(
        &self,
        sql: &str,
        values: impl Params,
        make: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<C, ReadError> {
        self.read(|state| state.prepare(sql)?.query_map(values, make)?.collect())
    }

    /// All recorded images, by path, with their last sample: that of the images table, unless a
    /// later sweep counted them.
    ///
    /// # Errors
    /// Those of SQLite, as for all methods.
    pub fn images(&self) -> Result<Vec<ImageInfo>, ReadError> {
        let sql = format!(
            "SELECT {IMAGE}, images.id, first_seen, coalesce(sweeps.at, last_seen),
                coalesce(last.extents, images.extents), coalesce(last.size, images.size),
                coalesce(last.allocated, images.allocated)
             FROM images
                 LEFT JOIN sweeps ON sweeps.id = (
                     SELECT later.id FROM sweeps AS later
                         CROSS JOIN counts ON counts.sweep = later.id AND counts.image = images.id
                     WHERE later.id > {NOTED} ORDER BY later.id DESC LIMIT 1)
                 LEFT JOIN counts AS last ON last.sweep = sweeps.id AND last.image = images.id
             ORDER BY path, images.id"
        );
        self.rows(&sql, (), |row| {
            let ImageRef { key, path } = image_ref(row)?;
            let (at, extents) = (UnixTime(row.get(7)?), row.get::<_, Option<i64>>(8)?);
            let last = |extents| -> rusqlite::Result<_> {
                let extents = ExtentCount(unsigned(extents));
                Ok(LastSample {
                    point: Point { at, extents },
                    size: Bytes(unsigned(row.get(9)?)),
                    allocated: Bytes(unsigned(row.get(10)?)),
                })
            };
            Ok(ImageInfo {
                id: row.get(5)?,
                key,
                path,
                first_seen: UnixTime(row.get(6)?),
                // An image that was never counted has none.
                last: extents.map(last).transpose()?,
            })
        })
    }

    /// The readings of an image since a time, oldest first, merged into up to `most` equal groups.
    pub fn readings(
        &self,
        image: i64,
        since: UnixTime,
        most: usize,
    ) -> Result<Vec<Reading>, ReadError> {
        // The cross join, as in the view, avoids reading all counts.
        const SELECT: &str = "SELECT at, extents, coalesce(peak, extents)
            FROM sweeps CROSS JOIN counts ON counts.sweep = sweeps.id AND counts.image = ?1
            WHERE at >= ?2 ORDER BY at, sweeps.id";
        let readings = self.rows(SELECT, [image, since.0], |row| {
            Ok(Reading {
                at: UnixTime(row.get(0)?),
                extents: ExtentCount(unsigned(row.get(1)?)),
                peak: ExtentCount(unsigned(row.get(2)?)),
            })
        })?;
        Ok(thin_evenly(readings, most))
    }

    /// Calls `visit` with the row number of the image and each count within `times`, in order of
    /// time: the counts of the last `most` sweeps and of up to `most` earlier ones, evenly chosen.
    pub fn each_count(
        &self,
        times: RangeInclusive<UnixTime>,
        most: usize,
        mut visit: impl FnMut(i64, Point),
    ) -> Result<(), ReadError> {
        self.read(|state| {
            let mut select = state
                .prepare("SELECT id, at FROM sweeps WHERE at BETWEEN ?1 AND ?2 ORDER BY at, id")?;
            let times = [times.start().0, times.end().0];
            let sweeps = select.query_map(times, |row| Ok((row.get(0)?, row.get(1)?)))?;
            let sweeps: Vec<(i64, i64)> = sweeps.collect::<Result<_, _>>()?;
            let (earlier, last) = sweeps.split_at(sweeps.len().saturating_sub(most));
            let mut select = state.prepare("SELECT image, extents FROM counts WHERE sweep = ?1")?;
            for (sweep, at) in evenly(earlier, most).chain(last) {
                let mut rows = select.query([sweep])?;
                while let Some(row) = rows.next()? {
                    let (at, extents) = (UnixTime(*at), ExtentCount(unsigned(row.get(1)?)));
                    visit(row.get(0)?, Point { at, extents });
                }
            }
            Ok(())
        })
    }

    /// Calls `visit` with the row number of the image and a count for each part of `times`, in order of
    /// time: those of the last sweep in every `step` seconds.
    pub fn count_each(
        &self,
        times: RangeInclusive<UnixTime>,
        step: i64,
        mut visit: impl FnMut(i64, Point),
    ) -> Result<(), ReadError> {
        const SELECT: &str = "SELECT image, at, extents
            FROM (SELECT max(id) AS id, at FROM sweeps WHERE at BETWEEN ?1 AND ?2 GROUP BY at / ?3) AS last
                CROSS JOIN counts ON counts.sweep = last.id
            ORDER BY at";
        self.read(|state| {
            let mut select = state.prepare(SELECT)?;
            let mut rows = select.query([times.start().0, times.end().0, step.max(1)])?;
            while let Some(row) = rows.next()? {
                let (at, extents) = (UnixTime(row.get(1)?), ExtentCount(unsigned(row.get(2)?)));
                visit(row.get(0)?, Point { at, extents });
            }
            Ok(())
        })
    }

    /// When the severity of each image last changed.
    pub fn last_changes(&self) -> Result<HashMap<i64, UnixTime>, ReadError> {
        const SELECT: &str = "SELECT image, at, max(id) FROM severities GROUP BY image";
        self.rows(SELECT, (), |row| Ok((row.get(0)?, UnixTime(row.get(1)?))))
    }

    /// When maps of an image were read since a time, oldest first, and their fragments.
    pub fn maps(&self, image: i64, since: UnixTime) -> Result<Vec<(UnixTime, u64)>, ReadError> {
        const SELECT: &str = "SELECT at, fragments FROM maps WHERE image = ?1 AND at >= ?2
            ORDER BY at";
        self.rows(SELECT, [image, since.0], |row| {
            Ok((UnixTime(row.get(0)?), unsigned(row.get(1)?)))
        })
    }

    /// The names and times of incidents since a time, oldest first.
    pub fn incidents(&self, since: UnixTime) -> Result<Vec<(String, UnixTime)>, ReadError> {
        const SELECT: &str = "SELECT name, at FROM incidents WHERE at >= ?1 ORDER BY at";
        self.rows(SELECT, [since.0], |row| {
            Ok((row.get(0)?, UnixTime(row.get(1)?)))
        })
    }

    /// The last `most` defragmentations, newest first, of one image or of all. Runs with an engine
    /// or outcome unknown to this version are left out.
    pub fn runs(&self, image: Option<i64>, most: u32) -> Result<Vec<RunRecord>, ReadError> {
        let select = format!(
            "SELECT {IMAGE}, at, seconds, engine, extents_before, extents_after, bytes, outcome,
                 reason, calls, worst_call_seconds, calls_seconds FROM runs JOIN images ON images.id = image"
        );
        let runs: Vec<_> = self.of_image(&select, "runs", image, most, |row| {
            let (engine, outcome): (String, String) = (row.get(7)?, row.get(11)?);
            let names = Engine::named(&engine).zip(OutcomeKind::named(&outcome));
            let Some((engine, outcome)) = names else {
                return Ok(None);
            };
            Ok(Some(RunRecord {
                image: image_ref(row)?,
                at: UnixTime(row.get(5)?),
                took: duration(row.get(6)?),
                engine,
                from: ExtentCount(unsigned(row.get(8)?)),
                to: ExtentCount(unsigned(row.get(9)?)),
                bytes: Bytes(unsigned(row.get(10)?)),
                outcome,
                reason: row.get(12)?,
                stalls: stalls(row)?,
            }))
        })?;
        Ok(runs.into_iter().flatten().collect())
    }

    /// The last `most` changes of severity, newest first, of one image or of all.
    pub fn severities(
        &self,
        image: Option<i64>,
        most: u32,
    ) -> Result<Vec<PastSeverity>, ReadError> {
        const SELECT: &str = "SELECT image, at, before, severity, extents, reason FROM severities";
        self.of_image(SELECT, "severities", image, most, |row| {
            Ok(PastSeverity {
                image: row.get(0)?,
                at: UnixTime(row.get(1)?),
                from: row.get(2)?,
                to: row.get(3)?,
                extents: ExtentCount(unsigned(row.get(4)?)),
                reason: row.get(5)?,
            })
        })
    }

    /// The severity recorded last for each image, regardless of the clock.
    pub fn last_severities(&self) -> Result<HashMap<i64, Severity>, ReadError> {
        const SELECT: &str = "SELECT image, severity, max(id) FROM severities GROUP BY image";
        self.rows(SELECT, (), |row| {
            Ok((
                row.get(0)?,
                Severity::named(&row.get::<_, String>(1)?).unwrap_or_default(),
            ))
        })
    }

    /// When the last incident ended, or began if its end is not recorded.
    pub fn last_incident(&self) -> Result<Option<UnixTime>, ReadError> {
        const SELECT: &str = "SELECT coalesce(ended, at) FROM incidents
            ORDER BY at DESC, name DESC LIMIT 1";
        let last: Vec<_> = self.rows(SELECT, (), |row| row.get(0).map(UnixTime))?;
        Ok(last.first().copied())
    }

    fn of_image<T>(
        &self,
        select: &str,
        table: &str,
        image: Option<i64>,
        most: u32,
        make: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, ReadError> {
        let filter = if image.is_some() {
            "image = ?1"
        } else {
            "?1 IS NULL"
        };
        let order = format!("ORDER BY at DESC, {table}.id DESC LIMIT ?2");
        self.rows(
            &format!("{select} WHERE {filter} {order}"),
            (image, most),
            make,
        )
    }
}

/// The columns that [`image_ref`] reads; to be the first ones.
const IMAGE: &str = "filesystem, inode, generation, path, path_bytes";

fn image_ref(row: &Row<'_>) -> rusqlite::Result<ImageRef> {
    let exact: Option<Vec<u8>> = row.get(4)?;
    let path = match exact {
        Some(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        None => PathBuf::from(row.get::<_, String>(3)?),
    };
    let key = ImageKey {
        filesystem: row.get(0)?,
        inode: row.get::<_, i64>(1)?.cast_unsigned(),
        generation: row.get(2)?,
    };
    Ok(ImageRef { key, path })
}

/// The last columns of a run.
fn stalls(row: &Row<'_>) -> rusqlite::Result<Option<Stalls>> {
    let Some(calls) = row.get(13)? else {
        return Ok(None);
    };
    Ok(Some(Stalls {
        calls: unsigned(calls),
        longest: duration(row.get(14)?),
        total: duration(row.get(15)?),
    }))
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The last item of each of `most` equal groups; all items if there are no more than `most`.
fn evenly<T>(all: &[T], most: usize) -> impl Iterator<Item = &T> {
    let shares = all.len().min(most);
    (1..=shares).filter_map(move |n| all.get(n * all.len() / shares - 1))
}

/// At most `most` readings: the last one and the peak of each of `most` equal groups.
fn thin_evenly(readings: Vec<Reading>, most: usize) -> Vec<Reading> {
    if readings.len() <= most || most == 0 {
        return readings;
    }
    let share = |n: usize| n * readings.len() / most;
    let merged = |n: usize| {
        let share = readings.get(share(n)..share(n + 1))?;
        let peak = share.iter().map(|reading| reading.peak).max()?;
        Some(Reading {
            peak,
            ..*share.last()?
        })
    };
    (0..most).filter_map(merged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_even_choice_is_short_and_keeps_the_ends_and_the_peak(
            counts in prop::collection::vec(0..1000_u64, 0..300), most in 1..50_usize,
        ) {
            let readings: Vec<_> = counts.iter().zip(0..).map(|(n, at)| {
                let extents = ExtentCount(*n);
                Reading { at: UnixTime(at), extents, peak: extents }
            }).collect();
            let thin = thin_evenly(readings.clone(), most);
            prop_assert_eq!(thin.len(), readings.len().min(most));
            prop_assert_eq!(thin.last().map(|r| (r.at, r.extents)), readings.last().map(|r| (r.at, r.extents)));
            let peak = |readings: &[Reading]| readings.iter().map(|r| r.peak).max();
            prop_assert_eq!(peak(&thin), peak(&readings));
            let chosen: Vec<_> = evenly(&readings, most).map(|r| r.at).collect();
            prop_assert_eq!(chosen, thin.iter().map(|r| r.at).collect::<Vec<_>>());
        }
    }
}
