"""Quarantine: a device, a kind of work or an environment that is held back, why, and since when.

Rules: one quarantine a subject; the first stays until it is lifted, by a person or by what its cause says. People know
the quarantine of a device as a cordon (`boundctl cordon`). The store keeps the cause with its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class SubjectKind(StrEnum):
    """What can be held back."""

    DEVICE = "device"
    """Named by its UUID."""
    WORK = "work"
    """A kind of work, named by what it has in common."""
    ENVIRONMENT = "environment"
    """Something outside boundd that cells depend on, such as an interpreter or a hub."""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Who is held back."""

    kind: SubjectKind
    name: str


def device_subject(uuid: str) -> Subject:
    """A device, as a subject."""
    return Subject(SubjectKind.DEVICE, uuid)


@dataclass(frozen=True, slots=True)
class StuckProcess:
    """A process that was sent KILL and has not died of it."""

    pid: int
    name: str
    state: str
    """As in proc_pid_stat(5): D waits in the kernel."""
    waits_in: str
    """The function of the kernel that it waits in; empty where the kernel doesn't say."""
    since_unix_s: float
    """Since when it has been seen to live in spite of the KILL, UTC seconds."""


@dataclass(frozen=True, slots=True)
class ByOperator:
    """A person said so, for this reason. Lifted by a person."""

    reason: str
    kind: Literal["operator"] = "operator"


@dataclass(frozen=True, slots=True)
class CellsDied:
    """Cells died here within `within_s` of their start and ran elsewhere. Lifted by a person."""

    labels: tuple[str, ...]
    within_s: float
    kind: Literal["cells_died"] = "cells_died"


@dataclass(frozen=True, slots=True)
class DriverFault:
    """The driver holds something against the device's health, in its own words. Lifted by a person."""

    fault: str
    kind: Literal["driver_fault"] = "driver_fault"


@dataclass(frozen=True, slots=True)
class UnkillableAttempt:
    """An attempt can't be killed: what KILL doesn't end waits in the device's driver. Lifted when it has ended."""

    attempt_id: str
    label: str
    processes: tuple[StuckProcess, ...]
    kind: Literal["unkillable_attempt"] = "unkillable_attempt"


QuarantineCause = ByOperator | CellsDied | DriverFault | UnkillableAttempt


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Who is held back, why, and since when (UTC seconds; None where a release before 0005 kept it)."""

    subject: Subject
    cause: QuarantineCause
    since_unix_s: float | None = None
