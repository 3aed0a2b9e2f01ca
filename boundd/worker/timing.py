"""Times an accelerated variant against the baseline in interleaved pairs, with exclusive use of the device.

A pair is one baseline call and one variant call, one right after the other, in random order. Drift (of clocks, of
temperature) then affects both alike. The whole call is timed, from the prompts to the decoded images, and within it the
denoising loop. Timing ends when the confidence interval is narrow enough, or at a limit (`StopRule`).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from boundd.catalogue.outcomes import Isolation
from boundd.protocol.lease import Lease
from boundd.worker.devices import CallTime
from boundd.worker.isolation import Attestation, IsolationMonitor, merge
from boundd.worker.statistics import IntervalEstimate, median_ratio

MIN_PAIRS = 2
MAX_DISTURBED = 5
"""How many disturbed pairs of a point are timed again. After that the point is reported as contended."""
MAX_HELD_S = 60.0
"""How long the exclusive lease may be held at a stretch; longer only if a single call takes longer."""
VARIANTS_A_BASELINE = 4
"""How many variants share one baseline call in rough timing. With more, too much time passes between the two."""
ROUGH_DEVIATIONS = 3
"""Half the width of a rough interval, in standard errors. The standard deviation is that of the A/A run's pairs."""
MIN_ROUGH_SHARE = 0.01
"""The least half width, as a share: an A/A run of few pairs may understate the noise."""
MEDIAN_OF_NORMAL = 0.6745
"""The median absolute deviation of a normal variable, in standard deviations."""
STEADY_SHARE = 0.05
"""A warm-up ends when the last STEADY_CALLS calls lie within this share of their median."""
STEADY_CALLS = 3

TimedCall = Callable[[], CallTime]
"""Runs one call and returns how long it took."""
NextPair = Callable[[], tuple[TimedCall, TimedCall]]
"""The next pair's baseline and variant, ready to run."""


@dataclass(frozen=True)
class Pair:
    """One call of the baseline and one of the variant, close together in time."""

    baseline: CallTime
    variant: CallTime

    @property
    def ratio(self) -> float:
        """Baseline over variant."""
        return self.baseline.elapsed_s / self.variant.elapsed_s


@dataclass(frozen=True)
class Timing:
    """The speed-up of a variant, the pairs it was computed from, and what was seen of other users of the device."""

    speedup: IntervalEstimate
    pairs: Sequence[Pair]
    attest: Attestation
    dropped: int
    """Pairs that were disturbed and timed again."""

    @property
    def isolation(self) -> Isolation:
        """Whether anything else used the device."""
        return self.attest.isolation

    def median_of(self, what: Callable[[Pair], float]) -> float:
        """The median of a quantity over the pairs."""
        return statistics.median(what(pair) for pair in self.pairs)

    def median_loop_ratio(self) -> float | None:
        """The median ratio of the denoising loops alone; None where a loop was not seen."""
        ratios = [
            before / after
            for pair in self.pairs
            if (before := pair.baseline.loop_s) is not None and (after := pair.variant.loop_s) is not None
        ]
        return statistics.median(ratios) if len(ratios) == len(self.pairs) else None


@dataclass(frozen=True)
class StopRule:
    """When a point has been timed enough.

    Attributes:
        min_pairs: the fewest pairs; at least MIN_PAIRS are timed.
        max_pairs: the most pairs.
        precision: timing ends when half the interval's width, as a share of the speed-up, is at most this; 0: never.
        budget_s: seconds after which no further pair is started, once there are MIN_PAIRS; 0 for no limit.
    """

    min_pairs: int
    max_pairs: int
    precision: float
    budget_s: float

    @property
    def fewest(self) -> int:
        """Fewest pairs for an interval by the bootstrap."""
        return max(MIN_PAIRS, self.min_pairs)

    @property
    def most(self) -> int:
        """Most pairs."""
        return max(self.fewest, self.max_pairs)


class PairSeries:
    """The pairs of one point that were timed so far.

    Args:
        fewest: with fewer pairs the interval comes from the noise of the A/A run.
        noise: the standard deviation of the logarithm of a single pair's ratio, as the A/A run showed it; None during
            that run.
        seed: of the bootstrap.
    """

    def __init__(self, fewest: int, noise: float | None, seed: int) -> None:
        self._fewest = fewest
        self._noise = noise
        self._seed = seed
        self._clean: list[tuple[Pair, Attestation]] = []
        self._disturbed: list[tuple[Pair, Attestation]] = []
        self.spent_s = 0.0

    @property
    def pairs(self) -> int:
        """Number of pairs that count towards the speed-up."""
        return len(self._counted())

    @property
    def tries(self) -> int:
        """Number of pairs that were timed, including disturbed ones."""
        return len(self._clean) + len(self._disturbed)

    def add(self, pair: Pair, attest: Attestation, took_s: float) -> None:
        """Add a pair, with what was seen of other users of the device meanwhile."""
        (self._disturbed if attest.isolation is Isolation.CONTENDED else self._clean).append((pair, attest))
        self.spent_s += took_s

    def timing(self) -> Timing:
        """The timing so far; needs at least one pair. Disturbed pairs count only if there are too few others."""
        counted = self._counted()
        attest = merge([attest for _, attest in counted])
        return Timing(self.estimate(), [pair for pair, _ in counted], attest, self.tries - len(counted))

    def estimate(self) -> IntervalEstimate:
        """The speed-up. With few pairs its interval comes from the noise of the A/A run, else from a bootstrap."""
        pairs = [pair for pair, _ in self._counted()]
        if len(pairs) >= self._fewest or self._noise is None:
            return median_ratio([p.baseline.elapsed_s for p in pairs], [p.variant.elapsed_s for p in pairs], self._seed)
        ratios = [pair.ratio for pair in pairs]
        width = math.exp(max(MIN_ROUGH_SHARE, ROUGH_DEVIATIONS * self._noise / math.sqrt(len(pairs))))
        # One slow call of the variant must not make a fast point look slow: the fastest pair bounds it.
        return IntervalEstimate(
            statistics.median(ratios), statistics.median(ratios) / width, max(ratios) * width, len(pairs)
        )

    def _counted(self) -> list[tuple[Pair, Attestation]]:
        enough = len(self._clean) >= min(self._fewest, max(1, self.tries - MAX_DISTURBED))
        return self._clean if enough else [*self._clean, *self._disturbed]


@dataclass
class PairTimer:
    """Times pairs while holding the exclusive lease.

    Attributes:
        seed: for the random order within pairs.
        clock: seconds, monotonic.
    """

    lease: Lease
    monitor: IsolationMonitor
    rule: StopRule
    seed: int
    clock: Callable[[], float] = field(default=time.monotonic)

    def __post_init__(self) -> None:
        self._order = random.Random(self.seed)  # noqa: S311 - shuffling, not secrecy
        self._longest_s = 0.0

    def measure(
        self, series: PairSeries, next_pair: NextPair, is_enough: Callable[[IntervalEstimate], bool] = lambda _: False
    ) -> None:
        """Time pairs until the stop rule or `is_enough` is met. Up to MAX_DISTURBED disturbed pairs are timed again."""
        while not self.is_done(series, is_enough):
            self.add_pair(series, next_pair)

    def is_done(self, series: PairSeries, is_enough: Callable[[IntervalEstimate], bool]) -> bool:
        """Whether the series needs no further pair."""
        rule = self.rule
        if series.tries >= MIN_PAIRS and self.is_spent(series):
            return True
        if series.pairs < rule.fewest:
            return False
        if series.tries >= rule.most + MAX_DISTURBED or series.pairs >= rule.most:
            return True
        estimate = series.estimate()
        return estimate.relative_half_width <= rule.precision or is_enough(estimate)

    def is_spent(self, series: PairSeries) -> bool:
        """Whether the series' budget is spent."""
        return self.rule.budget_s > 0 and series.spent_s >= self.rule.budget_s

    def add_pair(self, series: PairSeries, next_pair: NextPair) -> None:
        """Time one pair."""
        baseline, variant = next_pair()
        started_s = self.clock()
        turns = self._order.sample([0, 1], 2)
        watches, attest = self._run([baseline, variant], turns)
        series.add(Pair(watches[0], watches[1]), attest, self.clock() - started_s)

    def add_rough_pairs(self, baseline: TimedCall, variants: Sequence[tuple[PairSeries, TimedCall]]) -> None:
        """One pair for each variant; up to VARIANTS_A_BASELINE of them share a baseline call.

        Args:
            baseline: one unaccelerated call.
            variants: one accelerated call each, all of the same size as the baseline's.
        """
        for start in range(0, len(variants), VARIANTS_A_BASELINE):
            group = variants[start : start + VARIANTS_A_BASELINE]
            calls = [baseline, *(call for _, call in group)]
            started_s = self.clock()
            watches, attest = self._run(calls, self._order.sample(range(len(calls)), len(calls)))
            took_s = (self.clock() - started_s) / len(group)
            for (series, _), watch in zip(group, watches[1:], strict=True):
                series.add(Pair(watches[0], watch), attest, took_s)

    def _run(self, calls: Sequence[TimedCall], turns: Sequence[int]) -> tuple[list[CallTime], Attestation]:
        """Run the calls in the given order under the exclusive lease, which is released in between if held too long."""
        watches: dict[int, CallTime] = {}
        waiting = list(turns)
        self.monitor.begin()
        while waiting:
            with self.lease.exclusive():
                taken_s = self.clock()
                is_first = True
                while waiting and (is_first or self.clock() - taken_s + self._longest_s <= MAX_HELD_S):
                    turn = waiting.pop(0)
                    watches[turn] = calls[turn]()
                    self._longest_s = max(self._longest_s, watches[turn].wall_s)
                    is_first = False
        in_order = [watches[turn] for turn in range(len(calls))]
        return in_order, self.monitor.judge(in_order)


def noise_of(pairs: Iterable[Pair]) -> float:
    """The standard deviation of the logarithm of one A/A pair's ratio.

    Estimated by the median absolute deviation from 0, its known mean, because single calls may be outliers (Rousseeuw &
    Croux, 1993).
    """
    return statistics.median(abs(math.log(pair.ratio)) for pair in pairs) / MEDIAN_OF_NORMAL


def is_steady(calls_s: Sequence[float]) -> bool:
    """Whether a warm-up may end."""
    last = calls_s[-STEADY_CALLS:]
    if len(last) < STEADY_CALLS:
        return False
    middle = statistics.median(last)
    return all(abs(call_s - middle) <= STEADY_SHARE * middle for call_s in last)
