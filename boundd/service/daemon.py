"""The daemon: one place that applies events, in order, one transaction each.

Whoever has something to say (a device probe, a worker's watcher, a person over HTTP) submits an event. The event is
stepped through the core, and what it makes possible is planned; what the core wants kept of both is committed, only
then is the new state the state, and only then is done what follows from it. A commit that fails leaves everything as it
was; where it was the plan's share that failed, the event's own is kept alone.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from immutables import Map

from boundd.core.lifecycle.step import step, wake_with
from boundd.core.memory.process_listing import Listed, Observed, held_by, settled, worth_listing
from boundd.core.model.attempts import Attempt
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Action, Commit, Effect, EndWorker, Note, ResultsChanged, Spawn, WakeAt
from boundd.core.model.events import (
    AttemptEnded,
    AttemptProgressed,
    AttemptStarted,
    DevicesRead,
    Event,
    MatrixLoaded,
    Now,
    PointMeasured,
    ShutdownRequested,
    Wake,
)
from boundd.core.model.history import Durations, Observations
from boundd.core.model.host import HostReading
from boundd.core.model.outcomes import Outcome
from boundd.core.model.queues import Cells
from boundd.core.model.state import Rules, State
from boundd.core.scheduler.planner import Plan, plan
from boundd.ports import (
    Clock,
    ConfigError,
    DeviceError,
    DeviceProbe,
    Keep,
    Launcher,
    LaunchSpec,
    Observer,
    Store,
    StoreBusyError,
    keep_nothing,
)
from boundd.protocol.seeing import sees_every_pid
from boundd.service import stuck
from boundd.service.attempts import DISK_RETRY_S, AttemptWatcher
from boundd.service.processes import Seen, attempts_by_device, look_at, observed_in

PROBE_INTERVAL_S = 1.0
"""Memory is read about once a second: a reading costs microseconds, but it holds a driver-wide lock."""
PROBE_REST_S = 0.25
"""At least so long between readings: what an ended attempt held is seen at once, and not by a reading for each of many
short ones, which walks through /proc and plans."""
STORE_RETRY_S = 2.0
EXPORT_RETRY_S = 5.0
"""How long after an export that failed the next one is tried, whether or not there are new results."""
STOP_PATIENCE_S = 10.0
"""How long a stop waits for a store that takes nothing, before it leaves the rest to the next daemon."""
SUBSCRIBER_BUFFER = 1000
WRITABLE = "writable"
"""The fact that is written to see whether the store takes records again: when that was, UTC seconds."""
ALIVE = "alive"
"""The fact that is asked for to see whether the store answers; there is none of that name."""
EXPORT_REST = 19.0
"""After an export, none for so many times as long as it took: writing a large one after each of many quick results
would be most of what the daemon does."""
UNWATCHED = "no daemon watched its device all the while it ran"
"""Why an attempt is not attested that an earlier daemon began."""
FREES_NOTHING = (AttemptStarted, AttemptProgressed, PointMeasured)
"""Events after which no cell can be placed that could not be before, so that there is nothing to plan."""


def plans_after(event: Event) -> bool:
    """Whether what an event makes possible is planned at once.

    An attempt that was refused memory shows that the latest reading is not true any more: planned by it, the same would
    be tried again. The next reading, which an end calls for, is due in less than a blink.
    """
    if isinstance(event, AttemptEnded) and event.verdict.outcome is Outcome.OUT_OF_MEMORY:
        return False
    return not isinstance(event, FREES_NOTHING)


@dataclass(frozen=True, slots=True)
class Run:
    """What a config makes of the daemon: the matrix, the rules, and how a worker is started."""

    cells: tuple[tuple[Cell, CellPolicy], ...]
    rules: Rules
    spec_of: Callable[[Attempt, Cell, State], LaunchSpec]
    from_stdout: bool
    summary: str
    planner: Callable[[State, Now], Plan] = plan
    """Who plans; another one than the core's is for benchmarks that compare them."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the composition root adds: reading the config anew, writing the export, telling of reloads, the host."""

    reload: Callable[[], Run]
    write_export: Callable[[State], Awaitable[bool]]
    """False where it failed, and is to be tried again."""
    reloading: Callable[[], AbstractContextManager[None]] = nullcontext
    read_host: Callable[[Mapping[str, frozenset[int]]], HostReading | None] = lambda _pids: None
    """The machine's memory and cores, with what the processes of each attempt hold; None where they bound nothing."""
    read_disk: Callable[[], int | None] = lambda: None
    """What is free where the state folder is, in bytes; None where it can't be told, or bounds nothing."""


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
        self._store_failure = ""
        self._store_failed = anyio.Event()
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
        self._listed: dict[str, Listed] = {}
        self._every_pid = sees_every_pid()
        self._wake_boot_s = math.inf
        self._rescheduled = anyio.Event()
        self._freed = anyio.Event()

    @property
    def state(self) -> State:
        """The committed state, as of now."""
        return self._state

    @property
    def store_problem(self) -> str:
        """Why nothing can be stored, or nothing is started for want of disk; empty where all is well."""
        return self._store_failure or self._state.disk_shortage

    # What others ask of the daemon

    async def submit(self, event: Event, keep: Keep = keep_nothing) -> None:
        """Apply an event and plan, and keep what `keep` says with it; a cancelled caller doesn't split it."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not plans_after(event):
                    await self._apply(event, keep=keep)
                else:
                    try:
                        # In one transaction: each is a flush of the disk, for which whatever comes next waits.
                        await self._apply(event, Wake(), keep=keep)
                    except StoreBusyError:
                        # The event has happened. Planning on it may fail to be stored; the next reading plans again.
                        await self._apply(event, keep=keep)
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
        with self._hooks.reloading():
            return await self._reload()

    async def prove_alive(self) -> None:
        """Return once an event could be applied and the store's thread has answered a query.

        Raises:
            StoreBusyError: it answers that it can't.
            StoreError: so it does, for good.
        """
        async with self._lock:
            await self.store.recall(ALIVE)

    async def _reload(self) -> str:
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
            cells=Cells.of({record.cell.key: record for record in known.cells}),
            # Who was on a device while no daemon looked, nobody knows.
            attempts=Map({attempt.id: replace(attempt, unattested=UNWATCHED) for attempt in known.attempts}),
            cordons=dict(known.cordons),
            observations=Observations.of(known.observations),
            durations=Durations.of(known.durations),
            paused=known.paused,
        )
        await self._read_devices(plan=False)
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
                    self.tell(_adopted(attempt, self._trouble(attempt.id)))
                    group.start_soon(self._watcher().adopt, attempt.id)
                group.start_soon(self._probe_devices)
                group.start_soon(self._wake_on_time)
                group.start_soon(self._look_out_for_stuck)
                group.start_soon(self._try_the_store)
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
        with anyio.move_on_after(STOP_PATIENCE_S) as scope:
            await self.submit_until_stored(ShutdownRequested(self._end_workers))
        if scope.cancelled_caught:
            # To leave them running is the one way to stop of which nothing has to be stored.
            await self.submit_until_stored(ShutdownRequested(end_workers=False))
        while not scope.cancelled_caught and self._end_workers and self._state.attempts:
            with anyio.move_on_after(STOP_PATIENCE_S):
                await self._nothing_runs.wait()
            if self._store_failure and not any(map(self._may_be_alive, self._state.attempts)):
                return  # How they ended is in their folders; the next daemon stores it.

    def _may_be_alive(self, attempt_id: str) -> bool:
        try:
            return self.launcher.is_alive(attempt_id)
        except OSError:
            return True

    # Applying events

    async def _apply(self, *events: Event, keep: Keep = keep_nothing) -> None:
        """Step through events, one after the other: all of them happen and what `keep` says is kept, or none."""
        now = self.clock.now()
        new = self._state
        effects: list[Effect] = []
        for event in events:
            if isinstance(event, Wake):
                new, more = wake_with(self._run.planner, new, now)
            else:
                new, more = step(new, event, now)
            effects += more
        records = tuple(record for effect in effects if isinstance(effect, Commit) for record in effect.records)
        records += tuple(keep(self._state))
        if records:
            await self._commit(Commit(records))
        # Everything of this is kept: from here on it is the state, and what follows may be done.
        self._state = new
        for event in events:
            if isinstance(event, Wake):
                self._wake_boot_s = math.inf
            if isinstance(event, AttemptEnded):
                self._freed.set()
        for effect in effects:
            self._perform(effect)

    async def _commit(self, commit: Commit) -> None:
        try:
            await self.store.commit(commit.records)
        except StoreBusyError as error:
            if not self._store_failure:
                message = f"nothing can be stored: no new attempts until it can; {error}"
                self.tell(Note(Action.STORE_UNAVAILABLE, message, "error"))
            self._store_failure = f"nothing can be stored ({error}): see to the disk, and it goes on by itself"
            self._store_failed.set()
            raise
        self._store_works()

    def _store_works(self) -> None:
        if self._store_failure:
            self._store_failure = ""
            self._store_failed = anyio.Event()
            self.tell(Note(Action.STORE_RECOVERED, "the store takes records again"))

    def _perform(self, effect: object) -> None:
        match effect:
            case Note():
                self.tell(effect)
            case Spawn() if self._group is not None:
                make_spec = partial(self._run.spec_of, effect.attempt, effect.cell, self._state)
                self._group.start_soon(self._watcher().run, effect.attempt.id, make_spec)
            case EndWorker() if self._group is not None:
                self._group.start_soon(self._end_worker, effect.attempt_id)
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
            self.tell,
            from_stdout=self._run.from_stdout,
            attest=self._attest,
        )

    async def _end_worker(self, attempt_id: str) -> None:
        """Ask until it could be asked: a disk that fails must not let a worker run on."""
        while attempt_id in self._state.attempts:
            try:
                await self.launcher.end(attempt_id)
            except OSError:
                await anyio.sleep(DISK_RETRY_S)
            else:
                return

    # Background loops

    async def _try_the_store(self) -> None:
        """While nothing could be stored, see whether it can be again: there may be nothing that wants to be."""
        while True:
            await self._store_failed.wait()
            await anyio.sleep(STORE_RETRY_S)
            async with self._lock:
                with suppress(StoreBusyError):
                    if self._store_failure:
                        await self.store.remember(WRITABLE, str(self.clock.now().unix_s))
                        self._store_works()

    async def _probe_devices(self) -> None:
        while True:
            await anyio.sleep(PROBE_REST_S)
            with anyio.move_on_after(PROBE_INTERVAL_S - PROBE_REST_S):
                await self._freed.wait()
            self._freed = anyio.Event()
            try:
                await self._read_devices(plan=True)
            except (StoreBusyError, OSError):
                continue  # what couldn't be stored has been told; what couldn't be read is read at the next pass
            except DeviceError as error:
                self._all_unavailable(str(error))

    async def _attest(self, attempt_id: str) -> str:
        """Look once more at who is on the GPU of an attempt that has just ended; why nobody can say whether it had the
        device to itself, empty where that was seen from before its start to now."""
        uuid = self._state.attempts[attempt_id].device
        device = self._state.devices.get(uuid)
        if device is not None and device.reading.backend != "nvml":
            return ""
        while True:
            try:
                seen = await self._read_devices(plan=True, lists=True)
                break
            except StoreBusyError:
                await anyio.sleep(STORE_RETRY_S)
            except (OSError, DeviceError) as error:
                return f"the driver could not be asked at its end: {error}"
        attempt = self._state.attempts[attempt_id]
        if attempt.unattested:
            return attempt.unattested
        if uuid not in seen.listed:
            return "the driver did not list the processes of its device at its end"
        return "" if attempt.witnessed else "none of its processes was seen in the driver's lists"

    async def _read_devices(self, *, plan: bool, lists: bool = False) -> Seen:
        """Read all devices, and their processes where that is worth it, or asked for (`lists`)."""
        readings = await self._probe.read(processes=False)
        attempts = attempts_by_device(self._state)
        old = lists or worth_listing(readings, attempts, self._listed)
        if old:
            readings = await self._probe.read(processes=True)
        # Whoever waits for the host's memory or cores waits for this; at the start, what is there isn't known yet.
        waiting = not plan or self._state.has_pending
        # In a thread: it walks through /proc, and that takes milliseconds.
        pids = await anyio.to_thread.run_sync(self._pids) if old or waiting else {}
        host = await anyio.to_thread.run_sync(self._hooks.read_host, pids) if waiting else None
        seen = await anyio.to_thread.run_sync(self._look_at, readings, attempts, pids) if old else Seen()
        disk_free_bytes = await anyio.to_thread.run_sync(self._hooks.read_disk)
        event = DevicesRead(
            *self._with_lists(readings, pids, seen),
            host,
            seen.foreign,
            unattested=seen.unattested,
            witnessed=seen.witnessed,
            disk_free_bytes=disk_free_bytes,
        )
        if plan:
            await self.submit(event)
        else:
            async with self._lock:
                await self._apply(event)
        return seen

    def _look_at(
        self,
        readings: tuple[DeviceReading, ...],
        attempts: Mapping[str, frozenset[str]],
        pids: Mapping[str, frozenset[int]],
    ) -> Seen:
        return look_at(readings, attempts, pids, every_pid=self._every_pid)

    def _all_unavailable(self, why: str) -> None:
        devices = self._state.devices
        for uuid, device in devices.items():
            reading = replace(device.reading, total_bytes=None, free_bytes=None, unavailable=why)
            devices = devices.set(uuid, replace(device, reading=reading))
        first = any(not device.reading.unavailable for device in self._state.devices.values())
        self._state = replace(self._state, devices=devices)
        if first:
            self.tell(Note(Action.DEVICE_UNAVAILABLE, f"no device can be read: {why}", "error"))

    def _trouble(self, attempt_id: str) -> str:
        """Why an attempt can only be waited for; a disk that doesn't tell now is told of by who watches it."""
        with suppress(OSError):
            return self.launcher.trouble(attempt_id)
        return ""

    def _pids(self) -> Mapping[str, frozenset[int]]:
        """The processes of each live attempt."""
        return self.launcher.pids_of(self._state.attempts)

    def _with_lists(
        self, readings: tuple[DeviceReading, ...], pids: Mapping[str, frozenset[int]], seen: Seen
    ) -> tuple[tuple[DeviceReading, ...], Mapping[str, Observed]]:
        """The readings to go by, and what each attempt's processes hold: by their lists, else by the ones before."""
        attempts = attempts_by_device(self._state)
        settled_readings, held = [], {}
        for reading in readings:
            ours = attempts.get(reading.uuid, frozenset())
            if reading.process_bytes is None or reading.free_bytes is None:
                last = self._listed.get(reading.uuid)
                reading, held[reading.uuid] = settled(reading, ours, last)
                holder = last.holder if last is not None and not ours else ""
            else:
                held[reading.uuid] = observed_in(reading.process_bytes, ours, pids)
                holder = seen.holders.get(reading.uuid, "")
                self._listed[reading.uuid] = Listed(reading.free_bytes, held[reading.uuid], holder)
            settled_readings.append(held_by(reading, holder))
        return tuple(settled_readings), held

    async def _wake_on_time(self) -> None:
        while True:
            self._rescheduled = anyio.Event()
            wait_s = self._wake_boot_s - self.clock.now().boot_s
            with anyio.move_on_after(max(0.0, wait_s) if math.isfinite(wait_s) else None) as scope:
                await self._rescheduled.wait()
            if scope.cancelled_caught:
                await self.submit_until_stored(Wake())

    async def _look_out_for_stuck(self) -> None:
        watch = stuck.StuckWatch(self.launcher)
        while True:
            await anyio.sleep(stuck.LOOK_S)
            ids, now = tuple(self._state.attempts), self.clock.now()
            # In a thread: it walks through /proc.
            with suppress(OSError):
                for event in await anyio.to_thread.run_sync(watch.look, ids, now):
                    await self.submit_until_stored(event)

    async def _export_when_wanted(self) -> None:
        while True:
            await self._export_wanted.wait()
            self._export_wanted = anyio.Event()
            begun_boot_s = self.clock.now().boot_s
            if not await self._hooks.write_export(self._state):
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
