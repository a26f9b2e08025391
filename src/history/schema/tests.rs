//! Upgrades of older schemas, and what the schema promises to operators.

use super::*;

/// A database of schema 1 with something in each table.
const FIXTURE: &str = include_str!("../../../tests/data/history-1.sql");

/// A database that the last program with schema 1 wrote: days in full, by the hour and by the day.
const WRITTEN: &str = include_str!("../../../tests/data/history-1-written.sql");

fn tables(connection: &Connection) -> Vec<(String, String)> {
    let mut statement = connection
        .prepare("SELECT name, coalesce(sql, '') FROM sqlite_master ORDER BY name")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// The names of columns, whatever the comments between them.
fn columns(connection: &Connection) -> Vec<(String, Vec<String>)> {
    let names = tables(connection).into_iter().map(|(name, _)| name);
    let columns = |name: &str| -> Vec<String> {
        let mut info = connection
            .prepare("SELECT name || type || pk FROM pragma_table_info(?1)")
            .unwrap();
        let rows = info.query_map([name], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    names.map(|name| (name.clone(), columns(&name))).collect()
}

#[test]
fn every_older_schema_becomes_the_current_one() {
    let mut fresh = Connection::open_in_memory().unwrap();
    prepare(&mut fresh).unwrap();
    let mut old = Connection::open_in_memory().unwrap();
    old.execute_batch(FIXTURE).unwrap();
    prepare(&mut old).unwrap();
    assert_eq!(columns(&old), columns(&fresh));
    assert_eq!(check(&old, current()).unwrap(), current());
    let samples = "SELECT count(*), max(extents), max(peak) FROM samples";
    let found = old.query_row(samples, [], |row| {
        Ok((
            row.get::<_, i64>(0)?,
            row.get::<_, i64>(1)?,
            row.get::<_, i64>(2)?,
        ))
    });
    assert_eq!(found.unwrap(), (8, 1007, 1090));
}

/// Image, time, extents, peak, size and allocated bytes.
type Row = [i64; 6];

fn samples(connection: &Connection) -> Vec<Row> {
    let mut select = connection
        .prepare("SELECT * FROM samples ORDER BY image, at")
        .unwrap();
    let rows = select.query_map([], |row| {
        let mut values = [0; 6];
        for (n, value) in values.iter_mut().enumerate() {
            *value = row.get(n)?;
        }
        Ok(values)
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// All values of a table.
fn rows(connection: &Connection, table: &str) -> Vec<String> {
    let mut select = connection
        .prepare(&format!("SELECT * FROM {table}"))
        .unwrap();
    let columns = select.column_count();
    let rows = select.query_map([], |row| {
        let values = (0..columns).map(|n| row.get_ref(n).map(|value| format!("{value:?}")));
        values.collect::<rusqlite::Result<String>>()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

#[test]
fn samples_of_schema_1_become_those_of_schema_2_by_the_rule() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(WRITTEN).unwrap();
    let before = samples(&connection);
    const KEPT: [&str; 5] = ["images", "maps", "runs", "severities", "incidents"];
    let kept = KEPT.map(|table| rows(&connection, table));
    prepare(&mut connection).unwrap();
    let after = samples(&connection);
    // What is older than two days before the last whole hour is merged by the hour.
    let newest = before.iter().map(|row| row[1]).max().unwrap();
    let is_merged = |at: i64| at < newest / 3600 * 3600 - 50 * 3600;
    let mut expected: Vec<Row> = Vec::new();
    for row in &before {
        let last = expected.last_mut().filter(|last| {
            is_merged(row[1]) && last[0] == row[0] && last[1] / 3600 == row[1] / 3600
        });
        match last {
            Some(last) => *last = [row[0], row[1], row[2], last[3].max(row[3]), row[4], row[5]],
            None => expected.push(*row),
        }
    }
    assert!(expected.len() + 400 < before.len());
    // A merged sweep has the time of its last one, whichever images were in that.
    let coarse = |rows: &[Row]| -> Vec<Row> {
        let mut rows = rows.to_vec();
        for row in &mut rows {
            if is_merged(row[1]) {
                row[1] /= 3600;
            }
        }
        rows
    };
    assert_eq!(coarse(&after), coarse(&expected));
    // A run has three columns more.
    let found = KEPT.map(|table| rows(&connection, table));
    for (found, kept) in found.iter().flatten().zip(kept.iter().flatten()) {
        assert!(found.starts_with(kept.as_str()), "{found}, {kept}");
    }
    assert_eq!(found.map(|rows| rows.len()), kept.each_ref().map(Vec::len));
    assert!(kept.iter().all(|rows| !rows.is_empty()));
    let last: i64 = connection
        .query_row(
            "SELECT at FROM sweeps ORDER BY id DESC LIMIT 1",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(last, newest);
}

#[test]
fn unreadable_rows_are_damage() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(FIXTURE).unwrap();
    connection
        .execute("UPDATE packed SET extents = '[0,'", [])
        .unwrap();
    let error = prepare(&mut connection).unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
}

#[test]
fn an_upgrade_keeps_what_is_there_and_happens_once() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(FIXTURE).unwrap();
    let upgrades = [
        "ALTER TABLE runs ADD COLUMN window TEXT",
        "UPDATE runs SET window = 'night'; CREATE TABLE more (a)",
        "DROP TABLE more",
    ];
    prepare_with(&mut connection, "no SQL at all", &upgrades).unwrap();
    prepare_with(&mut connection, "no SQL at all", &upgrades).unwrap();
    let window = "SELECT window, engine FROM runs";
    let found: (String, String) = connection
        .query_row(window, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(found, ("night".to_owned(), "xfs_fsr".to_owned()));
    // Now it is newer than we are.
    let refused = prepare(&mut connection).unwrap_err();
    assert!(
        refused.to_string().contains("newer fragwatch (schema 4,"),
        "{refused}"
    );
}

/// The programs with schema 2, among them 0.1.0, check what they open as this one does.
#[test]
fn an_older_program_refuses_with_a_sentence() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(FIXTURE).unwrap();
    prepare(&mut connection).unwrap();
    let refused = check(&connection, 2).unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "was written by a newer fragwatch (schema 3, this one reads 2) and is left alone; install \
         that version again, or move the file away to begin a new history"
    );
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(FIXTURE).unwrap();
    let before = tables(&connection);
    let upgrades = ["CREATE TABLE more (a); CREATE TABLE runs (a)"];
    prepare_with(&mut connection, SCHEMA, &upgrades).unwrap_err();
    assert_eq!(tables(&connection), before);
    assert_eq!(check(&connection, 1).unwrap(), 1);
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
    let refused = prepare(&mut connection).unwrap_err();
    assert!(refused.to_string().contains("another program"), "{refused}");
    assert_eq!(tables(&connection).len(), 1);
}

#[test]
fn the_examples_in_the_schema_run() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(FIXTURE).unwrap();
    let examples: String = SCHEMA
        .lines()
        .filter_map(|line| line.strip_prefix("--     "))
        .filter(|line| !line.starts_with("sqlite3 "))
        .collect::<Vec<_>>()
        .join("\n");
    let mut rows = Vec::new();
    for query in examples.split_inclusive(';') {
        let mut statement = connection.prepare(query).unwrap();
        let mut found = statement.query([]).unwrap();
        let mut count = 0;
        while let Some(row) = found.next().unwrap() {
            row.get_ref(0).unwrap();
            count += 1;
        }
        rows.push(count);
    }
    // The fixture is old: nothing grew within the last day.
    assert_eq!(rows, [3, 0, 1]);
}

/// JSON operators and STRICT tables would make the whole database unreadable to the sqlite3 of
/// an older distribution.
#[test]
fn the_schema_asks_for_no_new_sqlite() {
    let sql: String = SCHEMA
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect();
    for new in ["->", "STRICT", "iif(", "GENERATED", "OVER (", "unixepoch("] {
        assert!(!sql.contains(new), "{new}");
    }
}
