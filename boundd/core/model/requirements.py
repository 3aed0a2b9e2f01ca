"""What placing a cell depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import CellPolicy
from boundd.core.model.workload import Workload, workload_of


@dataclass(frozen=True, slots=True)
class Requirement:
    """All that placing a cell depends on: cells with equal ones fit, and don't fit, on the same devices."""

    policy: CellPolicy
    work: Workload
    memory_level: int
    alone: bool
    avoid: str
    _hash: int = field(init=False, repr=False, compare=False)
    """Worked out once: a plan looks each queue up a dozen times, and the fields are many."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.policy, self.work, self.memory_level, self.alone, self.avoid)))

    def __hash__(self) -> int:
        return self._hash

    def __lt__(self, other: Requirement) -> bool:
        """An order that means nothing, and is the same in every process."""
        return repr(self) < repr(other)


def requirement_of(record: CellRecord) -> Requirement:
    """What a cell's next attempt needs."""
    return Requirement(record.policy, workload_of(record), record.memory_level, record.alone, record.avoid)
