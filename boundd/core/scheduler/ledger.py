"""The ledger: who holds what of the devices and of the host during one step, and what may still be given away.

It is made once a step from the state, and kept current while the step places cells. It knows nothing of which device
is best (`placement`), nor what is told to people (`refusals`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from boundd.core.memory.headroom import foreign_bytes, headroom_bytes
from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import UNKNOWN_NAME, Device, DeviceState
from boundd.core.model.host import THIS_NODE
from boundd.core.model.reasons import (
    Full,
    HostRefusal,
    OtherModel,
    Quarantined,
    Refusal,
    TakenAlone,
    Unreadable,
)
from boundd.core.model.requirements import Requirement
from boundd.core.model.state import State
from boundd.core.scheduler.durations import expected_left_s
from boundd.core.scheduler.environment import device_refusal
from boundd.core.scheduler.host import HostLedger, HostNeed
from boundd.core.scheduler.needs import DeviceKind, KnownNeeds, Need, device_kind, must_be_alone, need_of
from boundd.core.scheduler.quick_deaths import suspect_refusal


@dataclass(frozen=True, slots=True)
class Backfill:
    """What others may have of a device that is held for a cell without putting that off: backfilling, as in EASY."""

    spare_bytes: int
    """Left beside the cell once enough is expected to have ended for it: theirs for as long as they like."""
    wait_s: float
    """Until then: whoever is expected to end sooner may have all that is free."""


def matrix_device_model(state: State) -> str | None:
    """The device model that the matrix runs on: the most numerous one, ties by name; None where models may mix."""
    if state.rules.mix_models:
        return None
    # What never takes a cell (a device divided into MIG instances), or is of nobody knows which model, is no reason to
    # wait for its like.
    readings = (device.reading for device in state.devices.values())
    names = Counter(one.name for one in readings if one.max_cells != 0 and one.name != UNKNOWN_NAME)
    return min(names, key=lambda name: (-names[name], name), default=None)


def limit_of(state: State, device: Device) -> int | None:
    """How many attempts a device takes at a time, by its own limit and the config's; None for any number."""
    limits = [limit for limit in (device.reading.max_cells, state.rules.max_cells or None) if limit is not None]
    return min(limits, default=None)


class Ledger:
    """Reservations during one scheduling pass. `emptying`: device UUID to the key of the cell it is emptied for."""

    def __init__(self, state: State, boot_s: float, emptying: Mapping[str, str] | None = None) -> None:
        self.state = state
        self.boot_s = boot_s
        self.model = matrix_device_model(state)
        self.emptying: dict[str, str] = dict(emptying or {})
        self.live: dict[str, Attempt] = dict(state.attempts)
        self._on: dict[str, list[Attempt]] = {uuid: [] for uuid in state.devices}
        for attempt in sorted(self.live.values(), key=lambda attempt: (attempt.started_boot_s, attempt.id)):
            self._on.setdefault(attempt.device, []).append(attempt)
        self._closed: dict[str, Refusal | None] = {}
        """What was found of a device since something was placed on it last: each queue asks."""
        self._hosts = {node: HostLedger.of(host, self._live_on(node)) for node, host in state.hosts.items()}
        self._kind_of = {uuid: device_kind(device.reading, state.memo) for uuid, device in state.devices.items()}
        self._usable = [
            device
            for device in state.devices.values()
            if device.state is DeviceState.READY and self.model in (None, device.reading.name)
        ]
        self._kinds = {self._kind_of[device.uuid] for device in self._usable}
        self.need: Callable[[Requirement, DeviceKind], Need] = partial(need_of, state, state.memo.table(KnownNeeds))
        """What cells need on devices of a kind."""
        self._needs: dict[Requirement, list[Need]] = {}

    # Who holds what

    def attempts_on(self, uuid: str) -> tuple[Attempt, ...]:
        """The live attempts on a device, oldest first."""
        return tuple(self._on.get(uuid, ()))

    def is_empty(self, uuid: str) -> bool:
        """Whether no live attempt is on a device."""
        return not self._on[uuid]

    def add(self, attempt: Attempt) -> None:
        """One more attempt is on its device."""
        self.live[attempt.id] = attempt
        self._on[attempt.device].append(attempt)
        self._closed.pop(attempt.device, None)
        host = self._hosts.get(self._node_of(attempt))
        if host is not None:
            host.add(attempt)

    def empty_for(self, uuid: str, key: str) -> None:
        """Keep a device for this cell: nothing else is placed there that would put off its start."""
        self.emptying[uuid] = key

    # What is left

    def headroom_bytes(self, uuid: str) -> int:
        """What of a device may still be given away; may be negative where somebody took more than was agreed.

        Raises:
            ValueError: the device could not be read.
        """
        return headroom_bytes(self.state.devices[uuid], self._on[uuid], self.state.rules.margin_bytes)

    def foreign_bytes(self, uuid: str) -> int:
        """What processes that are not boundd's hold of a device."""
        return foreign_bytes(self.state.devices[uuid], self._on[uuid])

    def room_when_empty(self, uuid: str) -> int:
        """What the device would have to give once what is ours has left it.

        What an attempt held that has ended since the reading is no foreign process's.
        """
        device = self.state.devices[uuid]
        total = device.reading.total_bytes or 0
        left = sum(held or 0 for attempt, held in device.observed_bytes.items() if attempt not in self.live)
        return total - max(0, self.foreign_bytes(uuid) - left) - self.state.rules.margin_bytes

    def backfill(self, uuid: str) -> Backfill:
        """What is kept of a device that is held for a cell, and until when."""
        kind = self._kind_of[uuid]
        need = self.need(self.state.memo.requirement_of(self.state.cells[self.emptying[uuid]]), kind)
        ends = sorted((expected_left_s(self.state, each, self.boot_s), each.id, each) for each in self._on[uuid])
        if need.alone or kind.single:
            return Backfill(0, ends[-1][0] if ends else 0.0)
        wait_s = 0.0
        left = self.headroom_bytes(uuid) - need.needed_bytes
        for left_s, _, attempt in ends:
            if left >= 0:
                break
            left, wait_s = left + attempt.reservation_bytes, left_s
        return Backfill(max(0, left), wait_s)

    def host_refusal(self, node: str, need: HostNeed) -> HostRefusal | None:
        """Why a node's own memory and cores can't take it; None where they can, and where nobody read them."""
        host = self._hosts.get(node)
        return None if host is None else host.refusal(need)

    def _node_of(self, attempt: Attempt) -> str:
        device = self.state.devices.get(attempt.device)
        return THIS_NODE if device is None else device.reading.node

    def _live_on(self, node: str) -> list[Attempt]:
        return [attempt for attempt in self.live.values() if self._node_of(attempt) == node]

    def closed(self, device: Device) -> Refusal | None:
        """Why a device takes nothing at all now, whatever the cell; None where it may."""
        uuid = device.uuid
        if uuid not in self._closed:
            self._closed[uuid] = self._why_closed(device)
        return self._closed[uuid]

    def _why_closed(self, device: Device) -> Refusal | None:
        attempts = self._on[device.uuid]
        if device.state is not DeviceState.READY:
            held = device.quarantine
            return Unreadable(device.reading.unavailable) if held is None else Quarantined(held)
        if self.model is not None and device.reading.name != self.model:
            return OtherModel(device.reading.name, self.model)
        if any(attempt.exclusive for attempt in attempts):
            return TakenAlone(attempts[0].label)
        limit = limit_of(self.state, device)
        if limit is not None and len(attempts) >= limit:
            return Full(len(attempts), limit)
        held_back = device_refusal(self.state, device.uuid, attempts, self.boot_s)
        return held_back or suspect_refusal(self.state, device.uuid, attempts, self.boot_s)

    # The devices that take cells of the matrix

    def kind(self, uuid: str) -> DeviceKind:
        """What a device is, for placement."""
        return self._kind_of[uuid]

    def total_bytes(self) -> int:
        """The memory of all devices that take cells of the matrix."""
        return sum(device.reading.total_bytes or 0 for device in self._usable)

    def kinds(self) -> frozenset[DeviceKind]:
        """The kinds of devices that take cells of the matrix."""
        return frozenset(self._kinds)

    def is_elsewhere(self, uuid: str) -> bool:
        """Whether any other device could ever take a cell that avoids this one; False where none is avoided."""
        return bool(uuid) and any(device.uuid != uuid for device in self._usable)

    # What cells need

    def needs_of(self, needs: Requirement) -> Sequence[Need]:
        """What such cells need on each kind of device that takes cells of the matrix."""
        found = self._needs.get(needs)
        if found is None:
            found = self._needs[needs] = [self.need(needs, kind) for kind in self._kinds]
        return found

    def is_alone(self, needs: Requirement) -> bool:
        """Whether such cells must be alone, by rule or by need, on some kind of device that there is."""
        return must_be_alone(needs) or any(need.alone for need in self.needs_of(needs))
