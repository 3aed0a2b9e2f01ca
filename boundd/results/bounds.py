"""The upper bound of a cell, from what was measured.

Rules: only a measurement whose device was its own while it was timed makes a bound, and one of which nobody can say
that only where the config accepts it. A figure that was imported is the
bound it was said to be, and is named as imported. What was scored and never came within the tolerance has no bound:
its fastest point is known to be too lossy.
"""

from __future__ import annotations

from dataclasses import dataclass

from boundd.catalogue.outcomes import Isolation
from boundd.core.model.outcomes import Measurement

IMPORTED = "imported"
MAX_SPEEDUP = "max_speedup"
MAX_SPEEDUP_WITHIN_TOLERANCE = "max_speedup_within_tolerance"


@dataclass(frozen=True, slots=True)
class BoundRules:
    """What makes a bound of a measurement: `safety_factor` times a speed-up, and, with `accept_unknown`, one of which
    nobody can say whether its device was its own. What was seen to be contended never makes one."""

    safety_factor: float
    accept_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound of the speed-up, and the figure that it was made of; both None where there is none."""

    upper_bound: float | None = None
    upper_bound_of: str | None = None
    of_unknown_isolation: bool = False
    """Whether the rules accept it although nobody attests its isolation; whoever shows it says so."""


def was_scored(measurement: Measurement) -> bool:
    """Whether the worker compared the quality of what it measured with the baseline's."""
    best = measurement.best or {}
    return measurement.max_speedup_within_tolerance is not None or best.get("score_loss") is not None


def bound_of(measurement: Measurement | None, rules: BoundRules) -> Bound:
    """The upper bound that a measurement makes: the safety factor times the figure that is named beside it."""
    if measurement is None:
        return Bound()
    if measurement.imported_upper_bound is not None:
        return Bound(measurement.imported_upper_bound, IMPORTED)
    unknown = measurement.isolation is Isolation.UNKNOWN
    if measurement.isolation is not Isolation.EXCLUSIVE and not (unknown and rules.accept_unknown):
        return Bound()
    within = measurement.max_speedup_within_tolerance
    if within is not None:
        return Bound(rules.safety_factor * within, MAX_SPEEDUP_WITHIN_TOLERANCE, unknown)
    if measurement.max_speedup is None or was_scored(measurement):
        return Bound()
    return Bound(rules.safety_factor * measurement.max_speedup, MAX_SPEEDUP, unknown)
