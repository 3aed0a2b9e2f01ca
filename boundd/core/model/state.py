"""The state of a run, as one immutable value.

Its maps are persistent (`immutables.Map`): a new state shares with the old one everything that didn't change, so
that a simulation can keep every state of a run.
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
    """The config's rules for planning and retrying. Sizes in bytes, durations in seconds."""

    margin_bytes: int = 512 * 1024**2
    mix_models: bool = False
    batch_ladder: tuple[int, ...] = (4, 2, 1)
    max_attempts: int = 4
    backoff_s: float = 30.0
    quick_s: float = 60.0
    """A failure within this time of the start may be the device's fault, until the cell fails on another device too."""
    patience_s: float = 86400.0
    """How long attempts that fail by a problem of the environment are retried before their cells are given up."""
    max_cells: int = 0
    """Limit of attempts at a time on one device; 0 for no limit but memory."""
    torch: str = ""
    """The workers' version of torch, which footprints are learned by; empty if unknown."""
    disk_reserve_bytes: int = 0
    """Below this many free bytes on the state folder's file system, no attempt is started; 0 to ignore it."""
    result_is_printed: bool = False
    """Whether the result is read from the worker's output instead of the protocol's result lines."""
    result_pattern: str = ""
    """Regular expression for the result in the output; empty for `speedup: X`."""


@dataclass(frozen=True, slots=True)
class State:
    """Cells, live attempts, devices, and the latest plan."""

    rules: Rules = Rules()
    settings: object = None
    """The config's other settings. The core carries them without looking inside, so that a reload changes everything
    at once; the parts that start workers and write exports read them."""
    order: tuple[str, ...] = ()
    """The keys of the matrix's cells, in its order. `cells` also holds cells of earlier configs."""
    cells: Cells = field(default_factory=Cells)
    attempts: Map[str, Attempt] = field(default_factory=Map)
    """Live attempts only, by id."""
    devices: Map[str, Device] = field(default_factory=Map)
    hosts: Mapping[str, HostReading] = field(default_factory=dict)
    """Node to its own memory and cores; of a node that nobody read, they bound nothing."""
    quarantines: Mapping[Subject, Quarantine] = field(default_factory=dict)
    """Quarantines by subject, also of devices that are not seen at present."""
    observations: Observations = field(default_factory=Observations)
    durations: Durations = field(default_factory=Durations)
    quick_deaths: tuple[QuickDeath, ...] = ()
    """Quick deaths of cells, until it is known whether the cell or the device was at fault."""
    problems: Map[ProblemKey, Problem] = field(default_factory=Map)
    """Problems of the environment. Not stored."""
    completions: int = 0
    """Attempts that have ended since the daemon started. Starvation is measured in these completions."""
    refused_since: Map[Requirement, int] = field(default_factory=Map)
    """For each refused queue, the completion at which another queue first overtook it; a future one if none has yet."""
    emptying: Mapping[str, str] = field(default_factory=dict)
    """Device UUID to the key of the cell that the device is being emptied for."""
    last_model: str = ""
    """The model that was started last. Its files are in the host's page cache."""
    paused: bool = False
    stopping: bool = False
    disk_free_bytes: int | None = None
    """Free bytes on the state folder's file system at the latest reading; None if unknown."""
    deferrals: Mapping[str, Deferral] = field(default_factory=dict)
    """Key to the reason why the latest scheduling pass did not start the cell. Computed on demand."""

    def __post_init__(self) -> None:
        # Build the queues here if the caller has not, so that a state can be made from plain records.
        if isinstance(self.cells, Cells) and self.cells.order is self.order:
            return  # comparing a million keys with themselves would be most of what a step costs
        if not isinstance(self.cells, Cells) or self.cells.order != self.order:
            records, memo = (self.cells.records, self.memo) if isinstance(self.cells, Cells) else (self.cells, None)
            object.__setattr__(self, "cells", Cells.of(records, self.order, memo))

    @property
    def memo(self) -> Memo:
        """The run's memo of computed values. It only saves time and never changes a decision."""
        return self.cells.memo

    def matrix(self) -> Iterator[CellRecord]:
        """The cells of the matrix, in its order."""
        return (self.cells[key] for key in self.order)

    def pending(self) -> Iterator[CellRecord]:
        """The pending cells, in the order of the matrix."""
        return (record for record in self.matrix() if record.state is CellState.PENDING)

    @property
    def has_pending(self) -> bool:
        """Whether any cell is pending."""
        return self.cells.counts.get(CellState.PENDING, 0) > 0

    def attempt_of(self, key: str) -> Attempt | None:
        """The cell's live attempt, which is always its latest; None if it has none."""
        record = self.cells.get(key)
        return None if record is None else self.attempts.get(attempt_id(record.cell, record.attempts))

    def attempts_on(self, device: str) -> tuple[Attempt, ...]:
        """The live attempts on a device, oldest first."""
        found = (attempt for attempt in self.attempts.values() if attempt.device == device)
        return tuple(sorted(found, key=lambda attempt: (attempt.started_boot_s, attempt.id)))

    def devices_by_index(self) -> tuple[Device, ...]:
        """The devices by index, the order in which they are shown."""
        return tuple(sorted(self.devices.values(), key=lambda device: (device.reading.index, device.uuid)))

    def with_instances(self, uuid: str) -> tuple[str, ...]:
        """A device and its MIG instances, which are what cells run on."""
        return (uuid, *(each.uuid for each in self.devices_by_index() if each.reading.parent == uuid))

    def count_by_state(self) -> Counter[CellState]:
        """Number of the matrix's cells in each state."""
        return Counter({state: count for state, count in self.cells.counts.items() if count})

    def quarantine_of(self, uuid: str) -> Quarantine | None:
        """A device's quarantine; None if it has none."""
        return self.quarantines.get(device_subject(uuid)) if self.quarantines else None

    @property
    def disk_shortage(self) -> DiskShort | None:
        """The shortage of disk space that holds new attempts back; None if there is room."""
        free, reserve = self.disk_free_bytes, self.rules.disk_reserve_bytes
        return None if free is None or free >= reserve else DiskShort(free, reserve)

    @property
    def idle(self) -> bool:
        """True if nothing runs and no cell is pending."""
        return not self.attempts and not self.has_pending


def sanity_check(state: State) -> None:
    """Check the invariants of a state.

    Raises:
        AssertionError: an invariant doesn't hold; the message says which one and for which cell or device.
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
