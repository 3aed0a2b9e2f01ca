"""The daemon's side of the zygote (zygote.py): asks it for shims, and hears of those that failed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

from boundd.launch import shim

_TIMEOUT_S = 10.0
_REPORT_BYTES = 8192
_SCRIPT = Path(shim.__file__).absolute().parents[1] / "zygote.py"


class ShimSpawner:
    """Starts shims whose folders are in `attempts_folder`. Any thread may call it."""

    def __init__(self, attempts_folder: Path) -> None:
        self._attempts_folder = attempts_folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self, folder: Path, lock: int, output: int, error: int) -> None:
        """Have a shim started for the attempt in `folder`, with copies of the three descriptors.

        Raises:
            OSError: the zygote can't be started, or doesn't take the request; no shim was started.
        """
        with self._lock:
            for last in (False, True):
                requests = self._socket or self._begin()
                try:
                    socket.send_fds(requests, [os.fsencode(folder)], [lock, output, error])
                except OSError:
                    # It was killed, or is stuck: what it has started goes on without it.
                    self._finish()
                    if last:
                        raise
                else:
                    return

    def failures(self) -> list[tuple[str, int]]:
        """The attempts whose shims ended with another status than 0 since the last call (below 0: by a signal)."""
        found: list[tuple[str, int]] = []
        with self._lock, contextlib.suppress(OSError):
            # Asked first: with a time limit, which sending needs, `recv` would wait whatever its flags say.
            while self._socket is not None and _readable(self._socket):
                report = self._socket.recv(_REPORT_BYTES)
                if not report:
                    self._finish()
                    break
                folder, code = json.loads(report)
                found.append((Path(folder).name, code))
        return found

    @property
    def is_up(self) -> bool:
        """Whether there is a zygote that can tell of failures."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End the zygote; what it has started goes on."""
        with self._lock:
            self._finish()

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_SCRIPT), str(theirs.fileno()), str(self._attempts_folder)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C in a terminal is the daemon's, who may want to leave the workers running.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        ours.settimeout(_TIMEOUT_S)
        self._socket = ours
        return ours

    def _finish(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _readable(found: socket.socket) -> bool:
    # Not select(), which knows no descriptors above 1,023.
    poller = select.poll()
    poller.register(found, select.POLLIN)
    return bool(poller.poll(0))
