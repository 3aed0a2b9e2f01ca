"""Estimates of how long a cell's next attempt will take.

An estimate comes from the first of these that applies: attempts of the same workload on the same device model; other
work of the same model, scaled by steps x samples; the prior, which is a fixed start-up time plus steps x samples x
the model's size. The prior is multiplied by a correction factor, the median ratio of measured durations to their
priors, so that it fits this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from boundd.core.memory.footprint import weights_bytes
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.history import Duration, Durations
from boundd.core.model.sources import DurationSource, Source
from boundd.core.model.workload import Workload

if TYPE_CHECKING:
    from boundd.core.model.state import State

START_S = 30.0
"""Time to import torch and load the model."""
STEP_SAMPLE_GIB_S = 0.7
"""Seconds for each step, sample and GiB of weights. SD1.5 makes an image of 50 steps in 3.3 s on an A5000
(DeepCache's paper), so 0.033 s for each step and GiB; a cell makes each of its samples about 20 times, once for each
point of the search."""
RECENT = 8


@dataclass(frozen=True, slots=True)
class Expectation:
    """An estimated duration and its source."""

    wall_s: float
    source: Source


def expected_duration_s(state: State, record: CellRecord, device_name: str) -> float:
    """Estimated duration of the cell's next attempt on a device of this name; never 0."""
    return expectations(state, device_name).of(state.cells.memo.workload_of(record)).wall_s


def expected_left_s(state: State, attempt: Attempt, boot_s: float) -> float:
    """Estimated remaining time of a live attempt at `boot_s`; 0 if it is overdue.

    The worker's own progress is used once it is at least a tenth.
    """
    elapsed_s = max(0.0, boot_s - attempt.started_boot_s)
    if attempt.progress_total and attempt.progress_done * 10 >= attempt.progress_total:
        return elapsed_s * max(0, attempt.progress_total - attempt.progress_done) / attempt.progress_done
    device = state.devices.get(attempt.device)
    name = device.reading.name if device is not None else ""
    return max(0.0, expected_duration_s(state, state.cells[attempt.key], name) - elapsed_s)


def expectation(durations: Durations, work: Workload, device_name: str) -> Expectation:
    """The expected duration of a piece of work, and how it is known."""
    return Expectations(durations, device_name).of(work)


def expectations(state: State, device_name: str) -> Expectations:
    """Estimates for devices of a name, reused as long as no duration has been added."""
    latest = state.cells.memo.table(_Latest)
    known = latest.get(device_name)
    # Durations are immutable, so the same object has the same values.
    if known is None or known.durations is not state.durations:
        if len(latest) >= NAMES_KEPT:
            latest.clear()
        known = latest[device_name] = Expectations(state.durations, device_name)
    return known


class Expectations:
    """Estimated durations on devices of one name. Values that workloads share are computed once."""

    def __init__(self, durations: Durations, device_name: str) -> None:
        self.durations = durations
        self._device_name = device_name
        self._found: dict[tuple[object, ...], Expectation] = {}
        self._rates: dict[tuple[object, ...], tuple[float, Source]] = {}
        self._by_model: dict[str, list[tuple[list[Duration], bool]]] = {}
        self._correction: tuple[float, Source] | None = None

    def of(self, work: Workload) -> Expectation:
        """The expected duration of a piece of work, and how it is known."""
        kind = (work.model, work.architecture, work.method, work.steps, work.samples, work.batch_size)
        known = self._found.get(kind)
        if known is None:
            known = self._found[kind] = self._worked_out(work)
        return known

    def _worked_out(self, work: Workload) -> Expectation:
        for known, elsewhere in self._known(work.model):
            same_method = [d for d in known if d.method == work.method]
            same = [d for d in same_method if _amount(d) == (work.steps, work.samples, work.batch_size)]
            if same:
                source = Source(DurationSource.SAME_WORK, len(same), elsewhere=elsewhere)
                return Expectation(_median(d.wall_s for d in same), source)
            for found, kind in ((same_method, DurationSource.SAME_METHOD), (known, DurationSource.SAME_MODEL)):
                if found:
                    rate, source = self._rate(work, found, kind, elsewhere)
                    return Expectation(rate * work.steps * work.samples, source)
        prior_s = _prior_s(work.architecture, work.steps, work.samples)
        correction, source = self._corrected()
        return Expectation(prior_s * correction, source)

    def _known(self, model: str) -> list[tuple[list[Duration], bool]]:
        """Measured durations of a model: first on this device model (False), then on any (True)."""
        found = self._by_model.get(model)
        if found is None:
            anywhere = list(self.durations.about(model))
            here = [d for d in anywhere if d.device_name == self._device_name]
            found = self._by_model[model] = [(here, False), (anywhere, True)]
        return found

    def _rate(
        self, work: Workload, found: Sequence[Duration], kind: DurationSource, elsewhere: bool
    ) -> tuple[float, Source]:
        """Seconds for each step and sample, with the source."""
        about = (work.model, work.method if kind is DurationSource.SAME_METHOD else "", kind, elsewhere)
        rate = self._rates.get(about)
        if rate is None:
            seconds = _median(d.wall_s / max(1, d.steps * d.samples) for d in found)
            rate = self._rates[about] = seconds, Source(kind, len(found), elsewhere=elsewhere)
        return rate

    def _corrected(self) -> tuple[float, Source]:
        """The factor that the prior is multiplied by, with the source."""
        if self._correction is None:
            others = list(self.durations)
            self._correction = (1.0, Source(DurationSource.PRIOR))
            if others:
                factor = _median(d.wall_s / _prior_s(d.model, d.steps, d.samples) for d in others[-RECENT:])
                self._correction = (factor, Source(DurationSource.OTHER_MODELS, len(others)))
        return self._correction


NAMES_KEPT = 64


class _Latest(dict[str, Expectations]):
    """Estimates by the device's name."""


def duration_of(work: Workload, device_name: str, wall_s: float) -> Duration:
    """The record of a successful attempt's duration."""
    return Duration(work.model, work.method, device_name, work.steps, work.samples, work.batch_size, wall_s)


def _amount(duration: Duration) -> tuple[int, int, int]:
    return duration.steps, duration.samples, duration.batch_size


def _prior_s(model: str, steps: int, samples: int) -> float:
    return START_S + STEP_SAMPLE_GIB_S * steps * samples * weights_bytes(model) / 1024**3


def _median(values: Iterable[float]) -> float:
    """The median of the latest `RECENT` values: a machine changes, and one slow night must not count for ever."""
    latest: Sequence[float] = list(values)[-RECENT:]
    return max(1e-3, median(latest))
