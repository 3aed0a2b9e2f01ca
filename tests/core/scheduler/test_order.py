"""The order in which queues are served, and who may have what of a device that is kept for another.

To see these fail: rank by the area, or by `size_bytes` alone; leave out `urgent`; in `Ledger.backfill` give nothing,
or all that is free, or no time; in `plan` want no room for the first; leave out `_SchedulingPass._overtake`, or
`WAITING_LIMIT_FACTOR`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.events import AttemptEnded, ConfigLoaded, DevicesRead, Now, Wake
from boundd.core.model.history import Duration, Durations, Observation, Observations
from boundd.core.model.outcomes import Measurement, Outcome, Verdict
from boundd.core.model.reasons import EmptiedFor
from boundd.core.model.state import Rules, State
from boundd.core.model.workload import subject_on, workload_of
from boundd.core.scheduler.ledger import Ledger
from boundd.core.scheduler.order import WAITING_LIMIT_FACTOR, ranked, starvation_limit, starved_queues
from boundd.core.scheduler.planner import plan

GIB = 1024**3
GOOD = Verdict(Outcome.SUCCEEDED, Measurement(2.0, 1.5, None, Isolation.EXCLUSIVE), wall_s=100.0)


def at(seconds: float) -> Now:
    """An instant."""
    return Now(seconds, seconds)


def world(device_gib: int, *cells: tuple[str, int, float], devices: int = 1) -> State:
    """Known cells on alike devices, each (model, GiB, seconds)."""
    made, seen, took = [], [], []
    for number, (model, gib, wall_s) in enumerate(cells):
        parameters = {"model": model, "method": "tome", "steps": 20, "seed": number}
        made.append((Cell.of(parameters, ["model", "seed"]), CellPolicy(footprint_bytes=gib * GIB)))
        took.append(Duration(model, "tome", "Fake", 20, 32, 1, wall_s))
    state, _ = step(State(), ConfigLoaded(tuple(made), Rules()), at(0))
    readings = [DeviceReading(f"GPU-{n}", n, "Fake", device_gib * GIB, device_gib * GIB) for n in range(devices)]
    state, _ = step(state, DevicesRead(tuple(readings)), at(0))
    for cell, policy in made:
        work = workload_of(state.cells[cell.key])
        seen.append(Observation(subject_on(work, "Fake"), 1, policy.footprint_bytes or 0, pixels=work.pixels))
    return replace(state, observations=Observations.of(seen), durations=Durations.of(took))


def order(state: State) -> list[str]:
    """The models, in the order of their queues."""
    return [needs.work.model for needs in ranked(state, Ledger(state, 1.0), starved_queues(state))]


@pytest.mark.parametrize(("device_gib", "expected"), [(24, ["large", "long"]), (80, ["long", "large"])])
@pytest.mark.parametrize("long_s", [900.0, 350.0])
def test_the_largest_go_first_where_few_fill_a_device(device_gib: int, expected: list[str], long_s: float) -> None:
    """On a large device any gap will do for either, and what takes long goes first, if it has a little less area."""
    many = [("large", 12, 300.0)] * 30 + [("long", 10, long_s)] * 10
    assert order(world(device_gib, *many)) == expected


def test_who_would_be_the_straggler_is_urgent() -> None:
    """A small cell that takes most of what is left goes before larger ones, and not while much is left."""
    assert order(world(24, *[("large", 12, 300.0)] * 4, ("long", 2, 900.0))) == ["long", "large"]
    assert order(world(24, *[("large", 12, 300.0)] * 40, ("long", 2, 900.0))) == ["large", "long"]


@pytest.mark.parametrize(("gib", "wall_s", "starts"), [(4, 3000.0, True), (8, 3000.0, False), (8, 200.0, True)])
def test_what_puts_off_nobody_is_started_on_a_device_that_is_kept(gib: int, wall_s: float, starts: bool) -> None:
    """A device of 24 GiB, with 12 in use for 300 s, is kept for a cell of 17: beside that there will be 6."""
    state = world(24, ("first", 12, 300.0), ("kept", 17, 300.0), ("small", gib, wall_s))
    first, kept, small = state.order
    only = replace(state.cells[kept], state=CellState.CANCELLED), replace(state.cells[small], state=CellState.CANCELLED)
    alone = replace(state, cells=state.cells.set(kept, only[0]).set(small, only[1]))
    alone = plan(alone, at(1)).state
    assert [attempt.key for attempt in alone.attempts.values()] == [first]
    cells = alone.cells.set(kept, state.cells[kept]).set(small, state.cells[small])
    waits = replace(
        alone,
        cells=cells,
        emptying={"GPU-0": kept},
        completions=100,
        refused_since=alone.refused_since.set(next(n for n in cells.queues if n.work.model == "kept"), 0),
    )
    planned = plan(waits, at(2))
    assert planned.state.emptying == {"GPU-0": kept}
    assert [attempt.key for attempt in planned.started] == ([small] if starts else [])
    if not starts:
        (no,) = planned.state.deferrals[small].devices
        assert isinstance(no.refusal, EmptiedFor)
        assert (no.refusal.label, no.refusal.needed_bytes, no.refusal.wait_s) == ("kept/1", no.needed_bytes, 299.0)
    running = {attempt.key: attempt.id for attempt in planned.state.attempts.values()}
    state, _ = step(planned.state, AttemptEnded(running[first], GOOD), at(3))
    if starts and gib == 8:
        state, _ = step(state, AttemptEnded(running[small], GOOD), at(3))
    assert kept in [attempt.key for attempt in plan(state, at(3)).started]


def completions_until_started(state: State, late: str, gib: int) -> int:
    """How many attempts end before a cell that came late is started, while one more comes of the kind of each."""
    sizes = {r.cell.parameters["model"]: r.policy.footprint_bytes or 0 for r in state.matrix()}

    def cell(name: str, seed: int, size_bytes: int) -> tuple[Cell, CellPolicy]:
        parameters = {"model": name, "method": "tome", "steps": 20, "seed": seed}
        return Cell.of(parameters, ["model", "seed"]), CellPolicy(footprint_bytes=size_bytes)

    state, _ = step(state, Wake(), at(0))
    waits = cell(late, -1, gib * GIB)
    cells = [*((record.cell, record.policy) for record in state.matrix()), waits]
    for count in range(2_000):
        state, _ = step(state, ConfigLoaded(tuple(cells), state.rules), at(count))
        state, _ = step(state, Wake(), at(count))
        if state.cells[waits[0].key].attempts:
            return count
        first = min(state.attempts.values(), key=lambda attempt: (attempt.started_boot_s, attempt.id))
        model = str(state.cells[first.key].cell.parameters["model"])
        state, _ = step(state, AttemptEnded(first.id, GOOD), at(count))
        cells = [each for each in cells if state.cells[each[0].key].state is not CellState.SUCCEEDED]
        cells.append(cell(model, 1000 + count, sizes[model]))
    raise AssertionError("it waits for ever")


def without_the_last(state: State) -> State:
    """Its size and its duration are known, and it is done."""
    last = state.cells[state.order[-1]]
    return replace(state, cells=state.cells.set(last.cell.key, replace(last, state=CellState.SUCCEEDED)))


def test_a_device_is_kept_for_the_first_that_finds_no_place() -> None:
    """Small cells that come and come fit where a large one doesn't, and fill its device until they have ended."""
    small = world(24, *[("small", 6, 100.0)] * 8, ("large", 20, 100.0))
    assert completions_until_started(without_the_last(small), "large", 20) <= 4


def test_who_is_overtaken_waits_less_long_than_who_waits_for_his_turn() -> None:
    """Large cells come and come before it; small ones fit beside them where it does not, and overtake it."""
    overtaken = world(24, *[("large", 18, 100.0)] * 4, *[("small", 2, 100.0)] * 4, ("middle", 10, 100.0))
    limit = starvation_limit(overtaken)
    ended = completions_until_started(without_the_last(overtaken), "middle", 10)
    assert limit <= ended <= limit + 10
    waiting = world(24, *[("large", 20, 100.0)] * 4, ("middle", 10, 100.0))
    ended = completions_until_started(without_the_last(waiting), "middle", 10)
    assert WAITING_LIMIT_FACTOR * limit <= ended <= WAITING_LIMIT_FACTOR * limit + 10
