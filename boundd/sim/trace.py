"""What a simulated run leaves: a record for each attempt, counts, and how the cells ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import CellState
from boundd.core.model.outcomes import Outcome


class Violation(AssertionError):  # noqa: N818 - it is not an error of the program that finds it
    """A promise was broken. `promise` is its name in docs/simulation.md."""

    def __init__(self, promise: str, message: str) -> None:
        super().__init__(f"{promise}: {message}")
        self.promise = promise


class MemoryEnd(StrEnum):
    """Why an attempt really ran out of memory; what the core makes of it is another matter."""

    OWN_CAP = "own_cap"
    """It asked for more than its cap."""
    NEIGHBOUR = "neighbour"
    """Without the other attempts on the device it would have had what it asked for."""
    FOREIGN = "foreign"
    """Without the foreign processes it would have had what it asked for."""
    TOO_BIG = "too_big"
    """The device would not have had so much if it were empty."""


@dataclass(frozen=True, slots=True)
class AttemptTrace:
    """One attempt, as it really was. Times are seconds of the virtual clock."""

    id: str
    key: str
    label: str
    number: int
    device: str
    started_s: float
    ended_s: float
    reservation_bytes: int
    cap_bytes: int | None
    batch_size: int | None
    exclusive: bool
    had_company: bool
    """Whether another attempt's worker was really alive on the device meanwhile."""
    peak_bytes: int
    """The most it held."""
    outcome: Outcome
    error: ErrorKind | None = None
    memory: MemoryEnd | None = None
    needless_cut: bool = False
    """The next batch is smaller although this one fits on the device it failed on."""


@dataclass(slots=True)
class Counts:
    """How much happened in a run, so that a campaign can say over what it was clean."""

    steps: int = 0
    readings: int = 0
    attempts: int = 0
    succeeded: int = 0
    out_of_memory: int = 0
    own_cap: int = 0
    neighbour: int = 0
    foreign: int = 0
    too_big: int = 0
    batch_cuts: int = 0
    timeouts: int = 0
    plain_failures: int = 0
    lost: int = 0
    environment: int = 0
    """Attempts that failed for what was no cell's fault."""
    crashes: int = 0
    restarts: int = 0
    adopted: int = 0
    failed_commits: int = 0
    lost_devices: int = 0
    failed_readings: int = 0
    foreign_arrivals: int = 0
    deeds: int = 0
    cordons: int = 0
    """Devices that the core itself took out of service."""
    uncordoned: int = 0

    def add(self, other: Counts) -> None:
        """Add another run's."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A whole run."""

    attempts: tuple[AttemptTrace, ...]
    """In the order in which they ended."""
    cells: Mapping[str, CellState]
    """By key, as they stood at the end."""
    makespan_s: float
    """When the last attempt ended."""
    counts: Counts
    waiting: Mapping[str, str]
    """By key: why a cell that has not ended waits for ever; empty where all have ended."""
