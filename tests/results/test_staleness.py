"""Whether a result is of today's versions."""

from __future__ import annotations

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import Isolation, Measurement
from boundd.results.staleness import is_stale


def test_another_version_makes_it_stale() -> None:
    """A library of the fingerprint that is another version today; nothing else does."""
    cell = Cell.of({"model": "SD1.5", "method": "tome"}, ["model", "method"])
    details = {"fingerprint": {"torch": "2.13.0", "tgate": None, "python": "3.11.7"}}
    measured = CellRecord(cell, CellPolicy(), measurement=Measurement(2.0, None, None, Isolation.EXCLUSIVE))
    fingerprinted = CellRecord(
        cell, CellPolicy(), measurement=Measurement(2.0, None, None, Isolation.EXCLUSIVE, details=details)
    )
    assert is_stale(fingerprinted, {"torch": "2.14.1"}.get)
    assert not is_stale(fingerprinted, {"torch": "2.13.0", "tgate": "1.0.0", "diffusers": "0.42.1"}.get)
    assert not is_stale(measured, {"torch": "2.14.1"}.get)
    assert not is_stale(CellRecord(cell, CellPolicy()), {"torch": "2.14.1"}.get)
