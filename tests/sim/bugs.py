"""Planted bugs: each breaks one thing of the core, as a mistake of ours could, and names the promises that must notice.

Patches go where a name is used, since the core's modules import by name.
"""
# ruff: noqa: ARG005 - what takes a function's place has its arguments

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from immutables import Map

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle import classification as classify
from boundd.core.lifecycle import ending, loop, retry, step
from boundd.core.lifecycle.loop import Keep, Loop, Turn, keep_nothing
from boundd.core.lifecycle.retry import Decision
from boundd.core.memory import footprint
from boundd.core.memory.headroom import foreign_bytes, headroom_bytes
from boundd.core.model import events as ev
from boundd.core.model.attempts import Attempt, EndReason
from boundd.core.model.devices import Device, DeviceState
from boundd.core.model.effects import Commit, Effect, Spawn, WakeAt
from boundd.core.model.events import Event, Now
from boundd.core.model.outcomes import MemoryCause, Outcome, Verdict
from boundd.core.model.reasons import Refusal, TakenAlone
from boundd.core.model.records import Record, SaveCell, SaveEnd
from boundd.core.model.state import State
from boundd.core.scheduler import environment, ledger, needs, placement, planner
from boundd.core.scheduler.host import HostLedger

Patch = pytest.MonkeyPatch
Step = tuple[State, tuple[Effect, ...]]
BUGS: list[Bug] = []


@dataclass(frozen=True)
class Bug:
    """A mistake, how to make it, and which promises it breaks."""

    name: str
    promises: frozenset[str]
    plant: Callable[[Patch], None]


def bug(*promises: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a bug that breaks one of these promises."""

    def register(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS.append(Bug(plant.__name__, frozenset(promises), plant))
        return plant

    return register


def after(patch: Patch, kind: type[Event], change: Callable[[State, Any, Step], Step]) -> None:
    """Change what a step makes of an event."""
    handler = step._HANDLERS[kind]

    def changed(state: State, event: Any, now: Now) -> Step:
        return change(state, event, handler(state, event, now))

    patch.setitem(step._HANDLERS, kind, changed)


def before(patch: Patch, kind: type[Event], change: Callable[[State, Any], tuple[State, Any]]) -> None:
    """Change what a step is told."""
    handler = step._HANDLERS[kind]
    patch.setitem(step._HANDLERS, kind, lambda state, event, now: handler(*change(state, event), now))


def committing(
    effects: Iterable[Effect], change: Callable[[tuple[Record, ...]], Iterable[Record]]
) -> tuple[Effect, ...]:
    """The effects with other records."""
    return tuple(Commit(tuple(change(e.records))) if isinstance(e, Commit) else e for e in effects)


def deciding(patch: Patch, change: Callable[[Any, Attempt, Verdict, Decision], Decision]) -> None:
    """Change who pays."""
    real = retry.decide
    patch.setattr(
        ending,
        "decide",
        lambda record, attempt, verdict, rules: change(record, attempt, verdict, real(record, attempt, verdict, rules)),
    )


# The ledger


@bug("over-placed", "over-reserved")
def headroom_is_what_is_free(patch: Patch) -> None:
    """What was placed and has not allocated yet is not counted."""
    patch.setattr(ledger, "headroom_bytes", lambda device, attempts, margin: (device.reading.free_bytes or 0) - margin)


@bug("over-placed", "over-reserved")
def margin_ignored(patch: Patch) -> None:
    """The safety bytes are given away."""
    patch.setattr(ledger, "headroom_bytes", lambda device, attempts, margin: headroom_bytes(device, attempts, 0))


@bug("over-placed")
def foreign_never_counted(patch: Patch) -> None:
    """Only what is ours is subtracted."""

    def headroom(device: Device, attempts: Iterable[Attempt], margin: int) -> int:
        reserved = sum(attempt.reservation_bytes for attempt in attempts)
        return (device.reading.total_bytes or 0) - reserved - margin

    patch.setattr(ledger, "headroom_bytes", headroom)


@bug("liveness")
def foreign_never_forgotten(patch: Patch) -> None:
    """What a process of others held once is withheld for as long as the daemon lives, on top of what is held now."""
    worst: dict[str, int] = {}

    def headroom(device: Device, attempts: Iterable[Attempt], margin: int) -> int:
        live = tuple(attempts)
        worst[device.uuid] = max(worst.get(device.uuid, 0), foreign_bytes(device, live))
        return headroom_bytes(device, live, margin) - worst[device.uuid]

    def forget(state: State, event: Any) -> tuple[State, Any]:
        if not state.devices:
            worst.clear()
        return state, event

    before(patch, ev.DevicesRead, forget)
    patch.setattr(ledger, "headroom_bytes", headroom)


@bug("over-placed", "over-reserved", "reservations-survive", "sanity")
def neighbour_released_too(patch: Patch) -> None:
    """An end releases a second reservation on its device."""

    def change(state: State, event: ev.AttemptEnded, done: Step) -> Step:
        new, effects = done
        device = state.attempts[event.attempt_id].device
        others = [attempt.id for attempt in new.attempts_on(device)]
        return (replace(new, attempts=new.attempts.delete(others[0])) if others else new), effects

    after(patch, ev.AttemptEnded, change)


@bug("reservations-survive", "sanity")
def reservation_never_released(patch: Patch) -> None:
    """An attempt that has ended still holds its bytes."""

    def change(state: State, event: ev.AttemptEnded, done: Step) -> Step:
        new, effects = done
        return replace(new, attempts=new.attempts.set(event.attempt_id, state.attempts[event.attempt_id])), effects

    after(patch, ev.AttemptEnded, change)


@bug("reservations-survive", "sanity")
def recovery_forgets_live_attempts(patch: Patch) -> None:
    """The matrix is laid over the state, and what runs is not in it."""
    after(patch, ev.ConfigLoaded, lambda state, event, done: (replace(done[0], attempts=Map()), done[1]))


@bug("cap")
def cap_is_the_reservation(patch: Patch) -> None:
    """The allocator may take it all, and the context comes on top."""
    patch.setattr(placement, "cap_of", lambda reservation, context: reservation)


@bug("host")
def host_ignored(patch: Patch) -> None:
    """Nobody counts the host's memory and cores."""
    patch.setattr(HostLedger, "refusal", lambda self, need: None)


# Placement


@bug("company", "sanity")
def exclusive_is_joined(patch: Patch) -> None:
    """An attempt that has its device to itself gets company."""
    real = ledger.Ledger.closed

    def closed(self: ledger.Ledger, device: Device) -> Refusal | None:
        why = real(self, device)
        return None if isinstance(why, TakenAlone) else why

    patch.setattr(ledger.Ledger, "closed", closed)


@bug("company")
def rule_of_being_alone_ignored(patch: Patch) -> None:
    """A cell that must be alone is placed like any other."""
    patch.setattr(needs, "must_be_alone", lambda record: False)
    patch.setattr(ledger, "must_be_alone", lambda record: False)


@bug("alone-after-pressure")
def robbed_cells_not_alone(patch: Patch) -> None:
    """The cure for pressure is forgotten."""
    deciding(patch, lambda record, attempt, verdict, d: replace(d, record=replace(d.record, alone=record.alone)))


@bug("unavailable")
def unavailable_read_as_empty(patch: Patch) -> None:
    """A device that can't be read is taken for one on which nothing runs."""
    seen: dict[str, int] = {}

    def change(state: State, event: ev.DevicesRead) -> tuple[State, Any]:
        totals = {uuid: device.reading.total_bytes for uuid, device in state.devices.items()}
        seen.update({uuid: total for uuid, total in totals.items() if total})
        readings = tuple(
            replace(r, unavailable="", total_bytes=seen[r.uuid], free_bytes=seen[r.uuid])
            if r.unavailable and r.uuid in seen
            else r
            for r in event.readings
        )
        return state, replace(event, readings=readings)

    before(patch, ev.DevicesRead, change)


@bug("cordon")
def cordon_ignored(patch: Patch) -> None:
    """A device that a person took out of service takes cells."""
    ready = property(lambda self: DeviceState.UNAVAILABLE if self.reading.unavailable else DeviceState.READY)
    patch.setattr(Device, "state", ready)


@bug("cordon")
def cordon_forgotten_at_the_next_reading(patch: Patch) -> None:
    """Each reading makes the device anew, and who took it out of service is not asked."""

    def change(state: State, event: Any, done: Step) -> Step:
        devices = {uuid: replace(device, quarantine=None) for uuid, device in done[0].devices.items()}
        return replace(done[0], devices=Map(devices)), done[1]

    after(patch, ev.DevicesRead, change)


@bug("limit", "sanity")
def limit_ignored(patch: Patch) -> None:
    """A device that takes one attempt at a time takes more."""
    patch.setattr(ledger, "limit_of", lambda state, device: None)


@bug("mixed-models")
def models_mixed(patch: Patch) -> None:
    """Any device will do."""
    patch.setattr(ledger, "matrix_device_model", lambda state: None)


# Footprints


@bug("raised")
def not_raised(patch: Patch) -> None:
    """What ran out of memory is tried with the same reservation."""
    patch.setattr(footprint, "_lower_bound", lambda known, work: None)


@bug("learned")
def nothing_learned(patch: Patch) -> None:
    """The config is believed, whatever was seen."""
    patch.setattr(footprint, "_learned", lambda known, work, variation_permille: None)


# Who pays


@bug("plain-bug")
def charge_forgotten(patch: Patch) -> None:
    """A failure leaves no trace on its cell."""
    deciding(
        patch,
        lambda record, attempt, verdict, d: replace(
            d,
            record=replace(d.record, charged_failures=record.charged_failures, plain_failures=record.plain_failures),
        ),
    )


@bug("plain-bug")
def timeouts_retried_for_ever(patch: Patch) -> None:
    """A deadline is nobody's fault."""
    deciding(
        patch,
        lambda record, attempt, verdict, d: (
            replace(d, again=True) if verdict.error is not None and verdict.error.kind is ErrorKind.TIMEOUT else d
        ),
    )


@bug("never-again")
def no_result_retried(patch: Patch) -> None:
    """A worker without a result is tried once more."""
    patch.setattr(retry, "ONCE_MORE", retry.ONCE_MORE | {ErrorKind.NO_RESULT})


@bug("lost-is-free")
def lost_is_charged(patch: Patch) -> None:
    """Whoever is lost has had its chance."""
    patch.setattr(retry, "FREE_LIMIT", 0)


@bug("bounded", "liveness")
def free_attempts_without_end(patch: Patch) -> None:
    """A cell that kills its machine goes on doing so."""
    patch.setattr(retry, "FREE_LIMIT", 10**9)


def _misjudged(patch: Patch, cause: MemoryCause) -> None:
    real = ending.diagnose

    def diagnose(state: State, attempt: Attempt, verdict: Verdict) -> Any:
        found = real(state, attempt, verdict)
        return replace(found, cause=MemoryCause.TOO_BIG) if found.cause is cause else found

    patch.setattr(ending, "diagnose", diagnose)


@bug("batch-cut")
def pressure_cuts_the_batch(patch: Patch) -> None:
    """A cell that others robbed is measured with a smaller batch."""
    _misjudged(patch, MemoryCause.PRESSURE)


@bug("batch-cut")
def low_estimate_cuts_the_batch(patch: Patch) -> None:
    """A cell of which too little was expected is measured with a smaller batch."""
    _misjudged(patch, MemoryCause.ESTIMATE_TOO_LOW)


@bug("true-verdict")
def out_of_memory_not_recognised(patch: Patch) -> None:
    """Somebody's own script runs out of memory, and it passes for a plain failure."""
    patch.setattr(classify, "out_of_memory_text", lambda text: "")


# What is kept


@bug("one-result")
def lost_recorded_twice(patch: Patch) -> None:
    """A lost attempt ends once for its process and once for its shim."""

    def twice(records: tuple[Record, ...]) -> Iterable[Record]:
        return (*records, *(r for r in records if isinstance(r, SaveEnd) and r.verdict.outcome is Outcome.LOST))

    after(patch, ev.AttemptEnded, lambda state, event, done: (done[0], committing(done[1], twice)))


@bug("durable")
def cell_not_kept_with_its_end(patch: Patch) -> None:
    """The end is kept and what becomes of the cell is not."""

    def without(records: tuple[Record, ...]) -> Iterable[Record]:
        return (r for r in records if not isinstance(r, SaveCell))

    after(patch, ev.AttemptEnded, lambda state, event, done: (done[0], committing(done[1], without)))


@bug("intent-first", "reservations-survive")
def intent_not_kept(patch: Patch) -> None:
    """Workers are started and nothing says so."""
    after(
        patch,
        ev.Wake,
        lambda state, event, done: (done[0], tuple(e for e in done[1] if not isinstance(e, Commit))),
    )


@bug("durable")
def company_not_kept(patch: Patch) -> None:
    """That an attempt got company is known until the daemon ends."""
    real = planner.plan
    patch.setattr(step, "plan", lambda state, now: replace(real(state, now), joined=()))


@bug("one-result", "one-attempt", "numbers")
def attempt_ids_repeat(patch: Patch) -> None:
    """Every attempt of a cell is its first."""
    patch.setattr(planner, "attempt_id", lambda cell, number: f"{cell.digest}.1")


# Waking, waiting, wishes


@bug("liveness")
def wake_never_set(patch: Patch) -> None:
    """Nobody says when a backoff is over."""
    patch.setattr(planner, "_next_wake", lambda state, now: None)


@bug("backoff")
def backoff_ignored(patch: Patch) -> None:
    """A plain failure is tried again at once."""
    deciding(patch, lambda record, attempt, verdict, d: replace(d, delay_s=0.0))


@bug("liveness")
def resume_forgotten(patch: Patch) -> None:
    """A pause is for ever."""
    after(patch, ev.ResumeRequested, lambda state, event, done: (replace(done[0], paused=True), done[1]))


@bug("cancelled")
def cancelled_cells_put_back(patch: Patch) -> None:
    """A cell that a person cancelled while it ran waits for its next attempt."""
    real = ending._cell_after

    def cell_after(state: State, attempt: Attempt, verdict: Verdict, now: Now) -> Any:
        if attempt.end_reason is EndReason.CANCEL:
            attempt = replace(attempt, end_reason=EndReason.PUT_BACK)
        return real(state, attempt, verdict, now)

    patch.setattr(ending, "_cell_after", cell_after)


# The loop


def handling(patch: Patch, handle: Callable[[Loop, Event, Now, Keep], Turn]) -> None:
    """Put another order of things in the place of the loop's."""
    patch.setattr(Loop, "handle", lambda self, event, now, keep=keep_nothing: handle(self, event, now, keep))


def split(loop: Loop, events: Iterable[Event], now: Now, keep: Keep) -> tuple[State, Commit, list[Effect]]:
    """What a transaction would make of the loop's state, what it would keep, and what would follow."""
    state, effects = loop._stepped(tuple(events), now)
    records = [record for effect in effects if isinstance(effect, Commit) for record in effect.records]
    rest = [effect for effect in effects if not isinstance(effect, Commit)]
    return state, Commit((*records, *keep(loop.state))), rest


@bug("nothing-freed")
def planned_after_what_frees_nothing(patch: Patch) -> None:
    """A worker that has started, or a point, is taken for a reason to plan."""
    patch.setattr(loop, "FREES_NOTHING", ())


@bug("nothing-freed")
def planned_by_a_reading_that_is_not_true(patch: Patch) -> None:
    """What was refused memory is followed at once by what the same reading has room for."""
    patch.setattr(loop, "plans_after", lambda event: not isinstance(event, (*loop.FREES_NOTHING, ev.Wake)))


@bug("intent-first", "durable")
def acted_before_the_commit(patch: Patch) -> None:
    """The worker is started, and then its intent is kept."""

    def handle(self: Loop, event: Event, now: Now, keep: Keep) -> Turn:
        effects = real(self, event, now, keep)
        commits, others, answer = [], [], None
        while True:
            try:
                effect = effects.send(answer)
            except StopIteration as over:
                happened = over.value
                break
            (commits if isinstance(effect, Commit) else others).append(effect)
        yield from others
        yield from commits
        return happened

    real = Loop.handle
    handling(patch, handle)


@bug("durable", "intent-first", "reservations-survive", "sanity")
def half_of_a_failed_commit_kept(patch: Patch) -> None:
    """The plan's share could not be stored, the event's own could, and the state has both."""

    def handle(self: Loop, event: Event, now: Now, keep: Keep) -> Turn:
        both = self._stepped(self._transactions(event)[0], now)[0]
        happened = yield from real(self, event, now, keep)
        if happened:
            self._state = both
        return happened

    real = Loop.handle
    handling(patch, handle)


@bug("durable", "intent-first", "reservations-survive", "sanity", "one-result", "cancelled")
def failed_commit_becomes_the_state(patch: Patch) -> None:
    """The store says no, and nobody listens."""

    def handle(self: Loop, event: Event, now: Now, keep: Keep) -> Turn:
        state, commit, rest = split(self, self._transactions(event)[0], now, keep)
        if commit.records:
            yield commit
        self._state = state
        yield from self._act(self._transactions(event)[0], rest)
        return True

    handling(patch, handle)


@bug("reload")
def rules_taken_up_before_the_commit(patch: Patch) -> None:
    """A reload that can't be stored leaves the new rules with the old cells."""

    def handle(self: Loop, event: Event, now: Now, keep: Keep) -> Turn:
        if isinstance(event, ev.ConfigLoaded):
            self._state = replace(self._state, rules=event.rules, settings=event.settings)
        return (yield from real(self, event, now, keep))

    real = Loop.handle
    handling(patch, handle)


@bug("reload")
def settings_left_out_of_a_reload(patch: Patch) -> None:
    """The cells are the new config's, the workers are started by the old one."""
    after(
        patch,
        ev.ConfigLoaded,
        lambda state, event, done: (replace(done[0], settings=state.settings), done[1]),
    )


@bug("answered", "liveness", "cancelled")
def answer_kept_by_itself(patch: Patch) -> None:
    """What a person is told is kept, and then what it tells of."""

    def handle(self: Loop, event: Event, now: Now, keep: Keep) -> Turn:
        records = tuple(keep(self._state))
        if records:
            yield Commit(records)
        return (yield from real(self, event, now))

    real = Loop.handle
    handling(patch, lambda self, event, now, keep: handle(self, event, now, keep))


@bug("liveness")
def wake_of_a_plan_after_an_event_forgotten(patch: Patch) -> None:
    """Only what is planned by the clock sets the clock again."""

    def act(self: Loop, events: Any, effects: Any) -> Any:
        yield from real(self, events, [each for each in effects if len(events) == 1 or not isinstance(each, WakeAt)])

    real = Loop._act
    patch.setattr(Loop, "_act", act)


@bug("liveness")
def no_reading_called_for(patch: Patch) -> None:
    """What an attempt has given back is not looked at."""
    patch.setattr(Loop, "_call_for_reading", lambda self, events, before: iter(()))


@bug("liveness", "reservations-survive")
def intent_kept_and_nothing_started(patch: Patch) -> None:
    """What is planned after an event is stored with it, and not done."""

    def act(self: Loop, events: Any, effects: Any) -> Any:
        yield from (each for each in real(self, events, effects) if len(events) == 1 or not isinstance(each, Spawn))

    real = Loop._act
    patch.setattr(Loop, "_act", act)


@bug("unavailable")
def failed_reading_ignored(patch: Patch) -> None:
    """That no device can be read is taken for no news."""
    after(patch, ev.DevicesUnreadable, lambda state, event, done: (state, ()))


# The environment


@bug("not-its-fault")
def the_cell_pays_for_the_hub(patch: Patch) -> None:
    """What the environment fails is taken for the cell's own failure."""
    patch.setattr(
        ending,
        "retry_uncharged",
        lambda state, record, attempt, verdict: retry.decide(record, attempt, verdict, state.rules),
    )


@bug("held-back")
def nobody_is_held_back(patch: Patch) -> None:
    """Each cell finds out for itself that the hub is away."""
    patch.setattr(environment, "blocking_problem", lambda problems, needs, boot_s: None)


@bug("held-back")
def a_failed_device_takes_any(patch: Patch) -> None:
    """A device that fails before it is used is always free, and draws every cell."""
    patch.setattr(ledger, "device_refusal", lambda state, device, attempts, boot_s: None)


@bug("held-back")
def probes_have_company(patch: Patch) -> None:
    """Once the pause is over all cells start at once, not one to try."""
    patch.setattr(environment, "with_probe", lambda problems, needs, attempt: problems)


@bug("liveness")
def a_problem_never_passes(patch: Patch) -> None:
    """What was held back once stays so."""

    def for_ever(problems: Any, needs: Any, boot_s: float) -> Any:
        return next(iter(environment.problems_of(problems, needs)), None)

    patch.setattr(environment, "blocking_problem", for_ever)


@bug("not-its-fault")
def no_patience(patch: Patch) -> None:
    """The first failure of the environment ends all that wait."""
    real = environment.out_of_patience

    def spent(state: State, attempt: Attempt, error: Any) -> Any:
        return real(replace(state, rules=replace(state.rules, patience_s=0.0)), attempt, error)

    patch.setattr(environment, "out_of_patience", spent)
