"""Every planted bug is found by the simulation, by the promise that it breaks, within few seeds."""

from __future__ import annotations

import pytest

from boundd.sim.trace import Violation
from tests.sim.bugs import BUGS, Bug
from tests.sim.seeds import run_seed

BUDGET = 250
"""Seeds, the same from 0 on for every bug; `test_campaign` shows that they are clean without one."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a promise of its own, and the same seed keeps every promise without it."""
    with monkeypatch.context() as patch:
        bug.plant(patch)
        seed, broken = _first_broken(range(BUDGET))
    assert broken in bug.promises, f"seed {seed}"
    run_seed(seed)


def test_there_are_enough_of_them() -> None:
    """Twenty at least, all different, and together they break most promises."""
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 20
    assert len(frozenset.union(*(bug.promises for bug in BUGS))) >= 20


def _first_broken(seeds: range) -> tuple[int, str]:
    for seed in seeds:
        try:
            run_seed(seed)
        except Violation as violation:
            return seed, violation.promise
    raise AssertionError(f"{len(seeds)} seeds, and nothing was noticed")
