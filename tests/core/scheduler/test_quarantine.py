"""What becomes of a device whose attempt can't be killed.

Seen to fail: without `impose_for_unkillable` in `_attempt_unkillable` (boundd/core/lifecycle/step.py) cells are placed
beside the stuck one; without `lift_after` in boundd/core/lifecycle/ending.py the device stays out of service; with a
`lift_after` that doesn't look at the cause, a person's cordon is lifted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import AttemptState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceState
from boundd.core.model.effects import Action, Commit, Effect, Note, Spawn
from boundd.core.model.events import (
    AttemptEnded,
    AttemptUnkillable,
    CancelRequested,
    CordonRequested,
    Event,
    Now,
    UncordonRequested,
    Wake,
)
from boundd.core.model.outcomes import AttemptError, Outcome, Verdict
from boundd.core.model.quarantines import ByOperator, Quarantine, StuckProcess, UnkillableAttempt
from boundd.core.model.records import LiftQuarantine, SaveQuarantine
from boundd.core.model.state import State, sanity_check

GIB = 1024**3
LOST = Verdict(Outcome.LOST, error=AttemptError(ErrorKind.LOST, "why", 0.0))
STUCK = (StuckProcess(7, "python", "D", "nvidia_ioctl", 1.0),)
OTHER = (StuckProcess(8, "python", "D", "", 2.0),)
MakeCell = Callable[..., Cell]
MakeState = Callable[..., State]


class Run:
    """A state and what was done about it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.effects: list[Effect] = []

    def __call__(self, *events: Event) -> None:
        """Apply, and check."""
        for event in events:
            self.state, effects = step(self.state, event, Now(10.0, 10.0))
            sanity_check(self.state)
            self.effects += effects

    def cordons(self) -> list[Quarantine | None]:
        """What was committed, None for a quarantine lifted."""
        commits = (effect for effect in self.effects if isinstance(effect, Commit))
        records = [record for each in commits for record in each.records]
        changes = [record for record in records if isinstance(record, SaveQuarantine | LiftQuarantine)]
        return [change.quarantine if isinstance(change, SaveQuarantine) else None for change in changes]

    def told(self) -> list[Action]:
        """What was told."""
        return [effect.action for effect in self.effects if isinstance(effect, Note)]

    def spawned(self) -> int:
        """How many attempts were started."""
        return sum(isinstance(effect, Spawn) for effect in self.effects)


@pytest.fixture
def run(make_cell: MakeCell, make_state: MakeState) -> Run:
    """One device with room for two of three cells, two of which run."""
    cells = [make_cell(steps=n) for n in (1, 2, 3)]
    run = Run(make_state(cells, [24], max_cells=2, policy=CellPolicy(footprint_bytes=GIB)))
    run(Wake())
    return run


def test_its_device_is_cordoned_and_its_reservation_held(run: Run) -> None:
    """Nothing new comes, the reason names the process, and it is told once, however often it is seen."""
    first, *others = sorted(run.state.attempts)
    held = run.state.attempts[first]
    run(CancelRequested((held.key,)), *(AttemptUnkillable(first, STUCK) for _ in range(3)), Wake())
    device = run.state.devices[held.device]
    assert device.state is DeviceState.CORDONED
    assert device.quarantine is not None
    assert device.quarantine.cause == UnkillableAttempt(first, held.label, STUCK)
    assert device.quarantine.since_unix_s == 10.0
    assert run.state.attempts[first].state is AttemptState.ENDING
    assert run.state.attempts[first].reservation_bytes == held.reservation_bytes
    assert run.cordons() == [device.quarantine]
    assert run.told().count(Action.ATTEMPT_UNKILLABLE) == run.told().count(Action.DEVICE_CORDONED) == 1
    before = run.spawned()
    run(*(AttemptEnded(other, LOST) for other in others if run.state.attempts[other].device == held.device), Wake())
    assert run.spawned() == before


def test_it_is_in_service_again_when_the_attempt_has_ended(run: Run) -> None:
    """Also after a restart, which keeps the cordon's reason and nothing else of it."""
    first = min(run.state.attempts)
    device = run.state.attempts[first].device
    run(AttemptUnkillable(first, STUCK))
    forgotten = replace(run.state.attempts[first], unkillable=())
    run.state = replace(run.state, attempts=run.state.attempts.set(first, forgotten))
    run(AttemptEnded(first, LOST))
    assert run.state.devices[device].state is DeviceState.READY
    assert run.cordons()[-1] is None
    assert Action.DEVICE_UNCORDONED in run.told()
    run(AttemptUnkillable(first, STUCK))
    assert run.state.devices[device].state is DeviceState.READY


def test_a_persons_word_counts(run: Run) -> None:
    """A cordon of theirs is neither replaced nor lifted, and their uncordon is not undone."""
    first = min(run.state.attempts)
    device = run.state.attempts[first].device
    run(CordonRequested(device, "fan is loud"), AttemptUnkillable(first, STUCK), AttemptEnded(first, LOST))
    found = run.state.devices[device].quarantine
    assert found is not None
    assert found.cause == ByOperator("fan is loud")
    run(UncordonRequested(device), Wake())
    second = min(run.state.attempts)
    run(AttemptUnkillable(second, STUCK), UncordonRequested(device), AttemptUnkillable(second, STUCK))
    assert run.state.devices[device].state is DeviceState.READY


def test_two_on_one_device(run: Run) -> None:
    """The device stays out of service until the last of them has ended; the reason is that of who is left."""
    first, second = sorted(run.state.attempts)[:2]
    device = run.state.attempts[first].device
    assert run.state.attempts[second].device == device
    run(AttemptUnkillable(first, STUCK), AttemptUnkillable(second, OTHER), AttemptEnded(first, LOST))
    found = run.state.devices[device].quarantine
    assert found is not None
    assert isinstance(found.cause, UnkillableAttempt)
    assert (found.cause.attempt_id, found.cause.processes) == (second, OTHER)
    run(AttemptEnded(second, LOST))
    assert run.state.devices[device].state is DeviceState.READY
