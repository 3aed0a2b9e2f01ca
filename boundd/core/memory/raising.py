"""How far a reservation is raised after the estimate was too low."""

from __future__ import annotations

CURES = ("half as much again is reserved", "twice as much is reserved")
LEVELS = len(CURES)
"""How often a too low estimate is raised; after that the cell has a device to itself until its like is learned."""
