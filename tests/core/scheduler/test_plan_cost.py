"""What a step costs must not grow with the cells, and what a plan remembers must decide nothing.

Cost is counted in calls of Python functions, which a busy machine doesn't change. To see these tests fail: compare
`order` by value in `State.__post_init__`; walk `state.matrix()` anywhere in a plan; in `Ledger.need` take what is
remembered without looking at the observations, or the rules, that it was worked out from; in `_SchedulingPass.fill`
add to `refused` what was placed too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.packing.traces import TRACES, thinned
from benchmarks.planner import Case, Clocked, matrix, readings
from boundd.catalogue.outcomes import Isolation
from boundd.core.model.devices import DeviceReading
from boundd.core.model.events import AttemptEnded, AttemptStarted, ConfigLoaded, DevicesRead, Now, Wake
from boundd.core.model.memo import Memo
from boundd.core.model.outcomes import Measurement, Outcome, Verdict
from boundd.core.model.queues import Cells
from boundd.core.model.state import Rules, State
from boundd.core.scheduler.ledger import Ledger
from boundd.core.scheduler.planner import Plan, plan
from tests.sim.daemon import simulate
from tests.sim.generate import random_world

GIB = 1024**3
SEEDS = range(500, 530)


def calls_of(work: Callable[[], object]) -> int:
    """How many calls of Python functions it makes."""
    count = 0

    def seen(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def calls_of_an_end_and_its_plan(cells: int, kinds: int = 9) -> list[int]:
    """Calls that recording each of a few ends takes, and planning what takes its place, on a full box."""
    case = Case(cells, 8, kinds)
    run = Clocked()
    for event in (readings(case), ConfigLoaded(tuple(matrix(case)), Rules()), Wake()):
        run.do(event)
    for attempt in tuple(run.state.attempts):
        run.do(AttemptStarted(attempt))
    measured = Measurement(2.0, 1.5, {}, Isolation.EXCLUSIVE)
    verdict = Verdict(
        Outcome.SUCCEEDED, measured, exit_status=0, wall_s=600.0, peak_allocated_bytes=6 * GIB,
        peak_reserved_bytes=6 * GIB,
    )  # fmt: skip
    counts = []
    for _ in range(20):
        oldest = min(run.state.attempts.values(), key=lambda attempt: (attempt.started_boot_s, attempt.id))
        counts.append(calls_of(lambda oldest=oldest: (run.do(AttemptEnded(oldest.id, verdict)), run.do(Wake()))))  # type: ignore[misc]
    return counts


def test_a_step_costs_by_kinds_and_not_by_cells() -> None:
    """Twenty times the cells, hardly another call; twenty-seven times the kinds may cost in proportion, and no more."""
    few, many = calls_of_an_end_and_its_plan(1_000), calls_of_an_end_and_its_plan(20_000)
    assert sum(many) < 1.1 * sum(few)
    kinds = calls_of_an_end_and_its_plan(1_000, 243)
    assert sum(kinds) < 27 * sum(few)


def test_a_state_doesnt_compare_its_order_with_itself() -> None:
    """That would be a million comparisons in each step: no function of Python sees them, so they are forbidden here."""

    class Dear(tuple[str, ...]):
        __slots__ = ()
        __hash__ = tuple.__hash__

        def __eq__(self, other: object) -> bool:
            raise AssertionError("the order was compared")

        __ne__ = __eq__

    order = Dear(("a", "b"))
    state = State(order=order, cells=Cells(order=order))
    assert replace(state, completions=1).order is order


def logs(planner: Callable[[State, Now], Plan]) -> list[list[str]]:
    """Every event and effect of some worlds and traces under a planner."""
    worlds = [(random_world(seed), seed) for seed in SEEDS]
    traces = [thinned(make(7), 4) for make in TRACES.values()]
    worlds += [((trace.world, trace.rules), 7) for trace in traces]
    found = []
    for (world, rules), seed in worlds:
        log: list[str] = []
        simulate(world, rules, policy=planner, seed=seed, checks=False, log=log, max_steps=200_000)
        found.append(log)
    return found


def test_what_is_remembered_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds with faults, and the traces of the benchmark: the same run, event by event, where each need is worked out
    anew and each refused queue is asked again.
    """

    class Forgetful(set[object]):
        def __contains__(self, _: object) -> bool:
            return False

    def forgetting(state: State, now: Now) -> Plan:
        return plan(replace(state, cells=replace(state.cells, memo=Memo())), now)

    remembering = logs(plan)
    monkeypatch.setattr("boundd.core.scheduler.planner.Refused", Forgetful)
    assert logs(forgetting) == remembering
    assert sum(map(len, remembering)) > 5_000


def test_what_is_remembered_is_of_these_rules() -> None:
    """A reload with a larger margin makes a cell of 20 GiB one that must be alone on a device of 24 GiB."""
    cell, policy = next(matrix(Case(1, 1, 1)))
    run = Clocked()
    run.do(DevicesRead((DeviceReading("GPU-0", 0, "Simulated", 24 * GIB, 24 * GIB, {}, None),)))
    run.do(ConfigLoaded(((cell, replace(policy, footprint_bytes=20 * GIB)),), Rules()))
    (needs,) = run.state.cells.queues
    for margin, alone in ((GIB // 2, False), (4 * GIB, True), (GIB // 2, False)):
        state = replace(run.state, rules=Rules(margin_bytes=margin))
        assert Ledger(state, 0.0).is_alone(needs) is alone
