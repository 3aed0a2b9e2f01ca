"""How many bytes of a device may still be given away (the ledger's arithmetic).

headroom = min(free − Σ max(0, reservation − observed), total − foreign − Σ max(reservation, observed)) − margin

The first term covers cells that were placed and have not allocated yet: NVML shows them seconds or minutes later. The
second keeps a worker that has just freed memory from being counted twice. An unknown `observed` counts as 0 in the
first term, which is the careful side, and as its reservation where the second needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import Device

Claim = tuple[int, int | None]
"""Bytes that are reserved for an attempt, and the bytes that it was seen to hold (None: unknown)."""


def room_bytes(total_bytes: int, free_bytes: int, claims: Sequence[Claim]) -> int:
    """What is left of a memory of `total_bytes`; may be negative where somebody took more than was agreed."""
    still_to_come = sum(max(0, reserved - (observed or 0)) for reserved, observed in claims)
    held = sum(max(reserved, observed or 0) for reserved, observed in claims)
    foreign = foreign_of(total_bytes - free_bytes, claims)
    return min(free_bytes - still_to_come, total_bytes - foreign - held)


def foreign_of(used_bytes: int, claims: Iterable[Claim]) -> int:
    """What is in use by nobody of ours, never negative; what an attempt hides counts as its reservation."""
    return max(0, used_bytes - sum(reserved if observed is None else observed for reserved, observed in claims))


def claims_of(device: Device, attempts: Iterable[Attempt]) -> list[Claim]:
    """The attempts' claims on a device, observed in the pass that read it."""
    return [(attempt.reservation_bytes, device.observed_bytes.get(attempt.id)) for attempt in attempts]


def foreign_bytes(device: Device, attempts: Iterable[Attempt]) -> int:
    """Device memory in use by nobody of ours, never negative."""
    return foreign_of(device.reading.used_bytes, claims_of(device, attempts))


def headroom_bytes(device: Device, attempts: Iterable[Attempt], margin_bytes: int) -> int:
    """Bytes still placeable on a device that was read; may be negative where somebody took more than was agreed.

    Raises:
        ValueError: the device could not be read, so there is no number to give.
    """
    reading = device.reading
    if reading.total_bytes is None or reading.free_bytes is None:
        raise ValueError(f"{reading.uuid} has no reading: {reading.unavailable}")
    return room_bytes(reading.total_bytes, reading.free_bytes, claims_of(device, attempts)) - margin_bytes
