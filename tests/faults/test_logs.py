"""Logs never block: real daemons whose log nobody reads, whose pipe is closed, whose log's disk is full.

Seen to matter: with `Sink.put` writing in place of queueing, the daemon of the full pipe never gets to its end; with
`Progress._sink` left None, a stdout that nobody reads holds up the run; with the main log's count alone in
`control_app`, what the log file lost is in no metric.
"""

from __future__ import annotations

import contextlib
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

import pytest

from boundd.client import Client, NoDaemonError
from tests.faults import campaign

PATIENCE_S = 120.0
LAG_LIMIT_S = 2.0
"""Of a request to a daemon that can't write its log: generous, as one that waited for a reader would be stuck."""
QUEUE_LINES = 500
"""A smaller queue than a daemon's own, so that fewer durable steps fill it."""
LINES = 1200
WITH_A_SMALL_QUEUE = f"""\
from boundd.telemetry.logs import JsonLog
JsonLog.__init__.__kwdefaults__["capacity"] = {QUEUE_LINES}
from boundd.composition.run import main
main()
"""

CONFIG = """\
[daemon]
state_dir = "state"
socket = "s"
[log]
{log}
[devices]
backend = "simulated"
[[devices.simulated]]
name = "Simulated 24 GiB"
memory = "24GiB"
[matrix.axes]
number = [1, 2, 3, 4]
[worker]
command = ["{{python}}", "worker.py", "{{number}}"]
grace = "100ms"
[retry]
max_attempts = 1
"""
WORKER = """\
import json, os
with open(os.environ["BOUNDD_RESULTS"], "a") as results:
    for n in range({points}):
        point = {{"type": "point", "parameters": {{"n": n}}, "speedup": 2.0, "isolation": "exclusive"}}
        results.write(json.dumps(point) + "\\n")
    results.write('{{"type": "result", "max_speedup": 2.0, "isolation": "exclusive"}}\\n')
"""


class Box:
    """A folder in which daemons run whose stderr is what a test gives them."""

    def __init__(self, folder: Path, *, log: str = "", points: int = 0) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.client = Client(self.socket)
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "config.toml").write_text(CONFIG.format(log=log))
        (folder / "worker.py").write_text(WORKER.format(points=points))

    def start(
        self, stderr: int, *options: str, stdout: int = subprocess.DEVNULL, small_queue: bool = False
    ) -> subprocess.Popen[bytes]:
        """A real daemon."""
        program = ["-c", WITH_A_SMALL_QUEUE] if small_queue else ["-m", "boundd"]
        command = [sys.executable, *program, "run", "--config", "config.toml", "--log-format", "json", *options]
        process = subprocess.Popen(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
        self.processes.append(process)
        return process

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until it holds."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, "it did not come about in time"
            time.sleep(0.05)

    def succeeded(self) -> int:
        """How many cells have succeeded; -1 while nobody answers."""
        with contextlib.suppress(NoDaemonError):
            return int(self.client.get("/v1/status")["cells"]["by_state"]["succeeded"])
        return -1

    def lag_s(self, requests: int) -> float:
        """The longest that a request took."""
        took = []
        for _ in range(requests):
            began = time.monotonic()
            self.client.get("/healthz")
            took.append(time.monotonic() - began)
        return max(took)

    def flood(self, lines: int) -> None:
        """Requests that are each a line of the log."""
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(self.socket))
            plain.settimeout(PATIENCE_S)
            reader = plain.makefile("rb")
            for number in range(lines):
                verb = (b"pause", b"resume")[number % 2]
                plain.sendall(b"POST /v1/" + verb + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                length = 0
                while (line := reader.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                reader.read(length)

    def metric(self, name: str) -> float:
        """A metric's value."""
        text = b"".join(self.client.stream("/metrics")).decode()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))

    def end(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """Makes a box, and ends its daemons."""
    boxes: list[Box] = []

    def make(**options: Any) -> Box:
        boxes.append(Box(tmp_path, **options))
        return boxes[-1]

    yield make
    for box in boxes:
        box.end()


def fill(descriptor: int) -> int:
    """Make a pipe full; how many bytes that took."""
    os.set_blocking(descriptor, False)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(descriptor, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(descriptor, b"x")
    os.set_blocking(descriptor, True)
    return size


def test_a_full_pipe_that_nobody_reads(made: Callable[..., Box], report: campaign.Report) -> None:
    """The run goes to its end, requests are answered; what was dropped is counted, and said once somebody reads."""
    box = made(log='level = "debug"', points=LINES // 4)
    reader, writer = os.pipe()
    filled = fill(writer)
    daemon = box.start(writer, small_queue=True)
    os.close(writer)
    box.wait_for(lambda: box.succeeded() == 4)
    lag_s = box.lag_s(100)
    # A hostile client makes libraries log; a write of theirs would wait for ever.
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(box.socket))
            plain.sendall(b"\x00no HTTP\r\n\r\n")
            plain.recv(65536)
    dropped = box.metric("boundd_log_lines_dropped_total")
    assert lag_s < LAG_LIMIT_S
    assert dropped > 0
    daemon.send_signal(signal.SIGTERM)
    content = b""
    while data := os.read(reader, 1 << 20):
        content += data
    os.close(reader)
    assert daemon.wait(PATIENCE_S) == 0
    lines = [json.loads(line) for line in content[filled:].splitlines() if line]
    said = sum(line["boundd.dropped_lines"] for line in lines if line["event.action"] == "logs-dropped")
    report(
        "log on a full pipe",
        lines_read=len(lines),
        dropped=int(dropped),
        said_dropped=said,
        lag_ms=f"{lag_s * 1e3:.0f}",
    )
    assert said >= dropped


def test_a_closed_pipe(made: Callable[..., Box]) -> None:
    """EPIPE costs lines and no run; SIGPIPE ends nobody."""
    box = made()
    reader, writer = os.pipe()
    os.close(reader)
    out_reader, out_writer = os.pipe()
    os.close(out_reader)
    daemon = box.start(writer, "--until-idle", stdout=out_writer)
    os.close(writer)
    os.close(out_writer)
    assert daemon.wait(PATIENCE_S) in (0, 1)
    box.start(subprocess.DEVNULL)
    box.wait_for(lambda: box.succeeded() == 4)


def test_stdout_that_nobody_reads_does_not_hold_up_the_run(made: Callable[..., Box]) -> None:
    """`boundd run --until-idle | less`: progress is lines too, and cells come first."""
    box = made()
    reader, writer = os.pipe()
    fill(writer)
    daemon = box.start(subprocess.DEVNULL, "--until-idle", stdout=writer)
    os.close(writer)
    box.wait_for(lambda: len(list(box.folder.glob("state/attempts/*/outcome.json"))) == 4)
    box.wait_for(lambda: (box.folder / "speedup_bounds.json").exists())
    box.wait_for(
        lambda: (box.folder / "speedup_bounds.json").read_text().count('"succeeded"') == 4 or daemon.poll() is not None
    )
    while os.read(reader, 1 << 20):
        pass
    os.close(reader)
    assert daemon.wait(PATIENCE_S) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_log_file_on_a_full_disk(made: Callable[..., Box], tmp_path: Path) -> None:
    """The run goes to its end; once there is room again, the file says how many lines it lacks."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=16", "tmpfs", str(disk)], check=True)
    try:
        box = made(log=f'file = "{disk}/boundd.log"')
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        daemon = box.start(subprocess.DEVNULL)
        box.wait_for(lambda: box.succeeded() == 4)
        assert box.lag_s(20) < LAG_LIMIT_S
        ballast.unlink()
        box.client.post("/v1/pause")
        log = disk / "boundd.log"
        box.wait_for(lambda: "logs-dropped" in log.read_text())
        lines = [json.loads(line) for line in log.read_text().splitlines() if line]
        assert any(line["event.action"] == "run-paused" for line in lines)
        assert sum(line.get("boundd.dropped_lines", 0) for line in lines) > 0
        assert box.metric("boundd_log_lines_dropped_total") > 0
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_subscribers_that_do_not_read(made: Callable[..., Box]) -> None:
    """Event streams and followers that take nothing hold up neither requests nor the run, nor its end."""
    box = made()
    daemon = box.start(subprocess.DEVNULL)
    box.wait_for(lambda: box.succeeded() == 4)
    memory = Path(f"/proc/{daemon.pid}/statm")
    deaf = []
    for _ in range(20):
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(box.socket))
        plain.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        deaf.append(plain)
    before = int(memory.read_text().split()[1])
    box.flood(600)
    assert box.lag_s(20) < LAG_LIMIT_S
    assert (int(memory.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE") < 32 * 1024**2
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE_S) == 0
    for plain in deaf:
        plain.close()
