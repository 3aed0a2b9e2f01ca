"""Every SQL statement of the store, by name. The schema is in `migrations/`.

Rules: values are always bound, never written into the text; a row that may be saved again is upserted, never
`REPLACE`d, since that would delete it and its order; `ends` is the one table with a plain insert.
"""

from __future__ import annotations

BEGIN = "BEGIN IMMEDIATE"
"""Take the write lock at once, so that a transaction can't fail half-way for want of it."""

COMMIT = "COMMIT"
"""Make the transaction durable (WAL, synchronous=FULL: synced before it returns). Deferred references are checked."""

ROLLBACK = "ROLLBACK"
"""Forget the transaction."""

PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = ON",
    "PRAGMA wal_autocheckpoint = 0",
)
"""What every connection needs, as none of it is kept in the file. The timeout is in milliseconds; some builds of SQLite
don't let triggers call an application's function unless the schema is said to be trusted. A checkpoint that SQLite
makes by itself, after a COMMIT, keeps its errors to itself."""

JOURNAL_WAL = "PRAGMA journal_mode = WAL"
"""Switch to the write-ahead log; answers with the mode that is now used."""

CHECKPOINT_SOME = "PRAGMA wal_checkpoint(PASSIVE)"
"""Bring as much of the log to the database file as nobody reads, and sync that; waits for nobody. The next commit after
all of it was brought begins the log anew."""

CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"
"""Bring all of the log to the database file, sync that, and empty the log; the first number is 1 where it could not."""

SAVE_CELL = """
INSERT INTO cells (
    key, digest, label, parameters, state, attempts, charged_failures, plain_failures, free_failures, memory_level,
    alone, batch_size, error_kind, error_message, error_at_unix_s, error_phase, error_requested_bytes,
    error_free_bytes, error_cause, error_why, measurement, measured_device, measured_batch_size, duration_s
) VALUES (
    :key, :digest, :label, :parameters, :state, :attempts, :charged_failures, :plain_failures, :free_failures,
    :memory_level, :alone, :batch_size, :error_kind, :error_message, :error_at_unix_s, :error_phase,
    :error_requested_bytes, :error_free_bytes, :error_cause, :error_why, :measurement, :measured_device,
    :measured_batch_size, :duration_s
) ON CONFLICT (key) DO UPDATE SET
    digest = excluded.digest, label = excluded.label, parameters = excluded.parameters, state = excluded.state,
    attempts = excluded.attempts, charged_failures = excluded.charged_failures,
    plain_failures = excluded.plain_failures, free_failures = excluded.free_failures,
    memory_level = excluded.memory_level, alone = excluded.alone, batch_size = excluded.batch_size,
    error_kind = excluded.error_kind, error_message = excluded.error_message,
    error_at_unix_s = excluded.error_at_unix_s, error_phase = excluded.error_phase,
    error_requested_bytes = excluded.error_requested_bytes, error_free_bytes = excluded.error_free_bytes,
    error_cause = excluded.error_cause, error_why = excluded.error_why, measurement = excluded.measurement,
    measured_device = excluded.measured_device, measured_batch_size = excluded.measured_batch_size,
    duration_s = excluded.duration_s
"""
"""Insert a cell or replace all of its row but the key."""

SAVE_ATTEMPT = """
INSERT INTO attempts (
    id, key, label, number, device, reservation_bytes, cap_bytes, batch_size, exclusive, timeout_s, grace_s,
    started_unix_s, started_boot_s, whole_device, had_company, estimate_bytes, host_memory_bytes, cores,
    observed_peak_bytes, foreign_seen, state, end_reason, progress_done, progress_total, points
) VALUES (
    :id, :key, :label, :number, :device, :reservation_bytes, :cap_bytes, :batch_size, :exclusive, :timeout_s, :grace_s,
    :started_unix_s, :started_boot_s, :whole_device, :had_company, :estimate_bytes, :host_memory_bytes, :cores,
    :observed_peak_bytes, :foreign_seen, :state, :end_reason, :progress_done, :progress_total, :points
) ON CONFLICT (id) DO UPDATE SET
    key = excluded.key, label = excluded.label, number = excluded.number, device = excluded.device,
    reservation_bytes = excluded.reservation_bytes, cap_bytes = excluded.cap_bytes, batch_size = excluded.batch_size,
    exclusive = excluded.exclusive, timeout_s = excluded.timeout_s, grace_s = excluded.grace_s,
    started_unix_s = excluded.started_unix_s, started_boot_s = excluded.started_boot_s,
    whole_device = excluded.whole_device, had_company = excluded.had_company,
    estimate_bytes = excluded.estimate_bytes, host_memory_bytes = excluded.host_memory_bytes, cores = excluded.cores,
    observed_peak_bytes = excluded.observed_peak_bytes, foreign_seen = excluded.foreign_seen, state = excluded.state,
    end_reason = excluded.end_reason, progress_done = excluded.progress_done,
    progress_total = excluded.progress_total, points = excluded.points
"""
"""Insert an attempt or replace all of its row but the id. Two ids with one (key, number) are refused."""

INSERT_END = """
INSERT INTO ends (
    attempt_id, ended_unix_s, outcome, measurement, error_kind, error_message, error_at_unix_s, error_phase,
    error_requested_bytes, error_free_bytes, error_cause, error_why, exit_status, signal, wall_s,
    peak_allocated_bytes, peak_reserved_bytes, host_peak_bytes
) VALUES (
    :attempt_id, :ended_unix_s, :outcome, :measurement, :error_kind, :error_message, :error_at_unix_s, :error_phase,
    :error_requested_bytes, :error_free_bytes, :error_cause, :error_why, :exit_status, :signal, :wall_s,
    :peak_allocated_bytes, :peak_reserved_bytes, :host_peak_bytes
)
"""
"""Record how an attempt ended. A second one for the same attempt breaks the primary key."""

SAVE_POINT = """
INSERT INTO points (attempt_id, idx, parameters, speedup, score_loss, isolation, details)
VALUES (:attempt_id, :idx, :parameters, :speedup, :score_loss, :isolation, :details)
ON CONFLICT (attempt_id, idx) DO UPDATE SET
    parameters = excluded.parameters, speedup = excluded.speedup, score_loss = excluded.score_loss,
    isolation = excluded.isolation, details = excluded.details
"""
"""Keep a point. A results file that is read again after a restart saves the same points again."""

INSERT_OBSERVATION = """
INSERT INTO observations (subject, batch_size, peak_bytes, censored, pixels, torch, host_peak_bytes, estimate_bytes)
VALUES (:subject, :batch_size, :peak_bytes, :censored, :pixels, :torch, :host_peak_bytes, :estimate_bytes)
"""
"""Keep one attempt's memory."""

INSERT_DURATION = """
INSERT INTO durations (model, method, device_name, steps, samples, batch_size, wall_s)
VALUES (:model, :method, :device_name, :steps, :samples, :batch_size, :wall_s)
"""
"""Keep how long one attempt took."""

SAVE_CORDON = """
INSERT INTO cordons (device, reason) VALUES (:device, :reason)
ON CONFLICT (device) DO UPDATE SET reason = excluded.reason
"""
"""Put a device out of service, or change why."""

DELETE_CORDON = "DELETE FROM cordons WHERE device = :device"
"""Put a device back; nothing happens where it was not cordoned."""

SAVE_META = "INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
"""Set one of the daemon's switches."""

SAVE_FACT = "INSERT INTO facts (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
"""Remember a fact, instead of what it was before."""

DELETE_OLD_ANSWERS = "DELETE FROM answers WHERE at_unix_s < :oldest_unix_s"
"""Forget the answers that nobody will ask for any more."""

SAVE_ANSWER = """
INSERT INTO answers (uid, key, request_sha256, at_unix_s, body) VALUES (:uid, :key, :request_sha256, :at_unix_s, :body)
"""
"""Keep an answer. A second one for the same key is refused, and with it the change that it would have been for."""

DELETE_SURPLUS_ANSWERS = "DELETE FROM answers WHERE id <= (SELECT max(id) FROM answers) - :most"
"""Keep only the newest answers."""

LOAD_ANSWER = """
SELECT request_sha256, at_unix_s, body FROM answers WHERE uid = :uid AND key = :key AND at_unix_s >= :oldest_unix_s
"""
"""What a request was answered with; no row where it was not, or too long ago."""

LOAD_CELLS = "SELECT * FROM cells ORDER BY rowid"
"""Every cell, in the order in which they were first saved."""

LOAD_LIVE_ATTEMPTS = """
SELECT * FROM attempts WHERE NOT EXISTS (SELECT 1 FROM ends WHERE ends.attempt_id = attempts.id) ORDER BY rowid
"""
"""The attempts without an end, in the order in which they were begun."""

LOAD_OBSERVATIONS = """
SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY subject ORDER BY id DESC) AS age FROM observations)
WHERE age <= :kept ORDER BY id
"""
"""The newest observations of each subject, as many as a daemon uses, oldest first."""

LOAD_DURATIONS = """
SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY model ORDER BY id DESC) AS age FROM durations)
WHERE age <= :kept ORDER BY id
"""
"""The newest durations of each model, as many as a daemon uses, oldest first."""

LOAD_CORDONS = "SELECT device, reason FROM cordons ORDER BY device"
"""The devices out of service and why."""

LOAD_META = "SELECT value FROM meta WHERE name = :name"
"""One of the daemon's switches; no row where it was never set."""

LOAD_FACT = "SELECT value FROM facts WHERE name = :name"
"""A fact; no row where it was never remembered."""

_PAGE = """
SELECT * FROM attempts WHERE key = :key AND (:before IS NULL OR number < :before) ORDER BY number DESC LIMIT :limit
"""
"""The latest attempts of a cell, of those before a number if one is given; all of them with a negative limit."""

LOAD_ATTEMPTS_OF = f"SELECT * FROM ({_PAGE}) ORDER BY number"  # noqa: S608
"""A page of a cell's attempts, oldest first."""

LOAD_ENDS_OF = f"SELECT ends.* FROM ends JOIN ({_PAGE}) AS page ON page.id = ends.attempt_id"  # noqa: S608
"""The ends of these attempts."""

LOAD_POINTS_OF = (
    f"SELECT points.* FROM points JOIN ({_PAGE}) AS page ON page.id = points.attempt_id "  # noqa: S608
    "ORDER BY page.number, points.idx"
)
"""The points of these attempts, in the order in which they were measured."""

LOAD_HISTORY = "SELECT number, name, sha256 FROM migrations ORDER BY number"
"""The migrations that made this store what it is."""

INSERT_MIGRATION = "INSERT INTO migrations (number, name, sha256) VALUES (:number, :name, :sha256)"
"""Record a migration, in the transaction that applies it."""

LOAD_SCHEMA = (
    "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
)
"""The text of every table and index, in the order in which they were made."""

HAS_SEALS = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'seals'"
"""A row where the schema has seals."""

LOAD_TABLES = (
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
)
"""Every table, in the order in which they were made."""

LOAD_OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
"""Every table, index and trigger. Where their first pages are isn't part of what they are."""

LOAD_COLUMNS = "SELECT name FROM pragma_table_info(?) ORDER BY cid"
"""A table's columns, in its order."""

LOAD_SEAL_TRIGGERS = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'seal\\_%' ESCAPE '\\'"
"""The triggers that keep the seals."""

LOAD_SEALS = "SELECT name, rows, sum FROM seals"
"""What every table's rows and sum of checksums should be."""

INSERT_SEAL = "INSERT INTO seals (name, rows, sum) VALUES (:name, :rows, :sum)"
"""Seal a table as it is."""

LOAD_HISTORY_SEALS = "SELECT digest, rows, sum FROM histories"
"""The same for every cell's history."""

LOAD_HISTORY_SEAL = "SELECT rows, sum FROM histories WHERE digest = :digest"
"""The same for one."""

ADD_TO_HISTORY = """
INSERT INTO histories (digest, rows, sum) VALUES (:digest, :rows, :sum)
ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903
"""
"""Add rows and the sum of their checksums to a history's seal."""

LOAD_LIVE_DIGESTS = """
SELECT digest FROM cells WHERE state = 'running'
UNION SELECT substr(id, 1, instr(id, '.') - 1) FROM attempts
WHERE NOT EXISTS (SELECT 1 FROM ends WHERE ends.attempt_id = attempts.id)
"""
"""The cells with an attempt that has no end, and those that should have one."""

LOAD_DIGEST = "SELECT digest FROM cells WHERE key = :key"
"""A cell's digest."""

LOAD_STORE_ID = "SELECT value FROM meta WHERE name = 'store'"
"""Which store this is."""

LOAD_NUMBER = "SELECT number FROM commits"
"""How many commits it has taken."""

COUNT_COMMIT = "UPDATE commits SET number = number + 1 RETURNING number"
"""Number the commit that is under way; the last statement before COMMIT."""

INTEGRITY_CHECK = "PRAGMA integrity_check"
"""One row 'ok', or what is damaged. Not the quick one: that doesn't compare indexes with their tables, and a row that
its index doesn't lead to would be inserted again."""

FOREIGN_KEY_CHECK = "PRAGMA foreign_key_check"
"""No row, or the references that point to nothing."""
