"""The promises, walked after every step of a simulated run.

Each check looks at what was committed, at what the workers really do and at what the world really is; none asks the
core's own arithmetic whether the core is right. docs/simulation.md lists them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, EndReason
from boundd.core.model.events import (
    AttemptEnded,
    AttemptProgressed,
    AttemptStarted,
    ConfigLoaded,
    DevicesRead,
    DevicesUnreadable,
    Event,
    PointMeasured,
)
from boundd.core.model.outcomes import ENVIRONMENT, Outcome, Verdict
from boundd.core.model.quarantines import device_subject
from boundd.core.model.records import Record, SaveAttempt, SaveCell, SaveEnd, SavePoint
from boundd.core.model.state import Rules, State, sanity_check
from boundd.sim.machine import Machine, SimulatedWorker, most_bytes
from boundd.sim.recorder import FITS_PERCENT, PLAIN, fits_alone
from boundd.sim.trace import MemoryEnd, Violation
from boundd.sim.world import World
from tests.sim.memory_store import Kept, bare_cell
from tests.sim.trouble import Trouble, Wish

FREE_ATTEMPTS = 10
"""What is promised: so many attempts that nobody pays for. A number of its own, so that a change there is noticed."""
NEVER_AGAIN = frozenset(
    {
        ErrorKind.MODEL_UNAVAILABLE,
        ErrorKind.BAD_DATA,
        ErrorKind.NO_RESULT,
        ErrorKind.MALFORMED_RESULT,
        ErrorKind.NOT_STARTED,
    }
)
MIN_PAUSE_S = 1.0
"""What is promised: so long at least, however short the backoff, before what was missing is tried again."""
T = TypeVar("T")
ENDS = frozenset(CellState) - {CellState.PENDING, CellState.RUNNING}


STARTS_NOTHING = (AttemptStarted, AttemptProgressed, PointMeasured, DevicesUnreadable)
"""What is promised: events because of which no attempt is started. A list of its own, so that a change is noticed."""


@dataclass(slots=True)
class _Away:
    """Something of the environment that was found missing: since when nobody has tried it, and who does now."""

    last_s: float
    longest_s: float = 0.0
    probe: str = ""


class NoChecks:
    """For runs of other policies, which are measured and not judged."""

    def config_read(self, config: ConfigLoaded) -> None:
        """Nothing."""

    def handled(self, state: State, event: Event, *, happened: bool) -> None:
        """Nothing."""

    def recovered(self, state: State) -> None:
        """Nothing."""

    def read(self, event: Event, as_of_s: float) -> None:
        """Nothing."""

    def committed(self, records: Sequence[Record], now_s: float) -> None:
        """Nothing."""

    def spawning(self, attempt: Attempt, event: Event, now_s: float) -> None:
        """Nothing."""

    def stepped(self, state: State) -> None:
        """Nothing."""

    def ended(self, state: State) -> None:
        """Nothing."""


class Checker(NoChecks):
    """Walks the promises. Every method raises `Violation` where one is broken."""

    def __init__(self, world: World, rules: Rules, machine: Machine, kept: Kept) -> None:
        self._world = world
        self._rules = rules
        self._machine = machine
        self._kept = kept
        self._live: dict[str, Attempt] = {}
        """Begun and without an end, by what was committed."""
        self._numbers: Counter[str] = Counter()
        self._plain: Counter[str] = Counter()
        self._paid_or_free: Counter[str] = Counter()
        self._not_before_s: dict[str, float] = {}
        self._raise_above: dict[str, tuple[tuple[object, ...], int]] = {}
        """By cell: for which batch and device model, and the reservation that was too small there."""
        self._alone_next: set[str] = set()
        self._cancelled: set[str] = set()
        self._cells: dict[str, CellState] = {}
        self._peaks: dict[tuple[object, ...], int] = {}
        self._known: dict[str, tuple[bool, int, dict[str, int]]] = {}
        """By device: whether its last reading succeeded, and what was then held by foreign processes and by workers."""
        self._known_foreign: dict[str, int] = {}
        """By attempt: what foreign processes held when its device was last read before it was placed."""
        self._charges: dict[str, int] = {}
        self._away: dict[tuple[object, ...], _Away] = {}
        """By what was missing, and for whom."""
        deeds = world.faults.deeds if isinstance(world.faults, Trouble) else ()
        self._asked_again = any(deed.wish in (Wish.RELOAD, Wish.RETRY) for deed in deeds)
        """Whether somebody has what is held back tried at once."""
        self._compared: dict[int, tuple[object, object]] = {}
        self._in_force: ConfigLoaded | None = None
        self._least_quick_s = rules.quick_s
        """Of all configs that were in force: a problem may have passed by one that is no more."""
        names = Counter(device.name for device in world.devices)
        self._model = None if rules.mix_models else min(names, key=lambda name: (-names[name], name))

    def recovered(self, state: State) -> None:
        """A daemon has taken up what was kept: nothing that lives is forgotten, and backoff is."""
        self._not_before_s.clear()
        self._away.clear()
        self._ledger(state)

    def config_read(self, config: ConfigLoaded) -> None:
        """A daemon that starts has read this config, and begins with it."""
        self._in_force = config
        self._least_quick_s = min(self._least_quick_s, config.rules.quick_s)

    def handled(self, state: State, event: Event, *, happened: bool) -> None:
        """An event was handled to its end. What is in force is one config as a whole, and no other than is said."""
        if happened and isinstance(event, ConfigLoaded):
            self._in_force = event
            self._least_quick_s = min(self._least_quick_s, event.rules.quick_s)
        config = self._in_force
        if config is None or not state.order:
            return
        whole = (tuple(cell.key for cell, _ in config.cells), config.rules, config.settings)
        if (state.order, state.rules, state.settings) != whole:
            raise Violation("reload", f"after {type(event).__name__} a part of another config is in force")
        for cell, policy in config.cells:
            if state.cells[cell.key].policy != policy:
                raise Violation("reload", f"{cell.label} is run by another config's policy")

    def read(self, event: Event, as_of_s: float) -> None:
        """The daemon has taken note of this reading; remember what was true when it was taken."""
        if isinstance(event, DevicesRead):
            for reading in event.readings:
                foreign, held = self._machine.devices[reading.uuid].as_of(as_of_s)
                self._known[reading.uuid] = (not reading.unavailable, foreign, dict(held))
        elif isinstance(event, DevicesUnreadable):
            self._known = {uuid: (False, *known[1:]) for uuid, known in self._known.items()}

    def stepped(self, state: State) -> None:
        """A step was taken and all of it is kept."""
        self._ledger(state)
        self._durable(state)
        try:
            sanity_check(state)
        except AssertionError as error:
            raise Violation("sanity", str(error)) from error

    def _forgive(self, key: str) -> None:
        """A person has put an ended cell back."""
        for known in (self._plain, self._paid_or_free, self._not_before_s, self._raise_above):
            known.pop(key, None)
        self._cancelled.discard(key)
        self._charges.pop(key, None)
        for away in self._away.values():
            away.last_s = -math.inf  # whoever puts cells back may have cured it

    def _ledger(self, state: State) -> None:
        """Reservations: the state's are those that were committed, they fit, and every worker alive has one."""
        if set(state.attempts) != set(self._live):
            odd = sorted(set(state.attempts) ^ set(self._live))
            raise Violation("reservations-survive", f"the state and the store disagree about {odd}")
        reserved: Counter[str] = Counter()
        for attempt in self._live.values():
            reserved[attempt.device] += attempt.reservation_bytes
        for uuid, size in reserved.items():
            room = self._machine.devices[uuid].spec.total_bytes - self._rules.margin_bytes
            if size > room:
                raise Violation("over-reserved", f"{uuid}: {size:,} bytes are reserved of {room:,}")
        for device in self._machine.devices.values():
            for attempt_id, worker in device.alive.items():
                known = state.attempts.get(attempt_id)
                if known is None or known.reservation_bytes != worker.attempt.reservation_bytes:
                    raise Violation("reservations-survive", f"{attempt_id} is alive and has no reservation")

    def _durable(self, state: State) -> None:
        """What the state says is what a daemon that starts now would find."""
        for attempt_id, attempt in state.attempts.items():
            self._same(self._kept.attempts[attempt_id], attempt, _lasting)
        for record in state.matrix():
            known = self._kept.cells.get(record.cell.key)
            if known is None:
                raise Violation("durable", f"{record.cell.label} is in the state and not in the store")
            self._same(known, record, bare_cell)

    def _same(self, kept: T, held: T, lasting: Callable[[T], T]) -> None:
        """What is kept and what the state holds are one, but for what isn't meant to last."""
        if kept is held:
            return
        before = self._compared.get(id(held))
        if before is not None and before[0] is kept and before[1] is held:
            return
        if lasting(kept) != lasting(held):
            raise Violation("durable", f"the store has {kept}, the state {held}")
        self._compared[id(held)] = (kept, held)

    # Placing

    def spawning(self, attempt: Attempt, event: Event, now_s: float) -> None:
        """A worker is about to be started, because of this event."""
        if isinstance(event, STARTS_NOTHING):
            raise Violation("nothing-freed", f"{attempt.label} is started after {type(event).__name__}")
        if isinstance(event, AttemptEnded) and event.verdict.outcome is Outcome.OUT_OF_MEMORY:
            raise Violation("nothing-freed", f"{attempt.label} is started by a reading that an end has shown to be old")
        self._may_start(attempt, now_s)
        self._may_be_there(attempt)
        self._fits(attempt)
        self._host_fits(attempt)
        self._is_cured(attempt)
        self._is_no_crowd(attempt, now_s)

    def _may_start(self, attempt: Attempt, now_s: float) -> None:
        if attempt.id not in self._live:
            raise Violation("intent-first", f"{attempt.label} is started before its intent is kept")
        alive = [worker for worker in self._machine.workers.values() if worker.end is None]
        if any(worker.attempt.key == attempt.key for worker in alive):
            raise Violation("one-attempt", f"{attempt.label} is started while an attempt of it is alive")
        if self._kept.paused:
            raise Violation("paused", f"{attempt.label} is started in a pause")
        if attempt.key in self._cancelled:
            raise Violation("cancelled", f"{attempt.label} was cancelled and is started")
        if self._not_before_s.pop(attempt.key, 0.0) > now_s:
            raise Violation("backoff", f"{attempt.label} is started {attempt.number} before its backoff is over")

    def _may_be_there(self, attempt: Attempt) -> None:
        device = self._machine.devices[attempt.device].spec
        others = [other for other in self._live.values() if other.device == device.uuid and other.id != attempt.id]
        cell = self._machine.cells[attempt.key]
        if cell.policy.must_be_alone and not attempt.exclusive:
            raise Violation("company", f"{attempt.label} must be alone and is not marked so")
        if others and (attempt.exclusive or any(other.exclusive for other in others)):
            raise Violation("company", f"{attempt.label} joins {[other.label for other in others]} on {device.uuid}")
        for most in (device.max_cells, self._rules.max_cells or None):
            if most is not None and len(others) >= most:
                raise Violation("limit", f"{device.uuid} takes {most} and gets {len(others) + 1}")
        if device_subject(device.uuid) in self._kept.quarantines:
            raise Violation("cordon", f"{attempt.label} is started on {device.uuid}, which is out of service")
        if not self._known[device.uuid][0]:
            raise Violation("unavailable", f"{attempt.label} is started on {device.uuid}, which can't be read")
        if self._model is not None and device.name != self._model:
            raise Violation("mixed-models", f"{attempt.label} is started on a {device.name}, not on a {self._model}")

    def _fits(self, attempt: Attempt) -> None:
        """With all that was to be known, there is room for it beside what everybody holds or may still take."""
        most, reserved = most_bytes(attempt), attempt.reservation_bytes
        if reserved <= 0 or (most is not None and most > reserved):
            raise Violation("cap", f"{attempt.label}: it may take {most} bytes of a reservation of {reserved}")
        _, foreign, held = self._known[attempt.device]
        self._known_foreign[attempt.id] = foreign
        taken = sum(
            max(other.reservation_bytes, held.get(other.id, 0))
            for other in self._live.values()
            if other.device == attempt.device
        )
        room = self._machine.devices[attempt.device].spec.total_bytes - self._rules.margin_bytes - foreign
        if taken > room:
            raise Violation("over-placed", f"{attempt.device}: {taken:,} of {room:,} bytes with {attempt.label}")

    def _host_fits(self, attempt: Attempt) -> None:
        """Nor does the host run out: a cell that wants more than there is runs while nobody else wants any."""
        if not self._world.host_bytes:
            return
        policy = self._machine.cells[attempt.key].policy
        if (policy.host_memory_bytes or 0, policy.cores) != (attempt.host_memory_bytes, attempt.cores):
            raise Violation("host", f"{attempt.label} takes {attempt.cores} core(s), and its rule says {policy.cores}")
        memory = [each.host_memory_bytes for each in self._live.values() if each.host_memory_bytes]
        if sum(memory) > self._world.host_bytes and len(memory) > 1:
            raise Violation("host", f"{sum(memory):,} bytes of host memory are reserved of {self._world.host_bytes:,}")
        cores = [each.cores for each in self._live.values() if each.cores]
        if sum(cores) > self._world.host_cores and len(cores) > 1:
            raise Violation("host", f"{sum(cores)} cores are reserved of {self._world.host_cores}")

    def _is_cured(self, attempt: Attempt) -> None:
        """What the attempts before it taught is used."""
        if attempt.reservation_bytes < self._peaks.get(self._like(attempt), 0) and not attempt.whole_device:
            raise Violation("learned", f"{attempt.label}: less is reserved than its like was seen to take")
        where, above = self._raise_above.pop(attempt.key, ((), 0))
        if where == self._like(attempt) and attempt.reservation_bytes <= above and not attempt.whole_device:
            raise Violation("raised", f"{attempt.label} ran out of {above:,} bytes, {attempt.reservation_bytes:,} now")
        if attempt.key in self._alone_next and not attempt.exclusive:
            raise Violation("alone-after-pressure", f"{attempt.label} was robbed of its memory and has company again")
        self._alone_next.discard(attempt.key)

    def _is_no_crowd(self, attempt: Attempt, now_s: float) -> None:
        """What the environment lacks is tried by one attempt at a time, after a pause; the others wait."""
        for what in self._needs(attempt) & set(self._away):
            away = self._away[what]
            probe = self._live.get(away.probe)
            if probe is not None and now_s >= probe.started_boot_s + away.longest_s + self._least_quick_s:
                del self._away[what]  # it runs for longer than it took the others to fail
                continue
            if probe is not None:
                raise Violation("held-back", f"{attempt.label} is started while {probe.label} tries {what}")
            if now_s < away.last_s + max(MIN_PAUSE_S, self._rules.backoff_s) and not self._asked_again:
                raise Violation("held-back", f"{attempt.label} is started {now_s - away.last_s} s after {what} failed")
            away.probe = attempt.id

    def _needs(self, attempt: Attempt) -> set[tuple[object, ...]]:
        return {self._missing(kind, attempt) for kind in ENVIRONMENT}

    def _missing(self, kind: ErrorKind, attempt: Attempt) -> tuple[object, ...]:
        parameters = self._machine.cells[attempt.key].cell.parameters
        match kind:
            case ErrorKind.INTERPRETER | ErrorKind.HOST_LIMITS:
                return (kind,)
            case ErrorKind.HUB_UNAVAILABLE:
                return (kind, parameters.get("model"))
            case ErrorKind.DEVICE_FAILED:
                return (kind, attempt.device)
            case _:
                return (kind, parameters.get("model"), parameters.get("method"))

    def _environment(self, attempt: Attempt, verdict: Verdict, now_s: float) -> None:
        """Remember what an attempt has found missing, or that it got past it."""
        error = verdict.error
        failed = None
        if error is not None and error.kind in ENVIRONMENT and attempt.end_reason is None:
            failed = self._missing(error.kind, attempt)
            away = self._away.setdefault(failed, _Away(now_s))
            away.last_s = now_s
            away.longest_s = max(away.longest_s, verdict.wall_s or 0.0)
        for what, away in tuple(self._away.items()):
            if away.probe != attempt.id:
                continue
            away.probe = ""
            if what != failed and attempt.end_reason is None and verdict.outcome is not Outcome.LOST:
                del self._away[what]

    def _got_further(self, attempt_id: str) -> None:
        for what in [what for what, away in self._away.items() if away.probe == attempt_id]:
            del self._away[what]

    def _like(self, attempt: Attempt) -> tuple[object, ...]:
        parameters = self._machine.cells[attempt.key].cell.parameters
        return (parameters.get("model"), parameters.get("method"), attempt.batch_size, self._name_of(attempt))

    def _name_of(self, attempt: Attempt) -> str:
        return self._machine.devices[attempt.device].spec.name

    # Ending

    def committed(self, records: Sequence[Record], now_s: float) -> None:
        """These were kept."""
        saved = [(record.record.cell.key, record.record) for record in records if isinstance(record, SaveCell)]
        cells = dict(reversed(saved))
        """Each as its first record has it: what an end makes of its cell, before the plan may start it again."""
        ended = {record.attempt.key: record.attempt for record in records if isinstance(record, SaveEnd)}
        for key, cell in saved:
            if cell.state is CellState.FAILED and self._cells.get(key, CellState.PENDING) is CellState.PENDING:
                raise Violation("not-its-fault", f"{cell.cell.label} is given up without an attempt of its own")
            if ended and key not in ended and cell.state is CellState.PENDING:
                self._cut_with(next(iter(ended.values())), key, cell)
            if cell.state is CellState.PENDING and self._cells.get(key) in ENDS:
                self._forgive(key)
            elif cell.state is CellState.CANCELLED:
                self._cancelled.add(key)
            self._cells[key] = cell.state
        for record in records:
            if isinstance(record, SaveAttempt) and record.attempt.end_reason is EndReason.CANCEL:
                self._cancelled.add(record.attempt.key)
            if isinstance(record, SaveAttempt) and record.attempt.id not in self._live:
                self._begun(record.attempt)
            elif isinstance(record, SaveAttempt):
                self._live[record.attempt.id] = record.attempt
            elif isinstance(record, SavePoint):
                self._got_further(record.attempt_id)
            elif isinstance(record, SaveEnd):
                self._has_ended(record.attempt, record.verdict, cells, now_s)
                self._environment(record.attempt, record.verdict, now_s)
        self._charges.update({key: cell.charged_failures for key, cell in cells.items()})

    def _begun(self, attempt: Attempt) -> None:
        if attempt.id in self._kept.ends:
            raise Violation("one-result", f"{attempt.label}: attempt {attempt.number} has ended and is saved as live")
        if any(other.key == attempt.key for other in self._live.values()):
            raise Violation("one-attempt", f"{attempt.label} has two live attempts")
        self._numbers[attempt.key] += 1
        if attempt.number != self._numbers[attempt.key]:
            raise Violation("numbers", f"{attempt.label}: {attempt.number} after {self._numbers[attempt.key] - 1}")
        self._live[attempt.id] = attempt

    def _has_ended(self, attempt: Attempt, verdict: Verdict, cells: dict[str, CellRecord], now_s: float) -> None:
        if self._live.pop(attempt.id, None) is None:
            raise Violation("one-result", f"{attempt.label}: attempt {attempt.number} ends and was not live")
        worker = self._machine.workers.get(attempt.id)
        if worker is not None and worker.end is None:
            raise Violation("one-result", f"{attempt.label}: an end is recorded and its worker is alive")
        if attempt.key not in cells:
            raise Violation("durable", f"{attempt.label}: an end without its cell in the same transaction")
        after = cells[attempt.key]
        if attempt.end_reason is None:
            self._is_true(attempt, verdict, worker)
            self._is_paid(attempt, verdict, after, now_s)
        if worker is not None:
            self._memory(attempt, worker, after)
            if verdict.outcome is Outcome.SUCCEEDED and worker.cell.truth.reports_memory:
                like = self._like(attempt)
                self._peaks[like] = max(self._peaks.get(like, 0), worker.peak_bytes)

    def _is_true(self, attempt: Attempt, verdict: Verdict, worker: SimulatedWorker | None) -> None:
        """The verdict is what happened."""
        if worker is None:
            expected = Outcome.LOST
        else:
            assert worker.end is not None
            expected = _truth(worker)
        if verdict.outcome is not expected:
            raise Violation("true-verdict", f"{attempt.label} {expected}, and {verdict.outcome} is recorded")

    def _is_paid(self, attempt: Attempt, verdict: Verdict, after: CellRecord, now_s: float) -> None:
        key, error = attempt.key, verdict.error
        if error is None:
            return
        if error.kind in ENVIRONMENT and error.kind is not ErrorKind.HOST_MEMORY:
            if after.state is not CellState.PENDING or after.charged_failures != self._charges.get(key, 0):
                raise Violation("not-its-fault", f"{attempt.label}: {error.kind}, and the cell pays for it")
            return
        self._paid_or_free[key] += 1
        if self._paid_or_free[key] > FREE_ATTEMPTS + self._rules.max_attempts + 1:
            raise Violation("bounded", f"{attempt.label} has failed {self._paid_or_free[key]} times")
        again = after.state is CellState.PENDING
        if error.kind in NEVER_AGAIN and again:
            raise Violation("never-again", f"{attempt.label}: {error.kind}, and it is to run again")
        if error.kind in PLAIN:
            self._plain[key] += 1
            if again and self._plain[key] > 1:
                raise Violation("plain-bug", f"{attempt.label}: {error.kind} again, and it is to run a third time")
            if again:
                self._not_before_s[key] = now_s + self._rules.backoff_s
        if error.kind is ErrorKind.LOST and not again and self._paid_or_free[key] <= FREE_ATTEMPTS:
            raise Violation(
                "lost-is-free", f"{attempt.label} was lost {self._paid_or_free[key]} time(s) and is given up"
            )

    def _memory(self, attempt: Attempt, worker: SimulatedWorker, after: CellRecord) -> None:
        """Why it ran out, and what is made of it."""
        cut = None not in (after.batch_size, attempt.batch_size) and after.batch_size < attempt.batch_size  # type: ignore[operator]
        if cut and worker.had_company:
            raise Violation("batch-cut", f"{attempt.label}: its batch is cut although it was not alone")
        untold = worker.memory is MemoryEnd.FOREIGN and not worker.cell.truth.reports_memory
        if cut and not untold and fits_alone(self._machine, attempt, self._rules.margin_bytes):
            raise Violation("batch-cut", f"{attempt.label}: its batch is cut although it fits on {attempt.device}")
        if worker.memory is None or worker.scene is None:
            return
        if worker.memory is MemoryEnd.NEIGHBOUR and not self._excused(attempt, worker):
            raise Violation("neighbours", f"{attempt.label} ran out of memory that was reserved for it: {worker.scene}")
        if after.state is not CellState.PENDING or not worker.cell.truth.reports_memory:
            return
        if worker.memory is MemoryEnd.OWN_CAP and not cut:
            self._raise_above[attempt.key] = (self._like(attempt), attempt.reservation_bytes)
        elif worker.memory in (MemoryEnd.NEIGHBOUR, MemoryEnd.FOREIGN):
            self._alone_next.add(attempt.key)

    def _cut_with(self, attempt: Attempt, key: str, cell: CellRecord) -> None:
        """A waiting cell is given a smaller batch because its like was too big: it must be too big as well."""
        truth, size = self._machine.cells[key].truth, self._machine.devices[attempt.device].spec.total_bytes
        before = attempt.batch_size
        if before is None or cell.batch_size is None or cell.batch_size >= before:
            return
        worker = self._machine.workers.get(attempt.id)
        untold = worker is not None and worker.memory is MemoryEnd.FOREIGN and not truth.reports_memory
        if not untold and truth.peak_bytes(before) * 100 <= (size - self._rules.margin_bytes) * FITS_PERCENT:
            raise Violation("batch-cut", f"{cell.cell.label}: its batch is cut with {attempt.label}'s, and it fits")

    def _excused(self, attempt: Attempt, worker: SimulatedWorker) -> bool:
        """Whether nobody could have known: a foreign process came later, or a neighbour kept to no cap."""
        assert worker.scene is not None
        foreign, others = worker.scene
        if any(foreign > self._known_foreign.get(each, 0) for each in (attempt.id, *others)):
            return True
        neighbours = [self._machine.workers[each] for each in others]
        return any(
            others[each.attempt.id] > each.attempt.reservation_bytes and not each.cell.truth.honours_cap
            for each in neighbours
        )

    def ended(self, state: State) -> None:
        """The run is over: every cell has ended, every attempt has its one result."""
        for record in state.matrix():
            if record.state not in ENDS:
                raise Violation("liveness", f"{record.cell.label} is {record.state} at the end")
            if record.cell.key in self._cancelled and record.state not in (CellState.CANCELLED, CellState.SUCCEEDED):
                raise Violation("cancelled", f"{record.cell.label} was cancelled and is {record.state}")
        without = sorted(set(self._kept.attempts) - set(self._kept.ends))
        if without:
            raise Violation("one-result", f"no end is recorded for {without}")


def _truth(worker: SimulatedWorker) -> Outcome:
    assert worker.end is not None
    end = worker.end
    if end.start_error:
        return Outcome.REJECTED
    if end.lost:
        return Outcome.LOST
    if end.timed_out:
        return Outcome.TIMED_OUT
    if end.ended_on_request:
        return Outcome.CANCELLED
    if worker.memory is not None:
        return Outcome.OUT_OF_MEMORY
    return Outcome.SUCCEEDED if end.measurement is not None else Outcome.FAILED


def _lasting(attempt: Attempt) -> Attempt:
    """The attempt without what is kept only when something else of it is, such as that it has started."""
    state = AttemptState.RUNNING if attempt.state is AttemptState.STARTING else attempt.state
    return replace(attempt, progress_done=0, progress_total=0, observed_peak_bytes=0, state=state)
