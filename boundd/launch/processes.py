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
from boundd.ports import UnkillableProcess
from boundd.protocol import environment

_PF_EXITING = 4
"""Of the flags in /proc/PID/stat: on its way out (include/linux/sched.h)."""


def lock_is_held(path: Path) -> bool:
    """Whether any process holds the attempt's lock, that is, whether anything of it lives.

    Raises:
        OSError: it can't be told (no descriptors left, no access).
    """
    try:
        # A worker may have put a pipe in its place, which would make us wait for whoever writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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


def tree(record: ShimRecord, lock: Path) -> frozenset[int]:
    """The pids of the shim, who holds its attempt's lock, and everything below it; empty where it is gone."""
    return trees({"": (record, lock)})[""]


def trees(shims: Mapping[str, tuple[ShimRecord, Path]]) -> dict[str, frozenset[int]]:
    """The same of many shims, each with its attempt's lock, in one look at all processes."""
    if not shims:
        return {}
    stats = {stat.pid: stat for stat in shim.all_stats()}
    children: dict[int, list[Stat]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat)
    return {name: frozenset(_below(*each, stats, children)) for name, each in shims.items()}


def _below(record: ShimRecord, lock: Path, stats: Mapping[int, Stat], children: Mapping[int, list[Stat]]) -> set[int]:
    own = stats.get(record.pid)
    if own is None or own.start_ticks != record.start_ticks or own.state in "ZX" or holds(record.pid, lock) is False:
        return set()
    found, waiting = {own.pid}, [own.pid]
    while waiting:
        for stat in children.get(waiting.pop(), ()):
            waiting.append(stat.pid)
            if stat.state not in "ZX":
                found.add(stat.pid)
    return found


def leftovers(lock: Path, results: Path, record: ShimRecord | None) -> list[Stat]:
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
        and ((stat.session == session and wanted in _environment(stat.pid)) or _holds(stat.pid, held) is True)
    ]


def unkillable(stats: list[Stat]) -> frozenset[UnkillableProcess]:
    """Those among these processes that KILL was sent to, and that live."""
    found = (_unkillable(stat) for stat in stats)
    return frozenset(each for each in found if each is not None)


def _unkillable(stat: Stat) -> UnkillableProcess | None:
    """A thread that has yet to take a KILL, or has and hangs on its way out, is what keeps a process."""
    for thread in _threads(stat.pid):
        found = shim.stat_of(stat.pid, thread)
        if found is None or found.state in "ZX":
            continue
        if found.flags & _PF_EXITING or _kill_is_pending(stat.pid, thread):
            folder = Path(f"/proc/{stat.pid}/task/{thread}")
            name, waits_in = _text(folder / "comm"), _text(folder / "wchan")
            return UnkillableProcess(stat.pid, stat.start_ticks, name, found.state, "" if waits_in == "0" else waits_in)
    return None


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []


def _kill_is_pending(pid: int, thread: int) -> bool:
    for line in _text(Path(f"/proc/{pid}/task/{thread}/status")).splitlines():
        if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) & 1 << (signal.SIGKILL - 1):
            return True
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def kill(stats: list[Stat]) -> None:
    """KILL exactly these processes; who is gone by now, or replaced, is passed over."""
    for stat in stats:
        shim.signal_verified(stat, signal.SIGKILL)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def holds(pid: int, lock: Path) -> bool | None:
    """Whether the process has a descriptor that holds the lock; None where we may not know."""
    return _holds(pid, str(lock.resolve()))


def _holds(pid: int, lock: str) -> bool | None:
    """Whether the process has a descriptor that holds the lock, and not just one of the same file."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - names are all that is wanted
        return any(_is_held_by(f"/proc/{pid}", name, lock) for name in names)
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_held_by(process: str, name: str, lock: str) -> bool:
    try:
        # An exact comparison first: most descriptors are of something else.
        is_the_file = os.readlink(f"{process}/fd/{name}") == lock  # noqa: PTH115
        return is_the_file and "FLOCK" in Path(f"{process}/fdinfo/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # Closed meanwhile: the next one may be the lock all the same.
