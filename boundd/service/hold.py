"""One daemon a state folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from boundd.ports import HeldError, StoreBusyError

LOCK_NAME = "daemon.lock"


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Hold the state folder until the block, or the process, ends.

    Raises:
        HeldError: another daemon holds it; the message names its pid.
        StoreBusyError: the disk is full or failing.
    """
    path = state_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StoreBusyError(f"{path}: the state folder can't be held: {error.strerror}. See to the disk.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise HeldError(
                f"another daemon (pid {pid}) holds {state_dir}; stop it with `boundctl shutdown`, or give this one "
                "a state_dir of its own"
            ) from None
        # The lock is what counts; the pid only tells people, and a disk that doesn't take it is no reason not to work.
        with suppress(OSError):
            _leave_pid(descriptor)
        yield
    finally:
        os.close(descriptor)


def _leave_pid(descriptor: int) -> None:
    text = f"{os.getpid()}\n".encode()
    # In this order: on a full disk, the room of the pid before is all that there is.
    try:
        written = os.pwrite(descriptor, text, 0)
    except OSError:
        os.ftruncate(descriptor, 0)  # no pid rather than that of somebody else
        raise
    os.ftruncate(descriptor, written)
