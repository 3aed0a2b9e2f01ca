"""What the device tests share: the fake NVML, built once, with a fresh state for each test."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from boundd.ports import DeviceProbe
from tests.fake_nvml import FakeNvml, build


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled fake."""
    return build(tmp_path_factory.mktemp("fake_nvml"))


@pytest.fixture
def fake(fake_library: Path, tmp_path: Path) -> FakeNvml:
    """A fake driver with two devices, GPU-a and GPU-b."""
    driver = FakeNvml(tmp_path / "nvml.state", fake_library)
    driver.add("GPU-a", "Fake A100", 80)
    driver.add("GPU-b", "Fake L4", 24)
    return driver


async def recovers(probe: DeviceProbe) -> bool:
    """Whether the probe reads every device again within some seconds."""
    with anyio.move_on_after(20):
        while any(reading.unavailable for reading in await probe.read(processes=False)):  # noqa: ASYNC110
            await anyio.sleep(0.02)
        return True
    return False
