"""The zygote, with real processes: what becomes of attempts and of it when one of the two is gone."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest

from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.launch.spawner import ShimSpawner
from boundd.ports import LaunchSpec

pytestmark = pytest.mark.anyio

MakeSpec = Callable[..., LaunchSpec]


def zygotes(attempts: Path) -> list[psutil.Process]:
    """The zygote of this folder, and what it forked and has not become anything else, oldest first."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # One that ends while it is looked at; a zombie is none either.
            if str(attempts) in child.cmdline():
                found.append(child)
    return found


async def test_a_killed_zygote_costs_nothing(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """What it started goes on and is waited for; the next attempt gets a new zygote."""
    await launcher.launch(make_spec("sh", "-c", "sleep 0.5; exit 4"))
    first = zygotes(attempts)[0]
    first.kill()
    first.wait()
    await launcher.launch(make_spec("sh", "-c", "exit 5", attempt_id="2"))
    assert launcher.is_alive("1")
    with anyio.fail_after(20):
        assert (await launcher.wait("2")).exit_status == 5
        assert (await launcher.wait("1")).exit_status == 4


async def test_a_shim_whose_zygote_is_gone_is_lost_without_a_wait(
    launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path
) -> None:
    """Nobody can tell how it ended, and nobody is waited for in vain."""
    await launcher.launch(make_spec("sleep", "60"))
    first, shim_pid = zygotes(attempts)[0], json.loads((attempts / "1" / shim.SHIM).read_text())["pid"]
    first.kill()
    first.wait()
    os.kill(shim_pid, signal.SIGKILL)
    with anyio.fail_after(20):
        assert (await launcher.wait("1")).lost == f"its shim (pid {shim_pid}) is gone without an outcome"


async def test_the_zygote_ends_with_its_launcher(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """Closed, it leaves no zygote, and the attempt goes on to its end; closing twice is closing once."""
    await launcher.launch(make_spec("sh", "-c", "sleep 0.5; exit 4"))
    zygote = zygotes(attempts)[0]
    launcher.close()
    launcher.close()
    assert not zygote.is_running()
    assert launcher.is_alive("1")
    with anyio.fail_after(20):
        assert (await launcher.wait("1")).exit_status == 4


async def test_an_attempts_lock_is_nobody_elses(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """Neither the zygote nor the attempt that is forked next holds it: an attempt that has ended is not alive."""
    await launcher.launch(make_spec("sh", "-c", "sleep 0.3"))
    await launcher.launch(make_spec("sleep", "30", attempt_id="2"))
    with anyio.fail_after(20):
        await launcher.wait("1")
    assert not launcher.is_alive("1")
    assert not [file.path for file in zygotes(attempts)[0].open_files() if str(attempts) in file.path]
    await launcher.end("2")
    await launcher.wait("2")


async def test_ctrl_c_is_the_daemons_alone(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """The terminal signals the daemon's group; neither the zygote nor a shim is in it."""
    await launcher.launch(make_spec("sleep", "30"))
    assert all(os.getpgid(process.pid) != os.getpgid(0) for process in zygotes(attempts)[:2])
    await launcher.end("1")
    await launcher.wait("1")


def test_a_zygote_that_is_stuck_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes no requests any more is ended, and the request goes to the next: no launch waits for ever."""
    monkeypatch.setattr("boundd.launch.spawner._TIMEOUT_S", 0.2)
    (tmp_path / "1").mkdir()
    spawner = ShimSpawner(tmp_path)
    reader, writer = os.pipe()

    def request() -> None:
        spawner.start(tmp_path / "1", writer, writer, writer)

    try:
        request()
        stuck = zygotes(tmp_path)[0]
        stuck.send_signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + 60
        while stuck.is_running() and time.monotonic() < deadline_s:
            request()
        assert not stuck.is_running()
        assert spawner.is_up
    finally:
        spawner.close()
        os.close(writer)
        os.close(reader)
