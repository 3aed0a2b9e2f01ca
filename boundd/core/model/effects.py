"""Effects: what the shell has to do, in order. Each effect is done only after the one before it has succeeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from boundd.core.model.attempts import Attempt, EndReason
from boundd.core.model.cells import Cell
from boundd.core.model.outcomes import Verdict
from boundd.core.model.records import Record


class Action(StrEnum):
    """The closed list of `event.action` in the logs; docs/logs.md explains each, and a test compares the two."""

    DAEMON_STARTED = "daemon-started"
    DAEMON_STOPPING = "daemon-stopping"
    DAEMON_STOPPED = "daemon-stopped"
    CONFIG_RELOADED = "config-reloaded"
    CONFIG_REJECTED = "config-rejected"
    MATRIX_LOADED = "matrix-loaded"
    DEVICE_FOUND = "device-found"
    DEVICE_UNAVAILABLE = "device-unavailable"
    DEVICE_RECOVERED = "device-recovered"
    DEVICE_CORDONED = "device-cordoned"
    DEVICE_UNCORDONED = "device-uncordoned"
    ATTEMPT_STARTING = "attempt-starting"
    ATTEMPT_STARTED = "attempt-started"
    ATTEMPT_ADOPTED = "attempt-adopted"
    ATTEMPT_ENDING = "attempt-ending"
    ATTEMPT_ENDED = "attempt-ended"
    ATTEMPT_UNKILLABLE = "attempt-unkillable"
    ENVIRONMENT_PROBLEM = "environment-problem"
    ENVIRONMENT_RECOVERED = "environment-recovered"
    FOREIGN_PROCESS = "foreign-process"
    RESERVATION_EXCEEDED = "reservation-exceeded"
    OUT_OF_MEMORY = "out-of-memory"
    BATCH_LOWERED = "batch-lowered"
    POINT_MEASURED = "point-measured"
    CELL_RETRYING = "cell-retrying"
    CELL_SUCCEEDED = "cell-succeeded"
    CELL_GAVE_UP = "cell-gave-up"
    CELL_CANCELLED = "cell-cancelled"
    CELLS_RETRIED = "cells-retried"
    CELLS_IMPORTED = "cells-imported"
    RUN_PAUSED = "run-paused"
    RUN_RESUMED = "run-resumed"
    RUN_IDLE = "run-idle"
    STORE_UNAVAILABLE = "store-unavailable"
    STORE_RECOVERED = "store-recovered"
    DISK_PROBLEM = "disk-problem"
    DISK_RECOVERED = "disk-recovered"
    EXPORT_WRITTEN = "export-written"
    EXPORT_FAILED = "export-failed"
    LOGS_DROPPED = "logs-dropped"
    SOCKET_UNREACHABLE = "socket-unreachable"
    LIBRARY_MESSAGE = "library-message"
    INTERNAL_ERROR = "internal-error"


@dataclass(frozen=True, slots=True)
class Commit:
    """Store these records in one transaction. If that fails, the event has not happened."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the worker of an attempt that has been stored."""

    attempt: Attempt
    cell: Cell


@dataclass(frozen=True, slots=True)
class EndWorker:
    """End all processes of an attempt: SIGTERM, then SIGKILL after the grace period."""

    attempt_id: str
    reason: EndReason


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log. The names of `fields` end in their unit."""

    action: Action
    message: str
    level: str = "info"
    cell: str | None = None
    attempt: str | None = None
    device: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """For readers of the log only; boundd makes no decision by them."""
    verdict: Verdict | None = None
    """Set for `attempt-ended` only."""


@dataclass(frozen=True, slots=True)
class ResultsChanged:
    """The content of an export has changed."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Run a scheduling pass at this instant, even if no event comes before. Seconds since boot."""

    boot_s: float


@dataclass(frozen=True, slots=True)
class ReadDevices:
    """Read the devices again, because the latest reading is out of date.

    `at_once`: read immediately. Otherwise the next regular reading is soon enough.
    """

    at_once: bool = False


Effect = Commit | Spawn | EndWorker | Note | ResultsChanged | WakeAt | ReadDevices
