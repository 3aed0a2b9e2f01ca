"""One run of `nvml_child`, seen from the event loop: it is asked and waited for, and never blocks anything.

The pipes are plain file descriptors waited for by the loop. A child that hangs is killed and abandoned rather than
waited for: a process inside a lost driver may not even end by SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio

_CHILD = "boundd.devices.nvml_child"
_ROOT = str(Path(__file__).parents[2])
"""Where the package is: the child must find it however this process did."""
_MAX_REPLY_BYTES = 16 * 1024**2
_REAP_S = 1.0
"""How long an ending child is waited for."""


class ChildGoneError(Exception):
    """The child ended or broke the protocol; the message says how."""


class NvmlProcess:
    """A running child. Not for two tasks at once.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        # -P keeps the working directory off the child's import path. A session of its own keeps the terminal's Ctrl-C,
        # which is the daemon's to handle, away from it.
        path = os.pathsep.join(filter(None, (_ROOT, environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environ, "PYTHONPATH": path},
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._buffer = b""
        self._last_id = 0
        self._started_s = time.monotonic()
        self.greeting: dict[str, Any] | None = None
        """What it said of initialising; None until it has."""
        self.at: int | None = None
        """The index of the device that it was last heard to be asking for; None where it is asking for none."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_s

    async def greet(self) -> dict[str, Any]:
        """Wait until it has initialised NVML, or failed to; safe to cancel and call again.

        Raises:
            ChildGoneError: it ended before that.
        """
        if self.greeting is None:
            self.greeting = await self._receive()
        return self.greeting

    async def ask(
        self,
        *,
        processes: bool = False,
        health: bool = False,
        unlisted: Iterable[str] = (),
        skip: Iterable[int] = (),
        only: int | None = None,
    ) -> dict[str, Any]:
        """One reading; see `nvml_child` for what can be asked.

        A reply to an earlier question, whose asker was cancelled, is passed over.

        Raises:
            ChildGoneError: it ended.
        """
        self._last_id += 1
        asked: dict[str, Any] = {"id": self._last_id, "processes": processes, "health": health}
        asked |= {"unlisted": list(unlisted), "skip": list(skip), "only": only}
        line = json.dumps(asked).encode() + b"\n"
        try:
            # Below PIPE_BUF (4,096; a UUID has 40), so it is written whole or not at all.
            os.write(self._stdin.fileno(), line)
        except BlockingIOError:
            raise ChildGoneError("the probe's process doesn't read its requests") from None
        except BrokenPipeError:
            raise ChildGoneError(await self._how_it_ended()) from None
        while True:
            reply = await self._receive()
            if "at" in reply:
                self.at = reply["at"]
            elif reply.get("id") == self._last_id:
                self.at = None
                return reply

    async def _receive(self) -> dict[str, Any]:
        """The next line it writes, decoded."""
        while b"\n" not in self._buffer:
            await anyio.wait_readable(self._stdout)
            try:
                chunk = os.read(self._stdout.fileno(), 65536)
            except BlockingIOError:
                continue
            if not chunk:
                raise ChildGoneError(await self._how_it_ended())
            self._buffer += chunk
            if len(self._buffer) > _MAX_REPLY_BYTES:
                raise ChildGoneError("the probe's process wrote an endless reply")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise ChildGoneError(f"the probe's process wrote what is no reply: {line[:80]!r}")
        return reply

    async def _how_it_ended(self) -> str:
        """Its exit, in words; its pipes have closed, so that is at hand or about to be."""
        await self._wait(_REAP_S)
        status = self._process.poll()
        if status is None:
            return "the probe's process closed its output"
        if status < 0:
            return f"the probe's process was ended by {signal.Signals(-status).name}"
        return f"the probe's process ended with exit status {status}"

    async def _wait(self, limit_s: float) -> None:
        """Wait for its end, `limit_s` seconds at most."""
        with anyio.move_on_after(limit_s):
            # A loop's own child watchers would wait for ever for a child that can't end, so this one is asked.
            while self._process.poll() is None:  # noqa: ASYNC110
                await anyio.sleep(0.005)

    def kill(self) -> None:
        """End it at once, without waiting; `is_reaped` tells when it is over."""
        self._process.kill()
        self._stdin.close()
        self._stdout.close()

    def is_reaped(self) -> bool:
        """Whether it has ended and its entry in the process table is freed."""
        return self._process.poll() is not None

    async def aclose(self) -> None:
        """Let it end by itself (its input ends), kill it if it doesn't, and abandon it if even that fails."""
        with anyio.CancelScope(shield=True):
            self._stdin.close()
            await self._wait(_REAP_S)
            self.kill()
            await self._wait(_REAP_S)
