"""The footprint report: the estimate for each kind of work, and how good earlier estimates were."""

from __future__ import annotations

from dataclasses import dataclass

from boundd.core.memory.footprint import Estimate, estimate_of
from boundd.core.model.state import State
from boundd.core.model.workload import Workload, subject_on
from boundd.core.scheduler.ledger import matrix_device_model

ERRORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class KnownFootprint:
    """The estimate for one kind of work on one device model, with its observations."""

    work: Workload
    device_name: str
    expected: Estimate
    observations: int
    """Attempts that reported their peak. Attempts that ran out of memory are counted in `ran_out`."""
    largest_peak_bytes: int | None
    ran_out: int
    error_percent: tuple[float, ...]
    """By how many per cent the latest estimates exceeded the peaks that followed, newest last."""


def known_footprints(state: State) -> tuple[KnownFootprint, ...]:
    """Report every kind of work of the matrix on every device model that it may run on."""
    model = matrix_device_model(state)
    names = sorted({d.reading.name for d in state.devices.values() if model in (None, d.reading.name)})
    works = sorted(state.cells.examples, key=lambda work: (work.subject, work.pixels, -work.batch_size))
    kinds = {(work.subject, work.batch_size, work.pixels): work for work in reversed(works)}
    return tuple(_known(state, kinds[kind], name) for kind in sorted(kinds) for name in names)


def _known(state: State, work: Workload, device_name: str) -> KnownFootprint:
    key = state.cells.examples[work]
    policy = state.cells[key].policy
    expected = estimate_of(work, policy.footprint_bytes, device_name, state.observations, state.rules.torch)
    seen = [
        o
        for o in state.observations.about(subject_on(work, device_name))
        if (o.batch_size, o.pixels) == (work.batch_size, work.pixels)
    ]
    peaks = [o for o in seen if not o.censored]
    errors = tuple(100 * (o.estimate_bytes - o.peak_bytes) / o.peak_bytes for o in peaks if o.estimate_bytes)
    return KnownFootprint(
        work,
        device_name,
        expected,
        len(peaks),
        max((o.peak_bytes for o in peaks), default=None),
        len(seen) - len(peaks),
        errors[-ERRORS_SHOWN:],
    )
