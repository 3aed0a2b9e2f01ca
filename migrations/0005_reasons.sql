-- Reasons as data: who is held back and why, and how it was told why memory ran out, each as JSON with a kind and numbers.

CREATE TABLE quarantines (
    -- What is held back: a device by its UUID, a kind of work, an environment.
    subject_kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    cause TEXT NOT NULL,
    -- NULL where an earlier release kept it, which didn't say.
    since_unix_s REAL,
    PRIMARY KEY (subject_kind, subject)
) STRICT;

-- What earlier releases kept was a sentence, a person's or boundd's own: it is taken for a person's.
INSERT INTO quarantines (subject_kind, subject, cause)
SELECT 'device', device, json_object('kind', 'operator', 'reason', reason) FROM cordons;

DROP TABLE cordons;

-- error_why stays as it is in older rows: a sentence.
ALTER TABLE cells ADD COLUMN error_evidence TEXT;
ALTER TABLE ends ADD COLUMN error_evidence TEXT;
