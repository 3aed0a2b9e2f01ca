"""Campaign: kill -9 of shims, of workers, and of both at once, at swept system calls and at random times.

In some of the points whoever launched is killed too, in the others it closes; a successor adopts in all. Some attempts
are being ended just then. A worker is deaf to TERM, leaves children behind, one of them in a session of its own, and
marks its begin and its end. Afterwards the attempt has ended; nobody holds its lock, nothing of it is alive; it ran at
most once; and what is told of it is so: a status of 0 only with the mark of the end, a signal only where the worker was
killed, lost only where there is no outcome, never started only without the mark of the begin; an outcome that was there
is the outcome.

The system calls are the shim's and, since they are counted for each process, its worker's: strace kills whoever makes
the n-th.

BOUNDD_CAMPAIGN_SEED=N draws the same points again.

Seen to fail: without `processes.kill(found)` in `_kill_leftovers` of boundd/launch/local.py, by attempts that never
end; with a `wait` there that doesn't call `_kill_until_gone`, by orphans.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import pytest

from boundd.launch import processes, shim
from boundd.launch.local import LocalLauncher
from boundd.launch.records import RecordError, read_outcome, read_shim
from boundd.ports import LaunchError, LaunchSpec, ProcessEnd
from tests.faults import campaign

ROOT = Path(__file__).parents[2]
STRACE = shutil.which("strace")
PATIENCE_S = 120.0
LONGEST_S = 0.5
TOGETHER = 5
CALLS = [
    *(("openat", n) for n in range(1, 41)),
    *(("rename", n) for n in (1, 2)),
    *(("fsync", n) for n in (1, 2)),
    *(("close", n) for n in range(1, 46)),
    *(("poll", n) for n in range(1, 21)),
    *(("read", n) for n in range(1, 41)),
    *(("wait4", n) for n in range(1, 16)),
    *(("pwrite64", n) for n in (1, 2)),
    *(
        (name, 1)
        for name in ("ftruncate", "fallocate", "flock", "prctl", "pipe2", "setsid", "execve", "chdir", "write")
    ),
]
"""Of what a shim and its worker call, from their fork on."""
WORKER = """
trap '' TERM
echo begun >> "$BOUNDD_RESULTS"
sleep 60 &
setsid sleep 60 &
sleep "$1"
echo done >> "$BOUNDD_RESULTS"
"""
LAUNCHES = """
import sys, anyio
from pathlib import Path
from tests.faults.test_shims import spec_of
from boundd.launch.local import LocalLauncher
async def main():
    launcher = LocalLauncher(Path(sys.argv[1]))
    async with anyio.create_task_group() as group:
        for each in sys.argv[2:]:
            attempt_id, _, takes_s = each.partition("=")
            group.start_soon(launcher.launch, spec_of(Path(sys.argv[1]), attempt_id, float(takes_s)))
    print("launched", flush=True)
    await anyio.sleep(600)
anyio.run(main)
"""


def spec_of(attempts: Path, attempt_id: str, takes_s: float) -> LaunchSpec:
    """A worker that takes so long."""
    env = {"PATH": os.environ["PATH"], "BOUNDD_RESULTS": str(attempts / attempt_id / "results.jsonl")}
    argv = ("sh", "-c", WORKER, "worker", f"{takes_s:.3f}")
    return LaunchSpec(attempt_id, argv, env, attempts, 60, 0.2)


class Tally:
    """What the points came to."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.asked = 0
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.orphans: list[str] = []

    async def judge(
        self, launcher: LocalLauncher, attempts: Path, attempt_id: str, point: str, *, asked: bool = False
    ) -> None:
        """Wait for an attempt's end, and hold it against what there is to be seen."""
        folder = attempts / attempt_id
        with anyio.fail_after(PATIENCE_S):
            end = await launcher.wait(attempt_id)
        results = folder / "results.jsonl"
        marks = results.read_text().split() if results.exists() else []
        self.ends[_word(end)] += 1
        if not _is_right(end, marks, folder, asked=asked):
            self.wrong.append(f"{point}: {end}, marks {marks}")
        left = [stat.pid for stat in shim.all_stats() if stat.state not in "ZX" and _was_given(stat.pid, results)]
        if left or processes.lock_is_held(folder / shim.LOCK) or launcher.is_alive(attempt_id):
            self.orphans.append(f"{point}: {left}")


def _word(end: ProcessEnd) -> str:
    if end.lost:
        return "never_started" if end.lost == "it was never started" else "lost"
    return "killed" if end.signal else f"status_{end.exit_status}"


def _is_right(end: ProcessEnd, marks: list[str], folder: Path, *, asked: bool) -> bool:
    """Whether what is told agrees with what the worker and the shim have left, and with what was asked of it."""
    try:
        kept = read_outcome(folder)
    except RecordError:
        return False
    if marks not in ([], ["begun"], ["begun", "done"]):
        return False
    if end.lost:
        return kept is None and (end.lost != "it was never started" or not marks)
    if kept != end or end.timed_out or (end.ended_on_request and not asked):
        return False
    if end.start_error:
        return not marks
    if asked and end.signal == signal.SIGTERM:
        return "done" not in marks  # It was asked before it had become deaf.
    return end.signal == signal.SIGKILL or (end.exit_status == 0 and marks == ["begun", "done"])


def _was_given(pid: int, results: Path) -> bool:
    try:
        return f"BOUNDD_RESULTS={results}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(attempts: Path, attempt_id: str, victims: str) -> None:
    """KILL an attempt's shim, worker, or both, if its record is there already; by pidfd, they may be gone."""
    record = read_shim(attempts / attempt_id)
    if record is None:
        return
    who = {"shim": [(record.pid, record.start_ticks)], "worker": [(record.worker_pid, record.worker_start_ticks)]}
    for pid, ticks in who.get(victims) or [*who["shim"], *who["worker"]]:
        pidfd = shim.open_verified(pid, ticks)
        if pidfd is not None:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)


class Points:
    """Makes the points of a campaign, a few at a time."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._made = 0
        self._tracers: list[anyio.abc.Process] = []
        self.tally = Tally()

    def _name(self) -> str:
        self._made += 1
        return str(self._made)

    async def at_random_times(self, victims: str) -> None:
        """The launcher stays, closes and is followed by another, or is another process that is killed as well."""
        attempts = self._folder / f"random-{self._made}"
        attempts.mkdir()
        ids = {self._name(): self._random.uniform(0, LONGEST_S) for _ in range(TOGETHER)}
        after_s = {each: self._random.uniform(0, LONGEST_S) for each in ids}
        asked = frozenset(each for each in ids if self._random.random() < 0.4)
        with_daemon = self._made % 2 == 0
        if with_daemon:
            arguments = [f"{each}={takes_s}" for each, takes_s in ids.items()]
            command = [sys.executable, "-c", LAUNCHES, str(attempts), *arguments]
            daemon = await anyio.to_thread.run_sync(lambda: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))
            while not any(attempts.iterdir()) and daemon.poll() is None:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        launcher = LocalLauncher(attempts)

        async def one(each: str) -> None:
            with anyio.move_on_after(LONGEST_S if with_daemon else PATIENCE_S):
                while not (attempts / each / shim.SHIM).exists():  # noqa: ASYNC110
                    await anyio.sleep(0.001)
            await anyio.sleep(after_s[each] / 2)
            if each in asked:
                await launcher.end(each)
            await anyio.sleep(after_s[each] / 2)
            _kill(attempts, each, victims)

        async def launch(each: str) -> None:
            # Killed after its record and before it said so.
            with suppress(LaunchError):
                await launcher.launch(spec_of(attempts, each, ids[each]))

        async with anyio.create_task_group() as group:
            for each in ids:
                if not with_daemon:
                    group.start_soon(launch, each)
                group.start_soon(one, each)
        if with_daemon:
            daemon.kill()
            await anyio.to_thread.run_sync(daemon.communicate)
        else:
            launcher.close()
        words = {each: f"{victims} after {after_s[each]:.3f} s of {ids[each]:.3f}" for each in ids}
        await self._judge(attempts, words, asked)

    async def at_calls(self, calls: list[tuple[str, int]]) -> None:
        """strace follows a zygote each, and kills whoever makes the n-th call of a kind from its fork on."""
        attempts = self._folder / f"calls-{self._made}"
        attempts.mkdir()
        points = {self._name(): call for call in calls}
        async with anyio.create_task_group() as group:
            for each, (name, number) in points.items():
                group.start_soon(self._at_call, attempts, each, name, number)
        await self._judge(attempts, {each: f"call {name} {number}" for each, (name, number) in points.items()})

    async def _at_call(self, attempts: Path, attempt_id: str, name: str, number: int) -> None:
        launcher = LocalLauncher(attempts)
        await launcher.launch(replace(spec_of(attempts, f"{attempt_id}-first", 0), argv=("true",)))
        zygote = launcher._spawner._process
        assert zygote is not None
        inject = f"inject={name}:signal=KILL:when={number}"
        command = [str(STRACE), "-f", "-p", str(zygote.pid), "-e", f"trace={name}", "-e", inject]
        tracer = await anyio.open_process([*command, "-o", os.devnull], stderr=subprocess.PIPE)
        # It goes on until all that it follows has ended, which is for the successor to see to.
        self._tracers.append(tracer)
        assert tracer.stderr is not None
        with anyio.fail_after(PATIENCE_S):
            said = b""
            while b"attached" not in said:
                said += await tracer.stderr.receive()
            # It was killed before it had taken over, or the zygote was.
            with suppress(LaunchError):
                await launcher.launch(spec_of(attempts, attempt_id, 0.02))
            await anyio.to_thread.run_sync(launcher.close)

    async def _judge(self, attempts: Path, points: dict[str, str], asked: frozenset[str] = frozenset()) -> None:
        """All of them, by a launcher that has started none of them."""
        successor = LocalLauncher(attempts)
        async with anyio.create_task_group() as group:
            for each, point in points.items():
                judge = partial(self.tally.judge, successor, attempts, each, point, asked=each in asked)
                group.start_soon(judge)
                self.tally.asked += each in asked
                self.tally.kinds[point.split()[0]] += 1
        with anyio.fail_after(PATIENCE_S):
            while self._tracers:
                await self._tracers.pop().aclose()
        shutil.rmtree(attempts)


@pytest.mark.skipif(STRACE is None, reason="no strace")
@campaign.sizes("points", short=50, long=1000)
def test_kills_of_shims_and_workers(points: int, tmp_path: Path, report: campaign.Report) -> None:
    """Every attempt ends, once, with nothing left of it, and what is told of it is so."""
    seed = campaign.drawn_seed()
    run = Points(tmp_path, seed)

    async def main() -> None:
        draw = random.Random(seed)
        for turn in range(-(-points // TOGETHER)):
            if turn % 5 < 3:
                await run.at_random_times(("shim", "worker", "both")[turn % 5])
            else:
                await run.at_calls(draw.sample(CALLS, TOGETHER))

    anyio.run(main)
    tally = run.tally
    figures = {f"ended_{word}": count for word, count in sorted(tally.ends.items())}
    report(
        "kill -9 of shims and workers",
        points=tally.kinds.total(),
        seed=seed,
        **{f"at_{kind}": count for kind, count in sorted(tally.kinds.items())},
        while_ending=tally.asked,
        **figures,
        wrong_or_doubled=len(tally.wrong),
        orphans=len(tally.orphans),
    )
    assert not tally.wrong
    assert not tally.orphans
