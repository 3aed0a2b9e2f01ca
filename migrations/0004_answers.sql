-- Answers to requests that came with an Idempotency-Key, kept in the transaction of what they changed.
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
