"""Clocks that jump and machines that sleep, while attempts run: no attempt is ended early or late, nothing is let go.

Each episode is a real daemon with four cells: one quick, one that takes two seconds, one that fails and is tried once
more after its backoff, and one that hangs until its deadline, twice. How long an attempt really took is told by the
kernel's times of the files that its shim wrote, which nothing here can set.

- *The time of day* jumps for daemon, zygote, shims and workers (libfaketime): hours and weeks, forwards, backwards, to
  and fro. Then the daemon is started once more under the set clock: the logs of attempts are still there.
- *The machine sleeps*: seconds since boot and the time of day go on, the clock of those awake doesn't (sleepy.c). An
  attempt is not charged for that.
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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from boundd.control.client import Client, NoDaemonError
from tests.faults import audit
from tests.faults.campaign import Report, sizes
from tests.faults.daemons import PATIENCE_S, Box, wait_for

KINDS = ("quick", "slow", "fails", "hangs")
TIMEOUT_S, GRACE_S = 0.6, 0.5
EARLY_S = 0.03
"""The kernel's times of files are those of its last tick."""
LATE_S = 20.0
"""What a loaded machine may take to end what has timed out; every jump here is by much more."""
PARALLEL = 2
NAMESPACE = ("unshare", "--time", "--boottime", "2592000", "--fork", "--kill-child")
"""Up for thirty days more by the clock that counts sleep. Older kernels move only children there."""
FAKETIME = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


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

    def __init__(self, box: Box, name: str, rng: random.Random, preloads: Mapping[str, Path]) -> None:
        self.box, self.name, self.rng = box, name, rng
        self.problems: list[str] = []
        self.wrong_timeouts: list[str] = []
        self._clock = box.folder / "clock"
        self._preload = preloads["faketime" if name in WALL_JUMPS else "sleepy"] if name in PRELOADED else None

    def run(self) -> None:
        """All of it; what is wrong is in `problems`."""
        self._set("+0" if self.name in WALL_JUMPS else "0")
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
        if self._preload is None:
            return {}
        return {
            "LD_PRELOAD": str(self._preload),
            "SLEPT_FILE": str(self._clock),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def _set(self, text: str) -> None:
        draft = self._clock.with_suffix(".draft")
        draft.write_text(text + "\n")
        draft.replace(self._clock)

    def _disturb(self, daemon: subprocess.Popen[bytes]) -> None:
        if self.name in WALL_JUMPS:
            for jump in WALL_JUMPS[self.name]:
                self._set(jump)
                self._look_at_the_numbers()
                time.sleep(self.rng.uniform(0, 0.3))
        elif self.name == "sleep":
            for night in range(1, 4):
                self._set(str(night * 8 * 3600))
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


WALL_JUMPS: Mapping[str, tuple[str, ...]] = {
    "hours forwards": ("+3h",),
    "hours backwards": ("-3h",),
    "weeks forwards": ("+40d",),
    "decades backwards": ("-50y",),
    "to and fro": ("+5h", "-5h", "+40d", "-40d", "+0"),
}
NAMES = (*WALL_JUMPS, "sleep", "daemon stopped", "attempts stopped", "namespace", "sleep")
PRELOADED = (*WALL_JUMPS, "sleep")


@pytest.fixture(scope="module")
def preloads(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The libraries that make clocks jump."""
    found = [path for pattern in FAKETIME for path in Path("/").glob(pattern[1:])]
    if not found:
        pytest.skip("needs libfaketime (Debian: faketime)")
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    sleepy = tmp_path_factory.mktemp("sleepy") / "sleepy.so"
    source = Path(__file__).with_name("sleepy.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(sleepy), str(source)], check=True)
    return {"faketime": found[0], "sleepy": sleepy}


def _can(name: str) -> bool:
    return name != "namespace" or (os.geteuid() == 0 and _runs(*NAMESPACE, "true"))


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@sizes("episodes", short=10, long=200)
def test_clocks(episodes: int, tmp_path: Path, preloads: Mapping[str, Path], report: Report) -> None:
    """Whatever the clocks do, a timeout is one by the time that the worker had, and everything else is as ever."""
    seed = random.SystemRandom().randrange(2**32)
    tally, lock = Tally(), threading.Lock()
    names = [name for name in NAMES if _can(name)]

    def one(number: int) -> None:
        box = Box(tmp_path / str(number), numbers=1, kinds=KINDS)
        episode = Episode(box, names[number % len(names)], random.Random(seed + number), preloads)
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


def test_the_preloads_do_what_they_are_for(tmp_path: Path, preloads: Mapping[str, Path]) -> None:
    """Or nothing above would test anything: each moves its clocks, while the process runs, and no other."""
    clocks = ("CLOCK_REALTIME", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC")
    moved: dict[str, list[bool]] = {}
    look: Callable[[str], str] = "import time; print(*(time.clock_gettime(getattr(time, n)) for n in {!r}))".format
    code = f"""{look(clocks)}
input()
{look(clocks)}
"""
    for name, (before, after) in {"faketime": ("+0", "+40d"), "sleepy": ("0", "3456000")}.items():
        box = Box(tmp_path / name, numbers=1, kinds=KINDS)
        episode = Episode(box, "sleep" if name == "sleepy" else "weeks forwards", random.Random(0), preloads)
        episode._set(before)
        with subprocess.Popen(
            ["python3", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **episode._environment()},
        ) as process:
            assert process.stdout is not None
            first = [float(text) for text in process.stdout.readline().split()]
            episode._set(after)
            output, _ = process.communicate("\n")
        second = [float(text) for text in output.split()]
        moved[name] = [b - a > 3_000_000 for a, b in zip(first, second, strict=True)]
    assert moved == {"faketime": [True, False, False], "sleepy": [True, True, False]}
