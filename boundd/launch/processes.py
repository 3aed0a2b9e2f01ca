"""Which living processes belong to an attempt, told by evidence that a stranger can't have by chance."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from boundd.launch import shim
from boundd.launch.records import ShimRecord
from boundd.launch.shim import Stat
from boundd.protocol import environment


def lock_is_held(path: Path) -> bool:
    """Whether any process holds the attempt's lock, that is, whether anything of it lives.

    Raises:
        OSError: it can't be told (no descriptors left, no access).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # Shared, so that two who ask at the same time don't take each other for the attempt.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def trees(records: Mapping[str, ShimRecord]) -> dict[str, frozenset[int]]:
    """The pids of each shim and everything below it, in one look at all processes; empty where it is gone."""
    if not records:
        return {}
    stats = {stat.pid: stat for stat in shim.all_stats()}
    children: dict[int, list[Stat]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat)
    return {name: frozenset(_below(record, stats, children)) for name, record in records.items()}


def _below(record: ShimRecord, stats: Mapping[int, Stat], children: Mapping[int, list[Stat]]) -> set[int]:
    own = stats.get(record.pid)
    if own is None or own.start_ticks != record.start_ticks or own.state in "ZX":
        return set()
    found, waiting = {own.pid}, [own.pid]
    while waiting:
        for stat in children.get(waiting.pop(), ()):
            waiting.append(stat.pid)
            if stat.state not in "ZX":
                found.add(stat.pid)
    return found


def remnants(lock: Path, results: Path, record: ShimRecord | None) -> list[Stat]:
    """What lives on of an attempt whose shim is gone, and with it the tree that named its processes.

    That is who holds its lock, and who is both in the worker's session and was given its results file. Either is
    more than a pid that may have been used again.
    """
    wanted = f"{environment.RESULTS}={results}".encode(errors="surrogateescape")
    session = record.worker_pid if record is not None and record.of_this_boot() else 0
    own = os.getpid()
    # The kernel names a descriptor's file without the links on the way to it.
    held = str(lock.resolve())
    return [
        stat
        for stat in shim.all_stats()
        if stat.pid != own
        and stat.state not in "ZX"
        and ((stat.session == session and wanted in _environment(stat.pid)) or _holds(stat.pid, held))
    ]


def kill(stats: list[Stat]) -> None:
    """KILL exactly these processes; who is gone by now, or replaced, is passed over."""
    for stat in stats:
        shim.signal_verified(stat, signal.SIGKILL)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _holds(pid: int, lock: str) -> bool:
    """Whether the process has a descriptor that holds the lock, and not just one of the same file."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names are all that is wanted
            if (
                os.readlink(f"/proc/{pid}/fd/{name}") == lock  # noqa: PTH115
                and "FLOCK" in Path(f"/proc/{pid}/fdinfo/{name}").read_text()
            ):
                return True
    except OSError:
        # Gone meanwhile, or somebody else's.
        return False
    return False
