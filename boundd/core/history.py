"""What ended attempts taught: peaks of memory and durations, found by what they are about.

Rules: persistent, like all of the state; the newest `KEPT` of a subject are held here, all of them in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from immutables import Map

KEPT = 64
"""So many of a subject tell all that its next estimate uses."""


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


@dataclass(frozen=True, slots=True)
class Observations:
    """All that is known of memory."""

    by_subject: Map[str, tuple[Observation, ...]] = field(default_factory=Map)

    @classmethod
    def of(cls, seen: Iterable[Observation]) -> Observations:
        """Those that a store kept, oldest first."""
        by_subject: dict[str, list[Observation]] = {}
        for each in seen:
            by_subject.setdefault(each.subject, []).append(each)
        return cls(Map({subject: tuple(found[-KEPT:]) for subject, found in by_subject.items()}))

    def add(self, seen: Observation) -> Observations:
        """With one more."""
        return Observations(self.by_subject.set(seen.subject, (*self.about(seen.subject), seen)[-KEPT:]))

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
        return cls(Map({model: tuple(found[-KEPT:]) for model, found in by_model.items()}))

    def add(self, seen: Duration) -> Durations:
        """With one more."""
        return Durations(self.by_model.set(seen.model, (*self.about(seen.model), seen)[-KEPT:]))

    def about(self, model: str) -> tuple[Duration, ...]:
        """Those of a model, oldest first."""
        return self.by_model.get(model, ())

    def __iter__(self) -> Iterator[Duration]:
        return (each for model in sorted(self.by_model) for each in self.by_model[model])
