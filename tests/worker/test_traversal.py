"""The lazy traversal finds what the exhaustive one finds, and says why it left the rest out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.worker.methods.base import Parameters
from boundd.worker.statistics import IntervalEstimate
from boundd.worker.traversal import MethodOrder, PointVerdict, Traversal

INTERVALS = (2, 3, 5, 7, 10)
BRANCHES = (0, 1, 2, 3)
DIRECTIONS = {"interval": +1, "branch": -1}
IDENTITY: Parameters = {"interval": 1, "branch": 0}
GRID: Sequence[Parameters] = [
    IDENTITY,
    *({"interval": interval, "branch": branch} for interval, branch in itertools.product(INTERVALS, BRANCHES)),
]
ORDER = MethodOrder(("interval", "branch"), IDENTITY, DIRECTIONS, DIRECTIONS)
UNSURE = MethodOrder(("interval", "branch"), IDENTITY, DIRECTIONS, {})


@dataclass
class World:
    """Points that take and lose what they do, and how many were timed and judged."""

    speedups: Sequence[float]
    passes: Sequence[bool]
    width: float = 0.005
    timed: int = 0
    judged: int = 0

    def search(self, traversal: Traversal) -> int | None:
        """As the explorer does, without noise beyond `width`."""
        while True:
            if waiting := traversal.to_time():
                for index in waiting:
                    self.time(traversal, index)
            elif (index := traversal.candidate()) is None:
                return traversal.best
            elif traversal.estimate(index) is None:
                self.time(traversal, index)
            else:
                self.judged += 1
                traversal.judged(index, PointVerdict.PASSED if self.passes[index] else PointVerdict.REJECTED)

    def time(self, traversal: Traversal, index: int) -> None:
        """Measure a speed-up."""
        self.timed += 1
        speedup = self.speedups[index]
        traversal.timed(index, IntervalEstimate(speedup, speedup * (1 - self.width), speedup * (1 + self.width), 2))

    @property
    def winner(self) -> int | None:
        """What the exhaustive search would find."""
        passing = [index for index in range(len(self.passes)) if self.passes[index]]
        return max(passing, key=lambda index: self.speedups[index], default=None)


def speed_of(point: Parameters) -> float:
    """Faster with the interval, slower with the branch; no two points alike."""
    return 1 + (point["interval"] - 1) * (0.31 - 0.05 * point["branch"])


def staircase(limits: Sequence[int]) -> list[bool]:
    """Points pass up to an interval that grows with the branch; the identity always does."""
    ends = list(itertools.accumulate(limits, max))
    return [point == IDENTITY or point["interval"] <= ends[int(point["branch"])] for point in GRID]


@given(st.lists(st.sampled_from([1, *INTERVALS]), min_size=4, max_size=4), st.booleans())
def test_the_lazy_winner_is_the_winner(limits: list[int], is_sure: bool) -> None:
    """Whatever the frontier of what passes, with and without an order of speed: the very point that judging all of
    them would find, or one as fast within the intervals."""
    world = World([speed_of(point) for point in GRID], staircase(limits))
    found = world.search(Traversal(GRID, [ORDER if is_sure else UNSURE]))
    assert found is not None
    assert world.winner is not None
    assert world.speedups[found] >= world.speedups[world.winner] * (1 - 2 * world.width)
    assert world.passes[found]
    assert world.judged < len(GRID)


@given(
    st.lists(st.floats(0.5, 4), min_size=len(GRID), max_size=len(GRID)),
    st.lists(st.booleans(), min_size=len(GRID), max_size=len(GRID)),
)
def test_without_an_order_nothing_is_taken_for_granted(speedups: list[float], passes: list[bool]) -> None:
    """Any speeds and any verdicts at all: with nothing declared, the fastest that passes is found."""
    world = World(speedups, passes)
    found = world.search(Traversal(GRID, [MethodOrder(("interval", "branch"), IDENTITY, {}, {})]))
    assert (found is None) == (world.winner is None)
    if found is not None and world.winner is not None:
        assert world.speedups[found] >= world.speedups[world.winner] * (1 - 2 * world.width)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ([10, 10, 10, 10], 1),  # the fastest of all passes: nothing else need be judged
        ([7, 10, 10, 10], 3),
        ([1, 1, 1, 1], 9),  # nothing passes but the identity: a bisection, not one by one
    ],
)
def test_it_is_lazy(limits: list[int], most: int) -> None:
    """Of 21 points only few are judged."""
    world = World([speed_of(point) for point in GRID], staircase(limits))
    world.search(Traversal(GRID, [ORDER]))
    assert world.judged <= most


def test_what_was_measured_beats_the_order() -> None:
    """A point said to be slower, and measured faster than the one that passed, stays open."""
    traversal = Traversal(GRID, [ORDER])
    fast, slow = GRID.index({"interval": 10, "branch": 0}), GRID.index({"interval": 7, "branch": 0})
    traversal.timed(fast, IntervalEstimate(2.0, 1.9, 2.1, 1))
    traversal.timed(slow, IntervalEstimate(2.5, 2.4, 2.6, 1))
    traversal.judged(fast, PointVerdict.PASSED)
    assert slow in traversal.open()
    assert traversal.candidate() == slow


def test_a_near_miss_speaks_for_no_other() -> None:
    """What failed on all samples without being rejected settles only itself; what was rejected, all that is lossier."""
    for verdict, settled in ((PointVerdict.FAILED, 1), (PointVerdict.REJECTED, 8)):
        traversal = Traversal(GRID, [ORDER])
        index = GRID.index({"interval": 5, "branch": 1})
        traversal.timed(index, IntervalEstimate(1.5, 1.4, 1.6, 1))
        traversal.judged(index, verdict)
        assert len(GRID) - len(traversal.open()) == (settled if verdict is PointVerdict.FAILED else 6)


def test_every_point_left_out_has_its_reason() -> None:
    """Slower by the order, slower as measured, lossier than what was rejected."""
    world = World([speed_of(point) for point in GRID], staircase([5, 7, 10, 10]))
    traversal = Traversal(GRID, [ORDER])
    world.search(traversal)
    reasons = [skip.reason for skip in traversal.skipped()]
    assert len(reasons) + world.judged == len(GRID)
    assert any("which passed" in reason for reason in reasons)
    assert all("the search ended" not in reason for reason in reasons)
    lossier = Traversal(GRID, [UNSURE])
    lossier.judged(GRID.index({"interval": 2, "branch": 3}), PointVerdict.REJECTED)
    assert all("which was rejected" in skip.reason for skip in lossier.skipped() if skip.parameters != IDENTITY)


def test_contenders_overlap_the_best() -> None:
    """Only what passed and may be the fastest."""
    traversal = Traversal(GRID, [UNSURE])
    for index, (value, verdict) in enumerate(
        [
            (1.0, PointVerdict.PASSED),
            (1.98, PointVerdict.PASSED),
            (2.0, PointVerdict.PASSED),
            (2.5, PointVerdict.FAILED),
        ]
    ):
        traversal.timed(index, IntervalEstimate(value, value - 0.05, value + 0.05, 5))
        traversal.judged(index, verdict)
    assert traversal.best == 2
    assert traversal.contenders() == [1, 2]


def test_memory_that_ran_out_says_nothing_of_others() -> None:
    """A point that ran out of memory needs no verdict, and rules out no other point."""
    traversal = Traversal(GRID, [ORDER])
    traversal.judged(GRID.index({"interval": 10, "branch": 0}), PointVerdict.OUT_OF_MEMORY)
    assert len(traversal.open()) == len(GRID) - 1
    assert GRID.index({"interval": 7, "branch": 0}) in traversal.to_time()


def test_methods_are_compared_one_by_one() -> None:
    """Of a combination: a part that is missing is at its identity, below every other point of that part."""
    other = MethodOrder(("ratio",), {"ratio": 0.0}, {"ratio": +1}, {})
    points: list[Parameters] = [
        {"interval": 5, "branch": 0},
        {"interval": 5, "branch": 0, "ratio": 0.5},
        {"interval": 7, "branch": 0, "ratio": 0.5},
        {"ratio": 0.7},
    ]
    traversal = Traversal(points, [ORDER, other])
    traversal.judged(1, PointVerdict.REJECTED)
    assert traversal.open() == [0, 3]


def test_a_focus_leaves_the_rest_aside() -> None:
    """Within a focus the best is the best of it, and what passed outside doesn't settle its points."""
    traversal = Traversal(GRID, [ORDER])
    fast = GRID.index({"interval": 10, "branch": 0})
    traversal.timed(fast, IntervalEstimate(3.0, 2.9, 3.1, 1))
    traversal.judged(fast, PointVerdict.PASSED)
    assert traversal.open() == []
    some = [GRID.index({"interval": 2, "branch": branch}) for branch in BRANCHES]
    traversal.focus(some)
    assert traversal.best is None
    assert traversal.open() == some
    traversal.focus(range(len(GRID)))
    assert traversal.best == fast
