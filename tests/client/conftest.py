"""A server for each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "control"))

from control_server import Running, populated


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A server over six cells in six states."""
    with populated(tmp_path) as server:
        yield server
