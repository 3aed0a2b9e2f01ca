"""A shim that waits for the disk: it goes on trying, and is not in the way of whoever wants it gone.

Nothing of the attempt lives any more; what is left is a shim whose disk doesn't take the log or the outcome
(`diskfault.c` makes the calls fail, for as long as a test wants). Told to end, it tries on for its grace period and
then ends with a status of its own. Seen to fail:

- `Shim._pause` without what is below `if self._give_up_at_s is not None`: it waits for the hour, whoever asks.
- `_pause` without `+ self._grace_s`: an outcome that the disk would have taken in time is lost.
- `output_lost` of the outcome always False, or `_verdict` without `_output_lost`: an output that isn't there passes for
  one without a result, which the cell pays for.
- `_become_shim` of boundd/launch/zygote.py without `except shim.GaveUpError`, `_why_lost` without GAVE_UP_MESSAGE: the
  reason is not reported.
- `is_folder_gone` of boundd/launch/shim/files.py always False: a shim on a disk that is full and was unmounted under
  its feet lives for an hour after its daemon. Its arguments are the zygote's, for which it has been taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec, ProcessEnd
from tests.faults.disk import CONTROL_VARIABLE, Disk, Point

pytestmark = pytest.mark.anyio
PATIENCE_S = 120.0
FOR_EVER = 1 << 40
LONG_S = 600.0


@pytest.fixture
def disk(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Makes calls fail in what is started from here on: the zygote, and with it the shims."""
    control = tmp_path / "control"
    control.write_bytes(bytes(4096))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv(CONTROL_VARIABLE, str(control))
    return Disk()


def signal_shims(attempts: Path, number: int) -> None:
    """Signal the shims that live."""
    for record in attempts.glob("*/shim.json"):
        known = json.loads(record.read_text())
        pidfd = shim.open_verified(known["pid"], known["start_ticks"])
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
            os.close(pidfd)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    """A launcher; a shim that a failed test left is killed."""
    made = LocalLauncher(tmp_path / "attempts")
    yield made
    made.close()
    signal_shims(tmp_path / "attempts", signal.SIGKILL)


def spec(launcher: LocalLauncher, script: str, *, grace_s: float) -> LaunchSpec:
    """An attempt of a shell script."""
    results = launcher.results_path("1")
    env = {"PATH": "/usr/bin:/bin", "BOUNDD_RESULTS": str(results)}
    return LaunchSpec("1", ("/bin/sh", "-c", script), env, Path("/"), LONG_S, grace_s)


async def until(true: Callable[[], object], what: str) -> None:
    """Wait for something to be true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s, what
        await anyio.sleep(0.01)


async def told_to_end(launcher: LocalLauncher) -> ProcessEnd:
    """How it ends after it was told to."""
    await launcher.end("1")
    with anyio.fail_after(PATIENCE_S):
        return await launcher.wait("1")


def no_outcome(launcher: LocalLauncher) -> tuple[Path, Point]:
    """A disk on which no outcome is ever synced."""
    return launcher.results_path("1").with_name("outcome.json"), Point("", "fsync", 1, "EIO", FOR_EVER)


async def test_told_to_end_it_gives_up_the_outcome(launcher: LocalLauncher, disk: Disk) -> None:
    """Lost, with the reason, in words that a daemon which did not start it finds too; nothing is left."""
    with disk.failing(*no_outcome(launcher)):
        await launcher.launch(spec(launcher, "exit 5", grace_s=0.3))
        await until(lambda: disk.injected > 1, "it tries again")
        end = await told_to_end(launcher)
    known = json.loads(launcher.results_path("1").with_name("shim.json").read_text())
    words = "it was told to end before the disk took its outcome: [Errno 5] Input/output error"
    assert end == ProcessEnd(lost=f"its shim (pid {known['pid']}) ended with status {shim.GAVE_UP}: {words}")
    assert not launcher.is_alive("1")
    another = LocalLauncher(launcher.results_path("1").parents[1])
    assert (await another.wait("1")).lost == f"its shim (pid {known['pid']}) is gone without an outcome: {words}"


async def test_the_words_are_the_same_where_the_disk_takes_none(launcher: LocalLauncher, disk: Disk) -> None:
    """A disk that takes no outcome takes no last words either; the status says what happened."""
    folder = launcher.results_path("1").parent
    with disk.failing(*no_outcome(launcher)):
        await launcher.launch(spec(launcher, "exit 5", grace_s=0.3))
        await until(lambda: disk.injected > 1, "it tries again")
        # What is said goes nowhere: the shim has the file open, and nobody finds it any more.
        (folder / "shim.log").unlink()
        end = await told_to_end(launcher)
    assert end.lost.endswith(f"ended with status {shim.GAVE_UP}: {shim.GAVE_UP_MESSAGE}")


async def test_told_to_end_it_goes_on_trying_for_its_grace(launcher: LocalLauncher, disk: Disk) -> None:
    """A disk that is well again in time takes the outcome, which is the worker's own: it was not ended on request."""
    with disk.failing(*no_outcome(launcher)):
        await launcher.launch(spec(launcher, "exit 5", grace_s=LONG_S))
        await until(lambda: disk.injected > 1, "it tries again")
        await launcher.end("1")
        before = disk.injected
        await until(lambda: disk.injected > before + 1, "it still tries")
        assert launcher.is_alive("1")
    with anyio.fail_after(PATIENCE_S):
        end = await launcher.wait("1")
    assert (end.exit_status, end.ended_on_request, end.lost) == (5, False, "")


async def test_one_that_was_told_before_has_its_grace_too(launcher: LocalLauncher, disk: Disk) -> None:
    """A worker that was ended on request, and then the disk fails: nobody has to ask a second time."""
    with disk.failing(*no_outcome(launcher)):
        await launcher.launch(spec(launcher, "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done", grace_s=1.0))
        await until(lambda: launcher.log_path("1").read_bytes() == b"up\n", "it runs")
        end = await told_to_end(launcher)
        assert disk.injected
    assert f"status {shim.GAVE_UP}" in end.lost


async def test_an_output_that_is_given_up_is_said_to_be_lost(launcher: LocalLauncher, disk: Disk) -> None:
    """The log waits for the disk as well, and what follows it need not be lost with it: the outcome is written."""
    log = launcher.log_path("1")
    with disk.failing(log, Point("", "pwrite", 1, "ENOSPC", FOR_EVER)):
        await launcher.launch(spec(launcher, "echo speedup: 1.5", grace_s=0.3))
        await until(lambda: disk.injected > 1, "it tries again")
        assert launcher.outcome("1") is None
        end = await told_to_end(launcher)
    assert (end.exit_status, end.lost, end.output_lost) == (0, "", True)
    assert "speedup" not in log.read_text()


async def test_an_output_that_got_to_the_disk_is_not(launcher: LocalLauncher, disk: Disk) -> None:
    """Told to end or not: once the disk takes the log, all is well."""
    log = launcher.log_path("1")
    with disk.failing(log, Point("", "pwrite", 1, "ENOSPC", FOR_EVER)):
        await launcher.launch(spec(launcher, "echo speedup: 1.5", grace_s=LONG_S))
        await until(lambda: disk.injected > 1, "it tries again")
        await launcher.end("1")
    with anyio.fail_after(PATIENCE_S):
        end = await launcher.wait("1")
    assert (end.exit_status, end.output_lost) == (0, False)
    assert log.read_text() == "speedup: 1.5\n"


async def test_whose_folder_is_out_of_reach_waits_for_nothing(
    launcher: LocalLauncher, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A full disk that is unmounted under its feet, its daemon gone: nobody would find the outcome in the hour."""
    attempts, go = tmp_path / "attempts", tmp_path / "go"
    attempts.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", attempts]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:  # noqa: ASYNC221
        pytest.skip("needs to mount a file system")
    unmount = ["umount", "-l", attempts]
    request.addfinalizer(lambda: subprocess.run(unmount, capture_output=True))
    await launcher.launch(spec(launcher, f"while [ ! -e {go} ]; do sleep 0.02; done; echo up", grace_s=LONG_S))
    known = json.loads((attempts / "1" / "shim.json").read_text())
    free = os.statvfs(attempts)
    (attempts / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
    assert psutil.Process(known["pid"]).name() == "boundd-shim"
    pidfd = shim.open_verified(known["pid"], known["start_ticks"])
    assert pidfd is not None
    go.touch()
    await until(lambda: shim.stat_of(known["worker_pid"]) is None, "the worker ends, and its shim waits for the disk")
    launcher.close()
    subprocess.run(unmount, check=True)  # noqa: ASYNC221
    try:
        with anyio.fail_after(PATIENCE_S):
            await anyio.wait_readable(pidfd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


CONFIG = """
[daemon]
state_dir = "{folder}/state"
socket = "{folder}/socket"
export = "{folder}/bounds.json"
disk_reserve = "0MiB"
[devices]
backend = "simulated"
[[devices.simulated]]
name = "Fake 24"
memory = "24GiB"
[matrix.axes]
n = [1]
[worker]
result = "stdout"
command = ["/bin/sh", "-c", "while [ ! -e $0/go ]; do sleep 0.02; done; echo speedup: 1.{{n}}", "{folder}"]
timeout = "10m"
grace = "1s"
"""


class Daemon:
    """A real daemon of one cell, whose worker prints its result, once it is let go, and ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.attempts = folder, folder / "log", folder / "state" / "attempts"
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Run one."""
        command = [sys.executable, "-m", "boundd", "run", "--config", self.folder / "config.toml", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, "--log-format", "json"], stdout=log, stderr=log)

    def said(self, action: str) -> list[dict[str, object]]:
        """The lines of an action in the log."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line.get("event.action") == action]

    async def running(self) -> Path:
        """The folder of its attempt, once that runs."""
        await until(lambda: self.said("attempt-started"), "a worker runs")
        return next(self.attempts.iterdir())

    async def ended(self) -> int:
        """Its exit code."""
        process = self.process
        assert process is not None
        with anyio.fail_after(PATIENCE_S):
            while process.poll() is None:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        return int(process.returncode)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon, killed if a failed test left it, with the shim that it may have."""
    made = Daemon(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    signal_shims(made.attempts, signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "kind", "error"), [("output.log", "pwrite", "ENOSPC"), ("outcome.json", "fsync", "EIO")]
)
async def test_a_daemon_that_ends_its_workers_is_not_held_up(
    name: str, kind: str, error: str, daemon: Daemon, disk: Disk
) -> None:
    """The attempt is lost at nobody's cost, and its cell measured again by the next daemon."""
    daemon.start()
    with disk.failing(await daemon.running() / name, Point("", kind, 1, error, FOR_EVER)):
        (daemon.folder / "go").touch()
        await until(lambda: disk.injected > 1, "its shim tries again")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGINT)
        assert await daemon.ended() == 0
    assert [line["boundd.outcome"] for line in daemon.said("attempt-ended")] == ["lost"]
    daemon.start("--until-idle")
    assert await daemon.ended() == 0
    assert [line["boundd.outcome"] for line in daemon.said("attempt-ended")] == ["lost", "succeeded"]
    cell = json.loads((daemon.folder / "bounds.json").read_text())["cells"][0]
    assert (cell["state"], cell["max_speedup"], cell["attempts"]) == ("succeeded", 1.1, 2)


async def test_a_shim_that_somebody_else_ends_costs_the_cell_nothing(daemon: Daemon, disk: Disk) -> None:
    """As a machine that is shut down would do: the daemon declares the attempt lost, and tries the cell again."""
    daemon.start("--until-idle")
    with disk.failing(await daemon.running() / "outcome.json", Point("", "fsync", 1, "EIO", FOR_EVER)):
        (daemon.folder / "go").touch()
        await until(lambda: disk.injected > 1, "its shim tries again")
        signal_shims(daemon.attempts, signal.SIGTERM)
        await until(lambda: daemon.said("attempt-ended"), "the attempt ends")
    assert await daemon.ended() == 0
    first, second = daemon.said("attempt-ended")
    assert (first["boundd.outcome"], second["boundd.outcome"]) == ("lost", "succeeded")
    assert shim.GAVE_UP_MESSAGE in str(first["boundd.error_message"])
    assert "lost: retrying now" in str(daemon.said("cell-retrying")[0]["message"])
