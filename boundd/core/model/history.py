"""What ended attempts taught: peaks of memory and durations, found by what they are about.

Rules: persistent, like all of the state; the newest `NEWEST_KEPT` of a subject are held here, all of them in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from immutables import Map

NEWEST_KEPT = 64
"""So many of a subject tell all that its next estimate uses."""
VARIATION_PEAKS = 4
"""So many peaks beyond the first of just the same work, over all works, tell how much peaks vary here."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One attempt's memory: its peak, or, where it ran out (`censored`), what the peak was at least."""

    subject: str
    """The footprint's key: what the memory depends on beside the numbers below, device name included."""
    batch_size: int
    peak_bytes: int
    censored: bool = False
    pixels: int = 0
    """Of one image; 0 in what the first version kept."""
    torch: str = ""
    """The version that it ran with; empty where nobody knows."""
    host_peak_bytes: int | None = None
    """The most host memory that the worker held; None where it didn't say."""
    estimate_bytes: int | None = None
    """What had been expected of it before it ran, for the error of the estimates; None where nothing was."""

    @property
    def batch_pixels(self) -> int:
        """Pixels of a whole batch: what peaks are linear in."""
        return self.batch_size * self.pixels


@dataclass(frozen=True, slots=True)
class Duration:
    """How long an attempt that succeeded took, and of what work."""

    model: str
    method: str
    device_name: str
    steps: int
    samples: int
    batch_size: int
    wall_s: float


class _Spread(NamedTuple):
    """How much the peaks of one subject vary."""

    more_peaks: int
    """Beyond the first of just the same work."""
    permille: int
    """The widest that those of the same work lie apart, of the largest of them, rounded up."""


_NO_SPREAD = _Spread(0, 0)


def _spread_of(found: Iterable[Observation]) -> _Spread:
    by_work: dict[tuple[int, int], list[int]] = {}
    for each in found:
        if not each.censored and each.peak_bytes > 0:
            by_work.setdefault((each.batch_size, each.pixels), []).append(each.peak_bytes)
    return _Spread(
        sum(len(peaks) - 1 for peaks in by_work.values()),
        max((-(-1000 * (max(peaks) - min(peaks)) // max(peaks)) for peaks in by_work.values()), default=0),
    )


@dataclass(frozen=True, slots=True)
class Observations:
    """All that is known of memory."""

    by_subject: Map[str, tuple[Observation, ...]] = field(default_factory=Map)
    spreads: Map[str, _Spread] = field(default_factory=Map)
    """How much the peaks of a subject vary, where there are two of the same work."""
    variation_permille: int | None = None
    """The widest that peaks of just the same work lie apart, of any work that was seen; None where too few were."""

    @classmethod
    def of(cls, seen: Iterable[Observation]) -> Observations:
        """Those that a store kept, oldest first."""
        by_subject: dict[str, list[Observation]] = {}
        for each in seen:
            by_subject.setdefault(each.subject, []).append(each)
        kept = Map({subject: tuple(found[-NEWEST_KEPT:]) for subject, found in by_subject.items()})
        spreads = {subject: _spread_of(found) for subject, found in kept.items()}
        return cls._with(kept, Map({subject: spread for subject, spread in spreads.items() if spread.more_peaks}))

    @classmethod
    def _with(cls, by_subject: Map[str, tuple[Observation, ...]], spreads: Map[str, _Spread]) -> Observations:
        enough = sum(each.more_peaks for each in spreads.values()) >= VARIATION_PEAKS
        return cls(by_subject, spreads, max(each.permille for each in spreads.values()) if enough else None)

    def add(self, seen: Observation) -> Observations:
        """With one more."""
        found = (*self.about(seen.subject), seen)[-NEWEST_KEPT:]
        by_subject, spread = self.by_subject.set(seen.subject, found), _spread_of(found)
        if spread == self.spreads.get(seen.subject, _NO_SPREAD):
            return Observations(by_subject, self.spreads, self.variation_permille)
        return self._with(by_subject, self.spreads.set(seen.subject, spread))

    def about(self, subject: str) -> tuple[Observation, ...]:
        """Those of a subject, oldest first."""
        return self.by_subject.get(subject, ())

    def __iter__(self) -> Iterator[Observation]:
        return (each for subject in sorted(self.by_subject) for each in self.by_subject[subject])


@dataclass(frozen=True, slots=True)
class Durations:
    """All that is known of how long attempts take."""

    by_model: Map[str, tuple[Duration, ...]] = field(default_factory=Map)

    @classmethod
    def of(cls, seen: Iterable[Duration]) -> Durations:
        """Those that a store kept, oldest first."""
        by_model: dict[str, list[Duration]] = {}
        for each in seen:
            by_model.setdefault(each.model, []).append(each)
        return cls(Map({model: tuple(found[-NEWEST_KEPT:]) for model, found in by_model.items()}))

    def add(self, seen: Duration) -> Durations:
        """With one more."""
        return Durations(self.by_model.set(seen.model, (*self.about(seen.model), seen)[-NEWEST_KEPT:]))

    def about(self, model: str) -> tuple[Duration, ...]:
        """Those of a model, oldest first."""
        return self.by_model.get(model, ())

    def __iter__(self) -> Iterator[Duration]:
        return (each for model in sorted(self.by_model) for each in self.by_model[model])
