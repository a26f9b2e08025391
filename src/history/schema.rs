//! The schema of the database, and upgrades from older ones.
//!
//! `PRAGMA user_version` is the number of the schema, `PRAGMA application_id` identifies the
//! database. To change the schema, change `schema.sql`, add the statements that upgrade the
//! previous one to [`UPGRADES`], and add a fixture of it to the tests. Opening a database upgrades
//! it in one transaction: a kill or a full disk leaves it unchanged. A newer database is refused.

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::error::StoreError;

const SCHEMA: &str = include_str!("schema.sql");
/// The statements from schema 1 to 2, from 2 to 3 and so on.
const UPGRADES: &[&str] = &[include_str!("schema-2.sql"), include_str!("schema-3.sql")];
/// Page cache of an upgrade in KiB; rows are not written in the order of their table.
const UPGRADE_CACHE: i64 = 16_384;
/// "fwhi": identifies the databases of fragwatch. file(1) shows it.
const APPLICATION_ID: i64 = 0x6677_6869;

/// Creates or upgrades the tables; fails for a database of another program or a newer version.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    prepare_with(connection, SCHEMA, UPGRADES)
}

/// The number of the schema, 0 if the database is empty. Fails if the number is above `known`, or
/// the database belongs to another program.
pub(super) fn check(connection: &Connection, known: usize) -> Result<usize, StoreError> {
    let pragma = |name| connection.pragma_query_one::<i64>(None, name);
    let (id, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables = "SELECT count(*) FROM sqlite_master";
    if id == 0 && version == 0 && connection.query_one(tables, (), |row| row.get::<_, i64>(0))? == 0
    {
        return Ok(0);
    }
    if id != APPLICATION_ID {
        return Err(StoreError::Refused(
            "is a database of another program and is left alone; set history.path to another file"
                .to_owned(),
        ));
    }
    let number = usize::try_from(version).unwrap_or(usize::MAX);
    if number > known {
        return Err(StoreError::Refused(format!(
            "was written by a newer fragwatch (schema {version}, this one reads {known}) and is \
             left alone; install that version again, or move the file away to begin a new history"
        )));
    }
    Ok(number)
}

/// The number of the schema that this program writes.
pub(super) fn current() -> usize {
    UPGRADES.len() + 1
}

fn prepare_with(
    connection: &mut Connection,
    schema: &str,
    upgrades: &[&str],
) -> Result<(), StoreError> {
    let current = upgrades.len() + 1;
    if check(connection, current)? == current {
        return Ok(());
    }
    // Checked again under the lock: another process may have upgraded it meanwhile.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = check(&transaction, current)?;
    if version == 0 {
        transaction.execute_batch(schema)?;
        transaction.execute(
            "INSERT INTO meta VALUES ('created_by', ?1)",
            [env!("CARGO_PKG_VERSION")],
        )?;
    }
    let cache: i64 = transaction.pragma_query_one(None, "cache_size")?;
    transaction.pragma_update(None, "cache_size", -UPGRADE_CACHE)?;
    for upgrade in upgrades.iter().skip(version.saturating_sub(1)) {
        if version > 0 {
            transaction.execute_batch(upgrade).map_err(upgrade_error)?;
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", i64::try_from(current).unwrap_or(0))?;
    transaction.commit()?;
    connection.pragma_update(None, "cache_size", cache)?;
    Ok(())
}

/// An upgrade that fails for a reason other than its environment found unreadable rows.
fn upgrade_error(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::Unknown) => StoreError::Damaged(error.to_string()),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests;
