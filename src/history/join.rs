//! Joins the rows of an image that was recorded under two identities.
//!
//! fragwatch 0.1.0 recorded substitutes for values that it could not read: type and mount point for
//! the UUID of the file system, which could be those of another one while an image was mounted
//! ([`lasting_name`](crate::model::filesystem::lasting_name)), and 0 for the generation. An upgrade
//! to the first kernel that returns a UUID also splits rows. Recording an image joins its rows.

use rusqlite::Transaction;

/// Substitutes for an image (?1 is its row): rows with the same inode and path, and
/// - the same generation, on a file system named by its mount point. A new inode gets a random
///   generation, so it is the same file.
/// - or no generation, recorded after the first record of the image: its inode had the same
///   generation before and after, so no other file had it in between.
const SUBSTITUTES: &str = "SELECT other.id FROM images AS its JOIN images AS other
        ON other.path = its.path AND other.path_bytes IS its.path_bytes AND other.inode = its.inode
    WHERE its.id = ?1 AND its.generation <> 0 AND other.id <> its.id
      AND ((other.generation = its.generation AND other.filesystem LIKE '%:%')
        OR (other.generation = 0 AND other.id > its.id
            AND (other.filesystem = its.filesystem OR other.filesystem LIKE '%:%')))";

/// Joins the rows of substitutes to `image`, found at its path. Returns the removed rows.
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

fn merge(transaction: &Transaction<'_>, from: i64, to: i64) -> rusqlite::Result<()> {
    for table in ["maps", "runs", "severities"] {
        let update = format!("UPDATE {table} SET image = ?2 WHERE image = ?1");
        transaction.execute(&update, [from, to])?;
    }
    // Sweep by sweep: there is no index by image. Only a merged sweep has counted both.
    const OF_IT: &str = "image = ?1 AND sweep IN (SELECT id FROM sweeps)";
    let update = format!("UPDATE OR IGNORE counts SET image = ?2 WHERE {OF_IT}");
    transaction.execute(&update, [from, to])?;
    transaction.execute(&format!("DELETE FROM counts WHERE {OF_IT}"), [from])?;
    transaction.execute(
        "UPDATE images SET first_seen = min(first_seen, (SELECT first_seen FROM images WHERE id = ?1))
         WHERE id = ?2",
        [from, to],
    )?;
    transaction.execute("DELETE FROM images WHERE id = ?1", [from])?;
    Ok(())
}
