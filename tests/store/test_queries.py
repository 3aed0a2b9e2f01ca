"""The store's SQL: each statement has a name, a sentence and a use, and SQLite takes it for the schema that there is.

Seen to fail: a column renamed in queries.sql; a statement left in it that nobody uses; a sentence left out.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from boundd.store import queries, seals

FOLDER = Path(queries.__file__).parent
TEXT = (FOLDER / "queries.sql").read_text()
QUERIES = queries.read_queries(TEXT)


@pytest.fixture(scope="module")
def empty() -> sqlite3.Connection:
    """A database with the schema, and no rows."""
    connection = sqlite3.connect(":memory:")
    seals.register(connection)
    connection.executescript(Path("migrations/schema.sql").read_text())
    return connection


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_sqlite_takes_it(name: str, empty: sqlite3.Connection) -> None:
    """Every table and column that it names is there. A pragma is taken whatever it says, so that it isn't tried."""
    sql = QUERIES[name]
    if not sql.startswith("PRAGMA"):
        values = dict.fromkeys(re.findall(r":(\w+)", sql))
        empty.execute(f"EXPLAIN {sql}", values or [None] * sql.count("?"))


def test_each_has_a_sentence_and_a_use() -> None:
    """No name without its sentence, and none that only the list of names knows."""
    assert re.findall(r"^-- name: (\w+)$", TEXT, re.MULTILINE) == list(QUERIES)
    used = "".join(path.read_text() for path in FOLDER.glob("*.py") if path.name != "queries.py")
    for name in QUERIES:
        assert getattr(queries, name.upper()) == QUERIES[name]
        assert re.search(rf"queries\.{name.upper()}\b", used), name


def test_longer_statements_are_in_the_file() -> None:
    """In the store's Python there is no SQL of several lines, but what is made from the tables' columns."""
    for path in FOLDER.glob("*.py"):
        if path.name != "seals.py":
            assert not re.search(r'"""\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b', path.read_text()), path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-- name: one\n-- About it.\nSELECT 1\n", "one has no statement"),
        ("-- name: one\n-- About it.\n-- name: two\n-- About it.\nSELECT 1;\n", "one has no statement"),
        ("-- name: one\n-- About it.\nSELECT 1;\n" * 2, "one is there twice"),
    ],
)
def test_a_wrong_file_is_refused(text: str, why: str) -> None:
    """At import, and not at the statement's first use."""
    with pytest.raises(ValueError, match=why):
        queries.read_queries(text)
