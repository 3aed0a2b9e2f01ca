"""Every schema that was released is upgraded to today's, with its data.

`released/NNNN.db` is a store as the code with migration NNNN wrote it (release.py). To see the tests fail: let 0003
begin with `DELETE FROM points;`, or take one of the files away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest

from boundd.ports import EndedAttempt, Snapshot
from boundd.store import seals
from boundd.store.migrate import migrations_folder, read_migrations
from boundd.store.sqlite import SqliteStore
from tests.store import release

RELEASED = Path(__file__).with_name("released")
KNOWN = read_migrations(migrations_folder())
Rows = dict[str, list[dict[str, Any]]]


def rows(path: Path) -> Rows:
    """Every row of every table but those that boundd itself keeps about the file."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        own = (*seals.UNSEALED, "histories", "migrations")
        return {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY rowid")]
            for name in names
            if name not in own
        }


def moved(before: Rows, after: Rows) -> Rows:
    """The rows of an older store as `after` has them: 0005 made quarantines of cordons, the sentence a person's."""
    if "cordons" not in before or "quarantines" not in after:
        return before
    quarantines = []
    for row in before["cordons"]:
        cause = json.dumps({"kind": "operator", "reason": row["reason"]}, separators=(",", ":"))
        names = ("subject_kind", "subject", "cause", "since_unix_s")
        quarantines.append(dict(zip(names, ("device", row["device"], cause, None), strict=True)))
    return {name: found for name, found in before.items() if name != "cordons"} | {"quarantines": quarantines}


async def seen(path: Path) -> tuple[Snapshot, dict[str, tuple[EndedAttempt, ...]]]:
    """What a daemon on this store knows, history included."""
    store = await SqliteStore.open(path)
    try:
        known = await store.load()
        history = {record.cell.key: await store.attempts_of(record.cell.key) for record in known.cells}
        for attempts in history.values():
            for ended in attempts:
                if ended.verdict is not None:
                    assert len(ended.points) == 2
        return known, history
    finally:
        await store.aclose()


def test_every_migration_has_its_released_store() -> None:
    """A migration is added together with a store that the code of its release wrote."""
    kept = sorted(path.name for path in RELEASED.glob("*.db"))
    assert kept == [f"{migration.number:04d}.db" for migration in KNOWN], (
        "write the missing one with `python tests/store/release.py tests/store/released/NNNN.db`, and remove the "
        "`.commits` file beside it"
    )
    for number, name in enumerate(kept, start=1):
        with contextlib.closing(sqlite3.connect(f"file:{RELEASED / name}?mode=ro&immutable=1", uri=True)) as connection:
            history = connection.execute("SELECT number, name, sha256 FROM migrations ORDER BY number").fetchall()
        assert history == [(m.number, m.name, m.sha256) for m in KNOWN[:number]], f"{name} was released as it is"


@pytest.mark.parametrize("name", [f"{migration.number:04d}.db" for migration in KNOWN])
def test_a_released_store_is_upgraded_with_its_data(tmp_path: Path, name: str) -> None:
    """No row is lost and no value changed; new columns have one value; what a daemon sees is what there was."""
    path = tmp_path / "boundd.db"
    shutil.copy(RELEASED / name, path)
    before = rows(path)
    known, history = anyio.run(seen, path)
    after = rows(path)
    assert all(before[table] for table in before), "a released store has data in every table"
    for table, old in moved(before, after).items():
        new = [row for row in after[table] if not (table == "meta" and row["name"] == "store")]
        kept = [row for row in old if not (table == "meta" and row["name"] == "store")]
        assert [{column: row[column] for column in was} for was, row in zip(kept, new, strict=True)] == kept, table
    assert [record.cell.parameters["steps"] for record in known.cells] == [20 + n for n in range(release.CELLS)]
    assert known.paused
    since = None if "cordons" in before else release.held("", "").since_unix_s
    held = release.held("GPU-22222222-bbbb", "the fan is loud")
    assert known.quarantines == (dataclasses.replace(held, since_unix_s=since),)
    assert [len(history[record.cell.key]) for record in known.cells] == [0, 1, 1, 1, 1, 1]
    assert [attempt.number for attempt in known.attempts] == [1]
    assert anyio.run(seen, path) == (known, history), "a second start sees the same"


def test_all_releases_come_to_the_same(tmp_path: Path) -> None:
    """Whatever release a store began with, the upgraded one has the schema of a new one."""
    schemas = set()
    for migration in KNOWN:
        path = tmp_path / f"{migration.number}.db"
        shutil.copy(RELEASED / f"{migration.number:04d}.db", path)
        anyio.run(seen, path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            schemas.add(tuple(connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")))
    assert len(schemas) == 1
