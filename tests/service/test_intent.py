"""No worker ever starts whose attempt is not in the store: the intent is committed, and only then anything is done.

Seen to fail: with the effects before the commit in `Loop.handle` of boundd/core/lifecycle/loop.py.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from boundd.core.model.attempts import Attempt, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.events import ConfigLoaded
from boundd.core.model.records import SaveAttempt
from boundd.core.model.state import Rules, State
from boundd.devices.cpu import CpuProbe
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec, StoreBusyError
from boundd.service.clock import SystemClock
from boundd.service.daemon import Daemon, Hooks
from boundd.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
RESULT = '{"type": "result", "max_speedup": 2.0, "max_speedup_within_tolerance": null, "isolation": "exclusive"}'
PATIENCE_S = 120.0


class Checking(LocalLauncher):
    """A real launcher that looks into the database, as another program, before it starts anything."""

    launched = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "attempts")
        self._database = folder / "boundd.db"

    async def launch(self, spec: LaunchSpec) -> None:
        """Start it, if the intent is there for everybody to see."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as store:
            rows = store.execute("SELECT state FROM attempts WHERE id = ?", [spec.attempt_id]).fetchall()
        assert rows == [("starting",)]
        Checking.launched += 1
        await super().launch(spec)


class Faulty(SqliteStore):
    """A real store that fails, or whose daemon dies, at the first commit of an intent."""

    fault = ""

    async def commit(self, records: Sequence[Any]) -> None:
        """Commit, with the fault before or after."""
        intent = any(isinstance(record, SaveAttempt) for record in records)
        if intent and self.fault == "fails":
            raise StoreBusyError("database or disk is full")
        if intent and self.fault == "dies before":
            os.kill(os.getpid(), signal.SIGKILL)
        await super().commit(records)
        if intent and self.fault == "dies after":
            os.kill(os.getpid(), signal.SIGKILL)


async def nothing(*_: object) -> None:
    """No export, no API."""


async def run_daemon(folder: Path, fault: str = "", *, for_s: float | None = None) -> State:
    """A daemon of three cells, until they have ended or for so long; its state."""
    store = await Faulty.open(folder / "boundd.db")
    assert isinstance(store, Faulty)
    store.fault = fault
    launcher = Checking(folder)

    def spec_of(attempt: Attempt, cell: Cell, state: State) -> LaunchSpec:
        results = launcher.results_path(attempt.id)
        env = {**os.environ, "BOUNDD_RESULTS": str(results)}
        argv = ("sh", "-c", f"echo ran >> {folder}/ran; echo '{RESULT}' >> \"$BOUNDD_RESULTS\"")
        return LaunchSpec(attempt.id, argv, env, folder, attempt.timeout_s, attempt.grace_s)

    matrix = tuple((Cell.of({"n": n, "batch_size": 4}, ["n"]), CellPolicy(timeout_s=60)) for n in range(3))
    config = ConfigLoaded(matrix, Rules(backoff_s=0.1))
    hooks = Hooks(spec_of, lambda: pytest.fail("no reload here"), nothing)
    daemon = Daemon(config, store, launcher, CpuProbe(), SystemClock(), (), hooks)
    try:
        await daemon.recover()
        with anyio.move_on_after(for_s if for_s is not None else PATIENCE_S) as waited:
            await daemon.run(until_idle=True, serve=nothing)
        assert waited.cancelled_caught == (for_s is not None)
        return daemon.state
    finally:
        launcher.close()
        await store.aclose()


def test_the_intent_is_there_for_everybody_before_the_worker(tmp_path: Path) -> None:
    """Another program that reads the database finds each attempt before its shim is asked for."""
    before = Checking.launched
    state = anyio.run(run_daemon, tmp_path)
    assert all(record.state is CellState.SUCCEEDED for record in state.matrix())
    assert Checking.launched - before == 3


def test_a_commit_that_fails_starts_nothing(tmp_path: Path) -> None:
    """However often it is tried."""

    async def main() -> State:
        return await run_daemon(tmp_path, "fails", for_s=3.0)

    state = anyio.run(main)
    assert not state.attempts
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "attempts").glob("*"))


@pytest.mark.parametrize("fault", ["dies before", "dies after"])
def test_a_daemon_that_dies_at_the_commit_has_started_nothing(tmp_path: Path, fault: str) -> None:
    """Just before and just after it; the next one takes it up, and each cell runs once."""
    program = (
        "import sys, anyio; from tests.service.test_intent import Path, run_daemon;"
        "anyio.run(run_daemon, Path(sys.argv[1]), sys.argv[2])"
    )
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path), fault], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "attempts").glob("*"))
    state = anyio.run(run_daemon, tmp_path)
    records = list(state.matrix())
    assert all(record.state is CellState.SUCCEEDED for record in records)
    assert sorted(record.attempts for record in records) == ([1, 1, 1] if fault == "dies before" else [1, 1, 2])
    assert (tmp_path / "ran").read_text() == "ran\n" * 3
