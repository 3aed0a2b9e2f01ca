"""The simulated store keeps and forgets exactly what the real one does."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from boundd.core.model.history import Durations, Observations
from boundd.core.model.records import Record
from boundd.core.model.state import Rules
from boundd.ports import Snapshot
from boundd.store.sqlite import SqliteStore
from tests.sim import daemon
from tests.sim.memory_store import Kept
from tests.sim.seeds import run_seed


@pytest.mark.parametrize("seed", range(8))
def test_the_real_store_restores_the_same(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transaction of a run, in order, into SQLite: a daemon that starts then knows what the simulation says.

    Without `bare_cell` in `Kept.restored`, the first cell differs by its policy.
    """
    transactions: list[tuple[Record, ...]] = []
    kept: list[Kept] = []

    class Written(Kept):
        """Writes down what it is given."""

        def __init__(self) -> None:
            super().__init__()
            kept.append(self)

        def commit(self, records: tuple[Record, ...]) -> None:  # type: ignore[override]
            transactions.append(tuple(records))
            super().commit(records)

    monkeypatch.setattr(daemon, "Kept", Written)
    run_seed(seed)
    half = len(transactions) // 2
    for upto in (half, len(transactions)):
        simulated = Kept()
        for records in transactions[:upto]:
            simulated.commit(records)
        loaded = anyio.run(_through_sqlite, tmp_path / f"{upto}.db", transactions[:upto])
        expected = simulated.restored(Rules())
        assert {record.cell.key: record for record in loaded.cells} == dict(expected.cells.items())
        assert {attempt.id: attempt for attempt in loaded.attempts} == dict(expected.attempts)
        assert Observations.of(loaded.observations) == expected.observations
        assert Durations.of(loaded.durations) == expected.durations
        assert {each.subject: each for each in loaded.quarantines} == expected.quarantines
        assert loaded.paused == expected.paused


async def _through_sqlite(path: Path, transactions: list[tuple[Record, ...]]) -> Snapshot:
    store = await SqliteStore.open(path)
    for records in transactions:
        await store.commit(records)
    await store.aclose()
    store = await SqliteStore.open(path)
    try:
        return await store.load()
    finally:
        await store.aclose()
