"""Headroom: how many bytes of a device can still be reserved.

headroom = min(free − Σ max(0, reservation − observed), total − foreign − Σ max(reservation, observed)) − margin

The sums are over the attempts on the device. The first term covers attempts that have not allocated all of their
reservation yet: NVML shows that memory as used only seconds or minutes later. The second term prevents counting
memory twice that a worker has just freed. If `observed` is unknown, it counts as 0 in the first term, which is the
safe side, and as the reservation in the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import Device

Claim = tuple[int, int | None]
"""An attempt's reservation in bytes, and the bytes that it was seen to hold (None: unknown)."""


def room_bytes(total_bytes: int, free_bytes: int, claims: Sequence[Claim]) -> int:
    """Bytes that can still be reserved of `total_bytes`; negative if attempts or others use more than was reserved."""
    still_to_come = sum(max(0, reserved - (observed or 0)) for reserved, observed in claims)
    held = sum(max(reserved, observed or 0) for reserved, observed in claims)
    foreign = foreign_of(total_bytes - free_bytes, claims)
    return min(free_bytes - still_to_come, total_bytes - foreign - held)


def foreign_of(used_bytes: int, claims: Iterable[Claim]) -> int:
    """Bytes in use by foreign processes, never negative. An attempt whose use is unknown counts with its
    reservation."""
    return max(0, used_bytes - sum(reserved if observed is None else observed for reserved, observed in claims))


def claims_of(device: Device, attempts: Iterable[Attempt]) -> list[Claim]:
    """The claims of attempts on a device, as of its latest reading."""
    return [(attempt.reservation_bytes, device.observed_bytes.get(attempt.id)) for attempt in attempts]


def foreign_bytes(device: Device, attempts: Iterable[Attempt]) -> int:
    """Device memory in use by foreign processes, never negative."""
    return foreign_of(device.reading.used_bytes, claims_of(device, attempts))


def headroom_bytes(device: Device, attempts: Iterable[Attempt], margin_bytes: int) -> int:
    """The headroom of a device; negative if attempts or others use more than was reserved.

    Raises:
        ValueError: the device could not be read.
    """
    reading = device.reading
    if reading.total_bytes is None or reading.free_bytes is None:
        raise ValueError(f"{reading.uuid} has no reading: {reading.unavailable}")
    return room_bytes(reading.total_bytes, reading.free_bytes, claims_of(device, attempts)) - margin_bytes
