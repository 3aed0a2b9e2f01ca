"""When the driver's lists of processes are worth reading, and what is known of them in between.

Rules: reading a list holds up what runs on the device, so it is read where attempts have come or gone since the last
time, or where free memory says that somebody took or gave back more than a little; never where somebody times. Of a
device that takes one process it is read without any attempt there too, since whoever has it shuts ours out. Until it
is read again, what was seen stays, and no memory counts as free that wasn't then, but for what our own have left: what
an attempt has given back meanwhile would be counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from boundd.core.model.devices import DeviceReading

MISMATCH_BYTES = 64 * 1024**2
"""Free memory that differs by more than this from when the list was read says that the list is old."""

Observed = Mapping[str, int | None]
"""Attempt id to the bytes that its processes hold; None: unknown."""


@dataclass(frozen=True, slots=True)
class ProcessListing:
    """A device when its list was last read: the free bytes of the same pass, and what each attempt there held."""

    free_bytes: int
    observed: Observed
    holder: str = ""
    """Who has a device that takes one process and has none of ours; empty where nobody does."""


def must_list_processes(
    readings: Iterable[DeviceReading], attempts: Mapping[str, frozenset[str]], listed: Mapping[str, ProcessListing]
) -> bool:
    """Whether any device's list should be read now; `attempts` are the live ones of each device, by UUID."""
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
    """Whether a device's compute mode lets one process have it, so that whoever else has it shuts us out."""
    return reading.kind.lists_processes and reading.max_cells == 1


def unusable_while_held(reading: DeviceReading, holder: str) -> DeviceReading:
    """The reading of a device that `holder` has to itself: it can't be used until that is gone."""
    if not holder or reading.unavailable:
        return reading
    why = f"in use by {holder}, and its compute mode (EXCLUSIVE_PROCESS) lets one process have it"
    return replace(reading, total_bytes=None, free_bytes=None, process_bytes=None, unavailable=why)


def carried_forward(
    reading: DeviceReading, attempts: frozenset[str], last: ProcessListing | None
) -> tuple[DeviceReading, Observed]:
    """A reading whose list was not read, with what the last list tells: the reading to go by, and what is held."""
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
    """The readings to go by, what the attempts on each device hold, and what is now known of the lists.

    `attempts` are the live ones of each device, `listed` what was known before, `holders` who has a device that takes
    one process, all by UUID. `held_in` says what each of some attempts holds by a list of pids and bytes.
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
