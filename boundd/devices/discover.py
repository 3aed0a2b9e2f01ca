"""Which probe to use on this machine, and which of its devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from boundd.core.model.devices import DeviceReading
from boundd.devices.cpu import CpuProbe
from boundd.devices.nvml import BrokenDriverError, NoDriverError, NvmlProbe
from boundd.devices.simulated import SimulatedProbe
from boundd.ports import DeviceError, DeviceProbe

Backend = Literal["auto", "nvml", "cpu", "simulated"]


def nvidia_traces(root: Path = Path("/")) -> tuple[str, ...]:
    """What the kernel shows of an NVIDIA device: device files and the driver's folder in /proc, as sorted paths."""
    found = sorted(str(path) for path in (root / "dev").glob("nvidia*"))
    folder = root / "proc" / "driver" / "nvidia"
    return (*found, str(folder)) if folder.exists() else tuple(found)


async def open_probe(
    backend: Backend,
    simulated: Sequence[tuple[str, int]],
    environ: Mapping[str, str],
    *,
    root: Path = Path("/"),
    is_timed: Callable[[str], bool] = lambda _uuid: False,
) -> DeviceProbe:
    """A probe that has answered once. `simulated` are the (name, bytes) of simulated devices; `environ` is NVML's.
    `is_timed` says of a UUID whether somebody times there just now (see `NvmlProbe`).

    `auto` is NVML, and the CPU only where nothing at all speaks of an NVIDIA device. A GPU machine whose driver is
    broken must say so: measuring a night long on its CPU is the worst answer there is.

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
                f"this machine has an NVIDIA device ({', '.join(traces[:3])}) but not its library ({error}): install "
                "the driver's user-space part, or pass it into this container. To work without it, set the backend to "
                "cpu"
            ) from None
        if backend == "auto":
            return CpuProbe()
        raise
    except BaseException:
        await probe.aclose()
        raise
    return probe


def matches(reading: DeviceReading, wanted: str) -> bool:
    """Whether `wanted` is the device's UUID, its index, or its name (in any case). Parts of one don't count."""
    return wanted.strip().casefold() in {reading.uuid.casefold(), str(reading.index), reading.name.casefold()}


def select(
    readings: Sequence[DeviceReading], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[DeviceReading, ...]:
    """The readings that `include` names (all if it is empty), less those that `exclude` names, in their order.

    Raises:
        DeviceError: an entry of `include` names no device, or nothing is left.
    """
    there = ", ".join(f"{reading.index}: {reading.name} ({reading.uuid})" for reading in readings) or "none"
    unknown = [wanted for wanted in include if not any(matches(reading, wanted) for reading in readings)]
    if unknown:
        raise DeviceError(f"no device is called {', '.join(map(repr, unknown))}; there are: {there}")
    chosen = tuple(
        reading
        for reading in readings
        if (not include or any(matches(reading, wanted) for wanted in include))
        and not any(matches(reading, unwanted) for unwanted in exclude)
    )
    if not chosen:
        raise DeviceError(f"every device is excluded; there are: {there}")
    return chosen
