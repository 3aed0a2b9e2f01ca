"""The simulated machine does what a real one does, and the engine what the daemon does."""
# ruff: noqa: ARG005 - what takes a function's place has its arguments

from __future__ import annotations

from dataclasses import replace

import pytest

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.events import Now
from boundd.core.model.outcomes import Outcome
from boundd.core.model.state import Rules, State
from boundd.core.scheduler import ledger
from boundd.core.scheduler.planner import Plan, plan
from boundd.sim import (
    CellTruth,
    Failure,
    Faults,
    Foreign,
    MemoryEnd,
    Mishap,
    Outage,
    SimCell,
    SimDevice,
    Violation,
    Window,
    World,
)
from tests.sim.daemon import simulate
from tests.sim.invariants import Checker
from tests.sim.trouble import Deed, Trouble, Wish

GIB = 1024**3
ONE = (SimDevice("GPU-0", "A", 24 * GIB),)
RULES = Rules(batch_ladder=(4, 2, 1))


def cell(number: int, peak_gib: float, believed_gib: float | None, **truth: object) -> SimCell:
    """A cell whose batch is 4: half of its peak is weights and context, half is images."""
    made = CellTruth(60.0, int(peak_gib * GIB / 2), int(peak_gib * GIB / 8))
    footprint = None if believed_gib is None else int(believed_gib * GIB)
    parameters = {"model": f"m{number}", "method": "tome", "batch_size": 4}
    return SimCell(
        Cell.of(parameters, ["model"]),
        CellPolicy(footprint_bytes=footprint),
        replace(made, **truth),  # type: ignore[arg-type]
    )


def test_a_run_in_which_nothing_goes_wrong() -> None:
    """Two fit beside each other, the third follows, each takes its time."""
    world = World(ONE, tuple(cell(n, 9, 10) for n in range(3)))
    done = simulate(world, RULES)
    assert set(done.cells.values()) == {CellState.SUCCEEDED}
    *first, last = (trace.started_s for trace in done.attempts)
    assert first == [0.0, 0.0]
    assert 60.0 <= last <= 61.0, "what the two held is free once it was read"
    assert done.makespan_s == last + 60.0
    assert done.counts.out_of_memory == 0


def test_a_low_estimate_hits_its_own_cap_and_is_raised() -> None:
    """Same batch, more memory, and the neighbour notices nothing."""
    done = simulate(World(ONE, (cell(0, 9, 7), cell(1, 8, 10))), RULES)
    first, *_, last = (trace for trace in done.attempts if trace.label == "m0")
    assert (first.outcome, first.memory) == (Outcome.OUT_OF_MEMORY, MemoryEnd.OWN_CAP)
    assert last.outcome is Outcome.SUCCEEDED
    assert last.reservation_bytes > first.reservation_bytes
    assert last.batch_size == first.batch_size == 4
    assert [trace.outcome for trace in done.attempts if trace.label == "m1"] == [Outcome.SUCCEEDED]


def test_a_cell_that_no_device_can_take_gets_a_smaller_batch() -> None:
    """Alone, the whole device, then the next rung."""
    done = simulate(World(ONE, (cell(0, 26, None),)), RULES)
    assert [trace.batch_size for trace in done.attempts][-1] == 2
    assert done.attempts[0].memory is MemoryEnd.TOO_BIG
    assert not any(trace.needless_cut for trace in done.attempts)


def test_neighbours_run_each_other_out_of_memory_if_they_are_let(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that looks at free memory alone places three at once; the promise about neighbours notices."""

    def by_free_memory(state: State, now: Now) -> Plan:
        with monkeypatch.context() as patch:
            free = lambda device, attempts, margin: (device.reading.free_bytes or 0) - margin  # noqa: E731
            patch.setattr(ledger, "headroom_bytes", free)
            return plan(state, now)

    world = World(ONE, tuple(cell(n, 9, 10) for n in range(3)))
    let = simulate(world, RULES, policy=by_free_memory, checks=False)
    assert MemoryEnd.NEIGHBOUR in {trace.memory for trace in let.attempts}
    monkeypatch.setattr(Checker, "_fits", lambda self, attempt: None)
    monkeypatch.setattr(Checker, "_ledger", lambda self, state: None)
    monkeypatch.setattr("tests.sim.invariants.sanity_check", lambda state: None)
    with pytest.raises(Violation, match="neighbours"):
        simulate(world, RULES, policy=by_free_memory)


def test_a_foreign_process_is_waited_for() -> None:
    """It was seen, so nothing is placed until it has gone."""
    faults = Faults(foreign=(Foreign("GPU-0", 0.0, 100.0, 20 * GIB),))
    done = simulate(World(ONE, (cell(0, 9, 10),), replace(faults)), RULES)
    # Both begin at the same instant, so the first reading may come before it.
    assert done.attempts[-1].outcome is Outcome.SUCCEEDED
    assert done.attempts[-1].started_s >= 100.0


def test_a_foreign_process_that_comes_later_is_pressure() -> None:
    """It takes what was reserved; the cell runs again alone, with its batch."""
    faults = Faults(foreign=(Foreign("GPU-0", 2.0, 100.0, 20 * GIB),))
    done = simulate(World(ONE, (cell(0, 9, 10),), faults), RULES)
    assert done.attempts[0].memory is MemoryEnd.FOREIGN
    assert done.attempts[-1].exclusive
    assert {trace.batch_size for trace in done.attempts} == {4}


def test_a_lost_device_takes_its_workers_and_comes_back() -> None:
    """One plain failure, a backoff, and the cell is measured."""
    faults = Faults(outages=(Outage("GPU-0", 30.0, 200.0, kills=True),))
    done = simulate(World(ONE, (cell(0, 9, 10),), faults), RULES)
    assert [trace.outcome for trace in done.attempts] == [Outcome.FAILED, Outcome.SUCCEEDED]
    assert done.attempts[1].started_s >= 200.0


@pytest.mark.parametrize("point", range(10))
def test_a_crash_between_any_two_effects(point: int) -> None:
    """Whatever was committed is found again; what was never started is lost and costs nothing."""
    world = World(ONE, (cell(0, 9, 10), cell(1, 9, 10)), Trouble(crash_points=frozenset({point})))
    done = simulate(world, RULES)
    assert done.counts.crashes == 1
    assert set(done.cells.values()) == {CellState.SUCCEEDED}
    assert {trace.error for trace in done.attempts} <= {None, ErrorKind.LOST}


def test_workers_outlive_the_daemon() -> None:
    """A daemon that is down for longer than the cell takes finds its result."""
    faults = Trouble(deeds=(Deed(10.0, Wish.STOP),), down_s=500.0)
    done = simulate(World(ONE, (cell(0, 9, 10),), faults), RULES)
    (trace,) = done.attempts
    assert (trace.outcome, trace.ended_s) == (Outcome.SUCCEEDED, 60.0)
    assert done.counts.restarts == 1


def test_a_store_that_is_busy_is_asked_again() -> None:
    """The end is recorded once it can be, and once."""
    faults = Trouble(store_busy=(Window(59.0, 70.0),))
    done = simulate(World(ONE, (cell(0, 9, 10),), faults), RULES)
    assert done.counts.failed_commits > 3
    assert len(done.attempts) == 1


@pytest.mark.parametrize(
    ("failure", "attempts", "state"),
    [
        (Failure.BUG, 2, CellState.FAILED),
        (Failure.SIGNAL, 2, CellState.FAILED),
        (Failure.HANG, 2, CellState.TIMED_OUT),
        (Failure.NO_RESULT, 1, CellState.FAILED),
        (Failure.MODEL_UNAVAILABLE, 1, CellState.FAILED),
        (Failure.NOT_STARTED, 1, CellState.FAILED),
        (Failure.SHIM_LOST, 11, CellState.LOST),
    ],
)
def test_who_pays(failure: Failure, attempts: int, state: CellState) -> None:
    """Each failure ends, after as many attempts as the table of `boundd.core.lifecycle.retry` says."""
    done = simulate(World(ONE, (cell(0, 9, 10, always=Mishap(failure)),)), RULES)
    assert len(done.attempts) == attempts
    assert set(done.cells.values()) == {state}


def test_company_slows_where_the_world_says_so() -> None:
    """Two on one device at a contention of 1 take twice as long each."""
    world = World(ONE, (cell(0, 9, 10), cell(1, 9, 10)), contention=1.0)
    assert simulate(world, RULES).makespan_s == pytest.approx(120.0)


def test_a_run_that_can_not_end_is_told() -> None:
    """A pause that nobody ends; without `must_end` it is over, and says what waits."""
    world = World(ONE, (cell(0, 9, 10),), Trouble(deeds=(Deed(0.0, Wish.PAUSE), Deed(1.0, Wish.CORDON, "GPU-0"))))
    paused = replace(world, cells=(*world.cells, cell(1, 9, 10, mishaps=(Mishap(Failure.SHIM_LOST),))))
    with pytest.raises(Violation, match=r"liveness.*paused"):
        simulate(paused, RULES)
    over = simulate(paused, RULES, must_end=False)
    assert "paused" in next(iter(over.waiting.values()))
