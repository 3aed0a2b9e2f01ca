"""Outcomes of attempts: verdicts, measurements and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.memory_evidence import MemoryEvidence


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    REJECTED = "rejected"


AT_START = "start"
"""The phase of a failure before the worker was executed."""
ENVIRONMENT = frozenset(
    {
        ErrorKind.HUB_UNAVAILABLE,
        ErrorKind.HOST_MEMORY,
        ErrorKind.HOST_LIMITS,
        ErrorKind.INTERPRETER,
        ErrorKind.PACKAGE,
        ErrorKind.FILE_SYSTEM,
        ErrorKind.DEVICE_FAILED,
    }
)
"""Failures of the environment. They are not charged to the cell, and cells that need the same are held back
(`scheduler.environment`)."""


class MemoryCause(StrEnum):
    """Why an attempt ran out of memory. Each cause has its own cure (`lifecycle.retry`)."""

    ESTIMATE_TOO_LOW = "estimate_too_low"
    """It reached its own cap while the device had memory left."""
    PRESSURE = "pressure"
    """Another attempt or a foreign process took memory that was reserved for it."""
    TOO_BIG = "too_big"
    """It was alone and its cap was the whole device, and that was not enough."""


@dataclass(frozen=True, slots=True)
class PointRecord:
    """One measured point of the search, as the worker reported it."""

    parameters: Mapping[str, Any]
    speedup: float
    score_loss: float | None
    isolation: Isolation
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a successful attempt. Speed-ups are ratios (2.0 is twice as fast)."""

    max_speedup: float | None
    max_speedup_within_tolerance: float | None
    best: Mapping[str, Any] | None
    isolation: Isolation
    imported_upper_bound: float | None = None
    """Set if the result was imported from an old file, which holds only the upper bound."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttemptError:
    """Why an attempt did not succeed, for people and for `retry`. `at_unix_s` is UTC seconds."""

    kind: ErrorKind
    message: str
    at_unix_s: float
    phase: str | None = None
    requested_bytes: int | None = None
    free_bytes: int | None = None
    cause: MemoryCause | None = None
    """Set by the core if memory ran out: it knows the device and its neighbours."""
    evidence: MemoryEvidence | None = None
    """The numbers that the cause was decided by."""
    subject: str = field(default="", compare=False)
    """For a failure of the environment, what needs attention: the hub's host, a package or a path. Not stored."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of an attempt, with either a measurement or an error."""

    outcome: Outcome
    measurement: Measurement | None = None
    error: AttemptError | None = None
    exit_status: int | None = None
    signal: int | None = None
    wall_s: float | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    host_peak_bytes: int | None = None
    """The worker's peak host memory, as it reported it."""
