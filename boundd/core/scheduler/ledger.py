"""The ledger: what attempts reserve of each device and of the host during one scheduling pass, and what is left.

It is made from the state at the start of a pass, and updated for each cell that the pass places. Choosing a device
is up to `placement`, explaining refusals to `refusals`.
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
    """What other cells may use of a device that is being emptied for a cell, without delaying that cell: EASY
    backfilling (Lifka 1995; Mu'alem and Feitelson 2001)."""

    spare_bytes: int
    """Memory left beside the waiting cell when it starts. Other cells may hold it for any time."""
    wait_s: float
    """Time until the waiting cell can start. Cells that are expected to end sooner may use all free memory."""


def matrix_device_model(state: State) -> str | None:
    """The device model that the matrix runs on: the most frequent one, ties by name; None if models may be mixed."""
    if state.rules.mix_models:
        return None
    # Ignore devices that never take a cell, such as one divided into MIG instances.
    readings = (device.reading for device in state.devices.values())
    names = Counter(one.name for one in readings if one.max_cells != 0 and one.name != UNKNOWN_NAME)
    return min(names, key=lambda name: (-names[name], name), default=None)


def limit_of(state: State, device: Device) -> int | None:
    """The limit of attempts at a time on a device, from the device and the config; None if there is none."""
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
        """Refusals by device, until something is placed on it. Every queue asks for them."""
        self._hosts = {node: HostLedger.of(host, self._live_on(node)) for node, host in state.hosts.items()}
        self._kind_of = {uuid: device_kind(device.reading, state.memo) for uuid, device in state.devices.items()}
        self._usable = [
            device
            for device in state.devices.values()
            if device.state is DeviceState.READY and self.model in (None, device.reading.name)
        ]
        self._kinds = {self._kind_of[device.uuid] for device in self._usable}
        self.need: Callable[[Requirement, DeviceKind], Need] = partial(need_of, state, state.memo.table(KnownNeeds))
        """The need of a requirement on a kind of device."""
        self._needs: dict[Requirement, list[Need]] = {}

    # Attempts on devices

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
        """Empty a device for a cell: no other cell is placed there that would delay its start."""
        self.emptying[uuid] = key

    # What is left

    def headroom_bytes(self, uuid: str) -> int:
        """The device's headroom; negative if attempts or others use more than was reserved.

        Raises:
            ValueError: the device could not be read.
        """
        return headroom_bytes(self.state.devices[uuid], self._on[uuid], self.state.rules.margin_bytes)

    def foreign_bytes(self, uuid: str) -> int:
        """Device memory held by foreign processes."""
        return foreign_bytes(self.state.devices[uuid], self._on[uuid])

    def room_when_empty(self, uuid: str) -> int:
        """The headroom that the device will have once all attempts have left it.

        Memory of an attempt that has ended since the reading doesn't count as foreign.
        """
        device = self.state.devices[uuid]
        total = device.reading.total_bytes or 0
        left = sum(held or 0 for attempt, held in device.observed_bytes.items() if attempt not in self.live)
        return total - max(0, self.foreign_bytes(uuid) - left) - self.state.rules.margin_bytes

    def backfill(self, uuid: str) -> Backfill:
        """What other cells may use of a device that is being emptied, and for how long."""
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
        """Why a device takes no cell at all now; None if it may take one."""
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
        """The kind of a device."""
        return self._kind_of[uuid]

    def total_bytes(self) -> int:
        """The memory of all devices that take cells of the matrix."""
        return sum(device.reading.total_bytes or 0 for device in self._usable)

    def kinds(self) -> frozenset[DeviceKind]:
        """The kinds of devices that take cells of the matrix."""
        return frozenset(self._kinds)

    def is_elsewhere(self, uuid: str) -> bool:
        """Whether another device could take a cell that avoids this one; False if no device is avoided."""
        return bool(uuid) and any(device.uuid != uuid for device in self._usable)

    # What cells need

    def needs_of(self, needs: Requirement) -> Sequence[Need]:
        """The need of these cells on each kind of device that the matrix runs on."""
        found = self._needs.get(needs)
        if found is None:
            found = self._needs[needs] = [self.need(needs, kind) for kind in self._kinds]
        return found

    def is_alone(self, needs: Requirement) -> bool:
        """Whether these cells must run alone, by rule or by their size, on any kind of device."""
        return must_be_alone(needs) or any(need.alone for need in self.needs_of(needs))
