"""Medians, means and bootstrap intervals of paired measurements. Pure: the seed is an argument.

Intervals are percentile bootstraps over the pairs (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13). With very few pairs such intervals are too narrow, so the number of pairs is always reported too.
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
        ValueError: when the baseline's mean is not above 0, so that a relative loss is undefined.
    """
    if statistics.fmean(baseline) <= 0:
        raise ValueError("the baseline's mean score is not above 0")
    pairs = list(zip(baseline, variant, strict=True))

    def loss(sample: Sequence[tuple[float, float]]) -> float:
        before = statistics.fmean(pair[0] for pair in sample)
        after = statistics.fmean(pair[1] for pair in sample)
        # A resample that holds only zeros has no relative loss; it counts as 0.
        return (before - after) / before if before > 0 else 0.0

    return _estimate(pairs, loss, seed)


def _estimate(sample: Sequence[Item], of: Callable[[Sequence[Item]], float], seed: int) -> IntervalEstimate:
    source = random.Random(seed)  # noqa: S311 - resampling, not secrecy
    values = sorted(of(source.choices(sample, k=len(sample))) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return IntervalEstimate(of(sample), values[cut], values[-1 - cut], len(sample))
