"""The two probes that need no driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boundd.devices.cpu import CpuProbe, cpu_name
from boundd.devices.simulated import SimulatedProbe
from boundd.ports import DeviceError, DeviceProbe

pytestmark = pytest.mark.anyio


async def test_the_cpu_is_one_device_for_one_cell() -> None:
    """Its memory is the host's, its process list is there only when asked for."""
    probe: DeviceProbe = CpuProbe()
    (reading,) = await probe.read(processes=False)
    assert (reading.uuid, reading.index, reading.backend, reading.max_cells) == ("CPU-0", 0, "cpu", 1)
    assert reading.name
    assert reading.total_bytes is not None
    assert reading.free_bytes is not None
    assert 0 < reading.free_bytes <= reading.total_bytes
    assert reading.process_bytes is None
    assert not reading.unavailable
    (reading,) = await probe.read(processes=True)
    assert reading.process_bytes is not None
    assert (reading.process_bytes[os.getpid()] or 0) > 1024**2
    await probe.aclose()


async def test_the_cpu_has_a_name_wherever_it_runs(tmp_path: Path) -> None:
    """The model name where the kernel tells one, and `CPU` where it doesn't or can't be asked."""
    cpuinfo = tmp_path / "cpuinfo"
    assert cpu_name(cpuinfo) == "CPU"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert cpu_name(cpuinfo) == "CPU"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Zippy 9000 @ 3.0GHz\nprocessor\t: 1\n")
    assert cpu_name(cpuinfo) == "Zippy 9000 @ 3.0GHz"


async def test_simulated_devices_are_what_they_were_told() -> None:
    """Name and memory as given, all of it free, and marked as simulated."""
    probe: DeviceProbe = SimulatedProbe([("Sim A", 80 * 1024**3), ("Sim B", 24 * 1024**3)])
    first, second = await probe.read(processes=True)
    assert (first.uuid, first.name, first.total_bytes, first.free_bytes) == ("SIM-0", "Sim A", 80 << 30, 80 << 30)
    assert (second.uuid, second.index, second.free_bytes, second.backend) == ("SIM-1", 1, 24 << 30, "simulated")
    assert first.process_bytes == {}
    assert first.used_bytes == 0
    assert (await probe.read(processes=False))[0].process_bytes is None
    await probe.aclose()


async def test_simulated_devices_must_make_sense() -> None:
    """None at all, or one without memory, is refused with what is wrong."""
    with pytest.raises(DeviceError, match="no simulated devices"):
        SimulatedProbe([])
    with pytest.raises(DeviceError, match=r"device 1 .*positive"):
        SimulatedProbe([("a", 1), ("b", 0)])
