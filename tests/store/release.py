"""Writes the store of a release, with data in every table: `python tests/store/release.py FILE.db`.

Run once for each new migration, by the code that is released with it; the file is kept in `released/` for ever, and
test_released.py upgrades each.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import anyio

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model import records
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, attempt_id
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.history import Duration, Observation
from boundd.core.model.memory_evidence import NeighbourOver
from boundd.core.model.outcomes import AttemptError, Measurement, MemoryCause, Outcome, PointRecord, Verdict
from boundd.core.model.quarantines import ByOperator, Quarantine, device_subject
from boundd.store.sqlite import SqliteStore

CELLS = 6


def held(uuid: str, reason: str) -> Quarantine:
    """A device that a person took out of service."""
    return Quarantine(device_subject(uuid), ByOperator(reason), 1_700_000_800.5)


def attempt(cell: Cell, number: int) -> Attempt:
    """A cell's n-th attempt."""
    return Attempt(
        *(attempt_id(cell, number), cell.key, cell.label, number, "GPU-11111111-aaaa", 3 * 2**30, 2**31, 4, False),
        *(3600.0, 10.0, 1_700_000_000.25 + number, 1000.5 + number),
        points=2,
    )


def everything() -> list[list[object]]:
    """Commits that leave rows in every table: cells in several states, attempts, ends, what was learned."""
    commits: list[list[object]] = []
    measured = Measurement(2.5, 2.25, {"ratio": 0.5, "näme": [1, None]}, Isolation.EXCLUSIVE, 2.75, {"torch": "2.6"})
    error = AttemptError(ErrorKind.OUT_OF_MEMORY, "CUDA out of memory: ünïcode", 1_700_000_500.5, "baseline", 2**33, 7)
    error = dataclasses.replace(error, cause=MemoryCause.PRESSURE, evidence=NeighbourOver("SDXL/20", 2**34, 2**30))
    for n in range(CELLS):
        cell = Cell.of({"model": "SD1.5", "steps": 20 + n, "method": "tome", "batch_size": 4}, ("model", "steps"))
        record = CellRecord(cell, CellPolicy())
        commits.append([records.SaveCell(record)])
        if n == 0:
            continue
        first = attempt(cell, 1)
        ended = dataclasses.replace(first, state=AttemptState.ENDED, progress_done=3, progress_total=3)
        points = [
            records.SavePoint(first.id, i, PointRecord({"ratio": 0.25 * i}, 1.5 + i, 0.001, Isolation.EXCLUSIVE))
            for i in range(2)
        ]
        running = dataclasses.replace(record, state=CellState.RUNNING, attempts=1)
        commits.append([records.SaveCell(running), records.SaveAttempt(first)])
        if n == 1:
            continue
        if n % 2:
            verdict = Verdict(Outcome.SUCCEEDED, measured, None, 0, None, 12.5 + n, 2**31, 2**32)
            after = dataclasses.replace(
                running, state=CellState.SUCCEEDED, measurement=measured, measured_device="GPU-1", duration_s=12.5
            )
        else:
            verdict = Verdict(Outcome.OUT_OF_MEMORY, None, error, 1, None, 3.25)
            after = dataclasses.replace(running, state=CellState.OUT_OF_MEMORY, charged_failures=1, error=error)
        commits.append([*points, records.SaveEnd(ended, verdict, 1_700_000_600.0 + n), records.SaveCell(after)])
    commits.append([records.SaveObservation(Observation("model=SD1.5", 4, 2**32, n % 2 == 0)) for n in range(4)])
    commits.append([records.SaveDuration(Duration("SD1.5", "tome", "GPU", 20, 32, 4, 71.5 + n)) for n in range(4)])
    commits.append([records.SaveAnswer(1000, "a-key", "00" * 32, 1_700_000_700.5, b"{}", 0.0, 100)])
    commits.append([records.SaveQuarantine(held("GPU-22222222-bbbb", "the fan is loud")), records.SavePaused(True)])
    return commits


async def write(path: Path) -> None:
    """Make the store."""
    store = await SqliteStore.open(path)
    try:
        for commit in everything():
            await store.commit(commit)  # type: ignore[arg-type]
        await store.remember("export-digests", '["abc"]')
    finally:
        await store.aclose()


if __name__ == "__main__":
    anyio.run(write, Path(sys.argv[1]))
