//! The database: writes records as rows and merges old sweeps.
//!
//! Each sweep appends one row per image; merging ([`retention`]) is done by SQL. Measured on
//! 2026-11-29 (debug build, busy two-core machine, 1,000 images that each change every minute, 90
//! days): 122 MB on disk (promised: 200 MB), 8 ms a sweep with its share of upkeep, longest upkeep
//! 0.6 s, all readings of one image in 42 ms.
//!
//! Every call may take as long as the disk: only the thread of [`Recorder`](super::Recorder) calls
//! it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, Transaction, TransactionBehavior, params};

use super::error::StoreError;
use super::join::join;
use super::record::{IncidentRow, MapRow, Record, SeverityRow, Sweep};
use super::retention::{self, RetentionTask, day, day_bounds, hour};
use super::{file, schema};
use crate::model::path::shown;
use crate::model::units::signed;
use crate::model::{Format, ImageKey, ImageRef, Outcome, RunRecord, Trigger, UnixTime};

/// How long a statement waits for another process, such as an operator's sqlite3.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of the search for damage on opening. Damage beyond it is found when it is read.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of sweeps after which the images table is updated before the hour has passed.
const MOST_UNNOTED: usize = 64;
/// Maximum number of pages that one vacuum returns to the file system.
const VACUUM_PAGES: u32 = 1024;
/// Free pages that are kept for the next day.
const SPARE_PAGES: i64 = 512;

/// An open database.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    retention: Duration,
    /// Images whose rows are up to date.
    known: HashMap<ImageKey, Known>,
    newest: Option<UnixTime>,
    /// The hour of the last [`Store::retain`].
    tidied: Option<i64>,
    /// Sweeps since the last [`Store::note_images`].
    unnoted: usize,
}

#[derive(Debug)]
struct Known {
    id: i64,
    path: PathBuf,
    format: Option<Format>,
}

impl Store {
    /// Opens, creates or upgrades the database at `path`, and checks it for damage. A damaged one
    /// is moved aside, and its new name returned beside a new database. `on_upgrade` is called before
    /// an upgrade.
    ///
    /// # Errors
    /// If the file at `path` must not be touched, or cannot be opened.
    pub fn open(
        path: &Path,
        retention: Duration,
        on_upgrade: &dyn Fn(),
    ) -> Result<(Store, Option<QuarantinedDb>), StoreError> {
        let open = || Store::open_file(&file::prepare(path)?, retention, on_upgrade);
        match open() {
            Err(StoreError::Damaged(damage)) => {
                let to = file::move_aside(&file::prepare(path)?, SystemTime::now())?;
                Ok((open()?, Some(QuarantinedDb { to, damage })))
            }
            opened => Ok((opened?, None)),
        }
    }

    fn open_file(
        file: &Path,
        retention: Duration,
        on_upgrade: &dyn Fn(),
    ) -> Result<Store, StoreError> {
        let mut connection = connect(file, BUSY_TIMEOUT)?;
        // A damaged database, or that of another program, is not changed.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let version = schema::check(&connection, schema::current())?;
        if version == 0 {
            // Only effective before the first page is written.
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        } else {
            if version < schema::current() {
                on_upgrade();
            }
            check_integrity(&mut connection)?;
        }
        configure(&connection)?;
        schema::prepare(&mut connection)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(Store {
            connection,
            retention,
            known: HashMap::new(),
            newest: None,
            tidied: None,
            unnoted: 0,
        })
    }

    /// Closes a damaged database unchanged, and moves it aside.
    pub fn move_aside(self, path: &Path) -> Result<PathBuf, StoreError> {
        let file = file::prepare(path)?;
        // Fails only if statements are open; the connection is closed anyway.
        let _ = self
            .connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        drop(self);
        file::move_aside(&file, SystemTime::now())
    }

    /// Sets how long records are kept.
    pub fn set_retention(&mut self, retention: Duration) {
        self.retention = retention;
    }

    /// Writes a record in one transaction; fails if SQLite does.
    pub fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        let written = self.try_write(record);
        if written.is_err() {
            // The image rows inserted by the transaction were rolled back.
            self.known.clear();
        }
        written
    }

    fn try_write(&mut self, record: &Record) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        let images = &mut Images {
            known: &mut self.known,
            transaction: &transaction,
        };
        match record {
            Record::Sweep(sweep) => write_sweep(images, sweep)?,
            Record::Map(map) => write_map(images, map)?,
            Record::Severity(change) => write_severity(images, change)?,
            Record::Run(run) => write_run(images, run)?,
            Record::Incident(incident) => write_incident(images, incident)?,
        }
        transaction.commit()?;
        if let Record::Sweep(sweep) = record {
            self.newest = Some(sweep.at);
            self.unnoted += 1;
        }
        Ok(())
    }

    /// Hourly: removes and merges old records. Hourly and after 64 sweeps: updates the images
    /// table. To be called after each sweep.
    ///
    /// # Errors
    /// Those of SQLite. Incomplete work is done the next time.
    pub fn upkeep(&mut self) -> Result<(), StoreError> {
        let Some(now) = self.newest else {
            return Ok(());
        };
        let is_new_hour = self.tidied != Some(hour(now));
        if is_new_hour || self.unnoted >= MOST_UNNOTED {
            self.note_images()?;
        }
        if is_new_hour {
            self.tidied = Some(hour(now));
            self.retain(now)?;
            self.vacuum()?;
        }
        Ok(())
    }

    /// Writes the last counts of each image to the images table.
    fn note_images(&mut self) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        let sweeps = select_sweeps(&transaction, &format!("WHERE id > {NOTED}"))?;
        let mut select = transaction
            .prepare("SELECT image, extents, size, allocated FROM counts WHERE sweep = ?1")?;
        let mut update = transaction.prepare(
            "UPDATE images SET last_seen = ?2, extents = ?3, size = ?4, allocated = ?5 WHERE id = ?1",
        )?;
        let mut done = HashSet::new();
        for (sweep, at) in sweeps.iter().rev() {
            let mut rows = select.query([sweep])?;
            while let Some(row) = rows.next()? {
                let image: i64 = row.get(0)?;
                if done.insert(image) {
                    update.execute([image, at.0, row.get(1)?, row.get(2)?, row.get(3)?])?;
                }
            }
        }
        drop((select, update));
        if let Some((newest, _)) = sweeps.last() {
            transaction.execute("INSERT OR REPLACE INTO meta VALUES ('noted', ?1)", [newest])?;
        }
        transaction.commit()?;
        self.unnoted = 0;
        Ok(())
    }

    /// Executes the retention tasks that are due.
    pub(super) fn retain(&mut self, now: UnixTime) -> Result<(), StoreError> {
        let sweeps = select_sweeps(&self.connection, "")?;
        let tasks = retention::tasks(&sweeps, &self.event_days()?, now, self.retention);
        for task in tasks {
            match task {
                RetentionTask::RemoveDay(day) => self.remove_day(day, &sweeps)?,
                RetentionTask::Merge(group) => {
                    let transaction = begin(&mut self.connection)?;
                    merge(&transaction, &group)?;
                    transaction.commit()?;
                }
            }
        }
        self.thin_maps(day(now))?;
        Ok(())
    }

    /// The first and the last day in each of `EVENT_TABLES`.
    fn event_days(&self) -> rusqlite::Result<BTreeSet<i64>> {
        let ends = |table| format!("SELECT min(at) FROM {table} UNION SELECT max(at) FROM {table}");
        let mut select = self
            .connection
            .prepare(&EVENT_TABLES.map(ends).join(" UNION "))?;
        let ends = select.query_map([], |row| row.get::<_, Option<i64>>(0))?;
        ends.filter_map(|at| at.map(|at| at.map(|at| day(UnixTime(at)))).transpose())
            .collect()
    }

    /// Removes all rows of a day, sweeps in one transaction per hour, and images not seen since.
    fn remove_day(&mut self, which: i64, sweeps: &[(i64, UnixTime)]) -> Result<(), StoreError> {
        let of_day: Vec<_> = sweeps.iter().filter(|(_, at)| day(*at) == which).collect();
        for hour in of_day.chunk_by(|a, b| hour(a.1) == hour(b.1)) {
            let transaction = begin(&mut self.connection)?;
            hour.iter()
                .try_for_each(|(sweep, _)| remove_sweep(&transaction, *sweep))?;
            transaction.commit()?;
        }
        let (from, to) = day_bounds(which);
        let transaction = begin(&mut self.connection)?;
        for table in EVENT_TABLES {
            let remove = format!("DELETE FROM {table} WHERE at >= ?1 AND at < ?2");
            transaction.execute(&remove, [from, to])?;
        }
        // The images of the last sweeps were noted before.
        let remove = "DELETE FROM images WHERE last_seen >= ?1 AND last_seen < ?2";
        transaction.execute(remove, [from, to])?;
        transaction.commit()?;
        self.known.clear();
        Ok(())
    }

    /// Keeps each image's last extent map of each day, 10 to 3 days ago; older days are done.
    fn thin_maps(&self, today: i64) -> rusqlite::Result<()> {
        let (from, to) = (day_bounds(today - 10).0, day_bounds(today - 2).0);
        self.connection.execute(
            "DELETE FROM maps WHERE at >= ?1 AND at < ?2 AND EXISTS (
                 SELECT 1 FROM maps AS later WHERE later.image = maps.image
                     AND later.at > maps.at AND later.at < (maps.at / 86400 + 1) * 86400)",
            [from, to],
        )?;
        Ok(())
    }

    /// Returns free pages to the file system if there are far more than the next day needs.
    fn vacuum(&self) -> rusqlite::Result<()> {
        let pragma = |name| self.connection.pragma_query_one::<i64>(None, name);
        let (free, all) = (pragma("freelist_count")?, pragma("page_count")?);
        if free > SPARE_PAGES.max(all / 4) {
            self.connection
                .pragma(None, "incremental_vacuum", VACUUM_PAGES, |_| Ok(()))?;
        }
        Ok(())
    }
}

/// A damaged database that was moved aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedDb {
    /// Its new path.
    pub to: PathBuf,
    /// What is wrong with it.
    pub damage: String,
}

/// The tables of events, which are not part of a sweep.
const EVENT_TABLES: [&str; 4] = ["maps", "runs", "severities", "incidents"];
/// The last sweep whose counts are in the images table.
pub(super) const NOTED: &str =
    "(SELECT coalesce(max(CAST(value AS INTEGER)), 0) FROM meta WHERE key = 'noted')";

/// Opens an existing database for reading and writing.
pub(super) fn connect(file: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(busy)?;
    Ok(connection)
}

fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Row number and time of sweeps, in the order of recording.
pub(super) fn select_sweeps(
    connection: &Connection,
    clause: &str,
) -> rusqlite::Result<Vec<(i64, UnixTime)>> {
    let sql = format!("SELECT id, at FROM sweeps {clause} ORDER BY id");
    let mut select = connection.prepare(&sql)?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, UnixTime(row.get(1)?))))?;
    rows.collect()
}

/// A rollback journal, not a write-ahead log, whose index is mapped into memory: a thread that
/// touches it while the file system is stalled may hold the lock of the address space
/// (`mmap_lock`), which blocks every other thread at its next allocation. With the journal only
/// this thread can block, in a read, a write or a flush. TRUNCATE does not recreate the journal
/// each time. FULL: committed data survives a power failure, at five flushes per sweep. The rest
/// bounds memory.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

fn check_integrity(connection: &mut Connection) -> Result<(), StoreError> {
    let deadline = Instant::now() + CHECK_TIMEOUT;
    connection.progress_handler(10_000, Some(move || Instant::now() > deadline))?;
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    connection.progress_handler(0, None::<fn() -> bool>)?;
    connection.execute_batch("PRAGMA shrink_memory")?;
    match verdict {
        Ok(verdict) if verdict == "ok" => Ok(()),
        Ok(damage) => Err(StoreError::Damaged(damage)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Images<'s> {
    known: &'s mut HashMap<ImageKey, Known>,
    transaction: &'s Transaction<'s>,
}

impl Images<'_> {
    /// The row number of an image that is at its path at that time.
    fn id(
        &mut self,
        image: &ImageRef,
        format: Option<Format>,
        at: UnixTime,
    ) -> rusqlite::Result<i64> {
        let known = self.known.get(&image.key);
        let known = known.filter(|known| known.path == image.path);
        if let Some(known) = known
            && (format.is_none() || known.format == format)
        {
            return Ok(known.id);
        }
        // First time at this path since the database was opened.
        let is_new = known.is_none();
        let ImageRef { key, path } = image;
        let (inode, name) = (key.inode.cast_signed(), format.map(Format::as_str));
        let (text, bytes) = stored(path);
        let upsert = "INSERT INTO images
                (filesystem, inode, generation, path, path_bytes, format, first_seen, last_seen)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
            ON CONFLICT DO UPDATE SET path = excluded.path, path_bytes = excluded.path_bytes,
                format = coalesce(excluded.format, format), last_seen = excluded.last_seen
            RETURNING id";
        let row = params![
            key.filesystem,
            inode,
            key.generation,
            text,
            bytes,
            name,
            at.0
        ];
        let id = self.transaction.query_one(upsert, row, |row| row.get(0))?;
        if is_new {
            let joined = join(self.transaction, id)?;
            self.known.retain(|_, known| !joined.contains(&known.id));
        }
        let path = path.clone();
        self.known.insert(key.clone(), Known { id, path, format });
        Ok(id)
    }

    fn insert(&self, into: &str, row: &[&dyn ToSql]) -> rusqlite::Result<()> {
        let insert = format!("INSERT OR REPLACE INTO {into}");
        self.transaction.execute(&insert, row).map(drop)
    }
}

/// A path as text, with `\xNN` for bytes that are not UTF-8, and its bytes if there are any such.
fn stored(path: &Path) -> (String, Option<&[u8]>) {
    match path.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (shown(path), Some(path.as_os_str().as_bytes())),
    }
}

fn write_sweep(images: &mut Images<'_>, sweep: &Sweep) -> rusqlite::Result<()> {
    let mut rows = Vec::with_capacity(sweep.images.len());
    for row in &sweep.images {
        rows.push((images.id(&row.image, Some(row.format), sweep.at)?, row));
    }
    // In the order of the table, so that each row is appended.
    rows.sort_unstable_by_key(|(id, _)| *id);
    let transaction = images.transaction;
    transaction.execute("INSERT INTO sweeps (at) VALUES (?1)", [sweep.at.0])?;
    let number = transaction.last_insert_rowid();
    // An image with two names may occur twice.
    let mut insert =
        transaction.prepare("INSERT OR REPLACE INTO counts VALUES (?1, ?2, ?3, NULL, ?4, ?5)")?;
    for (id, row) in rows {
        let (size, allocated) = (signed(row.size.0), signed(row.allocated.0));
        insert.execute([number, id, signed(row.extents.0), size, allocated])?;
    }
    Ok(())
}

fn write_map(images: &mut Images<'_>, MapRow { image, at, map }: &MapRow) -> rusqlite::Result<()> {
    let histogram = serde_json::to_string(&map.histogram).unwrap_or_else(|_| "[]".to_owned());
    let row = params![
        images.id(image, None, *at)?,
        at.0,
        signed(map.extents.0),
        signed(map.fragments),
        signed(map.holes),
        signed(map.mapped.0),
        signed(map.unwritten.0),
        signed(map.shared.0),
        signed(map.longest.0),
        histogram,
        map.complete
    ];
    images.insert(
        "maps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        row,
    )
}

fn write_severity(images: &mut Images<'_>, change: &SeverityRow) -> rusqlite::Result<()> {
    let row = params![
        images.id(&change.image, None, change.at)?,
        change.at.0,
        change.from.to_string(),
        change.to.to_string(),
        signed(change.extents.0),
        change.reason
    ];
    images.insert("severities VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6)", row)
}

fn write_run(images: &mut Images<'_>, run: &RunRecord) -> rusqlite::Result<()> {
    let row = params![
        images.id(&run.image, None, run.at)?,
        run.at.0,
        run.took.as_secs_f64(),
        run.engine.as_str(),
        signed(run.from.0),
        signed(run.to.0),
        signed(run.bytes.0),
        run.outcome.as_str(),
        run.reason,
        run.stalls.map(|it| signed(it.calls)),
        run.stalls.map(|it| it.longest.as_secs_f64()),
        run.stalls.map(|it| it.total.as_secs_f64()),
    ];
    images.insert(
        "runs VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        row,
    )
}

fn write_incident(images: &Images<'_>, incident: &IncidentRow) -> rusqlite::Result<()> {
    let row = params![
        incident.name,
        incident.at.0,
        incident.ended.map(|at| at.0),
        incident.trigger.map(Trigger::as_str),
        incident.actions,
        incident.outcome.map(Outcome::as_str),
        signed(incident.freed.0)
    ];
    images.insert("incidents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", row)
}

/// Merges sweeps, ordered by recording, into the last: keeps each image's last and largest count.
fn merge(transaction: &Transaction<'_>, sweeps: &[i64]) -> rusqlite::Result<()> {
    let Some((last, earlier)) = sweeps.split_last() else {
        return Ok(());
    };
    let mut merge = transaction.prepare(
        "INSERT INTO counts
             SELECT ?1, image, extents, peak, size, allocated FROM counts WHERE sweep = ?2
         ON CONFLICT DO UPDATE SET peak = coalesce(excluded.peak, excluded.extents)
             WHERE coalesce(excluded.peak, excluded.extents) > coalesce(peak, extents)",
    )?;
    // Backwards: the first row of an image that was not in the last sweep is its last count.
    for sweep in earlier.iter().rev() {
        merge.execute([last, sweep])?;
        remove_sweep(transaction, *sweep)?;
    }
    Ok(())
}

fn remove_sweep(transaction: &Transaction<'_>, sweep: i64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM counts WHERE sweep = ?1", [sweep])?;
    transaction.execute("DELETE FROM sweeps WHERE id = ?1", [sweep])?;
    Ok(())
}
