"""The store's SQL statements, by name: boundd/store/queries.sql has each, with what it is for."""

from __future__ import annotations

import re
from pathlib import Path

_NAMED = re.compile(r"^-- name: (\w+)\n(?:-- (?!name: ).*\n)+", re.MULTILINE)


def read_queries(text: str) -> dict[str, str]:
    """The statements of a file, by name: after `-- name: NAME` and at least a line of comment, to the next semicolon.

    Raises:
        ValueError: a name has no statement or comes twice.
    """
    found: dict[str, str] = {}
    for match in _NAMED.finditer(text):
        name, end = match[1], text.find(";\n", match.end())
        sql = text[match.end() : end].strip()
        if end < 0 or not sql or sql.startswith("--"):
            raise ValueError(f"{name} has no statement that ends with a semicolon at the end of a line")
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = sql
    return found


_QUERIES = read_queries(Path(__file__).with_name("queries.sql").read_text(encoding="utf-8"))

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

BEGIN = _QUERIES["begin"]
COMMIT = _QUERIES["commit"]
ROLLBACK = _QUERIES["rollback"]
JOURNAL_WAL = _QUERIES["journal_wal"]
CHECKPOINT_SOME = _QUERIES["checkpoint_some"]
CHECKPOINT = _QUERIES["checkpoint"]
SAVE_CELL = _QUERIES["save_cell"]
SAVE_ATTEMPT = _QUERIES["save_attempt"]
INSERT_END = _QUERIES["insert_end"]
SAVE_POINT = _QUERIES["save_point"]
INSERT_OBSERVATION = _QUERIES["insert_observation"]
INSERT_DURATION = _QUERIES["insert_duration"]
SAVE_QUARANTINE = _QUERIES["save_quarantine"]
DELETE_QUARANTINE = _QUERIES["delete_quarantine"]
SAVE_META = _QUERIES["save_meta"]
SAVE_FACT = _QUERIES["save_fact"]
DELETE_OLD_ANSWERS = _QUERIES["delete_old_answers"]
SAVE_ANSWER = _QUERIES["save_answer"]
DELETE_SURPLUS_ANSWERS = _QUERIES["delete_surplus_answers"]
LOAD_ANSWER = _QUERIES["load_answer"]
LOAD_CELLS = _QUERIES["load_cells"]
LOAD_LIVE_ATTEMPTS = _QUERIES["load_live_attempts"]
LOAD_OBSERVATIONS = _QUERIES["load_observations"]
LOAD_DURATIONS = _QUERIES["load_durations"]
LOAD_QUARANTINES = _QUERIES["load_quarantines"]
LOAD_META = _QUERIES["load_meta"]
LOAD_FACT = _QUERIES["load_fact"]
LOAD_ATTEMPTS_OF = _QUERIES["load_attempts_of"]
LOAD_ENDS_OF = _QUERIES["load_ends_of"]
LOAD_POINTS_OF = _QUERIES["load_points_of"]
LOAD_HISTORY = _QUERIES["load_history"]
INSERT_MIGRATION = _QUERIES["insert_migration"]
LOAD_SCHEMA = _QUERIES["load_schema"]
HAS_SEALS = _QUERIES["has_seals"]
LOAD_TABLES = _QUERIES["load_tables"]
LOAD_OBJECTS = _QUERIES["load_objects"]
LOAD_COLUMNS = _QUERIES["load_columns"]
LOAD_SEAL_TRIGGERS = _QUERIES["load_seal_triggers"]
LOAD_SEALS = _QUERIES["load_seals"]
INSERT_SEAL = _QUERIES["insert_seal"]
LOAD_HISTORY_SEALS = _QUERIES["load_history_seals"]
LOAD_HISTORY_SEAL = _QUERIES["load_history_seal"]
ADD_TO_HISTORY = _QUERIES["add_to_history"]
LOAD_LIVE_DIGESTS = _QUERIES["load_live_digests"]
LOAD_DIGEST = _QUERIES["load_digest"]
LOAD_STORE_ID = _QUERIES["load_store_id"]
LOAD_NUMBER = _QUERIES["load_number"]
COUNT_COMMIT = _QUERIES["count_commit"]
INTEGRITY_CHECK = _QUERIES["integrity_check"]
FOREIGN_KEY_CHECK = _QUERIES["foreign_key_check"]
