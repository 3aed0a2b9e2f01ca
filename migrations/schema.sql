-- What all the migrations make. Written from them; never edited by hand.

PRAGMA application_id = 0x626F756E;

CREATE TABLE migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE cells (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    label TEXT NOT NULL,
    parameters TEXT NOT NULL CHECK (json_valid(parameters)),
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    charged_failures INTEGER NOT NULL CHECK (charged_failures >= 0),
    free_failures INTEGER NOT NULL CHECK (free_failures >= 0),
    memory_level INTEGER NOT NULL CHECK (memory_level >= 0),
    alone INTEGER NOT NULL CHECK (alone IN (0, 1)),
    batch_size INTEGER,
    error_kind TEXT,
    error_message TEXT,
    error_at_unix_s REAL,
    error_phase TEXT,
    error_requested_bytes INTEGER,
    error_free_bytes INTEGER,
    measurement TEXT CHECK (measurement IS NULL OR json_valid(measurement)),
    measured_device TEXT NOT NULL,
    measured_batch_size INTEGER,
    duration_s REAL, plain_failures INTEGER NOT NULL DEFAULT 0 CHECK (plain_failures >= 0), error_cause TEXT, error_why TEXT,
    CHECK ((error_kind IS NULL) = (error_message IS NULL) AND (error_kind IS NULL) = (error_at_unix_s IS NULL))
) STRICT;

CREATE TABLE attempts (
    id TEXT PRIMARY KEY,
    key TEXT NOT NULL REFERENCES cells (key) DEFERRABLE INITIALLY DEFERRED,
    label TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    device TEXT NOT NULL,
    reservation_bytes INTEGER NOT NULL,
    cap_bytes INTEGER,
    batch_size INTEGER,
    exclusive INTEGER NOT NULL CHECK (exclusive IN (0, 1)),
    timeout_s REAL NOT NULL,
    grace_s REAL NOT NULL,
    started_unix_s REAL NOT NULL,
    started_boot_s REAL NOT NULL,
    whole_device INTEGER NOT NULL CHECK (whole_device IN (0, 1)),
    had_company INTEGER NOT NULL CHECK (had_company IN (0, 1)),
    state TEXT NOT NULL,
    end_reason TEXT,
    progress_done INTEGER NOT NULL,
    progress_total INTEGER NOT NULL,
    points INTEGER NOT NULL, estimate_bytes INTEGER, host_memory_bytes INTEGER NOT NULL DEFAULT 0, cores INTEGER NOT NULL DEFAULT 0, observed_peak_bytes INTEGER NOT NULL DEFAULT 0, foreign_seen INTEGER NOT NULL DEFAULT 0 CHECK (foreign_seen IN (0, 1)),
    UNIQUE (key, number)
) STRICT;

CREATE TABLE ends (
    attempt_id TEXT PRIMARY KEY REFERENCES attempts (id) DEFERRABLE INITIALLY DEFERRED,
    ended_unix_s REAL NOT NULL,
    outcome TEXT NOT NULL,
    measurement TEXT CHECK (measurement IS NULL OR json_valid(measurement)),
    error_kind TEXT,
    error_message TEXT,
    error_at_unix_s REAL,
    error_phase TEXT,
    error_requested_bytes INTEGER,
    error_free_bytes INTEGER,
    exit_status INTEGER,
    signal INTEGER,
    wall_s REAL,
    peak_allocated_bytes INTEGER,
    peak_reserved_bytes INTEGER, error_cause TEXT, error_why TEXT, host_peak_bytes INTEGER,
    CHECK (measurement IS NULL OR error_kind IS NULL),
    CHECK ((error_kind IS NULL) = (error_message IS NULL) AND (error_kind IS NULL) = (error_at_unix_s IS NULL))
) STRICT;

CREATE TABLE points (
    attempt_id TEXT NOT NULL REFERENCES attempts (id) DEFERRABLE INITIALLY DEFERRED,
    idx INTEGER NOT NULL CHECK (idx >= 0),
    parameters TEXT NOT NULL CHECK (json_valid(parameters)),
    speedup REAL NOT NULL,
    score_loss REAL,
    isolation TEXT NOT NULL,
    details TEXT NOT NULL CHECK (json_valid(details)),
    PRIMARY KEY (attempt_id, idx)
) STRICT;

CREATE TABLE observations (
    id INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    batch_size INTEGER NOT NULL,
    peak_bytes INTEGER NOT NULL,
    censored INTEGER NOT NULL CHECK (censored IN (0, 1))
, pixels INTEGER NOT NULL DEFAULT 0, torch TEXT NOT NULL DEFAULT '', host_peak_bytes INTEGER, estimate_bytes INTEGER) STRICT;

CREATE TABLE cordons (
    device TEXT PRIMARY KEY,
    reason TEXT NOT NULL
) STRICT;

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

CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    uid INTEGER NOT NULL,
    key TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    at_unix_s REAL NOT NULL,
    -- Compressed JSON; NULL where it was too long to be kept.
    body BLOB,
    UNIQUE (uid, key)
) STRICT;
