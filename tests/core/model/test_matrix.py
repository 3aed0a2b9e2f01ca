"""The matrix and its cells' keys."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.model.cells import Cell, canonical_json
from boundd.core.model.matrix import MAX_CELLS, MatrixError, expand

AXES = {"model": ["SD1.5", "SD2.1"], "steps": [20, 50], "method": ["tome", "tgate"]}


def test_the_product_in_order() -> None:
    """All combinations, the last axis fastest, constants in every key."""
    cells = expand(AXES, {"batch_size": 4})
    assert [cell.label for cell in cells][:3] == ["SD1.5/20/tome", "SD1.5/20/tgate", "SD1.5/50/tome"]
    assert len(cells) == 8
    assert all(json.loads(cell.key)["batch_size"] == 4 for cell in cells)


def test_excludes_and_includes() -> None:
    """An exclude takes out what it matches; an include adds one; what comes twice is kept once."""
    cells = expand(
        AXES,
        {},
        [{"model": "SD1.5", "method": ["tome", "tgate"]}],
        [{"model": "SDXL", "steps": 20, "method": "tome"}, {"model": "SD2.1", "steps": 20, "method": "tome"}],
    )
    assert len(cells) == 5
    assert cells[-1].label == "SDXL/20/tome"


def test_no_cells_says_why() -> None:
    """Each way to have none has its own words."""
    with pytest.raises(MatrixError, match="no axes"):
        expand({}, {})
    with pytest.raises(MatrixError, match="'steps' has no values"):
        expand({"steps": []}, {})
    with pytest.raises(MatrixError, match="all excluded"):
        expand(AXES, {}, [{}])


def test_too_many_cells_are_refused_before_they_are_made() -> None:
    """A product over a million is a typing error; it must not eat the memory first."""
    axes = {f"a{n}": list(range(100)) for n in range(10)}
    with pytest.raises(MatrixError, match=f"{MAX_CELLS:,}"):
        expand(axes, {})


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8), st.booleans()), max_size=5))
def test_a_key_is_its_parameters(parameters: dict[str, object]) -> None:
    """The key reads back as the parameters, whatever order they were given in."""
    cell = Cell.of(parameters, [])
    backwards = Cell.of(dict(reversed(list(parameters.items()))), [])
    assert json.loads(cell.key) == parameters
    assert cell == backwards


def test_keys_tell_sd15_from_sd21() -> None:
    """What the old key could not."""
    assert Cell.of({"model": "SD1.5"}, []).key != Cell.of({"model": "SD2.1"}, []).key


def test_canonical_json_refuses_nan() -> None:
    """NaN is not JSON and equals nothing."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})
