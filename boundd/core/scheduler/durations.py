"""How long a cell's next attempt will take, before and after boundd has seen its like run.

Rules: what was measured of the same work on the same kind of device beats what was measured of other work, scaled by
steps x samples, and that beats the prior: a fixed start plus steps x samples x the size of the model. The prior's rate
is corrected by whatever was measured at all, so that its proportions remain and its unit becomes this machine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING

from boundd.core.memory.footprint import weights_bytes
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.history import Duration, Durations
from boundd.core.model.workload import Workload, workload_of

if TYPE_CHECKING:
    from boundd.core.model.state import State

START_S = 30.0
"""Python, torch and the model's files, before the first step."""
STEP_SAMPLE_GIB_S = 0.7
"""Seconds a step, a sample and a GiB of weights. SD1.5 makes an image of 50 steps in 3.3 s on an A5000 (DeepCache's
paper), so 0.033 s a step and GiB; a cell makes each of its samples about twenty times, once a point of the search."""
RECENT = 8


@dataclass(frozen=True, slots=True)
class Expectation:
    """A duration in seconds, and where the number is from."""

    wall_s: float
    source: str


def expected_duration_s(state: State, record: CellRecord, device_name: str) -> float:
    """Seconds that the cell's next attempt is expected to take on a device of this name; never 0."""
    return expectation(state.durations, workload_of(record), device_name).wall_s


def expected_left_s(state: State, attempt: Attempt, boot_s: float) -> float:
    """Seconds that a live attempt is expected to go on, at `boot_s`; 0 where it is over its time already.

    A worker's own progress counts once it has done a tenth: what it took so far, carried on.
    """
    elapsed_s = max(0.0, boot_s - attempt.started_boot_s)
    if attempt.progress_total and attempt.progress_done * 10 >= attempt.progress_total:
        return elapsed_s * max(0, attempt.progress_total - attempt.progress_done) / attempt.progress_done
    device = state.devices.get(attempt.device)
    name = device.reading.name if device is not None else ""
    return max(0.0, expected_duration_s(state, state.cells[attempt.key], name) - elapsed_s)


def expectation(durations: Durations, work: Workload, device_name: str) -> Expectation:
    """The expected duration of a piece of work, and how it is known."""
    return expectations(durations, device_name).of(work)


def expectations(durations: Durations, device_name: str) -> Expectations:
    """What is expected on devices of a name; the same as the last time where nothing was learned since."""
    known = _LATEST.get(device_name)
    # The same object holds the same values: it is never changed.
    if known is None or known.durations is not durations:
        if len(_LATEST) >= NAMES_KEPT:
            _LATEST.clear()
        known = _LATEST[device_name] = Expectations(durations, device_name)
    return known


class Expectations:
    """Expected durations on devices of one name, of many pieces of work: what they share is worked out once."""

    def __init__(self, durations: Durations, device_name: str) -> None:
        self.durations = durations
        self._device_name = device_name
        self._found: dict[tuple[object, ...], Expectation] = {}
        self._rates: dict[tuple[str, str, str], float] = {}
        self._by_model: dict[str, list[tuple[list[Duration], str]]] = {}
        self._correction: tuple[float, str] | None = None

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
                source = f"{len(same)} attempt(s) of the same work{elsewhere}"
                return Expectation(_median(d.wall_s for d in same), source)
            for found, of_what in ((same_method, "this method"), (known, "other methods")):
                if found:
                    seconds = self._rate(work, found, of_what + elsewhere) * work.steps * work.samples
                    return Expectation(seconds, f"scaled from {len(found)} attempt(s) of {of_what}{elsewhere}")
        prior_s = _prior_s(work.architecture, work.steps, work.samples)
        correction, source = self._corrected()
        return Expectation(prior_s * correction, source)

    def _known(self, model: str) -> list[tuple[list[Duration], str]]:
        """What was measured of a model, on such devices and then on any, with the words that say which."""
        found = self._by_model.get(model)
        if found is None:
            anywhere = list(self.durations.about(model))
            here = [d for d in anywhere if d.device_name == self._device_name]
            found = self._by_model[model] = [(here, ""), (anywhere, " on another kind of device")]
        return found

    def _rate(self, work: Workload, found: Iterable[Duration], of_what: str) -> float:
        """Seconds a step and sample."""
        kind = (work.model, work.method if of_what.startswith("this method") else "", of_what)
        rate = self._rates.get(kind)
        if rate is None:
            rate = self._rates[kind] = _median(d.wall_s / max(1, d.steps * d.samples) for d in found)
        return rate

    def _corrected(self) -> tuple[float, str]:
        """What the prior is multiplied by, and the words for it."""
        if self._correction is None:
            others = list(self.durations)
            self._correction = (1.0, "a prior: steps x samples x the model's size")
            if others:
                factor = _median(d.wall_s / _prior_s(d.model, d.steps, d.samples) for d in others[-RECENT:])
                self._correction = (factor, f"a prior, corrected by {len(others)} attempt(s) of other models")
        return self._correction


NAMES_KEPT = 64
_LATEST: dict[str, Expectations] = {}
"""By a device's name: a plan asks for every queue's and every attempt's, and little was learned since the last one."""


def duration_of(work: Workload, device_name: str, wall_s: float) -> Duration:
    """What an attempt that took `wall_s` seconds teaches."""
    return Duration(work.model, work.method, device_name, work.steps, work.samples, work.batch_size, wall_s)


def _amount(duration: Duration) -> tuple[int, int, int]:
    return duration.steps, duration.samples, duration.batch_size


@lru_cache(maxsize=4096)
def _prior_s(model: str, steps: int, samples: int) -> float:
    return START_S + STEP_SAMPLE_GIB_S * steps * samples * weights_bytes(model) / 1024**3


def _median(values: Iterable[float]) -> float:
    """The median of the latest few: a machine changes, and one slow night must not count for ever."""
    latest: Sequence[float] = list(values)[-RECENT:]
    return max(1e-3, median(latest))
