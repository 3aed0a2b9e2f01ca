"""How many bytes of a device may still be given away (the ledger's arithmetic).

headroom = min(free − Σ max(0, reservation − observed), total − foreign − Σ max(reservation, observed)) − margin

The first term covers cells that were placed and have not allocated yet: NVML shows them seconds or minutes later. The
second keeps a worker that has just freed memory from being counted twice. An unknown `observed` counts as 0 in the
first term, which is the careful side, and as its reservation where the second needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from boundd.core.attempts import Attempt
from boundd.core.devices import Device


def foreign_bytes(device: Device, attempts: Iterable[Attempt]) -> int:
    """Device memory in use by nobody of ours, never negative; what an attempt hides counts as its reservation."""
    ours = 0
    for attempt in attempts:
        observed = device.observed_bytes.get(attempt.id)
        ours += attempt.reservation_bytes if observed is None else observed
    return max(0, device.reading.used_bytes - ours)


def headroom_bytes(device: Device, attempts: Iterable[Attempt], margin_bytes: int) -> int:
    """Bytes still placeable on a device that was read; may be negative where somebody took more than was agreed.

    Raises:
        ValueError: the device could not be read, so there is no number to give.
    """
    reading = device.reading
    if reading.total_bytes is None or reading.free_bytes is None:
        raise ValueError(f"{reading.uuid} has no reading: {reading.unavailable}")
    live = tuple(attempts)
    still_to_come = 0
    held = 0
    for attempt in live:
        observed = device.observed_bytes.get(attempt.id)
        still_to_come += max(0, attempt.reservation_bytes - (observed or 0))
        held += max(attempt.reservation_bytes, observed or 0)
    by_reading = reading.free_bytes - still_to_come
    by_ledger = reading.total_bytes - foreign_bytes(device, live) - held
    return min(by_reading, by_ledger) - margin_bytes
