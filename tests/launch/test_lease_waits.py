"""Waiting for a device's lease doesn't count towards a deadline: the shim, the kernel's list, and real processes."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path

import anyio
import pytest

from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.protocol.lease import DeviceLease, waiting_pids
from tests.launch.conftest import MakeSpec

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks"),
]

ROOT = Path(__file__).parents[2]
TIMES_AFTER_WAITING = """
import os, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from boundd.protocol.lease import DeviceLease
if sys.argv[2:] == ["below"]:
    sys.exit(subprocess.run([sys.executable, __file__, sys.argv[1]]).returncode)
with DeviceLease(Path(os.environ["BOUNDD_LEASE"])).exclusive():
    print("had it", flush=True)
"""
"""Waits for the lease, itself or in a process below it, and ends once it has had it."""
WAITS_FOR_ITSELF = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from boundd.protocol.lease import DeviceLease
with DeviceLease(Path(os.environ["BOUNDD_LEASE"])).exclusive():
    if len(sys.argv) == 2:
        subprocess.run([sys.executable, __file__, sys.argv[1], "below"])
"""
"""A worker that deadlocks with its own child."""


class Waiter:
    """Starts a worker that wants a lease which this process holds."""

    def __init__(self, launcher: LocalLauncher, make_spec: MakeSpec, folder: Path) -> None:
        self.launcher = launcher
        self._make_spec = make_spec
        self.lease_folder = folder / "lease"
        self._script = folder / "worker.py"

    async def launch(self, text: str, *arguments: str, timeout_s: float) -> None:
        """Start it as attempt 1."""
        self._script.write_text(text)
        env = {"PATH": os.environ["PATH"], "BOUNDD_LEASE": str(self.lease_folder)}
        argv = (sys.executable, str(self._script), str(ROOT), *arguments)
        await self.launcher.launch(self._make_spec(*argv, env=env, timeout_s=timeout_s))

    async def until_it_waits(self) -> None:
        """Return once the kernel lists a waiter."""
        with anyio.fail_after(20):
            while not waiting_pids(self.lease_folder):  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.fixture
def waiter(launcher: LocalLauncher, make_spec: MakeSpec, tmp_path: Path) -> Waiter:
    """A launcher of waiting workers."""
    return Waiter(launcher, make_spec, tmp_path)


@pytest.mark.parametrize("where", [(), ("below",)], ids=["the worker", "a process below it"])
async def test_waiting_puts_the_deadline_off(waiter: Waiter, where: tuple[str, ...]) -> None:
    """A worker that waits for longer than its timeout isn't ended, has the lease, and its outcome says how long.

    A shim that counts the waiting ends it: `timed_out` (seen by letting `LeaseWatch.look` count nothing).
    """
    lease = DeviceLease(waiter.lease_folder)
    with lease.exclusive():
        await waiter.launch(TIMES_AFTER_WAITING, *where, timeout_s=2.0)
        await waiter.until_it_waits()
        await anyio.sleep(3.0)
        assert waiter.launcher.is_alive("1")
    end = await waiter.launcher.wait("1")
    lease.close()
    assert (end.exit_status, end.timed_out) == (0, False)
    assert end.lease_waited_s is not None
    assert end.wall_s is not None
    assert 2.5 <= end.lease_waited_s <= end.wall_s
    outcome = json.loads((waiter.launcher.results_path("1").parent / shim.OUTCOME).read_text())
    assert outcome["lease_waited_s"] == end.lease_waited_s


async def test_what_isnt_waiting_is_held_to_its_deadline(waiter: Waiter) -> None:
    """With a lease that nobody holds, an idle worker is ended on time, and has waited for nothing."""
    await waiter.launch("import time; time.sleep(60)", timeout_s=0.5)
    end = await waiter.launcher.wait("1")
    assert (end.timed_out, end.lease_waited_s) == (True, 0.0)


async def test_who_waits_for_himself_is_held_to_his_deadline(waiter: Waiter) -> None:
    """A worker that holds the lease while its own child waits for it would wait for ever; its deadline ends it.

    Without looking at the holders, the deadline would be put off until the end of days, and this test with it.
    """
    await waiter.launch(WAITS_FOR_ITSELF, timeout_s=2.0)
    await waiter.until_it_waits()
    with anyio.fail_after(60):
        end = await waiter.launcher.wait("1")
    assert end.timed_out


async def test_a_worker_without_a_lease_has_waited_for_none(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Its outcome says None, and not 0."""
    await launcher.launch(make_spec("true"))
    assert (await launcher.wait("1")).lease_waited_s is None


def test_the_kernels_list_is_read_by_inode_and_state() -> None:
    """Waiters and holders of these files alone, in the forms that kernels write."""
    text = b"""1: POSIX  ADVISORY  READ 10 fd:00:77 0 EOF
1: -> POSIX  ADVISORY  WRITE 11 fd:00:77 0 EOF
1:  -> POSIX  ADVISORY  WRITE 12 00:1f:78 0 EOF
2: FLOCK  ADVISORY  WRITE 13 fd:00:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fd:00:77 0 EOF
4: POSIX  ADVISORY  WRITE 15 fd:00:771 0 EOF
5: -> POSIX  ADVISORY  WRITE 16 fd:00:7 0 EOF
6: OFDLCK ADVISORY  WRITE -1 fd:00:77 0 EOF
7: LEASE  ACTIVE    READ 17 fd:00:77 0 EOF

nonsense
"""
    assert shim.lease_locks(text, {b"77", b"78"}) == ({11, 12}, {10})
    assert shim.lease_locks(b"", {b"77"}) == (set(), set())


def test_a_look_counts_the_time_around_it(tmp_path: Path) -> None:
    """Waiting seen once counts the periods before and after it, and a long sleep between two looks counts as two."""
    lease = tmp_path / "lease"
    DeviceLease(lease).close()
    watch = shim.LeaseWatch(str(lease), 100.0, 1000.0)
    assert watch.due_s == 1001.0
    watch.look(1001.0)
    assert watch.waited_s == 0.0
    held = os.open(lease / "work", os.O_RDWR)
    fcntl.lockf(held, fcntl.LOCK_EX)
    child = _child_that_waits(lease / "work")
    try:
        _until_listed(lease)
        watch.look(1002.0)
        assert watch.waited_s == 1.0
        watch.look(1500.0)
        assert watch.waited_s == 3.0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    watch.look(1501.0)
    watch.look(1502.0)
    assert watch.waited_s == 4.0
    os.close(held)


def _child_that_waits(path: Path) -> int:
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
        os._exit(0)
    return pid


def _until_listed(lease: Path) -> None:
    for _ in range(2000):
        if waiting_pids(lease):
            return
        time.sleep(0.01)
    raise TimeoutError
