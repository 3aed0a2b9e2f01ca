"""A trace under every policy with real processes: the real daemon, real workers, and a driver played by the fake NVML.

Time is compressed: a second of the trace takes `second_s`, chosen so that the shortest cell is still long beside what
starting a process costs. Workers (worker.c) sleep, and take device memory from the fake driver as a GPU's would;
foreign processes are processes. Ours is `boundd run --until-idle`, as anybody runs it; the other policies run in the
same daemon with another planner (daemon.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.packing.clairvoyant import Pace, candidates, lower_bound_s
from benchmarks.packing.policies import POLICIES
from benchmarks.packing.simulated import CLAIRVOYANT, MOST_STEPS, OURS, Score, score_of, with_first_failures
from benchmarks.packing.traces import TRACES, Trace, thinned
from benchmarks.packing.witness import Witnessed, witness
from boundd.sim import Failure, Foreign, SimCell, World
from tests.fake_nvml import FakeNvml, build
from tests.sim.daemon import simulate

SHORTEST_S = 1.2
"""How long the shortest cell takes: a good twenty times what ending one and starting the next takes."""
LATENCY_S = 0.5
"""How long before a foreign process comes, and after it goes, the clairvoyant keeps away from it."""
EVERY: Mapping[str, int] = {"matrix81": 3, "small200": 1, "mixed": 3, "foreign": 3, "wrong": 2}
"""Every so manieth cell of a trace is run: all of them would take hours at that pace."""
HOST = 'host_memory = "16MiB"\ncores = 0\n'
"""The workers compute nothing, so that many of them get along on few cores."""
ENDINGS = {Failure.BUG: "bug", Failure.SHIM_LOST: "lost"}
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What is compiled once."""

    folder: Path
    library: Path
    worker: Path


@dataclass(frozen=True, slots=True)
class Job:
    """A trace at a pace; `name`, `seed` and `every` are what it is made from."""

    name: str
    seed: int
    every: int
    trace: Trace
    second_s: float

    @classmethod
    def of(cls, name: str, seed: int, every: int, shortest_s: float = SHORTEST_S) -> Job:
        """The trace, thinned, at the pace that makes its shortest cell take `shortest_s`."""
        trace = thinned(TRACES[name](seed), every)
        return cls(name, seed, every, trace, shortest_s / min(each.truth.duration_s for each in trace.world.cells))


@dataclass(frozen=True, slots=True)
class Found:
    """A trace's scores, with what a run took in real seconds, by policy."""

    scores: list[Score]
    took_s: Mapping[str, float]


def compiled(folder: Path) -> Bench:
    """The fake driver and the worker, compiled into `folder`.

    Raises:
        subprocess.CalledProcessError: gcc failed; it says why on standard error.
        FileNotFoundError: there is no gcc.
    """
    library = build(folder / "lib")
    worker = folder / "worker"
    source = Path(__file__).with_name("worker.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(worker), str(source), "-ldl"], check=True)
    return Bench(folder, library, worker)


def real_scores(bench: Bench, job: Job, policies: tuple[str, ...] = tuple(POLICIES)) -> Found:
    """Every policy on a trace: ours, then the clairvoyant with ours' first failures, then the others side by side."""
    trace = job.trace
    ours = run(bench, job, OURS, trace.world)
    burdened = with_first_failures(trace.world, ours.outcomes.attempts)
    seen = {OURS: ours, CLAIRVOYANT: run(bench, job, CLAIRVOYANT, burdened, _best_order(trace, burdened, job.seed))}
    with ThreadPoolExecutor(max(1, len(policies))) as pool:
        seen |= dict(zip(policies, pool.map(lambda name: run(bench, job, name, trace.world), policies), strict=True))
    bound_s = lower_bound_s(trace.world, trace.rules.batch_ladder)
    order = (*policies, OURS, CLAIRVOYANT)
    scores = [score_of(name, trace.world, seen[name].outcomes, bound_s) for name in order]
    return Found(scores, {name: seen[name].took_s for name in order})


def _best_order(trace: Trace, burdened: World, seed: int) -> int:
    """Which of the clairvoyant's orders is best, by simulation: it knows everything, so it knows that too."""
    makespans = [
        simulate(burdened, trace.rules, policy=policy, seed=seed, checks=False, max_steps=MOST_STEPS).makespan_s
        for policy in candidates(burdened, trace.rules.batch_ladder)
    ]
    return makespans.index(min(makespans))


def run(bench: Bench, job: Job, policy: str, world: World, candidate: int = 0, *, sick: str = "") -> Witnessed:
    """One policy on a trace whose cells behave as in `world`; on the device `sick`, every worker dies at once.

    Raises:
        RuntimeError: the daemon did not end as it should; the message has its last words.
    """
    folder = bench.folder / f"{job.name}-{job.seed}-{policy.replace(' ', '-')}"
    truths, record = folder / "truths", folder / "record"
    truths.mkdir(parents=True)
    for each in world.cells:
        (truths / each.cell.digest).write_text(_truth(each, job.second_s))
    config = folder / "config.toml"
    config.write_text(_config(job, [str(bench.worker), str(truths), str(record)]))
    fake = FakeNvml(folder / "nvml.state", bench.library)
    for device in world.devices:
        # The driver's own share is left out, as in the simulation: the clairvoyant packs to the last byte.
        fake.add(device.uuid, device.name, device.total_bytes / 1024**3).reserved = 0
    command = [sys.executable, "-m", "boundd"]
    if policy != OURS:
        spec = folder / "spec.json"
        pace = Pace(job.second_s, None, LATENCY_S / job.second_s)
        spec.write_text(
            json.dumps(
                {"policy": policy, "trace": job.name, "seed": job.seed, "every": job.every, "candidate": candidate}
                | {"pace": asdict(pace)}
            )
        )
        command = [sys.executable, "-m", "benchmarks.packing.daemon", str(spec)]
    command += ["run", "--config", str(config), "--until-idle", "--log-format", "json"]
    hidden = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "BOUNDD_CONFIG")
    environ = {name: value for name, value in fake.environ.items() if name not in hidden} | {"PACKING_SICK": sick}
    _see_through(bench, job, environ, command, folder)
    return witness(job.trace, folder / "state" / "boundd.db", record, job.second_s)


def _see_through(bench: Bench, job: Job, environ: Mapping[str, str], command: list[str], folder: Path) -> None:
    """The daemon to its end, with foreign processes that come and go beside it."""
    longest_s = sum(each.truth.duration_s for each in job.trace.world.cells) * job.second_s
    with (folder / "log").open("wb") as log, (folder / "output").open("wb") as output:
        daemon = subprocess.Popen(command, env=environ, stdout=output, stderr=log, start_new_session=True)
        visitors = Visitors(bench, job, environ, folder / "record")
        try:
            status = daemon.wait(3 * longest_s + PATIENCE_S)
        except subprocess.TimeoutExpired:
            daemon.terminate()
            raise
        finally:
            visitors.end()
    if status not in (0, 3):
        raise RuntimeError(f"{' '.join(command)} ended with {status}: {(folder / 'log').read_text()[-2000:]}")


class Visitors:
    """Foreign processes: each comes and goes at its time, counted from the first worker's first word."""

    def __init__(self, bench: Bench, job: Job, environ: Mapping[str, str], record: Path) -> None:
        self._bench = bench
        self._job = job
        self._environ = environ
        self._record = record
        self._over = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def end(self) -> None:
        """End those that are still there; nobody comes any more."""
        self._over.set()
        self._thread.join()
        for process in self._processes:
            process.terminate()
            process.wait()

    def _receive(self) -> None:
        while not self._record.exists():
            if self._over.wait(0.01):
                return
        begun_s = time.monotonic()
        for visit in sorted(self._job.trace.world.faults.foreign, key=lambda visit: visit.from_s):
            if self._over.wait(max(0.0, begun_s + visit.from_s * self._job.second_s - time.monotonic())):
                return
            self._processes.append(self._start(visit))

    def _start(self, visit: Foreign) -> subprocess.Popen[bytes]:
        stays_s = (visit.until_s - visit.from_s) * self._job.second_s
        command = [self._bench.worker, self._record, visit.device, str(visit.size_bytes), f"{stays_s:.6f}"]
        return subprocess.Popen(command, env=dict(self._environ))


def _truth(cell: SimCell, second_s: float) -> str:
    """How a cell behaves, as worker.c reads it: the last of its endings is that of every attempt from there on."""
    truth = cell.truth
    marks = [f"{at} {share}" for at, share in truth.ramp]
    endings = [f"{ENDINGS[each.failure]} {each.at}" for each in truth.mishaps]
    endings.append(f"{ENDINGS[truth.always.failure]} {truth.always.at}" if truth.always else "result 1.0")
    head = f"{truth.duration_s * second_s:.6f} {truth.fixed_bytes} {truth.image_bytes}"
    return "\n".join([head, str(len(marks)), *marks, str(len(endings)), *endings, ""])


def _config(job: Job, command: list[str]) -> str:
    """A config whose matrix is the trace's cells: one as the product of the axes, the others included one by one."""
    cells, rules = [each.cell for each in job.trace.world.cells], job.trace.rules
    axes = cells[0].label.split("/")
    names = ("model", "scheduler", "steps", "method")
    assert [str(cells[0].parameters[name]) for name in names] == axes, "the axes are not the labels' any more"
    lines = [
        '[daemon]\nstate_dir = "state"\nexport = "bounds.json"',
        f'[devices]\nbackend = "nvml"\nmargin = "{rules.margin_bytes}B"',
        "[matrix.axes]",
        *(f"{name} = [{json.dumps(cells[0].parameters[name])}]" for name in names),
        "[matrix.constants]",
        *(f"{name} = {value}" for name, value in cells[0].parameters.items() if name not in names),
    ]
    for cell in cells[1:]:
        lines += ["[[matrix.include]]", *(f"{name} = {json.dumps(cell.parameters[name])}" for name in names)]
    lines += ["[[rule]]\nmatch = {}", HOST]
    for model, policy in {str(each.cell.parameters["model"]): each.policy for each in job.trace.world.cells}.items():
        lines += [f"[[rule]]\nmatch = {{ model = {json.dumps(model)} }}"]
        lines += [f"exclusive = {str(policy.exclusive).lower()}"]
        lines += [] if policy.footprint_bytes is None else [f'footprint = "{policy.footprint_bytes}B"']
    lines += [f'[worker]\ncommand = {json.dumps(command)}\ntimeout = "48h"\ngrace = "1s"']
    lines += [f"[retry]\nbatch_ladder = {list(rules.batch_ladder)}\nmax_attempts = {rules.max_attempts}"]
    # What is a length of time in boundd's rules is as compressed as the cells are.
    lines += [f'backoff = "{rules.backoff_s * job.second_s:.6f}s"', f'quick = "{rules.quick_s * job.second_s:.6f}s"']
    return "\n".join(lines) + "\n"
