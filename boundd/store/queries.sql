-- Every SQL statement of the store that is always the same, each after its name and what it is for; the schema is in
-- migrations/. boundd/store/queries.py reads this file.
--
-- Values are always bound, never written into the text. A row that may be saved again is upserted, never REPLACEd, since
-- that would delete it and its order; `ends` is the one table with a plain insert.

-- Transactions

-- name: begin
-- Take the write lock at once, so that a transaction can't fail half-way for want of it.
BEGIN IMMEDIATE;

-- name: commit
-- Make the transaction durable (WAL, synchronous=FULL: synced before it returns). Deferred references are checked.
COMMIT;

-- name: rollback
-- Forget the transaction.
ROLLBACK;

-- The write-ahead log

-- name: journal_wal
-- Switch to the write-ahead log; answers with the mode that is now used.
PRAGMA journal_mode = WAL;

-- name: checkpoint_some
-- Bring as much of the log to the database file as nobody reads, and sync that; waits for nobody. The next commit
-- after all of it was brought begins the log anew.
PRAGMA wal_checkpoint(PASSIVE);

-- name: checkpoint
-- Bring all of the log to the database file, sync that, and empty the log; the first number is 1 where it could not.
PRAGMA wal_checkpoint(TRUNCATE);

-- What the daemon keeps

-- name: save_cell
-- Insert a cell or replace all of its row but the key.
INSERT INTO cells (
    key, digest, label, parameters, state, attempts, charged_failures, plain_failures, free_failures, memory_level,
    alone, batch_size, error_kind, error_message, error_at_unix_s, error_phase, error_requested_bytes,
    error_free_bytes, error_cause, error_why, error_evidence, measurement, measured_device,
    measured_batch_size, duration_s
) VALUES (
    :key, :digest, :label, :parameters, :state, :attempts, :charged_failures, :plain_failures, :free_failures,
    :memory_level, :alone, :batch_size, :error_kind, :error_message, :error_at_unix_s, :error_phase,
    :error_requested_bytes, :error_free_bytes, :error_cause, :error_why, :error_evidence, :measurement,
    :measured_device, :measured_batch_size, :duration_s
) ON CONFLICT (key) DO UPDATE SET
    digest = excluded.digest, label = excluded.label, parameters = excluded.parameters, state = excluded.state,
    attempts = excluded.attempts, charged_failures = excluded.charged_failures,
    plain_failures = excluded.plain_failures, free_failures = excluded.free_failures,
    memory_level = excluded.memory_level, alone = excluded.alone, batch_size = excluded.batch_size,
    error_kind = excluded.error_kind, error_message = excluded.error_message,
    error_at_unix_s = excluded.error_at_unix_s, error_phase = excluded.error_phase,
    error_requested_bytes = excluded.error_requested_bytes, error_free_bytes = excluded.error_free_bytes,
    error_cause = excluded.error_cause, error_why = excluded.error_why,
    error_evidence = excluded.error_evidence, measurement = excluded.measurement,
    measured_device = excluded.measured_device, measured_batch_size = excluded.measured_batch_size,
    duration_s = excluded.duration_s;

-- name: save_attempt
-- Insert an attempt or replace all of its row but the id. Two ids with one (key, number) are refused.
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
    progress_total = excluded.progress_total, points = excluded.points;

-- name: insert_end
-- Record how an attempt ended. A second one for the same attempt breaks the primary key.
INSERT INTO ends (
    attempt_id, ended_unix_s, outcome, measurement, error_kind, error_message, error_at_unix_s, error_phase,
    error_requested_bytes, error_free_bytes, error_cause, error_why, error_evidence, exit_status, signal,
    wall_s,
    peak_allocated_bytes, peak_reserved_bytes, host_peak_bytes
) VALUES (
    :attempt_id, :ended_unix_s, :outcome, :measurement, :error_kind, :error_message, :error_at_unix_s, :error_phase,
    :error_requested_bytes, :error_free_bytes, :error_cause, :error_why, :error_evidence, :exit_status, :signal,
    :wall_s,
    :peak_allocated_bytes, :peak_reserved_bytes, :host_peak_bytes
);

-- name: save_point
-- Keep a point. A results file that is read again after a restart saves the same points again.
INSERT INTO points (attempt_id, idx, parameters, speedup, score_loss, isolation, details)
VALUES (:attempt_id, :idx, :parameters, :speedup, :score_loss, :isolation, :details)
ON CONFLICT (attempt_id, idx) DO UPDATE SET
    parameters = excluded.parameters, speedup = excluded.speedup, score_loss = excluded.score_loss,
    isolation = excluded.isolation, details = excluded.details;

-- name: insert_observation
-- Keep one attempt's memory.
INSERT INTO observations (subject, batch_size, peak_bytes, censored, pixels, torch, host_peak_bytes, estimate_bytes)
VALUES (:subject, :batch_size, :peak_bytes, :censored, :pixels, :torch, :host_peak_bytes, :estimate_bytes);

-- name: insert_duration
-- Keep how long one attempt took.
INSERT INTO durations (model, method, device_name, steps, samples, batch_size, wall_s)
VALUES (:model, :method, :device_name, :steps, :samples, :batch_size, :wall_s);

-- name: save_quarantine
-- Hold a subject back, or change why.
INSERT INTO quarantines (subject_kind, subject, cause, since_unix_s)
VALUES (:subject_kind, :subject, :cause, :since_unix_s)
ON CONFLICT (subject_kind, subject) DO UPDATE SET cause = excluded.cause, since_unix_s = excluded.since_unix_s;

-- name: delete_quarantine
-- Let a subject out; nothing happens where it was not held back.
DELETE FROM quarantines WHERE subject_kind = :subject_kind AND subject = :subject;

-- name: save_meta
-- Set one of the daemon's switches.
INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value;

-- name: save_fact
-- Remember a fact, instead of what it was before.
INSERT INTO facts (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value;

-- name: delete_old_answers
-- Forget the answers that nobody will ask for any more.
DELETE FROM answers WHERE at_unix_s < :oldest_unix_s;

-- name: save_answer
-- Keep an answer. A second one for the same key is refused, and with it the change that it would have been for.
INSERT INTO answers (uid, key, request_sha256, at_unix_s, body) VALUES (:uid, :key, :request_sha256, :at_unix_s, :body);

-- name: delete_surplus_answers
-- Keep only the newest answers.
DELETE FROM answers WHERE id <= (SELECT max(id) FROM answers) - :most;

-- What it reads

-- name: load_answer
-- What a request was answered with; no row where it was not, or too long ago.
SELECT request_sha256, at_unix_s, body FROM answers WHERE uid = :uid AND key = :key AND at_unix_s >= :oldest_unix_s;

-- name: load_cells
-- Every cell, in the order in which they were first saved.
SELECT * FROM cells ORDER BY rowid;

-- name: load_live_attempts
-- The attempts without an end, in the order in which they were begun.
SELECT * FROM attempts WHERE NOT EXISTS (SELECT 1 FROM ends WHERE ends.attempt_id = attempts.id) ORDER BY rowid;

-- name: load_observations
-- The newest observations of each subject, as many as a daemon uses, oldest first.
SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY subject ORDER BY id DESC) AS age FROM observations)
WHERE age <= :kept ORDER BY id;

-- name: load_durations
-- The newest durations of each model, as many as a daemon uses, oldest first.
SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY model ORDER BY id DESC) AS age FROM durations)
WHERE age <= :kept ORDER BY id;

-- name: load_quarantines
-- Who is held back, and why.
SELECT * FROM quarantines ORDER BY subject_kind, subject;

-- name: load_meta
-- One of the daemon's switches; no row where it was never set.
SELECT value FROM meta WHERE name = :name;

-- name: load_fact
-- A fact; no row where it was never remembered.
SELECT value FROM facts WHERE name = :name;

-- name: load_attempts_of
-- The latest attempts of a cell, oldest first, of those before a number if one is given; all with a negative limit.
SELECT * FROM (
    SELECT * FROM attempts WHERE key = :key AND (:before IS NULL OR number < :before)
    ORDER BY number DESC LIMIT :limit
) ORDER BY number;

-- name: load_ends_of
-- The ends of a cell's attempts with these numbers.
SELECT ends.* FROM ends JOIN attempts ON attempts.id = ends.attempt_id
WHERE attempts.key = :key AND attempts.number BETWEEN :first AND :last;

-- name: load_points_of
-- The points of a cell's attempts with these numbers, in the order in which they were measured.
SELECT points.* FROM points JOIN attempts ON attempts.id = points.attempt_id
WHERE attempts.key = :key AND attempts.number BETWEEN :first AND :last
ORDER BY attempts.number, points.idx;

-- Migrations and the schema

-- name: load_history
-- The migrations that made this store what it is.
SELECT number, name, sha256 FROM migrations ORDER BY number;

-- name: insert_migration
-- Record a migration, in the transaction that applies it.
INSERT INTO migrations (number, name, sha256) VALUES (:number, :name, :sha256);

-- name: load_schema
-- The text of every table and index, in the order in which they were made.
SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY rowid;

-- Seals (boundd/store/seals.py makes the triggers' texts, which follow from the tables' columns)

-- name: has_seals
-- A row where the schema has seals.
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'seals';

-- name: load_tables
-- Every table, in the order in which they were made.
SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY rowid;

-- name: load_objects
-- Every table, index and trigger. Where their first pages are isn't part of what they are.
SELECT type, name, tbl_name, sql FROM sqlite_schema;

-- name: load_columns
-- A table's columns, in its order.
SELECT name FROM pragma_table_info(?) ORDER BY cid;

-- name: load_seal_triggers
-- The triggers that keep the seals.
SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'seal\_%' ESCAPE '\';

-- name: load_seals
-- What every table's rows and sum of checksums should be.
SELECT name, rows, sum FROM seals;

-- name: insert_seal
-- Seal a table as it is.
INSERT INTO seals (name, rows, sum) VALUES (:name, :rows, :sum);

-- name: load_history_seals
-- How many rows the history of every cell has, and the sum of their checksums.
SELECT digest, rows, sum FROM histories;

-- name: load_history_seal
-- How many rows the history of one cell has, and the sum of their checksums.
SELECT rows, sum FROM histories WHERE digest = :digest;

-- name: add_to_history
-- Add rows and the sum of their checksums to a history's seal.
INSERT INTO histories (digest, rows, sum) VALUES (:digest, :rows, :sum)
ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & 4611686018427387903;

-- name: load_live_digests
-- The cells with an attempt that has no end, and those that should have one.
SELECT digest FROM cells WHERE state = 'running'
UNION SELECT substr(id, 1, instr(id, '.') - 1) FROM attempts
WHERE NOT EXISTS (SELECT 1 FROM ends WHERE ends.attempt_id = attempts.id);

-- name: load_digest
-- A cell's digest.
SELECT digest FROM cells WHERE key = :key;

-- Which store this is, and how many commits it took

-- name: load_store_id
-- Which store this is.
SELECT value FROM meta WHERE name = 'store';

-- name: load_number
-- How many commits it has taken.
SELECT number FROM commits;

-- name: count_commit
-- Number the commit that is under way; the last statement before COMMIT.
UPDATE commits SET number = number + 1 RETURNING number;

-- Damage

-- name: integrity_check
-- One row 'ok', or what is damaged. Not the quick one: that doesn't compare indexes with their tables, and a row that
-- its index doesn't lead to would be inserted again.
PRAGMA integrity_check;

-- name: foreign_key_check
-- No row, or the references that point to nothing.
PRAGMA foreign_key_check;
