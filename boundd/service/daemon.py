"""The daemon: one place that applies events, in order, one transaction each.

Whoever has something to say (a device probe, a worker's watcher, a person over HTTP) submits an event. The event is
stepped through the core, what the core wants kept is committed, and only then is the new state the state, and only
then is done what follows from it. A commit that fails leaves everything as it was.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from immutables import Map

from boundd.core.attempts import Attempt
from boundd.core.cells import Cell, CellPolicy
from boundd.core.devices import DeviceReading
from boundd.core.effects import Action, Commit, EndWorker, Note, ResultsChanged, Spawn, WakeAt
from boundd.core.events import DevicesRead, Event, MatrixLoaded, Now, ShutdownRequested, Wake
from boundd.core.state import Rules, State
from boundd.core.step import step
from boundd.ports import (
    Clock,
    ConfigError,
    DeviceError,
    DeviceProbe,
    Launcher,
    LaunchSpec,
    Observer,
    Store,
    StoreBusyError,
)
from boundd.service.attempts import AttemptWatcher

PROBE_INTERVAL_S = 1.0
"""Memory is read about once a second: a reading costs microseconds, but it holds a driver-wide lock."""
STORE_RETRY_S = 2.0
SUBSCRIBER_BUFFER = 1000


@dataclass(frozen=True, slots=True)
class Run:
    """What a config makes of the daemon: the matrix, the rules, and how a worker is started."""

    cells: tuple[tuple[Cell, CellPolicy], ...]
    rules: Rules
    spec_of: Callable[[Attempt, Cell, State], LaunchSpec]
    from_stdout: bool
    summary: str


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the composition root adds: reading the config anew, and writing the export."""

    reload: Callable[[], Run]
    write_export: Callable[[State], Awaitable[None]]


class Daemon:
    """Implements `boundd.ports.Service`. Build it, then `run` it once."""

    def __init__(
        self,
        run: Run,
        store: Store,
        launcher: Launcher,
        probe: DeviceProbe,
        clock: Clock,
        observers: tuple[Observer, ...],
        hooks: Hooks,
    ) -> None:
        self.store = store
        self.launcher = launcher
        self.clock = clock
        self.started_unix_s = clock.now().unix_s
        self.store_problem = ""
        self._run = run
        self._probe = probe
        self._observers = observers
        self._hooks = hooks
        self._state = State(rules=run.rules)
        self._lock = anyio.Lock()
        self._subscribers: set[MemoryObjectSendStream[tuple[Note, Now]]] = set()
        self._group: TaskGroup | None = None
        self._stop_asked = anyio.Event()
        self._end_workers = False
        self._idle = anyio.Event()
        self._nothing_runs = anyio.Event()
        self._export_wanted = anyio.Event()
        self._wake_boot_s = math.inf
        self._rescheduled = anyio.Event()

    @property
    def state(self) -> State:
        """The committed state, as of now."""
        return self._state

    # What others ask of the daemon

    async def submit(self, event: Event) -> None:
        """Apply an event and plan; a cancelled caller doesn't split it."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._apply(event)
                # The event has happened. Planning on it may fail to be stored; the next reading plans again.
                with suppress(StoreBusyError):
                    await self._apply(Wake())
                self._after_a_step()

    async def submit_until_stored(self, event: Event) -> None:
        """Apply an event that has happened whether the store likes it or not: try until it is stored."""
        while True:
            try:
                await self.submit(event)
            except StoreBusyError:
                await anyio.sleep(STORE_RETRY_S)
            else:
                return

    def request_stop(self, *, end_workers: bool) -> None:
        """Begin to shut down. A second request may add `end_workers`, never take it back."""
        self._end_workers = self._end_workers or end_workers
        self._stop_asked.set()

    async def reload(self) -> str:
        """Read the config anew, all or nothing."""
        try:
            run = await anyio.to_thread.run_sync(self._hooks.reload)
        except ConfigError as error:
            message = "the config has errors; the one before stays in force: " + "; ".join(error.errors)
            self.tell(Note(Action.CONFIG_REJECTED, message, "error"))
            raise
        async with self._lock:
            self._run = run
            self._state = replace(self._state, rules=run.rules)
        await self.submit(MatrixLoaded(run.cells))
        self.tell(Note(Action.CONFIG_RELOADED, run.summary))
        return run.summary

    @contextmanager
    def subscribe(self) -> Iterator[MemoryObjectReceiveStream[tuple[Note, Now]]]:
        """The notes from now on; a subscriber that doesn't read misses notes and holds nobody up."""
        send, receive = anyio.create_memory_object_stream[tuple[Note, Now]](SUBSCRIBER_BUFFER)
        self._subscribers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._subscribers.discard(send)
            send.close()

    def tell(self, note: Note) -> None:
        """Tell everybody who listens."""
        now = self.clock.now()
        for observer in self._observers:
            observer.note(note, now)
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.send_nowait((note, now))
            except (anyio.WouldBlock, anyio.BrokenResourceError):
                continue

    # The life of the daemon

    async def recover(self) -> None:
        """Take up what the store knows, the matrix of the config, and a first reading of the devices.

        Raises:
            DeviceError: there is no device to work on.
        """
        known = await self.store.load()
        self._state = State(
            rules=self._run.rules,
            cells=Map({record.cell.key: record for record in known.cells}),
            attempts=Map({attempt.id: attempt for attempt in known.attempts}),
            cordons=dict(known.cordons),
            observations=known.observations,
            paused=known.paused,
        )
        await self._read_devices(processes=True, plan=False)
        async with self._lock:
            await self._apply(MatrixLoaded(self._run.cells))

    async def run(self, *, until_idle: bool, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work until somebody asks for a stop, or, with `until_idle`, until nothing is left to do.

        `serve` runs the control API beside; it is cancelled last.
        """
        async with anyio.create_task_group() as background:
            background.start_soon(serve)
            background.start_soon(self._export_when_wanted)
            async with anyio.create_task_group() as group:
                self._group = group
                for attempt in tuple(self._state.attempts.values()):
                    self.tell(_adopted(attempt))
                    group.start_soon(self._watcher().adopt, attempt.id)
                group.start_soon(self._probe_devices)
                group.start_soon(self._wake_on_time)
                await self.submit_until_stored(Wake())
                await self._until_stop(until_idle=until_idle)
                await self._wind_down()
                group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._hooks.write_export(self._state)
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
        await self.submit_until_stored(ShutdownRequested(self._end_workers))
        if self._end_workers and self._state.attempts:
            await self._nothing_runs.wait()

    # Applying events

    async def _apply(self, event: Event) -> None:
        now = self.clock.now()
        new, effects = step(self._state, event, now)
        for effect in effects:
            if isinstance(effect, Commit):
                await self._commit(effect)
        # Everything of this step is kept: from here on it is the state, and what follows may be done.
        self._state = new
        if isinstance(event, Wake):
            self._wake_boot_s = math.inf
        for effect in effects:
            self._perform(effect)

    async def _commit(self, commit: Commit) -> None:
        try:
            await self.store.commit(commit.records)
        except StoreBusyError as error:
            if not self.store_problem:
                self.store_problem = str(error)
                message = f"nothing can be stored: no new attempts until it can; {error}"
                self.tell(Note(Action.STORE_UNAVAILABLE, message, "error"))
            raise
        if self.store_problem:
            self.store_problem = ""
            self.tell(Note(Action.STORE_RECOVERED, "the store takes records again"))

    def _perform(self, effect: object) -> None:
        match effect:
            case Note():
                self.tell(effect)
            case Spawn() if self._group is not None:
                self._group.start_soon(self._watcher().run, self._run.spec_of(effect.attempt, effect.cell, self._state))
            case EndWorker() if self._group is not None:
                self._group.start_soon(self.launcher.end, effect.attempt_id)
            case ResultsChanged():
                self._export_wanted.set()
            case WakeAt():
                self._wake_boot_s = effect.boot_s
                self._rescheduled.set()

    def _after_a_step(self) -> None:
        if self._state.idle and not self._idle.is_set():
            self._idle.set()
            self.tell(Note(Action.RUN_IDLE, "nothing runs and nothing is pending"))
        elif not self._state.idle and self._idle.is_set():
            self._idle = anyio.Event()
        if self._state.attempts and self._nothing_runs.is_set():
            self._nothing_runs = anyio.Event()
        elif not self._state.attempts:
            self._nothing_runs.set()

    def _watcher(self) -> AttemptWatcher:
        return AttemptWatcher(
            self.launcher,
            self.clock,
            self.submit_until_stored,
            lambda attempt_id: self._state.attempts[attempt_id],
            from_stdout=self._run.from_stdout,
        )

    # Background loops

    async def _probe_devices(self) -> None:
        while True:
            await anyio.sleep(PROBE_INTERVAL_S)
            waiting = any(True for _ in self._state.pending())
            try:
                await self._read_devices(processes=waiting, plan=True)
            except StoreBusyError:
                continue  # it has been told; the next pass tries again
            except DeviceError as error:
                self._all_unavailable(str(error))

    async def _read_devices(self, *, processes: bool, plan: bool) -> None:
        readings = await self._probe.read(processes=processes)
        event = DevicesRead(readings, self._observed(readings) if processes else {})
        if plan:
            await self.submit(event)
        else:
            async with self._lock:
                await self._apply(event)

    def _all_unavailable(self, why: str) -> None:
        devices = self._state.devices
        for uuid, device in devices.items():
            reading = replace(device.reading, total_bytes=None, free_bytes=None, unavailable=why)
            devices = devices.set(uuid, replace(device, reading=reading))
        first = any(not device.reading.unavailable for device in self._state.devices.values())
        self._state = replace(self._state, devices=devices)
        if first:
            self.tell(Note(Action.DEVICE_UNAVAILABLE, f"no device can be read: {why}", "error"))

    def _observed(self, readings: tuple[DeviceReading, ...]) -> Mapping[str, Mapping[str, int | None]]:
        """What each attempt's processes hold on its device; unknown where the driver doesn't list them."""
        held: dict[str, dict[str, int | None]] = {}
        lists = {reading.uuid: reading.process_bytes for reading in readings}
        for attempt in self._state.attempts.values():
            by_pid = lists.get(attempt.device)
            if by_pid is None:
                continue
            ours = [by_pid[pid] for pid in self.launcher.pids(attempt.id) if pid in by_pid]
            known = [size for size in ours if size is not None]
            held.setdefault(attempt.device, {})[attempt.id] = sum(known) if known and len(known) == len(ours) else None
        return held

    async def _wake_on_time(self) -> None:
        while True:
            self._rescheduled = anyio.Event()
            wait_s = self._wake_boot_s - self.clock.now().boot_s
            with anyio.move_on_after(max(0.0, wait_s) if math.isfinite(wait_s) else None) as scope:
                await self._rescheduled.wait()
            if scope.cancelled_caught:
                await self.submit_until_stored(Wake())

    async def _export_when_wanted(self) -> None:
        while True:
            await self._export_wanted.wait()
            self._export_wanted = anyio.Event()
            await self._hooks.write_export(self._state)


def _adopted(attempt: Attempt) -> Note:
    return Note(
        Action.ATTEMPT_ADOPTED,
        f"attempt {attempt.number} of {attempt.label} was begun by an earlier daemon",
        cell=attempt.label,
        attempt=attempt.id,
        device=attempt.device,
    )
