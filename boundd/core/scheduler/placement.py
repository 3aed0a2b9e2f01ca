"""The search for a device: filter the devices, then rank them. Ties break by UUID.

Devices of one kind form a pool. In it, devices with attempts and empty devices are each sorted by headroom, so that
the best fit is found by bisection without asking every device for every cell.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.devices import Device
from boundd.core.model.reasons import PlacementReason
from boundd.core.model.requirements import Requirement
from boundd.core.scheduler.durations import expectations
from boundd.core.scheduler.ledger import Ledger
from boundd.core.scheduler.needs import DeviceKind, Need, whole_device_bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """A device for a cell, and what is reserved there."""

    device: str
    reservation_bytes: int
    cap_bytes: int | None
    exclusive: bool
    whole_device: bool
    left_bytes: int
    """Headroom left beside the cell's need; the smallest is the best fit."""
    estimate_bytes: int | None
    host_memory_bytes: int
    cores: int
    choice: PlacementReason


@dataclass(slots=True)
class DevicePool:
    """Devices of one kind that can take a cell, as (headroom, UUID), sorted."""

    joinable: list[tuple[int, str]] = field(default_factory=list)
    empty: list[tuple[int, str]] = field(default_factory=list)

    @property
    def most_bytes(self) -> int:
        """The largest headroom in the pool; below 0 if the pool is empty."""
        return max(self.joinable[-1][0] if self.joinable else -1, self.empty[-1][0] if self.empty else -1)


class PlacementSearch:
    """Finds the best device for a cell in a ledger, and updates its pools with the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._room: dict[str, int] = {}
        self._pools: dict[DeviceKind, DevicePool] = {}
        self._is_full: bool | None = None
        self._suspects: set[str] = {death.device for death in ledger.state.quick_deaths}
        for device in ledger.state.devices.values():
            self._add_to_pool(device)

    def add(self, attempt: Attempt) -> None:
        """One more attempt is on its device."""
        device = self.ledger.state.devices[attempt.device]
        self._remove_from_pool(device)
        self.ledger.add(attempt)
        self._add_to_pool(device)

    def empty_for(self, uuid: str, key: str) -> None:
        """Keep a device for this cell: nothing else is placed there that would put off its start."""
        device = self.ledger.state.devices[uuid]
        self._remove_from_pool(device)
        self.ledger.empty_for(uuid, key)
        self._add_to_pool(device)

    def best(self, record: CellRecord, needs: Requirement) -> Placement | None:
        """The best device for a cell: unsuspected devices first, then the best fit in bytes."""
        ledger = self.ledger
        found: list[tuple[bool, int, str, Need]] = []
        for kind, pool in self._pools.items():
            if pool.most_bytes < 1:
                continue  # usual when all devices are busy: skip computing the need
            need = ledger.need(needs, kind)
            if ledger.host_refusal(kind.node, need.host) is not None:
                continue
            answer = self._best_in_pool(record, kind, pool, need)
            if answer is not None:
                found.append((answer[1] in self._suspects, answer[0] - need.needed_bytes, answer[1], need))
        found += [fit for uuid in ledger.emptying if (fit := self._fit_on_emptying(record, needs, uuid)) is not None]
        if not found:
            return None
        _, left, uuid, need = min(found, key=lambda fit: fit[:3])
        return self._placement(ledger.state.devices[uuid], need, left)

    @property
    def is_full(self) -> bool:
        """Whether no device has room for any cell, except the cell that it is being emptied for."""
        if self._is_full is None:
            # Backfilling: a cell that ends soon enough may use what is free of a device that is being emptied.
            self._is_full = all(pool.most_bytes < 1 for pool in self._pools.values()) and all(
                self.ledger.headroom_bytes(uuid) < 1 for uuid in self.ledger.emptying
            )
        return self._is_full

    # The pools

    def _add_to_pool(self, device: Device) -> None:
        self._is_full = None
        ledger, uuid = self.ledger, device.uuid
        if ledger.closed(device) is not None:
            return
        room = ledger.headroom_bytes(uuid)
        if uuid in ledger.emptying:
            room = min(room, ledger.backfill(uuid).spare_bytes)
        self._room[uuid] = room
        pool = self._pools.setdefault(ledger.kind(uuid), DevicePool())
        insort(pool.empty if ledger.is_empty(uuid) else pool.joinable, (room, uuid))

    def _remove_from_pool(self, device: Device) -> None:
        self._is_full = None
        room = self._room.pop(device.uuid, None)
        pool = self._pools.get(self.ledger.kind(device.uuid))
        if room is None or pool is None:
            return
        for row in (pool.joinable, pool.empty):
            place = bisect_left(row, (room, device.uuid))
            if place < len(row) and row[place] == (room, device.uuid):
                del row[place]

    def _best_in_pool(
        self, record: CellRecord, kind: DeviceKind, pool: DevicePool, need: Need
    ) -> tuple[int, str] | None:
        """The best fit in a pool, as (headroom, UUID); unsuspected devices first."""
        rows = [pool.empty] if need.alone or kind.single else [pool.joinable, pool.empty]
        least = max(1, need.needed_bytes)
        avoid = record.avoid if self.ledger.is_elsewhere(record.avoid) else ""
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

    def _fit_on_emptying(self, record: CellRecord, needs: Requirement, uuid: str) -> tuple[bool, int, str, Need] | None:
        """The fit on a device that is being emptied for this cell, or for one that this cell wouldn't delay
        (backfilling)."""
        ledger = self.ledger
        device = ledger.state.devices[uuid]
        if ledger.closed(device) is not None:
            return None
        kind = ledger.kind(uuid)
        need = ledger.need(needs, kind)
        room = ledger.headroom_bytes(uuid)
        crowded = (need.alone or kind.single) and not ledger.is_empty(uuid)
        if crowded or room < max(1, need.needed_bytes) or ledger.host_refusal(kind.node, need.host) is not None:
            return None
        if ledger.emptying[uuid] != record.cell.key:
            lasts_s = expectations(ledger.state, device.reading.name).of(needs.work).wall_s
            avoided = uuid == record.avoid and ledger.is_elsewhere(uuid)
            if need.alone or avoided or lasts_s > ledger.backfill(uuid).wait_s:
                return None
        return uuid in self._suspects, room - need.needed_bytes, uuid, need

    def _placement(self, device: Device, need: Need, left: int) -> Placement:
        kind = self.ledger.kind(device.uuid)
        room = need.needed_bytes + left
        whole = need.alone or kind.single
        reservation = room if whole else need.needed_bytes
        largest = whole_device_bytes(kind, self.ledger.state.rules)
        backend = device.reading.kind
        return Placement(
            device.uuid,
            reservation_bytes=reservation,
            cap_bytes=None if backend.is_host else cap_of(reservation, backend.context_bytes),
            exclusive=need.alone,
            whole_device=whole and (reservation >= largest or backend.is_host),
            left_bytes=left,
            estimate_bytes=need.expected.size_bytes,
            host_memory_bytes=need.host.memory_bytes,
            cores=need.host.cores,
            choice=PlacementReason(whole, len(self.ledger.attempts_on(device.uuid)), need.expected.source),
        )


def cap_of(reservation_bytes: int, context_bytes: int) -> int:
    """The allocator's cap: the reservation less the CUDA context, which the allocator doesn't see."""
    return max(reservation_bytes - context_bytes, reservation_bytes // 2)
