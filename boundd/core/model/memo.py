"""What pure functions have answered before, kept for one run.

Rules: a memo belongs to a run's state (`State.memo`) and ends with it; there is none of the process. It never shows:
with an empty one, the same is decided, only later.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from boundd.core.model.attempts import CellRecord
from boundd.core.model.requirements import Requirement
from boundd.core.model.workload import Workload, workload

ANSWERS_KEPT = 65_536
"""Answers of a kind that are kept."""

Table = TypeVar("Table")


class Memo:
    """Answers by what was asked. One value of each kind, so that comparing two of them is a look at one address."""

    __slots__ = ("_requirement", "_tables", "_workload")

    def __init__(self) -> None:
        self._workload = lru_cache(maxsize=ANSWERS_KEPT)(workload)
        self._requirement = lru_cache(maxsize=ANSWERS_KEPT)(Requirement)
        self._tables: dict[Callable[[], Any], Any] = {}

    def workload_of(self, record: CellRecord, batch_size: int | None = None) -> Workload:
        """The work of the cell's next attempt, or of one with another batch."""
        policy = record.policy
        batch = record.batch_size if batch_size is None else batch_size
        return self._workload(record.cell, policy.dtype, policy.architecture, batch)

    def requirement_of(self, record: CellRecord) -> Requirement:
        """What a cell's next attempt needs."""
        work = self.workload_of(record)
        return self._requirement(record.policy, work, record.memory_level, record.alone, record.avoid)

    def table(self, kind: Callable[[], Table]) -> Table:
        """A table of the caller's own, by its type: empty at first. The caller bounds its size."""
        found: Table | None = self._tables.get(kind)
        if found is None:
            found = self._tables[kind] = kind()
        return found
