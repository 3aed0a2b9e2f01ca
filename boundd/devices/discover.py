"""Which probe to use on this machine, and which of its devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boundd.core.model.device_names import UUID_PREFIXES, devices_named
from boundd.core.model.devices import MISSING_PREFIX, DeviceReading
from boundd.devices.cpu import CpuProbe
from boundd.devices.nvml import BrokenDriverError, NoDriverError, NvmlProbe
from boundd.devices.simulated import SimulatedProbe
from boundd.ports import DeviceError, DeviceProbe

NVIDIA_VENDOR = "0x10de"
"""NVIDIA's number on the PCI bus (pcisig.com), as sysfs writes it."""
DISPLAY_CLASS = "0x03"
"""How the class of GPUs begins there, with a display or without."""
WSL_FOLDER = Path("usr/lib/wsl/lib")
"""Where WSL2 puts the driver's libraries, which not every loader looks through."""


def nvidia_traces(root: Path = Path("/")) -> tuple[str, ...]:
    """What the kernel shows of an NVIDIA device, as sorted paths: device files and the driver's folder in /proc, a
    Jetson's device files, WSL2's folder with NVIDIA's libraries, and GPUs on the PCI bus, with whatever driver."""
    dev = root / "dev"
    found = [*dev.glob("nvidia*"), *dev.glob("nvhost*"), *dev.glob("nvgpu*"), *dev.glob("nvmap")]
    found += [
        path for path in (root / "proc" / "driver" / "nvidia", root / "etc" / "nv_tegra_release") if path.exists()
    ]
    if (dev / "dxg").exists():
        found += [path for name in ("libcuda.so*", "libnvidia-ml.so*") for path in (root / WSL_FOLDER).glob(name)]
    found += [each for each in (root / "sys" / "bus" / "pci" / "devices").glob("*") if _is_nvidia_gpu(each)]
    return tuple(sorted(map(str, found)))


def other_gpus(root: Path = Path("/")) -> tuple[str, ...]:
    """Signs of GPUs that NVML doesn't read, as sorted paths: AMD's compute driver, and WSL2's for whichever GPU."""
    return tuple(str(path) for path in (root / "dev" / "dxg", root / "dev" / "kfd") if path.exists())


def _is_nvidia_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS)


def _cure(traces: Sequence[str]) -> str:
    """What to do where there is an NVIDIA device and no library to read it with."""
    joined = " ".join(traces)
    if str(WSL_FOLDER) in joined:
        return f"tell the loader of /{WSL_FOLDER}, by LD_LIBRARY_PATH or a file in /etc/ld.so.conf.d and `ldconfig`"
    if "nvmap" in joined or "nvhost" in joined or "nvgpu" in joined or "tegra" in joined:
        return "a Jetson's GPU can be read from JetPack 6 on, whose NVML has to be installed, or passed in"
    if "/dev/" in joined or "/proc/" in joined:
        return "install the driver's user-space part, or pass it into this container"
    return "install NVIDIA's driver, or pass the GPU into this container"


async def open_probe(
    backend: str,
    simulated: Sequence[tuple[str, int]],
    environ: Mapping[str, str],
    *,
    root: Path = Path("/"),
    is_timed: Callable[[str], bool] = lambda _uuid: False,
) -> DeviceProbe:
    """A probe that has answered once. `simulated` are the (name, bytes) of simulated devices; `environ` is NVML's.
    `is_timed` says of a UUID whether somebody times there just now (see `NvmlProbe`).

    `auto` is NVML, and the CPU only where nothing at all speaks of an NVIDIA device. A GPU machine whose driver is
    broken must say so: measuring a night long on its CPU is the worst answer there is. Beside a GPU that is nobody's or
    another maker's, the CPU's reading says that it is not the GPU's.

    Raises:
        NoDriverError: `nvml` was asked for, and there is no driver.
        BrokenDriverError: there is a driver, or a part of one, and it doesn't work.
        DeviceError: the simulated devices make no sense.
    """
    if backend == "cpu":
        return CpuProbe()
    if backend == "simulated":
        return SimulatedProbe(simulated)
    probe = NvmlProbe(environ, is_timed=is_timed)
    try:
        await probe.read(processes=False)
    except NoDriverError as error:
        await probe.aclose()
        traces = nvidia_traces(root)
        if traces:
            raise BrokenDriverError(
                f"this machine has an NVIDIA device ({', '.join(traces[:3])}) but not its library ({error}): "
                f"{_cure(traces)}. To work without it, set the backend to cpu"
            ) from None
        if backend == "auto":
            others = other_gpus(root)
            return CpuProbe(f"this machine has a GPU that boundd can't read ({', '.join(others)})" if others else "")
        raise
    except BaseException:
        await probe.aclose()
        raise
    return probe


@dataclass(frozen=True, slots=True)
class Choice:
    """Which devices are used: those that `include` names (all where it is empty) and `gpus` too (likewise), less those
    that `exclude` names. Of NVIDIA's GPUs, only those that `visible` leaves, which is the daemon's
    CUDA_VISIBLE_DEVICES; None where that isn't set.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    visible: str | None = None

    def of(self, readings: Sequence[DeviceReading]) -> tuple[DeviceReading, ...]:
        """The chosen readings, in their order. What is named and isn't there is a reading too, which says so: one GPU
        that has died doesn't keep the others from working.

        Raises:
            DeviceError: nothing is left of those that there are.
        """
        if self.gpus and any(reading.backend == "cpu" for reading in readings):
            raise DeviceError(f"--gpus {','.join(self.gpus)}: the device is the CPU; leave --gpus out to measure on it")
        there = ", ".join(f"{reading.index}: {reading.name} ({reading.uuid})" for reading in readings) or "none"
        allowed = tuple(readings)
        if self.visible is not None and any(reading.backend == "nvml" for reading in readings):
            allowed = visible(readings, self.visible)
            if not allowed:
                raise DeviceError(
                    f"CUDA_VISIBLE_DEVICES={self.visible!r} leaves no device of these: {there}. Unset it, or set the "
                    "backend to cpu"
                )
        chosen = allowed
        missing: list[DeviceReading] = []
        for wanted in filter(None, (self.include, self.gpus)):
            names = [(text, {reading.uuid for reading in devices_named(readings, text)}) for text in wanted]
            uuids = set().union(*(found for _, found in names))
            chosen = tuple(reading for reading in chosen if reading.uuid in uuids)
            missing += [self._missing(text, readings, len(missing)) for text, found in names if not found]
        unwanted = {reading.uuid for text in self.exclude for reading in devices_named(readings, text)}
        left = tuple(reading for reading in chosen if reading.uuid not in unwanted)
        if left:
            return (*left, *missing)
        if missing:
            called = ", ".join(repr(reading.name) for reading in missing)
            raise DeviceError(f"no device is called {called}; there are: {there}")
        if not chosen:
            bound = "" if self.visible is None else f", of which CUDA_VISIBLE_DEVICES={self.visible!r} leaves some"
            asked = ", ".join((*self.include, *self.gpus))
            raise DeviceError(f"nothing is left of the devices that are asked for ({asked}); there are: {there}{bound}")
        raise DeviceError(f"every device is excluded; there are: {there}")

    def _missing(self, text: str, readings: Sequence[DeviceReading], number: int) -> DeviceReading:
        is_uuid = text.casefold().startswith(UUID_PREFIXES)
        return DeviceReading(
            uuid=text if is_uuid else f"{MISSING_PREFIX}{text}",
            index=int(text) if text.isdecimal() else max(reading.index for reading in readings) + 1 + number,
            name=text,
            max_cells=0,
            unavailable="it is asked for by name, and there is no such device: see `nvidia-smi -L`",
            backend=readings[0].backend,
        )


def visible(readings: Sequence[DeviceReading], text: str) -> tuple[DeviceReading, ...]:
    """The devices that CUDA_VISIBLE_DEVICES leaves: indices, UUIDs, the beginnings of UUIDs, MIG instances.

    As CUDA reads it, the list ends at what is none of these (`-1` and `NoDevFiles` leave nothing). A device that is not
    there is passed over, though, and of a device in MIG mode all instances are left, where a CUDA program would see the
    first. The index is NVML's.
    """
    chosen: set[str] = set()
    for token in (part.strip() for part in text.split(",")):
        if not (token.isdecimal() or token.casefold().startswith(UUID_PREFIXES)):
            break
        chosen |= {reading.uuid for reading in devices_named(readings, token)}
    return tuple(reading for reading in readings if reading.uuid in chosen)
