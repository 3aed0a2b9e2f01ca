"""The history that estimates are learned from: peaks of device memory, and durations of attempts.

These are persistent (immutable) collections, like all of the state. They hold the newest `NEWEST_KEPT` entries of
each subject; the store keeps all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from immutables import Map

NEWEST_KEPT = 64
"""Entries of one subject that are kept in memory. The estimates use no more than these."""
VARIATION_PEAKS = 4
"""The variation of peaks is used once this many repeated measurements of the same work exist, over all subjects."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The peak memory of one attempt. If it ran out of memory (`censored`), `peak_bytes` is a lower bound."""

    subject: str
    """What the memory depends on besides the fields below, including the device's name (`workload.subject_on`)."""
    batch_size: int
    peak_bytes: int
    censored: bool = False
    pixels: int = 0
    """Pixels of one image; 0 in records of the first version."""
    torch: str = ""
    """The version of torch that the attempt ran with; empty if unknown."""
    host_peak_bytes: int | None = None
    """The worker's peak host memory; None if it didn't report it."""
    estimate_bytes: int | None = None
    """The estimate made before the attempt ran, used to report the estimates' error; None if there was none."""

    @property
    def batch_pixels(self) -> int:
        """Pixels of a whole batch. Peak memory is linear in this number."""
        return self.batch_size * self.pixels


@dataclass(frozen=True, slots=True)
class Duration:
    """The duration of one successful attempt, and of what work."""

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
    """Peaks beyond the first of the same batch size and resolution."""
    permille: int
    """The widest spread between peaks of the same batch size and resolution, relative to the largest of them,
    rounded up."""


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
    """All observations of device memory, by subject."""

    by_subject: Map[str, tuple[Observation, ...]] = field(default_factory=Map)
    spreads: Map[str, _Spread] = field(default_factory=Map)
    """The spread of each subject that has at least two peaks of the same batch size and resolution."""
    variation_permille: int | None = None
    """The widest spread over all subjects; None if there are too few repeated measurements."""

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
    """All durations of attempts, by model."""

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
