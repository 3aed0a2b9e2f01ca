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
    duration_s REAL, plain_failures INTEGER NOT NULL DEFAULT 0 CHECK (plain_failures >= 0), error_cause TEXT, error_why TEXT, error_evidence TEXT,
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
    peak_reserved_bytes INTEGER, error_cause TEXT, error_why TEXT, host_peak_bytes INTEGER, error_evidence TEXT,
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

CREATE TABLE seals (
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

CREATE TABLE histories (
    digest TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

CREATE TABLE commits (
    number INTEGER NOT NULL
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

CREATE TABLE quarantines (
    -- What is held back: a device by its UUID, a kind of work, an environment.
    subject_kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    cause TEXT NOT NULL,
    -- NULL where an earlier release kept it, which didn't say.
    since_unix_s REAL,
    PRIMARY KEY (subject_kind, subject)
) STRICT;

CREATE TRIGGER "seal_migrations_insert" AFTER INSERT ON "migrations" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('migrations', NEW."number", NEW."name", NEW."sha256")) & 4611686018427387903 WHERE name = 'migrations'; END;

CREATE TRIGGER "seal_migrations_delete" AFTER DELETE ON "migrations" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('migrations', OLD."number", OLD."name", OLD."sha256")) & 4611686018427387903 WHERE name = 'migrations'; END;

CREATE TRIGGER "seal_migrations_update" AFTER UPDATE ON "migrations" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('migrations', NEW."number", NEW."name", NEW."sha256") - boundd_checksum('migrations', OLD."number", OLD."name", OLD."sha256")) & 4611686018427387903 WHERE name = 'migrations'; END;

CREATE TRIGGER "seal_meta_insert" AFTER INSERT ON "meta" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('meta', NEW."name", NEW."value")) & 4611686018427387903 WHERE name = 'meta'; END;

CREATE TRIGGER "seal_meta_delete" AFTER DELETE ON "meta" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('meta', OLD."name", OLD."value")) & 4611686018427387903 WHERE name = 'meta'; END;

CREATE TRIGGER "seal_meta_update" AFTER UPDATE ON "meta" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('meta', NEW."name", NEW."value") - boundd_checksum('meta', OLD."name", OLD."value")) & 4611686018427387903 WHERE name = 'meta'; END;

CREATE TRIGGER "seal_facts_insert" AFTER INSERT ON "facts" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('facts', NEW."name", NEW."value")) & 4611686018427387903 WHERE name = 'facts'; END;

CREATE TRIGGER "seal_facts_delete" AFTER DELETE ON "facts" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('facts', OLD."name", OLD."value")) & 4611686018427387903 WHERE name = 'facts'; END;

CREATE TRIGGER "seal_facts_update" AFTER UPDATE ON "facts" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('facts', NEW."name", NEW."value") - boundd_checksum('facts', OLD."name", OLD."value")) & 4611686018427387903 WHERE name = 'facts'; END;

CREATE TRIGGER "seal_cells_insert" AFTER INSERT ON "cells" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('cells', NEW."key", NEW."digest", NEW."label", NEW."parameters", NEW."state", NEW."attempts", NEW."charged_failures", NEW."free_failures", NEW."memory_level", NEW."alone", NEW."batch_size", NEW."error_kind", NEW."error_message", NEW."error_at_unix_s", NEW."error_phase", NEW."error_requested_bytes", NEW."error_free_bytes", NEW."measurement", NEW."measured_device", NEW."measured_batch_size", NEW."duration_s", NEW."plain_failures", NEW."error_cause", NEW."error_why", NEW."error_evidence")) & 4611686018427387903 WHERE name = 'cells'; END;

CREATE TRIGGER "seal_cells_delete" AFTER DELETE ON "cells" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('cells', OLD."key", OLD."digest", OLD."label", OLD."parameters", OLD."state", OLD."attempts", OLD."charged_failures", OLD."free_failures", OLD."memory_level", OLD."alone", OLD."batch_size", OLD."error_kind", OLD."error_message", OLD."error_at_unix_s", OLD."error_phase", OLD."error_requested_bytes", OLD."error_free_bytes", OLD."measurement", OLD."measured_device", OLD."measured_batch_size", OLD."duration_s", OLD."plain_failures", OLD."error_cause", OLD."error_why", OLD."error_evidence")) & 4611686018427387903 WHERE name = 'cells'; END;

CREATE TRIGGER "seal_cells_update" AFTER UPDATE ON "cells" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('cells', NEW."key", NEW."digest", NEW."label", NEW."parameters", NEW."state", NEW."attempts", NEW."charged_failures", NEW."free_failures", NEW."memory_level", NEW."alone", NEW."batch_size", NEW."error_kind", NEW."error_message", NEW."error_at_unix_s", NEW."error_phase", NEW."error_requested_bytes", NEW."error_free_bytes", NEW."measurement", NEW."measured_device", NEW."measured_batch_size", NEW."duration_s", NEW."plain_failures", NEW."error_cause", NEW."error_why", NEW."error_evidence") - boundd_checksum('cells', OLD."key", OLD."digest", OLD."label", OLD."parameters", OLD."state", OLD."attempts", OLD."charged_failures", OLD."free_failures", OLD."memory_level", OLD."alone", OLD."batch_size", OLD."error_kind", OLD."error_message", OLD."error_at_unix_s", OLD."error_phase", OLD."error_requested_bytes", OLD."error_free_bytes", OLD."measurement", OLD."measured_device", OLD."measured_batch_size", OLD."duration_s", OLD."plain_failures", OLD."error_cause", OLD."error_why", OLD."error_evidence")) & 4611686018427387903 WHERE name = 'cells'; END;

CREATE TRIGGER "seal_attempts_insert" AFTER INSERT ON "attempts" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(NEW.id, 1, instr(NEW.id, '.') - 1), 1, (boundd_checksum('attempts', NEW."id", NEW."key", NEW."label", NEW."number", NEW."device", NEW."reservation_bytes", NEW."cap_bytes", NEW."batch_size", NEW."exclusive", NEW."timeout_s", NEW."grace_s", NEW."started_unix_s", NEW."started_boot_s", NEW."whole_device", NEW."had_company", NEW."state", NEW."end_reason", NEW."progress_done", NEW."progress_total", NEW."points", NEW."estimate_bytes", NEW."host_memory_bytes", NEW."cores", NEW."observed_peak_bytes", NEW."foreign_seen")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_attempts_delete" AFTER DELETE ON "attempts" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(OLD.id, 1, instr(OLD.id, '.') - 1), -1, (- boundd_checksum('attempts', OLD."id", OLD."key", OLD."label", OLD."number", OLD."device", OLD."reservation_bytes", OLD."cap_bytes", OLD."batch_size", OLD."exclusive", OLD."timeout_s", OLD."grace_s", OLD."started_unix_s", OLD."started_boot_s", OLD."whole_device", OLD."had_company", OLD."state", OLD."end_reason", OLD."progress_done", OLD."progress_total", OLD."points", OLD."estimate_bytes", OLD."host_memory_bytes", OLD."cores", OLD."observed_peak_bytes", OLD."foreign_seen")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_attempts_update" AFTER UPDATE ON "attempts" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(OLD.id, 1, instr(OLD.id, '.') - 1), -1, (- boundd_checksum('attempts', OLD."id", OLD."key", OLD."label", OLD."number", OLD."device", OLD."reservation_bytes", OLD."cap_bytes", OLD."batch_size", OLD."exclusive", OLD."timeout_s", OLD."grace_s", OLD."started_unix_s", OLD."started_boot_s", OLD."whole_device", OLD."had_company", OLD."state", OLD."end_reason", OLD."progress_done", OLD."progress_total", OLD."points", OLD."estimate_bytes", OLD."host_memory_bytes", OLD."cores", OLD."observed_peak_bytes", OLD."foreign_seen")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; INSERT INTO histories (digest, rows, sum) VALUES (substr(NEW.id, 1, instr(NEW.id, '.') - 1), 1, (boundd_checksum('attempts', NEW."id", NEW."key", NEW."label", NEW."number", NEW."device", NEW."reservation_bytes", NEW."cap_bytes", NEW."batch_size", NEW."exclusive", NEW."timeout_s", NEW."grace_s", NEW."started_unix_s", NEW."started_boot_s", NEW."whole_device", NEW."had_company", NEW."state", NEW."end_reason", NEW."progress_done", NEW."progress_total", NEW."points", NEW."estimate_bytes", NEW."host_memory_bytes", NEW."cores", NEW."observed_peak_bytes", NEW."foreign_seen")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_ends_insert" AFTER INSERT ON "ends" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(NEW.attempt_id, 1, instr(NEW.attempt_id, '.') - 1), 1, (boundd_checksum('ends', NEW."attempt_id", NEW."ended_unix_s", NEW."outcome", NEW."measurement", NEW."error_kind", NEW."error_message", NEW."error_at_unix_s", NEW."error_phase", NEW."error_requested_bytes", NEW."error_free_bytes", NEW."exit_status", NEW."signal", NEW."wall_s", NEW."peak_allocated_bytes", NEW."peak_reserved_bytes", NEW."error_cause", NEW."error_why", NEW."host_peak_bytes", NEW."error_evidence")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_ends_delete" AFTER DELETE ON "ends" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(OLD.attempt_id, 1, instr(OLD.attempt_id, '.') - 1), -1, (- boundd_checksum('ends', OLD."attempt_id", OLD."ended_unix_s", OLD."outcome", OLD."measurement", OLD."error_kind", OLD."error_message", OLD."error_at_unix_s", OLD."error_phase", OLD."error_requested_bytes", OLD."error_free_bytes", OLD."exit_status", OLD."signal", OLD."wall_s", OLD."peak_allocated_bytes", OLD."peak_reserved_bytes", OLD."error_cause", OLD."error_why", OLD."host_peak_bytes", OLD."error_evidence")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_ends_update" AFTER UPDATE ON "ends" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(OLD.attempt_id, 1, instr(OLD.attempt_id, '.') - 1), -1, (- boundd_checksum('ends', OLD."attempt_id", OLD."ended_unix_s", OLD."outcome", OLD."measurement", OLD."error_kind", OLD."error_message", OLD."error_at_unix_s", OLD."error_phase", OLD."error_requested_bytes", OLD."error_free_bytes", OLD."exit_status", OLD."signal", OLD."wall_s", OLD."peak_allocated_bytes", OLD."peak_reserved_bytes", OLD."error_cause", OLD."error_why", OLD."host_peak_bytes", OLD."error_evidence")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; INSERT INTO histories (digest, rows, sum) VALUES (substr(NEW.attempt_id, 1, instr(NEW.attempt_id, '.') - 1), 1, (boundd_checksum('ends', NEW."attempt_id", NEW."ended_unix_s", NEW."outcome", NEW."measurement", NEW."error_kind", NEW."error_message", NEW."error_at_unix_s", NEW."error_phase", NEW."error_requested_bytes", NEW."error_free_bytes", NEW."exit_status", NEW."signal", NEW."wall_s", NEW."peak_allocated_bytes", NEW."peak_reserved_bytes", NEW."error_cause", NEW."error_why", NEW."host_peak_bytes", NEW."error_evidence")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_points_insert" AFTER INSERT ON "points" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(NEW.attempt_id, 1, instr(NEW.attempt_id, '.') - 1), 1, (boundd_checksum('points', NEW."attempt_id", NEW."idx", NEW."parameters", NEW."speedup", NEW."score_loss", NEW."isolation", NEW."details")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_points_delete" AFTER DELETE ON "points" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(OLD.attempt_id, 1, instr(OLD.attempt_id, '.') - 1), -1, (- boundd_checksum('points', OLD."attempt_id", OLD."idx", OLD."parameters", OLD."speedup", OLD."score_loss", OLD."isolation", OLD."details")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_points_update" AFTER UPDATE ON "points" BEGIN INSERT INTO histories (digest, rows, sum) VALUES (substr(OLD.attempt_id, 1, instr(OLD.attempt_id, '.') - 1), -1, (- boundd_checksum('points', OLD."attempt_id", OLD."idx", OLD."parameters", OLD."speedup", OLD."score_loss", OLD."isolation", OLD."details")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; INSERT INTO histories (digest, rows, sum) VALUES (substr(NEW.attempt_id, 1, instr(NEW.attempt_id, '.') - 1), 1, (boundd_checksum('points', NEW."attempt_id", NEW."idx", NEW."parameters", NEW."speedup", NEW."score_loss", NEW."isolation", NEW."details")) & 4611686018427387903) ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903; END;

CREATE TRIGGER "seal_observations_insert" AFTER INSERT ON "observations" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('observations', NEW."id", NEW."subject", NEW."batch_size", NEW."peak_bytes", NEW."censored", NEW."pixels", NEW."torch", NEW."host_peak_bytes", NEW."estimate_bytes")) & 4611686018427387903 WHERE name = 'observations'; END;

CREATE TRIGGER "seal_observations_delete" AFTER DELETE ON "observations" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('observations', OLD."id", OLD."subject", OLD."batch_size", OLD."peak_bytes", OLD."censored", OLD."pixels", OLD."torch", OLD."host_peak_bytes", OLD."estimate_bytes")) & 4611686018427387903 WHERE name = 'observations'; END;

CREATE TRIGGER "seal_observations_update" AFTER UPDATE ON "observations" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('observations', NEW."id", NEW."subject", NEW."batch_size", NEW."peak_bytes", NEW."censored", NEW."pixels", NEW."torch", NEW."host_peak_bytes", NEW."estimate_bytes") - boundd_checksum('observations', OLD."id", OLD."subject", OLD."batch_size", OLD."peak_bytes", OLD."censored", OLD."pixels", OLD."torch", OLD."host_peak_bytes", OLD."estimate_bytes")) & 4611686018427387903 WHERE name = 'observations'; END;

CREATE TRIGGER "seal_durations_insert" AFTER INSERT ON "durations" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('durations', NEW."id", NEW."model", NEW."method", NEW."device_name", NEW."steps", NEW."samples", NEW."batch_size", NEW."wall_s")) & 4611686018427387903 WHERE name = 'durations'; END;

CREATE TRIGGER "seal_durations_delete" AFTER DELETE ON "durations" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('durations', OLD."id", OLD."model", OLD."method", OLD."device_name", OLD."steps", OLD."samples", OLD."batch_size", OLD."wall_s")) & 4611686018427387903 WHERE name = 'durations'; END;

CREATE TRIGGER "seal_durations_update" AFTER UPDATE ON "durations" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('durations', NEW."id", NEW."model", NEW."method", NEW."device_name", NEW."steps", NEW."samples", NEW."batch_size", NEW."wall_s") - boundd_checksum('durations', OLD."id", OLD."model", OLD."method", OLD."device_name", OLD."steps", OLD."samples", OLD."batch_size", OLD."wall_s")) & 4611686018427387903 WHERE name = 'durations'; END;

CREATE TRIGGER "seal_histories_insert" AFTER INSERT ON "histories" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('histories', NEW."digest", NEW."rows", NEW."sum")) & 4611686018427387903 WHERE name = 'histories'; END;

CREATE TRIGGER "seal_histories_delete" AFTER DELETE ON "histories" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('histories', OLD."digest", OLD."rows", OLD."sum")) & 4611686018427387903 WHERE name = 'histories'; END;

CREATE TRIGGER "seal_histories_update" AFTER UPDATE ON "histories" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('histories', NEW."digest", NEW."rows", NEW."sum") - boundd_checksum('histories', OLD."digest", OLD."rows", OLD."sum")) & 4611686018427387903 WHERE name = 'histories'; END;

CREATE TRIGGER "seal_answers_insert" AFTER INSERT ON "answers" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('answers', NEW."id", NEW."uid", NEW."key", NEW."request_sha256", NEW."at_unix_s", NEW."body")) & 4611686018427387903 WHERE name = 'answers'; END;

CREATE TRIGGER "seal_answers_delete" AFTER DELETE ON "answers" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('answers', OLD."id", OLD."uid", OLD."key", OLD."request_sha256", OLD."at_unix_s", OLD."body")) & 4611686018427387903 WHERE name = 'answers'; END;

CREATE TRIGGER "seal_answers_update" AFTER UPDATE ON "answers" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('answers', NEW."id", NEW."uid", NEW."key", NEW."request_sha256", NEW."at_unix_s", NEW."body") - boundd_checksum('answers', OLD."id", OLD."uid", OLD."key", OLD."request_sha256", OLD."at_unix_s", OLD."body")) & 4611686018427387903 WHERE name = 'answers'; END;

CREATE TRIGGER "seal_quarantines_insert" AFTER INSERT ON "quarantines" BEGIN UPDATE seals SET rows = rows + 1, sum = (sum + boundd_checksum('quarantines', NEW."subject_kind", NEW."subject", NEW."cause", NEW."since_unix_s")) & 4611686018427387903 WHERE name = 'quarantines'; END;

CREATE TRIGGER "seal_quarantines_delete" AFTER DELETE ON "quarantines" BEGIN UPDATE seals SET rows = rows - 1, sum = (sum - boundd_checksum('quarantines', OLD."subject_kind", OLD."subject", OLD."cause", OLD."since_unix_s")) & 4611686018427387903 WHERE name = 'quarantines'; END;

CREATE TRIGGER "seal_quarantines_update" AFTER UPDATE ON "quarantines" BEGIN UPDATE seals SET sum = (sum + boundd_checksum('quarantines', NEW."subject_kind", NEW."subject", NEW."cause", NEW."since_unix_s") - boundd_checksum('quarantines', OLD."subject_kind", OLD."subject", OLD."cause", OLD."since_unix_s")) & 4611686018427387903 WHERE name = 'quarantines'; END;
