"""CPU time of one planning step, by number of waiting cells, of devices, and of kinds of cells.

Pure core, one process, no I/O: `step(state, event, now)` with the core's own planner. CPU time is used because other
work on the machine affects it little. A kind is a set of cells with the same needs (model, method, steps, batch); the
planner keeps one queue for each.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from benchmarks.machine import command_line, describe
from boundd.catalogue.outcomes import Isolation
from boundd.core.lifecycle.step import step
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Commit, Effect, Spawn
from boundd.core.model.events import AttemptEnded, AttemptStarted, ConfigLoaded, DevicesRead, Event, Now, Wake
from boundd.core.model.outcomes import Measurement, Outcome, Verdict
from boundd.core.model.state import Rules, State

GIB = 1024**3
MODELS = ("SD1.5", "SD2.1", "SDXL")
METHODS = ("deepcache", "tgate", "tome")
ENDS = 200
"""So many ends of attempts are measured, each with the step that plans what takes its place."""
MEASUREMENT = Measurement(2.0, 1.5, {}, Isolation.EXCLUSIVE)


@dataclass(frozen=True, slots=True)
class Case:
    """A matrix and a box."""

    cells: int
    devices: int
    kinds: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds. `end_s` and `plan_s` are medians over steps at a full box; `worst_s` is the slowest of those plans."""

    load_s: float
    first_s: float
    started: int
    end_s: float
    plan_s: float
    worst_s: float
    reading_s: float


CASES = (
    Case(1_000, 8, 81),
    Case(10_000, 8, 81),
    Case(100_000, 8, 81),
    Case(1_000_000, 8, 81),
    Case(10_000, 64, 81),
    Case(10_000, 512, 81),
    Case(10_000, 8, 9),
    Case(10_000, 8, 729),
    Case(1_000_000, 1_024, 81),
)
SMALL = (Case(1_000, 8, 81), Case(1_000, 8, 9))


def matrix(case: Case) -> Iterator[tuple[Cell, CellPolicy]]:
    """So many cells of so many kinds, mixed: model and method in turn, the rest of the kinds by steps."""
    axes = ("model", "method", "steps", "seed")
    small, large = CellPolicy(), CellPolicy(exclusive=True)
    for number in range(case.cells):
        kind = number % case.kinds
        model = MODELS[kind % len(MODELS)]
        method = METHODS[kind // len(MODELS) % len(METHODS)]
        parameters = {"model": model, "method": method, "steps": 10 + kind // 9, "seed": number, "batch_size": 4}
        yield Cell.of(parameters, axes), large if model == "SDXL" else small


def readings(case: Case) -> DevicesRead:
    """Empty devices of 80 GiB."""
    total = 80 * GIB
    return DevicesRead(
        tuple(DeviceReading(f"GPU-{n:04}", n, "Simulated", total, total, {}, None) for n in range(case.devices))
    )


class Clocked:
    """Steps a state, and keeps the seconds of the processor that the latest step took."""

    def __init__(self) -> None:
        self.state = State()
        self.now = Now(0.0, 0.0)
        self.took_s = 0.0

    def do(self, event: Event) -> tuple[Effect, ...]:
        """Apply an event, a second after the one before."""
        self.now = Now(self.now.boot_s + 1.0, self.now.unix_s + 1.0)
        begun = time.process_time()
        self.state, effects = step(self.state, event, self.now)
        self.took_s = time.process_time() - begun
        return effects


def measure(case: Case, ends: int = ENDS) -> Cost:
    """Load the matrix, fill the box, and let attempts end one by one.

    Raises:
        AssertionError: the box was not filled, or an end was not followed by a start.
    """
    cells = tuple(matrix(case))
    gc.collect()
    run = Clocked()
    run.do(readings(case))
    run.do(ConfigLoaded(cells, Rules()))
    load_s = run.took_s
    started = sum(isinstance(effect, Spawn) for effect in run.do(Wake()))
    first_s = run.took_s
    assert started >= case.devices, f"{started} attempts on {case.devices} devices"
    for attempt in tuple(islice(run.state.attempts, ends)):
        run.do(AttemptStarted(attempt))
    ended, planned = _ends(run, ends)
    run.do(Wake())
    return Cost(
        load_s, first_s, started, statistics.median(ended), statistics.median(planned), max(planned), run.took_s
    )


def _ends(run: Clocked, ends: int) -> tuple[list[float], list[float]]:
    """Seconds of the step that records each end, and of the one that plans after it."""
    ended, planned = [], []
    starts = 0
    for number in range(ends):
        oldest = min(run.state.attempts.values(), key=lambda attempt: (attempt.started_boot_s, attempt.id))
        peak = 6 * GIB + number % 7 * GIB // 16
        verdict = Verdict(
            Outcome.SUCCEEDED, MEASUREMENT, exit_status=0, wall_s=600.0, peak_allocated_bytes=peak,
            peak_reserved_bytes=peak,
        )  # fmt: skip
        run.do(AttemptEnded(oldest.id, verdict))
        ended.append(run.took_s)
        effects = run.do(Wake())
        planned.append(run.took_s)
        starts += sum(isinstance(effect, Commit) for effect in effects)
    assert starts, f"{ends} attempts ended, and nothing took their places"
    return ended, planned


def row(case: Case, cost: Cost) -> str:
    """A line of the table, in milliseconds."""
    numbers = (cost.load_s, cost.first_s, cost.end_s, cost.plan_s, cost.worst_s, cost.reading_s)
    load, first, end, planned, worst, reading = (f"{1000 * value:10,.2f}" for value in numbers)
    head = f"{case.cells:9,} {case.devices:7,} {case.kinds:5,}"
    return f"{head} {load} {first} {cost.started:7,} {end} {planned} {worst} {reading}"


HEAD = "    cells devices kinds       load first plan  starts        end       plan      worst    no room"


def main() -> None:
    """Measure and print, a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="two small cases only")
    options = parser.parse_args()
    print(f"$ {command_line()}\n{describe()}\n", flush=True)
    print(
        "Milliseconds of the processor. load: the matrix is taken up, once. first plan: the empty box is filled, with"
    )
    print("so many starts.")
    print(f"end, plan: an attempt's end is recorded, what takes its place is planned (medians of {ENDS}; the worst).")
    print(f"no room: a plan that finds nothing to start.\n\n{HEAD}")
    for case in SMALL if options.small else CASES:
        print(row(case, measure(case)), flush=True)


if __name__ == "__main__":
    main()
