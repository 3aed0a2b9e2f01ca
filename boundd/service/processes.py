"""Whose the processes are that a driver lists on a device, and what that says of the attempts there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from boundd.catalogue.outcomes import Isolation
from boundd.core.memory.process_listing import Observed
from boundd.core.model.devices import DeviceReading
from boundd.core.model.state import State
from boundd.protocol.company import Lists, Whose, judge
from boundd.protocol.seeing import is_here

Pids = Mapping[str, frozenset[int]]
"""Attempt id to the pids of its processes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the lists of one pass say.

    `listed` are the UUIDs of the GPUs all of whose lists were read. `foreign` are those on which somebody else was
    seen, `unattested` those whose lists say nothing, with the reason; `witnessed` are the ids of the attempts whose
    processes were in the lists of their device. `holders` names, for a GPU that takes one process and has none of ours,
    who has it.
    """

    listed: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    unattested: Mapping[str, str] = field(default_factory=dict)
    witnessed: frozenset[str] = frozenset()
    holders: Mapping[str, str] = field(default_factory=dict)


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


def look_at(
    readings: Iterable[DeviceReading],
    attempts: Mapping[str, frozenset[str]],
    pids: Pids,
    *,
    every_pid: bool,
    lives: Callable[[int], bool] = is_here,
    proc: Path = Path("/proc"),
) -> Seen:
    """What the GPUs' lists say; `attempts` are the live ones of each device.

    `pids` must have been looked up after the lists were read, so that what an attempt has forked since is its own.
    `every_pid` is whether the daemon is in the machine's own pid namespace. An attempt of another device is a stranger.
    """
    listed, foreign, witnessed = set(), set(), set()
    unattested: dict[str, str] = {}
    holders: dict[str, str] = {}
    for reading in readings:
        if not reading.kind.lists_processes or reading.unavailable:
            continue
        if reading.process_bytes is None and not reading.unreadable:
            continue  # not asked for
        if not reading.unreadable:
            listed.add(reading.uuid)
        here = attempts.get(reading.uuid, frozenset())
        owners = {pid: attempt_id for attempt_id in here for pid in pids.get(attempt_id, frozenset())}

        def whose(pid: int, owners: Mapping[int, str] = owners) -> Whose:
            if pid in owners:
                return Whose.OURS
            return Whose.STRANGER if lives(pid) else Whose.ABSENT

        company = judge(_lists(reading), whose, every_pid=every_pid)
        if not here:
            strangers = [pid for pid in sorted(reading.process_bytes or {}) if not every_pid or lives(pid)]
            if reading.max_cells == 1 and strangers:
                holders[reading.uuid] = _named(strangers[0], proc) if every_pid else f"pid {strangers[0]}"
            continue
        if company.isolation is Isolation.CONTENDED:
            foreign.add(reading.uuid)
        if company.isolation is Isolation.UNKNOWN and (company.seen or reading.unreadable):
            # Where nothing of ours is listed, it may just not have come yet.
            unattested[reading.uuid] = company.reasons[0]
        witnessed |= {owners[pid] for pid in reading.process_bytes or {} if pid in owners}
    return Seen(frozenset(listed), frozenset(foreign), unattested, frozenset(witnessed), holders)


def _lists(reading: DeviceReading) -> Lists:
    used = None
    if reading.reserved_bytes is not None and reading.total_bytes is not None:
        used = reading.used_bytes - reading.reserved_bytes
    return Lists(reading.process_bytes or {}, reading.unreadable, used)


def _named(pid: int, proc: Path) -> str:
    """A pid, with the program's name where the kernel tells it."""
    try:
        name = (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return f"pid {pid}"
    return f"pid {pid} ({name})"
