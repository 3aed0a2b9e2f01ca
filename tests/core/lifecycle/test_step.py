"""The core as a whole: events in, state and effects out, over random histories with crashes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from immutables import Map

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import AttemptState, CellState, EndReason
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Commit, Effect, EndWorker, Spawn
from boundd.core.model.events import (
    AttemptEnded,
    AttemptStarted,
    CancelRequested,
    ConfigLoaded,
    DevicesRead,
    Event,
    Imported,
    ImportRequested,
    Now,
    PauseRequested,
    PointMeasured,
    RetryRequested,
    ShutdownRequested,
    Wake,
)
from boundd.core.model.outcomes import AttemptError, Measurement, Outcome, PointRecord, Verdict
from boundd.core.model.records import SaveCell, SaveEnd, SavePoint
from boundd.core.model.state import Rules, State, sanity_check
from boundd.core.model.transitions import CELL_TRANSITIONS, IllegalTransitionError, Trigger, next_cell_state
from boundd.core.scheduler.planner import plan

GIB = 1024**3
MEASURED = Measurement(2.0, 1.5, {"speedup": 1.5}, Isolation.EXCLUSIVE)
GOOD = Verdict(Outcome.SUCCEEDED, MEASURED, wall_s=3.0)
MakeCell = Callable[..., Cell]
MakeState = Callable[..., State]


def bad(kind: ErrorKind) -> Verdict:
    """A verdict of this kind."""
    outcome = {
        ErrorKind.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY,
        ErrorKind.TIMEOUT: Outcome.TIMED_OUT,
        ErrorKind.LOST: Outcome.LOST,
    }.get(kind, Outcome.FAILED)
    return Verdict(outcome, error=AttemptError(kind, "why", 0.0))


def at(seconds: float) -> Now:
    """An instant."""
    return Now(seconds, seconds)


def records_of(effects: tuple[Effect, ...], kind: type) -> list[object]:
    """The committed records of a kind."""
    return [r for effect in effects if isinstance(effect, Commit) for r in effect.records if isinstance(r, kind)]


def started(make_state: MakeState, cell: Cell) -> tuple[State, str]:
    """A state in which the cell's first attempt runs, and its id."""
    state, effects = step(make_state([cell], [24]), Wake(), at(1))
    assert isinstance(effects[0], Commit), "the intent comes first"
    (spawn,) = [effect for effect in effects if isinstance(effect, Spawn)]
    state, _ = step(state, AttemptStarted(spawn.attempt.id), at(2))
    return state, spawn.attempt.id


def test_a_cell_to_its_end(make_cell: MakeCell, make_state: MakeState) -> None:
    """Placed, started, measured, recorded exactly once."""
    cell = make_cell()
    state, attempt = started(make_state, cell)
    point = PointRecord({"ratio": 0.5}, 1.5, 0.01, Isolation.EXCLUSIVE)
    state, effects = step(state, PointMeasured(attempt, 0, point), at(3))
    assert len(records_of(effects, SavePoint)) == 1
    again, effects = step(state, PointMeasured(attempt, 0, point), at(3))
    assert (again, effects) == (state, ()), "a file read twice is recorded once"
    state, effects = step(state, AttemptEnded(attempt, GOOD), at(4))
    assert len(records_of(effects, SaveEnd)) == 1
    assert state.cells[cell.key].state is CellState.SUCCEEDED
    assert state.idle
    with pytest.raises(KeyError):
        step(state, AttemptEnded(attempt, GOOD), at(5))


def test_cancel_pending_and_running(make_cell: MakeCell, make_state: MakeState) -> None:
    """A pending cell is cancelled at once, a running one once nothing of it is alive."""
    cells = [make_cell(steps=2), make_cell(steps=1)]
    state = make_state(cells, [24], max_cells=1)
    state, _ = step(state, Wake(), at(1))
    state, effects = step(state, CancelRequested(tuple(cell.key for cell in cells)), at(2))
    assert [effect.reason for effect in effects if isinstance(effect, EndWorker)] == [EndReason.CANCEL]
    assert state.cells[cells[1].key].state is CellState.CANCELLED
    (attempt,) = state.attempts.values()
    assert attempt.state is AttemptState.ENDING
    state, _ = step(state, AttemptEnded(attempt.id, bad(ErrorKind.KILLED_BY_SIGNAL)), at(3))
    assert state.cells[cells[0].key].state is CellState.CANCELLED


def test_shutdown_puts_cells_back_uncharged(make_cell: MakeCell, make_state: MakeState) -> None:
    """Ended because the daemon stops: pending again, nothing charged, nothing new started."""
    cell = make_cell()
    state, attempt = started(make_state, cell)
    state, _ = step(state, ShutdownRequested(end_workers=True), at(3))
    state, _ = step(state, AttemptEnded(attempt, bad(ErrorKind.KILLED_BY_SIGNAL)), at(4))
    assert state.cells[cell.key].state is CellState.PENDING
    assert state.cells[cell.key].charged_failures == 0
    assert step(state, Wake(), at(5))[0].attempts == Map()


def test_retry_forgets_the_charges(make_cell: MakeCell, make_state: MakeState) -> None:
    """A person's retry starts from nothing; after running out of memory, alone until its like has been seen to run,
    and with the batch asked for.
    """
    cell = make_cell()
    state, attempt = started(make_state, cell)
    record = replace(state.cells[cell.key], charged_failures=3, batch_size=1)
    state = replace(state, cells=state.cells.set(cell.key, record))
    live = replace(state.attempts[attempt], whole_device=True, batch_size=1)
    state = replace(state, attempts=state.attempts.set(attempt, live))
    state, _ = step(state, AttemptEnded(attempt, bad(ErrorKind.OUT_OF_MEMORY)), at(3))
    assert state.cells[cell.key].state is CellState.OUT_OF_MEMORY
    state, effects = step(state, RetryRequested((cell.key,), batch_size=2), at(4))
    again = state.cells[cell.key]
    assert (again.state, again.charged_failures, again.wanted_batch_size) == (CellState.PENDING, 0, 2)
    (attempt,) = plan(state, at(5)).started
    assert attempt.exclusive
    assert len(records_of(effects, SaveCell)) == 1


def test_an_import_does_not_overrule_a_measurement(make_cell: MakeCell, make_state: MakeState) -> None:
    """Pending cells take what the old file knew; measured ones keep their own."""
    measured, waiting = make_cell(steps=1), make_cell(steps=2)
    state = make_state([measured, waiting], [24])
    (record, _) = state.matrix()
    state = replace(
        state, cells=state.cells.set(measured.key, replace(record, state=CellState.SUCCEEDED, measurement=MEASURED))
    )
    old = Measurement(None, None, None, Isolation.UNKNOWN, imported_upper_bound=2.2)
    state, effects = step(state, ImportRequested((Imported(measured.key, old), Imported(waiting.key, old))), at(1))
    assert len(records_of(effects, SaveCell)) == 1
    assert state.cells[measured.key].measurement == MEASURED
    assert state.cells[waiting.key].state is CellState.SUCCEEDED
    sanity_check(state)


def test_pausing_is_kept_and_starts_nothing(make_cell: MakeCell, make_state: MakeState) -> None:
    """Pause survives in the store and holds everything back."""
    state, effects = step(make_state([make_cell()], [24]), PauseRequested(), at(1))
    assert isinstance(effects[0], Commit)
    assert step(state, Wake(), at(2))[0].attempts == Map()


def test_an_illegal_step_raises() -> None:
    """Every pair that is not in the table."""
    for state in CellState:
        for trigger in Trigger:
            if (state, trigger) not in CELL_TRANSITIONS:
                with pytest.raises(IllegalTransitionError, match=f"{state}.*{trigger}"):
                    next_cell_state(state, trigger)


VERDICTS = [GOOD, GOOD, *(bad(kind) for kind in ErrorKind if kind is not ErrorKind.CANCELLED)]


@pytest.mark.parametrize("seed", range(200))
def test_random_histories_end_well(seed: int) -> None:
    """Random endings, pauses and daemon crashes: the invariants hold after every step, and every cell ends.

    A crash between commit and spawn is played by forgetting a random attempt's process: it ends as lost.
    """
    rng = random.Random(seed)
    cells = [Cell.of({"model": "SD1.5", "batch_size": 4, "n": n}, ["n"]) for n in range(rng.randint(1, 12))]
    policies = [
        CellPolicy(footprint_bytes=rng.randint(1, 30) * GIB, exclusive=rng.random() < 0.2) for _ in range(len(cells))
    ]
    state = _with_devices(rng, tuple(zip(cells, policies, strict=True)))
    ends: dict[str, int] = {}
    clock = 0.0
    for _ in range(2000):
        clock += rng.choice([0.1, 1.0, 40.0])
        event: Event = Wake()
        if state.attempts and rng.random() < 0.7:
            attempt = rng.choice(sorted(state.attempts))
            event = AttemptEnded(attempt, rng.choice(VERDICTS))
            ends[attempt] = ends.get(attempt, 0) + 1
        state, effects = step(state, event, at(clock))
        sanity_check(state)
        for position, effect in enumerate(effects):
            if isinstance(effect, Spawn):
                assert any(isinstance(before, Commit) for before in effects[:position]), "spawned before its intent"
        if state.idle:
            break
    assert state.idle, f"{state.count_by_state()} after 2000 steps"
    assert set(ends.values()) <= {1}


def _with_devices(rng: random.Random, cells: tuple[tuple[Cell, CellPolicy], ...]) -> State:
    state, _ = step(State(), ConfigLoaded(cells, Rules()), at(0))
    readings = tuple(
        DeviceReading(f"GPU-{n}", n, "Fake", total_bytes=24 * GIB, free_bytes=24 * GIB)
        for n in range(rng.randint(1, 4))
    )
    return step(state, DevicesRead(readings), at(0))[0]
