"""Builders of small states for the core's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from immutables import Map

from boundd.core.lifecycle.step import step
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.events import ConfigLoaded, DevicesRead, Now
from boundd.core.model.state import Rules, State

GIB = 1024**3


@pytest.fixture
def make_cell() -> Callable[..., Cell]:
    """A cell of the usual axes; keyword arguments override its parameters."""

    def make(**parameters: Any) -> Cell:
        usual = {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "tome", "batch_size": 4}
        return Cell.of({**usual, **parameters}, ["model", "scheduler", "steps", "method"])

    return make


@pytest.fixture
def make_state() -> Callable[..., State]:
    """A state with these cells and devices of these many GiB, all free; policies by keyword `policy`."""

    def make(
        cells: list[Cell],
        gib: list[int],
        *,
        policy: CellPolicy | None = None,
        max_cells: int | None = None,
        **rules: Any,
    ) -> State:
        now = Now(0.0, 0.0)
        state, _ = step(
            State(cells=Map()),
            ConfigLoaded(tuple((cell, policy or CellPolicy()) for cell in cells), Rules(**rules)),
            now,
        )
        readings = tuple(
            DeviceReading(
                f"GPU-{index}", index, "Fake", total_bytes=size * GIB, free_bytes=size * GIB, max_cells=max_cells
            )
            for index, size in enumerate(gib)
        )
        return step(state, DevicesRead(readings), now)[0]

    return make
