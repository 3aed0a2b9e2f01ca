"""The planner: one scheduling pass. State and time in, placements and reasons out.

Cells with equal requirements stand in one queue (`queues`). Queues are served in this order:

1. starved queues, the longest-waiting first; 2. a scout of each kind of work whose memory is unknown: its shortest
cell, so that its footprint is learned early; 3. queues whose memory is known, in the order of `order`, which begins
with cells that died quickly on a device (where they run next shows whether the device was at fault) and cells that must
run alone; 4. queues whose memory is unknown.

If a cell fits on no device, and its queue is starved, must run alone, or is a scout, a device is emptied for it:
other cells may only backfill there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from boundd.core.model.attempts import Attempt, CellRecord, CellState, attempt_id
from boundd.core.model.devices import DeviceState
from boundd.core.model.events import Now
from boundd.core.model.reasons import Backoff, Deferral, PlacementReason, PlainWait, Wait
from boundd.core.model.requirements import Requirement
from boundd.core.model.state import State
from boundd.core.model.transitions import Trigger, next_cell_state
from boundd.core.model.workload import subject_on
from boundd.core.scheduler import environment
from boundd.core.scheduler.durations import expectations
from boundd.core.scheduler.ledger import Ledger
from boundd.core.scheduler.order import WAITING_LIMIT_FACTOR, ranked, starvation_limit, starved_queues
from boundd.core.scheduler.placement import Placement, PlacementSearch
from boundd.core.scheduler.quick_deaths import mark_survivors, next_rest_end
from boundd.core.scheduler.refusals import best_placement

Refused = set[Requirement]
"""Queues with a cell that fitted on no device in this pass."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of a scheduling pass: what to start, why the rest waits, and when to run again. `state` already
    holds the new attempts."""

    state: State
    started: tuple[Attempt, ...]
    joined: tuple[Attempt, ...]
    """Attempts that were alone on their device until this pass."""
    next_wake_boot_s: float | None
    choices: Mapping[str, PlacementReason] = field(default_factory=dict)
    """Attempt id to the reason for its placement."""


@dataclass(frozen=True, slots=True)
class Deferrals(Mapping[str, Deferral]):
    """Why each pending cell waits. Reasons are computed on demand, because a large matrix has too many."""

    state: State
    now: Now
    emptying: Mapping[str, str]
    wait: Wait | None = None
    """A reason that holds for all cells, if there is one."""

    def __getitem__(self, key: str) -> Deferral:
        record = self.state.cells.get(key)
        if record is None or record.state is not CellState.PENDING or key not in self.state.cells.places:
            raise KeyError(key)
        if self.wait is not None:
            return Deferral(self.wait)
        if record.not_before_boot_s > self.now.boot_s:
            return Deferral(Backoff(record.not_before_boot_s - self.now.boot_s))
        needs = self.state.memo.requirement_of(record)
        problem = environment.blocking_problem(self.state.problems, needs, self.now.boot_s)
        if problem is not None:
            return Deferral(environment.as_held_back(problem, self.now.boot_s))
        answer = best_placement(self.state, record, self.emptying, self.now.boot_s)
        if isinstance(answer, Placement):
            return Deferral(PlainWait.ROOM_BY_NOW)
        return Deferral(PlainWait.REFUSED if answer else PlainWait.NO_DEVICE, answer)

    def __iter__(self) -> Iterator[str]:
        return (record.cell.key for record in self.state.pending())

    def __len__(self) -> int:
        return self.state.cells.counts.get(CellState.PENDING, 0)


def plan(state: State, now: Now) -> Plan:
    """Run a scheduling pass: start every cell that can start now."""
    state = mark_survivors(state, now.boot_s)
    if state.stopping or state.paused:
        wait = PlainWait.STOPPING if state.stopping else PlainWait.PAUSED
        return Plan(_explained(state, now, {}, wait), (), (), None)
    if state.disk_shortage is not None:
        # No wake-up is needed: each reading of the devices also reads the disk, and is followed by a pass.
        return Plan(_explained(state, now, {}, state.disk_shortage), (), (), None)
    if not state.has_pending:
        return Plan(_explained(state, now, {}), (), (), None)
    starved = starved_queues(state)
    filling = _SchedulingPass(state, now, starved)
    queues = [needs for needs in ranked(state, filling.ledger, starved) if not filling.is_blocked(needs)]
    # Scouts are useless if devices take one cell at a time, because footprints don't matter then.
    crowded = not all(kind.single for kind in filling.ledger.kinds())
    running = _subjects(state)
    scouts = scout_queues(state, queues, running) if crowded else []
    for needs in queues:
        if needs in starved:
            filling.fill(needs)
    for needs in scouts:
        filling.fill(needs, most=1, wanted=True)
    # Known sizes go first: an estimate that is too high keeps others out, one that is too low wastes an attempt. Of
    # the kinds that are being learned, the shortest cells go first, so that they have left when the size is known.
    names = device_names(state)
    guessed = [needs for needs in queues if is_guessed(state, needs, names)]
    learning = running | {needs.work.subject for needs in scouts}
    unknown = frozenset(guessed)
    # Empty a device for the first cell that fits nowhere, or smaller cells would block it for ever.
    first = True
    for needs in queues:
        if needs not in unknown:
            first = not filling.fill(needs, wanted=first) and first
    for needs in sorted(guessed, key=lambda n: _amount(n) if n.work.subject in learning else 0):
        filling.fill(needs)
    return filling.plan()


def device_names(state: State) -> frozenset[str]:
    """The device models that there are."""
    return frozenset(device.reading.name for device in state.devices.values())


def is_guessed(state: State, needs: Requirement, names: frozenset[str]) -> bool:
    """Whether these cells' memory is unknown and matters. A cell that must run alone gets the whole device anyway."""
    if needs.policy.must_be_alone or needs.alone:
        return False
    if any(known.method == needs.work.method for known in state.durations.about(needs.work.model)):
        return False  # the same work succeeded without reporting a peak, so there is nothing to learn
    return not any(
        not seen.censored for name in names for seen in state.observations.about(subject_on(needs.work, name))
    )


def scout_queues(state: State, queues: Sequence[Requirement], running: Collection[str]) -> list[Requirement]:
    """The scouts: the shortest queue of each kind of work whose memory is unknown and of which nothing runs.

    One of its cells starts before all others, and a device is emptied for it if necessary. Its footprint is then
    learned early, by one cell instead of ten that fail together, and the rest is packed with known sizes. Kinds with
    a single cell have no scout, because nothing would use what it teaches.
    """
    found: dict[str, Requirement] = {}
    names = device_names(state)
    waiting = Counter[str]()
    for needs in queues:
        waiting[needs.work.subject] += len(state.cells.queues[needs])
    for needs in queues:
        if waiting[needs.work.subject] > 1 and needs.work.subject not in running and is_guessed(state, needs, names):
            before = found.get(needs.work.subject)
            if before is None or _amount(needs) < _amount(before):
                found[needs.work.subject] = needs
    return list(found.values())


def _subjects(state: State) -> set[str]:
    """The subjects of the running attempts."""
    work_of, cells = state.memo.workload_of, state.cells
    return {work_of(cells[attempt.key]).subject for attempt in state.attempts.values()}


def _amount(needs: Requirement) -> int:
    """Steps x samples, which the durations of cells of one kind are proportional to."""
    return needs.work.steps * needs.work.samples


class _SchedulingPass:
    """One scheduling pass: a ledger that fills up, and the decisions so far."""

    def __init__(self, state: State, now: Now, starved: frozenset[Requirement]) -> None:
        self.now = now
        self.starved = starved
        self.before = state
        self.cells = state.cells
        self.ledger = Ledger(state, now.boot_s)
        self.search = PlacementSearch(self.ledger)
        self.started: dict[str, Attempt] = {}
        self.choices: dict[str, PlacementReason] = {}
        self.joined: dict[str, Attempt] = {}
        self.refused = Refused()
        """A cell that fits nowhere in a pass fits nowhere later in it, because a pass frees nothing."""
        self.refused_since = state.refused_since
        self.passed: list[Requirement] = []
        """Queues that were refused since the last placement. The next placement overtakes them."""
        self.last_model = state.last_model
        self.problems = state.problems
        self.emptying: dict[str, str] = {}
        self.emptying_for: set[Requirement] = set()
        """The queues that devices are being emptied for. For all others, `emptying` need not be searched."""
        self.wanting: set[str] = set()
        """Cells that fitted nowhere in this pass and that a device is being emptied for."""
        for uuid, key in state.emptying.items():
            record = state.cells.get(key)
            if record is None or record.state is not CellState.PENDING or not self._may_be_emptied_for(record, uuid):
                continue
            if not self.is_blocked(state.memo.requirement_of(record)):
                self._empty_for(record, uuid)

    def is_blocked(self, needs: Requirement) -> bool:
        """Whether a queue waits for a problem of the environment, or for the attempt that probes it."""
        return environment.blocking_problem(self.problems, needs, self.now.boot_s) is not None

    def fill(self, needs: Requirement, most: int | None = None, *, wanted: bool = False) -> bool:
        """Start a queue's cells until one fits nowhere or `most` have started. Returns whether one fitted nowhere.

        With `wanted`, a device is emptied for it then, as for cells that must run alone.
        """
        if needs in self.refused:
            return True
        if needs not in self.cells.queues:
            return False
        if not wanted and self.search.is_full and self._is_refused_again(needs):
            self.passed.append(needs)
            return True
        touched, left, refused = False, most, False
        for key in self._entries(needs):
            if not self.cells.waits_in(needs, key):
                touched = True
                continue
            if left == 0 or (self.problems and self.is_blocked(needs)):
                break
            record = self.cells[key]
            if record.not_before_boot_s > self.now.boot_s:
                continue
            self._take_over(needs, record)
            placement = self.search.best(record, needs)
            if placement is None:
                self._refused(needs, record, wanted=wanted)
                refused = True
                break
            self._place(record, placement)
            touched, left = True, None if left is None else left - 1
            if needs in self.refused_since:
                self.refused_since = self.refused_since.delete(needs)
        if touched:
            self.cells = self.cells.trimmed(needs)
        return refused

    def _is_refused_again(self, needs: Requirement) -> bool:
        """Whether a queue was already refused and needs no action, so that the search can be skipped."""
        if needs not in self.refused_since or needs in self.starved or needs in self.emptying_for:
            return False
        return bool(self.ledger.emptying) or not self.ledger.is_alone(needs)

    def _entries(self, needs: Requirement) -> Iterator[str]:
        """A queue's cells in order, but first those that a device is being emptied for.

        A cell that returns to the queue stands before these, and the device would be refused to it for ever.
        """
        entries = self.cells.queues[needs].entries()
        if needs not in self.emptying_for:
            return entries
        first = [key for key in self.emptying.values() if self.cells.waits_in(needs, key)]
        return chain(first, (key for key in entries if key not in first))

    def plan(self) -> Plan:
        """The result of the pass."""
        attempts = self.before.attempts.update({**self.joined, **self.started})
        state = replace(
            self.before,
            cells=self.cells,
            attempts=attempts,
            refused_since=self.refused_since,
            last_model=self.last_model,
            problems=self.problems,
            emptying={uuid: key for uuid, key in self.emptying.items() if key in self.wanting},
        )
        state = _explained(state, self.now, self.ledger.emptying)
        return Plan(
            state,
            tuple(self.started.values()),
            tuple(self.joined.values()),
            _next_wake(state, self.now),
            self.choices,
        )

    def _take_over(self, needs: Requirement, record: CellRecord) -> None:
        """If a device is being emptied for a cell of this queue, empty it for the queue's first cell, which needs
        the same."""
        for uuid, key in self.emptying.items() if needs in self.emptying_for else ():
            if key != record.cell.key and self.cells.waits_in(needs, key):
                self._empty_for(record, uuid)

    def _refused(self, needs: Requirement, record: CellRecord, *, wanted: bool) -> None:
        self.refused.add(needs)
        self.passed.append(needs)
        if needs not in self.refused_since:
            later = self.before.completions + (WAITING_LIMIT_FACTOR - 1) * starvation_limit(self.before)
            self.refused_since = self.refused_since.set(needs, later)
        starved = needs in self.starved
        if not (starved or wanted or self.ledger.is_alone(needs)):
            return
        self.wanting.add(record.cell.key)
        if starved or not self.ledger.emptying:
            self._empty_one_for(record)

    def _empty_one_for(self, record: CellRecord) -> None:
        """Choose a device to be emptied for a cell: of those that could take it when empty, the one that will be empty
        first.

        The choice is kept in the state until the cell has started. If it changed from pass to pass, no device would
        ever become empty. Only one device is emptied at a time, except for starved cells, because a device that is
        being emptied is half unused, and cells that must run alone can use the same one after another.
        """
        if len(self.ledger.emptying) >= len(self.before.devices) or record.cell.key in self.emptying.values():
            return
        usable = [
            (max(map(self._ends_boot_s, self.ledger.attempts_on(uuid))), uuid)
            for uuid in self.before.devices
            if self.ledger.attempts_on(uuid)
            and uuid not in self.ledger.emptying
            and self._may_be_emptied_for(record, uuid)
        ]
        if usable:
            self._empty_for(record, min(usable)[1])

    def _empty_for(self, record: CellRecord, uuid: str) -> None:
        self.search.empty_for(uuid, record.cell.key)
        self.emptying[uuid] = record.cell.key
        self.emptying_for.add(self.before.memo.requirement_of(record))

    def _may_be_emptied_for(self, record: CellRecord, uuid: str) -> bool:
        device = self.before.devices.get(uuid)
        if device is None or device.state is not DeviceState.READY or uuid == record.avoid:
            return False
        right = self.ledger.model is None or device.reading.name == self.ledger.model
        return right and self._could_take(record, uuid)

    def _ends_boot_s(self, attempt: Attempt) -> float:
        """When an attempt was expected to end when it began; by that, an attempt that is late keeps its place."""
        name = self.before.devices[attempt.device].reading.name
        work = self.before.memo.workload_of(self.cells[attempt.key], attempt.batch_size)
        return attempt.started_boot_s + expectations(self.before, name).of(work).wall_s

    def _could_take(self, record: CellRecord, uuid: str) -> bool:
        """Whether the device would take the cell once what is ours has left it; what others hold may not leave."""
        need = self.ledger.need(self.before.memo.requirement_of(record), self.ledger.kind(uuid))
        return self.ledger.room_when_empty(uuid) >= max(1, need.needed_bytes)

    def _overtake(self) -> None:
        """From now on the patience counts of all that were refused so far, and are served after this one."""
        for needs in self.passed:
            if self.refused_since[needs] > self.before.completions:
                self.refused_since = self.refused_since.set(needs, self.before.completions)
        self.passed.clear()

    def _place(self, record: CellRecord, placement: Placement) -> None:
        self._overtake()
        number = record.attempts + 1
        company = self.ledger.attempts_on(placement.device)
        attempt = Attempt(
            id=attempt_id(record.cell, number),
            key=record.cell.key,
            label=record.cell.label,
            number=number,
            device=placement.device,
            reservation_bytes=placement.reservation_bytes,
            cap_bytes=placement.cap_bytes,
            batch_size=record.wanted_batch_size,
            exclusive=placement.exclusive,
            timeout_s=record.policy.timeout_s,
            grace_s=record.policy.grace_s,
            started_unix_s=self.now.unix_s,
            started_boot_s=self.now.boot_s,
            whole_device=placement.whole_device,
            had_company=bool(company),
            estimate_bytes=placement.estimate_bytes,
            host_memory_bytes=placement.host_memory_bytes,
            cores=placement.cores,
        )
        running = replace(record, state=next_cell_state(record.state, Trigger.PLACE), attempts=number)
        self.cells = self.cells.set(record.cell.key, running)
        for other in company:
            if not other.had_company:
                changed = self.started if other.id in self.started else self.joined
                changed[other.id] = replace(other, had_company=True)
        self.started[attempt.id] = attempt
        self.choices[attempt.id] = placement.choice
        self.problems = environment.with_probe(self.problems, self.before.memo.requirement_of(record), attempt)
        self.last_model = str(record.cell.parameters.get("model", ""))
        self.search.add(attempt)


def _explained(state: State, now: Now, emptying: Mapping[str, str], wait: Wait | None = None) -> State:
    """The state with the deferrals of this pass. These refer to the state without earlier deferrals, or every state
    would keep all states before it in memory."""
    bare = replace(state, deferrals={})
    return replace(state, deferrals=Deferrals(bare, now, dict(emptying), wait))


def _next_wake(state: State, now: Now) -> float | None:
    waits = [boot_s for boot_s in state.cells.in_backoff.values() if boot_s > now.boot_s]
    looks = (next_rest_end(state, now.boot_s), environment.next_probe_boot_s(state, now.boot_s))
    return min([*waits, *(look for look in looks if look is not None)], default=None)
