"""Each benchmark, small: it runs, what it counts is right, and what is promised of boundd holds on an unseen seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import dispatch, planner
from benchmarks.packing.__main__ import table
from benchmarks.packing.clairvoyant import candidates, lower_bound_s
from benchmarks.packing.policies import POLICIES, one_a_gpu, sequential
from benchmarks.packing.simulated import CLAIRVOYANT, OURS, scores, with_first_failures
from benchmarks.packing.traces import TRACES, Trace
from boundd.core.model.attempts import CellState
from boundd.core.model.outcomes import Outcome
from boundd.sim import AttemptTrace, MemoryEnd
from tests.sim.daemon import simulate


def short(name: str, cells: int = 12, seed: int = 77) -> Trace:
    """The first cells of a trace."""
    whole = TRACES[name](seed)
    return replace(whole, world=replace(whole.world, cells=whole.world.cells[:cells]))


def test_dispatch_runs_every_cell_once(tmp_path: Path) -> None:
    """Both sides run the cells; the daemon's run holds its own time from intent to end."""
    (tmp_path / "worker.py").write_text(dispatch.WORKER)
    assert dispatch.bare(tmp_path, 4, 2) > 0
    assert len(list(tmp_path.glob("bare-*.jsonl"))) == 4
    daemon_s, whole_s = dispatch.through_boundd(tmp_path / "run", 4, 2)
    assert 0 < daemon_s < whole_s
    told = dispatch.report([dispatch.Round(1.0, 1.5, 2.0)], 100, 2)
    assert "median ratio: 1.50" in told


def test_planner_fills_the_box_and_replaces_what_ends() -> None:
    """The steps that are timed do what they are timed for."""
    cost = planner.measure(planner.Case(200, 4, 9), ends=10)
    assert cost.started >= 4
    assert 0 < cost.plan_s <= cost.worst_s
    assert len(planner.row(planner.Case(200, 4, 9), cost).split()) == len(planner.HEAD.split()) - 2


@pytest.mark.parametrize("name", sorted(TRACES))
def test_every_policy_ends_and_ours_keeps_its_promises(name: str) -> None:
    """On a short trace of a seed that nobody tuned on: no neighbour's fault, no needless cut, no company, one retry."""
    found = {score.policy: score for score in scores(short(name), 77)}
    assert set(found) == {*POLICIES, OURS, CLAIRVOYANT}
    ours = found[OURS]
    assert (ours.neighbour_caused, ours.needless_cuts, ours.company, ours.not_done) == (0, 0, 0, 0)
    assert ours.bug_retries <= 1
    assert ours.makespan_s < found["sequential"].makespan_s
    assert found[CLAIRVOYANT].over_bound >= 1.0
    assert len(table([list(found.values())])) == 1 + len(found)


def test_the_clairvoyant_runs_nothing_out_of_memory() -> None:
    """It packs to the last byte and collides with nobody, foreign processes included."""
    for name in ("foreign", "wrong"):
        trace = short(name, 30)
        for policy in candidates(trace.world, trace.rules.batch_ladder):
            outcomes = simulate(trace.world, trace.rules, policy=policy, checks=False)
            assert outcomes.counts.out_of_memory == 0
            assert outcomes.makespan_s >= lower_bound_s(trace.world, trace.rules.batch_ladder)


def test_slots_are_slots() -> None:
    """One at a time, and one a device: nobody has company, and twice the devices need not be slower."""
    trace = short("matrix81")
    ends = {
        policy: simulate(trace.world, trace.rules, policy=policy, checks=False) for policy in (sequential, one_a_gpu)
    }
    for outcomes in ends.values():
        assert not any(attempt.had_company for attempt in outcomes.attempts)
        assert set(outcomes.cells.values()) == {CellState.SUCCEEDED}
    assert ends[one_a_gpu].makespan_s < ends[sequential].makespan_s


def test_first_failures_are_given_once_a_kind_of_work() -> None:
    """The clairvoyant gets what nobody could foresee, and not what one failure had taught."""
    trace = short("wrong", 60)
    ours = simulate(trace.world, trace.rules, seed=77)
    burdened = with_first_failures(trace.world, ours.attempts)
    given = sum(len(cell.truth.mishaps) for cell in burdened.cells)
    assert 0 < given <= ours.counts.out_of_memory


def test_a_whole_device_is_given_once_a_kind_of_work() -> None:
    """A batch may be cut only after it was tried with a whole device, whatever was seen with less: that one is given,
    beside the very first. Seen to fail without `tried_whole` in `with_first_failures`.
    """
    trace = short("wrong", 60)
    huge = [cell.cell for cell in trace.world.cells if cell.cell.parameters["model"] == "huge-0"][:2]

    def ran_out(cell: int, number: int, at_s: float, memory: MemoryEnd) -> AttemptTrace:
        whole = memory is MemoryEnd.TOO_BIG
        return AttemptTrace(
            f"{cell}.{number}", huge[cell].key, huge[cell].label, number, "GPU-0", at_s, at_s + 10.0, 1, 1, 4,
            exclusive=whole, had_company=not whole, peak_bytes=1, outcome=Outcome.OUT_OF_MEMORY, memory=memory,
        )  # fmt: skip

    ends = [
        ran_out(0, 1, 0.0, MemoryEnd.OWN_CAP),
        ran_out(0, 2, 20.0, MemoryEnd.OWN_CAP),
        ran_out(0, 3, 40.0, MemoryEnd.TOO_BIG),
        ran_out(1, 1, 60.0, MemoryEnd.TOO_BIG),
    ]
    burdened = with_first_failures(trace.world, ends)
    assert {cell.cell.key: len(cell.truth.mishaps) for cell in burdened.cells if cell.truth.mishaps} == {huge[0].key: 2}
