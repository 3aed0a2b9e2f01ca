"""Clocks that jump and machines that sleep, while attempts run: no attempt is ended early or late, nothing is let go.

Each episode is a real daemon with four cells: one quick, one that takes two seconds, one that fails and is tried once
more after its backoff, and one that hangs until its deadline, twice. How long an attempt really took is told by the
kernel's times of the files that its shim wrote, which nothing here can set.

- *The time of day* jumps for daemon, zygote, shims and workers (sleepy.c, preloaded): hours and weeks, forwards,
  backwards, to and fro. Then the daemon is started once more under the set clock: the logs of attempts are still there.
- *The machine sleeps* (sleepy.c too): seconds since boot and the time of day go on, the clock of those awake doesn't.
  An attempt is not charged for that.
- *Stopped* (SIGSTOP): the daemon, longer than a deadline, which its shim keeps; a shim with its worker, which spends
  its time, because the machine went on.
- *A time namespace*: a machine that has been up for a month by the one clock and not by the other.

To see it fail: let `shim.now_s` return `time.time()` (jumps end attempts early) or CLOCK_BOOTTIME (sleep does); let
`prune._age_by_boot_s` return infinity (logs are gone); use `now.unix_s - attempt.started_unix_s` in `control/views.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from boundd.client import Client, NoDaemonError
from tests.faults import audit
from tests.faults.campaign import Report, drawn_seed, sizes
from tests.faults.daemons import PATIENCE_S, Box, wait_for

pytestmark = pytest.mark.timeout(1200)
"""A loaded machine is given its time; a campaign of full length has none."""

KINDS = ("quick", "slow", "fails", "hangs")
TIMEOUT_S, GRACE_S = 0.6, 0.5
EARLY_S = 0.03
"""The kernel's times of files are those of its last tick."""
LATE_S = 20.0
"""What a loaded machine may take to end what has timed out; every jump here is by much more."""
PARALLEL = 2
NAMESPACE = ("unshare", "--time", "--boottime", "2592000", "--fork", "--kill-child")
"""Up for thirty days more by the clock that counts sleep. Older kernels move only children there."""
HOUR_S, DAY_S = 3600, 86_400


@dataclass(slots=True)
class Tally:
    """What came of all episodes."""

    episodes: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    timeouts: int = 0
    problems: list[str] = field(default_factory=list)
    wrong_timeouts: list[str] = field(default_factory=list)


class Episode:
    """A daemon in a box, and what is done to its clocks."""

    def __init__(self, box: Box, name: str, rng: random.Random, sleepy: Path) -> None:
        self.box, self.name, self.rng = box, name, rng
        self.problems: list[str] = []
        self.wrong_timeouts: list[str] = []
        self._clock = box.folder / "clock"
        self._sleepy = sleepy

    def run(self) -> None:
        """All of it; what is wrong is in `problems`."""
        self._set(0, 0)
        wrapper = NAMESPACE if self.name == "namespace" else ()
        daemon = self.box.start("--until-idle", wrapper=wrapper, env=self._environment())
        try:
            wait_for(lambda: self._begun() or daemon.poll() is not None, f"attempts: {self.box.told()}")
            self._disturb(daemon)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(PATIENCE_S)
        finally:
            if daemon.poll() is None:
                daemon.kill()
        if daemon.wait() != 3:
            self.problems.append(f"the daemon ended with {daemon.returncode}: {self.box.told()}")
        self.problems += map(str, audit.audit(self.box, clocks_jump=True))
        self.wrong_timeouts += self._wrong_timeouts()
        if self.name in WALL_JUMPS:
            self._start_once_more()

    def _begun(self) -> bool:
        begun = Counter(execution.kind for execution in audit.read_journal(self.box.journal))
        return begun["slow"] > 0 and begun["hangs"] > 0

    def _environment(self) -> dict[str, str]:
        if self.name not in PRELOADED:
            return {}
        return {"LD_PRELOAD": str(self._sleepy), "CLOCK_FILE": str(self._clock)}

    def _set(self, set_s: int, slept_s: int) -> None:
        draft = self._clock.with_suffix(".draft")
        draft.write_text(f"{set_s} {slept_s}\n")
        draft.replace(self._clock)

    def _disturb(self, daemon: subprocess.Popen[bytes]) -> None:
        if self.name in WALL_JUMPS:
            for jump in WALL_JUMPS[self.name]:
                self._set(jump, 0)
                self._look_at_the_numbers()
                time.sleep(self.rng.uniform(0, 0.3))
        elif self.name == "sleep":
            for night in range(1, 4):
                self._set(0, night * 8 * HOUR_S)
                self._look_at_the_numbers()
                time.sleep(self.rng.uniform(0, 0.3))
        elif self.name == "daemon stopped":
            daemon.send_signal(signal.SIGSTOP)
            time.sleep(self.rng.uniform(1.0, 2.0))
            daemon.send_signal(signal.SIGCONT)
        elif self.name == "attempts stopped":
            self._stop_attempts(self.rng.uniform(0.2, 1.5))

    def _stop_attempts(self, seconds: float) -> None:
        stopped = []
        for process in self.box.processes():
            with suppress(psutil.Error):
                # A shim's folder is its attempt's; its worker is below it.
                if "attempts/" in process.cwd():
                    stopped += [process, *process.children(recursive=True)]
        for process in stopped:
            with suppress(psutil.Error):
                process.suspend()
        time.sleep(seconds)
        for process in reversed(stopped):
            with suppress(psutil.Error):
                process.resume()

    def _look_at_the_numbers(self) -> None:
        """What people are told of lengths is what they are, whatever the time of day says."""
        try:
            status = Client(self.box.socket).get("/v1/status")
        except NoDaemonError:
            return  # It is at its end already.
        slept = self.name == "sleep"
        for running in status["running"]:
            if not 0 <= running["elapsed_s"] < (5 * 24 * 3600 if slept else 300):
                self.problems.append(f"{running['label']} is said to run for {running['elapsed_s']} s")
        if status["eta_s"] is not None and not 0 <= status["eta_s"] < 24 * 3600:
            self.problems.append(f"an eta of {status['eta_s']} s")

    def _start_once_more(self) -> None:
        """A start lets go of old logs. None is old."""
        before = sorted(path.name for path in (self.box.state_dir / "attempts").iterdir())
        daemon = self.box.start(env=self._environment())
        try:
            wait_for(lambda: self._answers() or daemon.poll() is not None, f"a daemon: {self.box.told()}")
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(PATIENCE_S)
        if sorted(path.name for path in (self.box.state_dir / "attempts").iterdir()) != before:
            self.problems.append("the logs of attempts are gone that ended seconds ago")

    def _answers(self) -> bool:
        try:
            Client(self.box.socket).get("/healthz")
        except NoDaemonError:
            return False
        return True

    def _wrong_timeouts(self) -> Iterator[str]:
        """Attempts that timed out and should not have, or too early, or too late."""
        rows = audit.read_store(self.box.store)
        labels = {attempt["id"]: attempt["label"] for attempt in rows.attempts}
        for end in rows.ends:
            label, timed_out = labels[end["attempt_id"]], end["outcome"] == "timed_out"
            took_s = self._took_s(end["attempt_id"])
            if timed_out != label.startswith("hangs"):
                yield f"{label} ended as {end['outcome']} after {took_s:.2f} s"
            elif timed_out and not TIMEOUT_S - EARLY_S <= took_s <= TIMEOUT_S + GRACE_S + LATE_S:
                yield f"{label} timed out after {took_s:.2f} s"

    def _took_s(self, attempt_id: str) -> float:
        """Between the start of the worker and its outcome, by the kernel's own clock."""
        folder = self.box.state_dir / "attempts" / attempt_id
        if not (folder / "shim.json").exists():
            return 0.0  # It was never started, and hasn't taken any time.
        return (folder / "outcome.json").stat().st_mtime - (folder / "shim.json").stat().st_mtime


WALL_JUMPS: Mapping[str, tuple[int, ...]] = {
    "hours forwards": (3 * HOUR_S,),
    "hours backwards": (-3 * HOUR_S,),
    "weeks forwards": (40 * DAY_S,),
    "decades backwards": (-50 * 365 * DAY_S,),
    "to and fro": (5 * HOUR_S, -5 * HOUR_S, 40 * DAY_S, -40 * DAY_S, 0),
}
NAMES = (*WALL_JUMPS, "sleep", "daemon stopped", "attempts stopped", "namespace", "sleep")
PRELOADED = (*WALL_JUMPS, "sleep")


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes clocks jump."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = tmp_path_factory.mktemp("sleepy") / "sleepy.so"
    source = Path(__file__).with_name("sleepy.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source)], check=True)
    return library


def _can(name: str) -> bool:
    return name != "namespace" or (os.geteuid() == 0 and _runs(*NAMESPACE, "true"))


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@sizes("episodes", short=10, long=200)
def test_clocks(episodes: int, tmp_path: Path, sleepy: Path, report: Report) -> None:
    """Whatever the clocks do, a timeout is one by the time that the worker had, and everything else is as ever."""
    seed = drawn_seed()
    tally, lock = Tally(), threading.Lock()
    names = [name for name in NAMES if _can(name)]

    def one(number: int) -> None:
        box = Box(tmp_path / str(number), numbers=1, kinds=KINDS)
        episode = Episode(box, names[number % len(names)], random.Random(seed + number), sleepy)
        try:
            episode.run()
            rows = audit.read_store(box.store)
        finally:
            box.clear()
        with lock:
            tally.episodes[episode.name] += 1
            tally.attempts += len(rows.attempts)
            tally.timeouts += sum(end["outcome"] == "timed_out" for end in rows.ends)
            tally.wrong_timeouts += [f"{episode.name}: {each}" for each in episode.wrong_timeouts]
            tally.problems += [f"{episode.name}: {each}" for each in episode.problems]
        shutil.rmtree(box.folder)

    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(one, range(episodes)))
    report(
        "clock jumps and suspend",
        episodes=tally.episodes.total(),
        attempts=tally.attempts,
        timeouts=tally.timeouts,
        wrong_timeouts=len(tally.wrong_timeouts),
        other_problems=len(tally.problems),
        of="/".join(sorted(tally.episodes)),
        seed=seed,
    )
    assert not tally.wrong_timeouts, "\n".join(tally.wrong_timeouts)
    assert not tally.problems, "\n".join(tally.problems)
    assert tally.timeouts == 2 * episodes


def test_the_clocks_do_jump(tmp_path: Path, sleepy: Path) -> None:
    """Or nothing above would test anything: under a running process, each by its own jump, and no other."""
    clocks = "time.CLOCK_REALTIME, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC"
    look = f"print(*(time.clock_gettime(clock) for clock in ({clocks})))"
    code = f"import time; {look}; time.sleep(0.01); input(); {look}"
    moved = {}
    for name, jump in {"set": (40 * DAY_S, 0), "slept": (0, 40 * DAY_S)}.items():
        episode = Episode(Box(tmp_path / name, numbers=1, kinds=KINDS), "sleep", random.Random(0), sleepy)
        episode._set(0, 0)
        environment = {**os.environ, **episode._environment()}
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            first = [float(text) for text in process.stdout.readline().split()]
            episode._set(*jump)
            output, _ = process.communicate("\n")
        second = [float(text) for text in output.split()]
        moved[name] = [after - before > 39 * DAY_S for before, after in zip(first, second, strict=True)]
    assert moved == {"set": [True, False, False], "slept": [True, True, False]}
