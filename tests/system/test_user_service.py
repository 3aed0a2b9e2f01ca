"""The unit of a user who has no root, in a user's own systemd."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine

pytestmark = pytest.mark.timeout(120)

HOME = "/home/alice"
RUNTIME = "/run/user/4242"
WORKER = """
import os, pathlib, time
pathlib.Path("pid").write_text(f"{os.getpid()}\\n")
while not pathlib.Path("go").exists():
    time.sleep(0.05)
print("speedup: 1.50")
"""


class Alice:
    """A user of the machine with a systemd of her own."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as her."""
        environment = f"HOME={HOME}", f"XDG_RUNTIME_DIR={RUNTIME}", "PATH=/usr/bin:/bin", "LANG=C.UTF-8"
        return self.machine.run("setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "env", "-i", *environment,
                                *command, check=check)  # fmt: skip

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """What her systemctl says."""
        return self.run("systemctl", "--user", *arguments, check=check).stdout.strip()


@pytest.fixture(scope="module")
def alice(machine: Machine) -> Iterator[Alice]:
    """Her account, her manager, and a config in her home."""
    user = Alice(machine)
    machine.run("useradd", "--uid", "4242", "--create-home", "--home-dir", HOME, "alice")
    machine.run("install", "-d", "-o", "alice", "-m", "700", RUNTIME)
    # Where this checkout's Python is in root's home: the machine's is a copy that nobody needs afterwards.
    for path in (Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]):
        for folder in path.parents:
            machine.run("chmod", "o+x", str(folder), check=False)
    if user.run(sys.executable, "-c", "import boundd", check=False).returncode:
        pytest.skip(f"another user can't read {sys.prefix}")
    machine.run(
        *("systemd-run", "--unit=alice", "--uid=alice", "--property=Type=notify", "--property=Delegate=yes"),
        *(f"--setenv=HOME={HOME}", f"--setenv=XDG_RUNTIME_DIR={RUNTIME}", "/usr/lib/systemd/systemd", "--user"),
    )
    folder = f"{HOME}/.config/boundd"
    user.run("mkdir", "-p", folder)
    config = (
        '[devices]\nbackend = "simulated"\n[[devices.simulated]]\nname = "S"\nmemory = "1GiB"\n[matrix.axes]\n'
        'name = ["one"]\n[worker]\ncommand = ["{python}", "worker.py"]\nresult = "stdout"\n'
    )
    for name, text in (("config.toml", config), ("worker.py", WORKER)):
        user.run("sh", "-c", f"printf %s {shlex.quote(text)} >{folder}/{name}")
    yield user
    machine.run("systemctl", "stop", "alice", check=False)


def test_a_service_without_root(alice: Alice) -> None:
    """Installed, ready, found by boundctl, restarted under a running worker, and uninstalled."""
    boundd, boundctl = (str(Path(sys.prefix) / "bin" / name) for name in ("boundd", "boundctl"))
    shown = alice.run(boundd, "install-service", "--user", "--dry-run").stdout
    assert f"write   {HOME}/.config/systemd/user/boundd.service" in shown
    assert not alice.machine.path(f"{HOME}/.config/systemd/user/boundd.service").exists(), "--dry-run wrote it"
    said = alice.run(boundd, "install-service", "--user").stdout
    assert "loginctl enable-linger" in said
    started = alice.run("systemctl", "--user", "start", "boundd", check=False)
    assert started.returncode == 0, alice.machine.run("journalctl", "-n", "40", "-o", "cat").stdout
    before = alice.systemctl("show", "boundd", "--value", "-p", "MainPID")
    pid = alice.machine.path(f"{HOME}/.config/boundd/pid")
    deadline_s = time.monotonic() + 30
    while not (pid.exists() and pid.read_text().endswith("\n")):
        assert time.monotonic() < deadline_s, alice.systemctl("status", "boundd", check=False)
        time.sleep(0.05)
    worker = alice.machine.path(f"/proc/{pid.read_text().strip()}")
    cgroup = (worker / "cgroup").read_text()
    assert "/boundd.service/attempt-" in cgroup
    alice.systemctl("restart", "boundd")
    assert alice.systemctl("show", "boundd", "--value", "-p", "MainPID") != before
    assert b"worker.py" in (worker / "cmdline").read_bytes()
    alice.run("touch", f"{HOME}/.config/boundd/go")
    assert alice.run(boundctl, "wait").returncode == 0
    exported = json.loads(alice.machine.path(f"{HOME}/.local/state/boundd/speedup_bounds.json").read_text())
    assert [(cell["label"], cell["attempts"]) for cell in exported["cells"]] == [("one", 1)]
    alice.systemctl("stop", "boundd")
    alice.run(boundd, "uninstall-service", "--user")
    assert not alice.machine.path(f"{HOME}/.config/systemd/user/boundd.service").exists()
