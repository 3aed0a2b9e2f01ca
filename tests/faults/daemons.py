"""What the campaigns around the whole daemon share: a box with a config, a worker with a journal, and its daemons.

The worker keeps a journal of its own (`journal.jsonl`, O_APPEND and fsync), which no daemon reads or writes: it says
which attempts were executed, when, and what each found. `tests/faults/audit.py` compares it with what boundd kept.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

PATIENCE_S = 120.0
"""Only a failure waits so long; a loaded machine is given all of it."""

WORKER = """\
import fcntl, json, os, sys, time, zlib
kind, attempt = sys.argv[1], os.environ["BOUNDD_ATTEMPT"]
journal = os.open("journal.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
busy = os.open("busy-" + attempt.rpartition(".")[0], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
try:
    fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    alone = True
except BlockingIOError:
    alone = False
nonce = f"{os.getpid()}-{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}"
value = 1 + zlib.crc32(attempt.encode()) % 9000 / 1000

def say(at, **more):
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    line = {"at": at, "attempt": attempt, "pid": os.getpid(), "boot_ns": boot_ns, "nonce": nonce, **more}
    os.write(journal, (json.dumps(line) + "\\n").encode())
    os.fsync(journal)

def write(**line):
    with open(os.environ["BOUNDD_RESULTS"], "a") as results:
        results.write(json.dumps(line) + "\\n")

say("start", alone=alone, kind=kind)
points = 0
if kind == "fails":
    say("end", outcome="failed")
    sys.exit(7)
if kind == "bad":
    write(type="error", error="bad_data", message="NaN, it said")
    say("end", outcome="failed")
    sys.exit(5)
if kind == "hangs":
    time.sleep(600)
if kind == "slow":
    time.sleep(2.0)
if kind == "points":
    for points in range(1, 5):
        write(type="point", parameters={"n": points}, speedup=float(points), score_loss=None, isolation="exclusive")
        write(type="progress", done=points, total=4)
        time.sleep(0.1)
write(type="result", max_speedup=value, max_speedup_within_tolerance=None, isolation="exclusive", nonce=nonce)
say("end", outcome="succeeded", value=value, points=points)
"""
"""The executions that a cell's `kind` asks for. What it finds follows from its attempt's id, the nonce from itself."""

KINDS = ("quick", "slow", "points", "fails", "bad", "hangs")
ENDS: Mapping[str, frozenset[str]] = {
    "quick": frozenset({"succeeded"}),
    "slow": frozenset({"succeeded"}),
    "points": frozenset({"succeeded"}),
    "fails": frozenset({"failed"}),
    "bad": frozenset({"failed"}),
    "hangs": frozenset({"timed_out"}),
}
"""The state that a cell of each kind must come to, whatever happens to daemons."""


class Box:
    """A folder with a config in which daemons are started, killed, and started again."""

    def __init__(self, folder: Path, *, numbers: int = 2, kinds: tuple[str, ...] = KINDS, extra: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state_dir = folder / "state"
        self.store = self.state_dir / "boundd.db"
        self.journal = folder / "journal.jsonl"
        self.export = folder / "speedup_bounds.json"
        self.socket = folder / "s"
        self.log = folder / "daemon.log"
        self.config = folder / "config.toml"
        (folder / "worker.py").write_text(WORKER)
        self.config.write_text(_config(kinds, numbers, extra))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of `boundd` for this box."""
        return ("run", "--config", str(self.config), "--log-format", "json")

    def start(
        self, *options: str, wrapper: tuple[str, ...] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A real daemon, `python -m boundd run`, in a session of its own; `wrapper` goes before the command."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*wrapper, sys.executable, "-m", "boundd", *self.arguments, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def run_until_idle(self) -> int:
        """A daemon to its end; its exit code."""
        daemon = self.start("--until-idle")
        try:
            return daemon.wait(PATIENCE_S)
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()

    def told(self) -> str:
        """The last of what daemons said here, for a failure's message."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Every living process that works here: daemons, zygotes, shims and workers."""
        return [process for process in psutil.process_iter() if _is_of(process, str(self.folder))]

    def clear(self) -> None:
        """KILL what is left; only what was started for this box."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


def _is_of(process: psutil.Process, folder: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # A shim's folder is its current one, a worker's the config's, a zygote is told the attempts' folder.
        places = [process.cwd(), *process.cmdline()]
    except psutil.Error:
        return False
    return any(place == folder or place.startswith(folder + "/") for place in places)


def _config(kinds: tuple[str, ...], numbers: int, extra: str) -> str:
    quoted = ", ".join(f'"{kind}"' for kind in kinds)
    device = '[[devices.simulated]]\nname = "Simulated"\nmemory = "4GiB"\n'
    return f"""
[daemon]
state_dir = "state"
socket = "s"
[devices]
backend = "simulated"
margin = "0MiB"
{device * 2}
[matrix.axes]
kind = [{quoted}]
n = {list(range(numbers))}
[matrix.constants]
model = "none"
[worker]
command = ["{{python}}", "-I", "-S", "worker.py", "{{kind}}"]
timeout = "60s"
grace = "500ms"
[retry]
backoff = "100ms"
[[rule]]
match = {{}}
footprint = "1GiB"
[[rule]]
match = {{ kind = "hangs" }}
timeout = "600ms"
{extra}
"""


def wait_for(
    condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S, *, pause_s: float = 0.01
) -> None:
    """Wait until something is so, looking again after every `pause_s`."""
    until_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until_s, f"never: {what}"
        time.sleep(pause_s)


class Nursery:
    """Forks daemons, one at a time, from a process that has imported boundd already.

    Importing is most of what a start costs, and nothing that a kill could harm. A fork runs `boundd.__main__.main`.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._pidfd = -1
        self._code: int | None = None

    def fork(self, box: Box, *options: str) -> int:
        """The pid of a daemon that has yet to begin."""
        assert self._process.stdin is not None
        line = "\0".join([str(box.folder), str(box.log), *box.arguments, *options])
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        pid = self._answer()
        # It is stopped, so that the pid is its own.
        self._pidfd, self._code = os.pidfd_open(pid), None
        return pid

    def send(self, number: int) -> None:
        """Signal the daemon, if it still is there; SIGCONT lets it begin."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def ended(self, timeout_s: float = PATIENCE_S) -> int | None:
        """The exit code of the daemon, a signal's number below 0; None where it still runs after `timeout_s`."""
        assert self._process.stdout is not None
        if self._code is None and select.select([self._process.stdout], [], [], timeout_s)[0]:
            self._code = self._answer()
            os.close(self._pidfd)
            self._pidfd = -1
        return self._code

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = b""
        # A byte at a time: a buffer would hide the next answer from select().
        while not line.endswith(b"\n"):
            more = os.read(self._process.stdout.fileno(), 1)
            assert more, "the nursery has died"
            line += more
        return int(line)

    def close(self) -> None:
        """End it, and the daemon that it waits for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.send(signal.SIGKILL)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()


def kill_at(pid: int, syscall: str, nth: int) -> subprocess.Popen[bytes] | None:
    """Have a process killed as it makes the n-th such system call in any of its threads, counted from now on.

    Returns strace once it traces; None where the process is gone. What the daemon executes (the zygote) is let go.
    """
    return _strace(pid, os.devnull, f"trace={syscall}", "-e", f"inject={syscall}:signal=KILL:when={nth}")


def record_calls(pid: int, syscalls: tuple[str, ...], log: Path) -> subprocess.Popen[bytes] | None:
    """Have a process' system calls written to `log`, each after its thread."""
    return _strace(pid, str(log), f"trace={','.join(syscalls)}")


def _strace(pid: int, output: str, *expressions: str) -> subprocess.Popen[bytes] | None:
    command = ["strace", "-f", "-b", "execve", "-p", str(pid), "-o", output, "-e", *expressions]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    assert tracer.stderr is not None
    told = b""
    while b"attached" not in told:
        more = os.read(tracer.stderr.fileno(), 4096)
        if not more:
            tracer.wait()
            tracer.stderr.close()
            assert b"No such process" in told, f"strace ended: {told.decode(errors='replace')}"
            return None
        told += more
    return tracer


def finish(tracer: subprocess.Popen[bytes]) -> None:
    """Wait for a strace whose process has ended."""
    tracer.wait(PATIENCE_S)
    if tracer.stderr is not None:
        tracer.stderr.close()
