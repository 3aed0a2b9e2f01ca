"""A memo of pure functions' results, one for each run.

It belongs to the state (`State.memo`) and not to the process. It only saves time: with an empty memo, the same
decisions are made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from boundd.core.model.attempts import CellRecord
from boundd.core.model.requirements import Requirement
from boundd.core.model.workload import Workload, workload

ANSWERS_KEPT = 65_536
"""The size of each cache."""

Table = TypeVar("Table")


class Memo:
    """Caches by argument. Equal arguments return the same object, so that comparing two results is one pointer
    comparison."""

    __slots__ = ("_requirement", "_tables", "_workload")

    def __init__(self) -> None:
        self._workload = lru_cache(maxsize=ANSWERS_KEPT)(workload)
        self._requirement = lru_cache(maxsize=ANSWERS_KEPT)(Requirement)
        self._tables: dict[Callable[[], Any], Any] = {}

    def workload_of(self, record: CellRecord, batch_size: int | None = None) -> Workload:
        """The workload of the cell's next attempt, or of one with another batch size."""
        policy = record.policy
        batch = record.batch_size if batch_size is None else batch_size
        return self._workload(record.cell, policy.dtype, policy.architecture, batch)

    def requirement_of(self, record: CellRecord) -> Requirement:
        """What a cell's next attempt needs."""
        work = self.workload_of(record)
        return self._requirement(record.policy, work, record.memory_level, record.alone, record.avoid)

    def table(self, kind: Callable[[], Table]) -> Table:
        """A cache of the caller's, by its type; empty at first. The caller limits its size."""
        found: Table | None = self._tables.get(kind)
        if found is None:
            found = self._tables[kind] = kind()
        return found
