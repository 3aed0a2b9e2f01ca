"""Paired timing: order, lease, budget, and a neighbour's disturbance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from boundd.protocol.lines import Isolation
from boundd.worker.devices import Device, Stopwatch
from boundd.worker.timing import MIN_PAIRS, RETIMINGS, PairTimer, Timing


class Bench:
    """Calls that take made-up time on a clock of their own, and note what happened."""

    def __init__(self, baseline_s: float = 2.0, variant_s: float = 1.0) -> None:
        self.now_s = 0.0
        self.events: list[str] = []
        self.durations_s = {"baseline": baseline_s, "variant": variant_s}
        self.verdicts: list[Isolation] = []

    def call(self, what: str) -> Stopwatch:
        """Run one call."""
        self.now_s += self.durations_s[what]
        self.events.append(what)
        return Stopwatch(self.durations_s[what], self.durations_s[what])

    @property
    def waited_s(self) -> float:
        """A lease that never waits."""
        return 0.0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Note the hold."""
        self.events.append("[")
        yield
        self.events.append("]")

    shared = exclusive

    def begin(self) -> None:
        """Note that the witness looks."""
        self.events.append("look")

    def judge(self, timed: Sequence[Stopwatch]) -> Isolation:
        """The next verdict; alone, if there is none left."""
        assert timed
        return self.verdicts.pop(0) if self.verdicts else "exclusive"

    def timer(self, repeats: int = 5, budget_s: float = 0.0) -> PairTimer:
        """A timer on this bench."""
        return PairTimer(self, self, repeats, budget_s, seed=1, clock=lambda: self.now_s)

    def measure(self, timer: PairTimer) -> Timing:
        """Time the two calls."""
        return timer.measure(lambda _: self.call("baseline"), lambda _: self.call("variant"))


def test_pairs_are_whole_and_their_order_varies() -> None:
    """Each pair runs under one hold of the lease, one of each, sometimes one first and sometimes the
    other."""
    bench = Bench()
    timing = bench.measure(bench.timer(repeats=12))
    text = " ".join(bench.events)
    assert text.startswith("look [ ")
    pairs = [part.split() for part in text.removeprefix("look [ ").removesuffix(" ]").split(" ] [ ")]
    assert len(pairs) == 12 == timing.speedup.pairs
    assert {tuple(pair) for pair in pairs} == {("baseline", "variant"), ("variant", "baseline")}
    assert timing.speedup.value == 2
    assert timing.median_of(lambda pair: pair.variant.wall_s) == 1
    assert timing.median_of(lambda pair: pair.baseline.elapsed_s) == 2


def test_a_long_pair_gives_the_device_back_in_between() -> None:
    """When a pair takes over a minute, each call is timed under a hold of its own."""
    bench = Bench(baseline_s=50, variant_s=20)
    bench.measure(bench.timer(repeats=2))
    first, second = " ".join(bench.events).split(" ", 5)[:5], bench.events[5:]
    assert first[1] == "["
    assert second[0] == second[3] == "["
    assert second[2] == second[5] == "]"


def test_the_budget_ends_it_but_not_before_the_fewest() -> None:
    """A budget that is spent at once still gets the fewest pairs; an ample one gets all."""
    ample = Bench()
    assert ample.measure(ample.timer(repeats=50, budget_s=1000)).speedup.pairs == 50
    poor = Bench()
    assert poor.measure(poor.timer(repeats=50, budget_s=0.001)).speedup.pairs == MIN_PAIRS
    modest = Bench()
    assert modest.measure(modest.timer(repeats=50, budget_s=10)).speedup.pairs == 4
    few = Bench()
    assert few.measure(few.timer(repeats=1)).speedup.pairs == MIN_PAIRS


def test_a_disturbed_measurement_is_made_again() -> None:
    """What counts is the last one; how often it took is said."""
    bench = Bench()
    bench.verdicts = ["contended", "exclusive"]
    timing = bench.measure(bench.timer(repeats=3))
    assert (timing.isolation, timing.retimings, timing.speedup.pairs) == ("exclusive", 1, 3)
    assert bench.events.count("variant") == 6


def test_a_neighbour_that_stays_is_reported() -> None:
    """After the last try it is contended, and says so; 'unknown' is not tried again."""
    bench = Bench()
    bench.verdicts = ["contended"] * 10
    timing = bench.measure(bench.timer(repeats=2))
    assert (timing.isolation, timing.retimings) == ("contended", RETIMINGS)
    unsure = Bench()
    unsure.verdicts = ["unknown"]
    assert unsure.measure(unsure.timer()).retimings == 0


def test_the_budget_bounds_the_retiming_too() -> None:
    """No new try is begun once the budget is spent."""
    bench = Bench()
    bench.verdicts = ["contended"] * 10
    assert bench.measure(bench.timer(repeats=2, budget_s=5)).retimings == 0


def test_the_devices_own_clock_wins() -> None:
    """On a GPU the events' time is compared, on one thread of a CPU its own; else the wall's."""
    assert Stopwatch(2.0, 0.1).elapsed_s == 2.0
    assert Stopwatch(2.0, 0.1, device_s=1.5).elapsed_s == 1.5
    one, several = (Device("cpu", threads).time(lambda: 7) for threads in (1, 2))
    assert one[0] == several[0] == 7
    assert one[1].elapsed_s == one[1].cpu_s
    assert several[1].elapsed_s == several[1].wall_s
