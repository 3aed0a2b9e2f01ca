"""The lifecycle's tables: whole, with a way out of everything, and obeyed by `step`.

To see it fail: let `next_cell_state` return `state` where the table has no step; take `try-again` out of the table; set
an attempt's or a cell's state in `step.py` or `ending.py` without asking the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum

import pytest

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.step import step
from boundd.core.model import events as ev
from boundd.core.model.attempts import AttemptState, CellState, EndReason
from boundd.core.model.cells import Cell
from boundd.core.model.effects import Commit, Spawn
from boundd.core.model.events import Event, Now
from boundd.core.model.outcomes import AttemptError, Measurement, Outcome, Verdict
from boundd.core.model.records import SaveAttempt, SaveCell, SaveEnd
from boundd.core.model.state import State
from boundd.core.model.transitions import (
    ATTEMPT_TRANSITIONS,
    CELL_TRANSITIONS,
    ENDED_CELL_STATES,
    GIVE_UP,
    MEANINGS,
    AttemptTrigger,
    IllegalTransitionError,
    Trigger,
    next_attempt_state,
    next_cell_state,
)

NOW = Now(10.0, 10.0)
MEASURED = Measurement(2.0, 1.5, {"speedup": 1.5}, Isolation.EXCLUSIVE)
VERDICTS = (
    Verdict(Outcome.SUCCEEDED, MEASURED, wall_s=3.0),
    *(Verdict(Outcome.FAILED, error=AttemptError(kind, "why", 0.0)) for kind in (ErrorKind.OTHER, ErrorKind.BAD_DATA)),
    Verdict(Outcome.LOST, error=AttemptError(ErrorKind.LOST, "why", 0.0)),
    Verdict(Outcome.TIMED_OUT, error=AttemptError(ErrorKind.TIMEOUT, "why", 0.0)),
    Verdict(Outcome.OUT_OF_MEMORY, error=AttemptError(ErrorKind.OUT_OF_MEMORY, "why", 0.0)),
    Verdict(Outcome.CANCELLED, error=AttemptError(ErrorKind.CANCELLED, "why", 0.0)),
)
MakeCell = Callable[..., Cell]
MakeState = Callable[..., State]


def reached(table: Mapping[tuple[StrEnum, StrEnum], StrEnum], first: StrEnum) -> set[StrEnum]:
    """Every state that some way leads to from here, itself included."""
    found, waiting = {first}, [first]
    while waiting:
        here = waiting.pop()
        for (before, _), after in table.items():
            if before is here and after not in found:
                found.add(after)
                waiting.append(after)
    return found


def test_every_state_can_be_reached() -> None:
    """From the first one of each."""
    assert reached(CELL_TRANSITIONS, CellState.PENDING) == set(CellState)
    assert reached(ATTEMPT_TRANSITIONS, AttemptState.STARTING) == set(AttemptState)


@pytest.mark.parametrize("state", CellState)
def test_every_cell_can_end_and_every_end_can_be_retried(state: CellState) -> None:
    """Nothing is a trap."""
    assert reached(CELL_TRANSITIONS, state) & set(ENDED_CELL_STATES)
    assert (state in ENDED_CELL_STATES) == ((state, Trigger.RETRY) in CELL_TRANSITIONS)
    assert CellState.PENDING in reached(CELL_TRANSITIONS, state)


@pytest.mark.parametrize("state", AttemptState)
def test_every_attempt_can_end_and_an_end_is_final(state: AttemptState) -> None:
    """By one step, and by none after that."""
    ways = [trigger for trigger in AttemptTrigger if (state, trigger) in ATTEMPT_TRANSITIONS]
    assert (AttemptTrigger.ENDED in ways) == (state is not AttemptState.ENDED)
    assert bool(ways) == (state is not AttemptState.ENDED)


def test_every_trigger_moves_something_and_means_something() -> None:
    """And whatever an attempt can come to but success has one that gives up."""
    assert {trigger for _, trigger in CELL_TRANSITIONS} == set(Trigger)
    assert {trigger for _, trigger in ATTEMPT_TRANSITIONS} == set(AttemptTrigger)
    assert set(MEANINGS) == {*Trigger, *AttemptTrigger}
    assert set(GIVE_UP) == set(Outcome) - {Outcome.SUCCEEDED}
    for trigger in GIVE_UP.values():
        assert (CellState.RUNNING, trigger) in CELL_TRANSITIONS


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(CellState, Trigger)))
def test_a_cell_s_step_is_in_the_table_or_raises(state: CellState, trigger: Trigger) -> None:
    """And the message names both."""
    if (state, trigger) in CELL_TRANSITIONS:
        assert next_cell_state(state, trigger) is CELL_TRANSITIONS[state, trigger]
        return
    with pytest.raises(IllegalTransitionError, match=f"{state} can't {trigger}"):
        next_cell_state(state, trigger)


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(AttemptState, AttemptTrigger)))
def test_an_attempt_s_step_is_in_the_table_or_raises(state: AttemptState, trigger: AttemptTrigger) -> None:
    """And the message names both."""
    if (state, trigger) in ATTEMPT_TRANSITIONS:
        assert next_attempt_state(state, trigger) is ATTEMPT_TRANSITIONS[state, trigger]
        return
    with pytest.raises(IllegalTransitionError, match=f"{state} can't be {trigger}"):
        next_attempt_state(state, trigger)


def forced(make_cell: MakeCell, make_state: MakeState, cell: CellState, attempt: AttemptState | None) -> State:
    """A state with one cell that stands there, whether or not any way leads there, and its attempt."""
    state, effects = step(make_state([make_cell()], [24]), ev.Wake(), Now(1.0, 1.0))
    (spawn,) = [effect for effect in effects if isinstance(effect, Spawn)]
    record = replace(state.cells[spawn.attempt.key], state=cell)
    state = replace(state, cells=state.cells.set(spawn.attempt.key, record))
    if attempt is None:
        return replace(state, attempts=state.attempts.delete(spawn.attempt.id))
    reason = EndReason.CANCEL if attempt is AttemptState.ENDING else None
    return replace(
        state, attempts=state.attempts.set(spawn.attempt.id, replace(spawn.attempt, state=attempt, end_reason=reason))
    )


def events_for(state: State) -> list[Event]:
    """Everything that can be said of the one cell and its attempt."""
    (key,) = state.order
    attempt_id = f"{state.cells[key].cell.digest}.1"
    imports = [ev.Imported(key, MEASURED)]
    imports += [ev.Imported(key, error_kind=kind, message="why") for kind in (ErrorKind.TIMEOUT, ErrorKind.OTHER)]
    return [
        ev.Wake(),
        ev.AttemptStarted(attempt_id),
        *(ev.AttemptEnded(attempt_id, verdict) for verdict in VERDICTS),
        ev.RetryRequested((key,)),
        ev.CancelRequested((key,)),
        *(ev.ImportRequested((entry,)) for entry in imports),
        ev.ShutdownRequested(end_workers=True),
        ev.ShutdownRequested(end_workers=False),
    ]


@pytest.mark.parametrize("attempt", [None, *AttemptState])
@pytest.mark.parametrize("cell", CellState)
def test_step_obeys_the_tables(
    cell: CellState, attempt: AttemptState | None, make_cell: MakeCell, make_state: MakeState
) -> None:
    """From wherever a cell and its attempt stand, possible or not, whatever happens: each is moved as its table says,
    or the step raises; and the state that it was given is as it was."""
    state = forced(make_cell, make_state, cell, attempt)
    before = repr((dict(state.cells.records), dict(state.attempts)))
    for event in events_for(state):
        try:
            after, effects = step(state, event, NOW)
        except (IllegalTransitionError, KeyError):
            after, effects = state, ()
        assert repr((dict(state.cells.records), dict(state.attempts))) == before, event
        saved = [record for effect in effects if isinstance(effect, Commit) for record in effect.records]
        for key in state.order:
            here, there = state.cells[key].state, after.cells[key].state
            steps = {CELL_TRANSITIONS[here, trigger] for trigger in Trigger if (here, trigger) in CELL_TRANSITIONS}
            assert there is here or there in steps, (event, here, there)
            if there is not here:
                assert [record.record.state for record in saved if isinstance(record, SaveCell)][-1] is there, event
        for attempt_id, live in state.attempts.items():
            now_live = after.attempts.get(attempt_id)
            there_attempt = now_live.state if now_live is not None else AttemptState.ENDED
            ways = {
                ATTEMPT_TRANSITIONS[live.state, trigger]
                for trigger in AttemptTrigger
                if (live.state, trigger) in ATTEMPT_TRANSITIONS
            }
            assert there_attempt is live.state or there_attempt in ways, (event, live.state, there_attempt)
            # That an attempt runs is not kept: the next daemon sees it for itself.
            if there_attempt is not live.state and not isinstance(event, ev.AttemptStarted):
                kind = SaveEnd if there_attempt is AttemptState.ENDED else SaveAttempt
                assert any(isinstance(record, kind) for record in saved), event


@pytest.mark.parametrize("cell", [state for state in CellState if state is not CellState.RUNNING])
def test_an_end_for_a_cell_that_does_not_run_raises(
    cell: CellState, make_cell: MakeCell, make_state: MakeState
) -> None:
    """Whatever the verdict: a result is not laid over another one."""
    state = forced(make_cell, make_state, cell, AttemptState.RUNNING)
    (attempt_id,) = state.attempts
    for verdict in VERDICTS:
        if cell is CellState.PENDING and verdict.outcome is Outcome.CANCELLED:
            continue  # a waiting cell may be cancelled
        with pytest.raises(IllegalTransitionError):
            step(state, ev.AttemptEnded(attempt_id, verdict), NOW)


def test_an_attempt_that_has_ended_is_not_moved(make_cell: MakeCell, make_state: MakeState) -> None:
    """It can't start, be ended or end again, and one that is not there can't either."""
    state = forced(make_cell, make_state, CellState.RUNNING, AttemptState.ENDED)
    (attempt_id,) = state.attempts
    for event in (ev.AttemptStarted(attempt_id), ev.AttemptEnded(attempt_id, VERDICTS[0])):
        with pytest.raises(IllegalTransitionError):
            step(state, event, NOW)
        with pytest.raises(KeyError):
            step(replace(state, attempts=state.attempts.delete(attempt_id)), event, NOW)
