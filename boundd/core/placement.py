"""Where a cell may run: a filter with reasons, then a rank. Pure and deterministic; ties break by UUID."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from boundd.core.attempts import Attempt, CellRecord
from boundd.core.devices import Device, DeviceState
from boundd.core.footprint import Estimate, estimate
from boundd.core.headroom import foreign_bytes, headroom_bytes
from boundd.core.state import NoRoom, State

LARGEST_PERCENT = 90
"""A cell estimated above this share of a device is tried alone on it once so much is free: an estimate can be wrong,
some bytes are always the driver's or the host's, and a cell that no device could ever take would wait for ever."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A device that takes the cell, with what is reserved there."""

    device: str
    reservation_bytes: int
    cap_bytes: int | None
    exclusive: bool
    whole_device: bool
    left_bytes: int
    """Headroom that is left after it; the smallest is the best fit."""


def matrix_device_model(state: State) -> str | None:
    """The device model that the matrix runs on: the most numerous one, ties by name; None where models may mix."""
    if state.rules.mix_models:
        return None
    names = Counter(device.reading.name for device in state.devices.values())
    return min(names, key=lambda name: (-names[name], name), default=None)


def best_placement(state: State, record: CellRecord, held: dict[str, str]) -> Placement | tuple[NoRoom, ...]:
    """The best device for a cell, or why each one doesn't take it.

    `held` maps a device's UUID to the label of the cell that it is being emptied for.
    """
    model = matrix_device_model(state)
    answers = [_fit(state, record, device, model, held) for device in state.devices_by_index()]
    fits = [answer for answer in answers if isinstance(answer, Placement)]
    if fits:
        return min(fits, key=lambda fit: (fit.left_bytes, fit.device))
    return tuple(answer for answer in answers if isinstance(answer, NoRoom))


def _fit(
    state: State, record: CellRecord, device: Device, model: str | None, held: dict[str, str]
) -> Placement | NoRoom:
    attempts = state.attempts_on(device.uuid)
    refused = _refusal(record, device, attempts, model, held)
    if refused is not None:
        return refused
    expected = estimate(record, device.reading.name, state.observations)
    return _by_memory(state, record, device, attempts, expected)


def _refusal(
    record: CellRecord, device: Device, attempts: tuple[Attempt, ...], model: str | None, held: dict[str, str]
) -> NoRoom | None:
    """Why a device can't take the cell whatever its memory; None where memory decides."""
    labels = tuple(attempt.label for attempt in attempts)

    def no(reason: str) -> NoRoom:
        return NoRoom(device.uuid, reason, held_by=labels)

    if device.state is not DeviceState.READY:
        return no(f"{device.state}: {device.reason}")
    if model is not None and device.reading.name != model:
        return no(f"another device model ({device.reading.name}); the matrix runs on {model} (mix_models = false)")
    if device.uuid in held and held[device.uuid] != record.cell.label:
        return no(f"being emptied for {held[device.uuid]}, which must be alone")
    if any(attempt.exclusive for attempt in attempts):
        return no(f"{labels[0]} runs there alone")
    if attempts and must_be_alone(record):
        return no(f"the cell must be alone, and {len(attempts)} attempt(s) run there")
    limit = device.reading.max_cells
    if limit is not None and len(attempts) >= limit:
        return no(f"{len(attempts)} attempt(s) run there, and it takes {limit}")
    return None


def must_be_alone(record: CellRecord) -> bool:
    """By rule, by a worker that doesn't know the lease, or because it ran out of memory beside others."""
    return record.policy.must_be_alone or record.alone


def _by_memory(
    state: State, record: CellRecord, device: Device, attempts: tuple[Attempt, ...], expected: Estimate
) -> Placement | NoRoom:
    room = headroom_bytes(device, attempts, state.rules.margin_bytes)
    total = device.reading.total_bytes or 0
    largest = max(0, total - state.rules.margin_bytes) * LARGEST_PERCENT // 100
    needed = largest if expected.size_bytes is None else min(expected.size_bytes, largest)
    alone = must_be_alone(record) or expected.size_bytes is None or expected.size_bytes >= largest
    single = device.reading.max_cells == 1
    foreign = foreign_bytes(device, attempts)
    if alone and not attempts and expected.size_bytes is None:
        # Nobody knows how much it takes: it gets what there is, once the device is its own.
        needed = max(0, room)
    if alone and attempts:
        return _no_room(device, attempts, needed, room, "needs the device to itself", foreign)
    if room < needed or room <= 0:
        return _no_room(device, attempts, needed, room, expected.source, foreign)
    reservation = room if alone or single else needed
    return Placement(
        device.uuid,
        reservation_bytes=reservation,
        cap_bytes=None if device.reading.backend == "cpu" else reservation,
        exclusive=alone,
        whole_device=alone or single,
        left_bytes=room - reservation,
    )


def _no_room(device: Device, attempts: Iterable[Attempt], needed: int, room: int, source: str, foreign: int) -> NoRoom:
    labels = tuple(attempt.label for attempt in attempts)
    if room < needed:
        reason = f"{needed - room:,} bytes short: needs {needed:,} ({source}), headroom {max(0, room):,}"
    else:
        reason = f"{source}, and {len(labels)} attempt(s) run there"
    if foreign:
        reason += f"; {foreign:,} bytes are held by processes that are not boundd's"
    return NoRoom(device.uuid, reason, needed, room, labels)
