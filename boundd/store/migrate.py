"""Makes a store, checks one before it is used, and brings an older one up to date.

Rules: nothing is written to a file that isn't known to be ours, whole, and of a history that we know; a refusal says
what is wrong, where, and what to do. A migration and its record are one transaction, statement by statement
(`executescript` would commit what is open). An upgrade keeps a copy of what was there. A new store is made under a
temporary name and renamed, so that a crash leaves either no store or a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boundd
from boundd.ports import StoreBusyError, StoreError
from boundd.store import commit_mark, queries, seals
from boundd.text import count

APPLICATION_ID = 0x626F756E
"""'boun', as migration 1 sets it."""

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_APPLICATION_ID_OFFSET = 68
"""https://www.sqlite.org/fileformat2.html, 1.3: four bytes, big-endian."""
_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_TRANSIENT = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM),
    sqlite3.SQLITE_CORRUPT,
)
"""Damage too: whoever gets here has just been looked at and found whole, so that it was the disk that failed."""
_TRANSIENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_START_AFRESH = (
    f"Restore a backup of it, or move it away, with its {commit_mark.SUFFIX} file, to start with an empty store."
)
COPY = ".copy"
"""What a backup is made as, before it is handed over."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: its number from 1, its name, its text and the text's SHA-256."""

    number: int
    name: str
    sql: str
    sha256: str


def migrations_folder() -> Path:
    """Where the migrations are: inside the package in an installed wheel, beside it in a checkout.

    Raises:
        StoreError: in neither.
    """
    package = Path(boundd.__file__).parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if folder.is_dir():
            return folder
    raise StoreError(f"{package}: the migrations are missing from this installation. Install boundd again.")


def read_migrations(folder: Path) -> tuple[Migration, ...]:
    """The migrations in a folder, `NNNN_name.sql` each, in order.

    Raises:
        StoreError: there are none, or their numbers aren't 1, 2, 3 and so on.
    """
    found = []
    for path in sorted(folder.iterdir()):
        match = _FILE_NAME.fullmatch(path.name)
        if match:
            content = path.read_bytes()
            found.append(Migration(int(match[1]), match[2], content.decode(), hashlib.sha256(content).hexdigest()))
    if not found or [m.number for m in found] != list(range(1, len(found) + 1)):
        raise StoreError(f"{folder}: the migrations aren't numbered 1, 2, 3, ... Install boundd again.")
    return tuple(found)


def prepare(path: Path, migrations: Sequence[Migration] | None = None) -> None:
    """See that `path` is a whole store with today's schema: make it, upgrade it, or leave it as it is. Blocks.

    Raises:
        StoreError: it can't be used, and was not touched; or it can't be made or upgraded, and nothing changed.
    """
    wanted = read_migrations(migrations_folder()) if migrations is None else tuple(migrations)
    try:
        if not os.path.lexists(path):
            _create(path, wanted)
            _sweep(path)
            return
        pending = wanted[_inspected(path, wanted) :]
        _sweep(path)
        if pending:
            _upgrade(path, pending)
    except (sqlite3.Error, OSError) as error:
        raise cannot_open(path, error) from error


def cannot_open(path: Path, error: sqlite3.Error | OSError) -> StoreError | StoreBusyError:
    """The port's error for one of opening a store: a full or failing disk passes, all else is for a person."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    # SQLite doesn't say why, and opens for reading what it can't open for both: where the permissions are as they
    # should be, it was the disk. A store that is still to be made has none of its own.
    by_the_disk = (
        code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        and (os.access(path, os.R_OK | os.W_OK) or not os.path.lexists(path))
        and os.access(path.parent, os.W_OK)
    )
    if by_the_disk or code in _TRANSIENT or (isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS):
        return StoreBusyError(f"{path}: the store can't be opened now: {error}. See to the disk.")
    return StoreError(f"{path}: the store can't be opened: {error}. See to the disk and its permissions.")


def schema_text(connection: sqlite3.Connection) -> str:
    """The schema as one SQL text, as committed in `migrations/schema.sql`."""
    texts = [row[0] for row in connection.execute(queries.LOAD_SCHEMA)]
    number = connection.execute("PRAGMA application_id").fetchone()[0]
    header = "-- What all the migrations make. Written from them; never edited by hand.\n"
    return header + "\n".join(f"\n{text};" for text in [f"PRAGMA application_id = 0x{number:08X}", *texts]) + "\n"


def apply(connection: sqlite3.Connection, migration: Migration) -> None:
    """Apply a migration and its record in one transaction.

    Raises:
        StoreError: it leaves references that point to nothing; nothing was kept.
        sqlite3.Error: a statement failed; nothing was kept.
    """
    seals.register(connection)
    connection.execute(queries.BEGIN)
    try:
        for statement in split(migration.sql):
            connection.execute(statement)
        if seals.is_sealed(connection):
            seals.rebuild(connection)
        broken = connection.execute(queries.FOREIGN_KEY_CHECK).fetchall()
        if broken:
            raise StoreError(f"migration {migration.number} would leave {count(len(broken), 'broken reference')}")
        record = {"number": migration.number, "name": migration.name, "sha256": migration.sha256}
        connection.execute(queries.INSERT_MIGRATION, record)
        connection.execute(queries.COMMIT)
    except BaseException:
        # SQLite has already rolled back by itself after some errors, such as a full disk.
        if connection.in_transaction:
            connection.execute(queries.ROLLBACK)
        raise


def split(sql: str) -> Iterator[str]:
    """The statements of a text, one by one. Semicolons in strings, comments and triggers don't end one."""
    statement = ""
    for piece in re.split(r"(?<=;)", sql):
        statement += piece
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    # Only comments may follow the last one; anything else is left for SQLite to refuse.
    if re.sub(r"--[^\n]*", "", statement).strip():
        yield statement.strip()


def _inspected(path: Path, known: Sequence[Migration]) -> int:
    """`_inspect`, and again where it finds damage: SQLite takes a page that can't be read just then for damage."""
    try:
        return _inspect(path, known)
    except StoreError:
        return _inspect(path, known)


def _inspect(path: Path, known: Sequence[Migration]) -> int:
    """How many of the known migrations made this store. Writes nothing to it.

    Raises:
        StoreError: it isn't a store, or not one that can be used.
    """
    _check_header(path)
    try:
        with _open_read_only(path) as (connection, again), ThreadPoolExecutor(1) as beside:
            # SQLite's own check needs no Python, so that it costs a large store's start hardly any time.
            whole = beside.submit(_check_integrity_apart, path, again)
            try:
                return _check(path, connection, known)
            finally:
                # Where both find something, damage to the structure is what explains the rest.
                whole.result()
    except sqlite3.OperationalError as error:
        if isinstance(refusal := cannot_open(path, error), StoreBusyError):
            raise refusal from error
        raise StoreError(f"{path}: the store can't be read: {error}. {_START_AFRESH}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: the store is damaged: {error}. {_START_AFRESH}") from error


@contextlib.contextmanager
def _open_read_only(path: Path) -> Iterator[tuple[sqlite3.Connection, str]]:
    """A connection that reads, log included, and leaves nothing beside the store that was not there before.

    With it comes the URI for another one like it, to be closed before.
    """
    wal, shm = beside(path, "-wal"), beside(path, "-shm")
    # Without a log to read, `immutable` needs no -shm file. With one, SQLite makes it even for a mere look.
    options = "mode=ro" if wal.exists() and wal.stat().st_size else "mode=ro&immutable=1"
    was_there = shm.exists()
    try:
        uri = f"{path.resolve().as_uri()}?{options}"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            seals.register(connection)
            yield connection, uri
    finally:
        if not was_there:
            shm.unlink(missing_ok=True)


def _check(path: Path, connection: sqlite3.Connection, known: Sequence[Migration]) -> int:
    """How many of the known migrations made this store, once its rows are seen to be what was written.

    Raises:
        StoreError: it isn't.
    """
    history = connection.execute(queries.LOAD_HISTORY).fetchall()
    _check_history(path, history, known)
    # Only now: a store of a newer boundd may be sealed in ways that this one doesn't know.
    commit_mark.check(path, *check_seals(path, connection, histories=False))
    return len(history)


def _check_integrity_apart(path: Path, uri: str) -> None:
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        check_integrity(path, connection)


def check_integrity(path: Path, connection: sqlite3.Connection) -> None:
    """See that SQLite finds no damage in a store's structure.

    Raises:
        StoreError: it does.
    """
    damage = [row[0] for row in connection.execute(queries.INTEGRITY_CHECK)]
    if damage != ["ok"]:
        raise StoreError(f"{path}: the store is damaged: {'; '.join(damage[:3])}. {_START_AFRESH}")


def check_seals(path: Path, connection: sqlite3.Connection, *, histories: bool) -> tuple[str | None, int]:
    """See that every row is what was written; returns the store's id and its number of commits (None, 0: too old).

    Args:
        histories: of the cells without a live attempt too, which takes longer.

    Raises:
        StoreError: one isn't, or is missing, or too many.
    """
    if not seals.is_sealed(connection):
        return None, 0
    wrong = seals.mismatches(connection, histories=histories)
    stores, numbers = (connection.execute(sql).fetchall() for sql in (queries.LOAD_STORE_ID, queries.LOAD_NUMBER))
    if len(stores) != 1 or len(numbers) != 1:
        wrong.append(f"{len(stores)} ids and {len(numbers)} numbers of commits where one of each should be")
    if wrong:
        raise StoreError(f"{path}: the store is damaged: {'; '.join(wrong[:3])}. {_START_AFRESH}")
    return str(stores[0][0]), int(numbers[0][0])


def _check_header(path: Path) -> None:
    """Refuse what isn't a file, isn't SQLite's, or is another program's, from the file's first bytes alone."""
    if not path.is_file():
        raise StoreError(f"{path}: not a regular file. Give another path for the store.")
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        raise StoreError(f"{path}: the file is empty (0 bytes), so its content was lost. {_START_AFRESH}")
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StoreError(f"{path}: not a SQLite database. Give another path for the store, or move this file away.")
    number = int.from_bytes(header[_APPLICATION_ID_OFFSET : _APPLICATION_ID_OFFSET + 4], "big")
    if number != APPLICATION_ID:
        raise StoreError(
            f"{path}: another program's database (application_id 0x{number:08X}, not 0x{APPLICATION_ID:08X}). "
            "Give another path for the store."
        )


def _check_history(path: Path, history: Sequence[tuple[int, str, str]], known: Sequence[Migration]) -> None:
    """Refuse a history that isn't the beginning of the one that this version knows."""
    numbers = [number for number, _, _ in history]
    if numbers != list(range(1, len(numbers) + 1)) or not numbers:
        raise StoreError(f"{path}: its history of migrations has gaps: {numbers}. {_START_AFRESH}")
    if len(numbers) > len(known):
        raise StoreError(
            f"{path}: made by a newer boundd (schema {len(numbers)}; this one knows {len(known)}). "
            f"Install that version again, or put back the copy that its upgrade left ({path.name}.before-*)."
        )
    for (number, name, sha256), migration in zip(history, known, strict=False):
        if (name, sha256) != (migration.name, migration.sha256):
            raise StoreError(
                f"{path}: made by an edited migration {number} ({name}, sha256 {sha256[:12]}; "
                f"this version's is {migration.name}, {migration.sha256[:12]}). "
                f"Use the version of boundd that made it, or move it away, with its {commit_mark.SUFFIX} file, "
                "to start with an empty store."
            )


def _create(path: Path, migrations: Sequence[Migration]) -> None:
    """Make a new store under a temporary name, sync it, and rename it into place."""
    for suffix in ("-wal", "-journal"):
        stray = beside(path, suffix)
        # SQLite would replay another database's log into the new one.
        if stray.exists():
            raise StoreError(f"{path}: missing, but its log {stray.name} is there. Put the file back, or move the log.")
    mark = commit_mark.read(path)
    if mark is not None:
        raise StoreError(
            f"{path}: missing, but {mark.number} commits to it were acknowledged. Put the file back, or remove "
            f"{commit_mark.beside(path).name} to start with an empty store."
        )
    temporary = beside(path, ".new")
    discard(temporary)
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute(queries.JOURNAL_WAL)
            for migration in migrations:
                apply(connection, migration)
            # Closing does this too, but says nothing where it fails: the file would go without what is in its log.
            connection.execute(queries.CHECKPOINT).fetchall()
        _sync(temporary)
        temporary.rename(path)
    except BaseException:
        discard(temporary)
        raise
    _sync(path.parent)


def _upgrade(path: Path, pending: Sequence[Migration]) -> None:
    """Keep a copy, then apply what is missing."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in queries.PRAGMAS:
            connection.execute(pragma)
        # A migration may have to rebuild a table; `apply` checks the references itself.
        connection.execute("PRAGMA foreign_keys = OFF")
        backup = _back_up(connection, path, pending[0].number)
        for migration in pending:
            try:
                apply(connection, migration)
            except (sqlite3.Error, StoreError) as error:
                if isinstance(error, sqlite3.Error) and isinstance(
                    transient := cannot_open(path, error), StoreBusyError
                ):
                    raise transient from error
                raise StoreError(
                    f"{path}: migration {migration.number} ({migration.name}) failed and was undone: {error}. "
                    f"The store as it was before is in {backup}."
                ) from error


def _back_up(connection: sqlite3.Connection, path: Path, number: int) -> Path:
    """Copy the store to `<path>.before-NNNN`, or the next free name after it; an older copy is never overwritten."""
    target = beside(path, f".before-{number:04d}")
    again = 1
    while target.exists():
        again += 1
        target = beside(path, f".before-{number:04d}-{again}")
    temporary = beside(target, ".new")
    discard(temporary)
    try:
        with contextlib.closing(sqlite3.connect(temporary)) as copy:
            connection.backup(copy)
        _sync(temporary)
        temporary.rename(target)
    except BaseException:
        discard(temporary)
        raise
    _sync(path.parent)
    return target


def _sweep(path: Path) -> None:
    """Remove what a killed daemon left half-made: new stores, copies, marks."""
    for name in (".new", COPY, f"{commit_mark.SUFFIX}.new"):
        discard(beside(path, name))
    for half in path.parent.glob(f"{glob.escape(path.name)}.before-*.new"):
        discard(half)


def beside(path: Path, suffix: str) -> Path:
    """The file of the store's name and a suffix."""
    return path.with_name(path.name + suffix)


def discard(path: Path) -> None:
    """Remove a database with all that SQLite may have put beside it; nothing happens where there is none."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        beside(path, suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Sync a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
