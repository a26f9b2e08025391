-- The history of fragwatch, schema 3. This is an SQLite database: while the daemon runs,
--
--     sqlite3 -readonly /var/lib/fragwatch/history.db
--
-- reads it. While a query runs or a transaction is open nothing is written; after some minutes samples
-- are lost. To copy it while the daemon runs, use
--
--     sqlite3 /var/lib/fragwatch/history.db ".backup copy.db"
--
-- All times are seconds since 1970 by the clock of the host: datetime(at, 'unixepoch', 'localtime').
-- All sizes are bytes. Numbers are signed 64-bit integers. What operators may rely on: the table
-- images, the view samples, and the tables maps, runs, severities and incidents. How samples are stored
-- may change with the next schema.
--
-- Nothing here is newer than SQLite 3.26, so that the sqlite3 of every supported distribution can
-- read it.
--
-- Growth of an image, by the hour:
--
--     SELECT datetime(max(at), 'unixepoch', 'localtime') AS time, extents
--     FROM samples
--     WHERE image = (SELECT id FROM images WHERE path = '/var/lib/libvirt/images/db.qcow2'
--                    ORDER BY last_seen DESC LIMIT 1)
--     GROUP BY at / 3600;
--
-- The ten images that gained the most extents within the last day:
--
--     SELECT path, max(samples.extents) - min(samples.extents) AS gained
--     FROM samples JOIN images ON images.id = samples.image
--     WHERE samples.at > strftime('%s', 'now') - 86400
--     GROUP BY images.id ORDER BY gained DESC LIMIT 10;
--
-- What defragmentation has brought, by engine:
--
--     SELECT engine, outcome, count(*) AS runs, sum(extents_before - extents_after) AS removed,
--            round(sum(seconds) / 3600, 1) AS hours
--     FROM runs GROUP BY engine, outcome;

-- Every image of which anything is recorded.
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- UUID of its file system; on btrfs with a slash and the number of the subvolume behind it.
    filesystem TEXT NOT NULL,
    inode INTEGER NOT NULL,
    -- Distinguishes files that had the same inode one after another.
    generation INTEGER NOT NULL,
    -- Where it was last seen, exactly. Only if that is no UTF-8, what is none (and control
    -- characters) is written \xNN here, and path_bytes has the path as it really is.
    path TEXT NOT NULL,
    path_bytes BLOB,
    -- raw, qcow2, vmdk, vdi, vhdx, vhd, qed, parallels, luks, unknown.
    format TEXT,
    -- When it was seen for the first and for the last time. The last is brought up to date each
    -- hour.
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    -- What was counted then; NULL if it was never counted.
    extents INTEGER,
    size INTEGER,
    allocated INTEGER,
    UNIQUE (filesystem, inode, generation)
);
CREATE INDEX images_by_path ON images (path);

-- The sweeps, in the order in which they were made. That is not the order of their times if the clock
-- was set.
CREATE TABLE sweeps (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL
);

-- What was counted in a sweep. No row: the image was not counted in it.
CREATE TABLE counts (
    sweep INTEGER NOT NULL,
    image INTEGER NOT NULL,
    extents INTEGER NOT NULL,
    -- The largest count of the sweeps that were merged into this one. NULL: none was larger.
    peak INTEGER,
    size INTEGER NOT NULL,
    allocated INTEGER NOT NULL,
    PRIMARY KEY (sweep, image)
) WITHOUT ROWID;

-- Every sample: image, time, extents, and the peak, which is the largest count since the sample
-- before. All samples of the last 48 hours, then one an hour up to 30 days, then one a day: the last of
-- the hour or day, with the time of its last sweep. CROSS JOIN fixes the order of the tables, so that
-- a query for one image reads no other.
CREATE VIEW samples AS
    SELECT counts.image AS image, sweeps.at AS at, counts.extents AS extents,
           coalesce(counts.peak, counts.extents) AS peak, counts.size AS size,
           counts.allocated AS allocated
    FROM sweeps CROSS JOIN counts ON counts.sweep = sweeps.id;

-- Extent maps that were read. After two days the last one of each day.
CREATE TABLE maps (
    image INTEGER NOT NULL,
    at INTEGER NOT NULL,
    extents INTEGER NOT NULL,
    fragments INTEGER NOT NULL,
    holes INTEGER NOT NULL,
    mapped INTEGER NOT NULL,
    unwritten INTEGER NOT NULL,
    shared INTEGER NOT NULL,
    longest INTEGER NOT NULL,
    -- Extents by length, a JSON array: item n counts those of 2^n bytes or more, below 2^(n+1).
    histogram TEXT NOT NULL,
    -- 0 if reading was ended before the last extent.
    complete INTEGER NOT NULL
);
CREATE INDEX maps_by_image ON maps (image, at);
CREATE INDEX maps_by_time ON maps (at);

-- Defragmentations.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL,
    -- When it began, and how long it took.
    at INTEGER NOT NULL,
    seconds REAL NOT NULL,
    -- xfs_fsr or online.
    engine TEXT NOT NULL,
    extents_before INTEGER NOT NULL,
    extents_after INTEGER NOT NULL,
    -- What was copied.
    bytes INTEGER NOT NULL,
    -- In one word, and why.
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- Calls that locked the image (online), or pauses of its VM (blockcopy); how long the longest took,
    -- and all together. NULL: there was none (xfs_fsr), or it is not known (before schema 3; cut off).
    calls INTEGER,
    worst_call_seconds REAL,
    calls_seconds REAL
);
CREATE INDEX runs_by_image ON runs (image, at);
CREATE INDEX runs_by_time ON runs (at);

-- Changes of severity.
CREATE TABLE severities (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL,
    at INTEGER NOT NULL,
    -- ok, warning, critical.
    before TEXT NOT NULL,
    severity TEXT NOT NULL,
    extents INTEGER NOT NULL,
    -- Which threshold decided.
    reason TEXT NOT NULL
);
CREATE INDEX severities_by_image ON severities (image, at);
CREATE INDEX severities_by_time ON severities (at);

-- Incidents. All that is known of one is in its own file, which has this name and .json.
CREATE TABLE incidents (
    name TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    -- NULL while it goes on.
    ended INTEGER,
    -- kernel_log, stall, file, drill.
    cause TEXT,
    -- What the rescue did, how the last action came out (done, failed, dry_run), what it freed.
    actions INTEGER NOT NULL,
    outcome TEXT,
    freed INTEGER NOT NULL
);
CREATE INDEX incidents_by_time ON incidents (at);

-- About the database itself: created_by is the version of fragwatch that made it, noted the last sweep
-- whose counts are in the table images.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
