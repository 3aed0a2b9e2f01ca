"""A process that KILL can't end, for real: one that a freezer cgroup (v1) keeps from running, and so from dying.

Seen to fail: without `_watch_for_unkillable` in boundd/service/daemon.py nobody is told and the device stays in
service.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, AttemptState, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import CancelRequested, ConfigLoaded, Now
from boundd.core.model.quarantines import StuckProcess
from boundd.core.model.state import Rules, State
from boundd.devices.cpu import CpuProbe
from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec, UnkillableProcess
from boundd.service import unkillable_watch
from boundd.service.clock import SystemClock
from boundd.service.daemon import Daemon, Hooks
from boundd.store.sqlite import SqliteStore

FREEZER = Path("/sys/fs/cgroup/freezer")
PATIENCE_S = 60.0
pytestmark = pytest.mark.skipif(not os.access(FREEZER / "cgroup.procs", os.W_OK), reason="no freezer cgroup (v1)")


@pytest.fixture
def freezer(tmp_path: Path) -> Iterator[Path]:
    """A freezer of our own; whatever is in it thaws, and with that dies, at the end."""
    folder = FREEZER / f"boundd-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    (folder / "freezer.state").write_text("THAWED")
    for pid in (folder / "cgroup.procs").read_text().split():
        (FREEZER / "cgroup.procs").write_text(pid)
    folder.rmdir()


class Remembering:
    """An Observer that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - the Observer's signature
        """Keep it."""
        self.notes.append(note)

    def said(self, action: Action) -> list[str]:
        """The messages of an action."""
        return [note.message for note in self.notes if note.action is action]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def nothing(*_: object) -> None:
    """No export, no API."""


async def make_daemon(folder: Path, heard: Remembering) -> tuple[Daemon, SqliteStore]:
    """A daemon of one cell that sleeps, on the CPU device."""
    store = await SqliteStore.open(folder / "boundd.db")
    launcher = LocalLauncher(folder / "attempts")

    sleeper = (sys.executable, "-c", "import time; time.sleep(600)")

    def spec_of(attempt: Attempt, cell: Cell, state: State) -> LaunchSpec:
        results = launcher.results_path(attempt.id)
        env = {**os.environ, "BOUNDD_RESULTS": str(results)}
        return LaunchSpec(attempt.id, sleeper, env, folder, 600, 0.1)

    matrix = ((Cell.of({"n": 1, "batch_size": 4}, ["n"]), CellPolicy(timeout_s=600)),)
    hooks = Hooks(spec_of, lambda: pytest.fail("no reload here"), nothing)
    daemon = Daemon(ConfigLoaded(matrix, Rules()), store, launcher, CpuProbe(), SystemClock(), (heard,), hooks)
    await daemon.recover()
    return daemon, store


def test_its_device_is_cordoned_until_it_has_ended(
    tmp_path: Path, freezer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled and killed, it lives on: the attempt stays live, its device out of service, also over a restart."""
    monkeypatch.setattr(unkillable_watch, "LOOK_S", 0.05)
    monkeypatch.setattr(unkillable_watch, "PATIENCE_S", 0.3)
    heard = Remembering()

    async def first_life(daemon: Daemon) -> None:
        await until(lambda: any(a.state is AttemptState.RUNNING for a in daemon.state.attempts.values()))
        (attempt,) = daemon.state.attempts.values()
        record = json.loads((tmp_path / "attempts" / attempt.id / shim.SHIM).read_text())
        (freezer / "cgroup.procs").write_text(str(record["worker_pid"]))
        (freezer / "freezer.state").write_text("FROZEN")
        await daemon.submit(CancelRequested((attempt.key,)))
        await until(lambda: daemon.state.devices[attempt.device].state is DeviceState.CORDONED)
        reason = wording.out_of_service(daemon.state.devices[attempt.device])
        assert f"attempt {attempt.id} " in reason
        assert f"pid {record['worker_pid']} (python" in reason
        assert "has survived SIGKILL since 20" in reason
        assert daemon.state.attempts[attempt.id].state is AttemptState.ENDING
        assert daemon.launcher.is_alive(attempt.id)
        assert shim.stat_of(record["worker_pid"]) is not None
        daemon.request_stop(end_workers=False)

    async def second_life(daemon: Daemon) -> None:
        (attempt,) = daemon.state.attempts.values()
        assert daemon.state.devices[attempt.device].state is DeviceState.CORDONED
        await until(lambda: bool(daemon.state.attempts[attempt.id].unkillable))
        (freezer / "freezer.state").write_text("THAWED")
        await until(lambda: not daemon.state.attempts)
        assert daemon.state.devices[attempt.device].state is DeviceState.READY
        assert daemon.state.cells[attempt.key].state is CellState.CANCELLED
        assert not daemon.launcher.is_alive(attempt.id)

    async def main() -> None:
        for life in (first_life, second_life):
            daemon, store = await make_daemon(tmp_path, heard)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(life, daemon)
                    with anyio.fail_after(2 * PATIENCE_S):
                        await daemon.run(until_idle=life is second_life, serve=nothing)
            finally:
                await store.aclose()

    anyio.run(main)
    assert len(heard.said(Action.DEVICE_CORDONED)) == 1
    assert len(heard.said(Action.DEVICE_UNCORDONED)) == 1
    assert heard.said(Action.ATTEMPT_UNKILLABLE)


class Answers:
    """A launcher that answers what it is told to, for the one question that is asked."""

    def __init__(self) -> None:
        self.now: frozenset[UnkillableProcess] = frozenset()

    def unkillable(self, attempt_id: str) -> frozenset[UnkillableProcess]:  # noqa: ARG002
        """What the test says."""
        return self.now


def test_only_one_that_stays_is_said_to_be_stuck() -> None:
    """One that takes a while to die is not, nor is the next process that is dying just then."""
    answers = Answers()
    watch = unkillable_watch.UnkillableWatch(answers)  # type: ignore[arg-type]
    answers.now = frozenset({UnkillableProcess(1, 10, "a", "R")})
    assert watch.look(["x"], Now(0.0, 0.0)) == []
    answers.now = frozenset({UnkillableProcess(1, 11, "a", "D", "nvidia_ioctl")})
    assert watch.look(["x"], Now(unkillable_watch.PATIENCE_S, 0.0)) == []
    answers.now = frozenset({UnkillableProcess(1, 11, "a", "R")})
    (found,) = watch.look(["x"], Now(2 * unkillable_watch.PATIENCE_S, 0.0))
    assert found.attempt_id == "x"
    assert found.processes == (StuckProcess(1, "a", "R", "", 0.0),)
