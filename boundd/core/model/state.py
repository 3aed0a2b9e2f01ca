"""The whole state of a run, as one immutable value.

Maps are persistent (`immutables.Map`): a step shares all it didn't change with the state before it, so that a
simulation can keep every state it went through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from immutables import Map

from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, attempt_id
from boundd.core.model.devices import Device, QuickDeath
from boundd.core.model.history import Durations, Observations
from boundd.core.model.host import HostReading
from boundd.core.model.memo import Memo
from boundd.core.model.problems import Problem, ProblemKey
from boundd.core.model.quarantines import Quarantine, Subject, device_subject
from boundd.core.model.queues import Cells
from boundd.core.model.reasons import Deferral, DiskShort
from boundd.core.model.requirements import Requirement


@dataclass(frozen=True, slots=True)
class Rules:
    """What the config says about planning and retrying. Sizes in bytes, durations in seconds."""

    margin_bytes: int = 512 * 1024**2
    mix_models: bool = False
    batch_ladder: tuple[int, ...] = (4, 2, 1)
    max_attempts: int = 4
    backoff_s: float = 30.0
    quick_s: float = 60.0
    """A plain failure within so long of the start speaks against the device, until the cell fails elsewhere too."""
    patience_s: float = 86400.0
    """For how long attempts that the environment fails are tried again before their cells are given up."""
    max_cells: int = 0
    """Attempts at a time on one device; 0 where memory alone decides."""
    torch: str = ""
    """The version that workers have, part of what a footprint is learned by; empty where nobody knows."""
    disk_reserve_bytes: int = 0
    """Free bytes where the state folder is, below which no attempt is started; 0 where that isn't looked at."""
    result_is_printed: bool = False
    result_pattern: str = ""
    """Where a printed result is; empty for `speedup: X`."""
    """Whether a worker's result is what it prints, as that of somebody's own script is, or comes by the protocol."""


@dataclass(frozen=True, slots=True)
class State:
    """Cells, live attempts and devices, and what was planned last."""

    rules: Rules = Rules()
    settings: object = None
    """What the config in force says beside the matrix and the rules. The core never looks inside: who starts workers
    and writes exports does, so that all that a reload changes changes together."""
    order: tuple[str, ...] = ()
    """The keys of the matrix, in its order. `cells` may hold more: those of configs before this one."""
    cells: Cells = field(default_factory=Cells)
    attempts: Map[str, Attempt] = field(default_factory=Map)
    """Live attempts only, by id."""
    devices: Map[str, Device] = field(default_factory=Map)
    hosts: Mapping[str, HostReading] = field(default_factory=dict)
    """Node to its own memory and cores; of a node that nobody read, they bound nothing."""
    quarantines: Mapping[Subject, Quarantine] = field(default_factory=dict)
    """Who is held back: kept even while a device is not seen."""
    observations: Observations = field(default_factory=Observations)
    durations: Durations = field(default_factory=Durations)
    quick_deaths: tuple[QuickDeath, ...] = ()
    """Cells that died quickly, and where, until it is known whether the cell or the device was to blame."""
    problems: Map[ProblemKey, Problem] = field(default_factory=Map)
    """What is wrong outside the cells, and holds some of them back. Not kept over a restart."""
    completions: int = 0
    """Attempts that ended since the daemon started: the clock that waiting is measured by."""
    refused_since: Map[Requirement, int] = field(default_factory=Map)
    """At which completion a queue that was refused was overtaken; of one that was not, a completion yet to come."""
    emptying: Mapping[str, str] = field(default_factory=dict)
    """Device UUID to the key of the cell that it is being emptied for."""
    last_model: str = ""
    """The model that was started last: its files are in the host's page cache."""
    paused: bool = False
    stopping: bool = False
    disk_free_bytes: int | None = None
    """What was free where the state folder is, as of the latest reading; None where nobody knows."""
    deferrals: Mapping[str, Deferral] = field(default_factory=dict)
    """Key to the reason why the latest plan did not start it. Reasons are worked out when they are asked for."""

    def __post_init__(self) -> None:
        # Whoever builds a state from records needs not know of the queues: they are made where they don't fit.
        if isinstance(self.cells, Cells) and self.cells.order is self.order:
            return  # comparing a million keys with themselves would be most of what a step costs
        if not isinstance(self.cells, Cells) or self.cells.order != self.order:
            records, memo = (self.cells.records, self.memo) if isinstance(self.cells, Cells) else (self.cells, None)
            object.__setattr__(self, "cells", Cells.of(records, self.order, memo))

    @property
    def memo(self) -> Memo:
        """What was worked out before in this run: for speed, and never to be seen in what is decided."""
        return self.cells.memo

    def matrix(self) -> Iterator[CellRecord]:
        """The cells of the matrix, in its order."""
        return (self.cells[key] for key in self.order)

    def pending(self) -> Iterator[CellRecord]:
        """The cells that still want an attempt, in the order in which they get one."""
        return (record for record in self.matrix() if record.state is CellState.PENDING)

    @property
    def has_pending(self) -> bool:
        """Whether any cell still wants an attempt."""
        return self.cells.counts.get(CellState.PENDING, 0) > 0

    def attempt_of(self, key: str) -> Attempt | None:
        """The cell's live attempt; there is at most one, and it is its latest."""
        record = self.cells.get(key)
        return None if record is None else self.attempts.get(attempt_id(record.cell, record.attempts))

    def attempts_on(self, device: str) -> tuple[Attempt, ...]:
        """The live attempts on a device, oldest first."""
        found = (attempt for attempt in self.attempts.values() if attempt.device == device)
        return tuple(sorted(found, key=lambda attempt: (attempt.started_boot_s, attempt.id)))

    def devices_by_index(self) -> tuple[Device, ...]:
        """The devices in the order that people see."""
        return tuple(sorted(self.devices.values(), key=lambda device: (device.reading.index, device.uuid)))

    def with_instances(self, uuid: str) -> tuple[str, ...]:
        """A device and, where it is one in MIG mode, its instances: those are what takes cells."""
        return (uuid, *(each.uuid for each in self.devices_by_index() if each.reading.parent == uuid))

    def count_by_state(self) -> Counter[CellState]:
        """How many cells of the matrix stand in each state."""
        return Counter({state: count for state, count in self.cells.counts.items() if count})

    def quarantine_of(self, uuid: str) -> Quarantine | None:
        """Why a device is out of service; None where it isn't."""
        return self.quarantines.get(device_subject(uuid)) if self.quarantines else None

    @property
    def disk_shortage(self) -> DiskShort | None:
        """What the disk of the state folder is short of, so that nothing is started; None where it has room."""
        free, reserve = self.disk_free_bytes, self.rules.disk_reserve_bytes
        return None if free is None or free >= reserve else DiskShort(free, reserve)

    @property
    def idle(self) -> bool:
        """True where nothing runs and no cell wants to: the run is over until somebody changes something."""
        return not self.attempts and not self.has_pending


def sanity_check(state: State) -> None:
    """Walk the invariants.

    Raises:
        AssertionError: one doesn't hold; the message says which and for whom.
    """
    running = Counter(attempt.key for attempt in state.attempts.values())
    for key, count in running.items():
        assert count == 1, f"{count} live attempts of {state.cells[key].cell.label}"
        assert state.cells[key].state is CellState.RUNNING, f"{state.cells[key].cell.label} has an attempt, not running"
    for record in state.cells.values():
        if record.state is CellState.RUNNING:
            assert record.cell.key in running, f"{record.cell.label} is running without an attempt"
        if record.state is CellState.SUCCEEDED:
            assert record.measurement is not None, f"{record.cell.label} succeeded without a measurement"
    for device in state.devices.values():
        _check_device(state, device)


def _check_device(state: State, device: Device) -> None:
    attempts = state.attempts_on(device.uuid)
    assert all(attempt.state is not AttemptState.ENDED for attempt in attempts), f"an ended attempt on {device.uuid}"
    if any(attempt.exclusive for attempt in attempts):
        assert len(attempts) == 1, f"an exclusive attempt has company on {device.uuid}"
    total = device.reading.total_bytes
    if total is not None:
        reserved = sum(attempt.reservation_bytes for attempt in attempts)
        assert reserved <= total, f"{reserved} bytes reserved of {total} on {device.uuid}"
    limit = device.reading.max_cells
    assert limit is None or len(attempts) <= limit, f"{len(attempts)} attempts on {device.uuid}, limit {limit}"
