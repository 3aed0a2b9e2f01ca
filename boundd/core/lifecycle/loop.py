"""The loop: in which order an event is stored, becomes the state, and is acted upon.

The daemon (`boundd/service/loop_driver.py`) and the simulator (`boundd/sim/engine.py`) both drive this loop, so that
what the simulation checks is what runs. It does no I/O: `Loop.handle` is a generator of effects, and its driver does
each of them before it asks for the next. A driver can die between any two; what was committed by then has happened.

Rules:

- An event and the plan that follows it are one transaction, because each transaction is a flush of the disk. Where it
  can't be stored, the event is stored alone, and the next reading of the devices plans again.
- A state takes the place of the one before only once the store has taken its records. Nothing else changes the state.
- What follows from an event is done after that.
- Nothing is planned until the first `Wake`: a driver that starts submits it once it has the store's attempts in view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from immutables import Map

from boundd.core.lifecycle.step import step, wake_with
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.effects import Action, Commit, Effect, Note, ReadDevices, WakeAt
from boundd.core.model.events import (
    AttemptEnded,
    AttemptProgressed,
    AttemptStarted,
    DevicesRead,
    DevicesUnreadable,
    Event,
    Now,
    PointMeasured,
    Wake,
)
from boundd.core.model.history import Duration, Durations, Observation, Observations
from boundd.core.model.outcomes import Outcome
from boundd.core.model.quarantines import Quarantine
from boundd.core.model.queues import Cells
from boundd.core.model.records import Record
from boundd.core.model.state import Rules, State
from boundd.core.scheduler.planner import Plan

STORE_RETRY_S = 2.0
"""How long after a commit that failed the driver submits the same event again, if it has happened in any case."""
FREES_NOTHING = (AttemptStarted, AttemptProgressed, PointMeasured, DevicesUnreadable)
"""Events after which no cell can be placed that could not be before, so that there is nothing to plan."""

Planner = Callable[[State, Now], Plan]
Keep = Callable[[State], Sequence[Record]]
"""Says what is to be kept with an event, given the state that the event is applied to. It does nothing else."""


@dataclass(frozen=True, slots=True)
class NotStored:
    """The driver's answer to a `Commit` that the store did not take, now; a later one may be taken."""

    why: str


Turn = Generator[Effect, NotStored | None, bool]
"""The effects of one event, in order. The driver sends `NotStored` where a commit failed, else None; the value that the
generator returns is whether the event has happened."""


def keep_nothing(_before: State) -> Sequence[Record]:
    """A `Keep` of nothing."""
    return ()


def plans_after(event: Event) -> bool:
    """Whether what an event makes possible is planned in the same transaction.

    An attempt that was refused memory shows that the latest reading is not true any more: planned by it, the same would
    be tried again. The next reading, which an end calls for at once, plans.
    """
    if isinstance(event, AttemptEnded) and event.verdict.outcome is Outcome.OUT_OF_MEMORY:
        return False
    return not isinstance(event, (*FREES_NOTHING, Wake))


def restored(
    rules: Rules,
    settings: object,
    *,
    cells: Iterable[CellRecord],
    attempts: Iterable[Attempt],
    observations: Iterable[Observation],
    durations: Iterable[Duration],
    quarantines: Iterable[Quarantine],
    paused: bool,
) -> State:
    """The state that a daemon begins with: what its store kept, before any device was read or the matrix loaded."""
    return State(
        rules=rules,
        settings=settings,
        cells=Cells.of({record.cell.key: record for record in cells}),
        attempts=Map({attempt.id: attempt for attempt in attempts}),
        quarantines={each.subject: each for each in quarantines},
        observations=Observations.of(observations),
        durations=Durations.of(durations),
        paused=paused,
    )


class Loop:
    """Holds the state of a run and applies events to it, one after the other. Not to be entered while a turn is open.

    `planner` plans in place of the core's own, for benchmarks that compare planners.
    """

    def __init__(self, state: State, planner: Planner | None = None) -> None:
        self._state = state
        self._planner = planner
        self._recovering = True
        self._is_idle = False
        self._wake_boot_s = math.inf
        self._store_failure = ""

    @property
    def state(self) -> State:
        """The committed state."""
        return self._state

    @property
    def wake_boot_s(self) -> float:
        """When the next `Wake` is due, in seconds since boot; infinite where none is."""
        return self._wake_boot_s

    @property
    def store_failure(self) -> str:
        """Why nothing can be stored, and what to do, as of the latest commit; empty where the store works."""
        return self._store_failure

    @property
    def reads_host(self) -> bool:
        """Whether a reading should cover the machine's own memory and cores: only cells that wait are placed by it."""
        return self._recovering or self._state.has_pending

    def handle(self, event: Event, now: Now, keep: Keep = keep_nothing) -> Turn:
        """Apply an event, with the plan that follows it, and with the records that `keep` asks for.

        `keep` is asked for every try anew. Where the returned value is False nothing has changed but `store_failure`.

        Raises:
            AssertionError: the event can't happen in this state.
        """
        for events in self._transactions(event):
            new, effects = self._stepped(events, now)
            records = tuple(record for effect in effects if isinstance(effect, Commit) for record in effect.records)
            records += tuple(keep(self._state))
            refused = (yield Commit(records)) if records else None
            if refused is not None:
                yield from self._store_failed(refused)
                continue
            before, self._state = self._state, new
            if records:
                yield from self.store_works()
            yield from self._act(events, effects)
            yield from self._call_for_reading(events, before)
            yield from self._tell_idle()
            return True
        if isinstance(event, DevicesRead):
            yield ReadDevices()
        return False

    def store_works(self) -> Generator[Effect, None, None]:
        """The store has taken a record: what there is to tell of it."""
        if self._store_failure:
            self._store_failure = ""
            yield Note(Action.STORE_RECOVERED, "the store takes records again")

    def _store_failed(self, refused: NotStored) -> Generator[Effect, None, None]:
        is_news = not self._store_failure
        self._store_failure = f"nothing can be stored ({refused.why}): see to the disk, and it goes on by itself"
        if is_news:
            message = f"nothing can be stored: no new attempts until it can; {refused.why}"
            yield Note(Action.STORE_UNAVAILABLE, message, "error")

    def _transactions(self, event: Event) -> Sequence[tuple[Event, ...]]:
        """What is tried, in order, until one of them is stored."""
        if self._recovering or not plans_after(event):
            return ((event,),)
        return ((event, Wake()), (event,))

    def _stepped(self, events: Iterable[Event], now: Now) -> tuple[State, Sequence[Effect]]:
        state = self._state
        effects: list[Effect] = []
        for event in events:
            if isinstance(event, Wake) and self._planner is not None:
                state, more = wake_with(self._planner, state, now)
            else:
                state, more = step(state, event, now)
            effects += more
        return state, effects

    def _act(self, events: Sequence[Event], effects: Iterable[Effect]) -> Generator[Effect, None, None]:
        """What is to be done, now that all of it is stored."""
        if Wake() in events:
            self._recovering = False
            self._wake_boot_s = math.inf
        for effect in effects:
            if isinstance(effect, Commit):
                continue
            if isinstance(effect, WakeAt):
                self._wake_boot_s = effect.boot_s
            yield effect

    def _call_for_reading(self, events: Sequence[Event], before: State) -> Generator[Effect, None, None]:
        """Ask for a reading where the latest one is no longer what should be planned by."""
        if isinstance(events[0], AttemptEnded):
            yield ReadDevices(at_once=True)
            return
        others_live = self._state.attempts is not before.attempts and set(self._state.attempts) != set(before.attempts)
        not_planned = not self._recovering and plans_after(events[0]) and Wake() not in events
        host_unread = self._state.has_pending and not before.has_pending
        if others_live or not_planned or host_unread:
            yield ReadDevices()

    def _tell_idle(self) -> Generator[Effect, None, None]:
        was_idle, self._is_idle = self._is_idle, self._state.idle and not self._recovering
        if self._is_idle and not was_idle:
            yield Note(Action.RUN_IDLE, "nothing runs and nothing is pending")
