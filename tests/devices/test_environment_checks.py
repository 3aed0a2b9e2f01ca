"""What surrounds a process that people don't see: each trap, in a folder that plays / and in the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from boundd.core.model.devices import DeviceReading
from boundd.devices.environment_checks import EnvironmentReport, check_environment
from boundd.protocol.device_processes import INITIAL_PID_NAMESPACE

GPU = DeviceReading("GPU-a", 0, "A100", 80, 80)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with one GPU and nothing in the way."""
    (tmp_path / "proc" / "self" / "ns").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "ns" / "pid").symlink_to(INITIAL_PID_NAMESPACE)
    mounts(tmp_path, "rw,nosuid,nodev,noexec,relatime")
    (tmp_path / "proc" / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "proc" / "driver" / "nvidia" / "version").touch()
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
        (tmp_path / "dev" / name).touch()
    return tmp_path


def mounts(root: Path, options: str) -> None:
    """How /proc is mounted."""
    (root / "proc" / "self" / "mounts").write_text(f"proc /proc proc {options} 0 0\nx /sys sysfs hidepid=9 0 0\n")


def test_nothing_in_the_way(root: Path) -> None:
    """Nothing to say."""
    assert check_environment([GPU], {}, root) == EnvironmentReport()


@pytest.mark.parametrize("options", ["rw,hidepid=invisible", "rw,hidepid=2", "rw,hidepid=ptraceable"])
def test_a_proc_that_hides_processes_is_a_remark(root: Path, options: str) -> None:
    """They are seen all the same."""
    mounts(root, options)
    found = check_environment([GPU], {}, root)
    assert not found.problems
    assert options.removeprefix("rw,") in found.remarks[0]
    mounts(root, "rw,hidepid=0")
    assert check_environment([GPU], {}, root) == EnvironmentReport()


def test_a_pid_namespace_and_a_bound_are_remarks(root: Path) -> None:
    """Of a box with GPUs; without one nobody is looked for."""
    (root / "proc" / "self" / "ns" / "pid").unlink()
    found = check_environment([GPU], {"CUDA_VISIBLE_DEVICES": "2,3"}, root)
    assert "--pid=host" in found.remarks[0]
    assert "'2,3'" in found.remarks[1]
    assert not found.problems
    cpu = replace(GPU, backend="cpu")
    assert check_environment([cpu], {"CUDA_VISIBLE_DEVICES": "2,3"}, root) == EnvironmentReport()


@pytest.mark.parametrize("name", ["nvidia-uvm", "nvidia0"])
def test_a_device_file_that_cuda_needs(root: Path, name: str) -> None:
    """NVML works without it, and CUDA finds no GPU."""
    path = root / "dev" / name
    path.unlink()
    path.symlink_to(root / "nowhere")
    (problem,) = check_environment([GPU], {}, root).problems
    assert problem.startswith(f"{path} can't be opened (No such file or directory), and CUDA needs it")


def test_instances_need_their_capabilities(root: Path) -> None:
    """/dev/nvidia-caps, where an instance is used."""
    part = replace(GPU, uuid="MIG-1", parent="GPU-a", slot=0)
    assert "nvidia-caps" in check_environment([GPU, part], {}, root).problems[0]
    (root / "dev" / "nvidia-caps").mkdir()
    (root / "dev" / "nvidia-caps" / "nvidia-cap1").touch()
    assert not check_environment([GPU, part], {}, root).problems


def test_a_driver_without_device_files(root: Path) -> None:
    """As under PrivateDevices=yes, whether or not a GPU could be read."""
    (root / "dev" / "nvidiactl").unlink()
    for readings in ([], [GPU]):
        (problem,) = check_environment(readings, {}, root).problems
        assert "PrivateDevices=yes" in problem


def test_lists_that_the_driver_refuses(root: Path) -> None:
    """Nobody can say who else is there: told before a night is measured."""
    (problem,) = check_environment([replace(GPU, unreadable={"graphics": "no"})], {}, root).problems
    assert "doesn't list graphics processes (no)" in problem
    assert "unknown isolation" in problem


def test_a_proc_without_the_machine(root: Path) -> None:
    """ProcSubset=pid takes the machine's memory away."""
    mounts(root, "rw,subset=pid")
    assert "subset=pid" in check_environment([GPU], {}, root).problems[0]


def test_memory_that_cannot_be_executed() -> None:
    """As under MemoryDenyWriteExecute=, by the kernel's own switch for it (prctl(2), PR_SET_MDWE)."""
    program = (
        "import ctypes, sys; from boundd.devices.environment_checks import check_environment; "
        "sys.exit(77) if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) else print(check_environment([], {}).problems)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert "MemoryDenyWriteExecute" in done.stdout, done.stderr
