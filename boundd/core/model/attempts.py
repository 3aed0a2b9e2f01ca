"""Attempts: executions of a cell, numbered from 1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import AttemptError, Measurement
from boundd.core.model.quarantines import StuckProcess


class AttemptState(StrEnum):
    """Where a live attempt stands. An attempt that has ended is a row of the store, not of the state."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class CellState(StrEnum):
    """Where a cell stands. All but pending and running are ends, until a person says `retry`."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"


class EndReason(StrEnum):
    """Why boundd itself ends an attempt."""

    CANCEL = "cancel"
    """A person cancelled the cell: it stays cancelled."""
    PUT_BACK = "put_back"
    """The daemon was told to stop with its workers: the cell is pending again, and nothing is charged to it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of a cell on one device. Times are seconds since boot (`_boot_s`) or UTC (`_unix_s`)."""

    id: str
    key: str
    label: str
    number: int
    device: str
    reservation_bytes: int
    cap_bytes: int | None
    batch_size: int | None
    exclusive: bool
    timeout_s: float
    grace_s: float
    started_unix_s: float
    started_boot_s: float
    whole_device: bool = False
    """True where the reservation is all that the device had: there is no larger one to try."""
    had_company: bool = False
    """True once another attempt was on the device at the same time."""
    foreign_seen: bool = False
    """True once a process that is not boundd's was seen on the device while it ran."""
    witnessed: bool = False
    """True once its processes were seen in the driver's lists. Not kept over a restart."""
    unattested: str = ""
    """Why nobody can say whether it had its device to itself; empty where nothing speaks against it. Not kept over a
    restart."""
    estimate_bytes: int | None = None
    """What it was expected to take; None where nobody knew. The reservation is larger where it is alone."""
    host_memory_bytes: int = 0
    """What is held for it of the host's memory; 0 where its device's memory is the host's."""
    cores: int = 0
    observed_peak_bytes: int = 0
    """The most that its processes were seen to hold of the device; 0 where the driver doesn't say."""
    state: AttemptState = AttemptState.STARTING
    end_reason: EndReason | None = None
    unkillable: tuple[StuckProcess, ...] = ()
    """Its processes that KILL doesn't end, as far as they are known. Not kept over a restart."""
    progress_done: int = 0
    progress_total: int = 0
    points: int = 0


@dataclass(frozen=True, slots=True)
class CellRecord:
    """A cell with all that is remembered of it between attempts."""

    cell: Cell
    policy: CellPolicy
    state: CellState = CellState.PENDING
    attempts: int = 0
    """Attempts made so far; the next one's number is one more."""
    charged_failures: int = 0
    """Failures since the last `retry` that count towards `max_attempts`."""
    plain_failures: int = 0
    """Those of the charged ones that a smaller batch or more memory doesn't cure: they are tried once more."""
    free_failures: int = 0
    """Failures since the last `retry` that the cell doesn't pay for; bounded all the same, so that every cell ends."""
    memory_level: int = 0
    """How many times the estimate was too low; after `raising.LEVELS`, it has a device to itself until it is
    learned."""
    alone: bool = False
    """The next attempt must be alone on its device."""
    batch_size: int | None = None
    """The batch of the next attempt; smaller than the cell's own where the ladder lowered it."""
    not_before_boot_s: float = 0.0
    """Backoff. Not kept over a restart of the daemon."""
    avoid: str = ""
    """UUID of the device on which it died quickly: the next attempt goes elsewhere. Not kept over a restart."""
    error: AttemptError | None = None
    measurement: Measurement | None = None
    measured_device: str = ""
    measured_batch_size: int | None = None
    duration_s: float | None = None
    """How long the attempt that succeeded took."""

    @property
    def wanted_batch_size(self) -> int | None:
        """The batch that the next attempt uses."""
        return self.batch_size if self.batch_size is not None else self.cell.batch_size


def attempt_id(cell: Cell, number: int) -> str:
    """The id of a cell's n-th attempt: unique in a store, the same at every replay, and safe as a file name."""
    return f"{cell.digest}.{number}"
