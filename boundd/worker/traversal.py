"""Which point of a grid to measure next, and which points need not be measured. Pure: no clock, device or randomness.

The search looks for the fastest point whose score loss is within the tolerance. A method may declare, for a parameter,
in which direction quality gets worse (`lossier`) and in which the method is certain to be faster (`faster`). This is a
partial order of the points, and it lets one measured point rule out others:

 * a point that passed rules out every point that is no faster by that order;
 * a point that the sequential test rejected rules out every point that is at least as lossy;
 * a point that was measured slower than the fastest that passed is ruled out, and so is every point that is no faster
   than it.

Measurements win over the declared order: a point that was measured clearly faster than one that is declared faster is
not ruled out by it. A point that fails on all samples without a rejection rules out nothing: it is too close to the
tolerance.

"Open" means neither judged nor ruled out; "settled" is the opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from boundd.worker.methods.base import Parameters
from boundd.worker.statistics import IntervalEstimate

FAILURES_IN_A_ROW = 3
"""After this many failures in a row the bound is not near the fastest points, so the search bisects what is left."""


LEAST_PAIRS = 2
"""Fewest timed pairs by which a point may be called slower."""


class PointVerdict(StrEnum):
    """How a point was judged."""

    PASSED = "passed"
    """Within the tolerance on all samples; without a scorer, every point that was timed."""
    REJECTED = "rejected"
    """Above the tolerance, by the sequential test."""
    FAILED = "failed"
    """Above the tolerance on all samples."""
    OUT_OF_MEMORY = "out_of_memory"
    """Memory ran out."""


@dataclass(frozen=True)
class MethodOrder:
    """The partial order of one method's points. A point without the method's parameters counts as its identity, which
    is the least lossy and the slowest.

    Attributes:
        names: the method's parameters.
        identity: its point that changes nothing.
        lossier, faster: parameter → +1 or −1, the direction in which it loses quality, or is sure to be faster.
    """

    names: tuple[str, ...]
    identity: Parameters
    lossier: Mapping[str, int]
    faster: Mapping[str, int]

    def is_at_least(self, first: Parameters, second: Parameters, directions: Mapping[str, int]) -> bool:
        """Whether `first` is at least as far in these directions as `second`, every other parameter being equal."""
        here, there = ({name: point.get(name, self.identity[name]) for name in self.names} for point in (first, second))
        if directions and there == self.identity:
            return True
        return all(
            (here[name] - there[name]) * directions[name] >= 0 if name in directions else here[name] == there[name]
            for name in self.names
        )


@dataclass(frozen=True)
class Skip:
    """A point that was not judged, and why."""

    parameters: Parameters
    reason: str


@dataclass
class _Entry:
    parameters: Parameters
    estimate: IntervalEstimate | None = None
    verdict: PointVerdict | None = None


@dataclass
class Traversal:
    """The search over one grid. Points are named by their index in `points`."""

    points: Sequence[Parameters]
    orders: Sequence[MethodOrder]
    _among: frozenset[int] = field(init=False)
    _failures: int = field(init=False, default=0)
    _entries: list[_Entry] = field(init=False)
    _no_faster: list[frozenset[int]] = field(init=False)
    _at_least_as_lossy: list[frozenset[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._among = frozenset(range(len(self.points)))
        self._entries = [_Entry(point) for point in self.points]
        self._no_faster = self._related(lambda order, this, other: order.is_at_least(this, other, order.faster))
        self._at_least_as_lossy = self._related(
            lambda order, this, other: order.is_at_least(other, this, order.lossier)
        )

    def _related(self, holds: Callable[[MethodOrder, Parameters, Parameters], bool]) -> list[frozenset[int]]:
        """For each point, the other points for which `holds` is true of every method."""
        return [
            frozenset(
                other
                for other, candidate in enumerate(self.points)
                if other != this and all(holds(order, point, candidate) for order in self.orders)
            )
            for this, point in enumerate(self.points)
        ]

    def focus(self, among: Iterable[int]) -> None:
        """From now on search for the best of these points only."""
        self._among = frozenset(among)

    def timed(self, index: int, estimate: IntervalEstimate) -> None:
        """Set a point's speed-up, replacing an earlier estimate."""
        self._entries[index].estimate = estimate

    def judged(self, index: int, verdict: PointVerdict) -> None:
        """Set a point's verdict."""
        self._entries[index].verdict = verdict
        self._failures = self._failures + 1 if verdict in (PointVerdict.REJECTED, PointVerdict.FAILED) else 0

    def verdict(self, index: int) -> PointVerdict | None:
        """A point's verdict; None as long as it has none."""
        return self._entries[index].verdict

    def estimate(self, index: int) -> IntervalEstimate | None:
        """A point's speed-up; None if it was not timed."""
        return self._entries[index].estimate

    @property
    def best(self) -> int | None:
        """The fastest point that passed; ties go to the first."""
        passed = list(self._with(PointVerdict.PASSED))
        return max(passed, key=lambda index: (self._known(index).value, -index), default=None)

    def contenders(self) -> list[int]:
        """The points that passed and may be the fastest: their interval overlaps that of the best one."""
        best = self.best
        if best is None:
            return []
        low = self._known(best).low
        return [index for index in self._with(PointVerdict.PASSED) if self._known(index).high >= low]

    def open(self) -> list[int]:
        """The points that may still turn out to be the bound."""
        return [
            index
            for index in sorted(self._among)
            if self._entries[index].verdict is None and self._settled_by(index) is None
        ]

    def to_time(self) -> list[int]:
        """The open points to time next: those for which no other open point is declared at least as fast."""
        waiting = self.open()
        beaten = {slower for index in waiting for slower in self._no_faster[index]}
        return [index for index in waiting if index not in beaten and self._entries[index].estimate is None]

    def candidate(self) -> int | None:
        """The open point to judge next; None when none is open.

        It is the fastest. After FAILURES_IN_A_ROW it is the point that rules out the most others in the worse of its
        two outcomes: a bisection in the partial order.
        """
        waiting = self.open()
        if not waiting:
            return None
        if self._failures < FAILURES_IN_A_ROW:
            timed = [index for index in waiting if self._entries[index].estimate is not None]
            if timed:
                return max(timed, key=lambda index: (self._known(index).value, -index))
        return max(waiting, key=lambda index: (self._settles(index, set(waiting)), self._speed(index), -index))

    def skipped(self) -> list[Skip]:
        """The points that were not judged, with the reason of each."""
        return [
            Skip(entry.parameters, self._settled_by(index) or "the search ended before it")
            for index, entry in enumerate(self._entries)
            if entry.verdict is None
        ]

    def _settles(self, index: int, waiting: set[int]) -> int:
        """How many open points a verdict settles at the least, the point itself included."""
        speed = self._entries[index].estimate
        slower = {
            other for other in waiting if speed and (known := self._entries[other].estimate) and known.high < speed.low
        }
        return 1 + min(len(waiting & (self._no_faster[index] | slower)), len(waiting & self._at_least_as_lossy[index]))

    def _settled_by(self, index: int) -> str | None:
        """Why a point is ruled out; None while it isn't."""
        for passed in self._with(PointVerdict.PASSED):
            if index in self._no_faster[passed] and not self._is_measured_faster(index, passed):
                return f"no faster than {_named(self.points[passed])}, which passed"
        for rejected in (other for other, entry in enumerate(self._entries) if entry.verdict is PointVerdict.REJECTED):
            if index in self._at_least_as_lossy[rejected]:
                return f"at least as lossy as {_named(self.points[rejected])}, which was rejected"
        return self._outrun(index)

    def _outrun(self, index: int) -> str | None:
        best = self.best
        if best is None:
            return None
        fastest = self._known(best)
        own = self._entries[index].estimate
        if own is not None:
            if not is_slower(own, fastest):
                return None
            return f"measured slower ({own.value:.2f}x) than {_named(self.points[best])} ({fastest.value:.2f}x)"
        for other, entry in enumerate(self._entries):
            if entry.estimate and is_slower(entry.estimate, fastest) and index in self._no_faster[other]:
                return (
                    f"no faster than {_named(entry.parameters)}, measured slower ({entry.estimate.value:.2f}x) than"
                    f" {_named(self.points[best])} ({fastest.value:.2f}x)"
                )
        return None

    def _is_measured_faster(self, index: int, than: int) -> bool:
        own, other = self._entries[index].estimate, self._entries[than].estimate
        return own is not None and other is not None and own.low > other.high

    def _with(self, *verdicts: PointVerdict) -> Iterator[int]:
        return (index for index in sorted(self._among) if self._entries[index].verdict in verdicts)

    def _known(self, index: int) -> IntervalEstimate:
        estimate = self._entries[index].estimate
        assert estimate is not None, "a point is timed before it is judged"
        return estimate

    def _speed(self, index: int) -> float:
        estimate = self._entries[index].estimate
        return 0.0 if estimate is None else estimate.value


def is_slower(own: IntervalEstimate, fastest: IntervalEstimate) -> bool:
    """Whether a point is clearly slower than the fastest. It takes LEAST_PAIRS pairs: one call may be an outlier."""
    return own.pairs >= LEAST_PAIRS and own.high < fastest.low


def _named(parameters: Parameters) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in parameters.items())
