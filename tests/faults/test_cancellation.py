"""Cancellation at every await of every store operation.

A store operation is a coroutine. The test runs it in a task and cancels that at its n-th step, counted in what it waits
for: by an anyio scope, by `Task.cancel()`, and by that twice in a row, for n from 0 until the operation ends before its
turn comes. After each point: no transaction is open, what was
committed is there whole or not at all, the next operation works, and nothing hangs.

To see it fail: let `SqliteStore._write` ask the thread for BEGIN, for each statement and for COMMIT one by one, instead
of for the whole transaction: transactions stay open, and without BEGIN and COMMIT halves are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import anyio
import pytest

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.records import Record, SaveCell, SaveQuarantine
from boundd.ports import InvariantError
from boundd.store.sqlite import SqliteStore
from tests.faults import campaign
from tests.store import release

Operation = Callable[[SqliteStore, int], Coroutine[None, None, object]]
PATIENCE_S = 60.0
FEWEST_POINTS = 20
"""Of all operations together; there are many more, and none at all would mean that nothing was cancelled."""


def cordons(number: int) -> list[Record]:
    """Records of several kinds, which are several statements, that belong together: one `number`."""
    cells = [Cell.of({"number": number, "half": half}, ("number", "half")) for half in range(4)]
    return [
        SaveQuarantine(release.held(f"first-{number}", "x")),
        *(SaveCell(CellRecord(cell, CellPolicy())) for cell in cells),
        SaveQuarantine(release.held(f"last-{number}", "x")),
    ]


async def backed_up(store: SqliteStore, _number: int) -> None:
    """A copy, closed."""
    (await store.back_up()).file.close()


KEY = Cell.of({"model": "SD1.5", "steps": 22, "method": "tome", "batch_size": 4}, ("model", "steps")).key
OPERATIONS: dict[str, Operation] = {
    "commit": lambda store, number: store.commit(cordons(number)),
    "remember": lambda store, number: store.remember("fact", str(number)),
    "load": lambda store, _: store.load(),
    "recall": lambda store, _: store.recall("fact"),
    "attempts_of": lambda store, _: store.attempts_of(KEY),
    "back_up": backed_up,
    "aclose": lambda store, _: store.aclose(),
}


async def cancelled_at(operation: Coroutine[None, None, object], step: int, how: str) -> bool:
    """Run an operation, and cancel it at its `step`-th turn; False where it had ended before."""
    scope = anyio.CancelScope()

    async def work() -> None:
        with scope:
            await operation

    task = asyncio.ensure_future(work())
    turns = 0
    loop = asyncio.get_running_loop()
    while not task.done() and turns < step:
        # A turn counts once the task waits for something else than before: those spent on waiting for a thread don't.
        waits_for = getattr(task, "_fut_waiter", None)
        if waits_for is not None and not waits_for.done():
            woken = loop.create_future()
            waits_for.add_done_callback(lambda _, woken=woken: woken.done() or woken.set_result(None))
            await woken
        await asyncio.sleep(0)
        turns += 1
    too_late = task.done()
    if how == "scope":
        scope.cancel()
    else:
        task.cancel()
        if how == "twice":
            await asyncio.sleep(0)
            task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE_S):
            await task
    operation.close()  # cancelled before its first step, it has not begun
    return not too_late


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A store that is closed in the end."""
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.aclose()


async def judge(store: SqliteStore, number: int, found: Counter[str]) -> None:
    """After a point: no transaction is open once the next operation has begun, all or nothing, and it works."""
    async with asyncio.timeout(PATIENCE_S):
        await store.commit([SaveQuarantine(release.held("after", str(number)))])
        known = await store.load()
    found["open"] += store._connection.in_transaction
    parts = sum(each.cell.parameters.get("number") == number for each in known.cells)
    parts += sum(release.held(f"{which}-{number}", "x") in known.quarantines for which in ("first", "last"))
    found["split"] += parts not in (0, len(cordons(number)))
    found["lost"] += release.held("after", str(number)) not in known.quarantines


@campaign.sizes("rounds", short=1, long=20)
def test_every_await_of_every_operation(tmp_path: Path, report: campaign.Report, rounds: int) -> None:
    """Open transactions 0, split commits 0, operations that don't work afterwards 0."""
    found: Counter[str] = Counter()
    points: Counter[str] = Counter()

    async def sweep(name: str, operation: Operation, how: str) -> None:
        path = tmp_path / f"{name}.db"
        number = points.total()
        async with opened(path) as store:
            for step in range(10_000):
                number += 1
                async with asyncio.timeout(PATIENCE_S):
                    # The thread of a backup whose asker was cancelled ends after the step that it is at.
                    while store._backing_up:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                if not await cancelled_at(operation(store, number), step, how):
                    break
                points[name] += 1
                await judge(store, number, found)

    async def sweep_closing(how: str) -> None:
        path = tmp_path / "aclose.db"
        for step in range(10_000):
            store = await SqliteStore.open(path)
            await store.commit(cordons(step))
            reached = await cancelled_at(store.aclose(), step, how)
            await store.aclose()
            with pytest.raises(InvariantError):
                await store.load()
            async with opened(path) as again:
                await judge(again, step, found)
            points["aclose"] += reached
            if not reached:
                break

    async def main() -> None:
        for name in OPERATIONS:
            await release.write(tmp_path / f"{name}.db")
        for _ in range(rounds):
            for how in ("scope", "task", "twice"):
                for name, operation in OPERATIONS.items():
                    if name == "aclose":
                        await sweep_closing(how)
                    else:
                        await sweep(name, operation, how)

    anyio.run(main)
    for path in tmp_path.glob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    report(
        "cancellation at every await of the store",
        points=points.total(),
        **{name: points[name] for name in OPERATIONS},
        open_transactions=found["open"],
        split=found["split"],
        next_failed=found["lost"],
    )
    assert found.total() == 0, found
    assert all(points[name] for name in OPERATIONS), points
    assert points.total() >= FEWEST_POINTS * rounds


@pytest.mark.parametrize("how", ["scope", "task", "twice"])
def test_opening(tmp_path: Path, how: str) -> None:
    """Cancelled while it is opened, made or not, a store can be opened by the next, and no thread is left behind."""

    async def main() -> int:
        reached = 0
        for step in range(10_000):
            path = tmp_path / f"{how}-{step}.db"
            closing: list[SqliteStore] = []

            async def open_it(path: Path = path, closing: list[SqliteStore] = closing) -> None:
                closing.append(await SqliteStore.open(path))

            was = await cancelled_at(open_it(), step, how)
            for store in closing:
                await store.aclose()
            async with asyncio.timeout(PATIENCE_S), opened(path) as store:
                assert (await store.load()).cells == ()
            if not was:
                return reached
            reached += 1
        return reached

    assert anyio.run(main) > 0
