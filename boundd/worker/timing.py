"""Timing a variant against the baseline: interleaved pairs, alone on the device, until they agree or time is
up.

A pair is one call of each on the same batch, one right after the other, in an order that is shuffled from
pair to pair; what drifts (clocks, temperature, neighbours) then falls on both alike. What is timed is the
whole call, from the prompts to the decoded images.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from boundd.protocol.lease import Lease
from boundd.protocol.lines import Isolation
from boundd.worker.devices import Stopwatch
from boundd.worker.isolation import Witness
from boundd.worker.statistics import Estimate, median_ratio

MIN_PAIRS = 2
RETIMINGS = 2
"""How many times a contended point is timed again."""
MAX_HELD_S = 60.0
"""How long the device's lease may be held alone at a stretch, where a call can be had in less."""

Timed = Callable[[], Stopwatch]
"""Runs one call and says what it took."""


@dataclass(frozen=True)
class Pair:
    """One call of the baseline and one of the variant, on the same batch."""

    baseline: Stopwatch
    variant: Stopwatch


@dataclass(frozen=True)
class Timing:
    """The speed-up of a variant, what it rests on, and whether the device was its alone."""

    speedup: Estimate
    pairs: Sequence[Pair]
    isolation: Isolation
    retimings: int

    def median_of(self, what: Callable[[Pair], float]) -> float:
        """The median over the pairs of something that each of them has."""
        return statistics.median(what(pair) for pair in self.pairs)


@dataclass
class PairTimer:
    """Times pairs under the lease.

    Attributes:
        repeats: pairs to time a point by, at least MIN_PAIRS.
        budget_s: seconds after which no pair is begun, past the fewest; 0 for none.
        seed: of the order within pairs and of the bootstrap.
        clock: seconds, monotonic.
    """

    lease: Lease
    witness: Witness
    repeats: int
    budget_s: float
    seed: int
    clock: Callable[[], float] = field(default=time.monotonic)

    def measure(self, baseline: Callable[[int], Stopwatch], variant: Callable[[int], Stopwatch]) -> Timing:
        """Time pairs; `baseline(i)` and `variant(i)` run the i-th pair's call.

        A measurement that a neighbour disturbed is made again, while the budget lasts; what is reported is
        the last.
        """
        started_s = self.clock()
        retimings = 0
        pairs, isolation = self._round(baseline, variant)
        while isolation == "contended" and retimings < RETIMINGS and not self._is_spent(started_s):
            retimings += 1
            pairs, isolation = self._round(baseline, variant)
        speedup = median_ratio(
            [pair.baseline.elapsed_s for pair in pairs], [pair.variant.elapsed_s for pair in pairs], self.seed
        )
        return Timing(speedup, pairs, isolation, retimings)

    def _round(
        self, baseline: Callable[[int], Stopwatch], variant: Callable[[int], Stopwatch]
    ) -> tuple[list[Pair], Isolation]:
        order = random.Random(self.seed)  # noqa: S311 - shuffling, not secrecy
        started_s = self.clock()
        pairs: list[Pair] = []
        self.witness.begin()
        while len(pairs) < max(MIN_PAIRS, self.repeats):
            if len(pairs) >= MIN_PAIRS and self._is_spent(started_s):
                break
            index = len(pairs)
            longest_s = max((pair.baseline.wall_s + pair.variant.wall_s for pair in pairs), default=0.0)
            pairs.append(self._pair(lambda: baseline(index), lambda: variant(index), order, longest_s))  # noqa: B023
        watches = [watch for pair in pairs for watch in (pair.baseline, pair.variant)]
        return pairs, self.witness.judge(watches)

    def _is_spent(self, started_s: float) -> bool:
        return self.budget_s > 0 and self.clock() - started_s >= self.budget_s

    def _pair(self, baseline: Timed, variant: Timed, order: random.Random, expected_s: float) -> Pair:
        """One pair: under one hold of the lease, unless that would be held too long; then each under its
        own."""
        together = expected_s <= MAX_HELD_S
        outer: AbstractContextManager[Any] = self.lease.exclusive() if together else nullcontext()

        def alone(timed: Timed) -> Stopwatch:
            with nullcontext() if together else self.lease.exclusive():
                return timed()

        with outer:
            if order.random() < 0.5:
                before = alone(baseline)
                return Pair(before, alone(variant))
            after = alone(variant)
            return Pair(alone(baseline), after)
