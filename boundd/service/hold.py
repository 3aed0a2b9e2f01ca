"""One daemon a state folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boundd.ports import HeldError

LOCK_NAME = "daemon.lock"


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Hold the state folder until the block, or the process, ends.

    Raises:
        HeldError: another daemon holds it; the message names its pid.
    """
    descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise HeldError(
                f"another daemon (pid {pid}) holds {state_dir}; stop it with `boundctl shutdown`, or give this one "
                "a state_dir of its own"
            ) from None
        text = f"{os.getpid()}\n".encode()
        # In this order: on a full disk, the room of the pid before is all that there is.
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        yield
    finally:
        os.close(descriptor)
