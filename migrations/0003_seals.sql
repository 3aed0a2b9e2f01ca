-- How damage is noticed that SQLite doesn't check for (docs/store.md, "How damage is noticed"). The sums and the
-- triggers that keep them are made after every migration, for all tables that there are then.

-- One row a table but those of the histories: how many rows it has, and the sum of their checksums modulo 2^62.
CREATE TABLE seals (
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

-- The same for the attempts, ends and points of one cell, by its digest.
CREATE TABLE histories (
    digest TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

-- One row: how many commits this store has taken. The file beside the store says how many were acknowledged.
CREATE TABLE commits (
    number INTEGER NOT NULL
) STRICT;
INSERT INTO commits (number) VALUES (0);

-- Which store this is, so that another one in its place is noticed.
INSERT INTO meta (name, value) VALUES ('store', lower(hex(randomblob(8))));
