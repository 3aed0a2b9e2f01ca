"""What the shim asks of the kernel: its clock, its files, its cgroups."""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH106, PTH116, SIM105

from __future__ import annotations

# What `signal` makes enums around, which would make many more pages of memory a process' own.
import _signal  # type: ignore[import-not-found]
import codecs
import ctypes
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Once in the zygote and not in each shim: each would make a class of its own of it, and import this codec.
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
codecs.lookup("ascii")

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_READ_BYTES = 65536
_CHANGED_SIGNALS = tuple(getattr(_signal, f"SIG{name}") for name in ("PIPE", "XFSZ", "HUP", "INT", "TERM", "CHLD"))
"""The first two by Python, INT by both, the others by a shim."""
_OOM_SCORE_ADJ = "/proc/self/oom_score_adj"
_REMOVALS = 50
_REMOVAL_PAUSE_S = 0.02


def now_s() -> float:
    """Seconds since boot, without those that the machine slept: a worker that slept with it has not had that time.

    It is the clock that poll() counts in, and nobody can set it.
    """
    return time.monotonic()


def read_file(path: str) -> bytes:
    """All of a file, with as little of Python as that takes: each page that it writes to becomes a shim's own.

    Raises:
        OSError: it is not there, or can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_all(descriptor)
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> bytes:
    """All that comes until the end, with a pipe until nobody can write to it any more."""
    found = b""
    while more := os.read(descriptor, _READ_BYTES):
        found += more
    return found


def write_file(path: str, data: bytes) -> None:
    """Write to a file of the kernel's in one go.

    Raises:
        OSError: it is not there, or takes no such thing.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def reset_signals() -> None:
    """Take signals as a program does that knows nothing of them, whatever was made of them before."""
    _signal.set_wakeup_fd(-1)
    for number in _CHANGED_SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def handle_signals(wakes: int, asked_to_end: Callable[..., None]) -> None:
    """Have each signal write a byte to `wakes`; TERM and INT call `asked_to_end` too, HUP does nothing."""
    _signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, _nothing)
    _signal.signal(_signal.SIGTERM, asked_to_end)
    _signal.signal(_signal.SIGINT, asked_to_end)
    _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)
    # Whoever forked us may have held signals back.
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _nothing(*_: object) -> None:
    pass


def read_keyed(path: str) -> dict[str, int]:
    """A file of `name number` lines; empty where it isn't there."""
    try:
        pairs = [line.split() for line in read_file(path).decode("ascii").splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def read_number(path: str) -> int | None:
    """A file that holds one number; None where it isn't there, or says `max`."""
    try:
        text = read_file(path).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def file_size(path: str) -> int | None:
    """How many bytes a file has: 0 where there is none, None where nobody can tell."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0 if path else None
    except OSError:
        return None


def machine_oom_kills() -> int:
    """How many processes of this machine the kernel has ended for want of host memory since boot."""
    try:
        text = read_file("/proc/vmstat")
    except OSError:
        return 0
    # Of some two hundred lines, two for each attempt: not worth taking apart.
    name = b"\noom_kill "
    found = text.find(name)
    return 0 if found < 0 else int(text[found + len(name) :].split(b"\n", 1)[0])


def kill_cgroup(path: str) -> None:
    """KILL everything in a cgroup at once, whatever it forks; does nothing where the kernel can't (before 5.14)."""
    try:
        write_file(path + "/cgroup.kill", b"1")
    except OSError:
        pass


def remove_cgroup(path: str) -> None:
    """Remove an attempt's cgroup with whatever may still be in it; what stays, the next daemon removes."""
    kill_cgroup(path)
    for _ in range(_REMOVALS):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_REMOVAL_PAUSE_S)
        else:
            return


def set_process_name(name: str) -> None:
    """Tell people who look at processes what this one is, in at most 15 bytes."""
    try:
        write_file("/proc/self/comm", name.encode())
    except OSError:
        pass  # A name is no reason not to measure.


def reset_oom_score() -> None:
    """Undo what keeps the daemon from being chosen when the host's memory runs out: it is not for workers."""
    try:
        if read_file(_OOM_SCORE_ADJ).startswith(b"-"):
            write_file(_OOM_SCORE_ADJ, b"0")
    except OSError:
        pass  # What can't be undone is no reason not to measure.


def prctl(option: int, value: int) -> None:
    """prctl(2), of which Python knows nothing.

    Raises:
        OSError: the kernel refuses.
    """
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")
