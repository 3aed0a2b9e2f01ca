"""How long a daemon takes from its exec until it answers, with a large store: `python -m benchmarks.recovery`.

The store is made by the store's own commits: every cell has its attempts, all but the last of which ran out of memory,
with an end, points, and what was learned each; some cells have one that no daemon saw the end of. Beside it, a bare
Python that reads every row of the same file, which is what the least careful of programs would take.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import anyio
import psutil

from benchmarks.machine import command_line, describe
from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, attempt_id
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.history import Duration, Observation
from boundd.core.model.matrix import expand
from boundd.core.model.outcomes import AttemptError, Measurement, Outcome, PointRecord, Verdict
from boundd.core.model.records import (
    Record,
    SaveAttempt,
    SaveCell,
    SaveDuration,
    SaveEnd,
    SaveObservation,
    SavePaused,
    SavePoint,
)
from boundd.store.sqlite import SqliteStore

TARGET_S = 2.0
GIB = 1024**3
RECORDS_A_COMMIT = 5000
LIVE = 8
"""Cells with an attempt that has no end: the daemon finds nothing of it alive."""
STEPS = (10, 20, 25, 50)
METHODS = ("deepcache", "tgate", "tome", "deepcache+tome")
YARDSTICK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
    connection.execute(f'SELECT * FROM "{name}"').fetchall()
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One turn: seconds to ready and of the bare read, and what each spent of the processor meanwhile."""

    ready_s: float
    ready_processor_s: float
    bare_s: float
    bare_processor_s: float


def axes(cells: int) -> dict[str, list[object]]:
    """The axes of a matrix of about so many cells, in the shape that people's have."""
    seeds = max(1, cells // (len(STEPS) * len(METHODS)))
    return {"model": ["SD1.5"], "seed": list(range(seeds)), "steps": list(STEPS), "method": list(METHODS)}


def config(cells: int) -> str:
    """A config with this matrix. It is paused, so that nothing is started while it is timed."""
    listed = "\n".join(f"{name} = {str(values).replace(chr(39), chr(34))}" for name, values in axes(cells).items())
    return f"""
[daemon]
state_dir = "state"
export = "speedup_bounds.json"
[devices]
backend = "simulated"
[[devices.simulated]]
name = "Simulated"
memory = "24GiB"
[matrix.axes]
{listed}
[matrix.constants]
batch_size = 4
num_samples = 32
[worker]
command = ["{{python}}", "-c", "pass"]
"""


def records(cell: Cell, attempts: int, points: int, *, live: bool) -> Iterator[Record]:
    """All that the store keeps of a cell: its attempts before the last ran out of memory."""
    measured = Measurement(
        2.5, 2.25, {"parameters": {"interval": 3}, "speedup": 2.25, "score_loss": 0.01}, Isolation.EXCLUSIVE,
        details={"fingerprint": {"torch": "2.6.0", "diffusers": "0.35.1", "driver": "570.86.10", "device": "A5000"}},
    )  # fmt: skip
    error = AttemptError(ErrorKind.OUT_OF_MEMORY, "CUDA out of memory. Tried to allocate 2.00 GiB", 1.7e9, "baseline")
    last_error: AttemptError | None = None
    for number in range(1, attempts + 1):
        attempt = Attempt(
            *(attempt_id(cell, number), cell.key, cell.label, number, "SIM-0", 8 * GIB, 7 * GIB, 4, False),
            *(3600.0, 10.0, 1.7e9 + number, 1000.0 + number),
            estimate_bytes=7 * GIB,
            points=points,
        )
        if number == attempts and live:
            running = CellRecord(cell, CellPolicy(), CellState.RUNNING, attempts, error=last_error)
            yield from (SaveCell(running), SaveAttempt(attempt))
            return
        good = number == attempts
        verdict = (
            Verdict(Outcome.SUCCEEDED, measured, None, 0, None, 600.0 + number, 6 * GIB, 7 * GIB, 3 * GIB)
            if good
            else Verdict(Outcome.OUT_OF_MEMORY, None, error, 1, None, 60.0, 6 * GIB, 7 * GIB, 3 * GIB)
        )
        yield SaveEnd(dataclasses.replace(attempt, state=AttemptState.ENDED), verdict, 1.7e9 + 700 * number)
        yield from (
            SavePoint(attempt.id, n, PointRecord({"interval": n}, 1 + n / 4, n / 100, Isolation.EXCLUSIVE))
            for n in range(points)
        )
        subject = f"model={cell.parameters['model']};method={cell.parameters['method']}"
        yield SaveObservation(Observation(subject, 4, 7 * GIB, censored=not good, pixels=512 * 512, torch="2.6.0"))
        last_error = error
    steps = int(cell.parameters["steps"])
    names = (str(cell.parameters["model"]), str(cell.parameters["method"]))
    yield SaveDuration(Duration(*names, "Simulated", steps, 32, 4, 600.0))
    yield SaveCell(
        CellRecord(
            cell, CellPolicy(), CellState.SUCCEEDED, attempts, measurement=measured, measured_device="SIM-0",
            measured_batch_size=4, duration_s=600.0,
        )
    )  # fmt: skip


async def fill(path: Path, cells: int, attempts: int, points: int) -> tuple[int, int]:
    """Make the store; how many cells and attempts are in it."""
    matrix = expand(axes(cells), {"batch_size": 4, "num_samples": 32})
    store = await SqliteStore.open(path)
    try:
        await store.commit([SavePaused(True)])
        batch: list[Record] = []
        for number, cell in enumerate(matrix):
            batch += records(cell, max(1, attempts // len(matrix)), points, live=number < LIVE)
            if len(batch) >= RECORDS_A_COMMIT:
                await store.commit(batch)
                batch = []
        await store.commit(batch)
    finally:
        await store.aclose()
    return len(matrix), len(matrix) * max(1, attempts // len(matrix))


def ready(folder: Path) -> tuple[float, float]:
    """Seconds, and processor seconds, from the exec of a daemon here until its /healthz answers 200; it is ended then.

    Raises:
        AssertionError: it ended before.
    """
    path = folder / "state" / "boundd.sock"
    command = [sys.executable, "-m", "boundd", "run", "--config", str(folder / "config.toml"), "--log-format", "json"]
    with (folder / "log").open("wb") as log:
        begun = time.perf_counter()
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not _answers(path):
                assert daemon.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.002)
            took_s = time.perf_counter() - begun
            spent = psutil.Process(daemon.pid).cpu_times()
            return took_s, spent.user + spent.system
        finally:
            daemon.terminate()
            daemon.wait()


def _answers(path: Path) -> bool:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def bare(path: Path) -> tuple[float, float]:
    """Seconds, and processor seconds, that a bare Python takes to read every row."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", YARDSTICK, str(path)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path, rounds: int) -> list[Round]:
    """`rounds` turns of both, each daemon on a fresh copy of the store: a recovered one has nothing left to find."""
    found = []
    for number in range(rounds):
        state = folder / f"round-{number}"
        (state / "state").mkdir(parents=True)
        shutil.copy(folder / "config.toml", state)
        for suffix in ("", ".commits"):
            shutil.copy(folder / f"boundd.db{suffix}", state / "state")
        read = bare(state / "state" / "boundd.db")
        found.append(Round(*ready(state), *read))
        shutil.rmtree(state)
    return found


def report(found: list[Round], cells: int, attempts: int, points: int, size_bytes: int) -> str:
    """The table, in seconds."""
    lines = [
        f"{cells:,} cells, {attempts:,} attempts, {points:,} points, {size_bytes / 1024**2:.1f} MiB; seconds",
        "round   to ready   of the processor   bare read of every row   of the processor",
    ]
    for number, each in enumerate(found, 1):
        ours = f"{each.ready_s:8.2f}   {each.ready_processor_s:16.2f}"
        lines.append(f"{number:5}   {ours}   {each.bare_s:22.2f}   {each.bare_processor_s:16.2f}")
    middle, spent, read, read_spent = (statistics.median(column) for column in zip(*map(astuple, found), strict=True))
    lines.append(
        f"median: {middle:.2f} s to ready, {spent:.2f} s of the processor (the target: ready in "
        f"under {TARGET_S:.0f} s); {read:.2f} s bare, {read_spent:.2f} s of the processor"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--attempts", type=int, default=50_000)
    parser.add_argument("--points", type=int, default=2, help="of each attempt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the store here, and leave it")
    options = parser.parse_args()
    print(f"$ {command_line()}\n{describe()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="boundd-recovery-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config(options.cells))
        cells, attempts = anyio.run(fill, folder / "boundd.db", options.cells, options.attempts, options.points)
        found = measure(folder, options.rounds)
        size = (folder / "boundd.db").stat().st_size
    print(report(found, cells, attempts, attempts * options.points, size))


if __name__ == "__main__":
    main()
