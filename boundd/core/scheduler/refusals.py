"""Refusals: why each device doesn't take a cell, as data. Computed only when a user asks."""

from __future__ import annotations

from collections.abc import Mapping

from boundd.core.model.attempts import CellRecord
from boundd.core.model.devices import Device
from boundd.core.model.reasons import EmptiedFor, MemoryShort, NoRoom, NotAlone, OtherModel, PlainRefusal, Refusal
from boundd.core.model.requirements import Requirement
from boundd.core.model.state import State
from boundd.core.scheduler.ledger import Ledger, matrix_device_model
from boundd.core.scheduler.needs import Need, must_be_alone
from boundd.core.scheduler.placement import Placement, PlacementSearch


def best_placement(
    state: State, record: CellRecord, emptying: Mapping[str, str], boot_s: float = 0.0
) -> Placement | tuple[NoRoom, ...]:
    """The best device for a cell, or each device's refusal in the order of their indices. For use outside a pass."""
    needs, ledger = state.memo.requirement_of(record), Ledger(state, boot_s, emptying)
    fit = PlacementSearch(ledger).best(record, needs)
    return refusals(ledger, record, needs) if fit is None else fit


def refusals(ledger: Ledger, record: CellRecord, needs: Requirement) -> tuple[NoRoom, ...]:
    """Each device's refusal of a cell."""
    return tuple(_no_room(ledger, record, needs, device) for device in ledger.state.devices_by_index())


def idle_refusal(state: State, device: Device) -> OtherModel | None:
    """Why a working device takes no cells of this matrix; None if it does."""
    model = matrix_device_model(state)
    if device.quarantine is not None or device.reading.unavailable or model in (None, device.reading.name):
        return None
    return OtherModel(device.reading.name, model or "")


def _no_room(ledger: Ledger, record: CellRecord, needs: Requirement, device: Device) -> NoRoom:
    uuid = device.uuid
    labels = tuple(attempt.label for attempt in ledger.attempts_on(uuid))
    closed = ledger.closed(device)
    if closed is None and uuid == record.avoid and ledger.is_elsewhere(record.avoid):
        closed = PlainRefusal.AVOIDED
    if closed is not None:
        return NoRoom(uuid, closed, held_by=labels)
    need, room = ledger.need(needs, ledger.kind(uuid)), ledger.headroom_bytes(uuid)
    why = _refusal(ledger, record, needs, need, uuid)
    return NoRoom(uuid, why, need.needed_bytes, room, labels, ledger.foreign_bytes(uuid))


def _refusal(ledger: Ledger, record: CellRecord, needs: Requirement, need: Need, uuid: str) -> Refusal:
    """The refusal of a device that could take some cell."""
    source, needed = need.expected.source, need.needed_bytes
    attempts, room = len(ledger.attempts_on(uuid)), ledger.headroom_bytes(uuid)
    if need.alone and attempts:
        return NotAlone(attempts, must_be_alone(needs), need.expected.size_bytes, needed, source)
    if room < needed or room <= 0:
        return MemoryShort(needed - room, needed, room, source)
    if ledger.emptying.get(uuid, record.cell.key) != record.cell.key:
        backfill, label = ledger.backfill(uuid), ledger.state.cells[ledger.emptying[uuid]].cell.label
        return EmptiedFor(label, needed, backfill.spare_bytes, backfill.wait_s, source)
    return ledger.host_refusal(ledger.kind(uuid).node, need.host) or PlainRefusal.FREE_NOW
