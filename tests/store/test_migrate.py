"""Making, upgrading and refusing stores. What is refused keeps every byte."""

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import boundd
from boundd.core.model.records import SavePaused
from boundd.ports import StoreBusyError, StoreError
from boundd.store import seals
from boundd.store.migrate import (
    Migration,
    apply,
    cannot_open,
    migrations_folder,
    prepare,
    read_migrations,
    schema_text,
    split,
)
from boundd.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

KNOWN = read_migrations(migrations_folder())


def following(sql: str) -> tuple[Migration, ...]:
    """The known migrations and one more."""
    return (*KNOWN, Migration(len(KNOWN) + 1, "more", sql, "0" * 64))


def change(path: Path, sql: str) -> None:
    """Alter a store behind its back, and leave no log beside it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        seals.register(connection)
        connection.execute(sql)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A new store, closed."""
    target = tmp_path / "boundd.db"
    prepare(target)
    return target


def test_schema_sql_is_what_the_migrations_make(path: Path) -> None:
    """The committed schema.sql is what the migrations make, and makes the same itself."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        text = schema_text(connection)
    committed = (Path(boundd.__file__).parents[1] / "migrations" / "schema.sql").read_text()
    assert committed == text, "write migrations/schema.sql anew, see docs/store.md"
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(committed)
        assert schema_text(connection) == text


def test_every_table_is_strict(path: Path) -> None:
    """No table takes a text where a number belongs."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = [row for row in connection.execute("PRAGMA table_list") if not row[1].startswith("sqlite_")]
    assert tables
    assert all(row[5] == 1 for row in tables)


def test_the_history_is_recorded(path: Path) -> None:
    """Each migration is recorded by number, name and hash; preparing again changes no byte."""
    before = path.read_bytes()
    prepare(path)
    assert path.read_bytes() == before
    with contextlib.closing(sqlite3.connect(path)) as connection:
        history = connection.execute("SELECT number, name, sha256 FROM migrations").fetchall()
    assert history == [(m.number, m.name, m.sha256) for m in KNOWN]


def test_a_crash_while_making_a_store_leaves_none(tmp_path: Path) -> None:
    """A new store appears whole or not at all; what an earlier crash left under the temporary name is no hindrance."""
    path = tmp_path / "boundd.db"
    (tmp_path / "boundd.db.new").write_bytes(b"half")
    with pytest.raises(StoreError, match="can't be opened"):
        prepare(path, following("CREATE TABLE nonsense (;"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "boundd.db.new").write_bytes(b"half")
    prepare(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_upgrade_keeps_a_copy(path: Path) -> None:
    """An older store is copied, then upgraded; the copy is the store as it was."""
    change(path, "INSERT INTO facts VALUES ('a', 'b')")
    later = following("ALTER TABLE facts ADD COLUMN more TEXT; CREATE TABLE extra (id INTEGER PRIMARY KEY) STRICT;")
    prepare(path, later)
    prepare(path, later)
    copies = [p for p in path.parent.iterdir() if p != path]
    assert [p.name for p in copies] == [f"boundd.db.before-{len(later):04d}"]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM facts").fetchall() == [("a", "b", None)]
    prepare(copies[0])
    with contextlib.closing(sqlite3.connect(copies[0])) as connection:
        assert connection.execute("SELECT * FROM facts").fetchall() == [("a", "b")]


def test_an_older_copy_is_never_overwritten(path: Path) -> None:
    """Where a copy of that name is there, the new one gets another."""
    older = path.with_name(f"boundd.db.before-{len(KNOWN) + 1:04d}")
    older.write_text("precious")
    prepare(path, following("CREATE TABLE extra (id INTEGER PRIMARY KEY) STRICT;"))
    assert older.read_text() == "precious"
    assert path.with_name(older.name + "-2").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE extra (id INTEGER PRIMARY KEY) STRICT; INSERT INTO nowhere VALUES (1);",
        "CREATE TABLE extra (id INTEGER PRIMARY KEY) STRICT; INSERT INTO points VALUES ('x', 0, '{}', 1, 1, '', '{}');",
    ],
    ids=["a statement fails", "a reference is broken"],
)
def test_a_migration_that_fails_is_undone(path: Path, sql: str) -> None:
    """A migration is kept whole or not at all, with its record; the store can still be used."""
    with pytest.raises(StoreError, match=r"failed and was undone.*before-"):
        prepare(path, following(sql))
    prepare(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'extra'").fetchall()


def test_split_knows_strings_comments_and_triggers() -> None:
    """A semicolon ends a statement only where SQL says so."""
    trigger = "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM a; SELECT ';'; END;"
    sql = f"-- one; two\nSELECT 'a;b'; /* ; */ {trigger}\n-- the end; really\n"
    assert list(split(sql)) == ["-- one; two\nSELECT 'a;b';", f"/* ; */ {trigger}"]
    assert list(split("SELECT 1; SELECT")) == ["SELECT 1;", "SELECT"]


def test_apply_leaves_no_transaction_open() -> None:
    """After a failed migration the connection can be used."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            apply(connection, replace(KNOWN[0], sql=KNOWN[0].sql + "SELECT nonsense;"))
        assert not connection.in_transaction
        apply(connection, KNOWN[0])


def _other(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE theirs (x)")


def _page_of_noise(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 + 8 : 4096 + 512] = b"\xa5" * 504
    path.write_bytes(content)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 2])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero-length": (lambda path: path.write_bytes(b""), "empty"),
    "no database": (lambda path: path.write_bytes(b"hello, this is a text\n" * 20), "not a SQLite database"),
    "only a header's beginning": (lambda path: path.write_bytes(path.read_bytes()[:50]), "not a SQLite database"),
    "another program's": (_other, "another program's"),
    "another application_id": (lambda path: change(path, "PRAGMA application_id = 7"), "another program's"),
    "a damaged page": (_page_of_noise, "damaged|can't be read"),
    "cut short": (_half, "damaged|can't be read"),
    "newer": (lambda path: change(path, f"INSERT INTO migrations VALUES ({len(KNOWN) + 1}, 'x', 'y')"), "newer boundd"),
    "edited": (
        lambda path: change(path, "UPDATE migrations SET sha256 = 'abc' WHERE number = 1"),
        "edited migration 1",
    ),
    "renamed": (lambda path: change(path, "UPDATE migrations SET name = 'abc' WHERE number = 1"), "edited migration 1"),
    "with a gap": (lambda path: change(path, f"INSERT INTO migrations VALUES ({len(KNOWN) + 2}, 'x', 'y')"), "gaps"),
    "without a history": (lambda path: change(path, "DELETE FROM migrations"), "gaps"),
    "without its history's table": (lambda path: change(path, "DROP TABLE migrations"), "can't be read"),
}


@pytest.mark.parametrize("name", SPOILT)
async def test_what_is_refused_is_untouched(path: Path, name: str) -> None:
    """A file that isn't a usable store is refused with its path, the reason and a remedy, and not a byte changes."""
    spoil, reason = SPOILT[name]
    spoil(path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(StoreError, match=reason) as caught:
        await SqliteStore.open(path)
    assert str(path) in str(caught.value)
    assert re.search(r"Restore|Give another|Install|Use the version", str(caught.value))
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


async def test_a_refused_store_with_a_log_is_untouched(path: Path, tmp_path: Path) -> None:
    """A store that was killed, whose last commits are only in its log, is judged with them, and no file changes."""
    store = await SqliteStore.open(path)
    await store.commit([SavePaused(True)])
    await store._connection.execute_fetchall("UPDATE migrations SET sha256 = 'abc'")
    copy = tmp_path / "copy" / "boundd.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    await store.aclose()
    before = {file.name: file.read_bytes() for file in copy.parent.iterdir()}
    with pytest.raises(StoreError, match="edited"):
        await SqliteStore.open(copy)
    assert {file.name: file.read_bytes() for file in copy.parent.iterdir()} == before


async def test_a_killed_store_s_log_is_used(path: Path, tmp_path: Path) -> None:
    """What was committed before a kill is in the log only, and is there after the next start."""
    store = await SqliteStore.open(path)
    await store.commit([SavePaused(True)])
    copy = tmp_path / "copy" / "boundd.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    await store.aclose()
    again = await SqliteStore.open(copy)
    try:
        assert (await again.load()).paused
    finally:
        await again.aclose()


def test_a_stray_log_is_refused(tmp_path: Path) -> None:
    """A log without its database would be replayed into a new one, so that none is made."""
    (tmp_path / "boundd.db-wal").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"its log boundd\.db-wal"):
        prepare(tmp_path / "boundd.db")
    assert [p.name for p in tmp_path.iterdir()] == ["boundd.db-wal"]


@pytest.mark.parametrize("where", ["folder", "missing/boundd.db", "link"])
def test_a_path_that_can_t_be_a_store(tmp_path: Path, where: str) -> None:
    """A folder, a missing folder and a broken link are the environment's errors."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / where))):
        prepare(tmp_path / where)


def test_a_path_with_odd_characters(tmp_path: Path) -> None:
    """A path is a path, whatever a URI would make of it."""
    path = tmp_path / "50% of?a#b.db"
    prepare(path)
    prepare(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("exists", [True, False])
def test_what_cant_be_opened_just_now(tmp_path: Path, exists: bool) -> None:
    """SQLite doesn't say why a file can't be opened; where no permission is missing, the disk is asked again."""
    path = tmp_path / "boundd.db"
    if exists:
        path.touch()
    with pytest.raises(sqlite3.OperationalError, match="unable to open") as refused:
        sqlite3.connect(tmp_path)
    assert isinstance(cannot_open(path, refused.value), StoreBusyError)


@pytest.mark.parametrize("names", [[], ["0002_b.sql"], ["0001_a.sql", "0003_c.sql"], ["0001_a.sql", "0001_b.sql"]])
def test_a_damaged_installation(tmp_path: Path, names: list[str]) -> None:
    """Migrations that aren't numbered 1, 2, 3 are refused before any store is looked at."""
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(StoreError, match="Install boundd again"):
        read_migrations(tmp_path)


def test_the_folder_of_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wheel the migrations are inside the package; where they are missing, that is said."""
    package = tmp_path / "boundd"
    package.mkdir()
    monkeypatch.setattr(boundd, "__file__", str(package / "__init__.py"))
    with pytest.raises(StoreError, match="missing from this installation"):
        migrations_folder()
    shutil.copytree(Path(__file__).parents[2] / "migrations", package / "_migrations")
    assert read_migrations(migrations_folder()) == KNOWN


async def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Its cells, live attempts, their reservations and what was seen of memory are there; what is new has a default."""
    path = tmp_path / "boundd.db"
    prepare(path, KNOWN[:1])
    change(
        path,
        "INSERT INTO cells VALUES ('{}', 'd', 'l', '{}', 'running', 1, 2, 0, 1, 0, NULL, 'out_of_memory', 'm', 5.0,"
        " NULL, 7, 8, NULL, '', NULL, NULL)",
    )
    change(
        path,
        "INSERT INTO attempts VALUES ('d.1', '{}', 'l', 1, 'GPU-0', 4096, NULL, 4, 0, 60.0, 1.0, 5.0, 6.0, 0, 1,"
        " 'running', NULL, 0, 0, 0)",
    )
    change(path, "INSERT INTO observations VALUES (1, 'model=SD1.5;device=Fake', 4, 1024, 1)")
    store = await SqliteStore.open(path)
    try:
        known = await store.load()
    finally:
        await store.aclose()
    (record,), (attempt,), (seen,) = known.cells, known.attempts, known.observations
    assert record.error is not None
    assert (record.charged_failures, record.plain_failures) == (2, 0)
    assert (record.error.cause, record.error.evidence) == (None, None)
    assert (attempt.reservation_bytes, attempt.host_memory_bytes, attempt.cores, attempt.estimate_bytes) == (
        4096,
        0,
        0,
        None,
    )
    assert (seen.peak_bytes, seen.censored, seen.pixels, seen.torch) == (1024, True, 0, "")
    assert known.durations == ()
    assert path.with_name("boundd.db.before-0002").exists()
