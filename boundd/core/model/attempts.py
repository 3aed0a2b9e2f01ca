"""Attempts: executions of a cell, numbered from 1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import AttemptError, Measurement
from boundd.core.model.quarantines import StuckProcess


class AttemptState(StrEnum):
    """The state of a live attempt. `State` holds live attempts only; one that has ended is a row of the store."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class CellState(StrEnum):
    """The state of a cell. All states but pending and running are final, until an operator retries the cell."""

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
    """An operator cancelled the cell. It stays cancelled."""
    PUT_BACK = "put_back"
    """The daemon is shutting down and ends its workers. The cell is pending again, and the failure is not charged to
    it."""


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
    """True if the reservation is the device's whole memory, so a larger one is impossible."""
    had_company: bool = False
    """True once another attempt has run on the device at the same time."""
    foreign_seen: bool = False
    """True once a foreign process (one that boundd did not start) was seen on the device while the attempt ran."""
    witnessed: bool = False
    """True once the driver listed the attempt's processes. Not stored."""
    unattested: str = ""
    """Why it is unknown whether the attempt had its device to itself; empty if nothing speaks against it. Not
    stored."""
    estimate_bytes: int | None = None
    """The expected peak of device memory in bytes; None if unknown. The reservation is larger if the attempt runs
    alone."""
    host_memory_bytes: int = 0
    """Host memory reserved for the attempt; 0 if the device's memory is the host's."""
    cores: int = 0
    observed_peak_bytes: int = 0
    """The largest device memory that its processes were seen to hold; 0 if the driver doesn't report it."""
    state: AttemptState = AttemptState.STARTING
    end_reason: EndReason | None = None
    unkillable: tuple[StuckProcess, ...] = ()
    """The attempt's processes that survived SIGKILL, as far as they are known. Not stored."""
    progress_done: int = 0
    progress_total: int = 0
    points: int = 0


@dataclass(frozen=True, slots=True)
class CellRecord:
    """A cell, its policy, and what the scheduler remembers of it between attempts."""

    cell: Cell
    policy: CellPolicy
    state: CellState = CellState.PENDING
    attempts: int = 0
    """The number of attempts made so far. The next attempt's number is one more."""
    charged_failures: int = 0
    """Failures since the last retry by an operator that count towards `max_attempts`."""
    plain_failures: int = 0
    """Charged failures that neither a smaller batch nor more memory would cure. Such a failure is retried once."""
    free_failures: int = 0
    """Failures since the last retry by an operator that are not charged to the cell. They have a limit of their own,
    so that every cell ends."""
    memory_level: int = 0
    """How many times the estimate was too low. Above `raising.LEVELS`, the cell runs alone until its footprint is
    learned."""
    alone: bool = False
    """True if the next attempt must run alone on its device."""
    batch_size: int | None = None
    """The batch size of the next attempt, if the batch ladder lowered it; otherwise None, and the cell's own is
    used."""
    not_before_boot_s: float = 0.0
    """The next attempt starts no earlier than this. Not stored: a restart of the daemon ends the backoff."""
    avoid: str = ""
    """UUID of a device on which the cell died quickly. The next attempt runs on another device. Not stored."""
    error: AttemptError | None = None
    measurement: Measurement | None = None
    measured_device: str = ""
    measured_batch_size: int | None = None
    duration_s: float | None = None
    """Duration of the attempt that succeeded."""

    @property
    def wanted_batch_size(self) -> int | None:
        """The batch size that the next attempt uses."""
        return self.batch_size if self.batch_size is not None else self.cell.batch_size


def attempt_id(cell: Cell, number: int) -> str:
    """The id of a cell's n-th attempt: unique in a store, safe as a file name, and the same in every replay."""
    return f"{cell.digest}.{number}"
