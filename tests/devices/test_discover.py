"""Which probe a machine gets, and which of its devices are used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundd.core.lifecycle.step import step
from boundd.core.model.device_names import devices_named
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Note
from boundd.core.model.events import DevicesRead, Now
from boundd.core.model.state import State
from boundd.devices.cpu import CpuProbe
from boundd.devices.discover import Choice, nvidia_traces, open_probe, visible
from boundd.devices.nvml import BrokenDriverError, NoDriverError, NvmlProbe
from boundd.devices.simulated import SimulatedProbe
from boundd.ports import DeviceError

pytestmark = pytest.mark.anyio


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


TRACES = [
    *("dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia", "dev/nvmap", "dev/nvhost-gpu", "dev/nvgpu"),
    *("etc/nv_tegra_release", "sys/bus/pci/devices/0000:01:00.0", "usr/lib/wsl/lib/libcuda.so.1"),
]


@pytest.mark.parametrize("trace", TRACES)
async def test_a_gpu_machine_never_falls_back_to_its_cpu(tmp_path: Path, trace: str) -> None:
    """A trace of a device without the library is a broken driver, by `auto` as well: of a card with or without its
    driver, of a Jetson, of WSL2 whose folder the loader doesn't know."""
    (tmp_path / trace).mkdir(parents=True)
    if "pci" in trace:
        pci(tmp_path / trace, "0x10de", "0x030200")
    if "wsl" in trace:
        (tmp_path / "dev" / "dxg").mkdir(parents=True)
    assert nvidia_traces(tmp_path) == (str(tmp_path / trace),)
    with pytest.raises(BrokenDriverError, match=r"has an NVIDIA device .*backend to cpu"):
        await open_probe("auto", [], {"LD_LIBRARY_PATH": str(tmp_path)}, root=tmp_path)


def pci(folder: Path, vendor: str, kind: str) -> None:
    """A device on the PCI bus, as sysfs shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


async def test_what_is_no_gpu_of_nvidias_leaves_the_cpu(tmp_path: Path) -> None:
    """Its network cards and others' GPUs are on the same bus; WSL2 may have anybody's GPU."""
    pci(tmp_path / "sys" / "bus" / "pci" / "devices" / "0", "0x15b3", "0x020000")
    pci(tmp_path / "sys" / "bus" / "pci" / "devices" / "1", "0x10de", "0x068000")
    pci(tmp_path / "sys" / "bus" / "pci" / "devices" / "2", "0x1002", "0x030000")
    (tmp_path / "usr" / "lib" / "wsl" / "lib").mkdir(parents=True)
    assert nvidia_traces(tmp_path) == ()
    (reading,) = await (await open_probe("auto", [], {}, root=tmp_path)).read(processes=False)
    assert (reading.backend, reading.remark) == ("cpu", "")


@pytest.mark.parametrize("trace", ["kfd", "dxg"])
async def test_a_gpu_that_cannot_be_read_is_said(tmp_path: Path, trace: str) -> None:
    """The CPU beside it is measured with a warning, never in silence."""
    (tmp_path / "dev" / trace).mkdir(parents=True)
    (reading,) = await (await open_probe("auto", [], {}, root=tmp_path)).read(processes=False)
    assert reading.remark == f"this machine has a GPU that boundd can't read ({tmp_path}/dev/{trace})"
    _, effects = step(State(), DevicesRead((reading,)), Now(0, 0))
    (note,) = [effect for effect in effects if isinstance(effect, Note)]
    assert (note.level, reading.remark in note.message) == ("warning", True)


async def test_a_driver_that_is_broken_is_no_reason_for_the_cpu(fake: Any, tmp_path: Path) -> None:
    """A library that is there and doesn't start is an error by `auto`."""
    fake.header.init_error = 9
    with pytest.raises(BrokenDriverError, match="modprobe"):
        await open_probe("auto", [], fake.environ, root=tmp_path)


PARTS = (
    DeviceReading("GPU-0000-aa", 0, "NVIDIA A100", 80, 80, max_cells=0, unavailable="it is in MIG mode"),
    DeviceReading("MIG-1111-aa", 0, "NVIDIA A100 MIG 3g.40gb", 40, 40, parent="GPU-0000-aa", slot=0),
    DeviceReading("MIG-1111-bb", 0, "NVIDIA A100 MIG 2g.20gb", 20, 20, parent="GPU-0000-aa", slot=1),
    DeviceReading("GPU-0000-bb", 1, "NVIDIA A100", 80, 80),
    DeviceReading("GPU-2222-cc", 2, "NVIDIA L4", 24, 24),
)
"""A box with a device in MIG mode, P, its instances Q and R, its like S, and T."""
LETTERS = dict(zip((reading.uuid for reading in PARTS), "PQRST", strict=True))


def letters(choice: Choice) -> str:
    """The devices of a choice."""
    return "".join(LETTERS[reading.uuid] for reading in choice.of(PARTS))


NAMES = [
    *(("GPU-0000-bb", "S"), ("gpu-0000-BB", "S"), ("1", "S"), (" 2 ", "T"), ("nvidia l4", "T"), ("GPU-2", "T")),
    *(("GPU-0000-aa", "PQR"), ("0", "PQR"), ("NVIDIA A100", "PQRS"), ("MIG-1111-aa", "Q"), ("0:1", "R")),
    *(("3g.40gb", "Q"), ("MIG 2g.20gb", "R"), ("NVIDIA A100 MIG 3g.40gb", "Q"), ("MIG-1111-b", "R")),
    *(("GPU-0000", ""), ("GPU-", ""), ("NVIDIA", ""), ("3", ""), ("0:2", ""), ("1:0", ""), ("A100", "")),
]


@pytest.mark.parametrize(("name", "expected"), NAMES)
async def test_names(name: str, expected: str) -> None:
    """By UUID, its beginning, index or name, in any case; a whole is its instances, and an instance is itself."""
    assert "".join(LETTERS[reading.uuid] for reading in devices_named(PARTS, name)) == expected
    if expected:
        assert letters(Choice(include=(name,))) == expected
        assert letters(Choice(gpus=(name,))) == expected
    everybody_else = "".join(letter for letter in "PQRST" if letter not in expected)
    assert letters(Choice(exclude=(name,))) == everybody_else
    assert letters(Choice(include=("NVIDIA A100", "2"), exclude=(name,))) == everybody_else


VISIBLE = [
    *(("1,2", "ST"), ("2,1", "ST"), ("0", "PQR"), ("GPU-2", "T"), ("GPU-0000-bb,2", "ST"), ("MIG-1111-bb", "R")),
    *(("1,-1,2", "S"), ("1,none,2", "S"), ("1, 2", "ST"), ("7,1", "S"), ("GPU-9,1", "S"), ("1,1", "S")),
]


@pytest.mark.parametrize(("text", "expected"), VISIBLE)
async def test_cuda_visible_devices_bounds_what_is_used(text: str, expected: str) -> None:
    """As CUDA reads it: indices, UUIDs and their beginnings, up to what is neither; never more than the config says."""
    assert letters(Choice(visible=text)) == expected
    assert letters(Choice(include=tuple("012"), visible=text)) == expected
    assert (
        letters(Choice(include=("1", "NVIDIA A100", "2"), exclude=("9",), gpus=tuple("012"), visible=text)) == expected
    )


@pytest.mark.parametrize("text", ["", "-1", "NoDevFiles", "7", "GPU-9", "GPU-0000"])
async def test_cuda_visible_devices_that_leave_nothing(text: str) -> None:
    """An error that says so, and no way to measure on the CPU instead; devices that are no GPUs aren't bound by it."""
    with pytest.raises(DeviceError, match=r"leaves no device.*backend to cpu"):
        Choice(visible=text).of(PARTS)
    others = tuple(replace(reading, backend="simulated") for reading in PARTS)
    assert Choice(visible=text).of(others) == others


async def test_one_dead_gpu_stops_no_other() -> None:
    """Named and not there, or not to be told any more: it is out, and says so."""
    *there, dead = Choice(include=("1", "GPU-9999-xx", "5", "NVIDIA H100")).of(PARTS)
    assert [reading.uuid for reading in (*there, dead)] == [
        *("GPU-0000-bb", "GPU-9999-xx", "MISSING-5", "MISSING-NVIDIA H100")
    ]
    assert all("no such device" in reading.unavailable and reading.max_cells == 0 for reading in (*there[1:], dead))
    unknown = DeviceReading("UNKNOWN-3", 3, "unknown NVIDIA device", unavailable="lost")
    assert Choice(include=("1", "3")).of((*PARTS, unknown)) == (PARTS[3], unknown)
    with pytest.raises(DeviceError, match=r"called 'GPU-9', '5'; there are: 0: NVIDIA A100 \(GPU-0000-aa\), 0: "):
        Choice(include=("GPU-9", "5")).of(PARTS)


async def test_nothing_left_is_an_error_with_what_there_is() -> None:
    """By whatever takes the last one away."""
    with pytest.raises(DeviceError, match="every device is excluded"):
        Choice(include=("1",), exclude=("GPU-0000-bb",)).of(PARTS)
    with pytest.raises(DeviceError, match=r"nothing is left of the devices that are asked for \(0, 1\)"):
        Choice(include=("0",), gpus=("1",)).of(PARTS)
    with pytest.raises(DeviceError, match="leaves some"):
        Choice(include=("0",), visible="1").of(PARTS)
    cpu = (DeviceReading("CPU-0", 0, "CPU", 1, 1, backend="cpu"),)
    with pytest.raises(DeviceError, match="--gpus 0: the device is the CPU"):
        Choice(gpus=("0",)).of(cpu)
    assert Choice(visible="").of(cpu) == cpu


TEXTS = st.one_of(
    st.sampled_from([name for name, _ in NAMES]), st.text("GPUMIG-01234,:. abc", max_size=12), st.text(max_size=6)
)
CHOICES = st.builds(
    Choice,
    st.lists(TEXTS, max_size=3).map(tuple),
    st.lists(TEXTS, max_size=2).map(tuple),
    st.lists(TEXTS, max_size=2).map(tuple),
    st.one_of(st.none(), st.lists(TEXTS, max_size=3).map(",".join)),
)


def chooses_what_is_named(choice: Choice, readings: tuple[DeviceReading, ...]) -> None:
    """What must hold of every choice: no device that isn't allowed, and none left idle that is."""
    allowed = {r.uuid for r in readings}
    if choice.visible is not None:
        allowed &= {r.uuid for r in visible(readings, choice.visible)}
    for wanted in filter(None, (choice.include, choice.gpus)):
        allowed &= {r.uuid for text in wanted for r in devices_named(readings, text)}
    allowed -= {r.uuid for text in choice.exclude for r in devices_named(readings, text)}
    if not allowed:
        with pytest.raises(DeviceError, match=r"there are: |of these: "):
            choice.of(readings)
        return
    chosen = choice.of(readings)
    assert {r.uuid for r in chosen if r in readings} == allowed
    assert all(r.unavailable for r in chosen if r not in readings)
    indices = [r.index for r in chosen if r.parent == ""]
    assert indices == sorted(indices) or choice.include or choice.gpus


@settings(max_examples=1000, deadline=None)
@given(CHOICES, st.lists(st.sampled_from(PARTS), min_size=1, unique=True))
def test_generated_choices(choice: Choice, readings: list[DeviceReading]) -> None:
    """1,000 of them on boxes of all sizes."""
    chooses_what_is_named(choice, tuple(sorted(readings, key=PARTS.index)))


@pytest.mark.campaign
@pytest.mark.timeout(0)
@settings(max_examples=20_000, deadline=None)
@given(CHOICES, st.lists(st.sampled_from(PARTS), min_size=1, unique=True))
def test_generated_choices_at_length(choice: Choice, readings: list[DeviceReading]) -> None:
    """20,000 of them."""
    chooses_what_is_named(choice, tuple(sorted(readings, key=PARTS.index)))
