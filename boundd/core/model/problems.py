"""Problems of the environment: what is no cell's fault, and whom it holds back.

Rules: a problem is known by its kind and by what those have in common that it concerns (its `Scope`). One attempt at a
time probes whether it has passed. Problems are not kept over a restart, as backoff isn't: the next daemon finds them
again with one attempt each, and nothing is charged for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.requirements import Requirement


class ScopeKind(StrEnum):
    """What cells share that are held back together."""

    HOST = "host"
    """Everything: all cells run on this machine."""
    PROGRAM = "program"
    """The program that is executed, usually an interpreter."""
    MODEL = "model"
    WORK = "work"
    """Program, model and method: what decides what is imported and read."""
    DEVICE = "device"
    """No cells are held back, but the device is."""


class Scope(NamedTuple):
    """What is shared, and its value: a path, a model's name, a UUID."""

    kind: ScopeKind
    name: str = ""


class ProblemKey(NamedTuple):
    """Which problem: one of each kind a scope."""

    kind: ErrorKind
    scope: Scope


@dataclass(frozen=True, slots=True)
class Problem:
    """Something outside the cells that keeps attempts from running.

    `waited_s` counts only while a daemon was there to try: that is what the patience is measured by. Times are seconds
    since boot (`_boot_s`) or UTC (`_unix_s`).
    """

    key: ProblemKey
    subject: str
    """What is to be seen to, where it is known: a hub's host, a package, a path."""
    message: str
    """The latest failure, in its own words."""
    since_unix_s: float
    last_boot_s: float
    not_before_boot_s: float
    failures: int = 1
    probes: int = 0
    """Attempts that found it to be there still, one after the other."""
    waited_s: float = 0.0
    longest_s: float = 0.0
    """How long the longest of its attempts took to fail: a probe that outlives that by far has got past it."""
    probe: str = ""
    """The id of the live attempt that tries whether it has passed; empty where none does."""


HOST = Scope(ScopeKind.HOST)


def scopes_of(needs: Requirement) -> frozenset[Scope]:
    """All that the cells of a queue share with others."""
    return frozenset(
        {
            HOST,
            Scope(ScopeKind.PROGRAM, needs.policy.program),
            Scope(ScopeKind.MODEL, needs.work.model),
            Scope(ScopeKind.WORK, work_name(needs)),
        }
    )


def work_name(needs: Requirement) -> str:
    """The name of a kind of work: what its cells execute, and of which model and method."""
    return " ".join((needs.policy.program, needs.work.model, needs.work.method)).strip()
