"""Words that a worker writes, the daemon stores and every client reads: kinds of error, and isolation.

Each is a `StrEnum`, so its value is the text in result lines, in the store and in JSON.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorKind(StrEnum):
    """What was wrong with an attempt that did not succeed.

    The kind decides whether the attempt is charged to the cell and whether it is tried again
    (`core.lifecycle.retry`).
    """

    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    MODEL_UNAVAILABLE = "model_unavailable"
    BAD_DATA = "bad_data"
    KILLED_BY_SIGNAL = "killed_by_signal"
    NO_RESULT = "no_result"
    MALFORMED_RESULT = "malformed_result"
    NOT_STARTED = "not_started"
    CANCELLED = "cancelled"
    LOST = "lost"
    OTHER = "other"
    HUB_UNAVAILABLE = "hub_unavailable"
    """The hub, or the network on the way to it, doesn't answer or answers with an error of its own."""
    HOST_MEMORY = "host_memory"
    """The machine ran out of memory, not the device and not the cell's own limit."""
    HOST_LIMITS = "host_limits"
    """The machine, or the daemon's share of it, has no descriptors or processes left."""
    INTERPRETER = "interpreter"
    """The worker's program is missing or can't be executed."""
    PACKAGE = "package"
    """A package that the worker imports is missing or broken."""
    FILE_SYSTEM = "file_system"
    """A disk or a network share fails, is full, read-only or gone."""
    DEVICE_FAILED = "device_failed"
    """The device failed before the worker had used it."""


WORKER_ERROR_KINDS = (
    ErrorKind.OUT_OF_MEMORY,
    ErrorKind.MODEL_UNAVAILABLE,
    ErrorKind.BAD_DATA,
    ErrorKind.OTHER,
    ErrorKind.HUB_UNAVAILABLE,
    ErrorKind.HOST_MEMORY,
    ErrorKind.HOST_LIMITS,
    ErrorKind.PACKAGE,
    ErrorKind.FILE_SYSTEM,
    ErrorKind.DEVICE_FAILED,
)
"""The kinds that a worker may write in an `error` line. The daemon alone sets the others, from what it saw."""


class Isolation(StrEnum):
    """Whether anything else used the device while it was timed. Only `exclusive` makes a bound."""

    EXCLUSIVE = "exclusive"
    CONTENDED = "contended"
    UNKNOWN = "unknown"
