"""In which order the queues are served: pure arithmetic on what is expected of each.

Two things make a run long: devices that are left half empty because what would fill them is used up, and a straggler
at the end. The largest first is against the one, the longest first against the other. So the largest go first, and the
small ones fill what they leave; but whoever would take most of what is left of the run is urgent. Where cells are small
beside a device, any of them fills any gap, and the largest area (bytes x seconds) goes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from boundd.core.devices import DeviceState
from boundd.core.durations import Expectations, expected_left_s
from boundd.core.placement import Ledger, matrix_device_model
from boundd.core.state import State
from boundd.core.table import Cells, Requirement
from boundd.core.workload import workload_of

PATIENCE = 32
PATIENCE_PER_DEVICE = 8
"""A queue that others overtook comes first after `PATIENCE` completions, and so many more for each device."""
LONG_PATIENCE = 10
"""So many times the patience for one that nobody overtook, and that merely waits for its turn."""
CLASSES = 4
"""Classes for each doubling of what is compared: within one, a model that is in the page cache goes first."""
URGENT_SHARE = 0.7
"""Of the time that all is expected to take that is left: who takes so much of it must not be begun later."""
FEW_A_DEVICE = 4
"""Where fewer than so many cells fill a device, the largest go first."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """What is expected of one cell of a queue, and how many wait in it."""

    count: int
    size_bytes: int
    wall_s: float

    @property
    def area(self) -> float:
        """Bytes x seconds of one."""
        return self.size_bytes * self.wall_s


def patience(state: State) -> int:
    """How many completions a queue that others overtake waits for."""
    return PATIENCE + PATIENCE_PER_DEVICE * len(state.devices)


def passed_over(state: State) -> frozenset[Requirement]:
    """The queues that were passed over for too long: they come first then, and have a device emptied for them."""
    latest = state.completions - patience(state)
    return frozenset(needs for needs, since in state.refused_since.items() if since <= latest)


def ranked(state: State, ledger: Ledger, passed: frozenset[Requirement]) -> list[Requirement]:
    """The queues, in the order in which they are served; `passed` are those that were passed over for too long."""
    name = matrix_device_model(state) or next((d.reading.name for d in state.devices_by_index()), "")
    warm = {workload_of(state.cells[attempt.key]).model for attempt in state.attempts.values()}
    warm.add(state.last_model)
    expectations = Expectations(state.durations, name)
    kinds = ledger.kinds()
    expected = {
        needs: _Expected(
            len(queue),
            max([ledger.need(needs, kind).needed_bytes for kind in kinds], default=1),
            expectations.of(needs.work).wall_s,
        )
        for needs, queue in state.cells.queues.items()
    }
    urgent_s = URGENT_SHARE * _left_s(state, ledger, list(expected.values()))
    by_size = _are_large(list(expected.values()), max((kind.total_bytes for kind in kinds), default=0))

    def rank(needs: Requirement) -> tuple[object, ...]:
        overdue, each = needs in passed, expected[needs]
        urgent = each.wall_s >= urgent_s
        weight = each.size_bytes if by_size and not urgent else each.area
        return (
            not overdue,
            state.refused_since[needs] if overdue else 0,
            not needs.avoid,
            not (needs.policy.must_be_alone or needs.alone),
            not urgent,
            -math.floor(math.log2(weight) * CLASSES),
            needs.work.model not in warm,
            -weight,
            first_place(state.cells, needs),
        )

    return sorted(state.cells.queues, key=rank)


def first_place(cells: Cells, needs: Requirement) -> int:
    """Where a queue's first entry stands in the matrix: it makes the order of equals one order."""
    queue = cells.queues[needs]
    return queue.returned[0][0] if queue.returned else cells.places[queue.keys[queue.head]]


def _left_s(state: State, ledger: Ledger, waiting: Sequence[_Expected]) -> float:
    """Seconds that all that waits and runs would take if the devices were full to the end."""
    total_bytes = sum(
        device.reading.total_bytes or 0
        for device in state.devices.values()
        if device.state is DeviceState.READY and ledger.model in (None, device.reading.name)
    )
    area = sum(each.count * each.area for each in waiting)
    area += sum(
        expected_left_s(state, attempt, ledger.boot_s) * attempt.reservation_bytes
        for attempt in state.attempts.values()
    )
    return area / total_bytes if total_bytes else math.inf


def _are_large(waiting: Sequence[_Expected], device_bytes: int) -> bool:
    """Whether what waits is large beside a device, on the mean of its area."""
    area = sum(each.count * each.area for each in waiting)
    mean_bytes = sum(each.count * each.area * each.size_bytes for each in waiting) / area if area else 0.0
    return mean_bytes * FEW_A_DEVICE > device_bytes
