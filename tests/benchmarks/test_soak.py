"""The soak, small: the daemon lives through everything that it does to one, and what it concludes is right.

Twenty seconds say nothing of slopes: that is for `make soak`. To see the conclusions fail, plant a leak: `slope` and
`is_too_steep` are tried on made samples here, with and without one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import soak

MIB = 1024**2
LIVELY = {
    *("retries", "requests", "followers", "stalled followers", "logs read", "reloads", "hang-ups"),
}
DESCRIPTORS = 200
"""Far more than everybody who asks at a time could hold; a leak by every follower or log reader would go past it."""


def sample(at_s: float, **changes: float) -> soak.Sample:
    """A quiet daemon's."""
    quiet = soak.Sample(at_s, 60 * MIB, 45 * MIB, 2 * MIB, 20, 8, 4 * MIB, 10 * MIB, 0.002)
    return replace(quiet, **changes)


def soaked(of: Callable[[float, random.Random], soak.Sample], duration_s: float = 3600.0) -> soak.Soaked:
    """An hour of samples, one every four seconds."""
    rng = random.Random(1)
    samples = [of(at_s, rng) for at_s in range(0, int(duration_s), 4)]
    return soak.Soaked(samples, Counter(retries=1), duration_s, 100, MIB, 0)


def test_a_slope_is_found_with_its_error() -> None:
    """Ten an hour under noise of one, and its error is of the size of what is missing to ten."""
    rng = random.Random(3)
    times = [float(second) for second in range(3600)]
    found = soak.slope(times, [100 + 10 * at / 3600 + rng.gauss(0, 1) for at in times])
    assert abs(found.per_hour - 10) < 4 * found.error_per_hour < 2
    assert abs(found.mean - 105) < 0.2


def test_noise_is_no_leak() -> None:
    """Nor is a level, or a step in the part of the run that is left out."""

    def quiet(at_s: float, rng: random.Random) -> soak.Sample:
        warm_bytes = (40 if at_s < 600 else 45) * MIB
        return sample(at_s, uss_bytes=warm_bytes + rng.gauss(0, MIB), descriptors=20 + rng.randrange(6))

    assert soaked(quiet).failures() == []


@pytest.mark.parametrize(
    ("leaks", "title"),
    [
        ({"uss_bytes": 6 * MIB}, "memory of its own"),
        ({"descriptors": 12}, "descriptors"),
        ({"threads": 4}, "threads"),
    ],
)
def test_a_leak_fails_the_run(leaks: dict[str, float], title: str) -> None:
    """So much an hour, under noise, is found and named."""

    def leaking(at_s: float, rng: random.Random) -> soak.Sample:
        quiet = sample(at_s)
        return replace(
            quiet,
            **{name: getattr(quiet, name) + much * at_s / 3600 + rng.gauss(0, 0.3) for name, much in leaks.items()},
        )

    run = soaked(leaking)
    assert [failure for failure in run.failures() if title in failure]
    assert "TOO STEEP" in run.report()


def test_what_else_fails_the_run() -> None:
    """A log that nobody copies back, a daemon that ended badly, an answer that was refused."""
    good = soaked(lambda at_s, _rng: sample(at_s))
    assert good.failures() == []
    grown = replace(good, samples=[*good.samples, sample(3600.0, wal_bytes=soak.WAL_LIMIT_BYTES + 1)])
    assert grown.failures() == ["the write-ahead log outgrew its limit"]
    assert replace(good, exit_code=1).failures() == ["the daemon ended with 1"]
    assert replace(good, errors=["refused: no"]).failures() == ["refused: no"]


def test_twenty_seconds(tmp_path: Path) -> None:
    """Everybody gets what they came for, the daemon ends well, and nobody's descriptors stay behind."""
    run = soak.Soak(tmp_path, seed=7).run(20.0)
    assert run.errors == []
    assert run.exit_code == 0
    assert set(run.counts) == LIVELY
    assert run.attempts > 0
    assert len(run.samples) > 5
    assert max(each.descriptors for each in run.samples) < DESCRIPTORS
    assert max(each.wal_bytes for each in run.samples) < soak.WAL_LIMIT_BYTES
    assert max(each.rss_bytes for each in run.samples) < 80 * MIB, "DESIGN.md's limit for the daemon"
    assert "memory of its own" in run.report()
