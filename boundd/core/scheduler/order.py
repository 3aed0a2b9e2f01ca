"""In which order the queues are served: pure arithmetic on what is expected of each.

Two things make a run long: devices that are left half empty because what would fill them is used up, and a straggler
at the end. The largest first is against the one, the longest first against the other. So the largest go first, and the
small ones fill what they leave; but whoever would take most of what is left of the run is urgent. Where cells are small
beside a device, any of them fills any gap, and bytes x seconds^2 decides: the size counts, the end counts for more.
"""

from __future__ import annotations

import math

from boundd.core.model.queues import Cells, Queue
from boundd.core.model.requirements import Requirement
from boundd.core.model.state import State
from boundd.core.scheduler.durations import expectations, expected_left_s
from boundd.core.scheduler.ledger import Ledger, matrix_device_model

STARVATION_LIMIT = 32
STARVATION_LIMIT_PER_DEVICE = 8
"""A queue that others overtook comes first after `STARVATION_LIMIT` completions, and so many more for each device."""
WAITING_LIMIT_FACTOR = 10
"""So many times the patience for one that nobody overtook, and that merely waits for its turn."""
CLASSES = 4
"""Classes for each doubling of what is compared: within one, a model that is in the page cache goes first."""
URGENT_SHARE = 0.7
"""Of the time that all is expected to take that is left: who takes so much of it must not be begun later."""
FEW_PER_DEVICE = 4
"""Where fewer than so many cells fill a device, the largest go first."""


def starvation_limit(state: State) -> int:
    """How many completions a queue that others overtake waits for."""
    return STARVATION_LIMIT + STARVATION_LIMIT_PER_DEVICE * len(state.devices)


def starved_queues(state: State) -> frozenset[Requirement]:
    """The queues that were passed over for too long: they come first then, and have a device emptied for them."""
    latest = state.completions - starvation_limit(state)
    return frozenset(needs for needs, since in state.refused_since.items() if since <= latest)


def ranked(state: State, ledger: Ledger, passed: frozenset[Requirement]) -> list[Requirement]:
    """The queues, in the order in which they are served; `passed` are those that were passed over for too long."""
    name = matrix_device_model(state) or next((d.reading.name for d in state.devices_by_index()), "")
    work_of, cells = state.memo.workload_of, state.cells
    warm = {work_of(cells[attempt.key]).model for attempt in state.attempts.values()}
    warm.add(state.last_model)
    durations = expectations(state, name)
    waiting = []
    left, by_bytes = _running_area(state, ledger), 0.0
    for needs, queue in state.cells.queues.items():
        size_bytes = max([need.needed_bytes for need in ledger.needs_of(needs)], default=1)
        wall_s = durations.of(needs.work).wall_s
        area = size_bytes * wall_s * len(queue)
        left += area
        by_bytes += area * size_bytes
        waiting.append((first_place(state.cells, queue), needs, size_bytes, wall_s))
    total_bytes = ledger.total_bytes()
    urgent_s = URGENT_SHARE * left / total_bytes if total_bytes else math.inf
    # The mean is that of the area: what is there for longer, and takes more, counts for more.
    few = left > 0 and by_bytes / left * FEW_PER_DEVICE > max([kind.total_bytes for kind in ledger.kinds()], default=0)
    # In the matrix' order first: it decides among equals, and sorting is quick where most are.
    waiting.sort()
    ranks = []
    for place, (_, needs, size_bytes, wall_s) in enumerate(waiting):
        urgent = wall_s >= urgent_s
        weight = size_bytes if few and not urgent else size_bytes * wall_s**2
        rank = (
            state.refused_since[needs] if passed and needs in passed else math.inf,
            not needs.avoid,
            not (needs.policy.must_be_alone or needs.alone),
            not urgent,
            -math.floor(math.log2(weight) * CLASSES),
            needs.work.model not in warm,
            -weight,
            place,
        )
        ranks.append((rank, needs))
    ranks.sort()
    return [needs for _, needs in ranks]


def first_place(cells: Cells, queue: Queue) -> int:
    """Where a queue's first entry stands in the matrix: it makes the order of equals one order."""
    return queue.returned[0][0] if queue.returned else cells.places[queue.keys[queue.head]]


def _running_area(state: State, ledger: Ledger) -> float:
    """Bytes x seconds that what runs is expected to take from now on."""
    running = state.attempts.values()
    return sum(expected_left_s(state, each, ledger.boot_s) * each.reservation_bytes for each in running)
