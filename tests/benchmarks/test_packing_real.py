"""Real processes on the fake NVML: the real daemon, the C worker, foreign processes, and what is made of their words.

To see these fail: let `worker.c` ignore its cap (`cap = 0`), have `witness` keep no `strangers`, leave foreign ones
alone in `Visitors.end`, have `suspicion.rests` say nothing, or let the daemon plan at once after an attempt was refused
memory (`plans_after`). A trace is a handful of cells of a second.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import pytest

from benchmarks.packing.real import Bench, Job, compiled, real_scores, run
from benchmarks.packing.simulated import CLAIRVOYANT, OURS
from benchmarks.packing.traces import TRACES, Trace, thinned
from boundd.core.model.attempts import CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import Outcome
from boundd.core.model.state import Rules
from boundd.sim import CellTruth, Failure, Faults, Foreign, MemoryEnd, Mishap, SimCell, SimDevice, World

GIB = 1024**3
AXES = ("model", "scheduler", "steps", "method")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake NVML and its workers need gcc")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Compiled once."""
    return compiled(tmp_path_factory.mktemp("packing"))


def cell(name: str, peak_gib: float, believed_gib: float, duration_s: float = 1.0, **truth: object) -> SimCell:
    """A cell of its own kind, whose batch of four takes `peak_gib`."""
    parameters = {"model": name, "scheduler": "s", "steps": 20, "method": "tome", "batch_size": 4, "num_samples": 32}
    policy = CellPolicy(timeout_s=48 * 3600.0, footprint_bytes=int(believed_gib * GIB))
    fixed = GIB
    image = int((peak_gib * GIB - fixed) / 4)
    return SimCell(Cell.of(parameters, AXES), policy, CellTruth(duration_s, fixed, image, **truth))  # type: ignore[arg-type]


def job(name: str, *cells: SimCell, faults: Faults | None = None, gib: int = 24) -> Job:
    """A trace of these cells on one device, at its own pace."""
    world = World((SimDevice("GPU-0", "Fake", gib * GIB),), cells, faults or Faults())
    return Job(name, 0, 1, Trace(name, world, Rules(backoff_s=0.2)), second_s=1.0)


def test_a_short_trace_under_ours_and_the_clairvoyant(bench: Bench) -> None:
    """Wrong estimates, cells too large and a plain bug: every cell ends, and nobody is harmed."""
    whole = thinned(TRACES["wrong"](1004), 17)
    assert sum(each.truth.always is not None for each in whole.world.cells) == 1, "a seed with a bug among these cells"
    found = real_scores(bench, Job.of("wrong", 1004, 17, shortest_s=0.3), policies=())
    by = {score.policy: score for score in found.scores}
    assert list(by) == [OURS, CLAIRVOYANT]
    ours = by[OURS]
    assert (ours.neighbour_caused, ours.needless_cuts, ours.company, ours.not_done) == (0, 0, 0, 0)
    assert ours.bug_retries == 1
    assert ours.out_of_memory > 0, "footprints are wrong on purpose"
    assert by[CLAIRVOYANT].out_of_memory == 0
    assert all(score.over_bound >= 1.0 for score in found.scores)
    assert set(found.took_s) == set(by)


def test_neighbours_that_run_each_other_out_of_memory_are_seen(bench: Bench) -> None:
    """A policy that goes by free memory alone starts both at once: the witness says whose fault that is."""
    seen = run(bench, (asked := job("free", cell("a", 15, 16), cell("b", 15, 16))), "free memory", asked.trace.world)
    causes = [attempt.memory for attempt in seen.outcomes.attempts]
    assert MemoryEnd.NEIGHBOUR in causes
    assert seen.outcomes.counts.neighbour == causes.count(MemoryEnd.NEIGHBOUR)
    assert all(attempt.had_company for attempt in seen.outcomes.attempts if attempt.memory is MemoryEnd.NEIGHBOUR)
    assert set(seen.outcomes.cells.values()) == {CellState.SUCCEEDED}


def test_ours_never_starts_both(bench: Bench) -> None:
    """The same two cells, through `boundd run` as it is: one after the other, and no memory runs out."""
    seen = run(bench, (asked := job("ours", cell("a", 15, 16), cell("b", 15, 16))), OURS, asked.trace.world)
    assert [attempt.outcome for attempt in seen.outcomes.attempts] == [Outcome.SUCCEEDED] * 2
    first, second = seen.outcomes.attempts
    assert not first.had_company
    assert not second.had_company
    assert first.ended_s <= second.started_s
    assert [attempt.peak_bytes for attempt in seen.outcomes.attempts] == [15 * GIB] * 2


def test_a_cap_is_honoured_and_is_no_neighbours_fault(bench: Bench) -> None:
    """It takes more than was believed: its own cap stops it with bytes to spare, and it gets half as much again."""
    asked = job("cap", cell("a", 9, 7), cell("b", 9, 9))
    seen = run(bench, asked, OURS, asked.trace.world)
    (failed,) = (attempt for attempt in seen.outcomes.attempts if attempt.outcome is not Outcome.SUCCEEDED)
    assert (failed.outcome, failed.memory) == (Outcome.OUT_OF_MEMORY, MemoryEnd.OWN_CAP)
    assert failed.peak_bytes <= failed.reservation_bytes
    assert not any(attempt.needless_cut for attempt in seen.outcomes.attempts)


def test_a_foreign_process_comes_and_goes(bench: Bench) -> None:
    """It is a process, takes what is left, and is the cause where a cell is refused what was reserved for it."""
    faults = Faults(foreign=(Foreign("GPU-0", 0.3, 2.5, 20 * GIB),))
    asked = job("foreign", cell("a", 16, 17, duration_s=4.0), faults=faults)
    seen = run(bench, asked, OURS, asked.trace.world)
    assert [attempt.memory for attempt in seen.outcomes.attempts] == [MemoryEnd.FOREIGN, None]
    assert seen.outcomes.attempts[-1].started_s > 2.0, "only once the stranger had gone"


def test_what_befalls_an_attempt_befalls_it_for_real(bench: Bench) -> None:
    """A shim that somebody tells to end is lost and free; a bug is tried once more; a batch is cut where it must be."""
    lost = Mishap(Failure.SHIM_LOST, 0.4)
    bug = Mishap(Failure.BUG, 0.5)
    asked = job("mishaps", cell("lost", 5, 6, mishaps=(lost,)), cell("bug", 5, 6, always=bug), cell("huge", 40, 6))
    seen = run(bench, asked, OURS, asked.trace.world)
    outcomes = {each.cell.label.split("/")[0]: [] for each in asked.trace.world.cells}  # type: ignore[var-annotated]
    for attempt in seen.outcomes.attempts:
        outcomes[attempt.label.split("/")[0]].append(attempt)
    assert [each.outcome for each in outcomes["lost"]] == [Outcome.LOST, Outcome.SUCCEEDED]
    assert [each.outcome for each in outcomes["bug"]] == [Outcome.FAILED] * 2
    assert outcomes["huge"][-1].batch_size == 2
    assert outcomes["huge"][-1].outcome is Outcome.SUCCEEDED
    assert not any(each.needless_cut for each in outcomes["huge"])
    assert MemoryEnd.TOO_BIG in {each.memory for each in outcomes["huge"]}


def test_a_device_that_kills_attracts_no_more_for_being_free(bench: Bench) -> None:
    """Every worker on one of two devices dies at once, so that it is always free: by what really ran, few go there."""
    cells = tuple(cell(f"m{n}", 20, 20, duration_s=0.6) for n in range(10))
    world = World((SimDevice("GPU-0", "Fake", 24 * GIB), SimDevice("GPU-1", "Fake", 24 * GIB)), cells)
    asked = replace(job("sick"), trace=Trace("sick", world, Rules(quick_s=2.0, backoff_s=0.2)))
    seen = run(bench, asked, OURS, world, sick="GPU-0")
    there = [attempt for attempt in seen.outcomes.attempts if attempt.device == "GPU-0"]
    assert 2 <= len(there) <= 4, "two that died, and a try or two after rests; it would have had all ten"
    assert all(attempt.outcome is Outcome.FAILED for attempt in there)
    assert set(seen.outcomes.cells.values()) == {CellState.SUCCEEDED}


def test_nothing_is_left_behind(bench: Bench) -> None:
    """Foreign processes that would stay for ever are ended with the run."""
    faults = Faults(foreign=(Foreign("GPU-0", 0.0, 3600.0, GIB),))
    asked = job("stays", cell("a", 5, 6), faults=faults)
    run(bench, asked, OURS, asked.trace.world)
    record = (bench.folder / "stays-0-ours" / "record").read_text()
    assert '"foreign"' in record
    (pid,) = {line.split('"pid": ')[1].split(",")[0] for line in record.splitlines() if '"foreign"' in line}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), signal.SIGCONT)
