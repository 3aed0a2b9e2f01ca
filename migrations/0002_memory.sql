-- What memory and time are learned from, the host as a resource, and why memory ran out.

ALTER TABLE cells ADD COLUMN plain_failures INTEGER NOT NULL DEFAULT 0 CHECK (plain_failures >= 0);
ALTER TABLE cells ADD COLUMN error_cause TEXT;
ALTER TABLE cells ADD COLUMN error_why TEXT;

ALTER TABLE ends ADD COLUMN error_cause TEXT;
ALTER TABLE ends ADD COLUMN error_why TEXT;
ALTER TABLE ends ADD COLUMN host_peak_bytes INTEGER;

ALTER TABLE attempts ADD COLUMN estimate_bytes INTEGER;
ALTER TABLE attempts ADD COLUMN host_memory_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN cores INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN observed_peak_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN foreign_seen INTEGER NOT NULL DEFAULT 0 CHECK (foreign_seen IN (0, 1));

-- Rows from before have no pixels, so they teach nothing of other sizes.
ALTER TABLE observations ADD COLUMN pixels INTEGER NOT NULL DEFAULT 0;
ALTER TABLE observations ADD COLUMN torch TEXT NOT NULL DEFAULT '';
ALTER TABLE observations ADD COLUMN host_peak_bytes INTEGER;
ALTER TABLE observations ADD COLUMN estimate_bytes INTEGER;

CREATE TABLE durations (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    device_name TEXT NOT NULL,
    steps INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    batch_size INTEGER NOT NULL,
    wall_s REAL NOT NULL CHECK (wall_s >= 0)
) STRICT;
