"""One machine for all the tests of the service: boundd is installed in it, and every test leaves it running."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine import Machine, NoMachineError, why_not

STATE = "/var/lib/boundd"
CONFIG = "/etc/boundd/config.toml"
WORKER = """
import os, pathlib, sys, time
name, state = sys.argv[1], pathlib.Path("/var/lib/boundd")
with (state / "ran").open("a") as ran:
    ran.write(f"{name} {os.getpid()}\\n")
while not (state / f"go-{name}").exists():
    time.sleep(0.05)
print("speedup: 1.50")
"""
"""Says that it runs, and ends when it is told to."""


class Service:
    """boundd as a service of the machine. Its cells are workers that wait to be told to end."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.names = ["first"]

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """What systemctl says."""
        return self.machine.run("systemctl", *arguments, check=check).stdout.strip()

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.systemctl("show", "boundd", "--value", "-p", name)

    @property
    def main_pid(self) -> int:
        """The daemon's, in the machine."""
        return int(self.show("MainPID"))

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """What boundctl says, to the machine's root."""
        program = str(Path(sys.prefix) / "bin/boundctl")
        return self.machine.run(program, *arguments, check=check).stdout

    def status(self) -> dict[str, Any]:
        """`boundctl status --json`."""
        answer: dict[str, Any] = json.loads(self.ctl("status", "--json"))
        return answer

    def write_config(self, extra: str = "") -> None:
        """A config whose cells are `names`, on two devices that are not there."""
        devices = '[[devices.simulated]]\nname = "Simulated"\nmemory = "24GiB"\n' * 2
        self.machine.path(CONFIG).write_text(
            f'[devices]\nbackend = "simulated"\n{devices}'
            f"[matrix.axes]\nname = {json.dumps(self.names)}\n"
            '[worker]\ncommand = ["{python}", "worker.py", "{name}"]\nresult = "stdout"\ngrace = "1s"\n'
            '[retry]\nbackoff = "100ms"\n' + extra
        )

    def begin(self, name: str) -> int:
        """A cell more, by a reload; the pid of its worker once it runs."""
        self.names.append(name)
        self.write_config()
        self.systemctl("reload", "boundd")
        self.wait_for(lambda: name in self.runs(), f"{name} to run")
        return self.runs()[name][0]

    def runs(self) -> dict[str, list[int]]:
        """The pids of all workers that ever ran, by cell."""
        found: dict[str, list[int]] = {}
        path = self.machine.path(f"{STATE}/ran")
        for line in path.read_text().splitlines() if path.exists() else ():
            name, pid = line.split()
            found.setdefault(name, []).append(int(pid))
        return found

    def let_end(self, name: str) -> None:
        """Tell a worker to end, and wait for its one result."""
        self.machine.path(f"{STATE}/go-{name}").touch()
        self.wait_for(lambda: self.cell(name)["state"] == "succeeded", f"the result of {name}")

    def cell(self, name: str) -> dict[str, Any]:
        """A cell, as `boundctl show` has it."""
        answer: dict[str, Any] = json.loads(self.ctl("show", name, "--json"))
        return answer

    def is_alive(self, pid: int) -> bool:
        """Whether a process of the machine runs, and is not just a zombie."""
        try:
            return self.machine.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """The service's entries in the journal."""
        self.machine.run("journalctl", "--sync")
        said = self.machine.run("journalctl", "-u", "boundd", "-o", "json", "--no-pager", *matches).stdout
        return [json.loads(line) for line in said.splitlines()]

    def said(self, action: str) -> int:
        """How often an action has been logged."""
        return len(self.journal(f"BOUNDD_ACTION={action}"))

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Wait until something is so; a failure shows the end of the journal."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                log = self.machine.run("journalctl", "--no-pager", "-o", "cat", "-n", "40", check=False).stdout
                pytest.fail(f"waited for {what} in vain:\n{self.systemctl('status', 'boundd', check=False)}\n{log}")
            time.sleep(0.05)

    def fill_disk(self) -> Path:
        """Leave no room in the state folder; the file that has all of it."""
        filler = self.machine.path(f"{STATE}/filler")
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        return filler

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal a process of the machine."""
        self.machine.run("kill", f"-{number.value}", str(pid))


@pytest.fixture(scope="package")
def machine() -> Iterator[Machine]:
    """A booted machine."""
    reason = why_not()
    if reason:
        pytest.skip(f"a machine run by systemd: {reason}")
    try:
        with Machine() as booted:
            yield booted
    except NoMachineError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="package")
def installed(machine: Machine) -> Service:
    """boundd installed by its own command, with a config; not started yet."""
    service = Service(machine)
    machine.run(sys.executable, "-m", "boundd", "install-service")
    machine.path("/etc/boundd").mkdir(exist_ok=True)
    machine.path("/etc/boundd/worker.py").write_text(WORKER)
    service.write_config()
    return service


@pytest.fixture(scope="package")
def service(installed: Service) -> Service:
    """boundd, started: `systemctl start` returned, so it is ready."""
    installed.machine.path("/etc/systemd/system/boundd.service.d").mkdir()
    quick = installed.machine.path("/etc/systemd/system/boundd.service.d/quick.conf")
    quick.write_text("[Service]\nRestartSec=200ms\n")
    installed.systemctl("daemon-reload")
    installed.systemctl("start", "boundd", check=False)
    installed.wait_for(lambda: installed.show("ActiveState") == "active", "boundd to start", timeout_s=20)
    return installed
