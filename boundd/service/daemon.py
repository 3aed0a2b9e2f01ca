"""The daemon: its life from recovery to stop, and what it does with the effects of the loop.

Whoever has something to say (a device probe, a worker's watcher, a person over HTTP) submits an event. What becomes of
it, and in which order, is `boundd.core.lifecycle.loop`'s to say; `loop_driver.py` drives that with the store.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

from boundd.core.lifecycle.loop import Loop, Planner, restored
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt
from boundd.core.model.cells import Cell
from boundd.core.model.effects import (
    Action,
    Effect,
    EndWorker,
    Note,
    ReadDevices,
    ResultsChanged,
    Spawn,
    WakeAt,
)
from boundd.core.model.events import ConfigLoaded, Event, Now, ShutdownRequested, Wake
from boundd.core.model.host import HostReading
from boundd.core.model.state import State
from boundd.ports import (
    Clock,
    ConfigError,
    DeviceProbe,
    Keep,
    Launcher,
    LaunchSpec,
    Observer,
    Store,
    keep_nothing,
)
from boundd.service import unkillable_watch
from boundd.service.attempts import DISK_RETRY_S, AttemptWatcher
from boundd.service.device_reader import DeviceReader
from boundd.service.device_watch import DeviceWatch
from boundd.service.listeners import Listeners
from boundd.service.loop_driver import LoopDriver

EXPORT_RETRY_S = 5.0
"""How long after an export that failed the next one is tried, whether or not there are new results."""
EXPORT_REST = 19.0
"""After an export, none for so many times as long as it took: writing a large one after each of many quick results
would be most of what the daemon does."""
STOP_PATIENCE_S = 10.0
"""How long a stop waits for a store that takes nothing, before it leaves the rest to the next daemon."""
UNWATCHED = "no daemon watched its device all the while it ran"
"""Why an attempt is not attested that an earlier daemon began."""


@dataclass(frozen=True, slots=True)
class NewConfig:
    """A config that was read anew and may be taken up, and a summary of it for people."""

    config: ConfigLoaded
    summary: str


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the composition root adds to the parts behind the ports."""

    spec_of: Callable[[Attempt, Cell, State], LaunchSpec]
    """How the worker of an attempt is started, by the settings of the state."""
    reload: Callable[[], NewConfig]
    """Reads the config anew. Raises a ConfigError where it can't be taken up."""
    write_export: Callable[[State], Awaitable[bool]]
    """False where it failed, and is to be tried again."""
    taken_up: Callable[[State], None] = lambda _state: None
    """Told of the state in which a new config has been taken up."""
    reloading: Callable[[], AbstractContextManager[None]] = nullcontext
    """Tells whoever waits for it that a reload begins, and that it is over."""
    read_host: Callable[[Mapping[str, frozenset[int]]], HostReading | None] = lambda _pids: None
    """The machine's memory and cores, with what the processes of each attempt hold; None where they bound nothing."""
    read_disk: Callable[[], int | None] = lambda: None
    """What is free where the state folder is, in bytes; None where it can't be told, or bounds nothing."""


class Daemon:
    """Implements `boundd.ports.Service`. Build it, `recover`, then `run` it once.

    `planner` plans in place of the core's own, for benchmarks that compare planners.
    """

    def __init__(
        self,
        config: ConfigLoaded,
        store: Store,
        launcher: Launcher,
        probe: DeviceProbe,
        clock: Clock,
        observers: tuple[Observer, ...],
        hooks: Hooks,
        planner: Planner | None = None,
    ) -> None:
        self.store = store
        self.launcher = launcher
        self.clock = clock
        self.started_unix_s = clock.now().unix_s
        self._config = config
        self._planner = planner
        self._hooks = hooks
        self._reload_lock = anyio.Lock()
        self._listeners = Listeners(observers, clock)
        self._group: TaskGroup | None = None
        self._stop_asked = anyio.Event()
        self._end_workers = False
        self._idle = anyio.Event()
        self._nothing_runs = anyio.Event()
        self._export_wanted = anyio.Event()
        self._rescheduled = anyio.Event()
        loop = Loop(State(rules=config.rules, settings=config.settings), planner)
        self._driver = LoopDriver(loop, store, clock, self._perform, self._after_event)
        self._reader = DeviceReader(probe, launcher, hooks.read_host, hooks.read_disk)
        self._devices = DeviceWatch(self._reader, self._driver)

    @property
    def state(self) -> State:
        """The committed state, as of now."""
        return self._driver.state

    @property
    def store_problem(self) -> str:
        """Why nothing can be stored, or nothing is started for want of disk; empty where all is well."""
        short = self.state.disk_shortage
        return self._driver.loop.store_failure or ("" if short is None else wording.disk_short(short))

    # What others ask of the daemon

    async def submit(self, event: Event, keep: Keep = keep_nothing) -> None:
        """Apply an event and plan, and keep what `keep` says with it; a cancelled caller doesn't split it."""
        await self._driver.submit(event, keep)

    def request_stop(self, *, end_workers: bool) -> None:
        """Begin to shut down. A second request may add `end_workers`, never take it back."""
        self._end_workers = self._end_workers or end_workers
        self._stop_asked.set()

    async def reload(self) -> str:
        """Read the config anew and take it up as one event, whole or not at all."""
        # One at a time: of two, the one that has read the file last must be taken up last.
        async with self._reload_lock:
            with self._hooks.reloading():
                return await self._reload()

    async def prove_alive(self) -> None:
        """Return once an event could be applied and the store's thread has answered a query.

        Raises:
            StoreBusyError: it answers that it can't.
            StoreError: so it does, for good.
        """
        await self._driver.prove_alive()

    async def _reload(self) -> str:
        try:
            new = await anyio.to_thread.run_sync(self._hooks.reload)
        except ConfigError as error:
            message = "the config has errors; the one before stays in force: " + "; ".join(error.errors)
            self.tell(Note(Action.CONFIG_REJECTED, message, "error"))
            raise
        await self.submit(new.config)
        self._hooks.taken_up(self.state)
        self.tell(Note(Action.CONFIG_RELOADED, new.summary))
        return new.summary

    def subscribe(self) -> AbstractContextManager[MemoryObjectReceiveStream[tuple[Note, Now]]]:
        """The notes from now on; a subscriber that doesn't read misses notes and holds nobody up."""
        return self._listeners.subscribe()

    def tell(self, note: Note) -> None:
        """Tell everybody who listens."""
        self._listeners.tell(note)

    # The life of the daemon

    async def recover(self) -> None:
        """Take up what the store knows, the matrix of the config, and a first reading of the devices.

        Raises:
            DeviceError: there is no device to work on.
        """
        known = await self.store.load()
        state = restored(
            self._config.rules,
            self._config.settings,
            cells=known.cells,
            # Who was on a device while no daemon looked, nobody knows.
            attempts=[replace(attempt, unattested=UNWATCHED) for attempt in known.attempts],
            observations=known.observations,
            durations=known.durations,
            quarantines=known.quarantines,
            paused=known.paused,
        )
        self._driver.loop = Loop(state, self._planner)
        reading, _ = await self._reader.read(state, host=self._driver.loop.reads_host)
        await self.submit(reading)
        await self.submit(self._config)

    async def run(self, *, until_idle: bool, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work until somebody asks for a stop, or, with `until_idle`, until nothing is left to do.

        `serve` runs the control API beside; it is cancelled last.
        """
        async with anyio.create_task_group() as background:
            background.start_soon(serve)
            background.start_soon(self._export_when_wanted)
            async with anyio.create_task_group() as group:
                self._group = group
                for attempt in tuple(self.state.attempts.values()):
                    self.tell(_adopted(attempt, self._why_not_endable(attempt.id)))
                    group.start_soon(self._watcher().adopt, attempt.id)
                group.start_soon(self._devices.run)
                group.start_soon(self._wake_on_time)
                group.start_soon(self._watch_for_unkillable)
                group.start_soon(self._driver.retry_store)
                await self._driver.submit_until_stored(Wake())
                await self._until_stop(until_idle=until_idle)
                await self._wind_down()
                group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._hooks.write_export(self.state)
            background.cancel_scope.cancel()

    async def _until_stop(self, *, until_idle: bool) -> None:
        if not until_idle:
            await self._stop_asked.wait()
            return
        async with anyio.create_task_group() as either:

            async def first(event: anyio.Event) -> None:
                await event.wait()
                either.cancel_scope.cancel()

            either.start_soon(first, self._stop_asked)
            either.start_soon(first, self._idle)

    async def _wind_down(self) -> None:
        """Leave the workers for the next daemon, or end them and wait until nothing of them is alive."""
        with anyio.move_on_after(STOP_PATIENCE_S) as scope:
            await self._driver.submit_until_stored(ShutdownRequested(self._end_workers))
        if scope.cancelled_caught:
            # To leave them running is the one way to stop of which nothing has to be stored.
            await self._driver.submit_until_stored(ShutdownRequested(end_workers=False))
        while not scope.cancelled_caught and self._end_workers and self.state.attempts:
            with anyio.move_on_after(STOP_PATIENCE_S):
                await self._nothing_runs.wait()
            if self._driver.loop.store_failure and not any(map(self._may_be_alive, self.state.attempts)):
                return  # How they ended is in their folders; the next daemon stores it.

    def _may_be_alive(self, attempt_id: str) -> bool:
        try:
            return self.launcher.is_alive(attempt_id)
        except OSError:
            return True

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Note():
                self.tell(effect)
            case Spawn() if self._group is not None:
                make_spec = partial(self._hooks.spec_of, effect.attempt, effect.cell, self.state)
                self._group.start_soon(self._watcher().run, effect.attempt.id, make_spec)
            case EndWorker() if self._group is not None:
                self._group.start_soon(self._end_worker, effect.attempt_id)
            case ResultsChanged():
                self._export_wanted.set()
            case WakeAt():
                self._rescheduled.set()
            case ReadDevices(at_once=True):
                self._devices.want_reading()  # all others are what the regular readings are for

    def _after_event(self) -> None:
        if self.state.idle and not self._idle.is_set():
            self._idle.set()
        elif not self.state.idle and self._idle.is_set():
            self._idle = anyio.Event()
        if self.state.attempts and self._nothing_runs.is_set():
            self._nothing_runs = anyio.Event()
        elif not self.state.attempts:
            self._nothing_runs.set()

    def _watcher(self) -> AttemptWatcher:
        return AttemptWatcher(
            self.launcher,
            self.clock,
            self._driver.submit_until_stored,
            lambda attempt_id: self.state.attempts[attempt_id],
            self.tell,
            from_stdout=self.state.rules.result_is_printed,
            pattern=self.state.rules.result_pattern,
            attest=self._devices.attest,
        )

    async def _end_worker(self, attempt_id: str) -> None:
        """Ask until it could be asked: a disk that fails must not let a worker run on."""
        while attempt_id in self.state.attempts:
            try:
                await self.launcher.end(attempt_id)
            except OSError:
                await anyio.sleep(DISK_RETRY_S)
            else:
                return

    # Background loops

    def _why_not_endable(self, attempt_id: str) -> str:
        """Why an attempt can only be waited for; a disk that doesn't tell now is told of by who watches it."""
        with suppress(OSError):
            return self.launcher.why_not_endable(attempt_id)
        return ""

    async def _wake_on_time(self) -> None:
        while True:
            self._rescheduled = anyio.Event()
            wait_s = self._driver.loop.wake_boot_s - self.clock.now().boot_s
            with anyio.move_on_after(max(0.0, wait_s) if math.isfinite(wait_s) else None) as scope:
                await self._rescheduled.wait()
            if scope.cancelled_caught and self._driver.loop.wake_boot_s <= self.clock.now().boot_s:
                await self._driver.submit_until_stored(Wake())

    async def _watch_for_unkillable(self) -> None:
        watch = unkillable_watch.UnkillableWatch(self.launcher)
        while True:
            await anyio.sleep(unkillable_watch.LOOK_S)
            ids, now = tuple(self.state.attempts), self.clock.now()
            # In a thread: it walks through /proc.
            with suppress(OSError):
                for event in await anyio.to_thread.run_sync(watch.look, ids, now):
                    await self._driver.submit_until_stored(event)

    async def _export_when_wanted(self) -> None:
        while True:
            await self._export_wanted.wait()
            self._export_wanted = anyio.Event()
            begun_boot_s = self.clock.now().boot_s
            if not await self._hooks.write_export(self.state):
                self._export_wanted.set()
                await anyio.sleep(EXPORT_RETRY_S)
            await anyio.sleep((self.clock.now().boot_s - begun_boot_s) * EXPORT_REST)


def _adopted(attempt: Attempt, trouble: str) -> Note:
    return Note(
        Action.ATTEMPT_ADOPTED,
        f"attempt {attempt.number} of {attempt.label} was begun by an earlier daemon" + (trouble and f"; {trouble}"),
        "warning" if trouble else "info",
        cell=attempt.label,
        attempt=attempt.id,
        device=attempt.device,
    )
