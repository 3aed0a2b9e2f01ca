"""Requirements: what the placement of a cell depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import CellPolicy
from boundd.core.model.workload import Workload, workload_of


@dataclass(frozen=True, slots=True)
class Requirement:
    """Everything that the placement of a cell depends on. Cells with equal requirements fit on the same devices."""

    policy: CellPolicy
    work: Workload
    memory_level: int
    alone: bool
    avoid: str
    _hash: int = field(init=False, repr=False, compare=False)
    """Computed once: a scheduling pass hashes each requirement about a dozen times."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.policy, self.work, self.memory_level, self.alone, self.avoid)))

    def __hash__(self) -> int:
        return self._hash

    def __lt__(self, other: Requirement) -> bool:
        """An arbitrary order that is the same in every process."""
        return repr(self) < repr(other)


def requirement_of(record: CellRecord) -> Requirement:
    """The requirement of a cell's next attempt."""
    return Requirement(record.policy, workload_of(record), record.memory_level, record.alone, record.avoid)
