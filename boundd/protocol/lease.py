"""The device lease: who may use a device while somebody times on it.

POSIX record locks on two files of the device's folder. `work` is held shared for loading, generating and
scoring, and exclusively for a timed section. `turn` is a turnstile: everybody takes it before `work` and lets
go of it once they hold `work`, so that a waiting timer stops later sharers from overtaking it.

Rules that come with record locks:
 * They belong to the process. Threads and two `DeviceLease`s of one process don't exclude each other: make
   one, once.
 * Closing *any* descriptor of a file drops the process's locks on it. So each file is opened once and stays
   open.
 * A forked child doesn't inherit them, so a holder's death always frees them, whatever it has left running.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

TURN = "turn"
WORK = "work"


class Lease(Protocol):
    """Use of a device, shared with others or alone."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for this lease so far; they don't count towards a deadline."""

    def shared(self) -> AbstractContextManager[None]:
        """Hold the device together with others, for loading, generating or scoring: a batch at a time."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the device alone, for a timed section of at most a minute."""


class NoLease:
    """The lease of a worker that nobody shares a device with: never waits."""

    @property
    def waited_s(self) -> float:
        """Always 0."""
        return 0.0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Nothing to wait for."""
        yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nothing to wait for."""
        yield


class DeviceLease:
    """The lease kept in `folder`, which is made if need be. Not reentrant, and for one thread.

    Raises:
        OSError: when the folder or its files can't be made, or the file system knows no record locks.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._waited_s = 0.0
        self._is_held = False
        self._turn = _open(folder / TURN)
        self._work = _open(folder / WORK)

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for this lease so far."""
        return self._waited_s

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold `work` shared."""
        with self._hold(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold `work` exclusively."""
        with self._hold(fcntl.LOCK_EX):
            yield

    def close(self) -> None:
        """Close the files, which drops whatever this process holds of them."""
        os.close(self._turn)
        os.close(self._work)

    @contextmanager
    def _hold(self, mode: int) -> Iterator[None]:
        if self._is_held:
            # A second lock would silently convert the first, and its release would drop both.
            raise RuntimeError("the device lease is already held by this process")
        started_s = self._clock()
        try:
            self._acquire(mode)
        finally:
            self._waited_s += self._clock() - started_s
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            fcntl.lockf(self._work, fcntl.LOCK_UN)

    def _acquire(self, mode: int) -> None:
        fcntl.lockf(self._turn, fcntl.LOCK_EX)
        try:
            fcntl.lockf(self._work, mode)
        finally:
            fcntl.lockf(self._turn, fcntl.LOCK_UN)


def waiting_pids(folder: Path, locks_file: Path = Path("/proc/locks")) -> frozenset[int]:
    """The processes that wait for the lease in `folder` at this instant, as the kernel lists them
    (proc_locks(5)).

    For whoever enforces a deadline from outside: time spent waiting is not the worker's. Empty where the
    kernel doesn't say, which errs on the side of the deadline.
    """
    ours = set()
    for name in (TURN, WORK):
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        ours.add((os.major(status.st_dev), os.minor(status.st_dev), status.st_ino))
    try:
        entries = locks_file.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(pid for entry in entries if (pid := _waiter(entry, ours)) is not None)


def _waiter(entry: str, files: set[tuple[int, int, int]]) -> int | None:
    """The pid of an entry like `3: -> POSIX  ADVISORY  WRITE 812 fd:00:2531452 0 EOF` on one of `files`."""
    fields = entry.split()
    if len(fields) != 9 or fields[1] != "->" or fields[2] != "POSIX":
        return None
    major, minor, inode = fields[6].split(":")
    return int(fields[5]) if (int(major, 16), int(minor, 16), int(inode)) in files else None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
