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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LeaseUse:
    """Who uses a lease at an instant: the pids that hold it for timing or share it, and those that wait for it."""

    timing: frozenset[int] = frozenset()
    sharing: frozenset[int] = frozenset()
    waiting: frozenset[int] = frozenset()


def lease_use(folder: Path, locks_file: Path = Path("/proc/locks")) -> LeaseUse:
    """Who uses the lease in `folder` just now, as the kernel lists it (proc_locks(5)); nobody where it doesn't say.

    For whoever looks from outside: it takes no lock, so it disturbs nobody.
    """
    turn, work = (_identity(folder / name) for name in (TURN, WORK))
    try:
        entries = locks_file.read_text().splitlines()
    except OSError:
        return LeaseUse()
    locks = [lock for entry in entries if (lock := _Lock.parse(entry)) is not None]
    on_work = [lock for lock in locks if lock.is_on(work)]
    held = [lock for lock in on_work if not lock.waits]
    return LeaseUse(
        timing=frozenset(lock.pid for lock in held if lock.is_exclusive),
        sharing=frozenset(lock.pid for lock in held if not lock.is_exclusive),
        waiting=frozenset(lock.pid for lock in locks if lock.waits and (lock.is_on(work) or lock.is_on(turn))),
    )


def waiting_pids(folder: Path, locks_file: Path = Path("/proc/locks")) -> frozenset[int]:
    """The processes that wait for the lease in `folder` at this instant; see `lease_use`."""
    return lease_use(folder, locks_file).waiting


_Identity = tuple[int, int, int]
"""Major and minor number of the device, and the inode."""


@dataclass(frozen=True)
class _Lock:
    """An entry like `3: -> POSIX  ADVISORY  WRITE 812 fd:00:2531452 0 EOF`; the arrow is for who waits."""

    pid: int
    file: _Identity
    waits: bool
    is_exclusive: bool

    @classmethod
    def parse(cls, entry: str) -> _Lock | None:
        fields = entry.split()[1:]
        waits = fields[:1] == ["->"]
        if waits:
            del fields[0]
        if len(fields) != 7 or fields[0] != "POSIX":
            return None
        major, minor, inode = fields[4].split(":")
        return cls(int(fields[3]), (int(major, 16), int(minor, 16), int(inode)), waits, fields[2] == "WRITE")

    def is_on(self, file: _Identity | None) -> bool:
        """Whether it is on this file. File systems without a device of their own (major 0: btrfs, overlayfs) tell
        stat() another number than they tell here, so there the inode decides."""
        if file is None or self.file[2] != file[2]:
            return False
        return self.file == file or self.file[0] == 0


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
