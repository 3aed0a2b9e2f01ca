"""`make bench-libraries`, small: what boundd computes by itself is what the libraries would.

Seen to fail: with a window of 9 pixels in `boundd.worker.quality`, where scikit-image is installed; with `freedom` and
`freedom - 1` exchanged in `sequential.upper_tail`.
"""

from __future__ import annotations

import pytest

from benchmarks import libraries

JOBS = {case.job: [each for each in libraries.CASES if each.job == case.job] for case in libraries.CASES}


@pytest.mark.parametrize("job", JOBS)
def test_answers_agree(job: str) -> None:
    """To 0.001: torchmetrics pads its images otherwise."""
    costs = [cost for case in JOBS[job] if (cost := libraries.measured(case, rounds=1)) is not None]
    assert costs
    assert all(cost.answer == pytest.approx(costs[0].answer, abs=1e-3) for cost in costs)


def test_sizes_that_are_no_sizes_are_refused() -> None:
    """Which is why boundd reads them itself."""
    lines = libraries.sizes()
    assert sum("boundd refused" in line for line in lines) > sum("ByteSize refused" in line for line in lines)


def test_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each that is installed."""
    monkeypatch.setattr(libraries, "MAP_SIZES", (5,))
    assert any("immutables.Map" in line for line in libraries.maps())
