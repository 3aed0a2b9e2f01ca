"""The engine: boundd's daemon without its shell, on a simulated machine, under a virtual clock.

It does what `boundd/service/daemon.py` does, step for step, and more finely: an event and the plan that follows it are
one transaction there and two here. Between any two effects the daemon can die; what the next one knows is what was
committed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from boundd.core.lifecycle.classification import Evidence, classify
from boundd.core.lifecycle.step import step, wake_with
from boundd.core.model.attempts import Attempt, EndReason
from boundd.core.model.effects import Commit, Effect, EndWorker, Spawn, WakeAt
from boundd.core.model.events import (
    AttemptEnded,
    AttemptStarted,
    DevicesRead,
    Event,
    MatrixLoaded,
    Now,
    PointMeasured,
    Wake,
)
from boundd.core.model.outcomes import Isolation, Outcome, PointRecord, Verdict
from boundd.core.model.state import Rules, State
from boundd.core.scheduler.planner import Plan
from boundd.sim.clock import Agenda
from boundd.sim.invariants import Checker, NoChecks
from boundd.sim.machine import Machine, Worker, reported_peak_bytes
from boundd.sim.memory_store import Kept
from boundd.sim.operators import People, event_of
from boundd.sim.probe import Probe
from boundd.sim.recorder import Recorder
from boundd.sim.trace import Counts, Outcomes, Violation
from boundd.sim.world import Deed, Wish, World

Policy = Callable[[State, Now], Plan]
"""Another planner: as `boundd.core.scheduler.planner.plan`, it starts cells and says what to start and when to look
again."""

START_UNIX_S = 1_700_000_000.0
"""What the virtual clock's 0 is in UTC seconds."""
STORE_RETRY_S = 2.0
FREES_NOTHING = (AttemptStarted, PointMeasured)
"""Events that the daemon doesn't plan after."""
MAX_STEPS = 20_000
"""A run of a test's size that needs more is going round in circles."""
POINT = PointRecord({"cache_interval": 3}, 1.5, 0.01, Isolation.EXCLUSIVE)


class _Crash(Exception):  # noqa: N818 - the daemon's death, not an error
    """The daemon is killed here."""


class _Busy(Exception):  # noqa: N818 - passing
    """The store did not take a commit."""


@dataclass(slots=True)
class _Watched:
    """How much of an attempt this life of the daemon has heard of."""

    started: bool = False
    points: int = 0


def simulate(
    world: World,
    rules: Rules | None = None,
    *,
    policy: Policy | None = None,
    seed: int = 0,
    checks: bool = True,
    log: list[str] | None = None,
    start: State | None = None,
    must_end: bool = True,
    max_steps: int = MAX_STEPS,
) -> Outcomes:
    """Run a world to its end: until every cell has ended and every person has had their wish.

    `policy` plans in place of the core's planner; everything else (retry, ledger, lifecycle) stays the core's. The
    seed draws how late the daemon hears of things. `checks` walks the invariants after every step. Every event and
    effect is added to `log` as a line. `start` is a state to go on from instead of an empty store: its live attempts
    run from the world's `start_s` on, as their cells' truths say. With `must_end` false, a run in which nothing will
    happen any more is over, and `Outcomes.waiting` says why the cells that are left wait.

    Raises:
        Violation: a promise was broken (with `checks`), or the run can't come to an end (always).
    """
    run = _Run(world, rules or Rules(), policy, seed, checks=checks, log=log)
    if start is not None:
        run.go_on_from(start)
    return run.to_its_end(max_steps, must_end=must_end)


class _Run:
    def __init__(
        self, world: World, rules: Rules, policy: Policy | None, seed: int, *, checks: bool, log: list[str] | None
    ) -> None:
        self._world = world
        self._rules = rules
        self._policy = policy
        self._random = random.Random(seed)  # noqa: S311 - a replay must draw the same
        self._log = log
        self._agenda = Agenda(world.start_s)
        self._machine = Machine(world, self._agenda, self._worker_spoke, self._readings_differ)
        self._kept = Kept()
        self._checker = Checker(world, rules, self._machine, self._kept) if checks else NoChecks()
        self._counts = Counts()
        self._probe = Probe(world, self._machine, self._counts)
        self._recorder = Recorder(world, rules, self._machine, self._counts)
        self._state: State | None = None
        self._life = 0
        self._points_passed = 0
        self._watched: dict[str, _Watched] = {}
        self._wake_boot_s = math.inf
        self._reading_at: set[float] = set()
        self._read_host = True
        self._ending_all = False
        self._people = People(world, self._agenda, self._do_deed)
        for window in (*world.faults.probe_failures, *world.faults.blind):
            self._agenda.at(window.from_s, self._readings_differ)
            self._agenda.at(window.until_s, self._readings_differ)

    def go_on_from(self, state: State) -> None:
        """Take up a state as if this machine had been its own all along."""
        self._kept.take_up(state)
        for attempt in state.attempts.values():
            self._machine.spawn(attempt)

    def to_its_end(self, max_steps: int, *, must_end: bool) -> Outcomes:
        """Run until nothing is left to do."""
        self._agenda.at(self._agenda.now_s, self._start)
        while not self._over():
            if self._counts.steps > max_steps:
                raise Violation("liveness", f"{max_steps:,} steps and no end: {self._what_waits()}")
            if self._agenda.advance():
                continue
            if not must_end:
                break
            if not self._person_looks_after_it():
                raise Violation("liveness", f"nothing will happen any more, and {self._what_waits()}")
        assert self._state is not None
        if must_end:
            self._checker.ended(self._state)
        return self._recorder.outcomes(self._state)

    def _over(self) -> bool:
        return self._state is not None and self._state.idle and not self._people.waiting and not self._state.stopping

    def _what_waits(self) -> str:
        if self._state is None:
            return "no daemon runs"
        waiting = [
            f"{record.cell.label} is {record.state}: {self._state.deferrals.get(record.cell.key, 'no reason')}"
            for record in self._state.pending()
        ]
        return "; ".join(waiting) or f"{len(self._state.attempts)} attempt(s) live"

    def _person_looks_after_it(self) -> bool:
        """Nothing more will happen by itself: a person puts back what the core took out of service."""
        if self._state is None or not self._state.cordons:
            return False
        self._counts.uncordoned += 1
        self._people.want([Deed(self._agenda.now_s, Wish.UNCORDON, device) for device in sorted(self._state.cordons)])
        return True

    # The life of the daemon

    def _start(self) -> None:
        self._life += 1
        self._watched.clear()
        self._reading_at.clear()
        self._wake_boot_s = math.inf
        self._ending_all = False
        try:
            self._state = self._kept.restored(self._rules)
            self._probe.forget()
            self._read(plan=False)
            self._apply(MatrixLoaded(tuple((each.cell, each.policy) for each in self._world.cells)))
            self._checker.recovered(self._state)
            self._readings_differ()
            for attempt_id, attempt in sorted(self._state.attempts.items()):
                self._counts.adopted += self._machine.is_alive(attempt_id)
                self._watch(attempt)
            self._submit_until_stored(Wake())
        except _Crash:
            self._die()
        except _Busy:
            self._leave()  # it can't even load the matrix: whoever started it starts it again

    def _die(self) -> None:
        self._counts.crashes += 1
        self._leave()

    def _leave(self) -> None:
        self._life += 1
        self._state = None
        self._agenda.at(self._agenda.now_s + self._world.faults.down_s, self._start)

    def _do(self, after_s: float, call: Callable[[], None]) -> None:
        """Have this life of the daemon do something after a while."""
        life = self._life

        def alive_then() -> None:
            if life != self._life:
                return
            try:
                call()
            except _Crash:
                self._die()

        self._agenda.at(self._agenda.now_s + after_s, alive_then)

    def _late_s(self) -> float:
        return self._random.random() * self._world.latency_s if self._world.latency_s else 0.0

    # Applying events

    def _submit(self, event: Event) -> None:
        self._apply(event)
        try:
            if isinstance(event, AttemptEnded) and event.verdict.outcome is Outcome.OUT_OF_MEMORY:
                self._readings_differ()  # as the daemon does: it plans by the next reading
            elif not isinstance(event, FREES_NOTHING):
                self._apply(Wake())
        except _Busy:
            self._readings_differ()  # the next reading plans again
        assert self._state is not None
        if not self._read_host and self._state.has_pending:
            self._readings_differ()
        if self._ending_all and not self._state.attempts:
            self._counts.restarts += 1
            self._leave()

    def _submit_until_stored(self, event: Event) -> None:
        try:
            self._submit(event)
        except _Busy:
            self._do(STORE_RETRY_S, lambda: self._submit_until_stored(event))

    def _apply(self, event: Event) -> None:
        assert self._state is not None
        now = Now(self._agenda.now_s, START_UNIX_S + self._agenda.now_s)
        before = self._state
        if self._policy is not None and isinstance(event, Wake):
            new, effects = wake_with(self._policy, before, now)
        else:
            new, effects = step(before, event, now)
        self._counts.steps += 1
        if self._log is not None:
            self._log.append(f"{now.boot_s:.6f} {event!r}")
            self._log += [f"  {effect!r}" for effect in effects]
        for effect in effects:
            if isinstance(effect, Commit):
                self._commit(effect)
        self._state = new
        if isinstance(event, DevicesRead):
            self._checker.read(event.readings, self._probe.as_of_s(now.boot_s))
        self._checker.stepped(new)
        if new.attempts is not before.attempts and set(new.attempts) != set(before.attempts):
            self._readings_differ()  # lists of processes are read anew
        if isinstance(event, Wake):
            self._wake_boot_s = math.inf
        for effect in effects:
            self._perform(effect)

    def _commit(self, commit: Commit) -> None:
        self._point()
        if any(self._agenda.now_s in window for window in self._world.faults.store_busy):
            self._counts.failed_commits += 1
            raise _Busy
        self._kept.commit(commit.records)
        self._recorder.committed(commit.records)
        self._checker.committed(commit.records, self._agenda.now_s)
        self._point()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn():
                self._point()
                self._checker.spawning(effect.attempt, self._agenda.now_s)
                self._machine.spawn(effect.attempt)
                self._watch(effect.attempt)
            case EndWorker():
                self._point()
                self._machine.terminate(effect.attempt_id)
            case WakeAt():
                self._point()
                self._wake_boot_s = effect.boot_s
                self._do(effect.boot_s - self._agenda.now_s, lambda: self._wake(effect.boot_s))

    def _wake(self, boot_s: float) -> None:
        if boot_s == self._wake_boot_s:
            self._submit_until_stored(Wake())

    def _point(self) -> None:
        """An instant between two effects."""
        self._points_passed += 1
        if self._points_passed - 1 in self._world.faults.crash_points:
            raise _Crash

    # Attempts

    def _watch(self, attempt: Attempt) -> None:
        self._watched[attempt.id] = _Watched()
        if attempt.end_reason is not None:
            self._machine.terminate(attempt.id)
        self._do(self._late_s(), lambda: self._hear(attempt.id))

    def _worker_spoke(self, worker: Worker) -> None:
        if self._state is not None and worker.attempt.id in self._watched:
            self._do(self._late_s(), lambda: self._hear(worker.attempt.id))

    def _hear(self, attempt_id: str) -> None:
        """Submit all that a worker has said, and its end, in order; a store that is busy is asked again."""
        watched = self._watched.get(attempt_id)
        while watched is not None:
            event = self._next_of(attempt_id, watched)
            if event is None:
                return
            try:
                self._submit(event)
            except _Busy:
                self._do(STORE_RETRY_S, lambda: self._hear(attempt_id))
                return
            match event:
                case AttemptStarted():
                    watched.started = True
                case PointMeasured():
                    watched.points += 1
                case _:
                    self._watched.pop(attempt_id, None)
                    return

    def _next_of(self, attempt_id: str, watched: _Watched) -> Event | None:
        worker = self._machine.workers.get(attempt_id)
        if worker is None:
            return AttemptEnded(attempt_id, self._verdict(attempt_id, Evidence(lost="no process was ever started")))
        if worker.end is None and not watched.started:
            return AttemptStarted(attempt_id)
        if watched.points < worker.points:
            return PointMeasured(attempt_id, watched.points, POINT)
        if worker.end is None:
            return None
        took_s = worker.ended_s - worker.started_s
        end = replace(worker.end, wall_s=took_s, peak_reserved_bytes=reported_peak_bytes(worker))
        return AttemptEnded(attempt_id, self._verdict(attempt_id, end))

    def _verdict(self, attempt_id: str, evidence: Evidence) -> Verdict:
        assert self._state is not None
        attempt = self._state.attempts[attempt_id]
        asked = evidence.ended_on_request or attempt.end_reason is EndReason.CANCEL
        by_others = evidence.ended_on_request and attempt.end_reason is None
        full = replace(evidence, timeout_s=attempt.timeout_s, ended_on_request=asked, ran_alone=not attempt.had_company)
        if by_others:
            full = replace(full, lost="somebody else told its shim to end")
        return classify(full, START_UNIX_S + self._agenda.now_s)

    # Readings

    def _readings_differ(self) -> None:
        if self._state is None:
            return
        due_s = self._probe.next_s(self._agenda.now_s)
        if due_s not in self._reading_at:
            self._reading_at.add(due_s)
            self._do(due_s - self._agenda.now_s, lambda: self._read_at(due_s))

    def _read_at(self, due_s: float) -> None:
        self._reading_at.discard(due_s)
        try:
            self._read(plan=True)
        except _Busy:
            self._readings_differ()

    def _read(self, *, plan: bool) -> None:
        assert self._state is not None
        now_s = self._agenda.now_s
        self._read_host = not plan or self._state.has_pending
        event = self._probe.read(self._state, now_s, host=self._read_host)
        if plan:
            self._submit(event)
        else:
            self._apply(event)

    # People

    def _do_deed(self, deed: Deed) -> bool:
        """Do what a person wants; False where it must be asked again, because nobody answered or it was refused."""
        state = self._state
        if state is None or state.stopping or (deed.wish is Wish.UNCORDON and deed.subject not in state.devices):
            return False
        try:
            self._submit(event_of(deed, self._world))
        except _Busy:
            return False
        except _Crash:
            self._die()  # it may have happened or not
            return False
        self._counts.deeds += 1
        if deed.wish is Wish.STOP_ALL and self._state is not None and self._state.attempts:
            self._ending_all = True
        elif deed.wish in (Wish.STOP, Wish.STOP_ALL):
            self._counts.restarts += 1
            self._leave()
        return True
