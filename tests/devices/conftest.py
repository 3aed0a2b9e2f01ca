"""What the device tests share: the fake NVML, built once, with a fresh state for each test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_FAKE = Path(__file__).parents[1] / "fake_nvml" / "__init__.py"


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def fake_nvml_module() -> Any:
    """The helper, loaded by its path: the tests are not a package."""
    if "fake_nvml" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fake_nvml", _FAKE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fake_nvml"] = module
        spec.loader.exec_module(module)
    return sys.modules["fake_nvml"]


@pytest.fixture(scope="session")
def fake_library(fake_nvml_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled fake."""
    folder: Path = fake_nvml_module.build(tmp_path_factory.mktemp("fake_nvml"))
    return folder


@pytest.fixture
def fake(fake_nvml_module: Any, fake_library: Path, tmp_path: Path) -> Any:
    """A fake driver with two devices, GPU-a and GPU-b."""
    driver = fake_nvml_module.FakeNvml(tmp_path / "nvml.state", fake_library)
    driver.add("GPU-a", "Fake A100", 80)
    driver.add("GPU-b", "Fake L4", 24)
    return driver
