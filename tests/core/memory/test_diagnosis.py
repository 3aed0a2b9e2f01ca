"""Three causes of running out of memory, told apart; and what each leads to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.step import step
from boundd.core.memory.diagnosis import diagnose
from boundd.core.memory.raising import LEVELS
from boundd.core.model.attempts import Attempt, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Action, Commit, Note
from boundd.core.model.events import AttemptEnded, DevicesRead, Now, RetryRequested, Wake
from boundd.core.model.memory_evidence import ForeignHeld, StoppedByCap
from boundd.core.model.outcomes import AttemptError, Measurement, MemoryCause, Outcome, Verdict
from boundd.core.model.records import SaveCell
from boundd.core.model.state import State

GIB = 1024**3
MakeCell = Callable[..., Cell]
MakeState = Callable[..., State]


def ran_out(requested: int | None = None, free: int | None = None, held: int | None = None) -> Verdict:
    """An attempt that says that memory ran out."""
    error = AttemptError(ErrorKind.OUT_OF_MEMORY, "CUDA out of memory", 0.0, "decode", requested, free)
    return Verdict(Outcome.OUT_OF_MEMORY, error=error, peak_reserved_bytes=held, wall_s=40.0)


@pytest.fixture
def pair(make_cell: MakeCell, make_state: MakeState) -> tuple[State, Attempt, Attempt]:
    """Two attempts of 8 GiB each on one device of 24 GiB."""
    policy = CellPolicy(footprint_bytes=8 * GIB)
    state = make_state([make_cell(steps=2), make_cell(steps=1)], [24], policy=policy)
    state, _ = step(state, Wake(), Now(1, 1))
    first, second = state.attempts_on("GPU-0")
    return state, first, second


def read(state: State, free: int, **held: int) -> tuple[State, tuple[object, ...]]:
    """The device is read: so much is free, and the attempts hold so much."""
    reading = DeviceReading("GPU-0", 0, "Fake", total_bytes=24 * GIB, free_bytes=free)
    return step(state, DevicesRead((reading,), {"GPU-0": held}), Now(2, 2))


def test_its_own_cap_while_the_device_had_room(pair: tuple[State, Attempt, Attempt]) -> None:
    """Requested less than was free: it was the cap; also by what it held, where the sizes aren't known."""
    state, first, _ = pair
    found = diagnose(state, first, ran_out(GIB, 7 * GIB))
    assert found.cause is MemoryCause.ESTIMATE_TOO_LOW
    assert found.evidence == StoppedByCap(first.cap_bytes or 0, None, GIB, 7 * GIB, whole_device=False)
    assert diagnose(state, first, ran_out(2 * GIB, 0, held=7 * GIB)).cause is MemoryCause.ESTIMATE_TOO_LOW
    assert diagnose(state, first, ran_out(held=7 * GIB)).cause is MemoryCause.ESTIMATE_TOO_LOW
    assert diagnose(state, first, ran_out()).cause is MemoryCause.ESTIMATE_TOO_LOW, "the cure that loses nothing"


def test_a_neighbour_outgrew_its_reservation(pair: tuple[State, Attempt, Attempt]) -> None:
    """It is told when it is seen, once, and named when somebody else runs out because of it."""
    state, first, second = pair
    state, notes = read(state, 4 * GIB, **{first.id: 3 * GIB, second.id: 17 * GIB})
    (note,) = [note for note in notes if isinstance(note, Note)]
    assert (note.action, note.attempt) == (Action.RESERVATION_EXCEEDED, second.id)
    state, notes = read(state, 3 * GIB, **{first.id: 3 * GIB, second.id: 18 * GIB})
    assert notes == ()
    found = diagnose(state, state.attempts[first.id], ran_out(4 * GIB, 3 * GIB, held=3 * GIB))
    assert found.cause is MemoryCause.PRESSURE
    assert found.outgrown == (state.attempts[second.id],)
    state, effects = step(state, AttemptEnded(first.id, ran_out(4 * GIB, 3 * GIB, held=3 * GIB)), Now(3, 3))
    (told,) = [e for e in effects if isinstance(e, Note) and e.action is Action.OUT_OF_MEMORY]
    assert told.fields["boundd.neighbours"] == [second.label]
    again = state.cells[first.key]
    assert (again.state, again.alone, again.charged_failures) == (CellState.PENDING, True, 0)
    assert len(tuple(state.observations)) == 0, "it says nothing of the cell's own need"


def test_a_foreign_process(pair: tuple[State, Attempt, Attempt]) -> None:
    """A process that isn't ours holds what was reserved."""
    state, first, second = pair
    state, _ = read(state, GIB, **{first.id: 3 * GIB, second.id: 3 * GIB})
    found = diagnose(state, state.attempts[first.id], ran_out(4 * GIB, GIB, held=3 * GIB))
    assert found.cause is MemoryCause.PRESSURE
    assert found.evidence == ForeignHeld(17 * GIB, 0, 8 * GIB)


def test_the_device_was_full_and_nobody_was_caught(pair: tuple[State, Attempt, Attempt]) -> None:
    """Within its reservation, beside others, less free than it asked for: pressure."""
    state, first, _ = pair
    assert diagnose(state, replace(first, had_company=True), ran_out(GIB, 1000, held=GIB)).cause is MemoryCause.PRESSURE


def test_the_like_of_what_was_too_big_is_spared_its_failure(make_cell: MakeCell, make_state: MakeState) -> None:
    """Waiting cells that differ only in what leaves memory alone go on with the smaller batch, kept, told cell by cell
    and uncharged; another method's don't, nor any where a larger device is left to try."""
    cells = [make_cell(model="unknown", steps=steps) for steps in (50, 25, 20)]
    other = make_cell(model="unknown", method="tgate")
    for sizes, wanted in (([24], 2), ([24, 48], 4)):
        state, _ = step(make_state([*cells, other], sizes), Wake(), Now(1, 1))
        attempt = next(a for a in state.attempts.values() if a.device == "GPU-0")
        waiting = [cell for cell in (*cells, other) if state.cells[cell.key].state is CellState.PENDING]
        after, effects = step(state, AttemptEnded(attempt.id, ran_out(GIB, 0, held=attempt.cap_bytes)), Now(2, 2))
        method = state.cells[attempt.key].cell.parameters["method"]
        like = [cell for cell in waiting if cell.parameters["method"] == method]
        assert [after.cells[cell.key].wanted_batch_size for cell in like] == [wanted] * len(like)
        assert all(after.cells[c.key].wanted_batch_size == 4 for c in waiting if c not in like)
        assert all(after.cells[cell.key].charged_failures == 0 for cell in waiting)
        told = {note.cell for note in effects if isinstance(note, Note) and note.action is Action.BATCH_LOWERED}
        lowered = {cell.label for cell in like} if wanted == 2 else set()
        assert told == lowered
        kept = [r for e in effects if isinstance(e, Commit) for r in e.records if isinstance(r, SaveCell)]
        assert lowered <= {saved.record.cell.label for saved in kept}
        assert like, "there is something to be seen"


def test_too_big_only_alone_with_the_whole_device(make_cell: MakeCell, make_state: MakeState) -> None:
    """Alone by need with all of the device: too big, and a smaller batch. Where a foreign process has a part of the
    device, it was not the whole device, and no batch is cut.
    """
    cell = make_cell(model="unknown")
    state, _ = step(make_state([cell], [24]), Wake(), Now(1, 1))
    (attempt,) = state.attempts.values()
    assert attempt.whole_device
    held = attempt.cap_bytes
    found = diagnose(state, attempt, ran_out(GIB, 0, held=held))
    assert found.cause is MemoryCause.TOO_BIG
    after, _ = step(state, AttemptEnded(attempt.id, ran_out(GIB, 0, held=held)), Now(2, 2))
    assert after.cells[cell.key].wanted_batch_size == 2
    late, _ = read(state, 2 * GIB, **{attempt.id: 8 * GIB})
    assert diagnose(late, late.attempts[attempt.id], ran_out(GIB, 0, held=8 * GIB)).cause is MemoryCause.PRESSURE
    busy = DeviceReading("GPU-0", 0, "Fake", total_bytes=24 * GIB, free_bytes=12 * GIB)
    state, _ = step(make_state([cell], [24]), DevicesRead((busy,)), Now(0, 0))
    state, _ = step(state, Wake(), Now(1, 1))
    (attempt,) = state.attempts.values()
    assert not attempt.whole_device
    after, _ = step(state, AttemptEnded(attempt.id, ran_out(GIB, 0, held=attempt.cap_bytes)), Now(2, 2))
    assert after.cells[cell.key].wanted_batch_size == 4
    assert after.cells[cell.key].memory_level == 1


def test_a_low_estimate_is_learned_by_all_of_its_like(make_cell: MakeCell, make_state: MakeState) -> None:
    """Half as much again for the cell and its like at once, then twice as much; the third time the cell is alone."""
    cells = [make_cell(steps=2), make_cell(steps=1)]
    state = make_state(cells, [80], policy=CellPolicy(footprint_bytes=8 * GIB))
    state, _ = step(state, Wake(), Now(1, 1))
    first = next(a for a in state.attempts.values() if a.key == cells[0].key)
    state, _ = step(state, AttemptEnded(first.id, ran_out(GIB, 30 * GIB)), Now(2, 2))
    state, _ = step(state, Wake(), Now(3, 3))
    again = state.attempt_of(cells[0].key)
    assert again is not None
    assert again.reservation_bytes == 12 * GIB
    state, _ = step(state, AttemptEnded(again.id, ran_out(GIB, 30 * GIB)), Now(4, 4))
    state, _ = step(state, Wake(), Now(4, 4))
    twice = state.attempt_of(cells[0].key)
    assert twice is not None
    assert (twice.reservation_bytes, twice.exclusive) == (24 * GIB, False)
    state, _ = step(state, AttemptEnded(twice.id, ran_out(GIB, 30 * GIB)), Now(4, 4))
    assert state.cells[cells[0].key].memory_level == LEVELS + 1
    (left,) = state.attempts.values()
    measured = Measurement(2.0, 1.5, None, Isolation.EXCLUSIVE)
    state, _ = step(state, AttemptEnded(left.id, Verdict(Outcome.SUCCEEDED, measured, wall_s=1.0)), Now(5, 5))
    state, _ = step(state, Wake(), Now(6, 6))
    (alone,) = state.attempts.values()
    assert alone.exclusive
    assert alone.whole_device


def test_retry_uses_what_was_learned(make_cell: MakeCell, make_state: MakeState) -> None:
    """On the same device, the batch stays the last of the ladder; on a larger one, the batch that was asked for."""
    cell = make_cell(model="unknown")
    state = make_state([cell], [24], batch_ladder=(4, 2))
    for second in range(1, 4, 2):
        state, _ = step(state, Wake(), Now(second, second))
        (attempt,) = state.attempts.values()
        state, _ = step(state, AttemptEnded(attempt.id, ran_out(held=attempt.cap_bytes)), Now(second + 1, second + 1))
    assert (state.cells[cell.key].state, state.cells[cell.key].batch_size) == (CellState.OUT_OF_MEMORY, 2)
    same, _ = step(state, RetryRequested((cell.key,)), Now(9, 9))
    assert same.cells[cell.key].wanted_batch_size == 2
    large = DeviceReading("GPU-0", 0, "Fake", total_bytes=80 * GIB, free_bytes=80 * GIB)
    larger, _ = step(state, DevicesRead((large,)), Now(8, 8))
    larger, _ = step(larger, RetryRequested((cell.key,)), Now(9, 9))
    assert larger.cells[cell.key].wanted_batch_size == 4
