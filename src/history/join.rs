//! Joins the rows of an image that was recorded under two identities.
//!
//! fragwatch 0.1.0 put a substitute in the place of what it could not read: type and mount point for
//! the UUID of the file system, which could be those of another one while an image was mounted
//! ([`lasting_name`](crate::model::filesystem::lasting_name)), and 0 for the generation. A kernel that
//! is the first to give a UUID splits rows in the same way. It happens in the
//! transaction in which the image is recorded: all of it or nothing.

use rusqlite::{Transaction, params};

use super::pack::{self, Row};
use super::store::read_row;

/// Substitutes for an image that is there at its path (?1 is its row): the same inode there, and
/// - the same generation, on a file system that was named by its mount point. The generation is drawn
///   at random for a new inode, so it is the same file.
/// - or no generation, recorded later than the image was for the first time: before and after it its
///   inode had the same generation, so in between it was no other file's.
const SUBSTITUTES: &str = "SELECT other.id FROM images AS its JOIN images AS other
        ON other.path = its.path AND other.path_bytes IS its.path_bytes AND other.inode = its.inode
    WHERE its.id = ?1 AND its.generation <> 0 AND other.id <> its.id
      AND ((other.generation = its.generation AND other.filesystem LIKE '%:%')
        OR (other.generation = 0 AND other.id > its.id
            AND (other.filesystem = its.filesystem OR other.filesystem LIKE '%:%')))";

/// Gives what was recorded under substitutes to the image of this row, which was met at its path.
/// Returns the rows that are no more.
pub(super) fn join(transaction: &Transaction<'_>, image: i64) -> rusqlite::Result<Vec<i64>> {
    let substitutes = {
        let mut select = transaction.prepare(SUBSTITUTES)?;
        let rows = select.query_map([image], |row| row.get(0))?;
        rows.collect::<Result<Vec<i64>, _>>()?
    };
    for substitute in &substitutes {
        merge(transaction, *substitute, image)?;
    }
    Ok(substitutes)
}

/// Gives all that was recorded of the image `from` to the image `to`.
fn merge(transaction: &Transaction<'_>, from: i64, to: i64) -> rusqlite::Result<()> {
    for table in ["maps", "runs", "severities"] {
        let give = format!("UPDATE {table} SET image = ?2 WHERE image = ?1");
        transaction.execute(&give, [from, to])?;
    }
    // In one sweep only one of them can have been counted.
    transaction.execute(
        "UPDATE OR IGNORE recent SET image = ?2 WHERE image = ?1",
        [from, to],
    )?;
    transaction.execute("DELETE FROM recent WHERE image = ?1", [from])?;
    merge_packed(transaction, from, to)?;
    transaction.execute(
        "UPDATE images SET first_seen = min(first_seen, (SELECT first_seen FROM images WHERE id = ?1))
         WHERE id = ?2",
        [from, to],
    )?;
    transaction.execute("DELETE FROM images WHERE id = ?1", [from])?;
    Ok(())
}

/// In blocks in which both were counted, in different sweeps, the two rows become one.
fn merge_packed(transaction: &Transaction<'_>, from: i64, to: i64) -> rusqlite::Result<()> {
    let both = {
        let mut select = transaction.prepare(
            "SELECT mine.base, mine.extents, mine.peaks, other.base, other.extents, other.peaks,
                    blocks.id, blocks.times
             FROM blocks CROSS JOIN packed AS other ON other.block = blocks.id AND other.image = ?1
                 CROSS JOIN packed AS mine ON mine.block = blocks.id AND mine.image = ?2",
        )?;
        let rows = select.query_map([from, to], |row| {
            let sweeps = pack::unpack_times(&row.get::<_, String>(7)?).len();
            let merged = read_row(row, 0)?.merged(&read_row(row, 3)?, sweeps);
            Ok((row.get::<_, i64>(6)?, merged))
        })?;
        rows.collect::<Result<Vec<_>, _>>()?
    };
    for (block, merged) in both {
        if let Some(Row {
            base,
            extents,
            peaks,
        }) = merged
        {
            let values = params![block, to, base, extents, peaks];
            let update = "UPDATE packed SET base = ?3, extents = ?4, peaks = ?5 WHERE block = ?1 AND image = ?2";
            transaction.execute(update, values)?;
        }
        transaction.execute(
            "DELETE FROM packed WHERE block = ?1 AND image = ?2",
            [block, from],
        )?;
    }
    // Block by block, for there is no index by image.
    let give = "UPDATE packed SET image = ?2 WHERE image = ?1 AND block IN (SELECT id FROM blocks)";
    transaction.execute(give, [from, to])?;
    Ok(())
}
