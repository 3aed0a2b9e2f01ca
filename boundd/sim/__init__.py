"""The core's loop on a simulated machine under a virtual clock (docs/simulation.md), for `boundctl plan` and tests."""

from boundd.sim.engine import Engine, simulate
from boundd.sim.trace import AttemptTrace, Counts, MemoryEnd, Outcomes, Violation
from boundd.sim.world import (
    CellTruth,
    Failure,
    Faults,
    Foreign,
    Mishap,
    Outage,
    SimCell,
    SimDevice,
    Window,
    World,
)

__all__ = [
    "AttemptTrace",
    "CellTruth",
    "Counts",
    "Engine",
    "Failure",
    "Faults",
    "Foreign",
    "MemoryEnd",
    "Mishap",
    "Outage",
    "Outcomes",
    "SimCell",
    "SimDevice",
    "Violation",
    "Window",
    "World",
    "simulate",
]
