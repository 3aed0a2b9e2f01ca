"""How far a reservation is raised after the estimate was too low."""

from __future__ import annotations

RAISED_PERCENT = (150, 200)
"""What ran out of memory at its cap gets half as much again; what ran out with that too, twice as much."""
LEVELS = len(RAISED_PERCENT)
"""How often a too low estimate is raised; after that the cell has a device to itself until its like is learned."""
