"""The launcher and the shim, with real processes: how they end, what they leave behind, who finds them again.

To see the test of pipes fail, have boundd/launch/records.py or `_last_log_line` of boundd/launch/local.py open with
`path.open("rb")`, or take O_NONBLOCK out of `processes.lock_is_held`.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchError, LaunchSpec, ProcessEnd
from boundd.protocol.environment import WorkerEnvironment

pytestmark = pytest.mark.anyio

PYTHON = sys.executable
MakeSpec = Callable[..., LaunchSpec]
ANOTHER = """
import sys, anyio
from pathlib import Path
from boundd.launch.local import LocalLauncher
from boundd.protocol.environment import WorkerEnvironment
from boundd.ports import LaunchSpec
folder = Path(sys.argv[1])
async def main():
    launcher = LocalLauncher(folder)
    if sys.argv[2] == "launch":
        env = {"PATH": "/usr/bin:/bin"}
        await launcher.launch(LaunchSpec("1", tuple(sys.argv[3:]), env, folder, 30, 1))
        print("launched", flush=True)
        await anyio.sleep(60)
    else:
        print("waiting", launcher.is_alive("1"), flush=True)
        print(await launcher.wait("1"), flush=True)
anyio.run(main)
"""


def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether there is a living process of this pid; a zombie is none."""
    stat = shim.stat_of(pid)
    return stat is not None and stat.state not in "ZX"


def has_pid(path: Path) -> bool:
    """Whether a worker has written its pid to the file."""
    return path.exists() and path.read_text().strip().isdigit()


def status_kib(pid: int, file: str, prefix: str) -> int:
    """The sum of the lines of /proc/PID/FILE that begin with `prefix`, in KiB."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(prefix))


def sleeper() -> subprocess.Popen[bytes]:
    """A process that has nothing to do with any attempt."""
    return subprocess.Popen(["sleep", "60"])


def another(attempts: Path, *arguments: str) -> subprocess.Popen[str]:
    """A launcher in another process."""
    return subprocess.Popen(
        [PYTHON, "-c", ANOTHER, str(attempts), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


async def run(launcher: LocalLauncher, make_spec: MakeSpec, *argv: str, **changes: object) -> ProcessEnd:
    """Launch and wait, for 20 s at most."""
    await launcher.launch(make_spec(*argv, **changes))
    with anyio.fail_after(20):
        return await launcher.wait("1")


def shim_record(attempts: Path, attempt_id: str = "1") -> dict[str, int]:
    """shim.json of an attempt."""
    record: dict[str, int] = json.loads((attempts / attempt_id / shim.SHIM).read_text())
    return record


async def test_a_worker_that_ends_is_told_by_its_status(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """The exit status and the time are reported, again too, and nothing stays behind."""
    end = await run(launcher, make_spec, "sh", "-c", "sleep 0.2; exit 3")
    assert dataclasses.replace(end, wall_s=None) == ProcessEnd(exit_status=3, results_bytes=0)
    assert end.wall_s is not None
    assert 0.2 <= end.wall_s < 2
    assert await launcher.wait("1") == end
    assert not launcher.is_alive("1")
    assert launcher.pids("1") == frozenset()


async def test_a_worker_that_a_signal_ended(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Death by signal is told apart from an exit status."""
    end = await run(launcher, make_spec, "sh", "-c", "kill -SEGV $$")
    assert (end.exit_status, end.signal, end.ended_on_request) == (None, signal.SIGSEGV, False)


async def test_both_streams_are_in_the_log_in_order(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """One pipe for both streams keeps the order in which things were said; standard input is empty."""
    await run(launcher, make_spec, "sh", "-c", "echo 1; echo 2 >&2; echo 3; cat; echo 4 >&2")
    assert launcher.log_path("1").read_bytes() == b"1\n2\n3\n4\n"


async def test_the_log_can_be_followed(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """What was said is in the file at once, and not when the worker ends."""
    await launcher.launch(make_spec("sh", "-c", "echo hello; exec sleep 30"))
    await anyio.to_thread.run_sync(lambda: until(lambda: launcher.log_path("1").read_bytes() == b"hello\n"))
    assert launcher.is_alive("1")
    await launcher.end("1")
    await launcher.wait("1")


async def test_the_environment_is_as_given(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """But where its files are: nothing of the daemon's own environment, and signals are as a program expects them."""
    program = "import os,signal; print(sorted(os.environ), signal.getsignal(signal.SIGTERM), os.getsid(0)==os.getpid())"
    env = {"A": "é ü\n", "LC_ALL": "C.UTF-8"}
    await run(launcher, make_spec, PYTHON, "-I", "-c", program, env=env)
    assert launcher.log_path("1").read_text() == "['A', 'BOUNDD_FETCHING', 'BOUNDD_RESULTS', 'LC_ALL'] 0 True\n"


async def test_the_deadline_is_kept_against_a_worker_that_ignores_it(
    launcher: LocalLauncher, make_spec: MakeSpec
) -> None:
    """TERM, grace, KILL: a worker deaf to TERM is gone after deadline and grace."""
    end = await run(launcher, make_spec, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", timeout_s=0.5)
    assert (end.timed_out, end.signal, end.ended_on_request) == (True, signal.SIGKILL, False)
    assert end.wall_s is not None
    assert 0.8 <= end.wall_s < 5


async def test_a_worker_may_use_its_grace(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """A worker that cleans up at TERM ends with its own status, and is still timed out."""
    script = "trap 'sleep 0.2; echo clean; exit 7' TERM; while :; do sleep 0.02; done"
    end = await run(launcher, make_spec, "sh", "-c", script, timeout_s=0.5, grace_s=5.0)
    assert (end.timed_out, end.exit_status) == (True, 7)
    assert b"clean" in launcher.log_path("1").read_bytes()


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
async def test_a_grandchild_in_a_session_of_its_own_is_ended(
    launcher: LocalLauncher, make_spec: MakeSpec, tmp_path: Path, deaf: str
) -> None:
    """A double fork with setsid that holds the pipe neither survives its worker nor keeps it from ending."""
    script = (
        f"(setsid sh -c '{deaf}echo $$ > pid; while :; do sleep 0.05; done' &) ; while [ ! -s pid ]; do :; done; exit 5"
    )
    end = await run(launcher, make_spec, "sh", "-c", script)
    assert (end.exit_status, end.timed_out, end.ended_on_request) == (5, False, False)
    assert not runs(int((tmp_path / "pid").read_text()))
    assert not launcher.is_alive("1")


async def test_output_is_bounded_and_never_blocks(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """200 MB of lines leave the first and the last part, a mark between them, and not a byte over the limit."""
    script = "echo first; yes 0123456789 | head -c 200000000; echo last"
    end = await run(launcher, make_spec, "sh", "-c", script, log_limit_bytes=1_000_000)
    log = launcher.log_path("1").read_bytes()
    assert end.exit_status == 0
    assert 990_000 < len(log) <= 1_000_000
    assert log.startswith(b"first\n0123456789\n")
    assert log.endswith(b"\n01last\n")
    head, mark, tail = log.partition(b"\n[boundd: ")
    left_out = int(tail.split()[0])
    assert mark
    assert len(head) + left_out + len(tail.partition(b"here]\n")[2]) == 200_000_011


async def test_an_endless_line_is_bounded_too(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Memory and disk don't depend on newlines, and the end of a running flood reaches the file."""
    await launcher.launch(make_spec("sh", "-c", "tr '\\0' x < /dev/zero", log_limit_bytes=100_000))
    until(lambda: b"left out" in launcher.log_path("1").read_bytes())
    assert launcher.log_path("1").stat().st_size <= 100_000
    shim_pid = shim_record(launcher.log_path("1").parents[1])["pid"]
    peak_kib = status_kib(shim_pid, "status", "VmHWM")
    assert peak_kib < 40_000
    await launcher.end("1")
    assert (await launcher.wait("1")).ended_on_request


@pytest.mark.parametrize(
    ("argv", "changes", "error"),
    [
        (["/nowhere/worker"], {}, "no such file: /nowhere/worker"),
        (["no-such-program"], {}, "no such file: no-such-program"),
        (["true"], {"cwd": Path("/nowhere")}, "no such folder: /nowhere"),
        (["/etc/passwd"], {}, "/etc/passwd: Permission denied"),
    ],
)
async def test_a_command_that_cannot_be_executed(
    launcher: LocalLauncher, make_spec: MakeSpec, argv: list[str], changes: dict[str, object], error: str
) -> None:
    """What the system said is the outcome, and no exit status is made up."""
    end = await run(launcher, make_spec, *argv, **changes)
    assert end.start_error == error
    assert (end.exit_status, end.signal, end.lost) == (None, None, "")


async def test_the_pids_of_many_take_one_look(
    launcher: LocalLauncher, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt is told with its own processes, whatever they fork, and the machine's are listed once for all.

    To see it fail, list them in `LocalLauncher.pids_of` for each attempt.
    """
    looks: list[int] = []
    real = shim.all_stats

    def counted() -> list[shim.Stat]:
        looks.append(1)
        return real()

    for attempt_id in ("1", "2"):
        await launcher.launch(make_spec("sh", "-c", "sleep 30 & sleep 30; true", attempt_id=attempt_id))
    with anyio.fail_after(30):
        while not all(len(launcher.pids(attempt_id)) == 4 for attempt_id in ("1", "2")):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    monkeypatch.setattr(shim, "all_stats", counted)
    found = launcher.pids_of(["1", "2", "never"])
    assert looks == [1]
    assert found["never"] == frozenset()
    assert len(found["1"]) == len(found["2"]) == 4
    assert not found["1"] & found["2"]
    assert shim_record(launcher.log_path("2").parents[1], "2")["worker_pid"] in found["2"]
    for attempt_id in ("1", "2"):
        await launcher.end(attempt_id)
        await launcher.wait(attempt_id)


async def test_end_on_request(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Asked once or often, the worker gets TERM, and `pids` names it until then; asking later changes nothing."""
    await launcher.launch(make_spec("sleep", "30", grace_s=20.0))
    record = shim_record(launcher.log_path("1").parents[1])
    assert launcher.pids("1") == {record["pid"], record["worker_pid"]}
    started_s = time.monotonic()
    await launcher.end("1")
    await launcher.end("1")
    end = await launcher.wait("1")
    assert (end.ended_on_request, end.signal, end.timed_out) == (True, signal.SIGTERM, False)
    assert time.monotonic() - started_s < 5
    await launcher.end("1")


async def test_a_worker_dies_with_its_shim(launcher: LocalLauncher, make_spec: MakeSpec, tmp_path: Path) -> None:
    """Nobody enforces the deadline of a worker without a shim, so it and its session must not live on."""
    await launcher.launch(make_spec("sh", "-c", "(trap '' TERM; sleep 60) & echo $! > pid; wait"))
    until(lambda: has_pid(tmp_path / "pid"))
    record = shim_record(launcher.log_path("1").parents[1])
    os.kill(record["pid"], signal.SIGKILL)
    with anyio.fail_after(10):
        end = await launcher.wait("1")
    assert end == ProcessEnd(lost=f"its shim (pid {record['pid']}) was killed by SIGKILL")
    assert not runs(record["worker_pid"])
    assert not runs(int((tmp_path / "pid").read_text()))
    assert not launcher.is_alive("1")
    assert shim.stat_of(record["pid"]) is None


async def test_children_that_closed_the_lock_are_found_by_session_and_results(
    launcher: LocalLauncher, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """A shim that was killed leaves a child without the lock's descriptor; it is ended all the same."""
    program = (
        "import subprocess,time,pathlib; p=subprocess.Popen(['sleep','60']);"
        "pathlib.Path('pid').write_text(str(p.pid)); time.sleep(60)"
    )
    await launcher.launch(make_spec(PYTHON, "-c", program))
    until(lambda: has_pid(tmp_path / "pid"))
    os.kill(shim_record(launcher.log_path("1").parents[1])["pid"], signal.SIGKILL)
    with anyio.fail_after(10):
        assert (await launcher.wait("1")).lost
    assert not runs(int((tmp_path / "pid").read_text()))


async def test_another_launcher_adopts(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """A launcher in another process waits for, and hears the outcome of, an attempt that it did not start."""
    await launcher.launch(make_spec("sh", "-c", "until [ -e go ]; do sleep 0.05; done; exit 4"))
    other = another(attempts, "wait")
    assert other.stdout is not None
    assert await anyio.to_thread.run_sync(other.stdout.readline) == "waiting True\n"
    (attempts.parent / "go").touch()
    said = await anyio.to_thread.run_sync(lambda: other.communicate(timeout=60)[0])
    assert said.startswith("ProcessEnd(exit_status=4, ")
    assert (await launcher.wait("1")).exit_status == 4


async def test_an_attempt_outlives_the_daemon(launcher: LocalLauncher, attempts: Path) -> None:
    """The daemon is killed: the worker goes on, the next daemon finds it, ends it, and gets its outcome."""
    first = another(attempts, "launch", "sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done")
    assert first.stdout is not None
    assert first.stdout.readline() == "launched\n"
    first.kill()
    first.wait()
    record = shim_record(attempts)
    until(lambda: launcher.log_path("1").read_bytes() == b"up\n")
    assert launcher.is_alive("1")
    assert {record["pid"], record["worker_pid"]} <= launcher.pids("1")
    await launcher.end("1")
    with anyio.fail_after(10):
        end = await launcher.wait("1")
    assert (end.exit_status, end.ended_on_request) == (6, True)


async def test_an_attempt_that_ended_while_no_daemon_lived(launcher: LocalLauncher, attempts: Path) -> None:
    """The outcome is on disk, and `wait` returns it at once."""
    first = another(attempts, "launch", "sh", "-c", "sleep 0.3; exit 8")
    assert first.stdout is not None
    assert first.stdout.readline() == "launched\n"
    first.kill()
    first.wait()
    until(lambda: not launcher.is_alive("1"))
    with anyio.fail_after(1):
        assert (await launcher.wait("1")).exit_status == 8


@pytest.mark.parametrize("after_ms", range(0, 80, 10))
async def test_a_daemon_killed_while_it_launches(launcher: LocalLauncher, attempts: Path, after_ms: int) -> None:
    """Wherever it dies, the attempt ran to its end or was never started, and never is called lost while it runs."""
    first = another(attempts, "launch", "sh", "-c", "echo ran > 1/ran; exit 9")
    until(lambda: (attempts / "1").exists())
    await anyio.sleep(after_ms / 1000)
    first.kill()
    first.wait()
    with anyio.fail_after(10):
        end = await launcher.wait("1")
    assert end.exit_status == 9 or end.lost == "it was never started"
    assert (attempts / "1" / "ran").exists() == (end.exit_status == 9)
    assert not launcher.is_alive("1")


async def test_a_launched_attempt_is_waited_for_before_its_record_is_there(
    launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path
) -> None:
    """Who waits while another process launches does not take the shim that is starting for a dead one."""
    first = another(attempts, "launch", "sh", "-c", "sleep 0.3; exit 9")
    until(lambda: launcher.is_alive("1"))
    with anyio.fail_after(10):
        assert (await launcher.wait("1")).exit_status == 9
    first.kill()
    first.wait()


async def test_what_was_never_started_is_lost(launcher: LocalLauncher, attempts: Path) -> None:
    """No folder, or one that a crash between lock and spawn left: nothing lives, nothing ran."""
    assert await launcher.wait("1") == ProcessEnd(lost="it was never started")
    await launcher.end("1")
    (attempts / "1").mkdir(parents=True)
    (attempts / "1" / shim.LOCK).touch()
    assert not launcher.is_alive("1")
    assert await launcher.wait("1") == ProcessEnd(lost="it was never started")


async def test_what_a_crashed_launch_left_is_cleared(
    launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path
) -> None:
    """The same id can be launched again, and sees nothing of the first time."""
    (attempts / "1" / "old").mkdir(parents=True)
    (attempts / "1" / "results.jsonl").write_text("old")
    assert (await run(launcher, make_spec, "true")).exit_status == 0
    assert not (attempts / "1" / "old").exists()
    assert not launcher.results_path("1").exists()


async def test_an_attempt_is_launched_once(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """A live attempt is not started twice, not by another launcher either, and a result is not overwritten."""
    await launcher.launch(make_spec("sleep", "30"))
    with pytest.raises(LaunchError, match="alive already"):
        await LocalLauncher(attempts).launch(make_spec("true"))
    await launcher.end("1")
    await launcher.wait("1")
    with pytest.raises(LaunchError, match="has ended already"):
        await launcher.launch(make_spec("true"))


async def test_another_process_with_the_same_pid_is_left_alone(launcher: LocalLauncher, attempts: Path) -> None:
    """A pid that means somebody else by now, told by the start time or the boot, is not signalled nor waited for."""
    stranger = sleeper()
    try:
        stat = shim.stat_of(stranger.pid)
        assert stat is not None
        (attempts / "1").mkdir(parents=True)
        for boot_id, ticks in ((shim.boot_id(), stat.start_ticks - 1), ("another", stat.start_ticks)):
            record = {"format": 1, "boot_id": boot_id, "pid": stranger.pid, "start_ticks": ticks}
            record |= {"worker_pid": stranger.pid, "worker_start_ticks": ticks}
            (attempts / "1" / shim.SHIM).write_text(json.dumps(record))
            await launcher.end("1")
            assert launcher.pids("1") == frozenset()
            with anyio.fail_after(2):
                assert "restarted" in (await launcher.wait("1")).lost or "is gone" in (await launcher.wait("1")).lost
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": 1, "exit_st', "damaged"),
        ("", "damaged"),
        ('{"format": 2}', "has format 2, known is 1"),
        ('{"format": 1, "exit_status": "0"}', "wrong one"),
        ("[" * 60000, "damaged"),
    ],
)
async def test_a_damaged_outcome_is_lost(launcher: LocalLauncher, attempts: Path, text: str, reason: str) -> None:
    """What can't be understood is quoted, and not taken for success."""
    (attempts / "1").mkdir(parents=True)
    (attempts / "1" / shim.OUTCOME).write_text(text)
    end = await launcher.wait("1")
    assert reason in end.lost
    assert repr(text[:10])[:-1] in end.lost
    assert len(end.lost) < 500


async def test_a_launch_that_fails_says_why(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """A spec that can't be, a folder that can't be made, and a shim that fails: each a LaunchError with its reason."""
    with pytest.raises(LaunchError, match="command is empty"):
        await launcher.launch(make_spec())
    with pytest.raises(LaunchError, match="before it started the worker: TypeError"):
        await launcher.launch(make_spec("true", log_limit_bytes="many"))
    assert not launcher.is_alive("1")
    attempts.joinpath("3").write_text("")
    with pytest.raises(LaunchError, match="File exists"):
        await launcher.launch(make_spec("true", attempt_id="3"))


async def test_a_worker_is_told_where_its_files_are(attempts: Path, make_spec: MakeSpec, tmp_path: Path) -> None:
    """Its results, its device's lease, and the results of those of the named attempts that are still kept, in order."""
    launcher = LocalLauncher(attempts, leases_folder=tmp_path / "leases")
    try:
        for kept in ("a1", "a3", "b1"):
            (attempts / kept).mkdir(parents=True)
            launcher.results_path(kept).touch()
        spec = make_spec("env", attempt_id="a4", env={"BOUNDD_RESULTS": "/elsewhere"})
        told = dataclasses.replace(spec, device="GPU-1", earlier_attempts=("a1", "a2", "a3"))
        await launcher.launch(told)
        assert (await launcher.wait("a4")).exit_status == 0
        lines = dict(line.split("=", 1) for line in launcher.log_path("a4").read_text().splitlines())
    finally:
        launcher.close()
    told_of = WorkerEnvironment.from_environ(lines)
    assert told_of.results == launcher.results_path("a4")
    assert told_of.lease_folder == tmp_path / "leases" / "GPU-1"
    assert told_of.lease_folder.is_dir()
    assert told_of.earlier_results == (launcher.results_path("a1"), launcher.results_path("a3"))


async def test_a_launch_that_fails_leaves_nothing(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """The worker is forked first and ends before the launch fails.

    Seen to fail under load without the wait in `discard_worker`.
    """
    for _ in range(20):
        with pytest.raises(LaunchError, match="before it started the worker: TypeError"):
            await launcher.launch(make_spec("true", log_limit_bytes="many"))
        assert not launcher.is_alive("1")


async def test_a_worker_is_told_more_than_a_pipe_holds(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """It has half a megabyte of environment, and arguments that are no text."""
    script = 'test ${#BIG_4} = 100000 && test "$1" = "$(printf "\\377a\\nb")" && exit 7'
    env = {**os.environ, **{f"BIG_{number}": "x" * 100_000 for number in range(5)}}
    spec = make_spec("sh", "-c", script, "sh", os.fsdecode(b"\xffa\nb"))
    await launcher.launch(dataclasses.replace(spec, env=env))
    assert (await launcher.wait("1")).exit_status == 7


async def test_the_lock_alone_tells_that_a_double_fork_lives(
    launcher: LocalLauncher, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """With shim and worker killed, a grandchild in a session of its own still counts as alive, and `end` reaches it."""
    script = "(setsid sh -c 'echo $$ > pid; exec sleep 60' &) ; sleep 60"
    await launcher.launch(make_spec("sh", "-c", script))
    until(lambda: has_pid(tmp_path / "pid"))
    record = shim_record(launcher.log_path("1").parents[1])
    os.kill(record["pid"], signal.SIGKILL)
    until(lambda: not runs(record["worker_pid"]))
    assert launcher.is_alive("1")
    assert int((tmp_path / "pid").read_text()) in launcher.pids("1")
    await launcher.end("1")
    until(lambda: not launcher.is_alive("1"))
    assert (await launcher.wait("1")).lost


async def test_a_full_disk_refuses_a_launch_and_keeps_an_outcome(
    make_spec: MakeSpec, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Output that fills the disk costs output and not the outcome; the next launch says that there is no room."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:  # noqa: ASYNC221
        pytest.skip("needs to mount a file system")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", small], check=True))
    launcher = LocalLauncher(small)
    end = await run(launcher, make_spec, "sh", "-c", "yes | head -c 20000000; exit 5")
    assert end.exit_status == 5
    with pytest.raises(LaunchError, match="No space left on device"):
        await launcher.launch(make_spec("true", attempt_id="2"))
    assert not launcher.is_alive("2")


async def test_many_at_once(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Attempts launched and waited for at the same time don't mix up their ends."""
    ends: dict[int, ProcessEnd] = {}

    async def one(number: int) -> None:
        await launcher.launch(make_spec("sh", "-c", f"exit {number}", attempt_id=str(number)))
        ends[number] = await launcher.wait(str(number))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
    assert {number: end.exit_status for number, end in ends.items()} == {number: number for number in range(20)}


async def test_what_a_shim_costs(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Start-up and private memory are printed (see with -s); a shim is far smaller than a worker."""
    started_s = time.perf_counter()
    await launcher.launch(make_spec("sleep", "30"))
    launched_ms = (time.perf_counter() - started_s) * 1000
    record = shim_record(launcher.log_path("1").parents[1])
    # Until it has executed, the worker shares its memory with the shim.
    until(lambda: b"sleep" in Path(f"/proc/{record['worker_pid']}/cmdline").read_bytes())
    private_kib = status_kib(record["pid"], "smaps_rollup", "Private_")
    started_s = time.perf_counter()
    await launcher.end("1")
    await launcher.wait("1")
    ended_ms = (time.perf_counter() - started_s) * 1000
    print(f"shim: launched in {launched_ms:.0f} ms, ended in {ended_ms:.0f} ms, {private_kib} KiB of private memory")
    assert private_kib < 50_000


async def test_attempts_leave_no_descriptor(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Neither those that were waited for, by one, by two, by one who gave up, nor those that nobody waited for."""

    def pipes() -> set[str]:
        links = []
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(str(path.readlink()))
        return {link for link in links if link.startswith("pipe:")}

    before = pipes()
    for number in ("1", "2", "3", "4"):
        await launcher.launch(make_spec("sleep", "0.3", attempt_id=number))
    async with anyio.create_task_group() as group:
        group.start_soon(launcher.wait, "1")
        group.start_soon(launcher.wait, "2")
        group.start_soon(launcher.wait, "2")
        with anyio.move_on_after(0.05):
            await launcher.wait("3")
    assert (await launcher.wait("3")).exit_status == 0
    assert not launcher.is_alive("1")
    launcher.close()
    assert pipes() <= before


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [shim.SHIM, "shim.log", shim.OUTCOME, shim.LOCK])
async def test_a_pipe_in_the_place_of_a_file_is_waited_for_by_nobody(
    launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path, name: str
) -> None:
    """A worker can put anything there. Whoever opened it as a file would wait for ever, and the daemon with it."""
    await launcher.launch(make_spec("sleep", "60"))
    record = shim_record(attempts)
    path = attempts / "1" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    launcher.why_not_endable("1")
    launcher.pids("1")
    launcher.is_alive("1")
    pidfd = shim.open_verified(record["pid"], record["start_ticks"])
    assert pidfd is not None
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    with anyio.fail_after(20):
        assert (await launcher.wait("1")).lost
