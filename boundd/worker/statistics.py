"""Medians, means and bootstrap intervals of paired measurements. Pure: the seed is an argument.

Intervals are percentile bootstraps (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)
over the pairs. With very few pairs they are honest about nothing but the spread seen, so the number of pairs
is always beside them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

RESAMPLES = 1000
CONFIDENCE = 0.95

Item = TypeVar("Item")


@dataclass(frozen=True)
class IntervalEstimate:
    """A value with its 95% interval, and the number of pairs both come from."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a share of the value."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else float("inf")


def median_ratio(baseline_s: Sequence[float], variant_s: Sequence[float], seed: int) -> IntervalEstimate:
    """The median of baseline / variant over the pairs: a speed-up.

    Args:
        baseline_s: seconds of the baseline, one a pair, above 0.
        variant_s: seconds of the variant, in the same order.
        seed: of the resampling.
    """
    ratios = [before / after for before, after in zip(baseline_s, variant_s, strict=True)]
    return _estimate(ratios, statistics.median, seed)


def relative_loss(baseline: Sequence[float], variant: Sequence[float], seed: int) -> IntervalEstimate:
    """(baseline − variant) / baseline of the means, over the paired scores of the same seeds.

    Raises:
        ValueError: when the baseline's mean is not above 0: there is nothing to lose a share of.
    """
    if statistics.fmean(baseline) <= 0:
        raise ValueError("the baseline's mean score is not above 0")
    pairs = list(zip(baseline, variant, strict=True))

    def loss(sample: Sequence[tuple[float, float]]) -> float:
        before = statistics.fmean(pair[0] for pair in sample)
        after = statistics.fmean(pair[1] for pair in sample)
        # A resample of zeros alone says nothing; it is counted as no loss rather than dividing by zero.
        return (before - after) / before if before > 0 else 0.0

    return _estimate(pairs, loss, seed)


def _estimate(sample: Sequence[Item], of: Callable[[Sequence[Item]], float], seed: int) -> IntervalEstimate:
    source = random.Random(seed)  # noqa: S311 - resampling, not secrecy
    values = sorted(of(source.choices(sample, k=len(sample))) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return IntervalEstimate(of(sample), values[cut], values[-1 - cut], len(sample))
