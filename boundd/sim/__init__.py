"""Deterministic simulation of the whole core under a virtual clock (docs/simulation.md)."""

from boundd.sim.engine import Policy, simulate
from boundd.sim.trace import AttemptTrace, Counts, MemoryEnd, Outcomes, Violation
from boundd.sim.world import (
    CellTruth,
    Deed,
    Failure,
    Faults,
    Foreign,
    Mishap,
    Outage,
    SimCell,
    SimDevice,
    Window,
    Wish,
    World,
)

__all__ = [
    "AttemptTrace",
    "CellTruth",
    "Counts",
    "Deed",
    "Failure",
    "Faults",
    "Foreign",
    "MemoryEnd",
    "Mishap",
    "Outage",
    "Outcomes",
    "Policy",
    "SimCell",
    "SimDevice",
    "Violation",
    "Window",
    "Wish",
    "World",
    "simulate",
]
