-- From schema 1 to 2. Schema 1 kept the counts of an hour of an image in one row, as a JSON array
-- (packed), those of a day or week with one element an hour or day, and the present hour in plain rows
-- (recent).
DROP VIEW samples;
ALTER TABLE sweeps RENAME TO old_sweeps;

CREATE TABLE sweeps (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL
);
CREATE TABLE counts (
    sweep INTEGER NOT NULL,
    image INTEGER NOT NULL,
    extents INTEGER NOT NULL,
    peak INTEGER,
    size INTEGER NOT NULL,
    allocated INTEGER NOT NULL,
    PRIMARY KEY (sweep, image)
) WITHOUT ROWID;

-- Of a block that is kept in full each sweep becomes one; of one that is older than 48 hours (it lies
-- within one hour) only the last, which takes the counts of all.
CREATE TEMP TABLE moved (
    sweep INTEGER PRIMARY KEY,
    block INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at INTEGER NOT NULL,
    whole INTEGER NOT NULL
);
INSERT INTO moved (block, position, at, whole)
    SELECT blocks.id, time.key, time.value, 0
    FROM blocks CROSS JOIN json_each(blocks.times) AS time
    WHERE blocks.tier > 0
       OR blocks.last_at >= (SELECT max(last_at) FROM blocks) - 49 * 3600
       OR time.key = json_array_length(blocks.times) - 1
    ORDER BY blocks.day, blocks.id, time.key;
UPDATE moved SET whole = 1
    WHERE block IN (SELECT id FROM blocks WHERE tier = 0
                    AND last_at < (SELECT max(last_at) FROM blocks) - 49 * 3600);
CREATE UNIQUE INDEX temp.moved_by_block ON moved (block, position);

INSERT INTO sweeps SELECT sweep, at FROM moved;
INSERT INTO counts
    SELECT moved.sweep, packed.image,
           packed.base + CASE WHEN packed.extents IS NULL THEN 0 ELSE count.value END,
           packed.base + nullif(max(json_extract(packed.peaks, '$[' || count.key || ']'),
                                    count.value), count.value),
           packed.size, packed.allocated
    FROM blocks CROSS JOIN packed ON packed.block = blocks.id
         CROSS JOIN json_each(coalesce(packed.extents, blocks.times)) AS count
         CROSS JOIN moved ON moved.block = blocks.id AND moved.position = count.key
    WHERE blocks.id IN (SELECT block FROM moved WHERE NOT whole) AND count.value IS NOT NULL;
-- The last element of an array is the last count: arrays end with it.
INSERT INTO counts
    SELECT moved.sweep, packed.image,
           packed.base + coalesce(json_extract(packed.extents, '$[#-1]'), 0),
           packed.base + nullif((SELECT max(value) FROM json_each(packed.extents)),
                                json_extract(packed.extents, '$[#-1]')),
           packed.size, packed.allocated
    FROM moved CROSS JOIN packed ON packed.block = moved.block
    WHERE moved.whole;

-- The present hour comes last.
INSERT INTO meta SELECT 'noted', coalesce(max(id), 0) FROM sweeps;
INSERT INTO counts
    SELECT (SELECT coalesce(max(id), 0) FROM sweeps) + sweep, image, extents, NULL, size, allocated
    FROM recent;
INSERT INTO sweeps
    SELECT (SELECT value FROM meta WHERE key = 'noted') + id, at FROM old_sweeps;

DROP TABLE temp.moved;
DROP TABLE recent;
DROP TABLE old_sweeps;
DROP TABLE packed;
DROP TABLE blocks;
CREATE VIEW samples AS
    SELECT counts.image AS image, sweeps.at AS at, counts.extents AS extents,
           coalesce(counts.peak, counts.extents) AS peak, counts.size AS size,
           counts.allocated AS allocated
    FROM sweeps CROSS JOIN counts ON counts.sweep = sweeps.id;
