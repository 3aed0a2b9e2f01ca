"""Whether a timed section was alone: on the CPU by its share, on a GPU by the driver's list."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.protocol.attestation import ProcessLists
from boundd.worker.devices import CallTime
from boundd.worker.isolation import Attestation, CpuIsolationMonitor, GpuIsolationMonitor, GpuReading, merge, worst


def proc(folder: Path, waiting_s: float | None, stolen_ticks: int = 0) -> Path:
    """A /proc that counts this much: of 1,000 ticks, and of a clock that the test moves."""
    (folder / "pressure").mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {1000 - stolen_ticks} 0 0 0 0 0 0 {stolen_ticks} 0 0\n")
    if waiting_s is not None:
        (folder / "pressure" / "cpu").write_text(
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={round(waiting_s * 1e6)}\nfull avg10=0.00 total=0\n"
        )
    return folder


@pytest.mark.parametrize(
    ("cpu_s", "verdict"), [(0.99, "exclusive"), (0.91, "exclusive"), (0.89, "contended"), (0.3, "contended")]
)
def test_the_share_of_the_cpu_decides(cpu_s: float, verdict: str, tmp_path: Path) -> None:
    """Nine tenths of the time on the core is alone, and the share is told."""
    monitor = CpuIsolationMonitor(1, proc(tmp_path, 0.0))
    monitor.begin()
    attest = monitor.judge([CallTime(0.6, 0.6 * cpu_s), CallTime(0.4, 0.4 * cpu_s)])
    assert attest.isolation == verdict
    assert attest.as_json()["cpu_share"] == pytest.approx(cpu_s)
    assert bool(attest.reasons) == (verdict == "contended")


@pytest.mark.parametrize(("share", "verdict"), [(0.02, "exclusive"), (0.6, "contended"), (None, "unknown")])
def test_several_threads_are_judged_by_the_kernels_pressure(
    share: float | None, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel counts how long something waited for a core; else nobody can say."""
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monitor = CpuIsolationMonitor(2, proc(tmp_path, None if share is None else 50.0))
    monitor.begin()
    now_s = 110.0
    proc(tmp_path, None if share is None else 50.0 + 10 * share)
    assert monitor.judge([CallTime(10.0, 15.0)]).isolation == verdict


def test_what_a_hypervisor_takes_counts(tmp_path: Path) -> None:
    """A tenth of all ticks stolen in between is somebody else on our cores."""
    monitor = CpuIsolationMonitor(1, proc(tmp_path, 0.0))
    monitor.begin()
    (tmp_path / "stat").write_text("cpu  1900 0 0 0 0 0 0 100 0 0\n")
    attest = monitor.judge([CallTime(1.0, 1.0)])
    assert attest.isolation == "contended"
    assert "hypervisor" in attest.reasons[0]


def test_too_short_to_judge() -> None:
    """The clocks can't tell the share of a millisecond."""
    assert CpuIsolationMonitor(1).judge([CallTime(0.001, 0.0)]).isolation == "unknown"


def test_a_section_that_did_not_run_is_contended() -> None:
    """A section that spent its time off the core is seen as such by the real clocks."""
    wall, cpu = time.perf_counter(), time.process_time()
    time.sleep(0.2)
    watch = CallTime(time.perf_counter() - wall, time.process_time() - cpu)
    assert CpuIsolationMonitor(1).judge([watch]).isolation == "contended"


def alone(size: int | None = 2**30) -> ProcessLists:
    """Lists in which this process is, and no other."""
    return ProcessLists({os.getpid(): size}, used_bytes=2**30)


def test_a_throttled_gpu_is_not_fit_to_time(tmp_path: Path) -> None:
    """Heat and power brakes spoil a timing, and are named; a power cap is how a GPU under load runs."""
    monitor = GpuIsolationMonitor("GPU-1", tmp_path, in_host_namespace=True)
    hot = monitor.seen(GpuReading(alone(), throttle=0x40, sm_clock_mhz=900))
    assert (hot.isolation, hot.reasons) == ("contended", ("the GPU throttles: hardware thermal slowdown",))
    assert hot.as_json()["sm_clock_mhz"] == 900
    assert monitor.seen(GpuReading(alone(), throttle=0x04)).isolation == "exclusive"


def test_several_attests_make_one() -> None:
    """The worst verdict, every reason once, the last readings."""
    both = merge(
        [
            Attestation(Isolation.EXCLUSIVE, (), {"mhz": 1}),
            Attestation(Isolation.CONTENDED, ("a",), {"mhz": 2}),
            Attestation(Isolation.UNKNOWN, ("a",)),
        ]
    )
    assert both == Attestation(Isolation.CONTENDED, ("a",), {"mhz": 2})


def test_a_gpu_that_cannot_be_seen_is_unknown(tmp_path: Path) -> None:
    """No driver, a list that is refused, or lists in which this process is not: nothing is attested, with the
    reason."""
    monitor = GpuIsolationMonitor("GPU-1", tmp_path, in_host_namespace=True)
    assert monitor.seen(GpuReading(alone())).isolation == "exclusive"
    dead = subprocess.Popen(["true"])
    dead.wait()
    for lists, why in (
        (None, "could not be asked"),
        (ProcessLists({}), "no process at all"),
        (ProcessLists({dead.pid: 1}), "this worker's process is not"),
        (
            ProcessLists({os.getpid(): 1}, {"graphics": "Not Supported (NVML error 3)"}),
            "graphics processes: Not Supported",
        ),
    ):
        seen = monitor.seen(GpuReading(lists))
        assert seen.isolation == "unknown"
        assert why in seen.reasons[0]


def test_in_a_container_memory_decides(tmp_path: Path) -> None:
    """Somebody whom the container doesn't see holds memory all the same."""
    monitor = GpuIsolationMonitor("GPU-1", tmp_path, in_host_namespace=False)
    assert monitor.seen(GpuReading(alone())).isolation == "exclusive"
    assert monitor.seen(GpuReading(replace(alone(), used_bytes=2**31))).isolation == "unknown"
    dead = subprocess.Popen(["true"])
    dead.wait()
    machines = ProcessLists({dead.pid: 2**30}, used_bytes=2**30)
    assert monitor.seen(GpuReading(machines, own_bytes=2**29)).isolation == "exclusive"
    assert monitor.seen(GpuReading(machines)).isolation == "unknown"


def test_neighbours_that_keep_the_same_lease_are_fine(tmp_path: Path) -> None:
    """A worker with our lease waits its turn; one with another lease, or none, does not."""

    def neighbour(lease: str) -> subprocess.Popen[bytes]:
        program = "print(flush=True); import time; time.sleep(60)"
        environment = os.environ | {"BOUNDD_LEASE": lease}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it has become the program: its environment can be read
        return process

    def seen(folder: Path | None, *pids: int) -> str:
        lists = ProcessLists(dict.fromkeys((os.getpid(), *pids), 2**30))
        return GpuIsolationMonitor(None, folder, in_host_namespace=True).seen(GpuReading(lists)).isolation

    with neighbour(str(tmp_path)) as ours, neighbour("/somewhere/else") as other:
        try:
            assert seen(tmp_path, ours.pid) == "exclusive"
            assert seen(tmp_path, ours.pid, other.pid) == "contended"
            assert seen(None, ours.pid) == "contended"
        finally:
            ours.kill()
            other.kill()
    assert seen(tmp_path, other.pid) == "exclusive", "it has ended since"


def test_the_least_trustworthy_counts() -> None:
    """Contended outweighs unknown outweighs exclusive."""
    assert worst(Isolation) is Isolation.CONTENDED
    assert worst([Isolation.EXCLUSIVE, Isolation.UNKNOWN]) is Isolation.UNKNOWN
    assert worst([]) is Isolation.EXCLUSIVE
