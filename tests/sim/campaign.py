"""`make campaign-sim`: many seeds of the simulation on all cores; `--replay SEED` runs one and prints all of it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context

from boundd.sim.trace import Violation
from tests.sim.generate import random_world
from tests.sim.seeds import Report, run_seed, run_seeds

CHUNK = 100


def run(first: int, count: int, jobs: int) -> Report:
    """The seeds from `first` on, in chunks that the processes share."""
    chunks = [range(begin, min(begin + CHUNK, first + count)) for begin in range(first, first + count, CHUNK)]
    total = Report()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for report in pool.map(run_seeds, chunks):
            total.add(report)
    return total


def told(report: Report) -> str:
    """The report in words: over how much it is clean, and how to replay what is not."""
    lines = [f"{report.seeds:,} seeds, {report.replayed:,} of them run twice and compared"]
    lines += [f"{getattr(report.counts, each.name):>12,} {each.name}" for each in fields(report.counts)]
    lines += [f"seed {seed}: {what}" for seed, what in sorted(report.failures.items())[:20]]
    if report.failures:
        lines.append(f"{len(report.failures):,} seed(s) failed; one of them again, with every step:")
        lines.append(f"    {sys.executable} -m tests.sim.campaign --replay {min(report.failures)}")
    else:
        lines.append("0 broken promises")
    return "\n".join(lines)


def replay(seed: int) -> int:
    """Print the world of a seed and every step of its run; 1 where a promise is broken."""
    world, rules = random_world(seed)
    print(rules, *world.devices, *world.cells, world.faults, sep="\n")
    lines: list[str] = []
    try:
        run_seed(seed, log=lines)
    except Violation as violation:
        print(*lines, f"BROKEN: {violation}", sep="\n")
        return 1
    print(*lines, "no promise is broken", sep="\n")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        return replay(arguments.replay)
    began_s = time.monotonic()
    report = run(arguments.first, arguments.seeds, arguments.jobs)
    print(told(report))
    print(f"in {time.monotonic() - began_s:.0f} s on {arguments.jobs} core(s)")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
