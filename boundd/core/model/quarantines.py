"""Quarantine: a device, a kind of work or an environment that takes no new cells, with the cause.

Each subject has at most one quarantine. It stays until an operator lifts it, or until the condition that its cause
names. In the user interface, the quarantine of a device is a cordon (`boundctl cordon`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class SubjectKind(StrEnum):
    """What can be quarantined."""

    DEVICE = "device"
    """A device, named by its UUID."""
    WORK = "work"
    """A kind of work, named by what its cells have in common."""
    ENVIRONMENT = "environment"
    """Something outside boundd that cells depend on, such as an interpreter or a hub."""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What is quarantined."""

    kind: SubjectKind
    name: str


def device_subject(uuid: str) -> Subject:
    """The subject for a device."""
    return Subject(SubjectKind.DEVICE, uuid)


@dataclass(frozen=True, slots=True)
class StuckProcess:
    """A process that survived SIGKILL."""

    pid: int
    name: str
    state: str
    """The state letter of proc_pid_stat(5). D is uninterruptible sleep in the kernel."""
    waits_in: str
    """The kernel function that it waits in; empty if the kernel doesn't report it."""
    since_unix_s: float
    """When it was first seen alive after SIGKILL, UTC seconds."""


@dataclass(frozen=True, slots=True)
class ByOperator:
    """An operator's decision, with the reason. Lifted by an operator."""

    reason: str
    kind: Literal["operator"] = "operator"


@dataclass(frozen=True, slots=True)
class CellsDied:
    """Several cells died here within `within_s` of their start, and ran on other devices. Lifted by an operator."""

    labels: tuple[str, ...]
    within_s: float
    kind: Literal["cells_died"] = "cells_died"


@dataclass(frozen=True, slots=True)
class DriverFault:
    """The driver reports a fault of the device. Lifted by an operator."""

    fault: str
    kind: Literal["driver_fault"] = "driver_fault"


@dataclass(frozen=True, slots=True)
class UnkillableAttempt:
    """An attempt survived SIGKILL, most likely inside the device's driver. Lifted when the attempt has ended."""

    attempt_id: str
    label: str
    processes: tuple[StuckProcess, ...]
    kind: Literal["unkillable_attempt"] = "unkillable_attempt"


QuarantineCause = ByOperator | CellsDied | DriverFault | UnkillableAttempt


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A quarantine with its cause and start (UTC seconds; None in stores before schema version 5)."""

    subject: Subject
    cause: QuarantineCause
    since_unix_s: float | None = None
