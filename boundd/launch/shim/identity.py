"""Who a process is: pids are used again, so a pid alone names nobody, and none is ever signalled by it."""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH208

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from .kernel import read_file

_PARENTS = 100

_boot_id: list[str] = []


class Stat(NamedTuple):
    """The part of /proc/PID/stat that tells who a process is."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int
    """When it started, in clock ticks since boot: with the boot id and the pid, its identity."""
    flags: int = 0
    """The kernel's PF_ flags (include/linux/sched.h)."""


def stat_of(pid: int, thread: int = 0) -> Stat | None:
    """Who `pid`, or that thread of it, is now; None where there is none such."""
    try:
        text = read_file(f"/proc/{pid}/task/{thread}/stat" if thread else f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The second field is the program's name, which may hold blanks and brackets of its own.
    fields = text[text.rindex(b")") + 2 :].split()
    parent, group, session, flags, start_ticks = (int(fields[index]) for index in (1, 2, 3, 6, 19))
    return Stat(pid, fields[0].decode(), parent, group, session, start_ticks, flags)


def all_stats() -> list[Stat]:
    """Every process that can be seen, in no order."""
    found = (stat_of(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [stat for stat in found if stat is not None]


def descendants(root_pid: int, *, zombies: bool = False) -> list[Stat]:
    """The processes below `root_pid`, itself left out; those that have ended and wait to be reaped, on demand."""
    children: dict[int, list[Stat]] = {}
    for stat in all_stats():
        children.setdefault(stat.parent, []).append(stat)
    found: list[Stat] = []
    waiting = [root_pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [stat.pid for stat in below]
    return found if zombies else [stat for stat in found if stat.state not in "ZX"]


def is_below(pid: int, root_pid: int) -> bool:
    """Whether a process is a descendant of another one."""
    for _ in range(_PARENTS):
        stat = stat_of(pid) if pid > 1 else None
        if stat is None:
            return False
        if stat.parent == root_pid:
            return True
        pid = stat.parent
    return False


def open_verified(pid: int, start_ticks: int) -> int | None:
    """A pidfd of the process with this pid and start time; None where it is gone, whoever has its pid now.

    Raises:
        OSError: it can't be told (no descriptors left, no pidfds in this kernel).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Looked at after opening: from here on the pidfd means one process for good, and this says which.
    stat = stat_of(pid)
    if stat is None or stat.start_ticks != start_ticks:
        os.close(pidfd)
        return None
    return pidfd


def signal_verified(stat: Stat, *numbers: int) -> bool:
    """Send signals to exactly this process, never to a successor of its pid; False where it is gone or not ours."""
    pidfd = open_verified(stat.pid, stat.start_ticks)
    if pidfd is None:
        return False
    try:
        for number in numbers:
            signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def boot_id() -> str:
    """Which boot of the machine this is; read once, because no process outlives it."""
    if not _boot_id:
        _boot_id.append(read_file("/proc/sys/kernel/random/boot_id").decode("ascii").strip())
    return _boot_id[0]
