"""Attempts in cgroups of their own, in the machine's real cgroup v2 hierarchy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from boundd.launch import cgroups, processes, shim
from boundd.launch.cgroups import CgroupError, Cgroups
from boundd.launch.local import LocalLauncher
from boundd.launch.records import host_memory_text
from boundd.ports import LaunchError, LaunchSpec, ProcessEnd
from tests.launch.test_local import has_pid, runs, until

pytestmark = pytest.mark.anyio

MakeSpec = Callable[..., LaunchSpec]
ESCAPE = """
import fcntl, os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 1000)
    os.environ.clear()
    with open("escaped", "w") as file:
        file.write(str(os.getpid()))
    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"], {})
time.sleep(60)
"""
"""Leaves a process that holds no lock, is in no session of the worker's and has nothing of it in its environment."""


def mounted() -> Path:
    """Where cgroup v2 is mounted and can be written to; skips where it isn't."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(",") and os.access(mount, os.W_OK):
            return Path(mount)
    pytest.skip("no cgroup v2 hierarchy that can be written to")


@pytest.fixture
def base() -> Iterator[Path]:
    """A cgroup that is delegated to us as systemd delegates one."""
    path = mounted() / f"boundd-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error.strerror}")
    os.setxattr(path, "user.delegate", b"1")
    yield path
    for child in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        until(lambda child=child: not cgroups.kill(child))  # type: ignore[misc]
        shim.remove_cgroup(str(child))
    until(lambda: not cgroups.kill(path))
    shim.remove_cgroup(str(path))
    assert not path.exists()


@pytest.fixture
def grouped(attempts: Path, base: Path) -> Iterator[LocalLauncher]:
    """A launcher whose attempts have cgroups, without controllers."""
    launcher = LocalLauncher(attempts, Cgroups(base, frozenset(), "none here"))
    yield launcher
    launcher.close()


def cgroups_below(base: Path) -> list[Path]:
    """The attempts' cgroups."""
    return [path for path in base.iterdir() if path.is_dir()]


def proc_of(tmp_path: Path, cgroup: str) -> Path:
    """A /proc in which this process is in `cgroup` of the real hierarchy."""
    own = tmp_path / "proc/self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(f"1:name=systemd:/\n0::{cgroup}\n")
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    (own / "mountinfo").write_text("\n".join(lines[:1]) + "\n")
    return own.parent


async def test_a_worker_and_its_children_are_in_a_cgroup_that_goes(
    grouped: LocalLauncher, make_spec: MakeSpec, base: Path, tmp_path: Path
) -> None:
    """The shim isn't in it, so that it can kill all of it and tell how it went; nothing of it stays."""
    await grouped.launch(make_spec("sh", "-c", "sleep 60 & echo $! >child; wait"))
    until(lambda: has_pid(tmp_path / "child"))
    (cgroup,) = cgroups_below(base)
    inside = {int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()}
    assert int((tmp_path / "child").read_text()) in inside
    assert len(inside) == 2
    assert inside < grouped.pids("1")
    await grouped.end("1")
    with anyio.fail_after(20):
        assert (await grouped.wait("1")).ended_on_request
    until(lambda: not cgroup.exists())


async def test_what_escapes_everything_else_does_not_escape_its_cgroup(
    grouped: LocalLauncher, make_spec: MakeSpec, tmp_path: Path, attempts: Path
) -> None:
    """Its shim killed, a double-forked child without lock, session and environment lived on for ever before."""
    await grouped.launch(make_spec(sys.executable, "-c", ESCAPE))
    until(lambda: has_pid(tmp_path / "escaped"))
    escaped = int((tmp_path / "escaped").read_text())
    record = grouped._record("1")
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not runs(record.pid))
    assert runs(escaped), "nothing but the cgroup ties it to the attempt"
    stats = processes.leftovers(attempts / "1" / shim.LOCK, attempts / "1" / "results.jsonl", record)
    assert escaped not in {stat.pid for stat in stats}
    with anyio.fail_after(20):
        assert (await grouped.wait("1")).lost
    until(lambda: not runs(escaped))
    until(lambda: not Path(record.cgroup).exists())


async def test_without_a_cgroup_all_is_as_before(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """No delegated cgroup is no error, unless a limit was promised."""
    await launcher.launch(make_spec("true"))
    with anyio.fail_after(20):
        end = await launcher.wait("1")
    assert (end.exit_status, end.host_peak_bytes, end.host_memory) == (0, None, "")
    with pytest.raises(LaunchError, match="no limit of memory"):
        await launcher.launch(make_spec("true", attempt_id="2", memory_max_bytes=1024**3))


def test_a_daemon_in_a_subgroup_uses_the_delegated_one(base: Path, tmp_path: Path) -> None:
    """DelegateSubgroup=: the controllers that there are can be turned on, because the daemon isn't in their way."""
    (base / "daemon").mkdir()
    found = cgroups.find(proc_of(tmp_path, f"/{base.name}/daemon"))
    assert found.base == base
    assert found.controllers == frozenset((base / "cgroup.subtree_control").read_text().split()) & {"memory", "pids"}
    available = set((base / "cgroup.controllers").read_text().split())
    assert found.controllers == available & {"memory", "pids"}
    assert bool(found.why_not) == (found.controllers != {"memory", "pids"})


def test_a_daemon_in_the_delegated_one_leaves_its_controllers_off(base: Path, tmp_path: Path) -> None:
    """With them on, systemd could not put the next daemon there (EBUSY, seen as status 219/CGROUP)."""
    found = cgroups.find(proc_of(tmp_path, f"/{base.name}"))
    assert (found.base, found.controllers) == (base, frozenset())
    assert "DelegateSubgroup" in found.lacking(memory_max_bytes=1, pids_max=0)
    assert (base / "cgroup.subtree_control").read_text().strip() == ""


def test_nothing_is_done_in_a_cgroup_that_is_not_ours(base: Path, tmp_path: Path) -> None:
    """One without the mark, and none at all."""
    os.removexattr(base, "user.delegate")
    found = cgroups.find(proc_of(tmp_path, f"/{base.name}"))
    assert found.base is None
    assert "was not delegated" in found.why_not
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/\n")
    assert "no cgroup v2" in cgroups.find(tmp_path / "proc").why_not


def test_the_sweep_removes_the_empty_ones(base: Path) -> None:
    """One that something lives in stays."""
    groups = Cgroups(base, frozenset(), "")
    empty = groups.make("1", Path("/a"), memory_max_bytes=0, pids_max=0)
    lived_in = groups.make("1", Path("/b"), memory_max_bytes=0, pids_max=0)
    assert empty is not None
    assert lived_in is not None
    assert empty != lived_in, "the ids of two stores' attempts may be the same"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (lived_in / "cgroup.procs").write_text(str(sleeper.pid))
        cgroups.sweep(groups)
        assert (empty.exists(), lived_in.exists()) == (False, True)
        assert cgroups.kill(lived_in)
        assert sleeper.wait(10) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()
    until(lambda: not cgroups.kill(lived_in))
    assert not lived_in.exists()


async def test_limits_where_the_controllers_are(
    attempts: Path, base: Path, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Over memory_max the kernel ends the worker, and it is told so; the peak is in the outcome; pids_max holds."""
    (base / "daemon").mkdir()
    groups = cgroups.find(proc_of(tmp_path, f"/{base.name}/daemon"))
    if groups.controllers != {"memory", "pids"}:
        pytest.skip(f"limits: {groups.why_not}")
    launcher = LocalLauncher(attempts, groups)
    eat = "x = bytearray(200 * 1024**2); print(len(x))"
    await launcher.launch(make_spec(sys.executable, "-c", eat, memory_max_bytes=64 * 1024**2))
    with anyio.fail_after(20):
        end = await launcher.wait("1")
    assert end.signal == signal.SIGKILL
    assert "memory_max" in end.host_memory
    assert end.host_peak_bytes is not None
    assert end.host_peak_bytes <= 64 * 1024**2
    await launcher.launch(make_spec("sh", "-c", "sleep 1 & sleep 1 & sleep 1 & wait", attempt_id="2", pids_max=2))
    with anyio.fail_after(20):
        assert (await launcher.wait("2")).exit_status != 0
    launcher.close()


def test_a_limit_that_cannot_be_kept_is_not_promised(base: Path) -> None:
    """And no half-made cgroup stays behind."""
    with pytest.raises(CgroupError, match="pids"):
        Cgroups(base, frozenset(), "why").make("1", Path("/a"), memory_max_bytes=0, pids_max=5)
    # A controller that was there when the daemon began, and isn't any more.
    with pytest.raises(CgroupError, match="attempt-1"):
        Cgroups(base, frozenset({"pids"}), "").make("1", Path("/a"), memory_max_bytes=0, pids_max=5)
    assert cgroups_below(base) == []


async def test_the_hosts_memory_is_told_from_the_devices(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """A real out-of-memory kill (of a v1 memory cgroup): no cgroup of ours counted, but the machine did."""
    v1 = Path("/sys/fs/cgroup/memory") / f"boundd-test-{os.getpid()}"
    try:
        v1.mkdir()
        (v1 / "memory.limit_in_bytes").write_text(str(64 * 1024**2))
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 to run out of: {error.strerror}")
    try:
        command = f'echo $$ >"{v1}/cgroup.procs"; exec "$0" -c "x = b\'x\' * (200 * 1024**2)"'
        await launcher.launch(make_spec("sh", "-c", command, sys.executable))
        with anyio.fail_after(30):
            end = await launcher.wait("1")
        assert end.signal == signal.SIGKILL
        assert "the host ran out of memory, not the device" in end.host_memory
    finally:
        until(lambda: not v1.exists() or not (v1 / "cgroup.procs").read_text().strip())
        v1.rmdir()


@pytest.mark.parametrize(
    ("end", "killed", "over", "machine", "words"),
    [
        (ProcessEnd(signal=9), 1, True, 1, "memory_max"),
        (ProcessEnd(exit_status=1), 2, False, 2, "the host ran out"),
        (ProcessEnd(signal=9), None, False, 1, "most likely"),
        (ProcessEnd(exit_status=137), None, False, 1, "most likely"),
        # Somebody's KILL, with nobody short of memory; our own KILL; another's out of memory.
        (ProcessEnd(signal=9), None, False, 0, ""),
        (ProcessEnd(signal=9), 0, False, 1, ""),
        (ProcessEnd(signal=9, timed_out=True), None, False, 1, ""),
        (ProcessEnd(signal=9, ended_on_request=True), None, False, 1, ""),
        (ProcessEnd(exit_status=1), None, False, 1, ""),
    ],
)
def test_who_killed_it(end: ProcessEnd, killed: int | None, over: bool, machine: int, words: str) -> None:
    """The kernel for want of memory, and of whose, or somebody."""
    text = host_memory_text(end, killed=killed, over_its_limit=over, machine_kills=machine)
    assert (words in text) if words else text == ""
