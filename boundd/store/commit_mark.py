"""How many commits were acknowledged, kept beside the store: what tells an older copy, or a log that lost its end.

SQLite takes a damaged write-ahead log up to its first bad frame and says nothing of the commits after it, and an older
copy of a store is a perfectly good one. So the number of the last commit is written to a small file as well, after the
commit. That isn't synced, which would double a commit's price: after a power cut the file may be behind by what the
kernel had not written yet, never ahead. It is checked when a store is opened, and synced when it is closed.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from boundd.ports import StoreError

SUFFIX = ".commits"
"""After the store's own name."""
_LENGTH = 64
"""Bytes, always: overwriting them in place needs no room on the disk, and a sector is written whole."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Of which store, by its id, and how many commits."""

    store: str
    number: int


def beside(path: Path) -> Path:
    """Where the mark of the store at `path` is."""
    return path.with_name(path.name + SUFFIX)


def read(path: Path) -> Mark | None:
    """The mark of the store at `path`; None where there is none.

    Raises:
        StoreError: it is damaged.
        OSError: it can't be read.
    """
    place = beside(path)
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError, UnicodeDecodeError):
        _, store, number, _ = content.decode("ascii").split()
        mark = Mark(store, int(number))
        if content == _text(mark):
            return mark
    raise StoreError(
        f"{place}: damaged ({len(content)} bytes), so nobody can tell whether {path.name} has all that was "
        f"acknowledged. Restore a backup, or remove {place.name} to go on with {path.name} as it is."
    )


def check(path: Path, store: str | None, number: int) -> None:
    """See that a store, its id and number of commits given, has all that was acknowledged here.

    Raises:
        StoreError: it hasn't, or it is another store than the one that was here.
    """
    mark = read(path)
    if mark is None:
        return
    place = beside(path)
    if store != mark.store:
        raise StoreError(
            f"{path}: not the store that was here before, but another one or an older copy of it "
            f"(id {store or 'none'}, not {mark.store}). Put that one back, or remove {place.name} to use this one."
        )
    if number < mark.number:
        raise StoreError(
            f"{path}: it holds {number} commits of {mark.number} that were acknowledged: this is an older copy, or its "
            f"write-ahead log was damaged. Put the right file back, with its -wal, or remove {place.name} to go on "
            "without the others."
        )


class CommitMark:
    """The mark of an open store. Of the store's own thread."""

    def __init__(self, path: Path, mark: Mark) -> None:
        """Take over the mark at the store's side, or make it, durably.

        Raises:
            OSError: it can't be written.
        """
        self._store = mark.store
        place = beside(path)
        if not place.exists():
            _make(place, mark)
        self._descriptor = os.open(place, os.O_WRONLY | os.O_CLOEXEC)
        self.note(mark.number)

    def note(self, number: int) -> None:
        """Write the number of a commit that is durable. A failing disk costs the check, not the commit."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, _text(Mark(self._store, number)), 0)

    def close(self) -> None:
        """Sync it and let go of it."""
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)


def _make(place: Path, mark: Mark) -> None:
    temporary = place.with_name(place.name + ".new")
    with temporary.open("wb") as file:
        file.write(_text(mark))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(place)
    folder = os.open(place.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _text(mark: Mark) -> bytes:
    start = f"boundd-commits {mark.store} {mark.number:019d} "
    return f"{start}{zlib.crc32(start.encode()):08x}\n".rjust(_LENGTH).encode()
