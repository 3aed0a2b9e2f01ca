"""A simulated daemon with all that goes wrong with it: it dies, its store takes no commit, people want things of it.

It drives the same loop as the engine that it extends. It can be killed before and after each commit and before each
effect; what the next one knows is what was committed. Every promise is checked on the way (`invariants.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from boundd.core.lifecycle.loop import Keep, NotStored, Planner, keep_nothing
from boundd.core.model.attempts import AttemptState
from boundd.core.model.effects import Commit, Effect, EndWorker, Spawn, WakeAt
from boundd.core.model.events import ConfigLoaded, DevicesRead, DevicesUnreadable, Event
from boundd.core.model.quarantines import ByOperator, SubjectKind
from boundd.core.model.records import Record, SaveAnswer, SaveAttempt, SaveQuarantine
from boundd.core.model.state import Rules, State
from boundd.sim.engine import MAX_STEPS, Engine
from boundd.sim.trace import Outcomes, Violation
from boundd.sim.world import World
from tests.sim.invariants import Checker, NoChecks
from tests.sim.memory_store import Kept
from tests.sim.people import People, event_of
from tests.sim.trouble import Deed, Trouble, Wish

ANSWERED = frozenset({Wish.CANCEL, Wish.RETRY, Wish.PAUSE, Wish.RESUME, Wish.CORDON, Wish.UNCORDON})
"""Wishes whose answer is kept in the transaction of what they change."""


class _Crash(Exception):  # noqa: N818 - the daemon's death, not an error
    """The daemon is killed here."""


def simulate(
    world: World,
    rules: Rules | None = None,
    *,
    policy: Planner | None = None,
    seed: int = 0,
    checks: bool = True,
    log: list[str] | None = None,
    must_end: bool = True,
    max_steps: int = MAX_STEPS,
) -> Outcomes:
    """Run a world to its end: until every cell has ended and every person has had their wish.

    As `boundd.sim.simulate`, with everything of `Trouble` where the world's faults are of that kind. `checks` walks the
    promises after every step. Every event and effect is added to `log` as a line.

    Raises:
        Violation: a promise was broken (with `checks`), or the run can't come to an end (always).
    """
    run = TroubledEngine(world, rules or Rules(), policy, seed, checks=checks, log=log)
    return run.to_its_end(max_steps, must_end=must_end)


class TroubledEngine(Engine):
    """One run in which the daemon, its store and its people are as bad as `Trouble` says."""

    def __init__(
        self,
        world: World,
        rules: Rules,
        policy: Planner | None = None,
        seed: int = 0,
        *,
        checks: bool = True,
        log: list[str] | None = None,
    ) -> None:
        super().__init__(world, rules, policy, seed, log=log)
        self._trouble = world.faults if isinstance(world.faults, Trouble) else Trouble()
        self._kept = Kept()
        self._checker = Checker(world, rules, self._machine, self._kept) if checks else NoChecks()
        self._points_passed = 0
        self._ending_all = False
        self._reloaded = False
        self._checked: State | None = None
        self._people = People(self._trouble.deeds, self._agenda, self._do_deed)

    def to_its_end(self, max_steps: int = MAX_STEPS, *, must_end: bool = True) -> Outcomes:
        """Run until nothing is left to do, and nobody wants anything any more."""
        outcomes = super().to_its_end(max_steps, must_end=must_end)
        if must_end:
            assert self._state is not None
            self._checker.ended(self._state)
        return outcomes

    def _over(self) -> bool:
        return super()._over() and not self._people.waiting and self._state is not None and not self._state.stopping

    def _looked_after(self) -> bool:
        """A person puts back what the core took out of service."""
        if self._state is None or not self._state.quarantines:
            return False
        self._counts.uncordoned += 1
        held = sorted(subject.name for subject in self._state.quarantines if subject.kind is SubjectKind.DEVICE)
        self._people.want([Deed(self._agenda.now_s, Wish.UNCORDON, device) for device in held])
        return True

    # The life of the daemon

    def _restored(self) -> State:
        config = self._config()
        self._checker.config_read(config)
        return self._kept.restored(config.rules, config.settings)

    def _config(self) -> ConfigLoaded:
        """What the config file says: once a person has changed it, for a daemon that starts as well."""
        new = super()._config()
        late = 0 if self._reloaded else self._trouble.late_cells
        if not late:
            return replace(new, settings="new")
        old_rules = replace(new.rules, quick_s=new.rules.quick_s / 2)
        return ConfigLoaded(new.cells[:-late], old_rules, settings="old")

    def _start(self) -> None:
        self._ending_all = False
        try:
            super()._start()
        except _Crash:
            self._die()

    def _took_up(self, state: State) -> None:
        self._checker.recovered(state)

    def _die(self) -> None:
        self._counts.crashes += 1
        self._leave()

    def _leave(self) -> None:
        super()._leave()
        self._agenda.at(self._agenda.now_s + self._trouble.down_s, self._start)

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except _Crash:
            self._die()

    # Driving the loop

    def _submit(self, event: Event, keep: Keep = keep_nothing) -> bool:
        happened = super()._submit(event, keep)
        if self._ending_all and self._state is not None and not self._state.attempts:
            self._counts.restarts += 1
            self._leave()
        return happened

    def _handle(self, event: Event, keep: Keep = keep_nothing) -> bool:
        assert self._loop is not None
        self._checked = self._loop.state
        happened = super()._handle(event, keep)
        self._check(event)
        if happened and isinstance(event, DevicesUnreadable):
            self._checker.read(event, self._probe.as_of_s(self._agenda.now_s))  # whatever was made of it
        self._checker.handled(self._loop.state, event, happened=happened)
        return happened

    def _check(self, event: Event) -> None:
        """Walk the promises, if the state has changed since the last time."""
        assert self._loop is not None
        if self._loop.state is self._checked:
            return
        self._checked = self._loop.state
        if isinstance(event, DevicesRead):
            self._checker.read(event, self._probe.as_of_s(self._agenda.now_s))
        self._checker.stepped(self._loop.state)

    def _perform(self, event: Event, effect: Effect) -> NotStored | None:
        self._check(event)
        if isinstance(effect, Spawn | EndWorker | WakeAt):
            self._point()
        if isinstance(effect, Spawn):
            self._checker.spawning(effect.attempt, event, self._agenda.now_s)
        return super()._perform(event, effect)

    def _commit(self, commit: Commit) -> NotStored | None:
        self._point()
        if self._refuses(commit.records):
            self._counts.failed_commits += 1
            return NotStored("the disk is full")
        self._kept.commit(commit.records)
        super()._commit(commit)
        self._counts.cordons += sum(
            isinstance(record, SaveQuarantine) and not isinstance(record.quarantine.cause, ByOperator)
            for record in commit.records
        )
        self._checker.committed(commit.records, self._agenda.now_s)
        self._point()
        return None

    def _refuses(self, records: Sequence[Record]) -> bool:
        """Whether the store doesn't take a commit of these now."""
        now_s = self._agenda.now_s
        if any(now_s in window for window in self._trouble.store_busy):
            return True
        intends = any(
            isinstance(record, SaveAttempt) and record.attempt.state is AttemptState.STARTING for record in records
        )
        return intends and any(now_s in window for window in self._trouble.store_tight)

    def _point(self) -> None:
        """An instant between two effects."""
        self._points_passed += 1
        if self._points_passed - 1 in self._trouble.crash_points:
            raise _Crash

    # People

    def _do_deed(self, deed: Deed) -> bool:
        """Do what a person wants; False where it must be asked again, because nobody answered or it was refused."""
        if deed.wish is Wish.RELOAD:
            self._reloaded = True
        state = self._state
        if state is None or state.stopping or (deed.wish is Wish.UNCORDON and deed.subject not in state.devices):
            return False
        key = f"{deed.wish} {deed.subject} {deed.at_s}"
        if key in self._kept.answers:
            self._counts.deeds += 1
            return True  # it had happened before the daemon died, and the next one knows that
        answers = deed.wish in ANSWERED
        answer = SaveAnswer(0, key, "", self._agenda.now_s, None, 0.0, 1)
        try:
            happened = self._submit(event_of(deed, self._config()), lambda _: (answer,) if answers else ())
        except _Crash:
            self._die()  # it may have happened or not
            return False
        if answers and happened != (key in self._kept.answers):
            raise Violation("answered", f"{deed.wish} has {'' if happened else 'not '}happened, its answer says else")
        if not happened:
            return False
        self._counts.deeds += 1
        if deed.wish is Wish.STOP_ALL and self._state is not None and self._state.attempts:
            self._ending_all = True
        elif deed.wish in (Wish.STOP, Wish.STOP_ALL):
            self._counts.restarts += 1
            self._leave()
        return True
