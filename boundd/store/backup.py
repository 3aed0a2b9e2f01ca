"""A whole copy of a store that is in use, checked before it is handed over.

Rules: the copy is made from one snapshot, so it is a state that the store was in, and writers don't wait for it (the
log only grows meanwhile). It lies beside the store under a name of our own, which the next start sweeps, and has lost
that name before the first byte is handed over: nothing is left of it, whatever becomes of whoever asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from boundd.ports import StoreBusyError, StoreCopy
from boundd.store import queries, seals
from boundd.store.migrate import COPY, beside, cannot_open, check_integrity, check_seals, discard

PAGES_A_STEP = 256
"""A MiB; between steps the disk is the daemon's."""
REST_S = 0.002
SPARE_BYTES = 64 * 1024**2
"""What is left free on the disk for the daemon's own commits."""


class BackupCancelledError(Exception):
    """Ours: whoever asked for the copy has gone."""


def back_up(path: Path, is_stopped: Callable[[], bool]) -> StoreCopy:
    """Copy the store at `path`, check the copy, and return it without a name. Blocks; in a thread of its own.

    Raises:
        StoreBusyError: there is no room for it, or the disk fails.
        StoreError: the copy isn't whole, so the store itself isn't.
        BackupCancelledError: `is_stopped` said so.
    """
    target = beside(path, COPY)
    if is_stopped():
        raise BackupCancelledError
    try:
        _check_room(path)
        discard(target)
        try:
            _copy(path, target, is_stopped)
            number = _checked(target)
            return _opened(target, number)
        finally:
            discard(target)
    except (sqlite3.Error, OSError) as error:
        raise cannot_open(target, error) from error


def _check_room(path: Path) -> None:
    wal = beside(path, "-wal")
    needed = path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    free = shutil.disk_usage(path.parent).free
    if free < needed + SPARE_BYTES:
        raise StoreBusyError(
            f"{path.parent}: {free:,} bytes are free, and a backup may take {needed:,} and leaves "
            f"{SPARE_BYTES:,} to the daemon; make room"
        )


def _copy(path: Path, target: Path, is_stopped: Callable[[], bool]) -> None:
    def rest(*_: int) -> None:
        if is_stopped():
            raise BackupCancelledError
        time.sleep(REST_S)

    uri = f"{path.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as source:
        # A snapshot that is held: without it, each commit meanwhile would make SQLite begin the copy anew.
        source.execute("BEGIN")
        source.execute(queries.LOAD_NUMBER).fetchall()
        with contextlib.closing(sqlite3.connect(target)) as copy:
            source.backup(copy, pages=PAGES_A_STEP, progress=rest)


def _checked(target: Path) -> int:
    """The number of commits in the copy, once all of it is known to be whole."""
    uri = f"{target.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as copy:
        seals.register(copy)
        check_integrity(target, copy)
        return check_seals(target, copy, histories=True)[1]


def _opened(target: Path, number: int) -> StoreCopy:
    file = target.open("rb")
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.tell()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return StoreCopy(file, size_bytes, digest, number)
