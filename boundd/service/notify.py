"""What systemd is told about the daemon, and how it is told: sd_notify(3), without a library.

Rules: telling never blocks and never raises, because a manager that is slow or gone is no reason to stop working. What
was in the environment for the daemon is taken out of it, so that no worker speaks in the daemon's name.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping

import anyio

from boundd.core.model.attempts import CellState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.state import State

STATUS_INTERVAL_S = 1.0
EXTENSION_S = 30
"""What a stop is prolonged by, again and again, while workers are being ended."""
TEXT_LIMIT = 500
PINGS_PER_PERIOD = 3
"""sd_watchdog_enabled(3) advises two or more."""


class Notifier:
    """Tells systemd; does nothing where there is none. An Observer too: a stop is told when it is noted.

    Args:
        address: of the datagram socket, as $NOTIFY_SOCKET has it; '' for none.
        watchdog_s: within which systemd wants a ping; None where it doesn't watch.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        # '@' stands for the NUL that begins an abstract socket's name. Other kinds (vsock) are for virtual machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._stopping = False
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """The notifier of the process `pid`; takes the variables out of `environ`."""
        address = environ.pop("NOTIFY_SOCKET", "")
        period_us, watched = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        watches = period_us.isdigit() and int(period_us) > 0 and watched in ("", str(pid))
        return cls(address, int(period_us) / 1e6 if watches else None)

    @property
    def told(self) -> bool:
        """Whether there is anybody to tell."""
        return self._socket is not None

    def send(self, *assignments: str) -> bool:
        """Send `NAME=value` lines in one message; False where nobody took it."""
        if self._socket is None:
            return False
        message = "\n".join(assignments).encode(errors="replace")
        try:
            self._socket.sendto(message, socket.MSG_DONTWAIT, self._address)
        except OSError:
            return False
        return True

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.send("STATUS=" + _one_line(text))

    def ready(self) -> None:
        """Requests are answered and what an earlier daemon left is taken up."""
        self.send("READY=1")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """The config is being read anew; afterwards, whatever came of it, the daemon works as before or by the new."""
        # systemd tells by this clock which of several reloads an answer belongs to.
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self.ready()

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - an Observer's signature
        """Tell of a stop as soon as it is begun."""
        if note.action is Action.DAEMON_STOPPING:
            self._stopping = True
            self.send("STOPPING=1", "STATUS=" + _one_line(note.message))

    async def keep_informed(self, line: Callable[[], str]) -> None:
        """Keep STATUS current, until cancelled; while stopping, ask for the time that the workers' ends need."""
        last = ""
        while self.told:
            text = line()
            if text != last:
                self.status(text)
                last = text
            if self._stopping:
                self.send(f"EXTEND_TIMEOUT_USEC={EXTENSION_S * 1_000_000}")
            await anyio.sleep(STATUS_INTERVAL_S)

    async def keep_alive(self, prove_alive: Callable[[], Awaitable[None]]) -> None:
        """Ping the watchdog, until cancelled, each time after `prove_alive` has returned.

        Where it hangs or raises there is no ping, and systemd restarts the daemon.
        """
        if self.watchdog_s is None or not self.told:
            return
        while True:
            # Whatever is wrong has been told where it went wrong; silence is what tells systemd.
            with contextlib.suppress(Exception):
                await prove_alive()
                self.send("WATCHDOG=1")
            await anyio.sleep(self.watchdog_s / PINGS_PER_PERIOD)


def status_line(state: State, store_problem: str = "") -> str:
    """What the daemon is doing, in a line: "12 of 81 cells done, 3 running on 2 devices"."""
    counts = state.count_by_state()
    total, running = sum(counts.values()), len(state.attempts)
    done = total - counts[CellState.PENDING] - counts[CellState.RUNNING]
    devices = len({attempt.device for attempt in state.attempts.values()})
    parts = [f"{done} of {_counted(total, 'cell')} done"]
    if done > counts[CellState.SUCCEEDED]:
        parts.append(f"{done - counts[CellState.SUCCEEDED]} of them without a result")
    parts.append(f"{running} running on {_counted(devices, 'device')}" if running else "nothing running")
    if state.stopping:
        parts.append("stopping")
    elif store_problem:
        parts.append("nothing new is started: " + store_problem)
    elif state.paused:
        parts.append("paused")
    return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _one_line(text: str) -> str:
    # A line break would begin an assignment of its own, and what a config or a driver says may hold one.
    return " ".join(text.split())[:TEXT_LIMIT]
