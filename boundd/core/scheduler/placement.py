"""Where a cell may run: a filter with reasons, then a rank. Pure and deterministic; ties break by UUID.

The ledger is made once a step from the state and kept current while the step places cells. Devices that are alike
(name, size, limits) share a shelf, on which those that may take company stand sorted by headroom and those that are
empty stand apart: the best fit is found by bisection, so that a step doesn't ask every device for every cell. Reasons
are worked out device by device, for the cells that somebody asks about.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from boundd.core.memory.footprint import CONTEXT_BYTES, LARGEST_PERCENT, Estimate, estimate_of
from boundd.core.memory.headroom import foreign_bytes, headroom_bytes
from boundd.core.memory.raising import LEVELS
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.devices import Device, DeviceState
from boundd.core.model.history import Observation, Observations
from boundd.core.model.queues import Requirement, requirement_of
from boundd.core.model.state import NoRoom, Rules, State
from boundd.core.model.workload import subject_on
from boundd.core.scheduler.durations import expectations, expected_left_s
from boundd.core.scheduler.host import HostLedger, HostNeed, host_need
from boundd.core.scheduler.quarantine import rests

LEAST_BYTES = 2 * CONTEXT_BYTES
"""Nothing is placed with less: the context would leave its allocator no room, and the two would outgrow it."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A device that takes the cell, with what is reserved there."""

    device: str
    reservation_bytes: int
    cap_bytes: int | None
    exclusive: bool
    whole_device: bool
    left_bytes: int
    """Headroom that would be left if it took just what it needs; the smallest is the best fit."""
    estimate_bytes: int | None
    host_memory_bytes: int
    cores: int
    why: str
    """What was chosen and why, for the log."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes devices alike for placement."""

    name: str
    total_bytes: int
    single: bool
    backend: str


@dataclass(slots=True)
class Shelf:
    """Devices of one kind that may take something: (headroom, UUID), sorted."""

    joinable: list[tuple[int, str]] = field(default_factory=list)
    empty: list[tuple[int, str]] = field(default_factory=list)

    @property
    def most_bytes(self) -> int:
        """The most headroom that any of them has; below 0 where there is none."""
        return max(self.joinable[-1][0] if self.joinable else -1, self.empty[-1][0] if self.empty else -1)


@dataclass(frozen=True, slots=True)
class Kept:
    """What others may have of a device that is held for a cell without putting that off: backfilling, as in EASY."""

    spare_bytes: int
    """Left beside the cell once enough is expected to have ended for it: theirs for as long as they like."""
    wait_s: float
    """Until then: whoever is expected to end sooner may have all that is free."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a cell needs on devices of one kind."""

    expected: Estimate
    needed_bytes: int
    alone: bool
    host: HostNeed


class _Known(NamedTuple):
    """What cells need, with what it was worked out from."""

    need: Need
    rules: Rules
    observations: Observations
    """All, as they were when it was last asked for."""
    seen: tuple[Observation, ...]
    """Those that it goes by."""
    variation_permille: int | None
    """What of the others it goes by."""


NEEDS_KEPT = 65_536
_NEEDS: dict[tuple[Requirement, Kind], _Known] = {}
"""A plan asks for every queue's need, and most are as in the last one."""


def forget_needs() -> None:
    """Work every need out anew from here on: what is remembered is for speed, and must never show."""
    _NEEDS.clear()


def matrix_device_model(state: State) -> str | None:
    """The device model that the matrix runs on: the most numerous one, ties by name; None where models may mix."""
    if state.rules.mix_models:
        return None
    # What never takes a cell (a device divided into MIG instances) is no reason to wait for its like.
    names = Counter(d.reading.name for d in state.devices.values() if d.reading.max_cells != 0)
    return min(names, key=lambda name: (-names[name], name), default=None)


def must_be_alone(needs: Requirement) -> bool:
    """By rule, by a worker that doesn't know the lease, or because it ran out of memory beside others."""
    return needs.policy.must_be_alone or needs.alone


class Ledger:
    """Who holds what, during one step. `held` maps a device's UUID to the key of the cell that it is emptied for."""

    def __init__(self, state: State, boot_s: float, held: Mapping[str, str] | None = None) -> None:
        self.state = state
        self.boot_s = boot_s
        self.model = matrix_device_model(state)
        self.held: dict[str, str] = dict(held or {})
        self.live: dict[str, Attempt] = dict(state.attempts)
        self._on: dict[str, list[Attempt]] = {uuid: [] for uuid in state.devices}
        for attempt in sorted(self.live.values(), key=lambda attempt: (attempt.started_boot_s, attempt.id)):
            self._on.setdefault(attempt.device, []).append(attempt)
        self._host = None if state.host is None else HostLedger.of(state.host, self.live.values())
        self._room: dict[str, int] = {}
        self._shelves: dict[Kind, Shelf] = {}
        self._is_full: bool | None = None
        self._usable = [
            device
            for device in state.devices.values()
            if device.state is DeviceState.READY and self.model in (None, device.reading.name)
        ]
        self._kinds = {kind_of(device) for device in self._usable}
        self._needs: dict[Requirement, list[Need]] = {}
        self._suspects: set[str] = {strike.device for strike in state.strikes}
        for device in state.devices.values():
            self._shelve(device)

    def attempts_on(self, uuid: str) -> tuple[Attempt, ...]:
        """The live attempts on a device, oldest first."""
        return tuple(self._on.get(uuid, ()))

    def add(self, attempt: Attempt) -> None:
        """One more attempt is on its device."""
        self._unshelve(self.state.devices[attempt.device])
        self.live[attempt.id] = attempt
        self._on[attempt.device].append(attempt)
        if self._host is not None:
            self._host.add(attempt)
        self._shelve(self.state.devices[attempt.device])

    def room_when_empty(self, uuid: str) -> int:
        """What the device would have to give once what is ours has left it.

        What an attempt held that has ended since the reading is no foreign process's.
        """
        device = self.state.devices[uuid]
        total = device.reading.total_bytes or 0
        left = sum(held or 0 for attempt, held in device.observed_bytes.items() if attempt not in self.live)
        return total - max(0, foreign_bytes(device, self._on[uuid]) - left) - self.state.rules.margin_bytes

    def hold(self, uuid: str, key: str) -> None:
        """Keep a device for this cell: nothing else is placed there that would put off its start."""
        device = self.state.devices[uuid]
        self._unshelve(device)
        self.held[uuid] = key
        self._shelve(device)

    def kept(self, uuid: str) -> Kept:
        """What is kept of a device that is held for a cell, and until when."""
        device = self.state.devices[uuid]
        need = self.need(requirement_of(self.state.cells[self.held[uuid]]), kind_of(device))
        ends = sorted((expected_left_s(self.state, each, self.boot_s), each.id, each) for each in self._on[uuid])
        if need.alone or kind_of(device).single:
            return Kept(0, ends[-1][0] if ends else 0.0)
        wait_s = 0.0
        left = headroom_bytes(device, self._on[uuid], self.state.rules.margin_bytes) - need.needed_bytes
        for left_s, _, attempt in ends:
            if left >= 0:
                break
            left, wait_s = left + attempt.reservation_bytes, left_s
        return Kept(max(0, left), wait_s)

    def best(self, record: CellRecord) -> Placement | None:
        """The best device for a cell: one without suspicion before one with, then the best fit in bytes."""
        found: list[tuple[bool, int, str, Need]] = []
        for kind, shelf in self._shelves.items():
            if shelf.most_bytes < 1:
                continue  # as in most plans of a full box: then nobody needs to know what the cell needs
            need = self.need(requirement_of(record), kind)
            if self.host_refusal(need.host):
                continue
            answer = self._on_shelf(record, kind, shelf, need)
            if answer is not None:
                found.append((answer[1] in self._suspects, answer[0] - need.needed_bytes, answer[1], need))
        found += [fit for uuid in self.held if (fit := self._on_held(record, uuid)) is not None]
        if not found:
            return None
        _, left, uuid, need = min(found, key=lambda fit: fit[:3])
        return self._placement(self.state.devices[uuid], need, left)

    @property
    def is_full(self) -> bool:
        """Whether no device has room for anything, but for the cell that it may be held for."""
        if self._is_full is None:
            # Whoever is gone soon enough may have what is free of a device that is held.
            held = (
                headroom_bytes(self.state.devices[each], self._on[each], self.state.rules.margin_bytes)
                for each in self.held
            )
            self._is_full = all(shelf.most_bytes < 1 for shelf in self._shelves.values()) and all(
                room < 1 for room in held
            )
        return self._is_full

    def total_bytes(self) -> int:
        """The memory of all devices that take cells of the matrix."""
        return sum(device.reading.total_bytes or 0 for device in self._usable)

    def kinds(self) -> frozenset[Kind]:
        """The kinds of devices that take cells of the matrix."""
        return frozenset(self._kinds)

    def host_refusal(self, need: HostNeed) -> str:
        """Why the host can't take it; empty where it can, and where nobody read the host."""
        return "" if self._host is None else self._host.refusal(need)

    def is_alone(self, needs: Requirement) -> bool:
        """Whether such cells must be alone, by rule or by need, on some kind of device that there is."""
        return must_be_alone(needs) or any(need.alone for need in self.needs_of(needs))

    def reasons(self, record: CellRecord) -> tuple[NoRoom, ...] | Placement:
        """Why each device doesn't take the cell, in the order that people see; or where it would go."""
        fit = self.best(record)
        if fit is not None:
            return fit
        return tuple(self._reason(record, device) for device in self.state.devices_by_index())

    def need(self, needs: Requirement, kind: Kind) -> Need:
        """What such cells need on devices of a kind."""
        rules, observations = self.state.rules, self.state.observations
        known = _NEEDS.get((needs, kind))
        # The same objects hold the same values: none of them is ever changed.
        if known is not None and known.observations is observations and known.rules is rules:
            return known.need
        seen = observations.about(subject_on(needs.work, kind.name))
        varies = observations.variation_permille
        unchanged = (
            known is not None and known.seen is seen and known.rules is rules and known.variation_permille == varies
        )
        need = known.need if known is not None and unchanged else self._need(needs, kind)
        if len(_NEEDS) >= NEEDS_KEPT:
            _NEEDS.clear()
        _NEEDS[needs, kind] = _Known(need, rules, observations, seen, varies)
        return need

    def needs_of(self, needs: Requirement) -> Sequence[Need]:
        """What such cells need on each kind of device that takes cells of the matrix."""
        found = self._needs.get(needs)
        if found is None:
            found = self._needs[needs] = [self.need(needs, kind) for kind in self._kinds]
        return found

    def _need(self, needs: Requirement, kind: Kind) -> Need:
        state, policy, work = self.state, needs.policy, needs.work
        expected = estimate_of(work, policy.footprint_bytes, kind.name, state.observations, state.rules.torch)
        largest = max(0, kind.total_bytes - state.rules.margin_bytes) * LARGEST_PERCENT // 100
        size = expected.size_bytes
        raised = needs.memory_level > LEVELS and not expected.learned
        alone = must_be_alone(needs) or raised or size is None or size >= largest
        host = HostNeed(0, 0, "its device is the host")
        if kind.backend != "cpu":
            host = host_need(policy, work, kind.name, state.observations)
        # Nobody knows how much it takes: it gets what there is, once the device is its own.
        least = 1 if kind.backend == "cpu" else min(LEAST_BYTES, largest)
        return Need(expected, least if size is None else max(least, min(size, largest)), alone, host)

    # The shelves

    def _shelve(self, device: Device) -> None:
        self._is_full = None
        if self._closed(device):
            return
        attempts = self._on[device.uuid]
        room = headroom_bytes(device, attempts, self.state.rules.margin_bytes)
        if device.uuid in self.held:
            room = min(room, self.kept(device.uuid).spare_bytes)
        self._room[device.uuid] = room
        shelf = self._shelves.setdefault(kind_of(device), Shelf())
        insort(shelf.joinable if attempts else shelf.empty, (room, device.uuid))

    def _unshelve(self, device: Device) -> None:
        self._is_full = None
        room = self._room.pop(device.uuid, None)
        shelf = self._shelves.get(kind_of(device))
        if room is None or shelf is None:
            return
        for row in (shelf.joinable, shelf.empty):
            place = bisect_left(row, (room, device.uuid))
            if place < len(row) and row[place] == (room, device.uuid):
                del row[place]

    def _closed(self, device: Device) -> str:
        """Why a device takes nothing at all now, whatever the cell; empty where it may."""
        attempts = self._on[device.uuid]
        if device.state is not DeviceState.READY:
            return f"{device.state}: {device.reason}"
        if self.model is not None and device.reading.name != self.model:
            return f"another device model ({device.reading.name}); the matrix runs on {self.model} (mix_models = false)"
        if any(attempt.exclusive for attempt in attempts):
            return f"{attempts[0].label} runs there alone"
        limit = limit_of(self.state, device)
        if limit is not None and len(attempts) >= limit:
            return f"{len(attempts)} attempt(s) run there, and it takes {limit}"
        return rests(self.state, device.uuid, attempts, self.boot_s)

    def _on_shelf(self, record: CellRecord, kind: Kind, shelf: Shelf, need: Need) -> tuple[int, str] | None:
        """The best fit on a shelf, as (headroom, UUID): of those without suspicion where there is one."""
        rows = [shelf.empty] if need.alone or kind.single else [shelf.joinable, shelf.empty]
        least = max(1, need.needed_bytes)
        avoid = record.avoid if self._elsewhere(record.avoid) else ""
        fits = []
        for row in rows:
            second_choice = None
            for place in range(bisect_left(row, (least, "")), len(row)):
                room, uuid = row[place]
                if uuid == avoid:
                    continue
                if uuid not in self._suspects:
                    fits.append((False, room, uuid))
                    break
                second_choice = second_choice or (True, room, uuid)
            else:
                if second_choice is not None:
                    fits.append(second_choice)
        return min(fits)[1:] if fits else None

    def _elsewhere(self, uuid: str) -> bool:
        """Whether any other device could ever take a cell that avoids this one."""
        return bool(uuid) and any(
            device.uuid != uuid
            and device.state is DeviceState.READY
            and (self.model is None or device.reading.name == self.model)
            for device in self.state.devices.values()
        )

    def _on_held(self, record: CellRecord, uuid: str) -> tuple[bool, int, str, Need] | None:
        """A device that is held for this very cell, or for one that it will be out of the way of."""
        device = self.state.devices[uuid]
        if self._closed(device):
            return None
        needs = requirement_of(record)
        need = self.need(needs, kind_of(device))
        room = headroom_bytes(device, self._on[uuid], self.state.rules.margin_bytes)
        crowded = (need.alone or kind_of(device).single) and self._on[uuid]
        if crowded or room < max(1, need.needed_bytes) or self.host_refusal(need.host):
            return None
        if self.held[uuid] != record.cell.key:
            lasts_s = expectations(self.state.durations, device.reading.name).of(needs.work).wall_s
            avoided = uuid == record.avoid and self._elsewhere(uuid)
            if need.alone or avoided or lasts_s > self.kept(uuid).wait_s:
                return None
        return uuid in self._suspects, room - need.needed_bytes, uuid, need

    def _placement(self, device: Device, need: Need, left: int) -> Placement:
        kind = kind_of(device)
        room = need.needed_bytes + left
        whole = need.alone or kind.single
        reservation = room if whole else need.needed_bytes
        largest = max(0, kind.total_bytes - self.state.rules.margin_bytes) * LARGEST_PERCENT // 100
        beside = len(self._on[device.uuid])
        where = "alone" if whole else f"beside {beside}" if beside else "on an empty device"
        return Placement(
            device.uuid,
            reservation_bytes=reservation,
            cap_bytes=None if kind.backend == "cpu" else cap_of(reservation),
            exclusive=need.alone,
            whole_device=whole and (reservation >= largest or kind.backend == "cpu"),
            left_bytes=left,
            estimate_bytes=need.expected.size_bytes,
            host_memory_bytes=need.host.memory_bytes,
            cores=need.host.cores,
            why=f"{where}, the best fit ({need.expected.source})",
        )

    # Reasons

    def _reason(self, record: CellRecord, device: Device) -> NoRoom:
        """Why this device doesn't take the cell, when none does."""
        attempts = self._on[device.uuid]
        labels = tuple(attempt.label for attempt in attempts)
        closed = self._closed(device)
        if not closed and device.uuid == record.avoid and self._elsewhere(record.avoid):
            closed = "the cell died quickly there, and is tried elsewhere"
        if closed:
            return NoRoom(device.uuid, closed, held_by=labels)
        needs = requirement_of(record)
        need = self.need(needs, kind_of(device))
        room = headroom_bytes(device, attempts, self.state.rules.margin_bytes)
        foreign = foreign_bytes(device, attempts)
        if need.alone and attempts:
            by_need = f"needs the device to itself: {_why_alone(need)}"
            why = "the cell must be alone" if must_be_alone(needs) else by_need
            reason = f"{why}, and {len(attempts)} attempt(s) run there"
        elif room < need.needed_bytes or room <= 0:
            reason = f"{need.needed_bytes - room:,} bytes short: needs {need.needed_bytes:,} ({need.expected.source}), "
            reason += f"headroom {max(0, room):,}"
        elif self.held.get(device.uuid, record.cell.key) != record.cell.key:
            reason = f"being emptied for {self.state.cells[self.held[device.uuid]].cell.label}: needs "
            kept = self.kept(device.uuid)
            reason += f"{need.needed_bytes:,} ({need.expected.source}), {kept.spare_bytes:,} are to spare, all that is "
            reason += f"free for {kept.wait_s:.0f} s"
        else:
            reason = self.host_refusal(need.host) or "it is free now: the next plan looks again"
        if foreign:
            reason += f"; {foreign:,} bytes are held by processes that are not boundd's"
        return NoRoom(device.uuid, reason, need.needed_bytes, room, labels)


def _why_alone(need: Need) -> str:
    size = need.expected.size_bytes
    if size is None:
        return need.expected.source
    return f"{size:,} bytes expected ({need.expected.source}), {need.needed_bytes:,} are the most it waits for"


def limit_of(state: State, device: Device) -> int | None:
    """How many attempts a device takes at a time, by its own limit and the config's; None for any number."""
    limits = [limit for limit in (device.reading.max_cells, state.rules.max_cells or None) if limit is not None]
    return min(limits, default=None)


def kind_of(device: Device) -> Kind:
    """What a device is, for placement."""
    reading = device.reading
    return _kind(reading.name, reading.total_bytes or 0, reading.max_cells == 1, reading.backend)


_kind = lru_cache(maxsize=1024)(Kind)
"""The same value each time, so that comparing two is a look at one address."""


def cap_of(reservation_bytes: int) -> int:
    """What the caching allocator may take of a reservation: less the context, which it doesn't see."""
    return max(reservation_bytes - CONTEXT_BYTES, reservation_bytes // 2)


def best_placement(
    state: State, record: CellRecord, held: Mapping[str, str], boot_s: float = 0.0
) -> Placement | tuple[NoRoom, ...]:
    """The best device for a cell, or why each one doesn't take it; for one cell, outside of a plan."""
    return Ledger(state, boot_s, held).reasons(record)
