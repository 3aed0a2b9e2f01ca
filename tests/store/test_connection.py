"""The store's connection: functions run in its thread, in order, whatever becomes of who asked.

Seen to fail: with `call` asking by `asyncio.to_thread`, a function runs beside the one before it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from boundd.store.connection import call, connect

pytestmark = pytest.mark.anyio


async def test_functions_and_statements_share_one_thread(tmp_path: Path) -> None:
    """What a function returns comes back, what it raises too, and a script is still a script."""
    connection = await connect(tmp_path / "a.db")
    try:
        await connection.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (7)")
        assert await call(connection, lambda opened: opened.execute("SELECT x FROM t").fetchone()) == (7,)
        threads = {await call(connection, lambda _: threading.get_ident()) for _ in range(3)}
        assert len(threads) == 1
        assert threads != {threading.get_ident()}
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await call(connection, lambda opened: opened.execute("SELECT x FROM nowhere"))
    finally:
        await connection.close()
    with pytest.raises(ValueError, match=r"no active connection|Connection closed"):
        await call(connection, lambda _: None)


async def test_a_cancelled_call_is_run_to_its_end_before_the_next(tmp_path: Path) -> None:
    """asyncio's own cancellation reaches who waits, and not the function: the next one comes after it."""
    connection = await connect(tmp_path / "a.db")
    begun, may_end, done = threading.Event(), threading.Event(), []

    def slow(_opened: sqlite3.Connection) -> None:
        begun.set()
        may_end.wait(10)
        done.append("slow")

    try:
        task = asyncio.create_task(call(connection, slow))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = asyncio.create_task(call(connection, lambda _: done.append("next")))
        await asyncio.sleep(0.05)
        assert done == []
        may_end.set()
        await after
        assert done == ["slow", "next"]
    finally:
        may_end.set()
        await connection.close()
