"""That the fake driver is right: its memory between real processes, and the tools that people watch GPUs with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_nvml import GIB, FakeNvml, build

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake NVML is compiled with gcc")

ROOT = Path(__file__).parents[2]
NOT_SUPPORTED, GPU_IS_LOST = 3, 15

TAKE = """
import sys
from tests.fake_nvml.memory import DeviceMemory, OutOfMemoryError
memory = DeviceMemory(context_bytes=0)
try:
    memory.allocate(int(sys.argv[1]))
    print("has it", flush=True)
except OutOfMemoryError as error:
    print(error, flush=True)
sys.stdin.readline()
"""
"""Takes so much of its device, says so, and keeps it until told to end."""

RACE = """
import random, sys
from tests.fake_nvml.memory import DeviceMemory, OutOfMemoryError
memory = DeviceMemory(context_bytes=0)
refused = 0
for _ in range(2000):
    try:
        memory.allocate(random.randrange(1, 2**28))
    except OutOfMemoryError:
        refused += 1
        memory.resize(memory.held_bytes // 2)
memory.resize(0)
print("refused", refused)
"""
"""Takes and gives back at random, next to others that do."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled fake."""
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def fake(tmp_path: Path, library: Path) -> FakeNvml:
    """A fake driver with a large and a small device."""
    driver = FakeNvml(tmp_path / "nvml.state", library)
    driver.add("GPU-large", "Fake A100", 80)
    driver.add("GPU-small", "Fake L4", 24)
    return driver


def start(fake: FakeNvml, program: str, *arguments: object, device: str = "GPU-small") -> subprocess.Popen[str]:
    """A worker of a device, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=fake.environ | {"CUDA_VISIBLE_DEVICES": device},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(worker: subprocess.Popen[str]) -> str:
    """The next line of a worker."""
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def ended(*workers: subprocess.Popen[str]) -> None:
    """Kill them and clear them away."""
    for worker in workers:
        worker.kill()
        worker.communicate()


def test_processes_run_each_other_out_of_memory(fake: FakeNvml) -> None:
    """The second one is refused what the first has taken, in torch's words, with the numbers as they are."""
    first = start(fake, TAKE, 20 * GIB)
    assert said(first) == "has it"
    second = start(fake, TAKE, 10 * GIB)
    words = said(second)
    assert words.startswith("CUDA out of memory. Tried to allocate 10.00 GiB. GPU 0 has a total capacity of 24.00 GiB")
    assert "of which 3.76 GiB is free" in words
    ended(first, second)


@pytest.mark.parametrize("reap", [True, False], ids=["gone", "a zombie"])
def test_a_killed_process_holds_nothing(fake: FakeNvml, reap: bool) -> None:
    """SIGKILL frees its bytes at once for the next one, whether or not anybody has reaped it.

    Without the look at who lives, the second one would be refused.
    """
    first = start(fake, TAKE, 20 * GIB)
    assert said(first) == "has it"
    first.kill()
    if reap:
        first.communicate()
    else:
        while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
    second = start(fake, TAKE, 20 * GIB)
    assert said(second) == "has it"
    ended(first, second)


def test_the_cap_is_the_allocators(fake: FakeNvml) -> None:
    """A worker stops at its cap with bytes free on the device, and says both."""
    worker = subprocess.run(
        [sys.executable, "-c", TAKE, str(3 * GIB)],
        cwd=ROOT,
        env=fake.environ | {"CUDA_VISIBLE_DEVICES": "GPU-small", "BOUNDD_MEMORY_CAP_BYTES": str(2 * GIB)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2.00 GiB allowed" in worker.stdout
    assert "23.76 GiB is free" in worker.stdout


def test_a_race_never_oversells(fake: FakeNvml) -> None:
    """Six processes take and give back at random, and what they hold together is never more than there is.

    The library looks after each allocation, and aborts. Without its lock it does (seen by leaving the lock out).
    """
    workers = [start(fake, RACE) for _ in range(6)]
    refused = 0
    for worker in workers:
        words = said(worker)
        assert words, f"a worker ended by signal {-worker.wait()}"
        refused += int(words.split()[1])
    ended(*workers)
    assert refused > 0
    assert fake.held_bytes(1) == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda fake: setattr(fake.devices[1], "lost", GPU_IS_LOST), "CUDA error: 999"),
        (lambda fake: setattr(fake.devices[1], "compute_mode", 2), "CUDA error: 46"),
        (lambda fake: setattr(fake.devices[1], "mig_mode", 1), "CUDA error: 100"),
    ],
    ids=["lost", "prohibited", "divided"],
)
def test_a_device_that_takes_no_process(fake: FakeNvml, fault: Callable[[FakeNvml], None], words: str) -> None:
    """Work on it fails with CUDA's own error, not out of memory."""
    fault(fake)
    program = TAKE.replace("memory = DeviceMemory(context_bytes=0)", "memory = DeviceMemory()")
    worker = subprocess.run(
        [sys.executable, "-c", program, "1"],
        cwd=ROOT,
        env=fake.environ | {"CUDA_VISIBLE_DEVICES": "GPU-small"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert worker.returncode == 1
    assert f"CudaError: {words}" in worker.stderr


def test_exclusive_process_mode_takes_one(fake: FakeNvml) -> None:
    """The second process is refused the device, however much of it is free."""
    fake.devices[1].compute_mode = 3
    fake.allocate(1, 4711, GIB)
    with pytest.raises(OSError, match="CUDA error 46"):
        fake.allocate(1, 4712, GIB)
    fake.allocate(1, 4711, GIB)
    assert fake.held_bytes(1) == 2 * GIB


def test_a_parent_shows_what_its_instances_hold(fake: FakeNvml) -> None:
    """As a real one in MIG mode does: its numbers are aggregates."""
    fake.devices[0].mig_mode = 1
    fake.add("MIG-1", "Fake A100 MIG 3g.40gb", 40, mig_parent=0)
    fake.allocate(2, 4711, 10 * GIB)
    lines = nvml(fake, "for h in handles(): print(nvmlDeviceGetMemoryInfo(h, nvmlMemory_v2).used)").split()
    assert [int(line) for line in lines] == [10 * GIB, 0]


def nvml(fake: FakeNvml, program: str) -> str:
    """What a program says that uses the unmodified binding."""
    head = """
from pynvml import *
nvmlInit()
def handles():
    return [nvmlDeviceGetHandleByIndex(index) for index in range(nvmlDeviceGetCount())]
"""
    found = subprocess.run(
        [sys.executable, "-c", head + program], env=fake.environ, capture_output=True, text=True, check=True
    )
    return found.stdout


def test_what_a_device_lacks_is_not_supported(fake: FakeNvml) -> None:
    """And not a missing function, which is how only an old library answers."""
    program = """
for ask in (nvmlDeviceGetFanSpeed, nvmlDeviceGetPowerUsage, nvmlDeviceGetPersistenceMode, nvmlDeviceGetBAR1MemoryInfo):
    try:
        ask(handles()[0])
    except NVMLError as error:
        print(error.value)
"""
    assert nvml(fake, program).split() == [str(NOT_SUPPORTED)] * 4


def tool(name: str) -> str:
    """The path of a program of this environment; skips where it isn't installed."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_gpustat_believes_it(fake: FakeNvml) -> None:
    """The unmodified tool shows each device, its memory, and the process with its bytes."""
    fake.allocate(0, os.getpid(), 10 * GIB)
    fake.devices[1].foreign = 2 * GIB
    shown = subprocess.run([tool("gpustat"), "--json"], env=fake.environ, capture_output=True, text=True, check=True)
    document = json.loads(shown.stdout)
    assert document["driver_version"] == "550.54.14"
    large, small = document["gpus"]
    assert (large["uuid"], large["name"]) == ("GPU-large", "Fake A100")
    assert (large["memory.used"], large["memory.total"]) == (10 * 1024, 80 * 1024)
    assert [(process["pid"], process["gpu_memory_usage"]) for process in large["processes"]] == [(os.getpid(), 10240)]
    assert (small["memory.used"], small["processes"]) == (2 * 1024, [])
    assert small["fan.speed"] is None


def test_nvitop_believes_it(fake: FakeNvml) -> None:
    """The unmodified tool shows each device and the process, and has N/A for what is not supported."""
    fake.allocate(0, os.getpid(), 10 * GIB)
    environ = fake.environ | {"TERM": "xterm", "COLUMNS": "120"}
    shown = subprocess.run(
        [tool("nvitop"), "-1", "--ascii", "--no-unicode"], env=environ, capture_output=True, text=True, check=True
    )
    assert "Driver Version: 550.54.14" in shown.stdout
    assert "Fake A100" in shown.stdout
    assert "10240MiB / 80.00GiB" in shown.stdout
    assert "0B / 24.00GiB" in shown.stdout
    (row,) = [line for line in shown.stdout.splitlines() if f" {os.getpid()} C " in line]
    assert "10240MiB" in row
