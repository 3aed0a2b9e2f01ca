"""The engine: the loop that the daemon drives, driven on a simulated machine under a virtual clock.

What the shell of the daemon is made of is simple here: nothing is stored, every commit is taken, and a launch is a
call. `tests/sim/daemon.py` adds what goes wrong with a daemon and its store.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from boundd.catalogue.outcomes import Isolation
from boundd.core.lifecycle.classification import Evidence, classify
from boundd.core.lifecycle.loop import STORE_RETRY_S, Keep, Loop, NotStored, Planner, keep_nothing, restored
from boundd.core.model.attempts import Attempt, EndReason
from boundd.core.model.effects import Commit, Effect, EndWorker, ReadDevices, Spawn, WakeAt
from boundd.core.model.events import (
    AttemptEnded,
    AttemptStarted,
    ConfigLoaded,
    DevicesRead,
    Event,
    Now,
    PointMeasured,
    Wake,
)
from boundd.core.model.outcomes import PointRecord, Verdict
from boundd.core.model.state import Rules, State
from boundd.sim.clock import Agenda
from boundd.sim.machine import Machine, SimulatedWorker, reported_peak_bytes
from boundd.sim.probe import Probe
from boundd.sim.recorder import Recorder
from boundd.sim.trace import Counts, Outcomes, Violation
from boundd.sim.world import World
from boundd.text import count

START_UNIX_S = 1_700_000_000.0
"""What the virtual clock's 0 is in UTC seconds."""
MAX_STEPS = 20_000
"""A run of a test's size that needs more is going round in circles."""
POINT = PointRecord({"cache_interval": 3}, 1.5, 0.01, Isolation.EXCLUSIVE)


@dataclass(slots=True)
class _Watched:
    """How much of an attempt this life of the daemon has heard of."""

    started: bool = False
    points: int = 0


def simulate(
    world: World,
    rules: Rules | None = None,
    *,
    policy: Planner | None = None,
    seed: int = 0,
    start: State | None = None,
    must_end: bool = True,
    max_steps: int = MAX_STEPS,
) -> Outcomes:
    """Run a world until every cell has ended.

    `policy` plans in place of the core's planner; everything else (retry, ledger, lifecycle) stays the core's. The
    seed draws how late the daemon hears of things. `start` is a state to go on from instead of an empty store: its live
    attempts run from the world's `start_s` on, as their cells' truths say. With `must_end` false, a run in which
    nothing will happen any more is over, and `Outcomes.waiting` says why the cells that are left wait.

    Raises:
        Violation: the run can't come to an end.
    """
    return Engine(world, rules or Rules(), policy, seed, start=start).to_its_end(max_steps, must_end=must_end)


class Engine:
    """One run of a world."""

    def __init__(
        self,
        world: World,
        rules: Rules,
        policy: Planner | None = None,
        seed: int = 0,
        *,
        start: State | None = None,
        log: list[str] | None = None,
    ) -> None:
        self._world = world
        self._rules = rules
        self._policy = policy
        self._random = random.Random(seed)  # noqa: S311 - a replay must draw the same
        self._log = log
        self._agenda = Agenda(world.start_s)
        self._machine = Machine(world, self._agenda, self._worker_spoke, self._readings_differ)
        self._counts = Counts()
        self._probe = Probe(world, self._machine, self._counts)
        self._recorder = Recorder(world, rules, self._machine, self._counts)
        self._begin = start
        self._loop: Loop | None = None
        self._life = 0
        self._watched: dict[str, _Watched] = {}
        self._reading_at: set[float] = set()
        for window in (*world.faults.probe_failures, *world.faults.blind):
            self._agenda.at(window.from_s, self._readings_differ)
            self._agenda.at(window.until_s, self._readings_differ)
        if start is not None:
            for attempt in start.attempts.values():
                self._machine.spawn(attempt)

    @property
    def _state(self) -> State | None:
        """The daemon's state; None while no daemon runs."""
        return None if self._loop is None else self._loop.state

    def to_its_end(self, max_steps: int = MAX_STEPS, *, must_end: bool = True) -> Outcomes:
        """Run until nothing is left to do.

        Raises:
            Violation: it takes more than `max_steps` events, or (with `must_end`) nothing more will happen.
        """
        self._agenda.at(self._agenda.now_s, self._start)
        while not self._over():
            if self._counts.steps > max_steps:
                raise Violation("liveness", f"{max_steps:,} steps and no end: {self._what_waits()}")
            if self._agenda.advance():
                continue
            if not must_end:
                break
            if not self._looked_after():
                raise Violation("liveness", f"nothing will happen any more, and {self._what_waits()}")
        assert self._state is not None
        return self._recorder.outcomes(self._state)

    def _over(self) -> bool:
        return self._state is not None and self._state.idle

    def _looked_after(self) -> bool:
        """Whether somebody has done something about a run in which nothing would happen any more."""
        return False

    def _what_waits(self) -> str:
        state = self._state
        if state is None:
            return "no daemon runs"
        waiting = [
            f"{record.cell.label} is {record.state}: {state.deferrals.get(record.cell.key, 'no reason')}"
            for record in state.pending()
        ]
        return "; ".join(waiting) or f"{count(len(state.attempts), 'attempt')} live"

    # The life of the daemon

    def _restored(self) -> State:
        """What the store knows: all that the state to go on from holds and a store keeps."""
        begin = State() if self._begin is None else self._begin
        return restored(
            self._rules,
            None,
            cells=begin.cells.values(),
            attempts=begin.attempts.values(),
            observations=begin.observations,
            durations=begin.durations,
            quarantines=begin.quarantines.values(),
            paused=begin.paused,
        )

    def _config(self) -> ConfigLoaded:
        return ConfigLoaded(tuple((each.cell, each.policy) for each in self._world.cells), self._rules)

    def _start(self) -> None:
        """Do what `Daemon.recover` and the beginning of `Daemon.run` do."""
        self._life += 1
        self._watched.clear()
        self._reading_at.clear()
        self._loop = Loop(self._restored(), self._policy)
        self._probe.forget()
        if not self._read() or not self._handle(self._config()):
            self._leave()
            return
        self._took_up(self._loop.state)
        self._readings_differ()
        for attempt_id, attempt in sorted(self._loop.state.attempts.items()):
            self._counts.adopted += self._machine.is_alive(attempt_id)
            self._watch(attempt)
        self._submit_until_stored(Wake())

    def _took_up(self, state: State) -> None:
        """The daemon has read its store, the devices and the config, and is about to take up what runs."""

    def _leave(self) -> None:
        """The daemon ends; nothing that it was about to do happens."""
        self._life += 1
        self._loop = None

    def _do(self, after_s: float, call: Callable[[], None]) -> None:
        """Have this life of the daemon do something after a while."""
        life = self._life

        def alive_then() -> None:
            if life == self._life:
                self._call(call)

        self._agenda.at(self._agenda.now_s + after_s, alive_then)

    def _call(self, call: Callable[[], None]) -> None:
        call()

    def _late_s(self) -> float:
        return self._random.random() * self._world.latency_s if self._world.latency_s else 0.0

    # Driving the loop

    def _submit(self, event: Event, keep: Keep = keep_nothing) -> bool:
        """Whether the event has happened: the store may have refused it."""
        return self._handle(event, keep)

    def _submit_until_stored(self, event: Event) -> None:
        if not self._submit(event):
            self._do(STORE_RETRY_S, lambda: self._submit_until_stored(event))

    def _handle(self, event: Event, keep: Keep = keep_nothing) -> bool:
        """Have the loop handle an event, and do its effects one by one."""
        assert self._loop is not None
        now = Now(self._agenda.now_s, START_UNIX_S + self._agenda.now_s)
        self._counts.steps += 1
        self._write(f"{now.boot_s:.6f} {event!r}")
        turn = self._loop.handle(event, now, keep)
        answer: NotStored | None = None
        while True:
            try:
                effect = turn.send(answer)
            except StopIteration as over:
                return bool(over.value)
            self._write(f"  {effect!r}")
            answer = self._perform(event, effect)

    def _write(self, line: str) -> None:
        if self._log is not None:
            self._log.append(line)

    def _perform(self, event: Event, effect: Effect) -> NotStored | None:  # noqa: ARG002 - who extends this asks
        """Do one effect of an event."""
        match effect:
            case Commit():
                return self._commit(effect)
            case Spawn():
                self._machine.spawn(effect.attempt)
                self._watch(effect.attempt)
            case EndWorker():
                self._machine.terminate(effect.attempt_id)
            case WakeAt():
                self._do(effect.boot_s - self._agenda.now_s, lambda: self._wake(effect.boot_s))
            case ReadDevices():
                self._readings_differ()
        return None

    def _commit(self, commit: Commit) -> NotStored | None:
        self._recorder.committed(commit.records)
        return None

    def _wake(self, boot_s: float) -> None:
        if self._loop is not None and boot_s == self._loop.wake_boot_s:
            self._submit_until_stored(Wake())

    # Attempts

    def _watch(self, attempt: Attempt) -> None:
        self._watched[attempt.id] = _Watched()
        if attempt.end_reason is not None:
            self._machine.terminate(attempt.id)
        self._do(self._late_s(), lambda: self._hear(attempt.id))

    def _worker_spoke(self, worker: SimulatedWorker) -> None:
        if self._state is not None and worker.attempt.id in self._watched:
            self._do(self._late_s(), lambda: self._hear(worker.attempt.id))

    def _hear(self, attempt_id: str) -> None:
        """Submit all that a worker has said, and its end, in order; what could not be stored is submitted again."""
        watched = self._watched.get(attempt_id)
        while watched is not None:
            event = self._next_of(attempt_id, watched)
            if event is None:
                return
            if not self._submit(event):
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
        """Have the next regular reading read: it would say something new, or the loop asks for it."""
        if self._state is None:
            return
        due_s = self._probe.next_s(self._agenda.now_s)
        if due_s not in self._reading_at:
            self._reading_at.add(due_s)
            self._do(due_s - self._agenda.now_s, lambda: self._read_at(due_s))

    def _read_at(self, due_s: float) -> None:
        self._reading_at.discard(due_s)
        self._read()

    def _read(self) -> bool:
        """Whether the devices could be read, and that could be stored."""
        assert self._loop is not None
        event = self._probe.read(self._loop.state, self._agenda.now_s, host=self._loop.reads_host)
        return self._submit(event) and isinstance(event, DevicesRead)
