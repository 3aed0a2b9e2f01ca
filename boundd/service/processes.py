"""Whose the processes are that a driver lists on a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from boundd.core.memory.process_listing import Observed
from boundd.core.model.devices import DeviceReading
from boundd.core.model.state import State

Pids = Mapping[str, frozenset[int]]
"""Attempt id to the pids of its processes."""


def attempts_by_device(state: State) -> dict[str, frozenset[str]]:
    """UUID to the ids of the live attempts there."""
    found: dict[str, set[str]] = {}
    for attempt in state.attempts.values():
        found.setdefault(attempt.device, set()).add(attempt.id)
    return {uuid: frozenset(ids) for uuid, ids in found.items()}


def observed_in(process_bytes: Mapping[int, int | None], attempts: Iterable[str], pids: Pids) -> Observed:
    """What each attempt holds by a list; unknown where it isn't in there, or not all of its bytes are told."""
    held: dict[str, int | None] = {}
    for attempt_id in attempts:
        sizes = [process_bytes[pid] for pid in pids.get(attempt_id, frozenset()) if pid in process_bytes]
        known = [size for size in sizes if size is not None]
        held[attempt_id] = sum(known) if known and len(known) == len(sizes) else None
    return held


def foreign_on(
    readings: Iterable[DeviceReading], attempts: Mapping[str, frozenset[str]], pids: Pids, proc: Path = Path("/proc")
) -> frozenset[str]:
    """UUIDs of the GPUs whose list has a process that is nobody's of ours, and alive.

    Only where one of ours is in the same list: else it may be of other pids than the ones that we know (a container's).
    `pids` must have been looked up after the lists were read, so that what an attempt has forked since is its own.
    """
    ours = frozenset(pid for known in pids.values() for pid in known)
    found = set()
    for reading in readings:
        if reading.backend != "nvml" or not reading.process_bytes or not attempts.get(reading.uuid):
            continue
        listed = frozenset(reading.process_bytes)
        if listed & ours and any((proc / str(pid)).exists() for pid in listed - ours):
            found.add(reading.uuid)
    return frozenset(found)
