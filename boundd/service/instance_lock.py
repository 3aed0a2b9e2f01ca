"""One daemon a state folder.

The folder itself is locked, and a file in it: the file can be deleted while a daemon runs, and a folder that isn't
empty can't; a daemon of a release that knew only the file is kept out by the file. Both are `flock`s, so they are the
inode's, whatever link or mount leads to it, and they end with the process, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from boundd.ports import AlreadyRunningError, StoreBusyError

LOCK_NAME = "daemon.lock"
TIMEOUT_S = 2.0
"""How long a lock is waited for that nobody alive is known to hold: a daemon that was just killed is still being
taken apart, or a child that it was forking still has its descriptors."""
_PAUSE_S = 0.02
_NO_FOLDER_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP})
"""What file systems answer that can't lock folders: there the file has to do."""

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})

_held: set[tuple[int, int]] = set()
"""Device and inode of the folders that this process holds."""


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Hold the state folder until the block, or the process, ends. A process that holds it already may do so again.

    Raises:
        AlreadyRunningError: another daemon holds it; the message names its pid.
        StoreBusyError: the disk is full or failing.
        OSError: the folder isn't there, or can't be written to.
    """
    folder = _opened(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    with ExitStack() as stack:
        stack.callback(os.close, folder)
        identity = _identity(folder)
        if identity not in _held:
            file = _opened(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT)
            stack.callback(os.close, file)
            _lock(folder, file, state_dir)
            _lock(file, file, state_dir)
            # The locks are what counts; the pid only tells people: a disk that does not take it is no reason to stop.
            with suppress(OSError):
                _write_pid(file)
            _held.add(identity)
            stack.callback(_held.discard, identity)
        yield


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o640)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StoreBusyError(f"{path}: the state folder can't be held: {error.strerror}. See to the disk.") from error


def _write_pid(file: int) -> None:
    text = f"{os.getpid()}\n".encode()
    # In this order: on a full disk, the room of the pid before is all that there is.
    try:
        written = os.pwrite(file, text, 0)
    except OSError:
        os.ftruncate(file, 0)  # no pid rather than that of somebody else
        raise
    os.ftruncate(file, written)


def _lock(descriptor: int, file: int, state_dir: Path) -> None:
    """Lock it, or say who has; `file` is the one in which the holder wrote its pid."""
    until_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _holder(descriptor, file)
            if pid is None and time.monotonic() < until_s:
                time.sleep(_PAUSE_S)
                continue
            named = str(pid) if pid is not None else _pid_in_file(file) or "unknown"
            raise AlreadyRunningError(
                f"another daemon (pid {named}) holds {state_dir}; stop it with `boundctl shutdown`, or give this one "
                "a state_dir of its own"
            ) from None
        except OSError as error:
            if descriptor == file or error.errno not in _NO_FOLDER_LOCKS:
                raise
        return


def _holder(descriptor: int, file: int) -> int | None:
    """The pid of who holds it, alive; None where that can't be told.

    The kernel's list is asked first: a new holder has the lock a little before its pid is in the file, where the one
    before it is still named. Where the list doesn't show it (a daemon in another container), the file has to do.
    """
    listed = [pid for pid in _pids_in_proc_locks(_identity(descriptor)[1]) if _is_alive(pid)]
    written = _pid_in_file(file)
    pid = int(written) if written.isdigit() else 0
    if pid in listed:
        return pid
    if len(listed) == 1:
        return listed[0]
    return pid if not listed and pid and _is_alive(pid) else None


def _pids_in_proc_locks(inode: int) -> Iterator[int]:
    """The pids that /proc/locks names for a flock of this inode.

    The device is not compared: some file systems (btrfs, overlayfs) give stat() another number than the kernel's own.
    """
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # `3: FLOCK  ADVISORY  WRITE 812 fd:00:2531452 0 EOF`
        fields = line.split()
        if len(fields) == 8 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            yield int(fields[4])


def _is_alive(pid: int) -> bool:
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _pid_in_file(file: int) -> str:
    """The pid in the file, as text; empty before the first one."""
    return os.pread(file, 32, 0).decode(errors="replace").strip()


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
