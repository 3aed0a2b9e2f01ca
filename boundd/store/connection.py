"""The store's connection: aiosqlite's, which has a thread of its own, and a way to have a whole transaction run there.

aiosqlite runs one statement for each thing that it is asked for, in order, whatever becomes of who asked. A transaction
asked for statement by statement could be left open by a cancellation between two of them, and each statement would be a
journey to the thread and back. aiosqlite has no public way to call a function in its thread, but it makes the
connection by sqlite3's `factory`, and passes a script on as it is: here a script can be a function.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiosqlite

_T = TypeVar("_T")


class _Call(str):
    """A function in the place of a script; as text it is an empty one."""

    def __new__(cls, _function: Callable[[sqlite3.Connection], None]) -> _Call:
        return super().__new__(cls)

    def __init__(self, function: Callable[[sqlite3.Connection], None]) -> None:
        self.function = function


class _Connection(sqlite3.Connection):
    """A connection whose scripts may be functions."""

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        """Run a script, or call the function that stands in its place."""
        if not isinstance(sql_script, _Call):
            return super().executescript(sql_script)
        sql_script.function(self)
        return self.cursor()


async def connect(path: Path) -> aiosqlite.Connection:
    """An open connection in autocommit mode. Whoever has it closes it, or its thread keeps the process.

    Raises:
        sqlite3.Error: it can't be opened.
    """
    return await aiosqlite.connect(path, isolation_level=None, factory=_Connection)


async def call(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], _T]) -> _T:
    """Call a function with the connection in the connection's thread, after all that were asked for before.

    Once asked for, it is run to its end, also where the caller is cancelled.

    Raises:
        ValueError: the connection is closed.
        Exception: whatever the function raises.
    """
    results: list[_T] = []
    await connection.executescript(_Call(lambda opened: results.append(function(opened))))
    return results[0]
