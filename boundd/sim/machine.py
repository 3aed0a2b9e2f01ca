"""The simulated machine: devices whose memory really runs out, and workers that outlive the daemon.

Nothing here knows what the core believes. A worker takes memory along its ramp, in steps; one that asks for more than
its cap or the device has left ends as torch ends it, and what it held is free again.
"""

from __future__ import annotations

import errno
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.classification import Evidence, ReportedError
from boundd.core.lifecycle.environment_evidence import PROGRAM
from boundd.core.memory.footprint import CONTEXT_BYTES
from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import DeviceReading
from boundd.core.model.outcomes import Measurement
from boundd.sim.clock import Agenda
from boundd.sim.trace import MemoryEnd
from boundd.sim.world import Failure, Foreign, Hitch, Outage, SimCell, SimDevice, World

MEASURED = Measurement(2.0, 1.5, {"cache_interval": 3}, Isolation.EXCLUSIVE)
FOREIGN_PID = 1
BROKEN = "RuntimeError: CUDA error: unspecified launch failure"
SICK_KILLS_AFTER_S = 2.0
TERM_TAKES_S = 0.5
"""How long a worker that is asked to end takes; its grace period, where that is shorter."""


@dataclass(slots=True)
class SimulatedWorker:
    """One worker process with its shim. `end` is set once nothing of it is alive: what its shim left on disk."""

    attempt: Attempt
    cell: SimCell
    started_s: float
    milestones: list[tuple[float, str, float]]
    """Share of the work done, what happens then (`hold`, `point` or `end`), and its number."""
    foreign_before_bytes: int
    held_bytes: int = 0
    peak_bytes: int = 0
    points: int = 0
    had_company: bool = False
    end: Evidence | None = None
    ended_s: float = 0.0
    memory: MemoryEnd | None = None
    scene: tuple[int, Mapping[str, int]] | None = None
    """When it ran out of memory: bytes of foreign processes, and of every other worker on the device."""
    done: float = 0.0
    updated_s: float = 0.0
    rate: float = 0.0
    turn: int = 0
    """Counts the times that the worker's next milestone was planned anew."""


@dataclass(slots=True)
class DeviceMemory:
    """A device: who holds what, now and, for readings that lag, before."""

    spec: SimDevice
    alive: dict[str, SimulatedWorker] = field(default_factory=dict)
    foreign: dict[Foreign, int] = field(default_factory=dict)
    outages: list[Outage] = field(default_factory=list)
    past: list[tuple[float, int, dict[str, int]]] = field(default_factory=lambda: [(-math.inf, 0, {})])
    """Since when, bytes of foreign processes, bytes of each worker."""

    @property
    def foreign_bytes(self) -> int:
        """What processes that are not boundd's hold."""
        return sum(self.foreign.values())

    @property
    def free_bytes(self) -> int:
        """What nobody holds."""
        held = sum(worker.held_bytes for worker in self.alive.values())
        return self.spec.total_bytes - self.foreign_bytes - held

    def as_of(self, at_s: float) -> tuple[int, Mapping[str, int]]:
        """Bytes of foreign processes and of each worker at an instant that is over."""
        index = bisect_right(self.past, at_s, key=lambda entry: entry[0]) - 1
        return self.past[max(0, index)][1:]


class Machine:
    """Devices and workers. `spoke(worker)`: it wrote a line or ended; `changed()`: a reading would differ."""

    def __init__(
        self, world: World, agenda: Agenda, spoke: Callable[[SimulatedWorker], None], changed: Callable[[], None]
    ) -> None:
        self.devices = {device.uuid: DeviceMemory(device) for device in world.devices}
        self.workers: dict[str, SimulatedWorker] = {}
        self.cells = {each.cell.key: each for each in world.cells}
        self._world = world
        self._agenda = agenda
        self._spoke = spoke
        self._changed = changed
        for foreign in world.faults.foreign:
            agenda.at(foreign.from_s, lambda foreign=foreign: self._arrive(foreign))  # type: ignore[misc]
            agenda.at(foreign.until_s, lambda foreign=foreign: self._leave(foreign))  # type: ignore[misc]
        for outage in world.faults.outages:
            agenda.at(outage.from_s, lambda outage=outage: self._go_out(outage))  # type: ignore[misc]
            agenda.at(outage.until_s, lambda outage=outage: self._come_back(outage))  # type: ignore[misc]

    @property
    def now_s(self) -> float:
        """The virtual clock."""
        return self._agenda.now_s

    @property
    def host_bytes(self) -> int:
        """What the workers and others hold of the host's memory."""
        ours = sum(each.cell.truth.host_bytes for device in self.devices.values() for each in device.alive.values())
        return ours + self._world.host_used_bytes

    def hitch_of(self, attempt: Attempt) -> Hitch | None:
        """What an attempt that starts now lacks; None where all is there."""
        model = self.cells[attempt.key].cell.parameters.get("model")
        for hitch in self._world.faults.hitches:
            if hitch.from_s <= self.now_s < hitch.until_s and hitch.name in ("", model, attempt.device):
                return hitch
        return None

    # What the launcher does

    def spawn(self, attempt: Attempt) -> SimulatedWorker:
        """Start the worker of an attempt."""
        cell, device = self.cells[attempt.key], self.devices[attempt.device]
        worker = SimulatedWorker(
            attempt,
            cell,
            self._agenda.now_s,
            _milestones(cell, attempt.number),
            device.foreign_bytes,
            updated_s=self._agenda.now_s,
        )
        self.workers[attempt.id] = worker
        mishap = cell.truth.mishap_of(attempt.number)
        if mishap is not None and mishap.failure is Failure.NOT_STARTED:
            self._finish(worker, Evidence(start_error="exec format error"))
            return worker
        hitch = self.hitch_of(attempt)
        if hitch is not None and hitch.at_start:
            self._finish(worker, _no_start(hitch))
            return worker
        for other in device.alive.values():
            other.had_company = worker.had_company = True
        device.alive[attempt.id] = worker
        if attempt.started_boot_s < self._world.start_s:
            worker.done = cell.truth.done
        sick = (each for each in self._world.faults.sick if each.device == attempt.device)
        if any(each.from_s <= self.now_s < each.until_s for each in sick):
            self._agenda.at(
                self.now_s + SICK_KILLS_AFTER_S, lambda: self._finish(worker, Evidence(exit_status=1, log_text=BROKEN))
            )
        if hitch is not None:
            # It has taken nothing yet: the device is not used before all that it needs is there.
            worker.milestones.clear()
            error = ReportedError(hitch.kind, f"{hitch.kind} for now", "fetch", subject=hitch.name)
            self._agenda.at(self.now_s + hitch.takes_s, lambda: self._finish(worker, _exited_with(error)))
        self._agenda.at(self._agenda.now_s + attempt.timeout_s, lambda: self._overran(worker))
        if cell.truth.host_bytes:
            self._changed()
        self._pace(device)
        self._spoke(worker)
        return worker

    def terminate(self, attempt_id: str) -> None:
        """Ask a worker to end; it does within its grace period."""
        worker = self.workers.get(attempt_id)
        if worker is not None and worker.end is None:
            takes_s = min(worker.attempt.grace_s, TERM_TAKES_S)
            self._agenda.at(
                self._agenda.now_s + takes_s, lambda: self._finish(worker, Evidence(signal=15, ended_on_request=True))
            )

    def is_alive(self, attempt_id: str) -> bool:
        """Whether anything of the attempt lives."""
        worker = self.workers.get(attempt_id)
        return worker is not None and worker.end is None

    # What the probe reads

    def reading(self, index: int, at_s: float, *, processes: bool, blind: bool) -> DeviceReading:
        """One device, as it was at an instant."""
        device = list(self.devices.values())[index]
        spec = device.spec
        if device.outages:
            why = device.outages[0].why
            return DeviceReading(
                spec.uuid, index, spec.name, unavailable=why, max_cells=spec.max_cells, backend=spec.backend
            )
        foreign, held = device.as_of(at_s)
        lists: dict[int, int | None] = {pid_of(each): size for each, size in held.items()}
        if foreign:
            lists[FOREIGN_PID] = foreign
        if blind:
            lists = dict.fromkeys(lists)
        return DeviceReading(
            spec.uuid,
            index,
            spec.name,
            total_bytes=spec.total_bytes,
            free_bytes=spec.total_bytes - foreign - sum(held.values()),
            process_bytes=lists if processes else None,
            max_cells=spec.max_cells,
            backend=spec.backend,
        )

    # What happens by itself

    def _arrive(self, foreign: Foreign) -> None:
        device = self.devices[foreign.device]
        device.foreign[foreign] = max(0, min(foreign.size_bytes, device.free_bytes))
        self._touched(device)

    def _leave(self, foreign: Foreign) -> None:
        device = self.devices[foreign.device]
        device.foreign.pop(foreign, None)
        self._touched(device)

    def _go_out(self, outage: Outage) -> None:
        device = self.devices[outage.device]
        device.outages.append(outage)
        if outage.kills:
            for worker in tuple(device.alive.values()):
                self._finish(worker, Evidence(exit_status=1, log_text=BROKEN))
        self._changed()

    def _come_back(self, outage: Outage) -> None:
        self.devices[outage.device].outages.remove(outage)
        self._changed()

    def _touched(self, device: DeviceMemory) -> None:
        held = {each: worker.held_bytes for each, worker in device.alive.items() if worker.held_bytes}
        if device.past and device.past[-1][1:] == (device.foreign_bytes, held):
            return
        if self._world.reading_lag_s == 0:
            device.past.clear()
        device.past.append((self._agenda.now_s, device.foreign_bytes, held))
        self._changed()

    def _pace(self, device: DeviceMemory) -> None:
        """Plan each worker's next milestone, at the rate that its company leaves it."""
        now_s = self._agenda.now_s
        slowed = 1.0 + self._world.contention * (len(device.alive) - 1)
        for worker in device.alive.values():
            truth = worker.cell.truth
            takes_s = truth.on_devices.get(device.spec.name, truth.duration_s)
            rate = device.spec.speed / (takes_s * slowed)
            if rate != worker.rate:
                worker.done += (now_s - worker.updated_s) * worker.rate
                worker.updated_s, worker.rate = now_s, rate
                self._plan_next(worker)

    def _plan_next(self, worker: SimulatedWorker) -> None:
        worker.turn += 1
        turn = worker.turn
        if worker.milestones:
            wait_s = max(0.0, worker.milestones[0][0] - worker.done) / worker.rate
            self._agenda.at(worker.updated_s + wait_s, lambda: self._reached(worker, turn))

    def _reached(self, worker: SimulatedWorker, turn: int) -> None:
        if worker.end is not None or turn != worker.turn:
            return
        share, what, number = worker.milestones.pop(0)
        worker.done, worker.updated_s = share, self._agenda.now_s
        if what == "hold":
            self._hold(worker, int(worker.cell.truth.peak_bytes(worker.attempt.batch_size) * number))
        elif what == "point":
            worker.points += 1
            self._spoke(worker)
        else:
            self._finish(worker, self._ending(worker))
        if worker.end is None:
            self._plan_next(worker)

    def _hold(self, worker: SimulatedWorker, wanted_bytes: int) -> None:
        device = self.devices[worker.attempt.device]
        more = wanted_bytes - worker.held_bytes
        most = most_bytes(worker.attempt)
        capped = worker.cell.truth.honours_cap and most is not None and wanted_bytes > most
        if not capped and more <= device.free_bytes:
            worker.held_bytes = wanted_bytes
            worker.peak_bytes = max(worker.peak_bytes, wanted_bytes)
            self._touched(device)
            return
        worker.memory = _why_no_memory(worker, device, wanted_bytes, more)
        others = {each: other.held_bytes for each, other in device.alive.items() if other is not worker}
        worker.scene = (device.foreign_bytes, others)
        # An allocator asks for what it lacks; the context is not its own.
        lacks = max(0, wanted_bytes - CONTEXT_BYTES) - max(0, worker.held_bytes - CONTEXT_BYTES)
        free = max(0, device.free_bytes - max(0, CONTEXT_BYTES - worker.held_bytes))
        error = ReportedError(ErrorKind.OUT_OF_MEMORY, "CUDA out of memory", "generate", lacks or more, free)
        if worker.cell.truth.reports_memory:
            self._finish(worker, Evidence(exit_status=1, worker_error=error))
        else:
            self._finish(worker, Evidence(exit_status=1, log_text="torch.OutOfMemoryError: CUDA out of memory."))

    def _ending(self, worker: SimulatedWorker) -> Evidence:
        mishap = worker.cell.truth.mishap_of(worker.attempt.number)
        match mishap.failure if mishap is not None else None:
            case None:
                return Evidence(exit_status=0, measurement=MEASURED)
            case Failure.BUG:
                return Evidence(exit_status=1, log_text="ValueError: a plain bug")
            case Failure.SIGNAL:
                return Evidence(signal=11)
            case Failure.KILLED:
                return Evidence(signal=9)
            case Failure.NO_RESULT:
                return Evidence(exit_status=0)
            case Failure.MALFORMED:
                return Evidence(exit_status=0, malformed="not JSON: {")
            case Failure.MODEL_UNAVAILABLE:
                return Evidence(exit_status=1, worker_error=ReportedError(ErrorKind.MODEL_UNAVAILABLE, "no such model"))
            case Failure.BAD_DATA:
                return Evidence(exit_status=1, worker_error=ReportedError(ErrorKind.BAD_DATA, "a score of NaN"))
            case Failure.SHIM_LOST:
                return Evidence(lost="nothing of it is alive and it left no outcome")
            case _:
                raise AssertionError(f"{mishap} does not end by itself")

    def _overran(self, worker: SimulatedWorker) -> None:
        self._finish(worker, Evidence(signal=15, timed_out=True))

    def _finish(self, worker: SimulatedWorker, end: Evidence) -> None:
        if worker.end is not None:
            return
        worker.end, worker.ended_s = end, self._agenda.now_s
        worker.held_bytes = 0
        device = self.devices[worker.attempt.device]
        device.alive.pop(worker.attempt.id, None)
        self._touched(device)
        if worker.cell.truth.host_bytes:
            self._changed()
        self._pace(device)
        self._spoke(worker)


def _no_start(hitch: Hitch) -> Evidence:
    number = errno.ENOENT if hitch.kind is ErrorKind.INTERPRETER else errno.EMFILE
    return Evidence(start_error="no such file: python", start_errno=number, start_about=PROGRAM, wall_s=0.0)


def _exited_with(error: ReportedError) -> Evidence:
    return Evidence(exit_status=1, worker_error=error)


def pid_of(attempt_id: str) -> int:
    """A worker's process id, made of all of its attempt's id: a replay has the same, and no two share one."""
    return 1000 + int.from_bytes(attempt_id.encode(), "big")


def most_bytes(attempt: Attempt) -> int | None:
    """What a worker that honours its cap holds at most: the allocator is capped, and the context comes on top."""
    return None if attempt.cap_bytes is None else attempt.cap_bytes + CONTEXT_BYTES


def reported_peak_bytes(worker: SimulatedWorker) -> int | None:
    """What the worker says it took: torch's counters, which don't see the CUDA context; None where it says nothing."""
    return max(0, worker.peak_bytes - CONTEXT_BYTES) if worker.cell.truth.reports_memory else None


def _milestones(cell: SimCell, number: int) -> list[tuple[float, str, float]]:
    truth = cell.truth
    mishap = truth.mishap_of(number)
    ends_at = mishap.at if mishap is not None else 1.0
    marks = [(at, "hold", share) for at, share in truth.ramp]
    marks += [((index + 1) / (truth.points + 1), "point", 0.0) for index in range(truth.points)]
    marks = sorted(mark for mark in marks if mark[0] < ends_at)
    if mishap is not None and mishap.failure is Failure.HANG:
        return marks
    return [*marks, (ends_at, "end", 0.0)]


def _why_no_memory(worker: SimulatedWorker, device: DeviceMemory, wanted_bytes: int, more: int) -> MemoryEnd:
    if wanted_bytes > device.spec.total_bytes:
        return MemoryEnd.TOO_BIG
    most = most_bytes(worker.attempt)
    if wanted_bytes > worker.attempt.reservation_bytes or (most is not None and wanted_bytes > most):
        return MemoryEnd.OWN_CAP
    came = max(0, device.foreign_bytes - worker.foreign_before_bytes)
    if more <= device.free_bytes + came or len(device.alive) == 1:
        return MemoryEnd.FOREIGN
    return MemoryEnd.NEIGHBOUR
