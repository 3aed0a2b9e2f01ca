"""The order in which queues are served.

Two things make a run longer than necessary: devices that stay half empty because no small cells are left to fill
them, and a straggler, a long cell that runs on alone at the end. Against the first, large cells go first, and small
ones fill the gaps. Against the second, a cell is urgent if it would take most of the remaining time of the run. If
the cells are small compared with a device, any of them fills any gap; then the order is by bytes x seconds^2, in
which duration counts more than size.
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
"""A queue starves if it is overtaken for this many completions: `STARVATION_LIMIT`, and more for each device."""
WAITING_LIMIT_FACTOR = 10
"""For a queue that is only waiting for its turn and was not overtaken, the limit is this many times as long."""
CLASSES = 4
"""Queues are ranked in classes, this many for each doubling of the weight. Within a class, models in the page cache
go first."""
URGENT_SHARE = 0.7
"""A cell is urgent if it takes at least this share of the remaining time of the run."""
FEW_PER_DEVICE = 4
"""If fewer cells than this fill a device, the largest cells go first."""


def starvation_limit(state: State) -> int:
    """The number of completions after which an overtaken queue starves."""
    return STARVATION_LIMIT + STARVATION_LIMIT_PER_DEVICE * len(state.devices)


def starved_queues(state: State) -> frozenset[Requirement]:
    """The queues that starve. They are served first, and a device is emptied for them."""
    latest = state.completions - starvation_limit(state)
    return frozenset(needs for needs, since in state.refused_since.items() if since <= latest)


def ranked(state: State, ledger: Ledger, passed: frozenset[Requirement]) -> list[Requirement]:
    """The queues in the order in which they are served; `passed` are the starved ones."""
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
    # The mean size is weighted by area (bytes x seconds).
    few = left > 0 and by_bytes / left * FEW_PER_DEVICE > max([kind.total_bytes for kind in ledger.kinds()], default=0)
    # Sort by the order of the matrix first. It decides among equals, and sorting a nearly sorted list is fast.
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
    """The position of a queue's first cell in the matrix, which decides between queues of equal rank."""
    return queue.returned[0][0] if queue.returned else cells.places[queue.keys[queue.head]]


def _running_area(state: State, ledger: Ledger) -> float:
    """Expected bytes x seconds of the running attempts from now on."""
    running = state.attempts.values()
    return sum(expected_left_s(state, each, ledger.boot_s) * each.reservation_bytes for each in running)
