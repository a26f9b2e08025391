-- From schema 2 to 3: what a run may have stalled. Unknown of the runs before.
ALTER TABLE runs ADD COLUMN calls INTEGER;
ALTER TABLE runs ADD COLUMN worst_call_seconds REAL;
ALTER TABLE runs ADD COLUMN calls_seconds REAL;
