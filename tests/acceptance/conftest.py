"""A config in a temporary folder, and the real daemon as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

WORKER = """
import argparse, json, os, sys, time
parser = argparse.ArgumentParser()
for name in ("pipe", "sched", "steps", "search_targets", "num_samples", "batch_size"):
    parser.add_argument("--" + name)
arguments = parser.parse_args()
"""
"""The head of every script that stands in for somebody's own."""


class Box:
    """A folder with a config, in which daemons are started one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.state_dir = folder / "state"
        self.export_path = folder / "speedup_bounds.json"
        self.daemons: list[subprocess.Popen[str]] = []

    def write(self, script: str, *, extra: str = "", axes: str = 'method = ["tome"]', timeout: str = "60s") -> None:
        """A config whose worker is this script, with INTERFACE's options, in the way of somebody's own script."""
        (self.folder / "search.py").write_text(WORKER + script)
        self.config.write_text(f"""
[daemon]
state_dir = "state"
[devices]
backend = "cpu"
[matrix.axes]
model = ["SD1.5"]
scheduler = ["DDIM"]
steps = [20]
{axes}
[matrix.constants]
num_samples = 8
batch_size = 4
tolerance = 0.02
[worker]
command = ["{{python}}", "search.py", "--pipe", "{{model}}", "--sched", "{{scheduler}}", "--steps", "{{steps}}",
           "--search_targets", "{{method}}", "--num_samples", "{{num_samples}}", "--batch_size", "{{batch_size}}"]
result = "stdout"
timeout = "{timeout}"
grace = "1s"
[retry]
backoff = "200ms"
{extra}
""")

    def start(self, *options: str) -> subprocess.Popen[str]:
        """`boundd run` on this config; its JSON logs go to a file."""
        log = (self.folder / "daemon.log").open("a")
        command = [sys.executable, "-m", "boundd", "run", "--config", str(self.config), "--log-format", "json"]
        daemon = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        log.close()
        self.daemons.append(daemon)
        return daemon

    def run(self, *options: str, timeout_s: float = 120) -> tuple[int, str]:
        """Run to idle; exit status and standard output."""
        daemon = self.start("--until-idle", *options)
        output, _ = daemon.communicate(timeout=timeout_s)
        return daemon.returncode, output

    def log(self) -> list[dict[str, Any]]:
        """Every line that daemons logged here. What is not JSON fails the test."""
        return [json.loads(line) for line in (self.folder / "daemon.log").read_text().splitlines()]

    def export(self) -> dict[str, dict[str, Any]]:
        """The export's cells, by label."""
        document = json.loads(self.export_path.read_text())
        assert document["format"] == "boundd/1"
        return {cell["label"]: cell for cell in document["cells"]}

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`boundctl` on this box's socket."""
        return subprocess.run(
            [sys.executable, "-m", "boundd.cli.boundctl", *arguments],
            env={**os.environ, "BOUNDD_SOCKET": str(self.state_dir / "boundd.sock")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until something is so; a failure shows the daemon's log."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, (self.folder / "daemon.log").read_text()[-3000:]
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started for this box."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()) or process.cwd() == str(self.folder):
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.pid != os.getpid() and p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A box whose processes are gone at the end, whatever the test did."""
    made = Box(tmp_path)
    yield made
    for daemon in made.daemons:
        if daemon.poll() is None:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()
    for process in made.processes():
        process.kill()
