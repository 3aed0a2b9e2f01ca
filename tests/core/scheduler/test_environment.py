"""What is no cell's fault: nobody pays, its like waits, one attempt at a time tries, and it goes on by itself.

Seen to fail: with `decide` in place of `retry_uncharged` (boundd/core/lifecycle/ending.py) the cells end after an
attempt each; without `is_blocked` in the planner all of them are started at once; without `_close_probed` in `step.py`
the others wait until the probe has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.step import step
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.effects import Action, Effect, Note, WakeAt
from boundd.core.model.events import (
    AttemptEnded,
    AttemptProgressed,
    AttemptStarted,
    CancelRequested,
    ConfigLoaded,
    Event,
    Now,
    RetryRequested,
    Wake,
)
from boundd.core.model.outcomes import AT_START, ENVIRONMENT, AttemptError, Measurement, Outcome, Verdict
from boundd.core.model.reasons import HeldBack
from boundd.core.model.state import State, sanity_check
from boundd.core.scheduler.environment import MAX_PAUSE_S, count_waiting, pause_s

MakeCell = Callable[..., Cell]
MakeState = Callable[..., State]
GOOD = Verdict(Outcome.SUCCEEDED, Measurement(2.0, 1.5, None, Isolation.EXCLUSIVE), wall_s=3.0)
BACKOFF_S = 30.0


def bad(kind: ErrorKind, *, subject: str = "", phase: str | None = None, wall_s: float = 2.0) -> Verdict:
    """A failure of this kind."""
    return Verdict(Outcome.FAILED, error=AttemptError(kind, "why", 0.0, phase, subject=subject), wall_s=wall_s)


class Run:
    """A state, a clock, and what was told."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.now_s = 0.0
        self.told: list[Note] = []
        self.woken: list[float] = []

    def __call__(self, event: Event) -> None:
        """Apply an event and plan."""
        for each in (event, Wake()):
            self.state, effects = step(self.state, each, Now(self.now_s, 1e9 + self.now_s))
            sanity_check(self.state)
            self._take(effects)

    def _take(self, effects: tuple[Effect, ...]) -> None:
        self.told += [effect for effect in effects if isinstance(effect, Note)]
        self.woken = [effect.boot_s for effect in effects if isinstance(effect, WakeAt)]

    def live(self) -> list[Attempt]:
        """The live attempts, oldest first."""
        return sorted(self.state.attempts.values(), key=lambda attempt: (attempt.started_boot_s, attempt.id))

    def end(self, attempt: Attempt, verdict: Verdict) -> None:
        """End an attempt."""
        self(AttemptEnded(attempt.id, verdict))

    def actions(self) -> list[Action]:
        """What was told of the environment and of cells given up."""
        wanted = (Action.ENVIRONMENT_PROBLEM, Action.ENVIRONMENT_RECOVERED, Action.CELL_GAVE_UP)
        return [note.action for note in self.told if note.action in wanted]

    def states(self) -> set[CellState]:
        """Where the cells stand."""
        return {record.state for record in self.state.matrix()}


@pytest.fixture
def two_models(make_cell: MakeCell, make_state: MakeState) -> Run:
    """Five cells each of two models, and two devices that hold a few at a time."""
    policy = CellPolicy(footprint_bytes=4 * 1024**3, program="python")
    cells = [make_cell(model=model, steps=n) for n in range(1, 6) for model in ("SD1.5", "SDXL")]
    run = Run(make_state(cells, [24, 24], policy=policy, backoff_s=BACKOFF_S))
    run(Wake())
    return run


def of(run: Run, model: str) -> list[Attempt]:
    """The live attempts of a model."""
    return [each for each in run.live() if run.state.cells[each.key].cell.parameters["model"] == model]


def test_a_hub_that_is_away_costs_nobody_anything(two_models: Run) -> None:
    """All that run fail by it; one problem is told; the other model goes on; one tries, and then all go on."""
    run = two_models
    for attempt in of(run, "SD1.5"):
        run.end(attempt, bad(ErrorKind.HUB_UNAVAILABLE, subject="hub.example"))
    assert run.actions() == [Action.ENVIRONMENT_PROBLEM]
    assert of(run, "SD1.5") == []
    (problem,) = run.state.problems.values()
    assert count_waiting(run.state, [problem]) == 5
    waiting = next(r for r in run.state.pending() if r.cell.parameters["model"] == "SD1.5")
    reason = run.state.deferrals[waiting.cell.key].wait
    assert reason == HeldBack(ErrorKind.HUB_UNAVAILABLE, "hub.example", "why", BACKOFF_S)
    said = wording.wait(reason)
    assert "the hub can't be reached (hub.example): why; tried again in 30 s" in said
    assert "hf download" in said
    assert run.woken == [BACKOFF_S]
    # The other model is not concerned.
    while of(run, "SDXL"):
        run.end(of(run, "SDXL")[0], GOOD)
    assert run.live() == []
    run.now_s = BACKOFF_S
    run(Wake())
    (probe,) = run.live()
    run.end(probe, bad(ErrorKind.HUB_UNAVAILABLE))
    assert run.live() == []
    assert run.woken == [BACKOFF_S + 2 * BACKOFF_S]
    run.now_s += 2 * BACKOFF_S
    run(Wake())
    (probe,) = run.live()
    run(AttemptStarted(probe.id))
    run(AttemptProgressed(probe.id, 0, 20))
    assert len(run.live()) == 1, "that it has begun says nothing yet"
    run(AttemptProgressed(probe.id, 1, 20))
    assert len(run.live()) > 1, "it works: the others need not wait for its end"
    assert run.actions()[-1] is Action.ENVIRONMENT_RECOVERED
    while run.live():
        run.end(run.live()[0], GOOD)
    assert run.states() == {CellState.SUCCEEDED}
    records = list(run.state.matrix())
    assert [record.charged_failures + record.free_failures + record.plain_failures for record in records] == [0] * 10


@pytest.mark.parametrize("kind", sorted(ENVIRONMENT))
@pytest.mark.parametrize("phase", [AT_START, "load"])
def test_many_failures_leave_a_cell_as_it_was(
    make_cell: MakeCell, make_state: MakeState, kind: ErrorKind, phase: str
) -> None:
    """Fifty in a row are as good as none; what may be the cell's own doing (host memory) is free ten times."""
    run = Run(make_state([make_cell(), make_cell(steps=9)], [24], max_attempts=1, backoff_s=0.0))
    run(Wake())
    for _ in range(10 if kind is ErrorKind.HOST_MEMORY else 50):
        run.now_s += MAX_PAUSE_S
        run(Wake())
        run.end(run.live()[0], bad(kind, phase=phase))
        assert run.states() <= {CellState.PENDING, CellState.RUNNING}
    run.now_s += MAX_PAUSE_S
    run(Wake())
    while run.live():
        run.end(run.live()[0], GOOD)
    assert run.states() == {CellState.SUCCEEDED}
    assert all(record.charged_failures == 0 for record in run.state.matrix())
    assert not run.state.problems


def test_the_patience_ends(two_models: Run) -> None:
    """Once it is used up, all that waited are given up together, say why, and come back by `retry`; others don't."""
    run = two_models
    run.state = replace(run.state, rules=replace(run.state.rules, patience_s=1000.0))
    for attempt in of(run, "SD1.5"):
        run.end(attempt, bad(ErrorKind.HUB_UNAVAILABLE))
    for attempt in of(run, "SDXL"):
        run.end(attempt, GOOD)
    while run.state.problems:
        run.now_s = run.woken[-1]
        run(Wake())
        for attempt in of(run, "SD1.5"):
            run.end(attempt, bad(ErrorKind.HUB_UNAVAILABLE))
    assert 1000.0 <= run.now_s < 1000.0 + MAX_PAUSE_S
    by_model = {
        model: {r.state for r in run.state.matrix() if r.cell.parameters["model"] == model}
        for model in ("SD1.5", "SDXL")
    }
    assert by_model["SD1.5"] == {CellState.FAILED}
    assert CellState.FAILED not in by_model["SDXL"]
    gave_up = [note for note in run.told if note.action is Action.CELL_GAVE_UP]
    assert len(gave_up) == 5
    assert all("patience of 1000 s (retry.patience)" in note.message for note in gave_up)
    run(RetryRequested(tuple(r.cell.key for r in run.state.matrix() if r.state is CellState.FAILED)))
    assert len(of(run, "SD1.5")) > 1, "a person has put them back: nothing is held against them"


def test_what_fails_at_the_start_holds_back_who_shares_the_program(make_cell: MakeCell, make_state: MakeState) -> None:
    """Another interpreter is another matter; and a config that is read anew has it tried at once."""
    cells = [make_cell(steps=n) for n in range(1, 7)]
    policies = [CellPolicy(footprint_bytes=1024**3, program=f"python{n % 2}") for n in range(6)]
    state = make_state([], [24])
    pairs = tuple(zip(cells, policies, strict=True))
    run = Run(state)
    run(ConfigLoaded(pairs, state.rules))
    broken = [each for each in run.live() if run.state.cells[each.key].policy.program == "python1"]
    for attempt in broken:
        run.end(attempt, bad(ErrorKind.INTERPRETER, phase=AT_START))
    assert {run.state.cells[each.key].policy.program for each in run.live()} == {"python0"}
    assert count_waiting(run.state, run.state.problems.values()) == 3
    run(ConfigLoaded(pairs, state.rules))
    assert [run.state.cells[each.key].policy.program for each in run.live()].count("python1") == 1
    run(ConfigLoaded(tuple((cell, replace(policy, program="python0")) for cell, policy in pairs), state.rules))
    assert not run.state.problems, "nobody needs that program any more"


def test_a_device_that_fails_first_gets_one_at_a_time(make_cell: MakeCell, make_state: MakeState) -> None:
    """Its cells run elsewhere, nobody pays, and when it works again it is used again."""
    policy = CellPolicy(footprint_bytes=1024**3, exclusive=True)
    run = Run(make_state([make_cell(steps=n) for n in range(1, 9)], [24, 24], policy=policy))
    run(Wake())
    (broken,) = [each for each in run.live() if each.device == "GPU-0"]
    run.end(broken, bad(ErrorKind.DEVICE_FAILED))
    assert [each.device for each in run.live()] == ["GPU-1"]
    waiting = next(run.state.pending())
    refusals = {no.device: no.refusal for no in run.state.deferrals[waiting.cell.key].devices}
    assert refusals["GPU-0"] == HeldBack(ErrorKind.DEVICE_FAILED, "GPU-0", "why", BACKOFF_S)
    run.now_s = BACKOFF_S
    run(Wake())
    probe = next(each for each in run.live() if each.device == "GPU-0")
    run.end(probe, GOOD)
    assert not run.state.problems
    while run.live():
        run.end(run.live()[0], GOOD)
    assert run.states() == {CellState.SUCCEEDED}


def test_a_probe_that_outlives_the_others_has_got_past(two_models: Run) -> None:
    """A worker that says nothing is taken to work once it runs a minute longer than the others did."""
    run = two_models
    for attempt in of(run, "SD1.5"):
        run.end(attempt, bad(ErrorKind.HUB_UNAVAILABLE, wall_s=40.0))
    for attempt in run.live():
        run.end(attempt, GOOD)
    run.now_s = BACKOFF_S
    run(Wake())
    (probe,) = of(run, "SD1.5")
    run(AttemptStarted(probe.id))
    run.now_s = BACKOFF_S + 99.0
    run(Wake())
    assert run.woken == [BACKOFF_S + 100.0]
    assert len(of(run, "SD1.5")) == 1
    run.now_s = BACKOFF_S + 100.0
    run(Wake())
    assert len(of(run, "SD1.5")) > 1


@pytest.mark.parametrize("how", ["lost", "cancelled"])
def test_a_probe_that_says_nothing_is_followed_by_another(two_models: Run, how: str) -> None:
    """Lost or cancelled, it has not shown anything: the next one tries at once, alone."""
    run = two_models
    for attempt in of(run, "SD1.5"):
        run.end(attempt, bad(ErrorKind.HUB_UNAVAILABLE))
    run.now_s = BACKOFF_S
    run(Wake())
    (probe,) = of(run, "SD1.5")
    if how == "lost":
        run.end(probe, Verdict(Outcome.LOST, error=AttemptError(ErrorKind.LOST, "why", 0.0)))
    else:
        run(CancelRequested((probe.key,)))
        run.end(probe, Verdict(Outcome.CANCELLED, error=AttemptError(ErrorKind.CANCELLED, "why", 0.0)))
    assert len(run.state.problems) == 1
    (again,) = of(run, "SD1.5")
    assert again.id != probe.id


def test_pauses_double_up_to_the_longest() -> None:
    """From the backoff, or a second where that is none; a backoff above the longest stays what it is."""
    assert [pause_s(n, 30.0) for n in range(6)] == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0]
    assert pause_s(0, 0.0) == 1.0
    assert pause_s(10_000, 30.0) == 600.0
    assert pause_s(3, 3600.0) == 3600.0
