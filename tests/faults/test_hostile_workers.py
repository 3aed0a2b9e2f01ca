"""Campaign: workers of twelve hostile kinds, all through one real daemon, beside workers that do as they should.

Each kind breaks another assumption: it hangs; ignores TERM; double-forks with setsid; closes all its descriptors, the
lock's too; writes gigabytes; one endless line; huge or broken results, in eight ways; exits 0 with none; forks without
end (in a v1 pids cgroup of its own); stops itself; fills the disk (a tmpfs of its own); has results written after its
end, by who it leaves behind and, once the outcome is there, by the test. Nothing of them may survive, the daemon may
not grow, each cell ends as it should, and the good ones don't notice.

Seen to fail: without the subreaper (`PR_SET_CHILD_SUBREAPER` in boundd/launch/shim/attempt.py) by survivors; with a
`LOG_TAIL_BYTES` of 32 MiB in boundd/service/log_reading.py by growth; with `results_bytes` ignored in
`_read_to_the_end` of boundd/service/attempts.py by wrong ends. tests/service/test_log_reading.py puts a pipe in place
of a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from boundd.launch import processes
from tests.faults import campaign

WORKER = Path(__file__).with_name("hostile_worker.py")
PIDS = Path("/sys/fs/cgroup/pids")
MIB = 1024**2
PATIENCE_S = 240.0
A_ROUND = 48
"""Hostile cells of one daemon's run; a long campaign is many of them."""
GOOD = 4
AT_A_TIME = 10
TIMED_OUT, NO_RESULT, MALFORMED = ("timed_out", "timeout"), ("failed", "no_result"), ("failed", "malformed_result")
SUCCEEDED = ("succeeded", None)
MUST_BE = {
    "good": SUCCEEDED,
    "hangs": TIMED_OUT,
    "ignores_term": TIMED_OUT,
    "double_forks": SUCCEEDED,
    "closes_descriptors": SUCCEEDED,
    "gigabytes": SUCCEEDED,
    "endless_line": TIMED_OUT,
    "broken_results": MALFORMED,
    "no_result": NO_RESULT,
    "forks_without_end": TIMED_OUT,
    "stops_itself": TIMED_OUT,
    "fills_the_disk": ("failed", "file_system"),
    "writes_after_its_end": NO_RESULT,
}
KINDS = [kind for kind in MUST_BE if kind != "good"]
TRIES = {"fills_the_disk": 2}
"""A full disk is the environment's fault: it is tried again, for nothing, until the patience is used up."""
BROKEN = ["sparse", "points", "pipe", "nan", "deep", "wide", "malformed", "link"]
pytestmark = [
    pytest.mark.skipif(not os.access(PIDS / "cgroup.procs", os.W_OK), reason="no pids cgroup (v1) to be written"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own is for root to mount"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def few_pids(tmp_path: Path) -> Iterator[Path]:
    """A cgroup with room for 60 processes."""
    folder = PIDS / f"boundd-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    (folder / "pids.max").write_text("60")
    yield folder
    deadline_s = time.monotonic() + 30
    while (folder / "cgroup.procs").read_text():
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        assert time.monotonic() < deadline_s, "what forks without end does not end"
    folder.rmdir()


def config(folder: Path, cells: list[str], disk: Path, pids: Path) -> str:
    """The config of a daemon with these cells."""
    device = f'[[devices.simulated]]\nname = "Simulated"\nmemory = "{AT_A_TIME}GiB"\n'
    quick = json.dumps([cell for cell in cells if cell.partition(":")[0] in _enders()])
    return f"""
[daemon]
state_dir = {json.dumps(str(folder / "state"))}
export = {json.dumps(str(folder / "bounds.json"))}
[devices]
backend = "simulated"
margin = "0MiB"
{device}
[matrix.axes]
model = ["none"]
method = {json.dumps(cells)}
[matrix.constants]
worker = {json.dumps(str(WORKER))}
[worker]
command = ["{{python}}", "{{worker}}", "{{method}}"]
timeout = "3s"
grace = "300ms"
[worker.env]
HOSTILE_DISK = {json.dumps(str(disk))}
HOSTILE_PIDS = {json.dumps(str(pids))}
HOSTILE_TOKEN = {json.dumps(str(folder))}
[retry]
max_attempts = 1
backoff = "1s"
patience = "1s"
[[rule]]
match = {{}}
footprint = "1GiB"
[[rule]]
match = {{ method = {quick} }}
timeout = "200s"
"""


def _enders() -> set[str]:
    """Kinds that end by themselves, however long they take on a busy machine."""
    return {kind for kind, must_be in MUST_BE.items() if must_be != TIMED_OUT}


def memory_bytes(pid: int, name: str) -> int:
    """A size in /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def survivors(folder: Path) -> list[int]:
    """Processes that were given this folder in their environment, whatever else they have let go of."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"HOSTILE_TOKEN=" + os.fsencode(folder) + b"\0" in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class Box:
    """One daemon with its cells."""

    def __init__(self, folder: Path, disk: Path, pids: Path) -> None:
        self.folder, self._disk, self._pids = folder, disk, pids
        folder.mkdir()
        self._config = folder / "config.toml"
        self._log = folder / "log.jsonl"
        self._appended: set[Path] = set()

    def begin(self, cells: list[str]) -> None:
        """Start the daemon."""
        self.change(cells)
        command = [sys.executable, "-m", "boundd", "run", "--config", str(self._config), "--log-format", "json"]
        with self._log.open("wb") as errors:
            self.daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )

    def change(self, cells: list[str]) -> None:
        """Write the config."""
        self._config.write_text(config(self.folder, cells, self._disk, self._pids))

    def told(self, action: str) -> list[dict[str, object]]:
        """The log's lines of an action."""
        *lines, _ = self._log.read_text().split("\n")
        told = [json.loads(line) for line in lines]
        return [line for line in told if line["event.action"] == action]

    def until_idle(self, times: int) -> None:
        """Wait until the daemon has had nothing to do so often; meanwhile, add to results whose outcome is there."""
        deadline_s = time.monotonic() + PATIENCE_S
        while len(self.told("run-idle")) < times:
            assert self.daemon.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline_s, f"not all have ended: {self.told('attempt-ended')}"
            self._append_after_outcomes()
            time.sleep(0.1)

    def kill(self) -> None:
        """End the daemon and all that it started, whatever state the test is in."""
        self.daemon.kill()
        self.daemon.wait()
        while found := survivors(self.folder):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def stop(self) -> None:
        """End the daemon, and wait for it."""
        self.daemon.terminate()
        self.daemon.wait(60)

    def ends(self) -> dict[str, tuple[str, str | None, int]]:
        """Of each cell: how it stands, the kind of its error, and the attempts it took, as the store has it."""
        uri = f"file:{self.folder / 'state' / 'boundd.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as store:
            rows = store.execute("SELECT parameters, state, error_kind, attempts FROM cells").fetchall()
        return {json.loads(parameters)["method"]: (state, kind, attempts) for parameters, state, kind, attempts in rows}

    def live_locks(self) -> int:
        """How many attempts somebody still holds the lock of."""
        return sum(processes.lock_is_held(path) for path in self.folder.glob("state/attempts/*/lock"))

    def _append_after_outcomes(self) -> None:
        for outcome in self.folder.glob("state/attempts/*/outcome.json"):
            if outcome.parent not in self._appended and "writes_after" in (outcome.parent / "spec.json").read_text():
                self._appended.add(outcome.parent)
                with (outcome.parent / "results.jsonl").open("a") as file:
                    file.write('{"type": "result", "max_speedup": 9.0, "isolation": "exclusive"}\n')


def hostile(count: int, first: int) -> list[str]:
    """So many cells, each kind in turn; of what breaks results, each way once in any case."""
    cells = [f"{KINDS[n % len(KINDS)]}::{n}" for n in range(first, first + count)]
    cells = [cell for cell in cells if not cell.startswith("broken_results")]
    return [*cells, *(f"broken_results:{way}:{first}" for way in BROKEN)]


@campaign.sizes("workers", short=24, long=1200)
def test_hostile_workers(
    workers: int, tmp_path: Path, small_disk: Path, few_pids: Path, report: campaign.Report
) -> None:
    """Nothing survives, the daemon doesn't grow, and every cell ends as it must, in as many attempts as it must."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    alive: list[int] = []
    locks, growth_bytes = 0, 0
    while seen.total() - seen["good"] < workers:
        first = seen.total()
        box = Box(tmp_path / f"box-{first}", small_disk, few_pids)
        before = [f"good:before:{n}" for n in range(GOOD)]
        cells = [*before, *(f"good:beside:{n}" for n in range(GOOD)), *hostile(min(A_ROUND, workers), first)]
        try:
            box.begin(before)
            box.until_idle(1)
            base_bytes = memory_bytes(box.daemon.pid, "VmHWM")
            box.change(cells)
            box.daemon.send_signal(signal.SIGHUP)
            box.until_idle(2)
            growth_bytes = max(growth_bytes, memory_bytes(box.daemon.pid, "VmHWM") - base_bytes)
            found = survivors(box.folder)
            alive += found
            locks += box.live_locks()
            box.stop()
        finally:
            box.kill()
        ends = box.ends()
        for cell in cells:
            kind = cell.partition(":")[0]
            seen[kind] += 1
            if ends.get(cell) != (*MUST_BE[kind], TRIES.get(kind, 1)):
                wrong.append(f"{cell}: {ends.get(cell)}")
        shutil.rmtree(box.folder, ignore_errors=True)
    report(
        "hostile workers",
        workers=seen.total() - seen["good"],
        kinds=len(seen) - 1,
        beside=seen["good"],
        survivors=len(alive) + locks,
        wrong_ends=len(wrong),
        daemon_grew_mib=round(growth_bytes / MIB, 1),
    )
    assert not wrong
    assert not alive
    assert locks == 0
    assert growth_bytes < 20 * MIB
