"""A reload, and a reading that fails, with a real store: each is one event, and nothing else changes the state.

Seen to fail: with the rules and settings put into the state before the event is submitted, as it once was; with devices
marked as unreadable in the state itself while a commit is in flight; without the lock around a reload.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from boundd.core.model.attempts import Attempt
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading, DeviceState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import ConfigLoaded, Now, PauseRequested
from boundd.core.model.records import Record
from boundd.core.model.state import Rules, State
from boundd.launch.local import LocalLauncher
from boundd.ports import DeviceError, LaunchSpec, StoreBusyError
from boundd.service.clock import SystemClock
from boundd.service.daemon import Daemon, Hooks, NewConfig
from boundd.store.sqlite import SqliteStore

GIB = 1024**3
PATIENCE_S = 30.0


def config(name: str, cells: int) -> ConfigLoaded:
    """A config of so many cells, with rules and settings that go by its name."""
    matrix = tuple((Cell.of({"n": n}, ["n"]), CellPolicy(exclusive=name == "new")) for n in range(cells))
    return ConfigLoaded(matrix, Rules(max_attempts=len(name)), settings=name)


def in_force(state: State) -> tuple[int, Rules, object, set[bool]]:
    """What of a config the state goes by."""
    policies = {record.policy.exclusive for record in state.matrix()}
    return len(state.order), state.rules, state.settings, policies


class Disk(SqliteStore):
    """A real store on a disk that is full, or slow, when the test says so."""

    full = False
    gate: anyio.Event | None = None
    waiting = False

    async def commit(self, records: Sequence[Record]) -> None:
        """Commit, once the disk takes it."""
        if self.full:
            raise StoreBusyError("database or disk is full")
        if self.gate is not None:
            self.waiting = True
            await self.gate.wait()
            self.waiting = False
        await super().commit(records)


@dataclass
class OneGpu:
    """A probe of one GPU, which fails while `lost`."""

    lost: bool = False
    reads: int = 0

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """A reading of a free device."""
        self.reads += 1
        if self.lost:
            raise DeviceError("the driver is gone")
        return (DeviceReading("GPU-0", 0, "Simulated", 24 * GIB, 24 * GIB, {} if processes else None),)

    async def aclose(self) -> None:
        """Nothing."""


@dataclass
class Remembering:
    """An Observer that keeps what it hears."""

    notes: list[Note] = field(default_factory=list)

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - the Observer's signature
        """Keep it."""
        self.notes.append(note)

    def actions(self) -> list[Action]:
        """What happened, in order."""
        return [note.action for note in self.notes]


async def nothing(*_: object) -> None:
    """No export, no API."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


def never(attempt: Attempt, cell: Cell, state: State) -> LaunchSpec:
    """No worker is started in these tests: the run is paused."""
    pytest.fail(f"{attempt.label} is started")


def run_paused(
    folder: Path,
    during: Callable[[Daemon, Disk, OneGpu, Remembering], Awaitable[None]],
    read_config: Callable[[], NewConfig],
    taken_up: Callable[[State], None] = lambda _state: None,
) -> None:
    """A daemon that runs, and holds new attempts back, while something is done with it."""

    async def main() -> None:
        store = await Disk.open(folder / "boundd.db")
        assert isinstance(store, Disk)
        heard, probe = Remembering(), OneGpu()
        hooks = Hooks(never, read_config, nothing, taken_up)  # type: ignore[arg-type]
        launcher = LocalLauncher(folder / "attempts")
        daemon = Daemon(config("old", 2), store, launcher, probe, SystemClock(), (heard,), hooks)
        try:
            await daemon.recover()
            await daemon.submit(PauseRequested())
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    await daemon.run(until_idle=False, serve=nothing)

                group.start_soon(run)
                await during(daemon, store, probe, heard)
                daemon.request_stop(end_workers=False)
        finally:
            launcher.close()
            with anyio.CancelScope(shield=True):
                await store.aclose()

    anyio.run(main)


def test_a_reload_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """Neither cells nor rules nor how workers are started; once there is room, all of it."""
    taken_up: list[object] = []

    async def during(daemon: Daemon, store: Disk, _probe: OneGpu, heard: Remembering) -> None:
        before = in_force(daemon.state)
        store.full = True
        with pytest.raises(StoreBusyError):
            await daemon.reload()
        assert in_force(daemon.state) == before == (2, Rules(max_attempts=3), "old", {False})
        assert (taken_up, Action.CONFIG_RELOADED in heard.actions()) == ([], False)
        store.full = False
        assert await daemon.reload() == "three cells"
        assert in_force(daemon.state) == (3, Rules(max_attempts=3), "new", {True})
        assert (taken_up, Action.CONFIG_RELOADED in heard.actions()) == (["new"], True)

    run_paused(
        tmp_path,
        during,
        lambda: NewConfig(config("new", 3), "three cells"),
        lambda state: taken_up.append(state.settings),
    )


def test_of_two_reloads_the_one_that_has_read_last_is_in_force(tmp_path: Path) -> None:
    """However slow the first one is with its reading."""
    reads: list[str] = []
    slow, started = threading.Event(), threading.Event()

    def read() -> NewConfig:
        name = f"config {len(reads)}"
        reads.append(name)
        if len(reads) == 1:
            started.set()
            slow.wait(PATIENCE_S)
        return NewConfig(config(name, 2), name)

    async def during(daemon: Daemon, _store: Disk, _probe: OneGpu, _heard: Remembering) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.reload)
            await until(started.is_set)
            group.start_soon(daemon.reload)
            await anyio.sleep(0.1)
            slow.set()
        assert daemon.state.settings == reads[-1] == "config 1"

    run_paused(tmp_path, during, read)


def test_a_reading_that_fails_while_a_commit_is_in_flight_is_not_forgotten(tmp_path: Path) -> None:
    """Its device stays unavailable after that commit, until it is read again."""

    async def during(daemon: Daemon, store: Disk, probe: OneGpu, heard: Remembering) -> None:
        assert daemon.state.devices["GPU-0"].state is DeviceState.READY
        store.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.submit, PauseRequested())
            await until(lambda: store.waiting)
            probe.lost, reads = True, probe.reads
            await until(lambda: probe.reads > reads)
            await anyio.sleep(0.1)
            gate, store.gate = store.gate, None
            gate.set()
        await until(lambda: Action.DEVICE_UNAVAILABLE in heard.actions())
        assert daemon.state.devices["GPU-0"].state is DeviceState.UNAVAILABLE
        assert daemon.state.devices["GPU-0"].reading.unavailable == "the driver is gone"
        probe.lost = False
        await until(lambda: daemon.state.devices["GPU-0"].state is DeviceState.READY)
        assert heard.actions().count(Action.DEVICE_UNAVAILABLE) == 1

    run_paused(tmp_path, during, lambda: pytest.fail("no reload here"))
