"""Whose the processes are that a driver lists on a device, and what that says of the attempts there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from boundd.catalogue.outcomes import Isolation
from boundd.core.memory.process_listing import Observed
from boundd.core.model.devices import DeviceReading
from boundd.core.model.state import State
from boundd.protocol.attestation import ProcessLists, ProcessOwner, attest_isolation
from boundd.protocol.device_processes import is_alive

Pids = Mapping[str, frozenset[int]]
"""Attempt id to the pids of its processes."""


@dataclass(frozen=True, slots=True)
class DeviceProcesses:
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


def check_lists(
    readings: Iterable[DeviceReading],
    attempts: Mapping[str, frozenset[str]],
    pids: Pids,
    *,
    in_host_namespace: bool,
    lives: Callable[[int], bool] = is_alive,
    proc: Path = Path("/proc"),
) -> DeviceProcesses:
    """Assign every process in the GPUs' lists to an attempt or to a stranger.

    The process of an attempt that runs on another device counts as a stranger.

    Args:
        readings: of all devices; those without lists are left out.
        attempts: device UUID to the ids of the live attempts there.
        pids: the processes of each attempt. Look them up after the lists were read, so that a process which an attempt
            has forked since then is not taken for a stranger.
        in_host_namespace: whether the daemon is in the machine's own pid namespace.
        lives: whether a pid is alive; tests replace it.
        proc: where procfs is mounted.
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

        def whose(pid: int, owners: Mapping[int, str] = owners) -> ProcessOwner:
            if pid in owners:
                return ProcessOwner.OURS
            return ProcessOwner.STRANGER if lives(pid) else ProcessOwner.ABSENT

        verdict = attest_isolation(_lists(reading), whose, in_host_namespace=in_host_namespace)
        if not here:
            strangers = [pid for pid in sorted(reading.process_bytes or {}) if not in_host_namespace or lives(pid)]
            if reading.max_cells == 1 and strangers:
                holders[reading.uuid] = _named(strangers[0], proc) if in_host_namespace else f"pid {strangers[0]}"
            continue
        if verdict.isolation is Isolation.CONTENDED:
            foreign.add(reading.uuid)
        if verdict.isolation is Isolation.UNKNOWN and (verdict.seen or reading.unreadable):
            # Where nothing of ours is listed, it may just not have come yet.
            unattested[reading.uuid] = verdict.reasons[0]
        witnessed |= {owners[pid] for pid in reading.process_bytes or {} if pid in owners}
    return DeviceProcesses(frozenset(listed), frozenset(foreign), unattested, frozenset(witnessed), holders)


def _lists(reading: DeviceReading) -> ProcessLists:
    used = None
    if reading.reserved_bytes is not None and reading.total_bytes is not None:
        used = reading.used_bytes - reading.reserved_bytes
    return ProcessLists(reading.process_bytes or {}, reading.unreadable, used)


def _named(pid: int, proc: Path) -> str:
    """A pid, with the program's name where the kernel tells it."""
    try:
        name = (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return f"pid {pid}"
    return f"pid {pid} ({name})"
