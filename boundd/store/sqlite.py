"""The store: one connection, one lock, one short transaction at a time.

Rules: the connection has a thread of its own (`boundd.store.connection`), which does what it is asked for in the order
in which it was asked. A transaction is one call there, from BEGIN to COMMIT or ROLLBACK. Whoever waits for it is
shielded, to hear what came of it. All values are made into rows before the transaction begins.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import anyio
import anyio.to_thread

from boundd.core.model.history import NEWEST_KEPT
from boundd.core.model.outcomes import PointRecord
from boundd.core.model.records import Record
from boundd.ports import EndedAttempt, InvariantError, KeptAnswer, Snapshot, StoreBusyError, StoreCopy, StoreError
from boundd.store import queries, rows, seals
from boundd.store.backup import back_up
from boundd.store.commit_mark import CommitMark, Mark
from boundd.store.connection import call, connect
from boundd.store.migrate import cannot_open, prepare
from boundd.store.rewrite import rewrite
from boundd.store.rows import Statement

_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""Primary result codes of what may be over later: the disk's state and other processes' locks."""

_DISTRUSTED = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Primary result codes after which the connection is given up: SQLite takes pages that can't be read for damage, and
whether there is any is told by looking at the file again."""

CHECKPOINT_STATEMENTS = 400
"""After so many statements the log is brought into the file: that is about 4 MiB of it, as SQLite itself would do."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A connection, with what is made anew with each."""

    connection: aiosqlite.Connection
    mark: CommitMark
    history_query: str


class SqliteStore:
    """The `Store` of boundd.ports, in a SQLite file. Made by `open`; close it, or its thread keeps the process."""

    def __init__(self, opened: _Opened, path: Path) -> None:
        self._opened: _Opened | None = opened
        self._path = path
        self._lock = anyio.Lock()
        self._closed = False
        self._distrusted = False
        """The disk has failed since the connection was opened."""
        self._rewrite_due = False
        """The disk has failed, and the file, whose log is empty, has yet to be written to other blocks."""
        self._backing_up = False
        self._logged_statements = 0

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open the store at `path`; makes it where there is none, and upgrades an older one, keeping a copy.

        Raises:
            StoreBusyError: the disk is full or failing; it may be opened later.
            StoreError: it can't be used; the message says what is wrong and what to do. The file is untouched.
        """
        # A connection that nobody holds would keep the process from ending, so that no cancellation comes between.
        with anyio.CancelScope(shield=True):
            opened = await _connect(path)
        return cls(opened, path)

    async def load(self) -> Snapshot:
        """Everything that a starting daemon needs. Policies are the defaults: the config's are laid over them.

        Raises:
            StoreBusyError: it can't be read now.
            StoreError: it can't be read at all.
        """
        async with self._lock:
            cells = await self._read(queries.LOAD_CELLS, rows.cell_of)
            attempts = await self._read(queries.LOAD_LIVE_ATTEMPTS, rows.attempt_of)
            observations = await self._read(queries.LOAD_OBSERVATIONS, rows.observation_of, {"kept": NEWEST_KEPT})
            durations = await self._read(queries.LOAD_DURATIONS, rows.duration_of, {"kept": NEWEST_KEPT})
            quarantines = await self._read(queries.LOAD_QUARANTINES, rows.quarantine_of)
            paused = await self._read(queries.LOAD_META, _value, {"name": rows.PAUSED})
        return Snapshot(cells, attempts, observations, durations, quarantines, paused == ("1",))

    async def commit(self, records: Sequence[Record]) -> None:
        """Keep all of them, durably, in one transaction that no cancellation splits.

        The order of the records matters only among those of one row.

        Raises:
            StoreBusyError: nothing was kept; try again later.
            StoreError: nothing was kept; the file is damaged.
            InvariantError: nothing was kept; a record can't be (a second end, an unknown attempt, a NaN).
        """
        try:
            statements = [statement for record in records for statement in rows.statements_of(record)]
        except (ValueError, TypeError) as error:
            raise InvariantError(f"a record can't be kept: {error}") from error
        await self._write(statements)

    async def attempts_of(
        self, key: str, *, limit: int | None = None, before: int | None = None
    ) -> tuple[EndedAttempt, ...]:
        """A cell's attempts with their points, oldest first: the latest `limit` of those numbered below `before`.

        All in one reading: the history is checked whole, which a question for each attempt would do as many times.

        Raises:
            StoreBusyError: it can't be read now.
            StoreError: it can't be read at all.
        """
        page = {"key": key, "limit": -1 if limit is None else limit, "before": before}
        async with self._lock:
            attempts = await self._read(queries.LOAD_ATTEMPTS_OF, rows.attempt_of, page)
            numbers = [attempt.number for attempt in attempts] or [0]
            these = {"key": key, "first": numbers[0], "last": numbers[-1]}
            found = await self._read(
                queries.LOAD_ENDS_OF,
                lambda row: (str(row["attempt_id"]), (rows.verdict_of(row), float(row["ended_unix_s"]))),
                these,
            )
            measured = await self._read(
                queries.LOAD_POINTS_OF, lambda row: (str(row["attempt_id"]), rows.point_of(row)), these
            )
            await self._check_history(key, {attempt.id.partition(".")[0] for attempt in attempts})
        ends = dict(found)
        points: dict[str, list[PointRecord]] = {attempt.id: [] for attempt in attempts}
        for attempt_id, point in measured:
            points[attempt_id].append(point)
        return tuple(
            EndedAttempt(attempt, verdict, ended_unix_s, tuple(points[attempt.id]))
            for attempt in attempts
            for verdict, ended_unix_s in [ends.get(attempt.id, (None, None))]
        )

    async def answer_of(self, uid: int, key: str, oldest_unix_s: float) -> KeptAnswer | None:
        """What was kept by a `SaveAnswer` of this user and key, if not before `oldest_unix_s`.

        Raises:
            StoreBusyError: it can't be read now.
            StoreError: it can't be read at all.
        """
        values = {"uid": uid, "key": key, "oldest_unix_s": oldest_unix_s}
        async with self._lock:
            found = await self._read(
                queries.LOAD_ANSWER,
                lambda row: KeptAnswer(row["request_sha256"], row["at_unix_s"], row["body"]),
                values,
            )
        return found[0] if found else None

    async def remember(self, name: str, value: str) -> None:
        """Keep a small fact about this store (such as the digest of the last export).

        Raises:
            StoreBusyError: it was not kept; try again later.
            StoreError: it was not kept; the file is damaged.
        """
        await self._write([(queries.SAVE_FACT, {"name": name, "value": value})])

    async def recall(self, name: str) -> str | None:
        """A fact kept by `remember`.

        Raises:
            StoreBusyError: it can't be read now.
            StoreError: it can't be read at all.
        """
        async with self._lock:
            values = await self._read(queries.LOAD_FACT, _value, {"name": name})
        return values[0] if values else None

    async def back_up(self) -> StoreCopy:
        """A copy of the store as it is now. Commits go on meanwhile; cancelled, nothing is left of it.

        Raises:
            StoreBusyError: another is being made, or there is no room.
            StoreError: the store is damaged.
        """
        self._check_open()
        if self._backing_up:
            raise StoreBusyError("another backup is being made; ask again when it is done")
        self._backing_up = True
        begun, stopped = threading.Event(), threading.Event()

        def make() -> StoreCopy:
            begun.set()
            try:
                return back_up(self._path, stopped.is_set)
            finally:
                self._backing_up = False

        try:
            # Not waited for by who is cancelled: it ends after the step that it is at, and sweeps up after itself.
            return await anyio.to_thread.run_sync(make, abandon_on_cancel=True)
        except BaseException:
            stopped.set()
            if not begun.is_set():
                self._backing_up = False
            raise

    async def aclose(self) -> None:
        """Close the database, once what is being committed is; safe to call twice."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if self._closed:
                    return
                if self._distrusted:
                    # SQLite brings the log into the file as it closes, and would believe a disk that has forgotten.
                    with contextlib.suppress(StoreBusyError, StoreError):
                        await self._recover()
                self._closed = True
                await self._disconnect()

    async def _disconnect(self) -> None:
        """Close the connection, if there is one."""
        opened, self._opened = self._opened, None
        if opened is not None:
            # What was committed is on the disk already: a close that fails loses nothing.
            with contextlib.suppress(sqlite3.Error):
                await opened.connection.close()
            await anyio.to_thread.run_sync(opened.mark.close)

    @property
    def _connection(self) -> aiosqlite.Connection:
        """The connection, which `_ensure_open` has seen to."""
        assert self._opened is not None
        return self._opened.connection

    async def _ensure_open(self) -> None:
        """See that there is a connection. The lock is held by the caller.

        Raises:
            StoreBusyError: the disk still fails.
            StoreError: the file is damaged.
        """
        self._check_open()
        if self._opened is None:
            if not self._path.exists():
                # `prepare` would make an empty one, and the daemon go on as if that were the same.
                raise StoreError(f"{self._path}: the store is gone. Put the file back, or restore a backup of it.")
            with anyio.CancelScope(shield=True):
                if self._rewrite_due:
                    await anyio.to_thread.run_sync(rewrite, self._path)
                    self._rewrite_due = False
                self._opened = await _connect(self._path)
                self._distrusted = False

    async def _recover(self) -> None:
        """After the disk has failed: write what was kept anew, drop what was refused, and open the store as new.

        Raises:
            StoreBusyError: the disk still fails, or somebody reads the file all the time.
            StoreError: the file is damaged.
        """
        if self._opened is not None:
            try:
                # This connection still knows where the log ends that was acknowledged; the next one would read on.
                ((busy, *_),) = await call(self._connection, partial(_fetch, sql=queries.CHECKPOINT))
                self._rewrite_due = not busy
            except sqlite3.Error as error:
                if _primary_code(error) != sqlite3.SQLITE_READONLY:
                    raise self._translated(error) from error
                busy = 0  # it was opened for reading alone, because the disk failed just then
            if busy:
                raise StoreBusyError(
                    f"{self._path}: it can't be checked after a disk error while another program reads it"
                )
            await self._disconnect()
        await self._ensure_open()

    async def _read(
        self, sql: str, decode: Callable[[sqlite3.Row], _T], values: Mapping[str, Any] | None = None
    ) -> tuple[_T, ...]:
        """The rows of a query, decoded. The lock is held by the caller."""
        await self._ensure_open()
        try:
            found = await call(self._connection, partial(_fetch, sql=sql, values=values))
            return tuple(decode(row) for row in found)
        except sqlite3.Error as error:
            raise await self._error_after(error) from error
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self._path}: a row can't be understood: {error}. Restore a backup of it.") from error

    async def _check_history(self, key: str, digests: set[str]) -> None:
        """Refuse to show a cell's history that isn't what was written. The lock is held by the caller."""
        # The cell's own digest too: an attempt that isn't found any more would not bring its digest along.
        known = await self._read(queries.LOAD_DIGEST, lambda row: str(row["digest"]), {"key": key})
        for digest in sorted({*known, *digests}):
            await self._check_digest(digest)

    async def _check_digest(self, digest: str) -> None:
        seal = await self._read(queries.LOAD_HISTORY_SEAL, tuple, {"digest": digest})
        await self._ensure_open()
        assert self._opened is not None
        (found,) = await self._read(self._opened.history_query, tuple, {"digest": digest})
        wrong = seals.compare_history(digest, seal[0] if seal else None, found)
        if wrong:
            raise StoreError(f"{self._path}: the store is damaged: {wrong[0]}. Restore a backup of it.")

    async def _write(self, statements: Sequence[Statement]) -> None:
        if not statements:
            return
        async with self._lock:
            await self._ensure_open()
            with anyio.CancelScope(shield=True):
                if self._distrusted:
                    await self._recover()
                assert self._opened is not None
                transact = partial(self._transact, mark=self._opened.mark, statements=statements)
                try:
                    await call(self._connection, transact)
                except sqlite3.Error as error:
                    raise await self._error_after(error) from error
                except (OverflowError, UnicodeEncodeError) as error:
                    raise InvariantError(f"a record can't be kept: {error}") from error

    def _transact(self, connection: sqlite3.Connection, *, mark: CommitMark, statements: Sequence[Statement]) -> None:
        """One transaction, and the number of its commit to the mark beside the store. In the connection's thread."""
        try:
            number = transaction(connection, statements)
        except sqlite3.Error as error:
            # Here, because whoever asked may have been cancelled and never hears of it.
            self._distrusted |= _primary_code(error) in _DISTRUSTED
            raise
        # In the thread too: a slow disk must not stop the loop.
        mark.note(number)
        self._logged_statements += len(statements)
        if self._logged_statements >= CHECKPOINT_STATEMENTS:
            self._logged_statements = 0
            self._checkpoint(connection)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Bring the log into the file. Where that fails nothing is lost yet: the log still has it, until it is mended.

        In the connection's thread.
        """
        try:
            _fetch(connection, queries.CHECKPOINT_SOME)
        except sqlite3.Error as error:
            self._distrusted |= _primary_code(error) in _DISTRUSTED

    def _check_open(self) -> None:
        if self._closed:
            raise InvariantError(f"{self._path}: the store was used after it was closed")

    async def _error_after(self, error: sqlite3.Error) -> Exception:
        """The port's error for one of SQLite's, once what the disk may have spoilt has been seen to.

        Raises:
            StoreError: the file is damaged.
        """
        if _primary_code(error) not in _DISTRUSTED:
            return self._translated(error)
        self._distrusted = True
        # At once, so that what is said to be refused is gone also if this process dies now.
        with anyio.CancelScope(shield=True), contextlib.suppress(StoreBusyError):
            await self._recover()
        return StoreBusyError(f"{self._path}: nothing was kept, a later commit may be: {error}")

    def _translated(self, error: sqlite3.Error) -> Exception:
        """The port's error for one of SQLite's."""
        code = _primary_code(error)
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
            return InvariantError(f"{self._path}: refused, nothing was kept: {error}")
        if code in _TRANSIENT:
            return StoreBusyError(f"{self._path}: nothing was kept, a later commit may be: {error}")
        return StoreError(f"{self._path}: the store can't be used any more: {error}. Restore a backup of it.")


async def _connect(path: Path) -> _Opened:
    """A connection to the store, which is checked, made or upgraded first.

    Raises:
        StoreBusyError: the disk is full or failing.
        StoreError: it can't be used.
    """
    await anyio.to_thread.run_sync(prepare, path)
    try:
        connection = await connect(path)
    except sqlite3.Error as error:
        raise cannot_open(path, error) from error
    try:
        return _Opened(connection, *await call(connection, partial(_set_up, path=path)))
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):
            await connection.close()
        if isinstance(error, sqlite3.Error | OSError):
            raise cannot_open(path, error) from error
        raise


def _set_up(connection: sqlite3.Connection, path: Path) -> tuple[CommitMark, str]:
    """Give a connection what it and the seals need; the mark beside the store, and the query of a cell's history."""
    connection.row_factory = sqlite3.Row
    for pragma in queries.PRAGMAS:
        connection.execute(pragma).fetchall()
    mode = [row[0] for row in _fetch(connection, queries.JOURNAL_WAL)]
    if mode != ["wal"]:
        raise StoreError(f"{path}: no write-ahead log is possible here (mode {mode}). Use a local file system.")
    seals.register(connection)
    ((store,),) = _fetch(connection, queries.LOAD_STORE_ID)
    ((number,),) = _fetch(connection, queries.LOAD_NUMBER)
    columns = {
        name: tuple(str(row["name"]) for row in _fetch(connection, queries.LOAD_COLUMNS, (name,)))
        for name in seals.HISTORY_IDS
    }
    return CommitMark(path, Mark(str(store), int(number))), seals.history_query(columns)


def _fetch(
    connection: sqlite3.Connection, sql: str, values: Mapping[str, Any] | Sequence[Any] | None = None
) -> list[sqlite3.Row]:
    return connection.execute(sql, values or ()).fetchall()


def transaction(connection: sqlite3.Connection, statements: Sequence[Statement]) -> int:
    """Run statements as one transaction; returns the number of its commit. Whatever goes wrong, none is left open.

    Raises:
        sqlite3.Error: nothing was kept.
        OverflowError, UnicodeEncodeError: a value can't be kept; nothing was.
    """
    connection.execute(queries.BEGIN)
    try:
        # Neighbours of one text are one call: a new matrix is thousands of cells.
        for sql, run in itertools.groupby(statements, key=lambda statement: statement[0]):
            connection.executemany(sql, [values for _, values in run])
        ((number,),) = connection.execute(queries.COUNT_COMMIT).fetchall()
        connection.execute(queries.COMMIT)
    except BaseException:
        # After SQLITE_FULL and SQLITE_IOERR SQLite has rolled back by itself, and a ROLLBACK would be an error.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute(queries.ROLLBACK)
        raise
    return int(number)


def _primary_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _value(row: sqlite3.Row) -> str:
    return str(row["value"])
