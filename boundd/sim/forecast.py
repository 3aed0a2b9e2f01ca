"""What would run where and when, if everything went as expected: the same engine, with a world in which nothing fails.

Every attempt takes its expected duration (`core.durations`) and no more memory than is reserved for it. What foreign
processes hold now, they hold for ever; a device that can't be read now stays so; what a person took out of service
stays out; a pause is taken to be over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from immutables import Map

from boundd.core.memory.headroom import foreign_bytes
from boundd.core.model.attempts import Attempt, CellRecord, CellState
from boundd.core.model.devices import Device
from boundd.core.model.events import Now
from boundd.core.model.host import THIS_NODE
from boundd.core.model.state import State
from boundd.core.scheduler.durations import expected_duration_s, expected_left_s
from boundd.sim.engine import simulate
from boundd.sim.trace import AttemptTrace
from boundd.sim.world import FOR_EVER_S, CellTruth, Faults, Foreign, Outage, SimCell, SimDevice, World

STEPS_A_CELL = 20


@dataclass(frozen=True, slots=True)
class Expected:
    """One attempt that runs or would run. Seconds from now; an attempt that runs already has a negative start."""

    key: str
    label: str
    device: str
    from_s: float
    until_s: float
    reservation_bytes: int
    running: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """The whole run from now on."""

    attempts: tuple[Expected, ...]
    """In the order in which they would start."""
    done_s: float
    """Seconds from now until the last of them would end; 0 where nothing is left to do."""
    never: Mapping[str, str]
    """Label to reason, for cells that would wait for ever on these devices."""


def forecast(state: State, now: Now, devices: Sequence[SimDevice] | None = None) -> Forecast:
    """What would happen from this state on; with `devices`, on those instead, from the start, with nothing running."""
    begin = replace(state, paused=False, stopping=False)
    if devices is not None:
        begin = _put_back(begin)
    world = World(
        tuple(_device(each) for each in begin.devices_by_index()) if devices is None else tuple(devices),
        _cells(
            begin,
            now,
            [d.reading.name for d in begin.devices.values()] if devices is None else [d.name for d in devices],
        ),
        _faults(begin) if devices is None else Faults(),
        host_bytes=0 if THIS_NODE not in begin.hosts else begin.hosts[THIS_NODE].total_bytes,
        host_used_bytes=_host_used_bytes(begin),
        host_cores=0 if THIS_NODE not in begin.hosts else begin.hosts[THIS_NODE].cores,
        start_s=now.boot_s,
    )
    steps = 1000 + STEPS_A_CELL * len(world.cells)
    outcomes = simulate(world, begin.rules, start=begin, must_end=False, max_steps=steps)
    expected = tuple(_expected(trace, begin.attempts, now) for trace in outcomes.attempts)
    return Forecast(
        tuple(sorted(expected, key=lambda each: (each.from_s, each.device, each.label))),
        max((each.until_s for each in expected), default=0.0),
        {begin.cells[key].cell.label: why for key, why in outcomes.waiting.items()},
    )


def _put_back(state: State) -> State:
    """As if nothing ran, on no device in particular."""
    cells = state.cells
    for attempt in state.attempts.values():
        cells = cells.set(attempt.key, replace(cells[attempt.key], state=CellState.PENDING))
    return replace(state, cells=cells, attempts=Map(), devices=Map(), quarantines={}, hosts={})


def _device(device: Device) -> SimDevice:
    reading = device.reading
    return SimDevice(
        device.uuid, reading.name, reading.total_bytes or 1, max_cells=reading.max_cells, backend=reading.backend
    )


def _faults(state: State) -> Faults:
    gone = tuple(Outage(d.uuid, 0.0, FOR_EVER_S, why=d.reading.unavailable) for d in _unread(state))
    foreign = tuple(
        Foreign(device.uuid, 0.0, FOR_EVER_S, foreign_bytes(device, state.attempts_on(device.uuid)))
        for device in state.devices_by_index()
        if device.reading.total_bytes is not None
    )
    return Faults(foreign=foreign, outages=gone)


def _unread(state: State) -> list[Device]:
    return [device for device in state.devices_by_index() if device.reading.unavailable]


def _host_used_bytes(state: State) -> int:
    """What others than the live attempts hold of the host."""
    host = state.hosts.get(THIS_NODE)
    return 0 if host is None else max(0, host.total_bytes - host.free_bytes - sum(host.observed_bytes.values()))


def _cells(state: State, now: Now, names: Sequence[str]) -> tuple[SimCell, ...]:
    live = {attempt.key: attempt for attempt in state.attempts.values()}
    cells = []
    for record in state.matrix():
        attempt = live.get(record.cell.key)
        truth = _truth(state, record, sorted(set(names))) if attempt is None else _truth_of_live(state, attempt, now)
        # Nobody wants to be told that a cell would be ended at its deadline and tried again.
        cells.append(SimCell(record.cell, replace(record.policy, timeout_s=math.inf), truth))
    return tuple(cells)


def _truth(state: State, record: CellRecord, names: Sequence[str]) -> CellTruth:
    takes = {name: expected_duration_s(state, record, name) for name in names}
    return CellTruth(max(takes.values(), default=1.0), 0, ramp=(), on_devices=takes, reports_memory=False)


def _truth_of_live(state: State, attempt: Attempt, now: Now) -> CellTruth:
    elapsed_s = max(0.0, now.boot_s - attempt.started_boot_s)
    whole_s = max(1e-3, elapsed_s + expected_left_s(state, attempt, now.boot_s))
    return CellTruth(whole_s, 0, ramp=(), done=min(1.0, elapsed_s / whole_s), reports_memory=False)


def _expected(trace: AttemptTrace, live: Mapping[str, Attempt], now: Now) -> Expected:
    running = live.get(trace.id)
    began_s = trace.started_s if running is None else running.started_boot_s
    return Expected(
        trace.key,
        trace.label,
        trace.device,
        began_s - now.boot_s,
        trace.ended_s - now.boot_s,
        trace.reservation_bytes,
        running is not None,
    )
