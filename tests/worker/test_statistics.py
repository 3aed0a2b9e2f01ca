"""Paired estimates and their intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.worker.statistics import median_ratio, relative_loss

_times = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=8)


@given(_times, st.integers(0, 5))
def test_the_interval_holds_the_value_and_repeats(pairs: list[tuple[float, float]], seed: int) -> None:
    """low <= value <= high, within the ratios seen, and the same seed gives the same numbers."""
    before, after = zip(*pairs, strict=True)
    estimate = median_ratio(before, after, seed)
    assert estimate.low <= estimate.value <= estimate.high
    ratios = [first / second for first, second in pairs]
    assert min(ratios) <= estimate.low
    assert estimate.high <= max(ratios)
    assert estimate.pairs == len(pairs)
    assert median_ratio(before, after, seed) == estimate


def test_pairing_takes_out_what_both_share() -> None:
    """A machine that gets three times slower half-way through changes nothing about a ratio of two."""
    estimate = median_ratio([2, 2, 6, 6], [1, 1, 3, 3], seed=0)
    assert (estimate.low, estimate.value, estimate.high) == (2, 2, 2)


def test_one_outlier_does_not_move_the_median() -> None:
    """A pair that was disturbed twentyfold leaves the median alone, and shows in the interval."""
    estimate = median_ratio([2, 2, 2, 2, 40], [1, 1, 1, 1, 1], seed=0)
    assert estimate.value == 2
    assert estimate.high == 40


def test_score_loss_is_a_share_of_the_baselines_mean() -> None:
    """(50 − 49) / 50, with an interval around it; better images are a negative loss."""
    estimate = relative_loss([40, 60], [39, 59], seed=0)
    assert estimate.value == pytest.approx(0.02)
    assert estimate.low <= 0.02 <= estimate.high
    assert relative_loss([50], [55], seed=0).value == pytest.approx(-0.1)


def test_nothing_can_be_lost_of_nothing() -> None:
    """A baseline that scores 0 has no relative loss."""
    with pytest.raises(ValueError, match="not above 0"):
        relative_loss([0, 0], [1, 1], seed=0)


def test_equal_scores_lose_nothing_at_any_confidence() -> None:
    """The identity point's loss is 0, from 0 to 0, even where some images score 0."""
    estimate = relative_loss([0, 0, 0, 5], [0, 0, 0, 5], seed=1)
    assert (estimate.low, estimate.value, estimate.high) == (0, 0, 0)
