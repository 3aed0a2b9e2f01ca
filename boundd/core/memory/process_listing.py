"""When to read the driver's process lists, and what to assume between two readings.

Reading a list disturbs what runs on the device. So a list is read only after attempts have started or ended, or when
free memory has changed by more than `MISMATCH_BYTES`, and never while a worker is timing. A device that takes one
process at a time is also listed without an attempt on it, because a foreign process there keeps ours out.

Between two readings, each attempt is assumed to hold what it held at the last one. Memory that was not free then
doesn't count as free, unless an attempt that has ended since held it: a live attempt's freed memory would be counted
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from boundd.core.model.devices import DeviceReading

MISMATCH_BYTES = 64 * 1024**2
"""A list is out of date if free memory has changed by more than this since it was read."""

Observed = Mapping[str, int | None]
"""Attempt id to the bytes that its processes hold; None: unknown."""


@dataclass(frozen=True, slots=True)
class ProcessListing:
    """A device at the last reading of its process list: its free bytes in the same pass, and what each attempt held."""

    free_bytes: int
    observed: Observed
    holder: str = ""
    """The foreign process that holds a device for one process; empty if there is none."""


def must_list_processes(
    readings: Iterable[DeviceReading], attempts: Mapping[str, frozenset[str]], listed: Mapping[str, ProcessListing]
) -> bool:
    """Whether any device's process list should be read now. `attempts`: the live ones of each device, by UUID."""
    return any(
        _is_old(reading, attempts.get(reading.uuid, frozenset()), listed.get(reading.uuid)) for reading in readings
    )


def _is_old(reading: DeviceReading, attempts: frozenset[str], last: ProcessListing | None) -> bool:
    if reading.free_bytes is None or not (attempts or takes_one_process(reading)):
        return False
    if last is None or attempts != frozenset(last.observed):
        return True
    return abs(reading.free_bytes - last.free_bytes) > MISMATCH_BYTES


def takes_one_process(reading: DeviceReading) -> bool:
    """Whether the device's compute mode allows only one process at a time."""
    return reading.kind.lists_processes and reading.max_cells == 1


def unusable_while_held(reading: DeviceReading, holder: str) -> DeviceReading:
    """The reading, made unavailable if `holder` holds the device exclusively."""
    if not holder or reading.unavailable:
        return reading
    why = f"in use by {holder}, and its compute mode (EXCLUSIVE_PROCESS) lets one process have it"
    return replace(reading, total_bytes=None, free_bytes=None, process_bytes=None, unavailable=why)


def carried_forward(
    reading: DeviceReading, attempts: frozenset[str], last: ProcessListing | None
) -> tuple[DeviceReading, Observed]:
    """A reading without a process list, completed from the last list: the adjusted reading, and what each attempt
    holds."""
    if reading.free_bytes is None or last is None or not attempts:
        return reading, {}
    observed = {attempt_id: size for attempt_id, size in last.observed.items() if attempt_id in attempts}
    left = sum(size or 0 for attempt_id, size in last.observed.items() if attempt_id not in attempts)
    return replace(reading, free_bytes=min(reading.free_bytes, last.free_bytes + left + MISMATCH_BYTES)), observed


def apply_process_lists(
    readings: Iterable[DeviceReading],
    attempts: Mapping[str, frozenset[str]],
    listed: Mapping[str, ProcessListing],
    held_in: Callable[[Mapping[int, int | None], frozenset[str]], Observed],
    holders: Mapping[str, str] | None = None,
) -> tuple[tuple[DeviceReading, ...], Mapping[str, Observed], Mapping[str, ProcessListing]]:
    """Complete readings by process lists: the adjusted readings, what the attempts on each device hold, and the lists.

    Args:
        readings: one of each device; those with `process_bytes` bring a new list.
        attempts: the live attempts of each device, by UUID.
        listed: the last list of each device, by UUID.
        held_in: gives what each of some attempts holds, from a mapping of pids to bytes.
        holders: the foreign process that holds a device exclusively, by UUID.
    """
    to_go_by, held, known = [], {}, dict(listed)
    for reading in readings:
        ours = attempts.get(reading.uuid, frozenset())
        if reading.process_bytes is None or reading.free_bytes is None:
            last = listed.get(reading.uuid)
            settled_reading, held[reading.uuid] = carried_forward(reading, ours, last)
            holder = last.holder if last is not None and not ours else ""
            to_go_by.append(unusable_while_held(settled_reading, holder))
        else:
            holder = (holders or {}).get(reading.uuid, "")
            held[reading.uuid] = held_in(reading.process_bytes, ours)
            known[reading.uuid] = ProcessListing(reading.free_bytes, held[reading.uuid], holder)
            to_go_by.append(unusable_while_held(reading, holder))
    return tuple(to_go_by), held, known
