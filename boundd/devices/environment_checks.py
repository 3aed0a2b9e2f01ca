"""What surrounds this process that people don't see: namespaces, the sandbox of a unit, what /proc and /dev leave out.

Each trap is found by trying what would fail, where that costs nothing, and not by how the sandbox was written down.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boundd.core.model.devices import DeviceReading
from boundd.protocol.device_processes import is_in_host_pid_namespace
from boundd.protocol.environment import CUDA_VISIBLE_DEVICES

NODES = ("nvidiactl", "nvidia-uvm")
"""Device files without which CUDA finds no GPU, whatever NVML says."""


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """`remarks` is what people should know, `problems` what would not work; sentences, each with what to do."""

    remarks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def check_environment(
    readings: Sequence[DeviceReading], environ: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> EnvironmentReport:
    """What surrounds a daemon that has these devices, were it started as this process was."""
    gpus = [reading for reading in readings if reading.backend == "nvml"]
    remarks: list[str] = []
    problems = [*_files(root), *_code()]
    hiding = _proc_options(root)
    if "subset=pid" in hiding:
        problems.append(
            "/proc shows processes only (subset=pid, ProcSubset=pid): the machine's memory and the boot can't be read; "
            "mount it whole"
        )
    if gpus:
        remarks += _views(hiding, root)
        problems += _nodes(root, has_instances=any(reading.slot is not None for reading in gpus))
        problems += _lists(gpus)
        if CUDA_VISIBLE_DEVICES in environ:
            bound = environ[CUDA_VISIBLE_DEVICES]
            remarks.append(f"CUDA_VISIBLE_DEVICES={bound!r} is what the daemon may use at most; unset it to use all")
    return EnvironmentReport(tuple(remarks), tuple(problems))


def _views(hiding: Iterable[str], root: Path) -> Iterable[str]:
    """What can be told of other processes from here."""
    if not is_in_host_pid_namespace(root / "proc"):
        yield (
            "this process has a pid namespace of its own, as in a container: who else is on a GPU is told by memory "
            "there, and not at all for somebody's own script; start it with the machine's pids (--pid=host) to be sure"
        )
    hidden = [
        option for option in hiding if option.startswith("hidepid=") and option not in ("hidepid=0", "hidepid=off")
    ]
    if hidden:
        yield (
            f"/proc hides other users' processes ({hidden[0]}): who is on a GPU is seen all the same, by pid and "
            "without a name"
        )


def _files(root: Path) -> Iterable[str]:
    """The kernel's driver without its device files."""
    if (root / "proc" / "driver" / "nvidia" / "version").exists() and not (root / "dev" / "nvidiactl").exists():
        yield (
            "the kernel has NVIDIA's driver, and there is no /dev/nvidiactl here: a unit's PrivateDevices=yes or a "
            "container without GPUs hides it, or nobody has made it yet (`nvidia-modprobe -c 0 -u`)"
        )


def _nodes(root: Path, *, has_instances: bool) -> Iterable[str]:
    """Device files that CUDA needs and NVML doesn't."""
    dev = root / "dev"
    if not (dev / NODES[0]).exists():
        return  # there are other ways to a GPU (WSL2), and its absence beside a driver is told of already
    wanted = [dev / name for name in NODES] + sorted(dev.glob("nvidia[0-9]*"))
    if has_instances:
        wanted += sorted((dev / "nvidia-caps").glob("nvidia-cap*")) or [dev / "nvidia-caps"]
    for path in wanted:
        reason = _closed(path)
        if reason:
            yield (
                f"{path} can't be opened ({reason}), and CUDA needs it: `nvidia-modprobe -c 0 -u` makes what is "
                "missing; else see the file's group, DeviceAllow= of the unit, or --gpus of the container"
            )


def _closed(path: Path) -> str:
    """Why a device file can't be opened as CUDA opens it; empty where it can. A folder only has to be there."""
    try:
        # A worker of CUDA opens it for both; the cgroup of a unit may allow less than the file's mode.
        os.close(os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _code() -> Iterable[str]:
    """Whether code can be made at run time, which CUDA's compiler, Triton and torch.compile do."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:
        yield (
            f"memory can't be written and executed ({error.strerror}): CUDA's compiler, Triton and torch.compile fail; "
            "see MemoryDenyWriteExecute= of the unit"
        )


def _lists(gpus: Iterable[DeviceReading]) -> Iterable[str]:
    for reading in gpus:
        for kind, why in reading.unreadable.items():
            yield (
                f"device {reading.uuid}: the driver doesn't list {kind} processes ({why}), so that nobody can say who "
                "else uses it: results are of unknown isolation (docs/devices.md)"
            )


def _proc_options(root: Path) -> tuple[str, ...]:
    """How /proc is mounted."""
    try:
        mounts = (root / "proc" / "self" / "mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = [fields[3] for fields in map(str.split, mounts) if len(fields) > 3 and fields[1:3] == ["/proc", "proc"]]
    return tuple(found[-1].split(",")) if found else ()
