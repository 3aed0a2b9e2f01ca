"""How a reservation is raised after the estimate was too low."""

from __future__ import annotations

RAISED_PERCENT = (150, 200)
"""Per cent of the reservation that was too small: 150 at the first retry, 200 at the second."""
LEVELS = len(RAISED_PERCENT)
"""How often an estimate is raised. After that, the cell runs alone until its footprint is learned."""
