"""A trace under every policy in `boundd.sim`: the core as it is, virtual time, memory that really runs out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.packing.clairvoyant import candidates, lower_bound_s
from benchmarks.packing.policies import POLICIES
from benchmarks.packing.traces import Trace
from boundd.core.model.outcomes import Outcome
from boundd.sim import AttemptTrace, Failure, MemoryEnd, Mishap, Outcomes, SimCell, World
from tests.sim.daemon import simulate

OURS = "ours"
CLAIRVOYANT = "clairvoyant"
MOST_STEPS = 200_000


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did on a trace."""

    policy: str
    makespan_s: float
    over_bound: float
    """Makespan over the lower bound."""
    out_of_memory: int
    neighbour_caused: int
    needless_cuts: int
    company: int
    """Attempts of cells that must be alone that were not."""
    bug_retries: int
    """The most attempts after the first that any cell with a plain bug was given."""
    not_done: int
    """Cells without a plain bug that did not succeed."""


def scores(trace: Trace, seed: int, *, others: bool = True) -> list[Score]:
    """Every policy on one trace; the clairvoyant is given the first failures of ours that nobody could foresee.

    Without `others`, only ours and the clairvoyant, which takes half the time.
    """
    bound_s = lower_bound_s(trace.world, trace.rules.batch_ladder)
    found = [
        score_of(
            name,
            trace.world,
            simulate(trace.world, trace.rules, policy=policy, seed=seed, checks=False, max_steps=MOST_STEPS),
            bound_s,
        )
        for name, policy in (POLICIES if others else {}).items()
    ]
    ours = simulate(trace.world, trace.rules, seed=seed, checks=True, max_steps=MOST_STEPS)
    found.append(score_of(OURS, trace.world, ours, bound_s))
    burdened = with_first_failures(trace.world, ours.attempts)
    best = min(
        (
            simulate(burdened, trace.rules, policy=policy, seed=seed, checks=False, max_steps=MOST_STEPS)
            for policy in candidates(burdened, trace.rules.batch_ladder)
        ),
        key=lambda outcomes: outcomes.makespan_s,
    )
    found.append(score_of(CLAIRVOYANT, trace.world, best, bound_s))
    return found


def with_first_failures(world: World, attempts: Sequence[AttemptTrace]) -> World:
    """The world in which each cell also fails as it did under ours where nobody could have known better.

    That is where it ran out of memory at its own cap before any attempt at the same work (model, method and batch) had
    ended, or with a whole device before any attempt at it had ended so or succeeded: a batch may be cut only after
    that was tried, whatever was seen with less. It takes as long as it did, and is then tried again at once.
    """
    first: dict[str, list[AttemptTrace]] = {}
    cells = {each.cell.key: each for each in world.cells}
    taught: dict[tuple[object, ...], float] = {}
    settled: dict[tuple[object, ...], float] = {}
    for each in attempts:  # in the order in which they ended
        work = _work(cells[each.key], each)
        unforeseen = each.memory is MemoryEnd.OWN_CAP and each.started_s < taught.setdefault(work, each.ended_s)
        taught.setdefault(work, each.ended_s)
        tried_whole = each.memory is MemoryEnd.TOO_BIG and each.exclusive
        if tried_whole or each.outcome is Outcome.SUCCEEDED:
            settled.setdefault(work, each.ended_s)
        unforeseen |= each.memory is MemoryEnd.TOO_BIG and each.started_s < taught[work]
        if unforeseen or (tried_whole and each.started_s < settled[work]):
            first.setdefault(each.key, []).append(each)
    return replace(world, cells=tuple(_burdened(cell, first.get(cell.cell.key, ())) for cell in world.cells))


def _work(cell: SimCell, attempt: AttemptTrace) -> tuple[object, ...]:
    parameters = cell.cell.parameters
    return parameters["model"], parameters["method"], attempt.batch_size


def _burdened(cell: SimCell, failures: Iterable[AttemptTrace]) -> SimCell:
    truth = cell.truth
    mishaps = tuple(
        Mishap(Failure.SHIM_LOST, min(0.99, (each.ended_s - each.started_s) / truth.duration_s)) for each in failures
    )
    return replace(cell, truth=replace(truth, mishaps=(*mishaps, *truth.mishaps))) if mishaps else cell


def score_of(policy: str, world: World, outcomes: Outcomes, bound_s: float) -> Score:
    """What a run was like; `bound_s` is the makespan that no packer can beat."""
    cells = {each.cell.key: each for each in world.cells}
    return Score(
        policy,
        outcomes.makespan_s,
        outcomes.makespan_s / bound_s,
        outcomes.counts.out_of_memory,
        outcomes.counts.neighbour,
        sum(each.needless_cut for each in outcomes.attempts),
        sum(each.had_company and cells[each.key].policy.must_be_alone for each in outcomes.attempts),
        _bug_retries(cells, outcomes),
        sum(state != "succeeded" and cells[key].truth.always is None for key, state in outcomes.cells.items()),
    )


def _bug_retries(cells: Mapping[str, SimCell], outcomes: Outcomes) -> int:
    plain: dict[str, int] = {}
    for each in outcomes.attempts:
        if cells[each.key].truth.always is not None and each.outcome is Outcome.FAILED:
            plain[each.key] = plain.get(each.key, 0) + 1
    return max((count - 1 for count in plain.values()), default=0)
