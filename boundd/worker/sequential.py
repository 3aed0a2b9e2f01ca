"""Rejecting a point before all of its samples are made: a sequential paired test. Pure.

A point's score loss is within the tolerance when the mean excess over all N samples,

    excess_i = (1 − tolerance) · baseline_i − accelerated_i,

is not above 0. The N samples are a finite population, drawn without replacement, so after n of them the mean of all
is estimated with the standard error s / √n · √(1 − n/N) (Cochran, Sampling Techniques, 3rd ed., 1977, section 2.6),
and the point is rejected where Student's t says that it is above 0.

The error: a search may look at every point after every batch. Each look gets an equal share (Bonferroni) of half of
ERROR, so the chance that a search rejects any point which all samples would have accepted is at most half of ERROR for
normal differences, and the other half is room for others. Their long tail is on the side of loss (a sample can lose
its whole score, and gains little), which makes the test reject later, not sooner. Nothing is ever accepted early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

ERROR = 0.01
"""Of one search, over all of its points and looks."""
SPENT_SHARE = 0.5
"""Of ERROR: the rest is room for differences that are not normal."""
MIN_SAMPLES = 8
"""With fewer, the spread that was seen says too little about the spread there is."""


@dataclass(frozen=True)
class SequentialTest:
    """The test of one search.

    Attributes:
        tolerance: the largest score loss that passes.
        level: the error allowed to one look at one point.
    """

    tolerance: float
    level: float

    @classmethod
    def of(cls, tolerance: float, points: int, samples: int, batch_size: int) -> SequentialTest:
        """The test for a search over `points` points, of `samples` samples made in batches."""
        looks = sum(1 for made in range(batch_size, samples, batch_size) if made >= MIN_SAMPLES)
        return cls(tolerance, ERROR * SPENT_SHARE / max(1, points * looks))

    def excess(self, baseline_score: float, accelerated_score: float) -> float:
        """How much more than the tolerance one sample lost, in points of score; negative for less."""
        return (1 - self.tolerance) * baseline_score - accelerated_score

    def rejects(self, excess: Sequence[float], samples: int) -> bool:
        """Whether what was seen is enough to say that all samples together lose too much.

        Args:
            excess: of the samples seen so far.
            samples: how many there are in all.
        """
        seen = len(excess)
        if seen < MIN_SAMPLES or seen >= samples:
            return False
        mean = math.fsum(excess) / seen
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in excess) / (seen - 1))
        if mean <= 0 or deviation == 0:
            # Identical differences hold no information about how others may differ.
            return False
        error = deviation / math.sqrt(seen) * math.sqrt(1 - seen / samples)
        return mean / error >= critical_t(self.level, seen - 1)


@cache
def critical_t(level: float, freedom: int) -> float:
    """The t that Student's t with `freedom` degrees of freedom exceeds with the probability `level`, below 1/2."""
    low, high = 0.0, 2.0
    while upper_tail(high, freedom) > level:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, freedom) > level else (low, middle)
    return high


def upper_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t with `freedom` degrees of freedom, for t > 0.

    By the regularised incomplete beta function (Abramowitz & Stegun, 26.7.1).
    """
    from mpmath import betainc  # comes with torch's own requirements

    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)) / 2
