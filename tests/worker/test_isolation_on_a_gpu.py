"""The worker's monitor and the daemon's look at the same driver (the fake one): they say the same."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from boundd.devices.nvml import NvmlProbe
from boundd.protocol.device_processes import is_in_host_pid_namespace
from boundd.service.processes import check_lists
from tests.fake_nvml import COMPUTE, GIB, GRAPHICS, MPS, FakeNvml, build

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake NVML is compiled with gcc")

WORKER = """
import json, sys
from tests.fake_nvml.memory import DeviceMemory
from boundd.worker.isolation import GpuIsolationMonitor
memory = DeviceMemory("GPU-a")
monitor = GpuIsolationMonitor("GPU-a", None)
print("ready", flush=True)
for _ in sys.stdin:
    monitor.begin()
    attest = monitor.judge([])
    print(json.dumps([attest.isolation, attest.reasons]), flush=True)
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeNvml, subprocess.Popen[str]]]:
    """A fake GPU, and a worker that has its context there."""
    folder = tmp_path_factory.mktemp("box")
    fake = FakeNvml(folder / "nvml.state", build(folder / "lib"))
    fake.add("GPU-a", "Fake A100", 80)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=Path(__file__).parents[2], env=fake.environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as worker:  # fmt: skip
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n", "it has no context"
        yield fake, worker
        worker.kill()


def seen_by_worker(worker: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Its verdict and reasons."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    isolation, reasons = json.loads(worker.stdout.readline())
    return isolation, reasons


def seen_by_daemon(fake: FakeNvml, pid: int) -> str:
    """What the daemon would make of it, for a worker that attests nothing itself."""

    async def read() -> Any:
        probe = NvmlProbe(fake.environ)
        readings = await probe.read(processes=True)
        await probe.aclose()
        return readings

    readings = anyio.run(read)
    seen = check_lists(
        readings, {"GPU-a": frozenset({"1"})}, {"1": frozenset({pid})}, in_host_namespace=is_in_host_pid_namespace()
    )
    if seen.foreign:
        return "contended"
    return "exclusive" if seen.witnessed and seen.listed and not seen.unattested else "unknown"


def stranger_in(kinds: int) -> Callable[[FakeNvml, int, int], None]:
    """Somebody else in these lists."""

    def arrive(fake: FakeNvml, worker: int, stranger: int) -> None:
        fake.allocate(0, stranger, GIB)
        fake.process(0, stranger).kinds = kinds

    return arrive


def own(**fields: int) -> Callable[[FakeNvml, int, int], None]:
    """The worker's own entry, changed."""

    def change(fake: FakeNvml, worker: int, stranger: int) -> None:
        for name, value in fields.items():
            setattr(fake.process(0, worker), name, value)

    return change


def device(**fields: int) -> Callable[[FakeNvml, int, int], None]:
    """A fault of the device's."""

    def change(fake: FakeNvml, worker: int, stranger: int) -> None:
        for name, value in fields.items():
            setattr(fake.devices[0], name, value)

    return change


STATES = {
    "alone": (device(), "exclusive"),
    "beside a compute process": (stranger_in(COMPUTE), "contended"),
    "beside a graphics process": (stranger_in(GRAPHICS), "contended"),
    "beside an MPS client": (stranger_in(MPS), "contended"),
    "no compute list": (device(process_error=3), "unknown"),
    "no graphics list": (device(graphics_error=4), "unknown"),
    "no MPS list": (device(mps_error=999), "unknown"),
    "no MPS on this device": (device(mps_error=3), "exclusive"),
    "not listed": (own(hidden=1), "unknown"),
    "listed by another pid": (own(shown_pid=4_000_000), "unknown"),
    "sizes not told": (device(bytes_unknown=1), "exclusive"),
    "lost": (device(lost=15), "unknown"),
}


@pytest.mark.parametrize("state", list(STATES))
def test_daemon_and_worker_agree(box: tuple[FakeNvml, subprocess.Popen[str]], state: str) -> None:
    """By the same rule on the same lists; each verdict but `exclusive` has a reason."""
    if not is_in_host_pid_namespace():
        pytest.skip("in a container memory decides, and the fake's faults are other ones")
    fake, worker = box
    arrange, expected = STATES[state]
    before = bytes(fake.header)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            arrange(fake, worker.pid, stranger.pid)
            isolation, reasons = seen_by_worker(worker)
            assert (isolation, bool(reasons)) == (expected, expected != "exclusive")
            if state != "lost":  # the daemon has no reading then, and looks again
                assert seen_by_daemon(fake, worker.pid) == expected
        finally:
            stranger.kill()
            ctypes.memmove(ctypes.addressof(fake.header), before, len(before))
