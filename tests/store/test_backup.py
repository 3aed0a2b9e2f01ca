"""Copies of a store in use: whole, checked, of one moment, and nothing left of them.

To see the tests fail: take `source.execute("BEGIN")` with the line after it out of `backup._copy` (the copy under
commits is begun anew and anew, and the test that counts its steps fails), return 0 from `_checked` at once (a damaged
store is copied), take `discard(target)` out of `back_up`'s `finally`, or COPY out of `migrate._sweep`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.records import SaveCell
from boundd.ports import StoreBusyError, StoreCopy, StoreError
from boundd.store import backup, seals
from boundd.store.sqlite import SqliteStore
from tests.store import release

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


def pair(n: int) -> list[SaveCell]:
    """Two cells that are committed together."""
    return [SaveCell(CellRecord(Cell.of({"n": n, "half": half}, ("n",)), CellPolicy())) for half in (0, 1)]


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A store that is closed in the end."""
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with data in every table, closed."""
    target = tmp_path / "state" / "boundd.db"
    target.parent.mkdir()
    anyio.run(release.write, target)
    return target


def put(copy: StoreCopy, path: Path) -> Path:
    """A copy as a store of its own, in a folder of its own."""
    path.parent.mkdir(exist_ok=True)
    with copy.file:
        content = copy.file.read()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (copy.size_bytes, copy.sha256)
    path.write_bytes(content)
    return path


async def test_a_copy_is_a_store(path: Path, tmp_path: Path) -> None:
    """A store opened on the copy knows what the original does, and nothing of the copy is left beside that."""
    async with opened(path) as store:
        known = await store.load()
        before = sorted(path.parent.iterdir())
        copy = await store.back_up()
        assert sorted(path.parent.iterdir()) == before
        async with opened(put(copy, tmp_path / "other" / "boundd.db")) as other:
            assert await other.load() == known
            await other.commit(pair(1))
    assert copy.commits > 10


async def test_commits_go_on_and_the_copy_is_of_one_moment(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under commits between any two steps the copy ends, holds every commit from before, and no half of any."""
    monkeypatch.setattr(backup, "PAGES_A_STEP", 1)
    steps = 0

    def slower(_s: float) -> None:
        nonlocal steps
        steps += 1
        committed.clear()
        # Until somebody has committed: a copy that began anew for it would never end.
        assert committed.wait(30)

    committed = threading.Event()
    monkeypatch.setattr(backup.time, "sleep", slower)
    async with opened(path) as store:
        for n in range(50):
            await store.commit(pair(n))
        pages = sum(len(Path(f"{path}{suffix}").read_bytes()) for suffix in ("", "-wal")) // 4096  # noqa: ASYNC240
        done = 50
        copies: list[StoreCopy] = []

        async def copying() -> None:
            copies.append(await store.back_up())
            group.cancel_scope.cancel()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(copying)
                while True:
                    await store.commit(pair(done))
                    done += 1
                    committed.set()
                    assert steps <= 2 * pages, "the copy was begun anew"
        async with opened(put(copies[0], tmp_path / "other" / "boundd.db")) as other:
            found = [each.cell.parameters["n"] for each in (await other.load()).cells if "half" in each.cell.parameters]
    assert steps > 10
    assert len(found) % 2 == 0
    assert found == [n for n in range(len(found) // 2) for _ in (0, 1)]
    assert 50 <= len(found) // 2 <= done


async def test_a_damaged_store_is_not_copied(path: Path) -> None:
    """What a start did not look at, the history of a cell that has ended, is looked at before a copy is handed over."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE points SET speedup = 99 WHERE attempt_id LIKE '%.1' AND idx = 1")
        for name, columns in seals.tables(connection).items():
            for trigger in seals._triggers(name, columns):
                connection.execute(trigger)
    async with opened(path) as store:
        with pytest.raises(StoreError, match=r"history of cell .* a value is not what was written"):
            await store.back_up()
        assert not [file for file in path.parent.iterdir() if ".copy" in file.name]


async def test_one_at_a_time_and_gone_with_its_asker(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one is refused; one whose asker is cancelled is swept up, and the next one works."""
    begun, go = threading.Event(), threading.Event()

    def held(_s: float) -> None:
        begun.set()
        assert go.wait(30)

    monkeypatch.setattr(backup, "PAGES_A_STEP", 1)
    monkeypatch.setattr(backup.time, "sleep", held)
    async with opened(path) as store:
        async with anyio.create_task_group() as group:
            group.start_soon(store.back_up)
            await anyio.to_thread.run_sync(begun.wait, 30)
            with pytest.raises(StoreBusyError, match="another backup"):
                await store.back_up()
            group.cancel_scope.cancel()
        go.set()
        with anyio.fail_after(30):
            while True:
                try:
                    copy = await store.back_up()
                    break
                except StoreBusyError:
                    await anyio.sleep(0.01)
        copy.file.close()
        assert not [file for file in path.parent.iterdir() if ".copy" in file.name]


async def test_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that would take the daemon's last room isn't begun, and the numbers are told."""
    monkeypatch.setattr(backup, "SPARE_BYTES", 2**62)
    async with opened(path) as store:
        with pytest.raises(StoreBusyError, match=r"bytes are free, and a backup may take [0-9,]+"):
            await store.back_up()


_COPY_AND_HANG = """
import sys, time
from pathlib import Path
from boundd.store import backup
def hang(_s):
    print("half", flush=True)
    threading.Event().wait()
import threading
backup.PAGES_A_STEP = 1
backup.time.sleep = hang
backup.back_up(Path(sys.argv[1]), lambda: False)
"""


async def test_killed_half_way_it_is_swept(path: Path) -> None:
    """What a daemon killed in the middle of a copy leaves is gone after the next start, and the store is as it was."""
    async with opened(path) as store:
        known = await store.load()
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", _COPY_AND_HANG, str(path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"half\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert path.with_name("boundd.db.copy").exists()
    async with opened(path) as store:
        assert not [file for file in path.parent.iterdir() if ".copy" in file.name]
        assert await store.load() == known
