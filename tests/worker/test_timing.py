"""Paired timing: order, lease, when it ends, and a neighbour's disturbance."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.worker.devices import CallTime, Instant, TorchDevice
from boundd.worker.isolation import Attestation
from boundd.worker.statistics import IntervalEstimate
from boundd.worker.timing import (
    MAX_DISTURBED,
    MIN_PAIRS,
    Pair,
    PairSeries,
    PairTimer,
    StopRule,
    TimedCall,
    Timing,
    is_steady,
    noise_of,
)

FEWEST = 5


class Bench:
    """Calls that take made-up time on a clock of their own, and note what happened."""

    def __init__(self, baseline_s: float = 2.0, variant_s: float = 1.0, spread: float = 0.0) -> None:
        self.now_s = 0.0
        self.events: list[str] = []
        self.durations_s = {"baseline": baseline_s, "variant": variant_s}
        self.spread = spread
        self.source = random.Random(1)
        self.verdicts: list[Isolation] = []

    def call(self, what: str) -> CallTime:
        """Run one call."""
        took_s = self.durations_s[what] * math.exp(self.source.gauss(0, self.spread))
        self.now_s += took_s
        self.events.append(what)
        return CallTime(took_s, took_s, loop_s=took_s / 2)

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
        """Note that the monitor looks."""
        self.events.append("look")

    def judge(self, timed: Sequence[CallTime]) -> Attestation:
        """The next verdict; alone, if there is none left."""
        assert timed
        return Attestation(self.verdicts.pop(0) if self.verdicts else Isolation.EXCLUSIVE)

    def next_pair(self) -> tuple[TimedCall, TimedCall]:
        """A pair's calls."""
        return lambda: self.call("baseline"), lambda: self.call("variant")

    def timer(self, **rule: float) -> PairTimer:
        """A timer on this bench."""
        settled = {"min_pairs": FEWEST, "max_pairs": 40, "precision": 0.01, "budget_s": 0.0} | rule
        return PairTimer(self, self, StopRule(**settled), seed=1, clock=lambda: self.now_s)  # type: ignore[arg-type]

    def measure(self, timer: PairTimer) -> Timing:
        """Time the two calls."""
        series = PairSeries(timer.rule.fewest, 0.02, seed=1)
        timer.measure(series, self.next_pair)
        return series.timing()


def test_pairs_are_whole_and_their_order_varies() -> None:
    """Each pair runs under one hold of the lease, one of each, sometimes one first and sometimes the other; the
    monitor looks before each."""
    bench = Bench(spread=0.1)
    timing = bench.measure(bench.timer(max_pairs=12, precision=0.0))
    holds = " ".join(bench.events).removeprefix("look [ ").removesuffix(" ]").split(" ] look [ ")
    pairs = [hold.split() for hold in holds]
    assert len(pairs) == 12 == timing.speedup.pairs
    assert {tuple(pair) for pair in pairs} == {("baseline", "variant"), ("variant", "baseline")}


def test_what_was_timed_is_told() -> None:
    """The whole call, and the loop within it."""
    bench = Bench()
    timing = bench.measure(bench.timer())
    assert timing.speedup.value == 2
    assert timing.median_of(lambda pair: pair.variant.wall_s) == 1
    assert timing.median_loop_ratio() == 2
    assert Timing(timing.speedup, [Pair(CallTime(2, 2), CallTime(1, 1))], timing.attest, 0).median_loop_ratio() is None


def test_a_long_pair_gives_the_device_back_in_between() -> None:
    """When two calls would hold the device for over a minute, each has a hold of its own, once that is known."""
    bench = Bench(baseline_s=50, variant_s=40)
    bench.measure(bench.timer(min_pairs=3, max_pairs=3))
    text = " ".join(bench.events)
    assert text.count("[") == 6
    assert "baseline variant" not in text
    assert "variant baseline" not in text


def test_it_ends_when_the_interval_is_narrow() -> None:
    """Quiet calls need the fewest pairs, noisy ones more, and hopeless ones end at the most, saying how wide it is."""
    quiet, noisy, wild = Bench(spread=0.001), Bench(spread=0.02), Bench(spread=0.3)
    assert quiet.measure(quiet.timer()).speedup.pairs == FEWEST
    timing = noisy.measure(noisy.timer())
    assert FEWEST < timing.speedup.pairs < 40
    assert timing.speedup.relative_half_width <= 0.01
    last = wild.measure(wild.timer())
    assert last.speedup.pairs == 40
    assert last.speedup.relative_half_width > 0.01


def test_it_ends_when_enough_is_known() -> None:
    """The caller may have seen enough: a point that is clearly slower needs no narrow interval."""
    bench = Bench(spread=0.2)
    timer = bench.timer()
    series = PairSeries(timer.rule.fewest, 0.02, seed=1)
    timer.measure(series, bench.next_pair, lambda estimate: estimate.high < 100)
    assert series.pairs == FEWEST


@pytest.mark.parametrize(("budget_s", "pairs"), [(1000.0, 20), (0.001, MIN_PAIRS), (10.0, 4)])
def test_the_budget_ends_it_but_not_before_the_fewest(budget_s: float, pairs: int) -> None:
    """A budget that is spent at once still gets two pairs; an ample one gets all."""
    bench = Bench()
    rule = {"min_pairs": 20, "max_pairs": 20, "precision": 0.0, "budget_s": budget_s}
    assert bench.measure(bench.timer(**rule)).speedup.pairs == pairs


def test_disturbed_pairs_are_timed_again() -> None:
    """They don't count, and how many there were is said."""
    bench = Bench()
    bench.verdicts = [Isolation.CONTENDED, Isolation.EXCLUSIVE, Isolation.CONTENDED]
    timing = bench.measure(bench.timer())
    assert (timing.isolation, timing.dropped, timing.speedup.pairs) == ("exclusive", 2, FEWEST)
    assert bench.events.count("variant") == FEWEST + 2


def test_a_neighbour_that_stays_is_reported() -> None:
    """After MAX_DISTURBED pairs they count like the others, and the timing is contended; an unsure one is taken as it
    is."""
    bench = Bench()
    bench.verdicts = [Isolation.CONTENDED] * 100
    timing = bench.measure(bench.timer())
    assert timing.isolation == "contended"
    assert timing.speedup.pairs <= FEWEST + MAX_DISTURBED
    unsure = Bench()
    unsure.verdicts = ["unknown"]
    assert unsure.measure(unsure.timer()).isolation == "unknown"


def test_rough_pairs_share_a_baseline() -> None:
    """Six variants: two baseline calls, one pair each, in a shuffled order, under one hold of the lease each."""
    bench = Bench()
    timer = bench.timer()
    series = [PairSeries(FEWEST, 0.02, seed=1) for _ in range(6)]
    timer.add_rough_pairs(lambda: bench.call("baseline"), [(one, lambda: bench.call("variant")) for one in series])
    assert bench.events.count("baseline") == 2
    assert bench.events.count("[") == 2
    assert [one.pairs for one in series] == [1] * 6
    assert all(one.estimate().value == 2 for one in series)


def test_a_rough_interval_is_as_wide_as_the_noise() -> None:
    """Three standard errors of single A/A pairs, narrower with more pairs, never under one per cent; from the fewest
    pairs on it is their own."""
    pair = Pair(CallTime(2, 2), CallTime(1, 1))
    series = PairSeries(FEWEST, 0.1, seed=1)
    series.add(pair, Attestation(Isolation.EXCLUSIVE), 3.0)
    assert series.estimate() == IntervalEstimate(2.0, 2 / math.exp(0.3), 2 * math.exp(0.3), 1)
    for _ in range(3):
        series.add(pair, Attestation(Isolation.EXCLUSIVE), 3.0)
    assert series.estimate().high == pytest.approx(2 * math.exp(0.15))
    series.add(pair, Attestation(Isolation.EXCLUSIVE), 3.0)
    assert series.estimate() == IntervalEstimate(2.0, 2.0, 2.0, 5)
    quiet = PairSeries(FEWEST, 0.0, seed=1)
    quiet.add(pair, Attestation(Isolation.EXCLUSIVE), 3.0)
    assert quiet.estimate().high == pytest.approx(2 * math.exp(0.01))


def test_the_noise_is_that_of_single_pairs() -> None:
    """The median distance of their logarithms from 0, as a normal deviation; equals have none, and an outlier among
    them changes nothing."""
    equal = Pair(CallTime(1, 1), CallTime(1, 1))
    assert noise_of([equal, equal]) == 0
    up, down = Pair(CallTime(1.1, 1), CallTime(1, 1)), Pair(CallTime(1, 1), CallTime(1.1, 1))
    wild = Pair(CallTime(20, 1), CallTime(1, 1))
    assert noise_of([up, down]) == pytest.approx(math.log(1.1) / 0.6745)
    assert noise_of([up, down, up, down, wild]) == pytest.approx(math.log(1.1) / 0.6745)


def test_one_slow_call_makes_no_point_slow() -> None:
    """Of a few pairs the fastest bounds the interval from above."""
    series = PairSeries(FEWEST, 0.01, seed=1)
    series.add(Pair(CallTime(2, 2), CallTime(3, 3)), Attestation(Isolation.EXCLUSIVE), 1.0)
    series.add(Pair(CallTime(2, 2), CallTime(1, 1)), Attestation(Isolation.EXCLUSIVE), 1.0)
    assert series.estimate().high > 2


def test_steady_is_three_calls_alike() -> None:
    """What came before doesn't matter; two are too few."""
    assert is_steady([9.0, 1.0, 1.02, 0.99])
    assert not is_steady([1.0, 1.0])
    assert not is_steady([1.0, 1.0, 1.2])


def test_the_devices_own_clock_wins() -> None:
    """On a GPU the events' time is compared, on one thread of a CPU its own; else the wall's."""
    assert CallTime(2.0, 0.1).elapsed_s == 2.0
    assert CallTime(2.0, 0.1, device_s=1.5).elapsed_s == 1.5
    start, end = Instant(wall_s=1.0, cpu_s=1.0), Instant(wall_s=3.0, cpu_s=2.5)
    assert TorchDevice("cpu", 1).between(start, end) == 1.5
    assert TorchDevice("cpu", 2).between(start, end) == 2.0
    value, watch = TorchDevice("cpu", 1).time(lambda: sum(range(100_000)))
    assert value == sum(range(100_000))
    assert 0 < watch.elapsed_s <= watch.cpu_s
