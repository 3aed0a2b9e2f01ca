"""A long run of a daemon under load, to find leaks of memory, descriptors, threads, files or response time.

The real daemon as a process of its own, with its real store, shims, logs and export; only the devices are simulated.
Short cells are retried for ever while clients ask, followers come and go (some never read), logs are read as they grow,
and the config is read anew. Memory, descriptors, threads, files and the daemon's answering time are sampled; the
slopes are least squares over the means of equal blocks of time, the first part of the run left out.

A slope fails the run where it is above its bound by more than three standard errors. Files grow with what was measured,
so they have no bound but the write-ahead log, which must not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import psutil

from benchmarks.machine import command_line, describe
from boundd.client import Client, NoDaemonError, RefusedError
from boundd.client.client import cell_path

MIB = 1024**2
HOUR_S = 3600.0
CELLS = 96
BLOCKS = 24
"""So many means: neighbouring samples say the same, and would make the standard errors look small."""
WARM_UP_SHARE, WARM_UP_S, MOST_WARM_UP_SHARE = 0.25, 900.0, 0.5
"""Left out: a quarter of the run, but not less than a quarter of an hour, and not more than half of it."""
SIGNIFICANCE = 3.0
SAMPLE_S = 1.0
PAUSE_S = 0.05
START_PATIENCE_S = 60.0
WAL_LIMIT_BYTES = 32 * MIB
"""SQLite copies the log back at 4 MiB; a reader that never ends would keep it from that."""

WORKER = """\
import json, os, random, time
def write(**line):
    with open(os.environ["BOUNDD_RESULTS"], "a") as results:
        results.write(json.dumps(line) + "\\n")
for n in range(random.randrange(6)):
    print("point", n, "x" * random.randrange(2000), flush=True)
    write(type="point", parameters={"n": n}, speedup=1.0 + n, score_loss=None, isolation="exclusive")
    write(type="progress", done=n + 1, total=6)
    time.sleep(random.random() / 4)
write(type="memory", peak_allocated_bytes=1 << 28, peak_reserved_bytes=1 << 29)
if random.random() < 0.05:
    raise SystemExit(3)
write(type="result", max_speedup=1.0 + random.random(), max_speedup_within_tolerance=None, isolation="exclusive")
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the daemon. Bytes, numbers, seconds."""

    at_s: float
    rss_bytes: float
    uss_bytes: float
    zygote_rss_bytes: float
    descriptors: float
    threads: float
    wal_bytes: float
    store_bytes: float
    answer_s: float


@dataclass(frozen=True, slots=True)
class Slope:
    """What a line through the samples says. All in the measure's own unit, `per_hour` and its error an hour."""

    mean: float
    per_hour: float
    error_per_hour: float


@dataclass(frozen=True, slots=True)
class Measure:
    """What is told of one field of the samples."""

    field: str
    title: str
    unit: float
    """What a printed 1 is worth."""
    bound_per_hour: float | None
    """In the printed unit; None where it may grow."""


MEASURES = (
    Measure("uss_bytes", "memory of its own (USS), MiB", MIB, 2.0),
    Measure("rss_bytes", "resident memory (RSS), MiB", MIB, 2.0),
    Measure("zygote_rss_bytes", "the zygote's RSS, MiB", MIB, 1.0),
    Measure("descriptors", "descriptors", 1.0, 2.0),
    Measure("threads", "threads", 1.0, 1.0),
    Measure("wal_bytes", "write-ahead log, MiB", MIB, None),
    Measure("store_bytes", "store, MiB", MIB, None),
    Measure("answer_s", "time to answer /healthz, ms", 0.001, None),
)


def slope(at_s: list[float], values: list[float]) -> Slope:
    """Least squares of the means of equal blocks of time, with the standard error of its slope."""
    means = list(_blocks(at_s, values))
    middle_s = statistics.fmean(at for at, _ in means)
    mean = statistics.fmean(value for _, value in means)
    spread = sum((at - middle_s) ** 2 for at, _ in means)
    if len(means) < 3 or spread == 0:
        return Slope(mean, 0.0, math.inf)
    per_s = sum((at - middle_s) * (value - mean) for at, value in means) / spread
    left = sum((value - mean - per_s * (at - middle_s)) ** 2 for at, value in means)
    error_per_s = math.sqrt(left / (len(means) - 2) / spread)
    return Slope(mean, per_s * HOUR_S, error_per_s * HOUR_S)


def _blocks(at_s: list[float], values: list[float]) -> Iterator[tuple[float, float]]:
    size = max(1, len(values) // BLOCKS)
    for start in range(0, len(values) - size + 1, size):
        yield statistics.fmean(at_s[start : start + size]), statistics.fmean(values[start : start + size])


def is_too_steep(found: Slope, measure: Measure) -> bool:
    """Whether the slope is above its bound by more than chance would make it."""
    if measure.bound_per_hour is None:
        return False
    return found.per_hour - SIGNIFICANCE * found.error_per_hour > measure.bound_per_hour * measure.unit


@dataclass(slots=True)
class Soaked:
    """What a run has shown."""

    samples: list[Sample]
    counts: Counter[str]
    duration_s: float
    attempts: int = 0
    state_bytes: int = 0
    exit_code: int | None = None
    errors: list[str] = field(default_factory=list)

    def settled(self) -> list[Sample]:
        """The samples without the first part of the run, in which caches fill."""
        first_s = self.samples[0].at_s if self.samples else 0.0
        warm_s = min(max(WARM_UP_SHARE * self.duration_s, WARM_UP_S), MOST_WARM_UP_SHARE * self.duration_s)
        return [each for each in self.samples if each.at_s - first_s >= warm_s]

    def slopes(self) -> list[tuple[Measure, Slope]]:
        """Every measure's."""
        samples = self.settled()
        times = [sample.at_s for sample in samples]
        return [(each, slope(times, [getattr(sample, each.field) for sample in samples])) for each in MEASURES]

    def failures(self) -> list[str]:
        """Why the run is none to be content with."""
        found = [f"{measure.title}: grows" for measure, line in self.slopes() if is_too_steep(line, measure)]
        if max(sample.wal_bytes for sample in self.samples) > WAL_LIMIT_BYTES:
            found.append("the write-ahead log outgrew its limit")
        if self.exit_code != 0:
            found.append(f"the daemon ended with {self.exit_code}")
        return found + self.errors

    def report(self) -> str:
        """The table."""
        lines = [
            f"{self.duration_s:.0f} s, {len(self.samples)} samples; {self.attempts} attempts, "
            + ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items())),
            f"state folder at the end: {self.state_bytes / MIB:.1f} MiB",
            f"{'':34}{'mean':>10}{'an hour':>12}{'std. error':>12}{'bound':>8}",
        ]
        for measure, line in self.slopes():
            numbers = [value / measure.unit for value in (line.mean, line.per_hour, line.error_per_hour)]
            bound = "" if measure.bound_per_hour is None else f"{measure.bound_per_hour:g}"
            verdict = "  TOO STEEP" if is_too_steep(line, measure) else ""
            told = f"{numbers[0]:10.2f}{numbers[1]:+12.3f}{numbers[2]:12.3f}"
            lines.append(f"{measure.title:34}{told}{bound:>8}{verdict}")
        worst = sorted(sample.answer_s for sample in self.samples)
        lines.append(f"answers: median {1000 * worst[len(worst) // 2]:.1f} ms, worst {1000 * worst[-1]:.1f} ms")
        return "\n".join(lines)


class Soak:
    """A daemon in a folder, and everybody who wants something of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._client = Client(folder / "s")
        self._over = threading.Event()
        self._counts: Counter[str] = Counter()
        self._errors: list[str] = []
        self._begun_s = 0.0
        (folder / "worker.py").write_text(WORKER)
        (folder / "config.toml").write_text(_config(0))

    def run(self, duration_s: float) -> Soaked:
        """Soak it for so long."""
        log = self._folder / "log.jsonl"
        command = [sys.executable, "-m", "boundd", "run", "--config", str(self._folder / "config.toml")]
        with log.open("wb") as told:
            daemon = subprocess.Popen([*command, "--log-format", "json"], stdout=told, stderr=told)
        people = [
            threading.Thread(target=self._again, args=(act, random.Random(self._seed + place)), daemon=True)
            for place, act in enumerate((self._retry, self._ask, self._ask, self._follow, self._follow, self._stall))
        ]
        people += [
            threading.Thread(target=self._again, args=(act, random.Random(self._seed + 10 + place)), daemon=True)
            for place, act in enumerate((self._read_log, self._reload, lambda rng: self._hang_up(daemon, rng)))
        ]
        try:
            samples = self._watch(daemon, people, duration_s)
        finally:
            self._over.set()
            daemon.send_signal(signal.SIGINT)
            try:
                code = daemon.wait(START_PATIENCE_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                code = daemon.wait()
        for each in people:
            each.join(START_PATIENCE_S)
        attempts = sum(1 for _ in (self._folder / "state/attempts").iterdir())
        size = sum(path.stat().st_size for path in (self._folder / "state").rglob("*") if path.is_file())
        return Soaked(samples, self._counts, duration_s, attempts, size, code, self._errors)

    def _watch(
        self, daemon: subprocess.Popen[bytes], people: list[threading.Thread], duration_s: float
    ) -> list[Sample]:
        until_s = time.monotonic() + START_PATIENCE_S
        while not self._answers():
            if daemon.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"the daemon doesn't answer: {(self._folder / 'log.jsonl').read_text()[-2000:]}")
            time.sleep(PAUSE_S)
        samples, self._begun_s = [], time.monotonic()
        for each in people:
            each.start()
        while (at_s := time.monotonic() - self._begun_s) < duration_s and daemon.poll() is None:
            with contextlib.suppress(NoDaemonError):
                samples.append(self._sample(psutil.Process(daemon.pid), at_s))
            time.sleep(min(SAMPLE_S, duration_s / 40))
        return samples

    def _answers(self) -> bool:
        try:
            self._client.get("/healthz")
        except (NoDaemonError, RefusedError):
            return False
        return True

    def _sample(self, daemon: psutil.Process, at_s: float) -> Sample:
        begun_s = time.perf_counter()
        self._client.get("/healthz")
        answer_s = time.perf_counter() - begun_s
        memory = daemon.memory_full_info()
        store = self._folder / "state/boundd.db"
        return Sample(
            at_s,
            memory.rss,
            memory.uss,
            _zygote_rss_bytes(daemon),
            daemon.num_fds(),
            daemon.num_threads(),
            _size(store.with_name("boundd.db-wal")),
            _size(store),
            answer_s,
        )

    # The people

    def _again(self, act: Callable[[random.Random], None], rng: random.Random) -> None:
        while not self._over.is_set():
            try:
                act(rng)
            except NoDaemonError as error:
                if not self._over.is_set():
                    self._errors.append(f"after {time.monotonic() - self._begun_s:.0f} s the daemon went away: {error}")
                    return
            except RefusedError as error:
                self._errors.append(f"refused: {error}")
                return

    def _did(self, what: str, rest_s: float) -> None:
        self._counts[what] += 1
        self._over.wait(rest_s)

    def _retry(self, rng: random.Random) -> None:
        self._client.post("/v1/retry", {"query": [rng.choice(["state=succeeded", "state=failed", "*/1*"])]})
        self._did("retries", rng.uniform(0.1, 0.5))

    def _ask(self, rng: random.Random) -> None:
        label = f"none/{rng.randrange(CELLS)}"
        path = rng.choice(["/v1/status", "/v1/cells", "/v1/devices", "/v1/plan", "/v1/footprints", cell_path(label)])
        try:
            self._client.get(path)
        except NoDaemonError as error:
            raise NoDaemonError([(path, str(error))]) from error
        self._did("requests", rng.uniform(0, 2 * PAUSE_S))

    def _follow(self, rng: random.Random) -> None:
        until_s = time.monotonic() + rng.uniform(0.1, 3)
        with contextlib.closing(self._client.stream("/v1/events")) as stream:
            for _ in stream:
                if time.monotonic() > until_s or self._over.is_set():
                    break
        self._did("followers", 0.0)

    def _stall(self, rng: random.Random) -> None:
        """A follower that reads one line and then nothing, and goes without a word."""
        with contextlib.closing(self._client.stream("/v1/events")) as stream:
            next(stream, None)
            self._over.wait(rng.uniform(1, 10))
        self._did("stalled followers", 0.0)

    def _read_log(self, rng: random.Random) -> None:
        path = cell_path(f"none/{rng.randrange(CELLS)}", "/logs")
        until_s = time.monotonic() + rng.uniform(0.1, 2)
        try:
            with contextlib.closing(self._client.stream(path, {"follow": "true"})) as stream:
                for _ in stream:
                    if time.monotonic() > until_s:
                        break
        except RefusedError:
            pass  # The cell has not been tried yet.
        self._did("logs read", PAUSE_S)

    def _reload(self, rng: random.Random) -> None:
        (self._folder / "next.toml").write_text(_config(rng.randrange(10)))
        (self._folder / "next.toml").replace(self._folder / "config.toml")
        self._client.post("/v1/reload")
        self._did("reloads", rng.uniform(1, 4))

    def _hang_up(self, daemon: subprocess.Popen[bytes], rng: random.Random) -> None:
        daemon.send_signal(signal.SIGHUP)
        self._did("hang-ups", rng.uniform(2, 6))


def _zygote_rss_bytes(daemon: psutil.Process) -> float:
    # Not its USS: that is a quarter of it while a shim shares its pages, and all of it while none lives.
    for child in daemon.children():
        with contextlib.suppress(psutil.Error):
            if any(argument.endswith("zygote.py") for argument in child.cmdline()):
                return float(child.memory_info().rss)
    return 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _config(variant: int) -> str:
    device = '[[devices.simulated]]\nname = "Simulated"\nmemory = "3GiB"\n'
    return f"""
[daemon]
state_dir = "state"
socket = "s"
[devices]
backend = "simulated"
margin = "0MiB"
{device * 2}
[matrix.axes]
model = ["none"]
seed = {list(range(CELLS))}
# The axis is one that changes no footprint: sixty-four peaks are remembered of each kind of work, and there is one.
[worker]
command = ["{{python}}", "-I", "-S", "worker.py"]
timeout = "60s"
[retry]
backoff = "{100 + variant}ms"
[[rule]]
match = {{}}
footprint = "1GiB"
"""


def main() -> int:
    """Soak, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=HOUR_S, help="how long (default: an hour)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--samples", type=Path, help="a file for every sample, as JSON lines")
    options = parser.parse_args()
    print(f"$ {command_line()}\n{describe()}, seed {options.seed}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="boundd-soak-") as name:
        soaked = Soak(Path(name), options.seed).run(options.seconds)
    if options.samples is not None:
        names = [each.name for each in fields(Sample)]
        rows = [json.dumps({name: getattr(sample, name) for name in names}) for sample in soaked.samples]
        options.samples.write_text("\n".join(rows) + "\n")
    print(soaked.report())
    for failure in soaked.failures():
        print(f"FAILED: {failure}")
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    return 1 if soaked.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
