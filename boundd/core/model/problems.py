"""Environment problems: failures that are no cell's fault, such as a hub that doesn't answer or a missing package.

A problem is identified by its kind and its scope, which is what the affected cells share. While it lasts, the cells
in its scope are held back, and one attempt at a time probes whether it is over. Problems are not stored, as backoff
isn't: a new daemon finds them again with one attempt each, which is not charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.requirements import Requirement


class ScopeKind(StrEnum):
    """What the cells that a problem holds back have in common."""

    HOST = "host"
    """The host, which all cells share."""
    PROGRAM = "program"
    """The program that is executed, usually a Python interpreter."""
    MODEL = "model"
    WORK = "work"
    """The program, model and method, which decide what is imported and read."""
    DEVICE = "device"
    """The device. It takes no cells, but cells can run on other devices."""


class Scope(NamedTuple):
    """What the affected cells share, and its value: a path, a model's name, a UUID."""

    kind: ScopeKind
    name: str = ""


class ProblemKey(NamedTuple):
    """The identity of a problem: at most one of each kind in a scope."""

    kind: ErrorKind
    scope: Scope


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of the environment that makes attempts fail.

    `waited_s` counts only the time in which a daemon was running and could probe; `Rules.patience_s` is compared
    with it. Times are seconds since boot (`_boot_s`) or UTC (`_unix_s`).
    """

    key: ProblemKey
    subject: str
    """What needs attention, if known: the hub's host, a package, a path."""
    message: str
    """The message of the latest failure."""
    since_unix_s: float
    last_boot_s: float
    not_before_boot_s: float
    failures: int = 1
    probes: int = 0
    """Consecutive probes that found the problem still there."""
    waited_s: float = 0.0
    longest_s: float = 0.0
    """The longest time that an attempt took to fail by this problem. A probe that runs much longer has got past it."""
    probe: str = ""
    """The id of the live attempt that probes it; empty if there is none."""


HOST = Scope(ScopeKind.HOST)


def scopes_of(needs: Requirement) -> frozenset[Scope]:
    """The scopes that the cells of a queue belong to."""
    return frozenset(
        {
            HOST,
            Scope(ScopeKind.PROGRAM, needs.policy.program),
            Scope(ScopeKind.MODEL, needs.work.model),
            Scope(ScopeKind.WORK, work_name(needs)),
        }
    )


def work_name(needs: Requirement) -> str:
    """The name of a WORK scope: program, model and method."""
    return " ".join((needs.policy.program, needs.work.model, needs.work.method)).strip()
