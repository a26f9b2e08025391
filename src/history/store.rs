//! The database itself: records become rows, complete blocks are packed, old days thinned.
//!
//! Every call may take as long as the disk does. The daemon calls this only on the thread of
//! [`Recorder`](super::Recorder).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};

use super::join::join;
use super::pack::{self, Chore, Row, Thinning, Tier};
use super::record::{IncidentRow, MapRow, Record, SampleRow, SeverityRow, Sweep};
use super::{file, schema};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, Format, ImageKey, ImageRef, RunRecord, UnixTime};

/// How long a statement waits for another process that reads or writes, such as an operator's
/// sqlite3. Meanwhile records wait in the queue.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the file is looked through for damage when it is opened. What is not seen within that
/// is seen when it is met.
const CHECK: Duration = Duration::from_secs(10);
/// Pages that one vacuum gives back to the file system.
const VACUUM_PAGES: u32 = 1024;
/// Free pages that are worth keeping for the next day.
const SPARE_PAGES: i64 = 512;

/// What can go wrong with a database. Reads on after its path.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It must not be touched, and somebody has to decide what to do.
    #[error("{0}")]
    Refused(String),
    /// Something with its files.
    #[error("{0}")]
    File(String),
    /// It is damaged.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// A statement failed.
    #[error("{}", explain(.0))]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged(error.to_string())
            }
            _ => StoreError::Sqlite(error),
        }
    }
}

/// What the error means to an operator.
fn explain(error: &rusqlite::Error) -> String {
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "; make room on its file system",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "; another process keeps a transaction open in it"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "; check its rights and those of its directory"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

/// An open database.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    retention: Duration,
    /// Images whose rows are known to be up to date.
    known: HashMap<ImageKey, Known>,
    /// When the last sweep was.
    newest: Option<UnixTime>,
    /// The hour in which the history was last kept small.
    tidied: Option<i64>,
}

#[derive(Debug)]
struct Known {
    id: i64,
    path: PathBuf,
    format: Option<Format>,
}

impl Store {
    /// Opens the database at `path`, or makes it, brings it up to date and looks it through for
    /// damage. What is damaged is moved aside, once, and the new name returned beside the store.
    ///
    /// # Errors
    /// If there is something at `path` that must not be touched, or it cannot be opened.
    pub fn open(path: &Path, retention: Duration) -> Result<(Store, Option<Aside>), StoreError> {
        let file = file::prepare(path)?;
        match Store::open_file(&file, retention) {
            Err(StoreError::Damaged(damage)) => {
                let to = file::move_aside(&file, SystemTime::now())?;
                let file = file::prepare(path)?;
                let store = Store::open_file(&file, retention)?;
                Ok((store, Some(Aside { to, damage })))
            }
            opened => Ok((opened?, None)),
        }
    }

    fn open_file(file: &Path, retention: Duration) -> Result<Store, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(file, flags)?;
        // Of a database that turns out to be damaged or another's, nothing is changed at the end.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.busy_timeout(PATIENCE)?;
        let version = schema::check(&connection, schema::current())?;
        if version == 0 {
            // Must be said before there is a page.
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        } else {
            look_through(&mut connection)?;
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
        })
    }

    /// Closes a database that was found damaged as it is, and moves it aside.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn move_aside(self, path: &Path) -> Result<PathBuf, StoreError> {
        let file = file::prepare(path)?;
        // Fails only if statements are open. What is not closed properly is still closed.
        let _ = self
            .connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        drop(self);
        file::move_aside(&file, SystemTime::now())
    }

    /// What is older goes.
    pub fn set_retention(&mut self, retention: Duration) {
        self.retention = retention;
    }

    /// Writes a record, whole and for good, or not at all.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        let written = self.try_write(record);
        if written.is_err() {
            // What was learned of images in a transaction that never was, is wrong.
            self.known.clear();
        }
        written
    }

    fn try_write(&mut self, record: &Record) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let images = Images {
            known: &mut self.known,
            transaction: &transaction,
        };
        match record {
            Record::Sweep(sweep) => write_sweep(images, sweep)?,
            Record::Map(map) => write_map(images, map)?,
            Record::Severity(change) => write_severity(images, change)?,
            Record::Run(run) => write_run(images, run)?,
            Record::Incident(incident) => write_incident(&transaction, incident)?,
        }
        transaction.commit()?;
        if let Record::Sweep(sweep) = record {
            self.newest = Some(sweep.at);
        }
        Ok(())
    }

    /// Packs the blocks that are complete and, once an hour, does what keeps the history small. To
    /// be called after each sweep; mostly there is nothing to do.
    ///
    /// # Errors
    /// Those of SQLite. What could not be done is done the next time.
    pub fn upkeep(&mut self) -> Result<(), StoreError> {
        self.pack()?;
        let Some(now) = self.newest else {
            return Ok(());
        };
        if self.tidied != Some(pack::hour(now)) {
            self.tidied = Some(pack::hour(now));
            self.do_chores(pack::day(now))?;
            self.vacuum()?;
        }
        Ok(())
    }

    fn pack(&mut self) -> Result<(), StoreError> {
        let sweeps = {
            let mut statement = self
                .connection
                .prepare("SELECT id, at FROM sweeps ORDER BY id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, UnixTime(row.get(1)?))))?;
            rows.collect::<Result<Vec<(i64, UnixTime)>, _>>()?
        };
        let times: Vec<UnixTime> = sweeps.iter().map(|(_, at)| *at).collect();
        let mut rest = sweeps.as_slice();
        for length in pack::complete_blocks(&times) {
            let Some((block, behind)) = rest.split_at_checked(length) else {
                break;
            };
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            pack_block(&transaction, block)?;
            transaction.commit()?;
            rest = behind;
        }
        Ok(())
    }

    pub(super) fn do_chores(&mut self, today: i64) -> Result<(), StoreError> {
        let days = self.days()?;
        for chore in pack::chores(&days, today, self.retention) {
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            match chore {
                Chore::Remove(day) => remove_day(&transaction, day)?,
                Chore::Thin(day, tier) => thin_day(&transaction, day, tier)?,
            }
            transaction.commit()?;
            if matches!(chore, Chore::Remove(_)) {
                // Images went with it.
                self.known.clear();
            }
        }
        Ok(())
    }

    /// The days that there is something of, and the fullest tier of each.
    fn days(&self) -> rusqlite::Result<BTreeMap<i64, Tier>> {
        let mut days = BTreeMap::new();
        // What happened is not thinned, only removed.
        for table in ["maps", "runs", "severities", "incidents"] {
            let ends = format!("SELECT min(at), max(at) FROM {table}");
            let (first, last): (Option<i64>, Option<i64>) =
                self.connection
                    .query_row(&ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            for at in [first, last].into_iter().flatten() {
                days.insert(pack::day(UnixTime(at)), Tier::Daily);
            }
        }
        let mut statement = self
            .connection
            .prepare("SELECT day, min(tier) FROM blocks GROUP BY day")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            days.insert(row.get(0)?, Tier::from_number(row.get(1)?));
        }
        Ok(days)
    }

    /// Gives free pages back once there are far more than the next day needs.
    fn vacuum(&self) -> rusqlite::Result<()> {
        let pragma = |name| {
            self.connection
                .pragma_query_value(None, name, |row| row.get(0))
        };
        let (free, all): (i64, i64) = (pragma("freelist_count")?, pragma("page_count")?);
        if free > SPARE_PAGES.max(all / 4) {
            let vacuum = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
            let mut statement = self.connection.prepare(&vacuum)?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(())
    }
}

/// A database that was damaged, and was moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its new name.
    pub to: PathBuf,
    /// What was wrong with it.
    pub damage: String,
}

/// A rollback journal, not a write-ahead log. The log is quicker, but its index is a file that is
/// mapped into memory: a thread that touches it while the file system hangs may hold the lock of the
/// process's whole address space (`mmap_lock`), and every other thread stops at its next allocation.
/// With the journal all that can hang is a read, a write or a flush, and with it only this thread.
/// TRUNCATE, because the name of the journal then never has to be made or removed.
///
/// FULL: what is committed is on the disk, and stays when the power fails. That is five flushes a
/// sweep, on a thread that nobody waits for. The rest bounds memory.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Looks for damage, not longer than [`CHECK`].
fn look_through(connection: &mut Connection) -> Result<(), StoreError> {
    let deadline = Instant::now() + CHECK;
    connection.progress_handler(10_000, Some(move || Instant::now() > deadline))?;
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    connection.progress_handler(0, None::<fn() -> bool>)?;
    // Nobody needs all of that in memory.
    connection.execute_batch("PRAGMA shrink_memory")?;
    match verdict {
        Ok(verdict) if verdict == "ok" => Ok(()),
        Ok(damage) => Err(StoreError::Damaged(damage)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Finds the rows of images, and makes them.
struct Images<'s> {
    known: &'s mut HashMap<ImageKey, Known>,
    transaction: &'s Transaction<'s>,
}

impl Images<'_> {
    /// The number of an image that is at its path at that time.
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
        // At this path, for the first time since the database was opened.
        let is_new = known.is_none();
        let ImageKey {
            filesystem,
            inode,
            generation,
        } = &image.key;
        let (path, bytes) = stored(&image.path);
        let upsert = "INSERT INTO images
                (filesystem, inode, generation, path, path_bytes, format, first_seen, last_seen)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
            ON CONFLICT DO UPDATE SET path = excluded.path, path_bytes = excluded.path_bytes,
                format = coalesce(excluded.format, format), last_seen = excluded.last_seen
            RETURNING id";
        let id = self.transaction.query_row(
            upsert,
            params![
                filesystem,
                inode.cast_signed(),
                generation,
                path,
                bytes,
                format.map(Format::name),
                at.0
            ],
            |row| row.get(0),
        )?;
        if is_new {
            let joined = join(self.transaction, id)?;
            self.known.retain(|_, known| !joined.contains(&known.id));
        }
        let known = Known {
            id,
            path: image.path.clone(),
            format,
        };
        self.known.insert(image.key.clone(), known);
        Ok(id)
    }
}

/// A path as text, with `\xNN` for what is no UTF-8, and its bytes if there is such.
pub(super) fn stored(path: &Path) -> (String, Option<&[u8]>) {
    match path.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (shown(path), Some(path.as_os_str().as_bytes())),
    }
}

/// SQLite knows no larger numbers, and neither does any file system.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn write_sweep(mut images: Images<'_>, sweep: &Sweep) -> rusqlite::Result<()> {
    let mut rows = Vec::with_capacity(sweep.images.len());
    for row in &sweep.images {
        rows.push((images.id(&row.image, Some(row.format), sweep.at)?, row));
    }
    // In the order of the table, each row goes to its end.
    rows.sort_unstable_by_key(|(id, _)| *id);
    let transaction = images.transaction;
    transaction.execute("INSERT INTO sweeps (at) VALUES (?1)", [sweep.at.0])?;
    let number = transaction.last_insert_rowid();
    // An image with two names may be there twice.
    let mut insert =
        transaction.prepare("INSERT OR REPLACE INTO recent VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (
        id,
        SampleRow {
            extents,
            size,
            allocated,
            ..
        },
    ) in rows
    {
        insert.execute([
            number,
            id,
            signed(extents.0),
            signed(size.0),
            signed(allocated.0),
        ])?;
    }
    Ok(())
}

fn write_map(mut images: Images<'_>, MapRow { image, at, map }: &MapRow) -> rusqlite::Result<()> {
    let id = images.id(image, None, *at)?;
    let histogram = serde_json::to_string(&map.histogram).unwrap_or_else(|_| "[]".to_owned());
    images.transaction.execute(
        "INSERT INTO maps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            id,
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
        ],
    )?;
    Ok(())
}

fn write_severity(mut images: Images<'_>, change: &SeverityRow) -> rusqlite::Result<()> {
    let id = images.id(&change.image, None, change.at)?;
    images.transaction.execute(
        "INSERT INTO severities (image, at, before, severity, extents, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            id,
            change.at.0,
            change.from.to_string(),
            change.to.to_string(),
            signed(change.extents.0),
            change.reason
        ],
    )?;
    Ok(())
}

fn write_run(mut images: Images<'_>, run: &RunRecord) -> rusqlite::Result<()> {
    let id = images.id(&run.image, None, run.at)?;
    images.transaction.execute(
        "INSERT INTO runs (image, at, seconds, engine, extents_before, extents_after, bytes,
                           outcome, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            id,
            run.at.0,
            run.took.as_secs_f64(),
            run.engine.as_str(),
            signed(run.from.0),
            signed(run.to.0),
            signed(run.bytes.0),
            run.outcome.as_str(),
            run.reason
        ],
    )?;
    Ok(())
}

fn write_incident(transaction: &Transaction<'_>, incident: &IncidentRow) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT OR REPLACE INTO incidents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            incident.name,
            incident.at.0,
            incident.ended.map(|at| at.0),
            incident.trigger.map(|trigger| trigger.as_str()),
            incident.actions,
            incident.outcome.map(|outcome| outcome.as_str()),
            signed(incident.freed.0)
        ],
    )?;
    Ok(())
}

/// One image in the sweeps of a block.
struct Column {
    counts: Vec<Option<(ExtentCount, ExtentCount)>>,
    last_seen: UnixTime,
    last: i64,
    size: i64,
    allocated: i64,
}

/// Makes a block of these sweeps.
fn pack_block(transaction: &Transaction<'_>, sweeps: &[(i64, UnixTime)]) -> rusqlite::Result<()> {
    let times: Vec<UnixTime> = sweeps.iter().map(|(_, at)| *at).collect();
    let block = insert_block(transaction, Tier::Full, &times)?;
    let mut images = BTreeMap::new();
    let mut select = transaction
        .prepare("SELECT image, extents, size, allocated FROM recent WHERE sweep = ?1")?;
    for (n, (sweep, at)) in sweeps.iter().enumerate() {
        let mut rows = select.query([sweep])?;
        while let Some(row) = rows.next()? {
            let last = row.get(1)?;
            let column = images.entry(row.get(0)?).or_insert_with(|| Column {
                counts: Vec::with_capacity(sweeps.len()),
                last_seen: *at,
                last,
                size: 0,
                allocated: 0,
            });
            column.counts.resize(n, None);
            let extents = ExtentCount(u64::try_from(last).unwrap_or(0));
            column.counts.push(Some((extents, extents)));
            (column.last_seen, column.last) = (*at, last);
            (column.size, column.allocated) = (row.get(2)?, row.get(3)?);
        }
    }
    let mut insert = transaction.prepare(INSERT_PACKED)?;
    let mut seen = transaction.prepare(
        "UPDATE images SET last_seen = ?2, extents = ?3, size = ?4, allocated = ?5 WHERE id = ?1",
    )?;
    for (image, column) in images {
        let Column {
            counts,
            last_seen,
            last,
            size,
            allocated,
        } = column;
        if let Some(row) = Row::pack(sweeps.len(), &counts) {
            insert_packed(&mut insert, block, image, &row, (size, allocated))?;
        }
        seen.execute([image, last_seen.0, last, size, allocated])?;
    }
    for (sweep, _) in sweeps {
        transaction.execute("DELETE FROM recent WHERE sweep = ?1", [sweep])?;
        transaction.execute("DELETE FROM sweeps WHERE id = ?1", [sweep])?;
    }
    Ok(())
}

const INSERT_PACKED: &str = "INSERT INTO packed VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

fn insert_packed(
    insert: &mut rusqlite::Statement<'_>,
    block: i64,
    image: i64,
    Row {
        base,
        extents,
        peaks,
    }: &Row,
    (size, allocated): (i64, i64),
) -> rusqlite::Result<()> {
    insert.execute(params![block, image, base, extents, peaks, size, allocated])?;
    Ok(())
}

fn insert_block(
    transaction: &Transaction<'_>,
    tier: Tier,
    times: &[UnixTime],
) -> rusqlite::Result<i64> {
    let first = times.iter().min().copied().unwrap_or_default();
    let last = times.iter().max().copied().unwrap_or_default();
    let day = pack::day(times.last().copied().unwrap_or_default());
    transaction.execute(
        "INSERT INTO blocks (tier, day, first_at, last_at, times) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            tier.as_number(),
            day,
            first.0,
            last.0,
            pack::pack_times(times)
        ],
    )?;
    Ok(transaction.last_insert_rowid())
}

/// Makes one block of all blocks of a day that hold more than `tier`.
fn thin_day(transaction: &Transaction<'_>, day: i64, tier: Tier) -> rusqlite::Result<()> {
    let old = {
        let mut select = transaction
            .prepare("SELECT id, times FROM blocks WHERE day = ?1 AND tier < ?2 ORDER BY id")?;
        let rows = select.query_map([day, tier.as_number()], |row| {
            Ok((row.get(0)?, pack::unpack_times(&row.get::<_, String>(1)?)))
        })?;
        rows.collect::<Result<Vec<(i64, Vec<UnixTime>)>, _>>()?
    };
    let thinning = Thinning::new(tier, old.iter().flat_map(|(_, times)| times));
    if !thinning.times.is_empty() {
        let block = insert_block(transaction, tier, &thinning.times)?;
        thin_images(transaction, block, &thinning, &old)?;
    }
    for (block, _) in old {
        remove_block(transaction, block)?;
    }
    let (from, to) = bounds(day);
    transaction.execute(
        "DELETE FROM maps WHERE at >= ?1 AND at < ?2 AND EXISTS (
             SELECT 1 FROM maps AS later
             WHERE later.image = maps.image AND later.at > maps.at AND later.at < ?2)",
        [from, to],
    )?;
    Ok(())
}

fn thin_images(
    transaction: &Transaction<'_>,
    block: i64,
    thinning: &Thinning,
    old: &[(i64, Vec<UnixTime>)],
) -> rusqlite::Result<()> {
    let mut images = BTreeSet::new();
    let mut list = transaction.prepare("SELECT image FROM packed WHERE block = ?1")?;
    for (old, _) in old {
        let rows = list.query_map([old], |row| row.get::<_, i64>(0))?;
        images.extend(rows.collect::<Result<Vec<_>, _>>()?);
    }
    let mut select = transaction.prepare(
        "SELECT base, extents, peaks, size, allocated FROM packed WHERE block = ?1 AND image = ?2",
    )?;
    let mut insert = transaction.prepare(INSERT_PACKED)?;
    for image in images {
        let mut readings = Vec::new();
        let mut space = (0, 0);
        for (old, times) in old {
            let mut rows = select.query([*old, image])?;
            if let Some(row) = rows.next()? {
                readings.extend(read_row(row, 0)?.unpack(times));
                space = (row.get(3)?, row.get(4)?);
            }
        }
        let counts = thinning.thin(readings);
        if let Some(row) = Row::pack(counts.len(), &counts) {
            insert_packed(&mut insert, block, image, &row, space)?;
        }
    }
    Ok(())
}

/// From columns `base, extents, peaks`, which begin with the column `first`.
pub(super) fn read_row(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Row> {
    Ok(Row {
        base: row.get(first)?,
        extents: row.get(first + 1)?,
        peaks: row.get(first + 2)?,
    })
}

fn remove_block(transaction: &Transaction<'_>, block: i64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM packed WHERE block = ?1", [block])?;
    transaction.execute("DELETE FROM blocks WHERE id = ?1", [block])?;
    Ok(())
}

/// Removes all that there is of a day, and images that were not seen since.
fn remove_day(transaction: &Transaction<'_>, day: i64) -> rusqlite::Result<()> {
    let blocks = {
        let mut select = transaction.prepare("SELECT id FROM blocks WHERE day = ?1")?;
        let rows = select.query_map([day], |row| row.get(0))?;
        rows.collect::<Result<Vec<i64>, _>>()?
    };
    for block in blocks {
        remove_block(transaction, block)?;
    }
    let (from, to) = bounds(day);
    for table in ["maps", "runs", "severities", "incidents"] {
        let remove = format!("DELETE FROM {table} WHERE at >= ?1 AND at < ?2");
        transaction.execute(&remove, [from, to])?;
    }
    transaction.execute(
        "DELETE FROM images WHERE last_seen >= ?1 AND last_seen < ?2
             AND id NOT IN (SELECT image FROM recent)",
        [from, to],
    )?;
    Ok(())
}

/// The first second of a day and of the next.
fn bounds(day: i64) -> (i64, i64) {
    (
        day.saturating_mul(86_400),
        day.saturating_add(1).saturating_mul(86_400),
    )
}

/// A number of bytes from the database.
pub(super) fn bytes(number: i64) -> Bytes {
    Bytes(u64::try_from(number).unwrap_or(0))
}
