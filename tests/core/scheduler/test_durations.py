"""How long a cell is expected to take, before and after its like has run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from boundd.catalogue.outcomes import Isolation
from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.events import AttemptEnded, AttemptProgressed, Now, Wake
from boundd.core.model.history import NEWEST_KEPT, Duration, Durations
from boundd.core.model.outcomes import Measurement, Outcome, Verdict
from boundd.core.model.records import SaveDuration
from boundd.core.model.state import State
from boundd.core.model.workload import workload_of
from boundd.core.scheduler.durations import START_S, expectation, expected_duration_s, expected_left_s


def record(**parameters: Any) -> CellRecord:
    """A pending cell; SD1.5 with ToMe, 20 steps, 32 samples, batch 4, but for what is said otherwise."""
    usual = {"model": "SD1.5", "steps": 20, "num_samples": 32, "method": "tome", "batch_size": 4}
    return CellRecord(Cell.of({**usual, **parameters}, ["model"]), CellPolicy())


def took(wall_s: float, *, device: str = "Fake", **parameters: Any) -> Duration:
    """An attempt at this cell that took so long."""
    work = workload_of(record(**parameters))
    return Duration(work.model, work.method, device, work.steps, work.samples, work.batch_size, wall_s)


def expected(of: CellRecord, *known: Duration) -> float:
    """The expected seconds."""
    return expected_duration_s(State(durations=Durations.of(known)), of, "Fake")


def test_the_prior_goes_with_steps_samples_and_size() -> None:
    """Beyond the start, twice the steps or the samples is twice as long, and a larger model longer by its weights."""
    plain = expected(record()) - START_S
    assert expected(record(steps=40)) - START_S == 2 * plain
    assert expected(record(num_samples=64)) - START_S == 2 * plain
    assert 3 < (expected(record(model="SDXL")) - START_S) / plain < 3.5
    assert 300 < plain < 3600, "a cell is minutes, not seconds or days"


def test_the_same_work_beats_other_work_beats_the_prior() -> None:
    """The median of the same work; else scaled by steps x samples; another device's where there is nothing else."""
    cell = record()
    known = [took(100.0), took(110.0), took(5000.0), took(1.0, device="Other"), took(7.0, method="tgate")]
    assert expected(cell, *known) == 110.0
    assert expected(record(steps=40), *known) == 220.0
    assert expected(record(method="deepcache"), took(7.0, method="tgate")) == 7.0
    assert expected(cell, took(50.0, device="Other")) == 50.0
    assert expectation(Durations.of([took(50.0, device="Other")]), workload_of(cell), "Fake").source.elsewhere


def test_other_models_correct_the_prior() -> None:
    """A machine that took half the prior for one model is expected to take half for the others too."""
    half = took(expected(record()) / 2)
    assert expected(record(model="SDXL"), half) == expected(record(model="SDXL")) / 2


def test_the_latest_count() -> None:
    """Old times are forgotten: a machine changes."""
    slow, fast = [took(1000.0)] * 20, [took(10.0)] * 8
    assert expected(record(), *slow, *fast) == 10.0
    assert len(Durations.of([took(1.0)] * 100).about("SD1.5")) == NEWEST_KEPT


def test_a_success_is_learned_and_progress_tells_what_is_left(
    make_cell: Callable[..., Cell], make_state: Callable[..., State]
) -> None:
    """What is left comes from the expected duration first, then from the worker's own progress; ends are kept."""
    state, _ = step(make_state([make_cell()], [24]), Wake(), Now(100, 0))
    (attempt,) = state.attempts.values()
    whole_s = expected_duration_s(state, state.cells[attempt.key], "Fake")
    assert expected_left_s(state, attempt, 110.0) == whole_s - 10
    assert expected_left_s(state, attempt, 100.0 + 2 * whole_s) == 0
    state, _ = step(state, AttemptProgressed(attempt.id, 5, 20), Now(160, 0))
    assert expected_left_s(state, state.attempts[attempt.id], 160.0) == 180.0
    good = Verdict(Outcome.SUCCEEDED, Measurement(2.0, None, None, Isolation.EXCLUSIVE), wall_s=321.0)
    state, effects = step(state, AttemptEnded(attempt.id, good), Now(421, 0))
    assert expected_duration_s(state, replace(state.cells[attempt.key]), "Fake") == 321.0
    assert any(isinstance(r, SaveDuration) and r.duration.wall_s == 321.0 for r in effects[0].records)  # type: ignore[union-attr]
