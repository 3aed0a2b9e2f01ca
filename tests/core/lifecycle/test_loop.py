"""The loop by itself: what it asks its driver to do, in which order, and what becomes of the state.

Whole runs of it, with crashes between any two effects, are in tests/sim; tests/sim/bugs.py breaks it on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.loop import Loop, NotStored, keep_nothing, plans_after
from boundd.core.model.attempts import AttemptState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Action, Commit, Effect, Note, ReadDevices, ResultsChanged, Spawn
from boundd.core.model.events import (
    AttemptEnded,
    AttemptStarted,
    ConfigLoaded,
    DevicesRead,
    DevicesUnreadable,
    Event,
    Now,
    PauseRequested,
    ResumeRequested,
    ShutdownRequested,
    Wake,
)
from boundd.core.model.outcomes import AttemptError, Measurement, Outcome, Verdict
from boundd.core.model.records import Record, SaveAttempt, SaveEnd, SavePaused
from boundd.core.model.state import Rules, State

GIB = 1024**3
NOW = Now(100.0, 1_700_000_000.0)
SUCCESS = Verdict(Outcome.SUCCEEDED, Measurement(2.0, 1.5, {}, Isolation.EXCLUSIVE))
READING = DevicesRead((DeviceReading("GPU-0", 0, "A", 24 * GIB, 24 * GIB),))


@dataclass
class Driver:
    """Does nothing but write down what it is asked to do, and what the state was then."""

    loop: Loop
    refuses: list[bool] = field(default_factory=list)
    """Whether the store refuses the next commits, one after the other; it takes those after them."""
    done: list[Effect] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def handle(self, event: Event, keep: object = keep_nothing) -> bool:
        """Drive the loop to the end of an event."""
        self.done, self.states = [], []
        turn, answer = self.loop.handle(event, NOW, keep), None  # type: ignore[arg-type]
        while True:
            try:
                effect = turn.send(answer)
            except StopIteration as over:
                return bool(over.value)
            self.done.append(effect)
            self.states.append(self.loop.state)
            is_refused = isinstance(effect, Commit) and self.refuses and self.refuses.pop(0)
            answer = NotStored("the disk is full") if is_refused else None

    def commits(self) -> list[tuple[Record, ...]]:
        """The records of each commit that was asked for."""
        return [effect.records for effect in self.done if isinstance(effect, Commit)]

    def actions(self) -> list[Action]:
        """What was told."""
        return [effect.action for effect in self.done if isinstance(effect, Note)]


def begun(cells: int = 3) -> Driver:
    """A loop of so many cells, two of which fit on the device at a time; nothing runs yet."""
    matrix = tuple((Cell.of({"n": n}, ["n"]), CellPolicy(footprint_bytes=10 * GIB)) for n in range(cells))
    driver = Driver(Loop(State()))
    for event in (READING, ConfigLoaded(matrix, Rules(), "settings")):
        assert driver.handle(event)
    return driver


def running(cells: int = 3) -> Driver:
    """The same, once it has planned."""
    driver = begun(cells)
    assert driver.handle(Wake())
    return driver


def starts(records: Sequence[Record]) -> int:
    """How many intents are among these."""
    saved = [each.attempt for each in records if isinstance(each, SaveAttempt)]
    return sum(attempt.state is AttemptState.STARTING for attempt in saved)


def test_nothing_is_planned_until_the_first_wake() -> None:
    """What an earlier daemon left must be watched before anything is placed beside it."""
    driver = begun()
    assert driver.loop.reads_host, "nobody knows yet what is there"
    assert not driver.loop.state.attempts
    driver.handle(PauseRequested())
    driver.handle(ResumeRequested())
    assert not any(isinstance(effect, Spawn) for effect in driver.done)
    driver.handle(Wake())
    assert sum(isinstance(effect, Spawn) for effect in driver.done) == 2


def test_a_commit_comes_first_and_the_state_after_it() -> None:
    """As long as it is not stored, the state is the one before; whatever is done is done with the new one."""
    driver = begun()
    before = driver.loop.state
    driver.handle(Wake())
    assert isinstance(driver.done[0], Commit)
    assert driver.states[0] is before
    assert all(state is driver.loop.state is not before for state in driver.states[1:])
    assert starts(driver.done[0].records) == 2


def test_an_event_and_the_plan_after_it_are_one_commit() -> None:
    """The end of an attempt, and the intent of the one in its place."""
    driver = running()
    first = next(iter(driver.loop.state.attempts))
    driver.handle(AttemptEnded(first, SUCCESS))
    (records,) = driver.commits()
    assert (sum(isinstance(each, SaveEnd) for each in records), starts(records)) == (1, 1)
    assert isinstance(driver.done[-1], ReadDevices)
    assert driver.done[-1].at_once, "what it has given back is looked at"
    assert any(isinstance(effect, ResultsChanged) for effect in driver.done)


def test_where_the_plan_cannot_be_stored_the_event_is_alone() -> None:
    """It has happened, nothing has started, and the next reading plans again."""
    driver = running()
    first = next(iter(driver.loop.state.attempts))
    driver.refuses = [True]
    assert driver.handle(AttemptEnded(first, SUCCESS))
    both, alone = driver.commits()
    assert (starts(both), starts(alone)) == (1, 0)
    assert len(driver.loop.state.attempts) == 1
    assert not any(isinstance(effect, Spawn) for effect in driver.done)
    assert driver.actions()[:2] == [Action.STORE_UNAVAILABLE, Action.STORE_RECOVERED]
    assert any(isinstance(effect, ReadDevices) for effect in driver.done)


def test_an_event_that_cannot_be_stored_has_not_happened() -> None:
    """The state is the same value, nothing is done but to say so, once."""
    driver = running()
    before = driver.loop.state
    driver.refuses = [True, True, True, True]
    assert not driver.handle(PauseRequested())
    assert driver.loop.state is before
    assert driver.actions() == [Action.STORE_UNAVAILABLE]
    assert all(isinstance(effect, Commit | Note) for effect in driver.done)
    assert "the disk is full" in driver.loop.store_failure
    assert not driver.handle(PauseRequested())
    assert driver.actions() == [], "it has been told"
    assert driver.handle(PauseRequested())
    assert driver.actions()[0] is Action.STORE_RECOVERED
    assert driver.loop.store_failure == ""


def test_what_is_kept_with_an_event_is_asked_for_with_each_try() -> None:
    """By the state that the event is applied to, and in its transaction."""
    driver = running()
    asked: list[bool] = []

    def keep(state: State) -> tuple[Record, ...]:
        asked.append(state.paused)
        return (SavePaused(False),)

    driver.refuses = [True]
    assert driver.handle(ShutdownRequested(end_workers=False), keep)
    assert asked == [False, False]
    assert [records[-1] for records in driver.commits()] == [SavePaused(False)] * 2


@pytest.mark.parametrize(
    "event",
    [
        AttemptStarted("a.1"),
        DevicesUnreadable("gone"),
        Wake(),
        AttemptEnded("a.1", Verdict(Outcome.OUT_OF_MEMORY, error=AttemptError(ErrorKind.OUT_OF_MEMORY, "", 0.0))),
    ],
)
def test_events_that_make_nothing_possible_are_not_planned_after(event: Event) -> None:
    """Nor is one that shows the latest reading to be wrong; a `Wake` is a plan."""
    assert not plans_after(event)
    assert plans_after(PauseRequested())


def test_a_reload_is_whole_or_not_at_all() -> None:
    """Cells, rules and settings change together, or stay."""
    driver = running()
    matrix = tuple((Cell.of({"n": n}, ["n"]), CellPolicy(exclusive=True)) for n in range(4))
    new = ConfigLoaded(matrix, Rules(max_attempts=1), "new")
    before = driver.loop.state
    driver.refuses = [True, True]
    assert not driver.handle(new)
    assert driver.loop.state is before
    assert driver.handle(new)
    state = driver.loop.state
    assert (len(state.order), state.rules.max_attempts, state.settings) == (4, 1, "new")
    assert all(record.policy.exclusive for record in state.matrix())


def test_devices_that_cannot_be_read_are_unavailable_and_it_is_told_once() -> None:
    """Nothing is known of them until a reading succeeds."""
    driver = running()
    assert driver.handle(DevicesUnreadable("the driver is gone"))
    reading = driver.loop.state.devices["GPU-0"].reading
    assert (reading.free_bytes, reading.total_bytes, reading.unavailable) == (None, None, "the driver is gone")
    assert driver.actions() == [Action.DEVICE_UNAVAILABLE]
    assert driver.handle(DevicesUnreadable("the driver is gone"))
    assert driver.actions() == []
    assert driver.handle(READING)
    assert Action.DEVICE_RECOVERED in driver.actions()


def test_the_end_of_all_work_is_told_once() -> None:
    """And again only after there was something to do in between."""
    driver = begun(cells=1)
    driver.handle(Wake())
    (attempt,) = driver.loop.state.attempts
    driver.handle(AttemptEnded(attempt, SUCCESS))
    assert driver.actions()[-1] is Action.RUN_IDLE
    driver.handle(READING)
    assert Action.RUN_IDLE not in driver.actions()
