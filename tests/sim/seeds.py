"""Many seeds, one after the other: what they add up to, and which of them broke a promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from boundd.sim.trace import Counts, Outcomes, Violation
from tests.sim.daemon import simulate
from tests.sim.generate import random_world

REPLAY_EVERY = 25
"""So many seeds for each one that is run twice and compared line by line."""


@dataclass(slots=True)
class Report:
    """What came of a range of seeds."""

    seeds: int = 0
    replayed: int = 0
    counts: Counts = field(default_factory=Counts)
    failures: dict[int, str] = field(default_factory=dict)
    """Seed to what went wrong."""

    def add(self, other: Report) -> None:
        """Add another range."""
        self.seeds += other.seeds
        self.replayed += other.replayed
        self.counts.add(other.counts)
        self.failures.update(other.failures)


def run_seed(seed: int, *, log: list[str] | None = None) -> Outcomes:
    """One seed's world, with every promise checked.

    Raises:
        Violation: a promise was broken.
    """
    world, rules = random_world(seed)
    return simulate(world, rules, seed=seed, log=log)


def run_seeds(seeds: Iterable[int]) -> Report:
    """Every seed; what goes wrong in one is written down and doesn't stop the others."""
    report = Report()
    for seed in seeds:
        report.seeds += 1
        twice = seed % REPLAY_EVERY == 0
        try:
            lines: list[str] | None = [] if twice else None
            report.counts.add(run_seed(seed, log=lines).counts)
            if twice:
                report.replayed += 1
                again: list[str] = []
                run_seed(seed, log=again)
                if again != lines:
                    raise Violation("replay", "the same seed gave another run")
        except Exception as error:  # an error of the core's own is a finding as well
            report.failures[seed] = f"{type(error).__name__}: {error}"
    return report
