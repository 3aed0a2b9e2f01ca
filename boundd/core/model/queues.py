"""The cells of a run and their queues, as an immutable value.

A matrix may have a million cells, so a scheduling pass must not look at each one. Pending cells with equal
requirements (`Requirement`) stand in one queue: if one of them fits on no device, none of its queue does. A cell
that leaves its queue otherwise (cancelled or imported) leaves a stale entry, which is dropped when the queue is
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from immutables import Map

from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.memo import Memo
from boundd.core.model.requirements import Requirement
from boundd.core.model.workload import Workload


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of cells with equal requirements, in the order of the matrix. Entries before `head` are gone; stale
    ones are skipped."""

    keys: tuple[str, ...]
    head: int = 0
    returned: tuple[tuple[int, str], ...] = ()
    """Matrix positions and keys of cells that wait again after an attempt. They come first, because they have waited
    longest."""

    def __len__(self) -> int:
        """An upper bound of the number of waiting cells: stale entries count until they are trimmed."""
        return len(self.returned) + len(self.keys) - self.head

    def entries(self) -> Iterator[str]:
        """The keys in the order in which they are served."""
        for _, key in self.returned:
            yield key
        for place in range(self.head, len(self.keys)):
            yield self.keys[place]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A persistent map of keys to records, with queues of the matrix's pending cells."""

    records: Map[str, CellRecord] = field(default_factory=Map)
    order: tuple[str, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    counts: Map[CellState, int] = field(default_factory=Map)
    """Number of the matrix's cells in each state."""
    queues: Map[Requirement, Queue] = field(default_factory=Map)
    examples: Map[Workload, str] = field(default_factory=Map)
    """Each workload of the matrix, with the key of one such cell."""
    in_backoff: Map[str, float] = field(default_factory=Map)
    """Pending cells in backoff, with the seconds since boot at which it ends."""
    memo: Memo = field(default_factory=Memo, repr=False)

    @classmethod
    def of(cls, records: Mapping[str, CellRecord], order: Iterable[str] = (), memo: Memo | None = None) -> Cells:
        """Build the queues of these records. `order` holds the keys of the matrix; `memo` is the run's (None: a new
        one)."""
        memo = Memo() if memo is None else memo
        known = records if isinstance(records, Map) else Map(records)
        keys = tuple(order)
        counts: dict[CellState, int] = {}
        waiting: dict[Requirement, list[str]] = {}
        in_backoff: dict[str, float] = {}
        examples: dict[Workload, str] = {}
        for key in keys:
            record = known[key]
            needs = memo.requirement_of(record)
            examples.setdefault(needs.work, key)
            counts[record.state] = counts.get(record.state, 0) + 1
            if record.state is CellState.PENDING:
                waiting.setdefault(needs, []).append(key)
                if record.not_before_boot_s > 0:
                    in_backoff[key] = record.not_before_boot_s
        queues = Map({requirement: Queue(tuple(found)) for requirement, found in waiting.items()})
        places = {key: place for place, key in enumerate(keys)}
        return cls(known, keys, places, Map(counts), queues, Map(examples), Map(in_backoff), memo)

    def set(self, key: str, record: CellRecord) -> Cells:
        """A copy with this record in place of the earlier one."""
        before = self.records.get(key)
        records = self.records.set(key, record)
        if before is None or key not in self.places:
            return replace(self, records=records)
        return Cells(
            records,
            self.order,
            self.places,
            self._counts_with(before, record),
            self._queues_with(before, record),
            self._examples_with(record),
            self._in_backoff_with(record),
            self.memo,
        )

    def _counts_with(self, before: CellRecord, after: CellRecord) -> Map[CellState, int]:
        if before.state is after.state:
            return self.counts
        fewer = self.counts.set(before.state, self.counts[before.state] - 1)
        return fewer.set(after.state, fewer.get(after.state, 0) + 1)

    def _queues_with(self, before: CellRecord, after: CellRecord) -> Map[Requirement, Queue]:
        if after.state is not CellState.PENDING:
            return self.queues
        needs, key = self.memo.requirement_of(after), after.cell.key
        if before.state is CellState.PENDING and self.memo.requirement_of(before) == needs:
            return self.queues
        queue = self.queues.get(needs, Queue(()))
        returned = tuple(sorted({*queue.returned, (self.places[key], key)}))
        return self.queues.set(needs, replace(queue, returned=returned))

    def _examples_with(self, after: CellRecord) -> Map[Workload, str]:
        # A cell's workload changes only when its batch size is lowered.
        if after.batch_size is None or (work := self.memo.workload_of(after)) in self.examples:
            return self.examples
        return self.examples.set(work, after.cell.key)

    def _in_backoff_with(self, after: CellRecord) -> Map[str, float]:
        key = after.cell.key
        if after.state is CellState.PENDING and after.not_before_boot_s > 0:
            return self.in_backoff.set(key, after.not_before_boot_s)
        return self.in_backoff.delete(key) if key in self.in_backoff else self.in_backoff

    def waits_in(self, needs: Requirement, key: str) -> bool:
        """Whether a queue's entry is still valid: the cell is pending and has exactly these requirements."""
        record = self.records[key]
        return (
            record.state is CellState.PENDING
            and record.memory_level == needs.memory_level
            and record.alone == needs.alone
            and record.avoid == needs.avoid
            and (record.policy is needs.policy or record.policy == needs.policy)
            and ((work := self.memo.workload_of(record)) is needs.work or work == needs.work)
        )

    def trimmed(self, needs: Requirement) -> Cells:
        """A copy without the stale entries at the front of a queue, and without the queue if it is empty then."""
        queue = self.queues[needs]
        head = queue.head
        while head < len(queue.keys) and not self.waits_in(needs, queue.keys[head]):
            head += 1
        returned = tuple(entry for entry in queue.returned if self.waits_in(needs, entry[1]))
        if head == queue.head and returned == queue.returned and (returned or head < len(queue.keys)):
            return self
        if head == len(queue.keys) and not returned:
            return replace(self, queues=self.queues.delete(needs))
        return replace(self, queues=self.queues.set(needs, replace(queue, head=head, returned=returned)))

    # The interface of a mapping

    def __getitem__(self, key: str) -> CellRecord:
        return self.records[key]

    def get(self, key: str) -> CellRecord | None:
        """The record of a key, or None."""
        return self.records.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self.records

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def values(self) -> Iterable[CellRecord]:
        """All the records."""
        return self.records.values()

    def items(self) -> Iterable[tuple[str, CellRecord]]:
        """All keys and records."""
        return self.records.items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cells) and (self.order, self.records) == (other.order, other.records)

    def __hash__(self) -> int:
        return hash((self.order, self.records))
