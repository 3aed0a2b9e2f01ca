"""Seals: how damage inside a row, a lost row and a row too many are noticed, which SQLite itself doesn't check.

Every row has a checksum: the first 62 bits of BLAKE2b over its table's name and its values. The checksums of a table
are added up modulo 2**62 in `seals`, beside the number of its rows. What belongs to one cell's history (attempts, ends,
points) is added up in a row of `histories` instead, so that a history is checked when it is read, and a starting
daemon need not read all of them; `histories` itself has a seal like any table. Triggers keep the sums in the
transaction that changes the rows. They call a function that only boundd's connections have: another program's write
is refused by SQLite ("no such function").

A seal is against faults, not against people: whoever means to can make the sums anew.
"""

# Tables and columns come from the schema, and no value is ever written into a text:
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from boundd.store import queries
from boundd.text import count

FUNCTION = "boundd_checksum"
"""What the triggers call: the table's name and the row's values, in the order of the columns."""
MASK = 2**62 - 1
"""Sums stay below 2**62, so that adding two of them never leaves SQLite's integers."""
HALF_BITS = 31
HISTORY_IDS = {"attempts": "id", "ends": "attempt_id", "points": "attempt_id"}
"""The tables that make up a cell's history, and their column that begins with the cell's digest and a dot."""
UNSEALED = ("seals", "commits")
"""The sums themselves, and the number that changes with every commit."""

SCHEMA = "sqlite_schema"
"""The seal of the tables, indexes and triggers themselves, by their texts."""

_GROUP = "substr({row}.{id}, 1, instr({row}.{id}, '.') - 1)"
_Value = str | int | float | bytes | None


def checksum(*values: _Value) -> int:
    """The checksum of a row: its table's name, then its values as SQLite gives them."""
    # `ascii` spells every value out in full, the same in every version of Python, and separates them unambiguously.
    return int.from_bytes(blake2b(ascii(values).encode(), digest_size=8).digest(), "big") & MASK


def register(connection: sqlite3.Connection) -> None:
    """Give a connection what the triggers call; without it, nothing can be written to a sealed store."""
    connection.create_function(FUNCTION, -1, checksum, deterministic=True)


def is_sealed(connection: sqlite3.Connection) -> bool:
    """Whether the schema has seals; stores of the first releases have none."""
    return bool(connection.execute(queries.HAS_SEALS).fetchall())


def tables(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """The tables that are sealed, with their columns."""
    names = [name for (name,) in connection.execute(queries.LOAD_TABLES) if name not in UNSEALED]
    return {name: tuple(column for (column,) in connection.execute(queries.LOAD_COLUMNS, (name,))) for name in names}


def rebuild(connection: sqlite3.Connection) -> None:
    """Make the triggers and the sums anew, after the schema has changed. Belongs into the transaction that did it."""
    for (name,) in connection.execute(queries.LOAD_SEAL_TRIGGERS).fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')
    connection.execute("DELETE FROM seals")
    connection.execute("DELETE FROM histories")
    found = tables(connection)
    for name in found:
        for group, (rows, total) in _sums(connection, name).items():
            if name in HISTORY_IDS:
                connection.execute(queries.ADD_TO_HISTORY, {"digest": group, "rows": rows, "sum": total})
    for name in found:
        if name not in HISTORY_IDS:
            rows, total = _sums(connection, name).get("", (0, 0))
            connection.execute(queries.INSERT_SEAL, {"name": name, "rows": rows, "sum": total})
    for name, columns in found.items():
        for trigger in _triggers(name, columns):
            connection.execute(trigger)
    rows, total = _schema(connection)
    connection.execute(queries.INSERT_SEAL, {"name": SCHEMA, "rows": rows, "sum": total})


def mismatches(connection: sqlite3.Connection, *, histories: bool) -> list[str]:
    """What doesn't fit its seal, in words, at most a few; nothing where all is well.

    Args:
        histories: check every cell's history too, not only those of the cells that have a live attempt.
    """
    found = tables(connection)
    expected = {name: (rows, total) for name, rows, total in connection.execute(queries.LOAD_SEALS)}
    wrong = _compared("the schema", expected.pop(SCHEMA, None), _schema(connection))
    for name in found:
        if name not in HISTORY_IDS:
            is_ = _sums(connection, name).get("", (0, 0))
            wrong += _compared(f"table {name}", expected.pop(name, None), is_)
    wrong += [f"there is a seal of {name!r}, but no such table" for name in expected]
    if wrong:
        return wrong
    if histories:
        return _histories_mismatches(connection)
    live = [digest for (digest,) in connection.execute(queries.LOAD_LIVE_DIGESTS)]
    return [text for digest in live for text in history_mismatches(connection, digest)]


def history_mismatches(connection: sqlite3.Connection, digest: str) -> list[str]:
    """Whether the attempts, ends and points of the cells with this digest fit their seal; nothing where they do."""
    seal = connection.execute(queries.LOAD_HISTORY_SEAL, {"digest": digest}).fetchone()
    found = connection.execute(history_query(tables(connection)), {"digest": digest}).fetchone()
    return compare_history(digest, seal, found)


def compare_history(digest: str, seal: Sequence[int] | None, found: Sequence[int]) -> list[str]:
    """The same, of what `history_query` has answered already."""
    rows, low, high = found
    return _compared(f"history of cell {digest}", seal, (rows, (low + (high << HALF_BITS)) & MASK))


def history_query(found: dict[str, tuple[str, ...]]) -> str:
    """The query that answers with one row for a `:digest`'s history.

    It is how many rows the history has, and the sums of the lower and of the higher half of their checksums: whole
    ones would leave SQLite's integers.
    """
    every = " UNION ALL ".join(
        # '/' is the character after '.', so this is every id that begins with the digest and a dot.
        f"SELECT {_call(name, found[name])} AS c FROM {name} WHERE {id_} >= :digest || '.' AND {id_} < :digest || '/'"
        for name, id_ in HISTORY_IDS.items()
    )
    low, high = f"c & {(1 << HALF_BITS) - 1}", f"c >> {HALF_BITS}"
    return f"SELECT count(*), coalesce(sum({low}), 0), coalesce(sum({high}), 0) FROM ({every})"


def _histories_mismatches(connection: sqlite3.Connection) -> list[str]:
    sums: dict[str, tuple[int, int]] = {}
    for name in HISTORY_IDS:
        for group, (rows, total) in _sums(connection, name).items():
            before = sums.get(group, (0, 0))
            sums[group] = (before[0] + rows, (before[1] + total) & MASK)
    wrong = []
    for digest, rows, total in connection.execute(queries.LOAD_HISTORY_SEALS):
        wrong += _compared(f"history of cell {digest}", (rows, total), sums.pop(digest, (0, 0)))
    return wrong + [f"history of cell {digest}: there should be none" for digest in sums]


def _compared(what: str, expected: Sequence[int] | None, found: tuple[int, int]) -> list[str]:
    expected = tuple(expected or (0, 0))
    if expected == found:
        return []
    if expected[0] != found[0]:
        return [f"{what}: {count(found[0], 'row')} where {expected[0]} were written"]
    return [f"{what}: a value is not what was written"]


def _schema(connection: sqlite3.Connection) -> tuple[int, int]:
    rows = [checksum(SCHEMA, *row) for row in connection.execute(queries.LOAD_OBJECTS)]
    return len(rows), sum(rows) & MASK


def _sums(connection: sqlite3.Connection, name: str) -> dict[str, tuple[int, int]]:
    """Rows and sum of a table's checksums, by the cell's digest where it is one of the histories', else under ''."""
    cursor = connection.execute(f'SELECT * FROM "{name}"')
    cursor.row_factory = None
    if name not in HISTORY_IDS:
        rows = [checksum(name, *row) for row in cursor]
        return {"": (len(rows), sum(rows) & MASK)}
    sums: dict[str, tuple[int, int]] = {}
    at = [column[0] for column in cursor.description].index(HISTORY_IDS[name])
    for row in cursor:
        digest = row[at].partition(".")
        group = digest[0] if digest[1] else ""
        before = sums.get(group, (0, 0))
        sums[group] = (before[0] + 1, (before[1] + checksum(name, *row)) & MASK)
    return sums


def _triggers(name: str, columns: tuple[str, ...]) -> Iterable[str]:
    """The texts of a table's three triggers."""
    new, old = _call(name, columns, "NEW"), _call(name, columns, "OLD")
    if name in HISTORY_IDS:
        plus, minus = _add_to_history(name, "NEW", 1, new), _add_to_history(name, "OLD", -1, f"- {old}")
        both = f"{minus} {plus}"
    else:
        plus = f"UPDATE seals SET rows = rows + 1, sum = (sum + {new}) & {MASK} WHERE name = '{name}';"
        minus = f"UPDATE seals SET rows = rows - 1, sum = (sum - {old}) & {MASK} WHERE name = '{name}';"
        both = f"UPDATE seals SET sum = (sum + {new} - {old}) & {MASK} WHERE name = '{name}';"
    for event, body in (("INSERT", plus), ("DELETE", minus), ("UPDATE", both)):
        yield f'CREATE TRIGGER "seal_{name}_{event.lower()}" AFTER {event} ON "{name}" BEGIN {body} END'


def _add_to_history(name: str, row: str, rows: int, value: str) -> str:
    group = _GROUP.format(row=row, id=HISTORY_IDS[name])
    return (
        f"INSERT INTO histories (digest, rows, sum) VALUES ({group}, {rows}, ({value}) & {MASK}) "
        f"ON CONFLICT (digest) DO UPDATE SET rows = rows + excluded.rows, sum = (sum + excluded.sum) & {MASK};"
    )


def _call(name: str, columns: tuple[str, ...], row: str = "") -> str:
    prefix = f"{row}." if row else ""
    return f"{FUNCTION}('{name}', " + ", ".join(f'{prefix}"{column}"' for column in columns) + ")"
