"""Whether a timed section was alone: on the CPU by its share, on a GPU by the driver's list."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boundd.worker.devices import Stopwatch
from boundd.worker.isolation import CpuWitness, GpuWitness, worst


@pytest.mark.parametrize(
    ("cpu_s", "threads", "verdict"),
    [
        (0.99, 1, "exclusive"),
        (0.91, 1, "exclusive"),
        (0.89, 1, "contended"),
        (0.3, 1, "contended"),
        (2.0, 2, "unknown"),
    ],
)
def test_the_share_of_the_cpu_decides(cpu_s: float, threads: int, verdict: str) -> None:
    """Nine tenths of the time on the core is alone; several threads can't be judged."""
    witness = CpuWitness(threads)
    witness.begin()
    assert witness.judge([Stopwatch(0.6, 0.6 * cpu_s), Stopwatch(0.4, 0.4 * cpu_s)]) == verdict


def test_too_short_to_judge() -> None:
    """The clocks can't tell the share of a millisecond."""
    assert CpuWitness(1).judge([Stopwatch(0.001, 0.0)]) == "unknown"


def test_a_section_that_did_not_run_is_contended() -> None:
    """A section that spent its time off the core is seen as such by the real clocks."""
    wall, cpu = time.perf_counter(), time.process_time()
    time.sleep(0.2)
    watch = Stopwatch(time.perf_counter() - wall, time.process_time() - cpu)
    assert CpuWitness(1).judge([watch]) == "contended"


def test_a_gpu_that_cannot_be_seen_is_unknown(tmp_path: Path) -> None:
    """No list, or a list in which this process is not: nothing is attested."""
    witness = GpuWitness("GPU-1", tmp_path)
    assert witness.verdict(None) == "unknown"
    assert witness.verdict(frozenset({1})) == "unknown"
    assert witness.verdict(frozenset({os.getpid()})) == "exclusive"


def test_neighbours_that_keep_the_same_lease_are_fine(tmp_path: Path) -> None:
    """A worker with our lease waits its turn; one with another lease, or none, does not."""

    def neighbour(lease: str) -> subprocess.Popen[bytes]:
        program = "print(flush=True); import time; time.sleep(60)"
        environment = os.environ | {"BOUNDD_LEASE": lease}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it has become the program: its environment can be read
        return process

    with neighbour(str(tmp_path)) as ours, neighbour("/somewhere/else") as other:
        try:
            witness = GpuWitness(None, tmp_path)
            assert witness.verdict(frozenset({os.getpid(), ours.pid})) == "exclusive"
            assert witness.verdict(frozenset({os.getpid(), ours.pid, other.pid})) == "contended"
            assert GpuWitness(None, None).verdict(frozenset({os.getpid(), ours.pid})) == "contended"
        finally:
            ours.kill()
            other.kill()
    assert witness.verdict(frozenset({os.getpid(), other.pid})) == "exclusive", "it has ended since"


def test_the_least_trustworthy_counts() -> None:
    """Contended outweighs unknown outweighs exclusive."""
    assert worst(["exclusive", "unknown", "contended"]) == "contended"
    assert worst(["exclusive", "unknown"]) == "unknown"
    assert worst([]) == "exclusive"
