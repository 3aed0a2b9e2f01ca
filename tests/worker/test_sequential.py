"""The sequential test: its error over a whole search, its power, and the t distribution under it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from boundd.worker.sequential import ERROR, MIN_SAMPLES, SequentialTest, upper_tail

SAMPLES = 32
BATCH = 4
POINTS = 30


@pytest.mark.parametrize(
    ("t", "freedom", "probability"),
    [(1.0, 1, 0.25), (1.895, 7, 0.05), (2.998, 7, 0.01), (1.696, 31, 0.05), (6.314, 1, 0.05), (0.0001, 9, 0.5)],
)
def test_the_tail_is_students(t: float, freedom: int, probability: float) -> None:
    """Against the printed table (Abramowitz & Stegun, table 26.10)."""
    assert upper_tail(t, freedom) == pytest.approx(probability, abs=2e-4)


def rejected_at(test: SequentialTest, excess: Sequence[float]) -> int | None:
    """After how many samples a point is rejected, looked at after every batch; None when it never is."""
    return next((n for n in range(BATCH, SAMPLES + 1, BATCH) if test.rejects(excess[:n], SAMPLES)), None)


def losses_of(draw: Callable[[random.Random], float]) -> Callable[[random.Random], list[float]]:
    """A population of excesses around what `draw` gives, moved so that its mean is exactly 0: the worst point that
    still has to pass."""

    def population(source: random.Random) -> list[float]:
        raw = [draw(source) for _ in range(SAMPLES)]
        mean = sum(raw) / SAMPLES
        return [value - mean for value in raw]

    return population


POPULATIONS = {
    "normal": losses_of(lambda source: source.gauss(0, 5)),
    "a tail of loss": losses_of(lambda source: source.expovariate(1 / 4) + source.gauss(0, 1)),
    "a few samples lose everything": losses_of(lambda source: 60.0 if source.random() < 0.1 else source.gauss(0, 2)),
    "even": losses_of(lambda source: source.uniform(-5, 5)),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_search_hardly_ever_rejects_what_would_pass(name: str) -> None:
    """Every one of 30 points is at the very edge of the tolerance, which is the worst case: of 300 searches 1% may
    reject anything."""
    test = SequentialTest.of(0.02, POINTS, SAMPLES, BATCH)
    source = random.Random(7)
    searches = 300
    wrong = sum(
        any(rejected_at(test, POPULATIONS[name](source)) is not None for _ in range(POINTS)) for _ in range(searches)
    )
    assert wrong <= ERROR * searches


def test_an_unshared_level_would_err() -> None:
    """The control: the same searches by a test that spends the whole error on each look reject many."""
    test = SequentialTest(0.02, ERROR)
    source = random.Random(7)
    wrong = sum(
        any(rejected_at(test, POPULATIONS["normal"](source)) is not None for _ in range(POINTS)) for _ in range(50)
    )
    assert wrong > 5


def test_a_bad_point_is_rejected_long_before_the_end() -> None:
    """Ten points of score lost, with a deviation of five: after half of the samples, most of the time."""
    test = SequentialTest.of(0.02, POINTS, SAMPLES, BATCH)
    source = random.Random(3)
    ends = [rejected_at(test, [source.gauss(10, 5) for _ in range(SAMPLES)]) for _ in range(100)]
    assert sum(1 for end in ends if end is not None and end <= SAMPLES // 2) >= 80


def test_too_little_is_never_enough() -> None:
    """Fewer samples than the least, all samples (which are judged as they are), and differences without spread."""
    test = SequentialTest(0.02, 0.01)
    terrible = [50.0 + index for index in range(SAMPLES)]
    assert not test.rejects(terrible[: MIN_SAMPLES - 1], SAMPLES)
    assert test.rejects(terrible[:MIN_SAMPLES], SAMPLES)
    assert not test.rejects(terrible, SAMPLES)
    assert not test.rejects([50.0] * 16, SAMPLES)


def test_the_excess_is_over_the_tolerance() -> None:
    """A sample that lost exactly the tolerance is at 0."""
    test = SequentialTest(0.05, 0.01)
    assert test.excess(80.0, 76.0) == pytest.approx(0)
    assert test.excess(80.0, 70.0) == pytest.approx(6)


@pytest.mark.parametrize(("samples", "batch", "looks"), [(32, 4, 6), (32, 8, 3), (8, 4, 0), (10, 1, 2)])
def test_every_look_gets_its_share(samples: int, batch: int, looks: int) -> None:
    """Looks are after each batch from MIN_SAMPLES on, and not after the last."""
    test = SequentialTest.of(0.02, 10, samples, batch)
    assert test.level == pytest.approx(ERROR / 2 / max(1, 10 * looks))
