"""Which probe a machine gets, and which of its devices are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boundd.core.model.devices import DeviceReading
from boundd.devices.cpu import CpuProbe
from boundd.devices.discover import nvidia_traces, open_probe, select
from boundd.devices.nvml import BrokenDriverError, NoDriverError, NvmlProbe
from boundd.devices.simulated import SimulatedProbe
from boundd.ports import DeviceError

pytestmark = pytest.mark.anyio

READINGS = (
    DeviceReading("GPU-a", 0, "Fake A100", 1, 1),
    DeviceReading("GPU-b", 1, "Fake L4", 1, 1),
    DeviceReading("GPU-c", 2, "Fake L4", 1, 1),
)


async def test_what_is_asked_for_is_what_opens(fake: Any, tmp_path: Path) -> None:
    """Each backend by its name, and NVML by `auto` where a driver answers."""
    for backend, kind in (("cpu", CpuProbe), ("simulated", SimulatedProbe), ("nvml", NvmlProbe), ("auto", NvmlProbe)):
        probe = await open_probe(backend, [("Sim", 1)], fake.environ, root=tmp_path)
        assert isinstance(probe, kind)
        assert await probe.read(processes=False)
        await probe.aclose()


async def test_a_machine_without_any_nvidia_device_uses_its_cpu(tmp_path: Path) -> None:
    """By `auto`, and only by that: who asked for NVML hears that there is none."""
    environ = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert isinstance(await open_probe("auto", [], environ, root=tmp_path), CpuProbe)
    with pytest.raises(NoDriverError):
        await open_probe("nvml", [], environ, root=tmp_path)


@pytest.mark.parametrize("trace", ["dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia"])
async def test_a_gpu_machine_never_falls_back_to_its_cpu(tmp_path: Path, trace: str) -> None:
    """A trace of a device without the library is a broken driver, by `auto` as well."""
    (tmp_path / trace).mkdir(parents=True)
    assert nvidia_traces(tmp_path) == (str(tmp_path / trace),)
    with pytest.raises(BrokenDriverError, match=r"has an NVIDIA device .*install"):
        await open_probe("auto", [], {"LD_LIBRARY_PATH": str(tmp_path)}, root=tmp_path)


async def test_a_driver_that_is_broken_is_no_reason_for_the_cpu(fake: Any, tmp_path: Path) -> None:
    """A library that is there and doesn't start is an error by `auto`."""
    fake.header.init_error = 9
    with pytest.raises(BrokenDriverError, match="modprobe"):
        await open_probe("auto", [], fake.environ, root=tmp_path)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), "abc"),
        (("GPU-b",), (), "b"),
        (("gpu-B", "0"), (), "ab"),
        (("Fake L4",), (), "bc"),
        (("fake l4",), ("2",), "b"),
        ((), ("Fake A100",), "bc"),
        ((), ("GPU-not-here",), "abc"),
    ],
)
async def test_select(include: tuple[str, ...], exclude: tuple[str, ...], expected: str) -> None:
    """By UUID, index or name, in any case; the readings' order stays."""
    assert "".join(reading.uuid[-1] for reading in select(READINGS, include, exclude)) == expected


async def test_select_names_what_there_is() -> None:
    """An include that matches nothing, and a selection that leaves nothing, are errors that list the devices."""
    with pytest.raises(DeviceError, match=r"called 'GPU-x'; there are: 0: Fake A100 \(GPU-a\), 1: "):
        select(READINGS, ("GPU-a", "GPU-x"))
    with pytest.raises(DeviceError, match="every device is excluded"):
        select(READINGS, ("0",), ("GPU-a",))
