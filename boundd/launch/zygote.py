"""The zygote: a process that is ready to be a shim, and forks one whenever the daemon asks.

Run as `python -I -S zygote.py SOCKET ATTEMPTS`, with the number of a SEQPACKET socket (`ATTEMPTS` only tells people
whose it is). Starting Python takes 15 to 20 ms of a processor, forking it takes one or two: with cells of minutes
neither matters, with cells of no length it would be half of what one costs. Like the shim it imports nothing but the
standard library, because its memory is every shim's.

A request is the attempt's folder, and three descriptors: its lock, what is standard output until the worker runs, and
standard error. A shim that ended with anything but 0 is told of: `[folder, status]` in JSON, a signal's number below 0.
When the daemon is gone the zygote ends; its shims go on.
"""
# As in the shim, pathlib would cost each shim memory:
# ruff: noqa: PTH120

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import NoReturn

# `-I` keeps the script's own folder off the path. Last: nothing in it may take the place of a standard module.
sys.path.append(os.path.dirname(__file__))
import shim  # type: ignore[import-not-found]

REQUEST_BYTES = 8192
DESCRIPTORS = 3


class Zygote:
    """Forks shims for one daemon."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._folders: dict[int, str] = {}

    def serve(self) -> None:
        """Until the daemon is gone."""
        self._woken, wakes = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wakes, False)
        self._wakes = wakes
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        shim.boot_id()
        # What is there now is shared with every shim, as long as the collector doesn't write to it.
        gc.freeze()
        poller = select.poll()
        poller.register(self._requests, select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._requests.fileno() in ready and not self._one_request():
                return

    def _one_request(self) -> bool:
        """Fork the shim that is asked for; False once nobody is there to ask."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, DESCRIPTORS)
        except ConnectionResetError:
            return False  # It died with a report of ours unread.
        if not message:
            return False
        folder = os.fsdecode(message)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_shim(folder, *descriptors)
            self._folders[pid] = folder
        except OSError as error:
            os.write(descriptors[1], shim.start_failure(error))
        finally:
            # The lock above all: who holds it is part of the attempt.
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _become_shim(self, folder: str, lock: int, output: int, error: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for descriptor in (self._requests.fileno(), self._woken, self._wakes):
                os.close(descriptor)
            os.setsid()
            os.dup2(output, 1)
            os.dup2(error, 2)
            os.close(output)
            os.close(error)
            shim.run_attempt(folder, lock)
            status = 0
        except shim.GaveUpError as gave_up:
            status = shim.GAVE_UP
            os.write(2, f"{gave_up}\n".encode(errors="replace"))
        except BaseException:
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._folders:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            folder, code = self._folders.pop(pid), os.waitstatus_to_exitcode(status)
            if code:
                try:
                    self._requests.send(json.dumps([folder, code]).encode(), socket.MSG_DONTWAIT)
                except OSError:
                    continue  # The daemon is gone, or doesn't read: the attempt is lost all the same.


if __name__ == "__main__":
    Zygote(socket.socket(fileno=int(sys.argv[1]))).serve()
