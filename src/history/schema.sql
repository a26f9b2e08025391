-- The history of fragwatch, schema 1. This is an SQLite database: while the daemon runs,
--
--     sqlite3 -readonly /var/lib/fragwatch/history.db
--
-- reads it. As long as a question takes, or a transaction is open, nothing is written: after some
-- minutes samples would be lost. To copy it while the daemon runs, use
--
--     sqlite3 /var/lib/fragwatch/history.db ".backup copy.db"
--
-- All times are seconds since 1970 by the clock of the host: datetime(at, 'unixepoch', 'localtime').
-- All sizes are bytes. Numbers are signed 64-bit integers. What operators may rely on: the table
-- images, the view samples, and the tables maps, runs, severities and incidents. The others are how
-- samples are kept small; the next schema may do that in another way.
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

-- Every image that was ever seen, for as long as there is something to tell of it.
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- UUID of its file system; on btrfs with a slash and the number of the subvolume behind it.
    filesystem TEXT NOT NULL,
    inode INTEGER NOT NULL,
    -- Tells files apart that had the same inode one after another.
    generation INTEGER NOT NULL,
    -- Where it was last seen, exactly. Only if that is no UTF-8, what is none (and control
    -- characters) is written \xNN here, and path_bytes has the path as it really is.
    path TEXT NOT NULL,
    path_bytes BLOB,
    -- raw, qcow2, vmdk, vdi, vhdx, unknown.
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

-- The sweeps of the current hour, in the order in which they were made. That is not the order of
-- their times if the clock was set.
CREATE TABLE sweeps (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL
);

-- What was counted in them. Written at the end of the table only, so a sweep costs a few pages.
CREATE TABLE recent (
    sweep INTEGER NOT NULL,
    image INTEGER NOT NULL,
    extents INTEGER NOT NULL,
    size INTEGER NOT NULL,
    allocated INTEGER NOT NULL,
    PRIMARY KEY (sweep, image)
) WITHOUT ROWID;

-- A series of sweeps that is complete: an hour (or 64 sweeps, if they are many), later one for each
-- hour of a day, later one for the day.
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY,
    -- 0 every sample, 1 the last of each hour, 2 the last of the day.
    tier INTEGER NOT NULL,
    -- Days since 1970, UTC.
    day INTEGER NOT NULL,
    -- The earliest and the latest of its times.
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    -- The times of its sweeps: a JSON array.
    times TEXT NOT NULL
);
CREATE INDEX blocks_by_day ON blocks (day, tier);

-- What was counted in a block, one row an image.
CREATE TABLE packed (
    block INTEGER NOT NULL,
    image INTEGER NOT NULL,
    -- The smallest count.
    base INTEGER NOT NULL,
    -- Of each sweep of the block what was counted above base: a JSON array. null, or beyond its
    -- end: not sampled in that sweep. The column itself NULL: base in every sweep.
    extents TEXT,
    -- The largest count in the time that the sweep stands for, likewise. NULL: as extents.
    peaks TEXT,
    -- As the last sweep of the block found them.
    size INTEGER NOT NULL,
    allocated INTEGER NOT NULL,
    PRIMARY KEY (block, image)
) WITHOUT ROWID;

-- Every sample: image, time, extents, and the peak, which is the largest count since the sample
-- before. Of the last 7 days there is every sample, then one an hour up to 30 days, then one a day:
-- the last in the hour or day, with the time of its last sweep. No row: not sampled then.
-- Size and allocation are those at the end of the block. CROSS JOIN keeps SQLite to this order of
-- tables: so a question about one image looks at no other.
CREATE VIEW samples AS
    SELECT recent.image AS image, sweeps.at AS at, recent.extents AS extents,
           recent.extents AS peak, recent.size AS size, recent.allocated AS allocated
    FROM sweeps CROSS JOIN recent ON recent.sweep = sweeps.id
    UNION ALL
    SELECT packed.image, time.value,
           packed.base + CASE WHEN packed.extents IS NULL THEN 0
                              ELSE json_extract(packed.extents, '$[' || time.key || ']') END,
           packed.base + coalesce(json_extract(packed.peaks, '$[' || time.key || ']'),
                                  json_extract(packed.extents, '$[' || time.key || ']'), 0),
           packed.size, packed.allocated
    FROM blocks CROSS JOIN packed ON packed.block = blocks.id
         CROSS JOIN json_each(blocks.times) AS time
    WHERE packed.extents IS NULL
       OR json_extract(packed.extents, '$[' || time.key || ']') IS NOT NULL;

-- Extent maps that were read. From 7 days on the last one of each day.
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
    reason TEXT NOT NULL
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

-- Facts about the database itself: created_by is the version of fragwatch that made it.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
