"""The planner: who is started where, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import UNKNOWN_NAME, DeviceReading
from boundd.core.model.events import ConfigLoaded, DevicesRead, Now
from boundd.core.model.reasons import Backoff, EmptiedFor, MemoryShort, NotAlone, OtherModel, PlainWait, Unreadable
from boundd.core.model.sources import MemorySource, Source
from boundd.core.model.state import Rules, State, sanity_check
from boundd.core.scheduler.planner import plan

GIB = 1024**3
NOW = Now(100.0, 1000.0)
MakeCell = Callable[..., Cell]
MakeState = Callable[..., State]


def test_packs_by_footprint(make_cell: MakeCell, make_state: MakeState) -> None:
    """Four cells of 10 GiB fill two devices of 24; the fifth waits and is told how many bytes are short."""
    cells = [make_cell(steps=steps) for steps in range(5)]
    state = make_state(cells, [24, 24], policy=CellPolicy(footprint_bytes=10 * GIB))
    planned = plan(state, NOW)
    assert [attempt.device for attempt in planned.started] == ["GPU-0", "GPU-0", "GPU-1", "GPU-1"]
    sanity_check(planned.state)
    (deferral,) = planned.state.deferrals.values()
    assert {no.device for no in deferral.devices} == {"GPU-0", "GPU-1"}
    for no in deferral.devices:
        assert no.needed_bytes == 10 * GIB
        assert no.headroom_bytes == 4 * GIB - 512 * 1024**2
        assert no.refusal == MemoryShort(6 * GIB + GIB // 2, 10 * GIB, 4 * GIB - GIB // 2, Source(MemorySource.RULE))
        assert len(no.held_by) == 2


def test_exclusive_cells_have_no_company(make_cell: MakeCell, make_state: MakeState) -> None:
    """A cell that must be alone waits for an empty device, holds it, and nothing joins it."""
    small = CellPolicy(footprint_bytes=2 * GIB)
    state = make_state([make_cell(steps=1)], [24], policy=small)
    state = plan(state, NOW).state
    large = make_cell(model="SDXL")
    late = make_cell(steps=2)
    cells = [*((r.cell, r.policy) for r in state.matrix()), (large, CellPolicy(exclusive=True)), (late, small)]
    state, _ = step(state, ConfigLoaded(tuple(cells), state.rules), NOW)
    planned = plan(state, NOW)
    assert planned.started == ()
    alone = planned.state.deferrals[large.key].devices[0].refusal
    assert isinstance(alone, NotAlone)
    assert alone.by_rule
    assert isinstance(planned.state.deferrals[late.key].devices[0].refusal, EmptiedFor)


def test_one_at_a_time_on_the_cpu(make_cell: MakeCell, make_state: MakeState) -> None:
    """max_cells bounds a device whatever its memory."""
    state = make_state(
        [make_cell(steps=s) for s in range(3)], [64], policy=CellPolicy(footprint_bytes=GIB), max_cells=1
    )
    planned = plan(state, NOW)
    assert len(planned.started) == 1
    assert planned.started[0].whole_device


def test_a_cell_larger_than_every_device_is_tried_alone(make_cell: MakeCell, make_state: MakeState) -> None:
    """An estimate can be wrong: it doesn't wait for ever."""
    state = make_state([make_cell()], [8], policy=CellPolicy(footprint_bytes=100 * GIB))
    (attempt,) = plan(state, NOW).started
    assert attempt.exclusive
    assert attempt.whole_device


def test_a_device_that_cannot_be_read_takes_nothing(make_cell: MakeCell, make_state: MakeState) -> None:
    """Unavailable is neither empty nor full; the reason is the reading's."""
    state = make_state([make_cell()], [24])
    lost = DeviceReading("GPU-0", 0, "Fake", unavailable="GPU is lost")
    state, notes = step(state, DevicesRead((lost,)), NOW)
    planned = plan(state, NOW)
    assert planned.started == ()
    (deferral,) = planned.state.deferrals.values()
    assert deferral.devices[0].refusal == Unreadable("GPU is lost")
    assert len(notes) == 1


def test_models_do_not_mix(make_cell: MakeCell, make_state: MakeState) -> None:
    """One device model a matrix, the most numerous, unless mix_models."""
    state = make_state([make_cell(steps=s) for s in range(8)], [24, 24], policy=CellPolicy(footprint_bytes=9 * GIB))
    other = DeviceReading("GPU-9", 9, "Other", total_bytes=80 * GIB, free_bytes=80 * GIB)
    readings = (*(device.reading for device in state.devices_by_index()), other)
    state, _ = step(state, DevicesRead(readings), NOW)
    planned = plan(state, NOW)
    assert {attempt.device for attempt in planned.started} == {"GPU-0", "GPU-1"}
    assert any(no.refusal == OtherModel("Other", "Fake") for d in planned.state.deferrals.values() for no in d.devices)
    mixed = plan(replace(state, rules=replace(state.rules, mix_models=True)), NOW)
    assert "GPU-9" in {attempt.device for attempt in mixed.started}


def test_devices_without_a_name_do_not_choose_the_model(make_cell: MakeCell, make_state: MakeState) -> None:
    """More of them than of any other model, and a healthy one: what is wrong with them is not waited for."""
    state = make_state([make_cell()], [])
    dead = [DeviceReading(f"UNKNOWN-{n}", n, UNKNOWN_NAME, unavailable="Unknown Error") for n in range(2)]
    good = DeviceReading("GPU-2", 2, "Good", 24 * GIB, 24 * GIB)
    state, _ = step(state, DevicesRead((*dead, good)), NOW)
    assert [attempt.device for attempt in plan(state, NOW).started] == ["GPU-2"]


def test_foreign_memory_is_seen(make_cell: MakeCell, make_state: MakeState) -> None:
    """What others hold is not placeable, and is said."""
    state = make_state([make_cell()], [24], policy=CellPolicy(footprint_bytes=10 * GIB))
    busy = DeviceReading("GPU-0", 0, "Fake", total_bytes=24 * GIB, free_bytes=5 * GIB)
    state, _ = step(state, DevicesRead((busy,)), NOW)
    planned = plan(state, NOW)
    assert planned.started == ()
    (deferral,) = planned.state.deferrals.values()
    assert deferral.devices[0].foreign_bytes == 19 * GIB


def test_paused_starts_nothing(make_cell: MakeCell, make_state: MakeState) -> None:
    """And says how to go on."""
    state = replace(make_state([make_cell()], [24]), paused=True)
    planned = plan(state, NOW)
    assert planned.started == ()
    assert next(iter(planned.state.deferrals.values())).wait is PlainWait.PAUSED


def test_backoff_sets_the_wake_up(make_cell: MakeCell, make_state: MakeState) -> None:
    """The planner says when to look again."""
    state = make_state([make_cell()], [24])
    (record,) = state.matrix()
    state = replace(state, cells=state.cells.set(record.cell.key, replace(record, not_before_boot_s=130.0)))
    planned = plan(state, NOW)
    assert planned.next_wake_boot_s == 130.0
    assert planned.state.deferrals[record.cell.key].wait == Backoff(30.0)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    devices=st.lists(st.integers(8, 48), min_size=1, max_size=4),
    alone=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_never_over_a_devices_memory(sizes: list[int], devices: list[int], alone: list[bool]) -> None:
    """Whatever the cells and devices: no device over-reserved, no company for the exclusive, the same plan twice."""
    cells = [Cell.of({"model": "m", "n": n}, ["n"]) for n in range(len(sizes))]
    policies = [
        CellPolicy(footprint_bytes=size * GIB, exclusive=only) for size, only in zip(sizes, alone, strict=False)
    ]
    state, _ = step(State(), ConfigLoaded(tuple(zip(cells, policies, strict=True)), Rules()), NOW)
    readings = tuple(
        DeviceReading(f"GPU-{n}", n, "Fake", total_bytes=size * GIB, free_bytes=size * GIB)
        for n, size in enumerate(devices)
    )
    state, _ = step(state, DevicesRead(readings), NOW)
    planned = plan(state, NOW)
    sanity_check(planned.state)
    assert plan(state, NOW) == planned
    waiting = {r.cell.key for r in planned.state.matrix() if r.state is CellState.PENDING}
    assert waiting == set(planned.state.deferrals)
