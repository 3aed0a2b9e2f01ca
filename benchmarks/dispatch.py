"""Overhead per cell: cells that do nothing, run by boundd and by a plain subprocess loop.

Both run the same command with the same number of parallel processes, alternating, on the same machine. boundd is the
real daemon as a process of its own, with its real store (WAL, synchronous=FULL), real shims, logs and export; only the
devices are simulated, so that memory allows the parallelism that is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.machine import command_line, describe

DEVICES = 2
WORKER = """\
import os
with open(os.environ["BOUNDD_RESULTS"], "a") as results:
    results.write('{"type": "result", "max_speedup": 1.0, "max_speedup_within_tolerance": null, '
                  '"isolation": "exclusive"}\\n')
"""
"""A cell of no length: it says its result and ends."""


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of each: seconds for all cells. `daemon_s` is from the first intent stored to the last end stored."""

    bare_s: float
    daemon_s: float
    whole_s: float
    """The daemon's process from start to exit: loading, the last export and the table included."""


def bare(folder: Path, cells: int, parallelism: int) -> float:
    """Seconds that a plain loop over `subprocess.run` takes, `parallelism` at a time."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def one(number: int) -> None:
        results = folder / f"bare-{number}.jsonl"
        subprocess.run(
            [sys.executable, str(folder / "worker.py")],
            env={**environ, "BOUNDD_RESULTS": str(results)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )

    begun = time.perf_counter()
    with ThreadPoolExecutor(parallelism) as pool:
        list(pool.map(one, range(cells)))
    return time.perf_counter() - begun


def through_boundd(folder: Path, cells: int, parallelism: int) -> tuple[float, float]:
    """Seconds between the first intent and the last end, and from the daemon's start to its exit.

    Raises:
        AssertionError: not every cell succeeded in its first attempt.
    """
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(_config(cells, parallelism))
    log = folder / "log.jsonl"
    begun = time.perf_counter()
    with log.open("wb") as errors:
        ended = subprocess.run(
            [sys.executable, "-m", "boundd", "run", "--config", str(config), "--until-idle", "--log-format", "json"],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=False,
        )
    whole_s = time.perf_counter() - begun
    assert ended.returncode == 0, log.read_text()[-2000:]
    told = [json.loads(line) for line in log.read_text().splitlines()]
    started = [_at(line) for line in told if line["event.action"] == "attempt-starting"]
    done = [_at(line) for line in told if line["event.action"] == "cell-succeeded"]
    assert len(started) == len(done) == cells, f"{len(started)} attempts, {len(done)} of {cells} cells done"
    return max(done) - min(started), whole_s


def _at(line: dict[str, str]) -> float:
    return datetime.fromisoformat(line["@timestamp"]).timestamp()


def _config(cells: int, parallelism: int) -> str:
    per_device = -(-parallelism // DEVICES)
    device = f'[[devices.simulated]]\nname = "Simulated"\nmemory = "{per_device}GiB"\n'
    return f"""
[daemon]
state_dir = "state"
export = "speedup_bounds.json"
[devices]
backend = "simulated"
margin = "0MiB"
{device * DEVICES}
[matrix.axes]
model = ["none"]
number = {list(range(cells))}
[worker]
command = ["{{python}}", "{{worker}}"]
timeout = "60s"
[matrix.constants]
worker = "../worker.py"
[[rule]]
match = {{}}
footprint = "1GiB"
"""


def measure(cells: int, parallelism: int, rounds: int) -> list[Round]:
    """`rounds` turns of the bare loop and the daemon, one after the other, each in a fresh folder."""
    found = []
    with tempfile.TemporaryDirectory(prefix="boundd-dispatch-") as name:
        folder = Path(name)
        (folder / "worker.py").write_text(WORKER)
        bare(folder, parallelism, parallelism)  # the interpreter's files are read once before anybody is timed
        for number in range(rounds):
            bare_s = bare(folder, cells, parallelism)
            daemon_s, whole_s = through_boundd(folder / f"round-{number}", cells, parallelism)
            found.append(Round(bare_s, daemon_s, whole_s))
    return found


def report(found: list[Round], cells: int, parallelism: int) -> str:
    """The table, in milliseconds a cell, and the ratios."""
    lines = [
        f"{cells} cells of no length, {parallelism} at a time on {DEVICES} simulated devices; milliseconds a cell",
        "round   bare loop   boundd   ratio   with the daemon's start and end",
    ]
    for number, each in enumerate(found, 1):
        bare_ms, daemon_ms, whole_ms = (1000 * value / cells for value in (each.bare_s, each.daemon_s, each.whole_s))
        ratios = f"{daemon_ms / bare_ms:5.2f}   {whole_ms:.1f} ({whole_ms / bare_ms:.2f})"
        lines.append(f"{number:5}   {bare_ms:9.1f}   {daemon_ms:6.1f}   {ratios}")
    middle = statistics.median(each.daemon_s / each.bare_s for each in found)
    lines.append(f"median ratio: {middle:.2f} (the target: at most 2)")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--parallelism", type=int, default=8, help="processes at a time, of both")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"$ {command_line()}\n{describe()}\n", flush=True)
    print(report(measure(options.cells, options.parallelism, options.rounds), options.cells, options.parallelism))


if __name__ == "__main__":
    main()
