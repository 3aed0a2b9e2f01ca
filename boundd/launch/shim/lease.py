"""How long an attempt has waited for its device."""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH110, PTH116

from __future__ import annotations

import os

from .identity import is_below
from .kernel import read_file

_LEASE_LOOK_S = 1.0
_SHORTEST_LEASE_LOOK_S = 0.05
_LEASE_LOOKS_A_TIMEOUT = 50
_LEASE_FILES = ("turn", "work")


class LeaseWatch:
    """How long the attempt has waited for its device's lease, told by what the kernel lists of locks (proc_locks(5)).

    It is looked at every so often: where a process of the attempt waits at a look, the time to the look before and to
    the one after counts as waited. That errs on the worker's side, by up to two periods a wait; a wait that
    falls between two looks is not seen. A process that waits for what another one of the same attempt holds waits for
    nobody else, and doesn't count.
    """

    def __init__(self, folder: str, timeout_s: float, now: float) -> None:
        self._folder = folder
        self._period_s = max(_SHORTEST_LEASE_LOOK_S, min(_LEASE_LOOK_S, timeout_s / _LEASE_LOOKS_A_TIMEOUT))
        self._last_s = now
        self._was_waiting = False
        self.waited_s = 0.0

    @property
    def due_s(self) -> float:
        """When to look again, in seconds since boot."""
        return self._last_s + self._period_s

    def look(self, now: float) -> None:
        """Count the time since the look before."""
        waiting = self._is_waiting()
        if waiting or self._was_waiting:
            # Not more than two periods: a machine that slept meanwhile didn't wait.
            self.waited_s += min(now - self._last_s, 2 * self._period_s)
        self._was_waiting = waiting
        self._last_s = now

    def _is_waiting(self) -> bool:
        try:
            inodes = {str(os.stat(f"{self._folder}/{name}").st_ino).encode() for name in _LEASE_FILES}
            text = read_file("/proc/locks")
        except OSError:
            return False  # Nobody has used the lease yet, or the kernel doesn't say.
        waiters, holders = lease_locks(text, inodes)
        own = os.getpid()
        return any(is_below(pid, own) for pid in waiters) and not any(is_below(pid, own) for pid in holders - waiters)


class FetchWatch:
    """How long the attempt has fetched what it needs: as long as the file is there that says so (`BOUNDD_FETCHING`).

    It is looked at every so often, as the lease is. No more than the limit is counted, whatever the file says.
    """

    def __init__(self, marker: str, limit_s: float, timeout_s: float, now: float) -> None:
        self._marker = marker
        self._limit_s = limit_s
        self._period_s = max(_SHORTEST_LEASE_LOOK_S, min(_LEASE_LOOK_S, timeout_s / _LEASE_LOOKS_A_TIMEOUT))
        self._last_s = now
        self._was_there = False
        self.fetched_s = 0.0

    @property
    def due_s(self) -> float:
        """When to look again, in seconds since boot."""
        return self._last_s + self._period_s

    def look(self, now: float) -> None:
        """Count the time since the look before."""
        there = os.path.exists(self._marker)
        if there or self._was_there:
            # Not more than two periods: a machine that slept meanwhile fetched nothing.
            self.fetched_s = min(self._limit_s, self.fetched_s + min(now - self._last_s, 2 * self._period_s))
        self._was_there = there
        self._last_s = now


def lease_locks(text: bytes, inodes: set[bytes]) -> tuple[set[int], set[int]]:
    """Of /proc/locks, the pids that wait for a lock on one of these files, and those that hold one.

    The device is not compared: some file systems (btrfs, overlayfs) give stat() another number than the kernel's own.
    """
    waiters: set[int] = set()
    holders: set[int] = set()
    for line in text.splitlines():
        # `3: -> POSIX  ADVISORY  WRITE 812 fd:00:2531452 0 EOF`; without the arrow for who holds it.
        fields = line.split()[1:]
        waits = fields[:1] == [b"->"]
        fields = fields[waits:]
        if len(fields) == 7 and fields[0] == b"POSIX" and fields[4].rpartition(b":")[2] in inodes:
            (waiters if waits else holders).add(int(fields[3]))
    return waiters, holders
