"""The forecast: what would run where and when, from a state of the real core."""

from __future__ import annotations

import pytest

from boundd.core.lifecycle.step import step
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.events import ConfigLoaded, DevicesRead, Now, PauseRequested, Wake
from boundd.core.model.state import Rules, State
from boundd.core.scheduler.durations import expected_duration_s
from boundd.sim import SimDevice
from boundd.sim.forecast import forecast

GIB = 1024**3
BEGAN = Now(1000.0, 1_700_000_000.0)
LATER = Now(1040.0, 1_700_000_040.0)


def state_of(cells: int, *, free_gib: int = 24, wake: bool = True) -> State:
    """So many cells of 10 GiB on two devices of 24 GiB, as many of them started as fit."""
    matrix = tuple(
        (
            Cell.of({"model": "SD1.5", "steps": 20 + n, "batch_size": 4}, ["model", "steps"]),
            CellPolicy(footprint_bytes=10 * GIB),
        )
        for n in range(cells)
    )
    state, _ = step(State(), ConfigLoaded(matrix, Rules()), BEGAN)
    readings = tuple(DeviceReading(f"GPU-{n}", n, "A", 24 * GIB, free_gib * GIB) for n in range(2))
    state, _ = step(state, DevicesRead(readings), BEGAN)
    return step(state, Wake(), BEGAN)[0] if wake else state


def test_what_runs_goes_on_and_the_rest_follows() -> None:
    """Four run; each of the other two starts when one has ended, and ends after its expected duration."""
    state = state_of(6)
    told = forecast(state, LATER)
    running = [each for each in told.attempts if each.running]
    waiting = [each for each in told.attempts if not each.running]
    assert (len(running), len(waiting)) == (4, 2)
    assert {each.from_s for each in running} == {-40.0}
    ends = sorted(each.until_s for each in running)
    assert [each.from_s for each in waiting] == ends[:2]
    for each in waiting:
        expected_s = expected_duration_s(state, state.cells[each.key], "A")
        assert each.until_s - each.from_s == pytest.approx(expected_s)
    assert told.done_s == max(each.until_s for each in told.attempts)
    assert told.never == {}


def test_the_state_is_not_touched_and_the_same_is_told_twice() -> None:
    """A forecast decides nothing."""
    state = state_of(6)
    assert forecast(state, LATER) == forecast(state, LATER)


def test_other_devices_than_there_are() -> None:
    """From the start, on what one thinks of buying; a pause is taken to be over."""
    state, _ = step(state_of(8, wake=False), PauseRequested(), BEGAN)
    two = forecast(state, LATER, [SimDevice(f"NEW-{n}", "A", 24 * GIB) for n in range(2)])
    four = forecast(state, LATER, [SimDevice(f"NEW-{n}", "A", 24 * GIB) for n in range(4)])
    assert len(two.attempts) == len(four.attempts) == 8
    assert four.done_s < two.done_s
    assert {each.device for each in four.attempts} == {f"NEW-{n}" for n in range(4)}


def test_what_would_never_run_is_told_with_the_reason() -> None:
    """Foreign processes hold what they hold for ever, as far as anybody knows."""
    told = forecast(state_of(2, free_gib=4), LATER)
    assert told.attempts == ()
    assert len(told.never) == 2
    assert all(" short: needs " in why and "held by foreign processes" in why for why in told.never.values())
