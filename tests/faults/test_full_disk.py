"""A full disk, for real: the daemon's state on a tmpfs of a few MiB that is filled while it works.

Nothing new is started, what runs is seen to its end, everybody who asks is told, and once there is room it goes on by
itself. Seen to fail: `State.disk_shortage` made to return '': the shortage is never told; without
`Daemon._retry_store` the trouble is told for ever after the disk has room; `_wind_down` without its patience hangs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.campaign import Report

BIN = Path(sys.executable).parent
PATIENCE_S = 120.0
SIZE_MIB = 6
CELLS = 4
WORKER = 'while [ ! -e "$0/go-$1" ]; do sleep 0.05; done; echo speedup: 1.$1'


def until(true: Callable[[], Any], what: str) -> Any:
    """What `true` returns, once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of a few MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Daemon:
    """A daemon whose cells end when they are told to. Its log is on the small disk as well."""

    def __init__(self, folder: Path, small: Path, reserve: str) -> None:
        self.folder, self.small = folder, small
        self.socket, self.config = folder / "socket", folder / "config.toml"
        self.config.write_text(
            f"""
[daemon]
state_dir = "{small}/state"
socket = "{self.socket}"
export = "{small}/bounds.json"
disk_reserve = "{reserve}"
[log]
file = "{small}/boundd.log"
[devices]
backend = "simulated"
max_cells = 1
[[devices.simulated]]
name = "Fake 24"
memory = "24GiB"
[matrix.axes]
n = [{", ".join(map(str, range(CELLS)))}]
[worker]
result = "stdout"
command = ["/bin/sh", "-c", '{WORKER}', "{folder}", "{{n}}"]
timeout = "10m"
grace = "1s"
"""
        )
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.settimeout(0.05)
        self.told = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run one."""
        with (self.folder / "stderr").open("a") as stderr:
            self.process = subprocess.Popen(
                [BIN / "boundd", "run", "--config", self.config],
                env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify")},
                stderr=stderr,
                stdout=subprocess.DEVNULL,
            )
        process = self.process
        until(lambda: process.poll() is not None or self.ctl("status").returncode == 0, "the daemon answers")
        assert process.poll() is None, (self.folder / "stderr").read_text()[-2000:]

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What boundctl says."""
        command = [BIN / "boundctl", *arguments, "--socket", self.socket]
        return subprocess.run(command, capture_output=True, text=True)

    def status(self) -> dict[str, Any]:
        """`boundctl status --json`."""
        answer: dict[str, Any] = json.loads(self.ctl("status", "--json").stdout)
        return answer

    def counts(self) -> dict[str, int]:
        """Cells by state."""
        found: dict[str, int] = self.status()["cells"]["by_state"]
        return found

    def problem(self) -> str:
        """Why nothing new is started."""
        return str(self.status()["daemon"]["store_problem"])

    def get(self, path: str) -> tuple[int, str]:
        """The status and the body of a GET."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return int(text.split()[1]), text

    def systemd_status(self) -> str:
        """The last STATUS that systemd was told."""
        try:
            while True:
                lines = self.notify.recv(65536).decode().splitlines()
                self.told = next((line for line in lines if line.startswith("STATUS=")), self.told)
        except TimeoutError:
            return self.told

    def start_worker(self, cell: int) -> None:
        """Have the worker of a cell end."""
        (self.folder / f"go-{cell}").touch()

    def fill(self, leave_bytes: int = 0) -> Path:
        """Fill the disk but for so much."""
        filler = self.small / "filler"
        free = os.statvfs(self.small)
        with filler.open("wb") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave_bytes)))
        return filler

    def close(self) -> None:
        """End it and its workers."""
        for cell in range(CELLS):
            self.start_worker(cell)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.notify.close()


@pytest.fixture
def make(tmp_path: Path, small: Path) -> Iterator[Callable[[str], Daemon]]:
    """Makes a daemon with its state on the small disk."""
    made: list[Daemon] = []

    def of(reserve: str) -> Daemon:
        made.append(Daemon(tmp_path, small, reserve))
        made[-1].start()
        return made[-1]

    yield of
    for each in made:
        each.close()


def check_told(daemon: Daemon, words: str) -> None:
    """Everybody who asks is told why nothing is started, and what to do."""
    assert words in daemon.problem()
    assert "nothing new is started" in daemon.ctl("status").stdout
    assert words in daemon.ctl("status").stdout
    code, body = daemon.get("/healthz")
    assert code == 503
    assert words in body
    assert "boundd_store_problem 1.0" in daemon.get("/metrics")[1]
    until(lambda: words in daemon.systemd_status(), "systemd is told")


def check_well(daemon: Daemon) -> None:
    """Nobody is told of any trouble."""
    until(lambda: not daemon.problem(), "the trouble is over")
    assert daemon.get("/healthz")[0] == 200
    assert "boundd_store_problem 0.0" in daemon.get("/metrics")[1]


def finish(daemon: Daemon) -> None:
    """Let every cell end, and see that each has its figure, once, in the store and in the export."""
    for cell in range(CELLS):
        daemon.start_worker(cell)
    until(lambda: daemon.counts()["succeeded"] == CELLS, "all cells end")
    for n in range(CELLS):
        cell = json.loads(daemon.ctl("show", str(n), "--json").stdout)
        assert [attempt["outcome"] for attempt in cell["history"]] == ["succeeded"]
        assert cell["max_speedup"] == float(f"1.{n}")
    exported = daemon.small / "bounds.json"
    until(
        lambda: all(cell["max_speedup"] for cell in json.loads(exported.read_text())["cells"]), "the export is current"
    )


def test_below_the_reserve_nothing_is_started(make: Callable[[str], Daemon]) -> None:
    """What runs is seen to its end and stored; the rest waits, with the reason, until there is room."""
    daemon = make("2MiB")
    until(lambda: daemon.counts()["running"] == 1, "a cell runs")
    filler = daemon.fill(leave_bytes=1 << 20)
    until(daemon.problem, "the shortage is seen")
    check_told(daemon, "disk_reserve")
    daemon.start_worker(0)
    until(lambda: daemon.counts()["succeeded"] == 1, "what ran is stored")
    assert daemon.counts()["running"] == 0
    assert "disk_reserve" in daemon.ctl("explain", "1").stdout
    filler.unlink()
    until(lambda: daemon.counts()["running"] == 1, "the next one is started")
    check_well(daemon)
    finish(daemon)


def test_a_disk_without_a_byte(make: Callable[[str], Daemon], report: Report) -> None:
    """Nothing can be stored: the end of what ran waits for the disk, and the daemon idles until there is room."""
    daemon = make("0MiB")
    until(lambda: daemon.counts()["running"] == 1, "a cell runs")
    filler = daemon.fill()
    daemon.start_worker(0)
    assert daemon.ctl("pause").returncode != 0, "what can't be stored is refused"
    check_told(daemon, "nothing can be stored")
    counts = daemon.counts()
    assert (counts["succeeded"], counts["running"], counts["pending"]) == (0, 1, CELLS - 1)
    # No timed assertion: what it may use is a share of the time that passed, far above what it does use.
    before, begun = psutil.Process(daemon.process.pid).cpu_times(), time.monotonic()
    until(lambda: time.monotonic() - begun > 3, "three seconds pass")
    after = psutil.Process(daemon.process.pid).cpu_times()
    used_s = after.user + after.system - before.user - before.system
    share = used_s / (time.monotonic() - begun)
    report("full disk", cells=CELLS, processor_share=round(share, 3))
    assert share < 0.5
    filler.unlink()
    check_well(daemon)
    finish(daemon)


def test_a_trouble_that_nothing_waits_for_ends_too(make: Callable[[str], Daemon]) -> None:
    """A request is refused, and nothing else wants to be stored: the daemon tries by itself whether it can."""
    daemon = make("0MiB")
    until(lambda: daemon.counts()["running"] == 1, "a cell runs")
    filler = daemon.fill()
    assert daemon.ctl("pause").returncode != 0, "what can't be stored is refused"
    check_told(daemon, "nothing can be stored")
    filler.unlink()
    check_well(daemon)
    assert daemon.counts()["running"] == 1


def test_it_can_be_stopped_on_a_full_disk(make: Callable[[str], Daemon]) -> None:
    """SIGINT can't store that it ends the workers: they are left to the next daemon, which takes everything up."""
    daemon = make("0MiB")
    until(lambda: daemon.counts()["running"] == 1, "a cell runs")
    filler = daemon.fill()
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(PATIENCE_S) == 0
    daemon.start_worker(0)
    filler.unlink()
    daemon.start()
    finish(daemon)
