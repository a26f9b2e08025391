//! Continues the history of an image under a new identity, when a rewrite replaces its file.
//!
//! The process that rewrites it calls this before it exchanges the files, on a connection of its
//! own, also while the daemon runs. In the daemon, the row of the old identity is known by number;
//! until the exchange, sweeps go on under that number. Afterwards the new identity leads to it.

use std::path::Path;
use std::time::Duration;

use rusqlite::params;

use super::error::StoreError;
use super::store::connect;
use super::{file, schema};
use crate::model::ImageKey;

/// How long it waits for the daemon.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives the records of one image to another. Returns whether there were any. Fails if the
/// database cannot be written, has another schema, or already has records of `to`.
pub fn rekey(database: &Path, from: &ImageKey, to: &ImageKey) -> Result<bool, StoreError> {
    let connection = connect(&file::existing(database)?, BUSY_TIMEOUT)?;
    if schema::check(&connection, schema::current())? != schema::current() {
        let text = "is of an older fragwatch; start the daemon once, which upgrades it";
        return Err(StoreError::Refused(text.to_owned()));
    }
    let update = "UPDATE images SET filesystem = ?4, inode = ?5, generation = ?6
        WHERE filesystem = ?1 AND inode = ?2 AND generation = ?3";
    let row = params![
        from.filesystem,
        from.inode.cast_signed(),
        from.generation,
        to.filesystem,
        to.inode.cast_signed(),
        to.generation
    ];
    Ok(connection.execute(update, row)? > 0)
}
