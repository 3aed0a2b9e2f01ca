"""`weights = "random"` in a config: what it needs, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from boundd.config.settings import model_value

MATRIX = '[matrix.axes]\nmodel = ["{}"]\nscheduler = ["DDIM"]\nsteps = [20]\nmethod = ["tome"]\nattention = ["eager"]\n'
MATRIX += "[matrix.constants]\nnum_samples = 2\nbatch_size = 1\n"


@pytest.mark.parametrize(
    ("model", "entry", "source"),
    [
        ("SDXL", 'weights = "random"', ""),
        ("SDXL", 'weights = "random"\nsource = "stabilityai/stable-diffusion-xl-base-1.0"', None),
        ("mine", 'weights = "random"\nsource = "SD2.1"', "SD2.1"),
    ],
)
def test_it_needs_no_source_but_an_architecture(
    settings_of: Callable[[str], Any], model: str, entry: str, source: str | None
) -> None:
    """The worker is told so; the attention is part of the cell's key."""
    settings = settings_of(f'{MATRIX.format(model)}[models."{model}"]\n{entry}\n')
    cell = settings.cells[0][0]
    assert cell.parameters["attention"] == "eager"
    value = model_value(settings, cell)
    assert value is not None
    assert value["weights"] == "random"
    assert source is None or value["source"] == source
