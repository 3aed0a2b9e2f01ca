"""Attempts across an upgrade: shims of the releases before are adopted, and what a later one wrote is not guessed at.

`released/format-N` holds the shim and the zygote as a release had them, to the letter; they are run here. Only files,
the lock and signals must agree: a zygote ends with its daemon.

Seen to fail: with `_SHIM_READERS` and `_OUTCOME_READERS` of boundd/launch/records.py without 1 the released shim's
attempts are never adopted; with a `_reader` that takes any format for 1 (`readers.get(number, readers[1])`) the newer
shim is signalled; with SPEC_FORMAT 2 in boundd/launch/shim/files.py the released shim refuses to start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from boundd.launch import records, shim, spawner
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec

pytestmark = pytest.mark.anyio

MakeSpec = Callable[..., LaunchSpec]
RELEASED = sorted((Path(__file__).parent / "released").glob("format-*"))
TRAPS_TERM = ("sh", "-c", "trap 'echo clean; exit 6' TERM; echo up; while :; do sleep 0.02; done")


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def released(request: pytest.FixtureRequest, attempts: Path, monkeypatch: pytest.MonkeyPatch) -> LocalLauncher:
    """A launcher whose shims are those of a release; closed by the tests, as an upgraded daemon is gone."""
    monkeypatch.setattr(spawner, "_SCRIPT", request.param / "zygote.py")
    return LocalLauncher(attempts)


async def test_a_released_shim_is_adopted_ended_and_heard(
    released: LocalLauncher, launcher: LocalLauncher, make_spec: MakeSpec
) -> None:
    """Its daemon gone, the new launcher finds its processes, ends them and reads their outcome."""
    await released.launch(make_spec(*TRAPS_TERM))
    released.close()
    with anyio.fail_after(60):
        while launcher.log_path("1").read_bytes() != b"up\n":  # noqa: ASYNC110
            await anyio.sleep(0.01)
        record = json.loads((launcher.log_path("1").parent / shim.SHIM).read_text())
        assert launcher.is_alive("1")
        assert {record["pid"], record["worker_pid"]} <= launcher.pids("1")
        await launcher.end("1")
        end = await launcher.wait("1")
    assert (end.exit_status, end.ended_on_request) == (6, True)
    assert launcher.log_path("1").read_bytes().endswith(b"clean\n")
    assert not launcher.is_alive("1")


async def test_a_released_shim_that_ends_by_itself_or_is_killed(
    released: LocalLauncher, launcher: LocalLauncher, make_spec: MakeSpec
) -> None:
    """What ended while no daemon was there is heard; one whose shim was killed is lost, with nothing left."""
    await released.launch(make_spec("sh", "-c", "exit 7"))
    await released.launch(make_spec("sleep", "60", attempt_id="2"))
    released.close()
    pid = json.loads((launcher.log_path("2").parent / shim.SHIM).read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(60):
        assert (await launcher.wait("1")).exit_status == 7
        assert (await launcher.wait("2")).lost == f"its shim (pid {pid}) is gone without an outcome"
    assert not launcher.is_alive("2")


async def test_todays_attempts_run_under_a_released_launcher(
    launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path
) -> None:
    """Going back a release: its reader of shim.json and outcome.json asks for format 1 and the fields it knew."""
    await launcher.launch(make_spec("sh", "-c", "exit 5"))
    with anyio.fail_after(60):
        await launcher.wait("1")
    for name, fields in (
        (shim.SHIM, {"boot_id", "pid", "start_ticks", "worker_pid", "worker_start_ticks"}),
        (shim.OUTCOME, {"exit_status", "signal", "timed_out", "ended_on_request", "start_error", "wall_s"}),
    ):
        value = json.loads((attempts / "1" / name).read_text())
        assert value["format"] == 1
        assert fields <= set(value)


async def test_a_later_release_is_not_guessed_at(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """Alive as long as its lock is held, neither signalled nor taken for dead, said to be so; then lost, quoted."""
    await launcher.launch(make_spec("sleep", "60"))
    record = attempts / "1" / shim.SHIM
    known = record.read_text()
    pid = json.loads(known)["pid"]
    record.write_text(json.dumps({**json.loads(known), "format": 2}))
    next_daemons = LocalLauncher(attempts)
    assert "format 2, known is 1" in next_daemons.why_not_endable("1")
    await next_daemons.end("1")
    with anyio.move_on_after(1) as waited:
        await next_daemons.wait("1")
    assert waited.cancelled_caught
    assert next_daemons.is_alive("1")
    assert shim.stat_of(pid) is not None
    record.write_text(known)
    assert next_daemons.why_not_endable("1") == ""
    await next_daemons.end("1")
    with anyio.fail_after(60):
        await next_daemons.wait("1")
    outcome = attempts / "1" / shim.OUTCOME
    outcome.write_text(json.dumps({**json.loads(outcome.read_text()), "format": 2}))
    with anyio.fail_after(60):
        assert "outcome.json has format 2, known is 1" in (await next_daemons.wait("1")).lost


@pytest.mark.parametrize("number", [True, 1.0, "1", None, 0, 2])
def test_a_format_is_an_integer_that_is_known(tmp_path: Path, number: object) -> None:
    """What only equals a known number in Python is none."""
    (tmp_path / shim.SHIM).write_text(json.dumps({"format": number}))
    with pytest.raises(records.UnknownFormatError):
        records.read_shim(tmp_path)


def test_every_format_that_is_written_has_a_reader_and_a_released_copy() -> None:
    """Whoever raises a format keeps the reader of the one before, and its shim under `released`."""
    assert shim.SHIM_FORMAT in records._SHIM_READERS
    assert shim.OUTCOME_FORMAT in records._OUTCOME_READERS
    assert shim.SPEC_FORMAT in shim.KNOWN_SPEC_FORMATS
    copies = {int(path.name.removeprefix("format-")) for path in RELEASED}
    earlier = {number for number in records._SHIM_READERS if number < shim.SHIM_FORMAT}
    assert copies >= (earlier or {shim.SHIM_FORMAT})


def test_the_released_copy_is_as_it_was() -> None:
    """A copy that is edited proves nothing; a new release gets a new one."""
    sums = (Path(__file__).parent / "released" / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--check", "--quiet"], input=sums, text=True, check=True, cwd=RELEASED[0].parent)
